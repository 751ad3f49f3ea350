"""Many machines: a cluster of two nodes on this machine, a worker killed in the middle, records as of a serial run."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from dwa_core import synthesis
from dwa_paper.runs import sets, store
from dwa_paper.settings import files
from dwa_paper.tools import fleet

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "dwa_paper"]
SHORT = {
    "preset": "digits",
    "network": "convnet-16",
    "device": "cpu",
    "precision": "fp32",
    "teacher": {"epochs": 3},
    "synthesis": {"iterations": 60},
    "relabel": {"epochs": 3, "test_every": 1},
}


# --------------------------------------------------------------------------------------------- parts of a set


def test_set_made_in_parts_is_the_set_made_whole(digits, tiny_teacher, tiny_setting, tmp_path, monkeypatch, compute):
    setting = tiny_setting(ipc=3, synthesis={"iterations": 2})
    whole = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "parts"))
    for indices in (range(2, 3), range(0, 2)):
        sets.synthesize_part(setting, digits, tiny_teacher, compute, indices)
    called = []
    monkeypatch.setattr(synthesis, "optimise", lambda *_: called.append(1))
    joined = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    assert not called
    assert torch.equal(joined.images_uint8, whole.images_uint8)
    assert joined.record["losses_first_batch"] == whole.record["losses_first_batch"]
    assert joined.artifact == whole.artifact
    assert not list((tmp_path / "parts" / "artifacts" / "checkpoints").iterdir())


def test_part_that_is_missing_is_made_by_who_joins(digits, tiny_teacher, tiny_setting, tmp_path, monkeypatch, compute):
    setting = tiny_setting(ipc=3, synthesis={"iterations": 2})
    whole = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "parts"))
    for indices in (range(0, 1), range(2, 3)):
        sets.synthesize_part(setting, digits, tiny_teacher, compute, indices)
    joined = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    assert torch.equal(joined.images_uint8, whole.images_uint8)


# ------------------------------------------------------------------------------------------------- the cluster


def test_runs_that_share_a_teacher_or_a_set_wait_for_one_task():
    submitted = []

    def as_task(function):
        def remote(*arguments):
            submitted.append((function.__name__, arguments))
            return len(submitted) - 1  # a handle that names its task

        return SimpleNamespace(remote=remote)

    base = {**SHORT, "profile": "fleet", "seed": 0}
    own_students = [{"student": "convnet-8"}, {"seed": 1}, {"relabel": {"epochs": 4}}]
    own_sets, own_teachers = [{"ipc": 2}, {"method": "sre2l"}], [{"validation": 0.1}, {"teacher": {"epochs": 4}}]
    real = [{"method": "random-real"}, {"method": "random-real", "teacher": {"epochs": 4}}]
    cases = [{}, *own_students, *own_sets, *own_teachers, *real]
    wanted = [{**base, "name": str(n), **more} for n, more in enumerate(cases)]
    records = fleet.submit(as_task, [("target", one) for one in wanted], 1)
    assert len(records) == len(cases)
    assert Counter(name for name, _ in submitted) == {"train_teacher": 3, "make_set": 6, "run_notebook": 10}
    waited_for = [submitted[record][1][2:] for record in records]  # each record's set and teacher
    assert len(set(waited_for[:4])) == 1
    assert waited_for[-2][0] == waited_for[-1][0], "the same real images"
    for (_, teacher), one in zip(waited_for, wanted, strict=True):
        (trained,) = submitted[teacher][1]
        assert [trained.get(key) for key in ("teacher", "validation")] == [
            one.get(key) for key in ("teacher", "validation")
        ]


def test_sets_of_others_are_submitted_before_they_are_downloaded():
    names = []

    def as_task(function):
        return SimpleNamespace(remote=lambda *_: names.append(function.__name__) or len(names))

    base = {**SHORT, "profile": "fleet", "seed": 0, "method": "external"}
    wanted = [("target", {**base, "name": str(n), "distilled": f"somebody/set-{n // 2}"}) for n in range(4)]
    assert len(fleet.submit(as_task, wanted, 1)) == 4
    assert Counter(names) == {"train_teacher": 1, "make_set": 2, "run_notebook": 4}


@pytest.fixture
def folder(tmp_path) -> Path:
    """settings/fleet with DWA of two seeds and real images of one."""
    folder = tmp_path / "settings" / "fleet"
    folder.mkdir(parents=True)
    for name, more in (("dwa", {"ipc": 4, "seeds": [0, 1]}), ("real", {"method": "random-real", "ipc": 2})):
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"profile": "fleet", "name": name, **SHORT, **more}, default_flow_style=None)
        )
    return folder


def environment(root: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "DWA_ROOT": str(root), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def comparable(path: Path) -> dict:
    """A record without its times; the files' checksums stay."""
    record = json.loads(path.read_text())
    return {key: value for key, value in record.items() if key not in ("seconds", "finished")}


def test_missing_records_of_a_profile_and_of_files_are_found(folder, own_root, bare_record):
    targets = [str(folder / "dwa.yaml"), "results/demo/digits-dwa-ipc10.json"]
    found = [(target, parameters["seed"]) for target, parameters in fleet.list_missing(targets)]
    assert found == [(targets[0], 0), (targets[0], 1), *((targets[1], seed) for seed in (0, 1, 2))]
    first, *others = files.list_runs("demo")
    store.write_json(first.record_path(), bare_record(first))
    assert len(fleet.list_missing(["demo"])) == len(others)


@pytest.fixture
def cluster(quick_ray):
    pytest.importorskip("ray", reason="Ray is an extra: pip install .[ray]")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def kill_one(title: str, killed: list[int], deadline: float) -> None:
    """Kills the first process whose title holds `title`, a second after it appears."""
    while time.monotonic() < deadline and not killed:
        for process in psutil.process_iter(["cmdline"]):
            if title in " ".join(process.info["cmdline"] or []):
                time.sleep(1)
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
                killed.append(process.pid)
                return
        time.sleep(0.1)


def test_fleet_makes_the_records_of_a_serial_run_though_a_worker_is_killed(folder, cluster, tmp_path):
    for path, seed in (("dwa", 0), ("dwa", 1), ("real", 0)):
        command = [*COMMAND, "run", str(folder / f"{path}.yaml"), "--seed", str(seed)]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment(tmp_path / "serial"), capture_output=True)
    killed = []
    killer = threading.Thread(target=kill_one, args=("ray::make_part", killed, time.monotonic() + 300), daemon=True)
    killer.start()
    fleet = [*COMMAND, "fleet", *map(str, folder.iterdir()), "--tasks-per-set", "2"]
    variables = environment(tmp_path / "fleet") | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(fleet, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed, "no worker was there to be killed"
    assert done.stdout.splitlines()[0] == "3 records to make on 2 machines"
    for name in ("dwa-seed0", "dwa-seed1", "real-seed0"):
        paths = [tmp_path / root / "results" / "fleet" / f"{name}.json" for root in ("serial", "fleet")]
        assert comparable(paths[0]) == comparable(paths[1])
    again = subprocess.run(fleet, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=True)
    assert again.stdout.splitlines()[0] == "0 records to make on 2 machines"


def test_setting_that_fails_leaves_the_others_alone_and_is_named(folder, cluster, tmp_path):
    bad = yaml.safe_load((folder / "dwa.yaml").read_text()) | {"name": "bad", "ipc": 1000, "seeds": [0]}
    (folder / "bad.yaml").write_text(yaml.safe_dump(bad, default_flow_style=None))
    (folder / "dwa.yaml").unlink()
    fleet = [*COMMAND, "fleet", *map(str, folder.iterdir())]
    variables = environment(tmp_path / "fleet") | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(fleet, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == "error: 1 of 2 records could not be made; see the lines above, and run it again"
    )
    assert "FAILED fleet/bad-seed0" in done.stdout
    assert "ipc: 1000 is not allowed" in done.stdout
    assert "done   fleet/real-seed0" in done.stdout
    assert (tmp_path / "fleet" / "results" / "fleet" / "real-seed0.json").is_file()


@pytest.mark.parametrize(("ipc", "tasks"), [(10, 3), (2, 5), (50, 50)])
def test_parts_hold_every_index_once_in_order(ipc, tasks):
    parts = fleet.split(ipc, tasks)
    assert [index for part in parts for index in part] == list(range(ipc))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == min(ipc, tasks)


def test_without_ray_the_answer_is_one_line(folder, tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ray.py").write_text("raise ImportError")
    variables = environment(tmp_path)
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "hidden"), variables["PYTHONPATH"]])
    fleet = [*COMMAND, "fleet", str(folder / "dwa.yaml")]
    done = subprocess.run(fleet, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: ENGINE=ray needs Ray; .venv/bin/pip install -e '.[ray]'\n"


def test_option_that_is_none_is_one_line(folder, tmp_path):
    fleet = [*COMMAND, "fleet", str(folder / "dwa.yaml"), "--tasks-per-set", "many"]
    done = subprocess.run(fleet, capture_output=True, text=True, cwd=REPOSITORY, env=environment(tmp_path), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: argument --tasks-per-set: invalid int value: 'many'\n"
