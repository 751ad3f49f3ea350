"""What ends a run: numbers that go wrong, and a GPU that is too small."""

import weakref

import pytest
import torch

from dwa_core import devices, guard, models, relabel, synthesis
from dwa_core.batches import Resident
from dwa_core.errors import DivergedError
from dwa_core.synthesis import synthesize
from dwa_core.training import Batches, Progress, accuracy, fit


class AlwaysDue(Progress):
    """Is asked to save after every step, and keeps nothing."""

    def due(self):
        return True

    def save(self, tensors, state):
        pass


class ResumedWithSeveralBatches(Progress):
    """A run on a GPU that had four class batches on their way when it was stopped, at their first iteration."""

    def load(self, device):
        return {"done": torch.empty(0, 16, 16, 3, dtype=torch.uint8)}, {"losses": {}, "unfinished": 4}


def train_teacher(setting, digits, compute) -> list[dict]:
    images, stage = setting.images, setting.teacher
    network = models.build(setting.network, 10, setting.stem, images.side, seed=0)
    batches = Batches(
        train=lambda epoch: digits.train.train_batches(stage, images.mean, images.std, epoch),
        test=lambda: digits.test.test_batches(images.mean, images.std),
        key=(0,),
    )

    def batch_loss(inputs, labels):
        return torch.nn.functional.cross_entropy(network(inputs), labels)

    return fit(network, stage, batches, batch_loss, compute, Progress("teacher"))


# --------------------------------------------------------------------------------------- diverging numbers


def test_training_with_too_large_a_rate_ends_with_epoch_batch_and_setting(tiny_setting, digits, compute):
    setting = tiny_setting(network="convnet-8", teacher={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match=r"teacher: the loss is nan in epoch 1, batch \d+; .* below 1e\+30"):
        train_teacher(setting, digits, compute)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"learning_rate": 1e6}, r"pixels are stuck at black or white in iteration 4; .*learning_rate below 1e\+06"),
        (
            {"rho": 100.0},
            r"the BatchNorm term of layer \d is .* in iteration 4, \d+ times .*; try a synthesis.rho below",
        ),
        ({"rho": 1e30}, r"is (nan|inf) in iteration 1; try a synthesis.rho below 1e\+30"),
    ],
)
def test_synthesis_that_goes_wrong_ends_with_iteration_term_and_setting(
    stage, message, digits, tiny_teacher, tiny_setting, compute
):
    setting = tiny_setting(synthesis=stage)
    with pytest.raises(DivergedError, match=message):
        synthesize(setting, digits.train, 10, tiny_teacher.network, compute, Progress("synthesis"))


def test_synthesis_is_looked_at_before_its_end_and_before_each_checkpoint(
    digits, tiny_teacher, tiny_setting, compute, monkeypatch
):
    looked = []
    monkeypatch.setattr(guard, "check_synthesis", lambda stage, losses, *_: looked.append(len(losses["total"])))
    monkeypatch.setattr(guard, "CHECK_EVERY", 3)
    setting = tiny_setting(synthesis={"iterations": 8})
    synthesize(setting, digits.train, 10, tiny_teacher.network, compute, Progress("looked"))
    assert looked == [3, 6, 8]
    looked.clear()
    synthesize(setting, digits.train, 10, tiny_teacher.network, compute, AlwaysDue("saved"))
    assert looked == list(range(1, 9))


# -------------------------------------------------------------------------------------------- GPU memory

# What the allocator raises, a CUDA graph that cannot be instantiated, cuBLAS, and cuDNN.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]
KINDS = ["allocation", "graph", "cublas", "cudnn"]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=KINDS)
@pytest.mark.parametrize(("room", "advice"), [(20, "12 would"), (1, "1 would"), (0, "not even 1 would")])
def test_batch_that_does_not_fit_is_refused_with_one_that_does(room, advice, error, refused):
    def attempt(size):
        if size > room:
            raise error

    with refused("teacher.batch_size: a batch of 50 does not fit into the GPU's memory", advice):
        raise guard.make_too_large_error("teacher.batch_size", 50, attempt)


def test_smaller_batch_that_cannot_be_tried_is_suggested(refused):
    with refused("teacher.batch_size: a batch of 50 does not fit into the GPU's memory; try 25"):
        raise guard.make_too_large_error("teacher.batch_size", 50, None)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=KINDS)
def test_only_an_error_of_memory_is_taken_for_one(error):
    guard.raise_unless_out_of_memory(error)
    with pytest.raises(RuntimeError, match="size mismatch"):
        guard.raise_unless_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=KINDS)
@pytest.mark.parametrize("stage", ["teacher", "weight adjustment", "synthesis", "relabel"])
def test_every_stage_says_which_batch_would_fit(
    stage, error, digits, tiny_teacher, tiny_setting, cpu, compute, monkeypatch, refused
):
    """A network for whose activations of more than 5 images there is no room."""

    def crowded(module, inputs):
        if len(inputs[0]) > 5 and torch.is_grad_enabled():
            raise error

    build = models.build

    def build_crowded(*arguments, **named):
        network = build(*arguments, **named)
        network.register_forward_pre_hook(crowded)
        return network

    monkeypatch.setattr(models, "build", build_crowded)
    setting = tiny_setting(
        relabel={"batch_size": 8},
        teacher={"batch_size": 20, "epochs": 1},
        synthesis={"adjustment": "none" if stage == "synthesis" else "directed"},
    )
    if stage == "teacher":
        with refused("teacher.batch_size: a batch of 20 does not fit", "; 5 would"):
            train_teacher(setting, digits, compute)
    elif stage == "relabel":
        distilled = Resident(digits.train.images_uint8[:20], digits.train.labels[:20], cpu)

        def batch_loss(student, images, _labels):
            return student(images).sum()

        with refused("relabel.batch_size: a batch of 8 does not fit", "; 4 would"):
            relabel.train_student(setting, 10, distilled, digits.test, batch_loss, compute, Progress("student"))
    else:
        network = devices.copy_frozen(tiny_teacher.network)
        network.register_forward_pre_hook(crowded)
        with refused("synthesis.classes_per_batch: a batch of 10 does not fit", "; 5 would"):
            synthesize(setting, digits.train, 10, network, compute, Progress("synthesis"))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=KINDS)
def test_of_batches_side_by_side_half_as_many_are_tried_first(
    error, digits, tiny_teacher, tiny_setting, compute, monkeypatch, refused
):
    setting = tiny_setting(ipc=2, synthesis={"classes_per_batch": 5})
    arguments = (setting, digits.train, 10, tiny_teacher.network, compute)
    expected, expected_losses = synthesize(*arguments, Progress("one after the other"))
    optimise, tried, room = synthesis.optimise, [], 2

    def optimise_where_there_is_room(batches, *rest):
        tried.append(len(batches))
        if len(batches) > room:
            batches[0].step()
            raise error
        optimise(batches, *rest)

    monkeypatch.setattr(synthesis, "optimise", optimise_where_there_is_room)
    images, losses = synthesize(*arguments, ResumedWithSeveralBatches("side by side"))
    assert tried == [4, 2, 2]
    assert torch.equal(images, expected)
    assert losses == expected_losses

    tried.clear()
    room = 0
    with refused("synthesis.classes_per_batch: a batch of 5 does not fit", "; 2 would"):
        synthesize(*arguments, ResumedWithSeveralBatches("side by side"))
    assert tried == [4, 2, 1]


def test_what_broke_off_for_want_of_memory_is_gone_before_less_is_tried(
    digits, tiny_teacher, tiny_setting, compute, monkeypatch, refused
):
    broken, alive = [], []
    too_large = guard.make_too_large_error

    class Short(synthesis.ImageOptimisation):
        def step(self):
            if len(self.labels) > 3:
                broken.append(weakref.ref(self))
                self.network(self.images)
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().step()

    def watched(key, size, attempt):
        alive.extend(reference() for reference in broken)
        return too_large(key, size, attempt)

    monkeypatch.setattr(synthesis, "ImageOptimisation", Short)
    monkeypatch.setattr(guard, "make_too_large_error", watched)
    with refused("a batch of 10 does not fit", "; 2 would"):
        synthesize(tiny_setting(), digits.train, 10, tiny_teacher.network, compute, Progress("short"))
    assert alive == [None]


def test_test_batch_that_is_too_large_is_tested_in_halves(tiny_teacher, digits, tiny_setting, compute):
    sizes = []

    def crowded(_network, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network, images = devices.copy_frozen(tiny_teacher.network), tiny_setting().images
    expected = accuracy(network, digits.test.test_batches(images.mean, images.std), compute)
    network.register_forward_pre_hook(crowded)
    assert accuracy(network, digits.test.test_batches(images.mean, images.std), compute) == expected
    assert max(sizes) > 100
