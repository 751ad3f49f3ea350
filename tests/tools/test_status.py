"""Watching runs: what make status prints, and TensorBoard."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dwa_paper.runs import checkpoint, sets, store
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.tools import status

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def logged(own_root):
    """A function that leaves a log of the given lines, of the tiny setting's one seed or of all its seeds."""
    folder = own_root / "results" / "test" / "executed"
    folder.mkdir(parents=True)

    def write(*lines: str, name: str = "tiny-seed0") -> Path:
        (folder / f"{name}.log").write_text("\n".join(lines) + "\n")
        return folder / f"{name}.ipynb"

    return write


PRINTED = "teacher:  1%\rteacher: 50%"


def test_setting_not_begun_waits(tiny_setting, own_root):
    assert status.find_state(tiny_setting()) == ("waiting", "")
    assert not own_root.exists()


@pytest.mark.parametrize("name", ["tiny-seed0", "tiny"])
def test_execution_that_holds_its_lock_is_running_with_its_last_line(name, tiny_setting, logged):
    path = logged(PRINTED, name=name)
    holder = (
        "import sys; from pathlib import Path; from dwa_paper.runs.runner import make_lock\n"
        "with make_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        process.stdout.readline()
        assert status.find_state(tiny_setting()) == ("running", "teacher: 50%")
        process.kill()
    assert status.find_state(tiny_setting()) == ("stopped", "teacher: 50%")


def test_end_is_one_line_until_a_record_is_there(tiny_setting, logged, bare_record):
    logged(PRINTED, "=== failed: tiny: teacher: the loss is nan")
    assert status.find_state(tiny_setting()) == ("failed", "tiny: teacher: the loss is nan")
    logged(PRINTED, "=== stopped: stopped by SIGTERM")
    assert status.find_state(tiny_setting()) == ("stopped", "stopped by SIGTERM")
    store.write_json(tiny_setting().record_path(), bare_record(tiny_setting()))
    logged(PRINTED, "=== done in 3 s")
    assert status.find_state(tiny_setting()) == ("done", "")
    assert status.find_state(tiny_setting(ipc=3))[0] == "waiting", "a record of other numbers is none"


def test_command_lists_every_setting_of_the_profile_and_counts_them(own_root):
    done = subprocess.run(
        [sys.executable, "-m", "dwa_paper", "status", "demo"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    lines = done.stdout.splitlines()
    assert "waiting  digits-dwa-ipc10-seed0" in lines
    assert lines[0] == f"demo: {sum(line.startswith('waiting') for line in lines)} waiting"
    wrong = subprocess.run(
        [sys.executable, "-m", "dwa_paper", "status", "x"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


# ---------------------------------------------------------------------------------------------- TensorBoard


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setenv("DWA_TENSORBOARD", str(tmp_path / "runs"))
    checkpoint.open_board.cache_clear()
    yield tmp_path / "runs"
    checkpoint.open_board.cache_clear()


def test_board_shows_losses_and_images_and_leaves_the_set_as_it_is(
    watched, digits, tiny_teacher, tiny_setting, tmp_path, monkeypatch, compute
):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is an extra"
    )
    setting = tiny_setting(ipc=2)
    seen = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    events = accumulator.EventAccumulator(str(watched / seen.artifact))
    events.Reload()
    assert {event.step for event in events.Images("images")} == {0, 1}
    losses = [event.value for event in events.Scalars("ipc index 0/total")]
    assert losses == pytest.approx(seen.record["losses_first_batch"]["total"], rel=1e-5)
    assert len(events.Scalars("ipc index 1/cross_entropy")) == setting.synthesis.iterations
    monkeypatch.delenv("DWA_TENSORBOARD")
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "unwatched"))
    checkpoint.open_board.cache_clear()
    unseen = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    assert unseen.artifact == seen.artifact
    assert torch.equal(unseen.images_uint8, seen.images_uint8)


def test_board_that_is_not_installed_is_one_line(watched, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with refused("DWA_TENSORBOARD", ".venv/bin/pip install -e '.[tensorboard]'"):
        Checkpoint("x").epoch({"epoch": 1, "loss": 0.5})


def test_nobody_watches_by_default(monkeypatch):
    monkeypatch.delenv("DWA_TENSORBOARD", raising=False)
    checkpoint.open_board.cache_clear()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Checkpoint("x").epoch({"epoch": 1, "loss": 0.5})
