"""A disk that is full, read-only or gone: one line, and no half-written artifact under a final name."""

import errno
import shutil
import subprocess
import sys

import pytest
from fault_tools import REPOSITORY, environment_with

from dwa_core import data, relabel, store, synthesize, teacher
from dwa_core.records import find_record


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


def run_all(setting, cpu):
    real = data.load("digits", setting.images, cpu)
    trained = teacher.train_or_load(setting, real, cpu)
    distilled = synthesize.synthesize_or_load(setting, real, trained, cpu)
    return relabel.evaluate(setting, real, trained, distilled, cpu)


def unfinished(folder) -> list[str]:
    """Artifacts under a final name that are not whole, and whatever was left beside them."""
    artifacts = [path for kind in ("data", "teachers", "distilled") for path in folder.glob(f"artifacts/{kind}/*")]
    bad = [path for path in artifacts if path.is_dir() and (path.name[0] == "." or store.damage(path))]
    hidden = [path for path in folder.rglob(".*") if path.is_file() and path.suffix != ".lock"]
    return [str(path) for path in bad + hidden]


@pytest.mark.parametrize(("checkpoint_seconds", "places"), [(0, 2), (3600, 3)])
def test_disk_that_fills_up_ends_with_one_line_wherever_it_happens(
    checkpoint_seconds, places, small_disk, tiny_setting, cpu, monkeypatch
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
            data.load("digits", setting.images, cpu)
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - kilobytes * 1024))
        try:
            record = run_all(setting, cpu)
            break
        except store.StorageError as error:
            reached.append(str(error))
        assert unfinished(small_disk) == []
    for line in reached:
        assert "cannot be written; " in line
        assert len(line.splitlines()) == 1
    assert len({line.partition(":")[0] for line in reached}) >= places, reached
    assert unfinished(small_disk) == []
    assert record == find_record(setting)


@pytest.mark.whole
def test_runner_on_a_disk_that_is_full(small_disk):
    (small_disk / "filler").write_bytes(b"\0" * (4 * 1024 * 1024 - 300 * 1024))
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "notebooks" / "run.py"), "settings/demo/digits-sre2l-ipc10.yaml"],
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


def test_read_only_disk(small_disk, tiny_setting, cpu):
    mount(small_disk, "-o", "remount,ro")
    with pytest.raises(store.StorageError, match="cannot be written; Read-only file system"):
        run_all(tiny_setting(), cpu)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["save_file", "seal"])
def test_no_room_for_a_teacher(writer, tiny_setting, digits, cpu, monkeypatch, own_root):
    """The same without a disk to fill, for whoever may not mount one."""
    monkeypatch.setattr(teacher if writer == "save_file" else store, writer, full)
    with pytest.raises(store.StorageError, match="No space left on device"):
        teacher.train_or_load(tiny_setting(network="convnet-8", teacher={"epochs": 1}), digits, cpu)
    assert unfinished(own_root) == []
    assert not list(own_root.rglob("*.safetensors"))


def test_folder_that_vanishes_while_an_artifact_is_made(own_root):
    def lose_everything():
        with store.new_artifact("teachers", "one"):
            shutil.rmtree(own_root)

    with pytest.raises(store.StorageError, match="cannot be written; No such file or directory"):
        lose_everything()
    assert not own_root.exists()
