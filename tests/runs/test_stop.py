"""What stops a run before it is done: signals and the time budget; it continues to the same bits."""

import itertools
import os
import signal

import pytest

from dwa_core.batches import Resident
from dwa_core.errors import DivergedError, StoppedError
from dwa_paper.runs import sets, stop, store, students, teachers


@pytest.fixture
def fresh_stop():
    """Nothing to stop for, before and after."""
    stop.start_budget(None)
    stop.restore_handlers()
    yield stop
    stop.start_budget(None)
    stop.restore_handlers()


@pytest.mark.usefixtures("fresh_stop")
@pytest.mark.parametrize("number", stop.SIGNALS)
def test_signal_in_an_epoch_stores_a_checkpoint_and_the_run_continues_to_the_same_bits(
    number, tiny_setting, digits, compute, monkeypatch, tmp_path
):
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 2})
    unbroken = teachers.load_or_train(setting, digits, compute)
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "stopped"))
    original, drawn = Resident.train_batches, itertools.count(1)

    def signalling(self, *arguments):
        for batch in original(self, *arguments):
            if next(drawn) == 5:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(Resident, "train_batches", signalling)
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"^stopped by {number.name}; run the same command to continue$"):
        teachers.load_or_train(setting, digits, compute)
    assert signal.getsignal(number) == before
    (left,) = (tmp_path / "stopped" / "artifacts" / "checkpoints").iterdir()
    assert left.suffix == ".safetensors"
    resumed = teachers.load_or_train(setting, digits, compute)
    assert signal.getsignal(number) == before
    assert resumed.record["curve"] == unbroken.record["curve"]
    assert resumed.record["files"] == unbroken.record["files"]


@pytest.mark.usefixtures("fresh_stop")
def test_second_interrupt_breaks_off_at_once():
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason() == "stopped by SIGTERM; run the same command to continue"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("fresh_stop")
def test_budget_that_is_used_up_stops_each_stage_and_the_rest_follows_later(
    tiny_setting, digits, compute, monkeypatch, tmp_path
):
    setting = tiny_setting(network="convnet-8", ipc=2)

    def run():
        trained = teachers.load_or_train(setting, digits, compute)
        distilled = sets.load_or_synthesize(setting, digits, trained, compute)
        return students.evaluate(setting, digits, [digits], [trained], [distilled], compute)

    unbroken = run()
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "in-pieces"))
    said = []
    for _ in range(1000):
        stop.start_budget(1e-9)
        try:
            resumed = run()
            break
        except StoppedError as stopped:
            said.append(str(stopped))
    assert set(said) == {"stopped by max_minutes 1e-09; run the same command to continue"}
    # A step each time: 4 epochs of 27 batches, 2 times 4 iterations, 3 epochs of two batches.
    assert len(said) == 4 * 27 + 2 * 4 + 3 * 2
    for key in ("accuracy", "curve", "distilled", "teacher"):
        assert resumed[key] == unbroken[key]


@pytest.mark.usefixtures("fresh_stop")
def test_budget_ends_the_wait_for_another_run():
    stop.start_budget(0.2 / 60)
    stopped = pytest.raises(StoppedError, match="max_minutes")
    # Locks of one path exclude each other within a process as between two.
    with store.lock("teachers", "one"), stopped, store.lock("teachers", "one"):
        pytest.fail("both have it")


@pytest.mark.usefixtures("fresh_stop")
def test_stage_that_fails_leaves_signals_as_they_were(tiny_setting, digits, compute):
    """In JupyterLab the same process goes on."""
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    with pytest.raises(DivergedError):
        teachers.load_or_train(tiny_setting(teacher={"learning_rate": 1e30}), digits, compute)
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
