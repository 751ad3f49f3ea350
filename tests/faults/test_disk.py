"""A disk that is full, read-only or gone: one line, and no half-written artifact under a final name."""

import errno
import shutil
import subprocess
import sys

import pytest
from fault_tools import REPOSITORY, environment_with

from dwa_core.errors import StorageError
from dwa_paper.runs import real, sets, store, students, teachers
from dwa_paper.runs.records import find_record


def mount(folder, *options: str) -> None:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of 4 MB as the root."""
    folder = tmp_path / "disk"
    mount(folder, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    monkeypatch.setenv("DWA_ROOT", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_all(setting, compute):
    digits = real.load("digits", setting.images, compute.device)
    trained = teachers.load_or_train(setting, digits, compute)
    distilled = sets.load_or_synthesize(setting, digits, trained, compute)
    return students.evaluate(setting, digits, [digits], [trained], [distilled], compute)


def unfinished(folder) -> list[str]:
    """Artifacts under a final name that are not whole, and whatever was left beside them."""
    artifacts = [path for kind in ("data", "teachers", "distilled") for path in folder.glob(f"artifacts/{kind}/*")]
    bad = [path for path in artifacts if path.is_dir() and (path.name[0] == "." or store.find_damage(path))]
    hidden = [path for path in folder.rglob(".*") if path.is_file() and path.suffix != ".lock"]
    return [str(path) for path in bad + hidden]


@pytest.mark.parametrize(("checkpoint_seconds", "places"), [(0, 2), (3600, 3)])
def test_disk_that_fills_up_ends_with_one_line_wherever_it_happens(
    checkpoint_seconds, places, small_disk, tiny_setting, compute, monkeypatch
):
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", str(checkpoint_seconds))
    setting = tiny_setting(
        network="convnet-8", teacher={"epochs": 1}, synthesis={"iterations": 2}, relabel={"epochs": 1}
    )
    filler, reached = small_disk / "filler", []
    # Too little room for the data, which take 1.4 MB; then, beside the data, a little more each time until the run
    # comes through. It resumes each time, as a user would.
    for kilobytes in (0, 1000, *range(0, 400, 4)):
        if len(reached) == 2:
            filler.unlink()
            real.load("digits", setting.images, compute.device)
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - kilobytes * 1024))
        try:
            record = run_all(setting, compute)
            break
        except StorageError as error:
            reached.append(str(error))
        assert unfinished(small_disk) == []
    for line in reached:
        assert "cannot be written; " in line
        assert len(line.splitlines()) == 1
    assert len({line.partition(":")[0] for line in reached}) >= places, reached
    assert unfinished(small_disk) == []
    assert record == find_record(setting)


@pytest.mark.whole
def test_command_on_a_disk_that_is_full(small_disk):
    (small_disk / "filler").write_bytes(b"\0" * (4 * 1024 * 1024 - 300 * 1024))
    done = subprocess.run(
        [sys.executable, "-m", "dwa_paper", "run", "results/demo/digits-sre2l-ipc10-seed0.json"],
        cwd=REPOSITORY,
        env=environment_with(DWA_ROOT=str(small_disk), PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert unfinished(small_disk) == []


def test_read_only_disk(small_disk, tiny_setting, compute):
    mount(small_disk, "-o", "remount,ro")
    with pytest.raises(StorageError, match="cannot be written; Read-only file system"):
        run_all(tiny_setting(), compute)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["save_file", "seal"])
def test_no_room_for_a_teacher(writer, tiny_setting, digits, compute, monkeypatch, own_root):
    """The same without a disk to fill, for a user who may not mount one."""
    monkeypatch.setattr(teachers if writer == "save_file" else store, writer, full)
    with pytest.raises(StorageError, match="No space left on device"):
        teachers.load_or_train(tiny_setting(network="convnet-8", teacher={"epochs": 1}), digits, compute)
    assert unfinished(own_root) == []
    assert not list(own_root.rglob("*.safetensors"))


def test_folder_that_vanishes_while_an_artifact_is_made(own_root):
    def lose_everything():
        with store.create_artifact("teachers", "one"):
            shutil.rmtree(own_root)

    with pytest.raises(StorageError, match="cannot be written; No such file or directory"):
        lose_everything()
    assert not own_root.exists()
