"""Fixtures for every test file: a root of its own for each test, digits at 16 px, and a teacher trained once."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch

from dwa_core import devices
from dwa_core.devices import Compute
from dwa_core.errors import InputError
from dwa_paper.runs import real, teachers
from dwa_paper.settings import schema
from dwa_paper.settings.presets import merge
from dwa_paper.settings.schema import Setting

# Networks as small as these run no faster on several threads, and far slower where cores are busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """The library `datasets` copies every Parquet file that it opens; keep the copies out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def outside_of_make():
    """Under `make test`, a test's own make would take over its flags and variables, and say which folder it enters."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    """Artifacts and results of a test go to a folder of its own, and no local data is found by accident."""
    root = tmp_path / "root"
    monkeypatch.setenv("DWA_ROOT", str(root))
    monkeypatch.delenv("DWA_DATA", raising=False)
    return root


@pytest.fixture(scope="session")
def cpu():
    return torch.device("cpu")


@pytest.fixture(scope="session")
def compute() -> Compute:
    """What the tiny setting asks for."""
    return devices.choose("cpu", "fp32")


def resolve_tiny(**differences) -> Setting:
    # fp32 because "auto" takes bf16 on some CPUs, where small differences would vanish in the rounding.
    tiny = {
        "preset": "digits",
        "profile": "test",
        "name": "tiny",
        "network": "convnet-16",
        "ipc": 1,
        "device": "cpu",
        "precision": "fp32",
        "teacher": {"epochs": 4, "batch_size": 48},
        "synthesis": {"iterations": 4},
        "relabel": {"epochs": 3, "test_every": 1},
    }
    return schema.resolve(merge(tiny, differences))


@pytest.fixture(scope="session")
def bare_record():
    """A function that returns a record of a setting in which every part is there, with what is given."""

    def made(setting: Setting, **given) -> dict:
        student = {"accuracy": dict.fromkeys(("last", "best", "reported"), 0.0), "curve": []}
        student |= {"teacher": {"artifact": "t", "files": {}, "accuracy": {"top1": 0.0, "top5": 0.0}}}
        student |= {"distilled": {"artifact": "d", "files": {}}}
        student |= {"seconds": {"teacher": 1.0, "synthesis": 1.0, "student": 1.0}}
        data = {"fingerprint": "f", "training_images": 100, "test_images": 100, "classes": 10}
        run = {"data": data, "precision": "float32", "device": "cpu", "versions": {"torch": "2.0"}}
        return {"setting": setting.recorded(), **student, **run, **given}

    return made


@pytest.fixture(scope="session")
def tiny_setting():
    """A function that returns the tiny setting with what differs laid over it."""
    return resolve_tiny


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory):
    """Where the shared teacher is stored; a test that wants to find it there sets DWA_ROOT to it."""
    return tmp_path_factory.mktemp("shared-root")


@pytest.fixture(scope="session")
def digits(shared_root, cpu):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DWA_ROOT", str(shared_root))
        return real.load("digits", resolve_tiny().images, cpu)


@pytest.fixture(scope="session")
def tiny_teacher(shared_root, digits, compute):
    """The teacher of the tiny setting; differences in synthesis and relabel leave it the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DWA_ROOT", str(shared_root))
        return teachers.load_or_train(resolve_tiny(), digits, compute)


@pytest.fixture
def algorithms():
    """torch's global settings of its algorithms are put back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.fixture(scope="session")
def quick_ray(tmp_path_factory):
    """Ray's processes must be up within 30 s, and an optional import of jsonschema's is most of what they wait for."""
    folder = tmp_path_factory.mktemp("quick-ray")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def refused():
    """A context whose body must raise InputError, with one line that holds each of the given texts."""

    @contextmanager
    def check(*texts: str):
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        for text in texts:
            assert text in message

    return check


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository without its results, to run make in; the environment is this one."""
    repository, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ":!results", ":!figures"]
    names = subprocess.run(listed, cwd=repository, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, folder / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "installed").touch()
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    return folder
