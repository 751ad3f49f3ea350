"""What ends a run: numbers that go wrong, a GPU that is too small, signals, the time budget."""

import itertools
import os
import signal

import pytest
import torch

from dwa_core import devices, guard, initialise, models, relabel, report, stop, store, synthesize, teacher
from dwa_core.batches import Resident


@pytest.fixture
def fresh_stop():
    """Nothing to stop for, before and after."""
    stop.start_budget(None)
    stop.unlisten()
    yield stop
    stop.start_budget(None)
    stop.unlisten()


# --------------------------------------------------------------------------------------- diverging numbers


def test_training_with_too_large_a_rate_ends_with_epoch_batch_and_setting(tiny_setting, digits, cpu, own_root):
    setting = tiny_setting(network="convnet-8", teacher={"learning_rate": 1e30})
    with pytest.raises(guard.DivergedError, match=r"teacher: the loss is nan in epoch 1, batch \d+; .* below 1e\+30"):
        teacher.train_or_load(setting, digits, cpu)
    assert not list(own_root.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("synthesis", "message"),
    [
        ({"learning_rate": 1e6}, r"pixels are stuck at black or white in iteration 4; .*learning_rate below 1e\+06"),
        (
            {"rho": 100.0},
            r"the BatchNorm term of layer \d is .* in iteration 4, \d+ times .*; try a synthesis.rho below",
        ),
        ({"rho": 1e30}, r"is (nan|inf) in iteration 1; try a synthesis.learning_rate below 0.25 or a rho below 1e\+30"),
    ],
)
def test_synthesis_that_goes_wrong_ends_with_iteration_term_and_setting(
    synthesis, message, digits, tiny_teacher, tiny_setting, cpu, own_root
):
    setting = tiny_setting(synthesis=synthesis)
    with pytest.raises(guard.DivergedError, match=message):
        synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    assert not list(own_root.rglob("*.parquet"))


def test_synthesis_is_looked_at_before_its_end_and_before_each_checkpoint(
    digits, tiny_teacher, tiny_setting, cpu, monkeypatch
):
    looked = []
    monkeypatch.setattr(guard, "check_synthesis", lambda stage, losses, *_: looked.append(len(losses)))
    monkeypatch.setattr(guard, "CHECK_EVERY", 3)
    setting = tiny_setting(synthesis={"iterations": 8})
    synthesize.synthesize(setting, digits, tiny_teacher.network, cpu, store.Checkpoint("looked"))
    assert looked == [3, 6, 8]
    looked.clear()
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    synthesize.synthesize(setting, digits, tiny_teacher.network, cpu, store.Checkpoint("saved"))
    assert set(looked) == set(range(1, 9))


@pytest.mark.parametrize(
    ("accuracy", "classes", "tests", "expected"),
    [
        (10.0, 10, 500, True),
        (13.9, 10, 500, True),
        (14.1, 10, 500, False),
        (1.2, 100, 10_000, True),
        (5, 100, 10_000, False),
    ],
)
def test_chance_is_three_standard_deviations_of_guessing(accuracy, classes, tests, expected):
    assert guard.at_chance(accuracy, classes, tests) is expected


def test_student_at_chance_is_flagged_under_the_table(tiny_setting):
    setting = tiny_setting().recorded()
    images = {"training_images": 1297, "test_images": 500, "classes": 10}
    for reported, flagged in ((11.0, True), (60.0, False)):
        record = {"setting": setting, "data": images, "accuracy": {"reported": reported}}
        assert any("chance" in line for line in report.notes([report.Run(setting, "", record)])) is flagged


# -------------------------------------------------------------------------------------------- GPU memory


@pytest.mark.parametrize(("room", "advice"), [(20, "12 would"), (1, "1 would"), (0, "not even 1 would")])
def test_batch_that_does_not_fit_is_refused_with_one_that_does(room, advice, refused):
    def attempt(size):
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def run():
        with guard.enough_memory("teacher.batch_size", 50, attempt):
            attempt(50)

    with refused("teacher.batch_size: a batch of 50 does not fit", advice):
        run()


@pytest.mark.parametrize("stage", ["teacher", "weight adjustment", "synthesis", "relabel"])
def test_every_stage_says_which_batch_would_fit(stage, digits, tiny_teacher, tiny_setting, cpu, monkeypatch, refused):
    """A network for whose activations of more than 5 images there is no room."""

    def crowded(module, inputs):
        if len(inputs[0]) > 5 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")

    if stage in ("weight adjustment", "synthesis"):
        network = devices.frozen_copy(tiny_teacher.network)
        network.register_forward_pre_hook(crowded)
        setting = tiny_setting(synthesis={"adjustment": "directed" if stage == "weight adjustment" else "none"})
        with refused("synthesis.classes_per_batch: a batch of 10 does not fit", "; 5 would"):
            synthesize.synthesize(setting, digits, network, cpu, store.Checkpoint("crowded"))
        return
    build = models.build

    def build_crowded(*arguments, **named):
        network = build(*arguments, **named)
        network.register_forward_pre_hook(crowded)
        return network

    monkeypatch.setattr(models, "build", build_crowded)
    setting = tiny_setting(
        method="random-real", ipc=2, relabel={"batch_size": 8}, teacher={"batch_size": 20, "epochs": 1}
    )
    if stage == "teacher":
        with refused("teacher.batch_size: a batch of 20 does not fit", "; 5 would"):
            teacher.train_or_load(setting, digits, cpu)
    else:
        distilled = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
        with refused("relabel.batch_size: a batch of 8 does not fit", "; 4 would"):
            relabel.evaluate(setting, digits, tiny_teacher, distilled, cpu)


def test_what_broke_off_for_want_of_memory_keeps_no_activations(digits, tiny_teacher, tiny_setting, cpu):
    setting = tiny_setting()
    chosen = initialise.draw_real(digits.train, 10, 1, seed=0)
    (batch,) = synthesize.prepare(setting, digits, tiny_teacher.network, cpu, chosen, range(1), skip=0)

    def short_of_memory(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    batch.network[-1].register_forward_pre_hook(short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        synthesize.optimise([batch])
    assert [layer.mean for layer in batch.terms_of.layers] == [None] * 3


# ------------------------------------------------------------------------------- signals and time budgets


@pytest.mark.usefixtures("fresh_stop")
@pytest.mark.parametrize("number", stop.SIGNALS)
def test_signal_in_an_epoch_stores_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    number, tiny_setting, digits, cpu, monkeypatch, tmp_path
):
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 2})
    unbroken = teacher.train_or_load(setting, digits, cpu)
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "stopped"))
    original, drawn = Resident.train_batches, itertools.count(1)

    def signalling(self, *arguments):
        for batch in original(self, *arguments):
            if next(drawn) == 5:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(Resident, "train_batches", signalling)
    before = signal.getsignal(number)
    with pytest.raises(stop.StoppedError, match=f"^stopped by {number.name}; the same command goes on$"):
        teacher.train_or_load(setting, digits, cpu)
    assert signal.getsignal(number) == before
    (left,) = (tmp_path / "stopped" / "artifacts" / "checkpoints").iterdir()
    assert left.suffix == ".safetensors"
    resumed = teacher.train_or_load(setting, digits, cpu)
    assert signal.getsignal(number) == before
    assert resumed.record["curve"] == unbroken.record["curve"]
    assert resumed.record["files"] == unbroken.record["files"]


@pytest.mark.usefixtures("fresh_stop")
def test_second_interrupt_breaks_off_at_once():
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason() == "stopped by SIGTERM; the same command goes on"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("fresh_stop")
def test_budget_that_is_used_up_stops_each_stage_and_the_rest_follows_later(
    tiny_setting, digits, tiny_teacher, cpu, monkeypatch, tmp_path
):
    setting = tiny_setting(network="convnet-8", ipc=2)

    def run():
        trained = teacher.train_or_load(setting, digits, cpu)
        distilled = synthesize.synthesize_or_load(setting, digits, trained, cpu)
        return relabel.evaluate(setting, digits, trained, distilled, cpu)

    unbroken = run()
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "in-pieces"))
    said = []
    for _ in range(1000):
        stop.start_budget(1e-9)
        try:
            resumed = run()
            break
        except stop.StoppedError as stopped:
            said.append(str(stopped))
    assert set(said) == {"stopped by max_minutes 1e-09; the same command goes on"}
    # A step each time: 4 epochs of 27 batches, 2 times 4 iterations, 3 epochs of two batches.
    assert len(said) == 4 * 27 + 2 * 4 + 3 * 2
    for key in ("accuracy", "curve", "distilled", "teacher"):
        assert resumed[key] == unbroken[key]


@pytest.mark.usefixtures("fresh_stop")
def test_budget_ends_the_wait_for_another_run():
    stop.start_budget(0.2 / 60)
    stopped = pytest.raises(stop.StoppedError, match="max_minutes")
    # Locks of one path exclude each other within a process as between two.
    with store.lock("teachers", "one"), stopped, store.lock("teachers", "one"):
        pytest.fail("both have it")


def test_dropout_draws_the_same_after_a_break(tiny_setting, digits, cpu, monkeypatch, tmp_path):
    build = models.build

    def with_dropout(*arguments, **named):
        return torch.nn.Sequential(build(*arguments, **named), torch.nn.Dropout(0.5))

    monkeypatch.setattr(models, "build", with_dropout)
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 2})
    unbroken = teacher.train_or_load(setting, digits, cpu)
    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    original, calls = Resident.train_batches, []

    def breaking(self, *arguments):
        calls.append(arguments)
        yield from itertools.islice(original(self, *arguments), 3 if len(calls) == 2 else None)
        if len(calls) == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Resident, "train_batches", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        teacher.train_or_load(setting, digits, cpu)
    torch.manual_seed(99)  # another process draws from another state
    assert teacher.train_or_load(setting, digits, cpu).record["files"] == unbroken.record["files"]
