"""Synthesis beyond the golden values: determinism, each setting's effect, and breaking off."""

import copy

import pytest
import torch
from torch import nn

from dwa_core import augment, devices, initialise, synthesis
from dwa_core.synthesis import ClassBatch, ImageOptimisation, optimise, prepare_batches, synthesize
from dwa_core.training import Progress
from dwa_paper.settings.presets import merge

NOTHING_DONE = torch.empty(0)


@pytest.fixture
def made(digits, tiny_teacher, tiny_setting):
    """A function that synthesizes the images of the tiny setting with what differs, as bytes (ipc, 10, 16, 16, 3)."""

    def make(**differences):
        setting = tiny_setting(**differences)
        compute = devices.choose("cpu", setting.precision)
        images, _ = synthesize(setting, digits.train, 10, tiny_teacher.network, compute, Progress("made"))
        return images.view(setting.ipc, 10, 16, 16, 3)

    return make


def test_images_stay_in_the_range_of_pixels_and_losses_fall(tiny_teacher, tiny_setting, compute):
    stage, images = (setting := tiny_setting(synthesis={"iterations": 60})).synthesis, setting.images
    initial = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    views = augment.draw_views(stage.iterations, 16, stage.roll, False, 0)
    black, white = (augment.normalise(torch.full((1, 3, 1, 1), v), images.mean, images.std) for v in (0.0, 1.0))

    network = devices.copy_frozen(tiny_teacher.network)
    batch = ImageOptimisation(network, ClassBatch(initial, torch.arange(10), views), stage, images, compute)
    for iteration in range(stage.iterations):
        batch.step()
        assert ((batch.images >= black) & (batch.images <= white)).all(), iteration
    final, losses = batch.images.detach(), batch.losses_by_name()
    assert (final == black).any()
    assert (final == white).any()
    for name in ("cross_entropy", "batchnorm_terms"):
        assert losses[name][-1] < 0.5 * losses[name][0], name
    for cross_entropy, terms, total in zip(
        losses["cross_entropy"], losses["batchnorm_terms"], losses["total"], strict=True
    ):
        assert total == pytest.approx(cross_entropy + 0.01 * terms, rel=1e-5)
    assert losses["learning_rate"][0] == pytest.approx(0.25)
    assert losses["learning_rate"][30] == pytest.approx(0.125)
    # The images are what the labels say, to the network that made them.
    predicted = tiny_teacher.network(final).argmax(1)
    assert (predicted == torch.arange(10)).sum() >= 9


def test_learning_rate_reaches_the_images_through_adam_without_warmup(tiny_teacher, tiny_setting, compute):
    stage, images = (setting := tiny_setting(synthesis={"learning_rate": 0.01})).synthesis, setting.images
    initial = torch.zeros(10, 3, 16, 16)
    views = augment.make_whole_views(torch.zeros(1, 2), 16)
    network = devices.copy_frozen(tiny_teacher.network)
    batch = ImageOptimisation(network, ClassBatch(initial, torch.arange(10), views), stage, images, compute)
    optimise([batch], Progress("test"), NOTHING_DONE, {})
    result = batch.images.detach()
    # Adam's first step is the learning rate long, whatever the gradient.
    moved = result[result != 0].abs()
    assert len(moved) > 0.9 * result.numel()
    torch.testing.assert_close(moved.median(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_bf16_images_are_near_those_of_fp32(made):
    synthesis = {"iterations": 10, "learning_rate": 0.02, "adjustment": "none"}
    difference = made(precision="bf16", synthesis=synthesis).float() - made(synthesis=synthesis).float()
    # bf16 carries 8 bits: most pixels agree within a few of 255 levels; were it wrong, about 10 steps would differ.
    assert difference.abs().mean() < 4
    assert difference.abs().max() > 0


# ----------------------------------------------------------------------------------------- all the images


def test_same_seed_makes_the_same_images_to_the_bit_and_another_seed_others(made):
    images = made(ipc=2)
    assert torch.equal(made(ipc=2), images)
    assert not torch.equal(made(ipc=2, synthesis={"seed": 1}), images)
    assert not torch.equal(images[0], images[1])
    # A larger ipc begins with the images of a smaller one.
    assert torch.equal(made(ipc=1), images[:1])


def test_seed_of_the_student_does_not_reach_the_images(made):
    assert torch.equal(made(seed=1), made(seed=0))


@pytest.mark.parametrize(
    "arm", [{"method": "sre2l"}, {"synthesis": {"adjustment": "random"}}, {"synthesis": {"adjustment": "none"}}]
)
def test_every_arm_makes_images_of_its_own_for_every_ipc_index(arm, made):
    images = made(**merge(arm, {"ipc": 2, "synthesis": {"rho": 0.5}}))
    assert not torch.equal(images[0], images[1])
    directed = made(ipc=2, synthesis={"rho": 0.5})
    assert not torch.equal(images, directed)


def test_rho_zero_is_no_adjustment(made):
    assert torch.equal(made(synthesis={"rho": 0.0}), made(synthesis={"adjustment": "none"}))


@pytest.mark.parametrize(
    ("key", "value"), [("weights_between_class_batches", "kept"), ("weight_gradients_of_image_updates", "added")]
)
def test_what_a_class_batch_leaves_reaches_the_second_of_an_ipc_index_only(key, value, made):
    batches = {"classes_per_batch": 5, "rho": 1.0}
    usual, left = made(ipc=2, synthesis=batches), made(ipc=2, synthesis={**batches, key: value})
    assert torch.equal(usual[:, :5], left[:, :5])  # of both ipc indices: each begins with the teacher's own weights
    for index in range(2):
        assert not torch.equal(usual[index, 5:], left[index, 5:])


@pytest.mark.parametrize(
    ("key", "value"), [("image_gradient_after_adjustment", "added"), ("storage", "jpeg"), ("resized_crop", True)]
)
def test_each_of_these_settings_changes_the_images(key, value, made):
    assert not torch.equal(made(synthesis={key: value, "rho": 1.0}), made(synthesis={"rho": 1.0}))


@pytest.mark.parametrize(
    ("differences", "starts_from", "adjusted"),
    [
        ({"method": "dwa"}, "real", True),
        ({"method": "dwa", "authors": True}, "real", True),
        ({"method": "dwa", "synthesis": {"adjustment": "none"}}, "real", False),
        ({"method": "sre2l"}, "noise", False),
    ],
)
def test_each_method_starts_from_its_images_and_weights(
    differences, starts_from, adjusted, made, digits, tiny_teacher, tiny_setting, monkeypatch
):
    setting = tiny_setting(**differences)
    calls = []
    original = synthesis.ImageOptimisation

    def spy(network, batch, *rest):
        length = sum(
            (ours - teachers).square().sum().item()
            for ours, teachers in zip(network.parameters(), tiny_teacher.network.parameters(), strict=True)
        )
        calls.append((batch.images.clone(), batch.labels.clone(), length**0.5))
        return original(network, batch, *rest)

    monkeypatch.setattr(synthesis, "ImageOptimisation", spy)
    made(ipc=2, **differences)
    assert len(calls) == 2
    drawn = initialise.draw_real(digits.train, 10, 2, setting.synthesis.seed)
    for index, (images, labels, length) in enumerate(calls):
        assert torch.equal(labels, torch.arange(10))
        if starts_from == "real":
            pixels = augment.to_unit_range(digits.train.pictures(drawn[index]))
            torch.testing.assert_close(
                images, augment.normalise(pixels, setting.images.mean, setting.images.distilled_std)
            )
        else:
            assert images.mean().item() == pytest.approx(0, abs=0.05)
            assert images.std().item() == pytest.approx(1, abs=0.05)
        # From the teacher's own weights for each ipc index: the second is no farther away than the first.
        assert 0.5 * 0.015 < length < 0.0151 if adjusted else length == 0
    assert not torch.equal(calls[0][0], calls[1][0])


def test_teacher_is_left_as_it_was(made, tiny_teacher):
    before = {name: value.clone() for name, value in tiny_teacher.network.state_dict().items()}
    made(synthesis={"weights_between_class_batches": "kept", "classes_per_batch": 5, "rho": 1.0})
    after = tiny_teacher.network.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in tiny_teacher.network.modules()) == 3
    assert not any(layer.training for layer in tiny_teacher.network.modules())


# ------------------------------------------------------------------------------ side by side, and broken off


def test_batches_side_by_side_end_as_they_do_one_after_the_other(digits, tiny_teacher, tiny_setting, compute):
    setting = tiny_setting(ipc=2, synthesis={"classes_per_batch": 5})

    def prepared():
        return list(prepare_batches(setting, digits.train, 10, tiny_teacher.network, compute, range(2), skip=0))

    together, apart = prepared(), prepared()
    assert len(together) == 4
    optimise(together, Progress("together"), NOTHING_DONE, {})
    for one, other in zip(apart, together, strict=True):
        optimise([one], Progress("apart"), NOTHING_DONE, {})
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.losses, other.losses)


class Remembered(Progress):
    """Keeps in memory what it is given to save, and breaks off after so many times."""

    def __init__(self, breaks_after: int):
        super().__init__("remembered")
        self.breaks_after, self.latest = breaks_after, None

    def load(self, device):
        return self.latest

    def due(self):
        return True

    def save(self, tensors, state):
        self.latest = {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(state)
        self.breaks_after -= 1
        if self.breaks_after == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("breaks_after", [1, 4, 7, 11])
@pytest.mark.parametrize("left", ["cleared", "added"])
def test_part_of_a_set_is_that_part_of_the_whole_also_when_it_was_broken_off(
    left, breaks_after, digits, tiny_teacher, tiny_setting, compute
):
    """Two of three ipc indices, of two class batches of four iterations each."""
    stage = {"classes_per_batch": 5, "rho": 1.0, "weights_between_class_batches": "kept"}
    setting = tiny_setting(ipc=3, synthesis={**stage, "weight_gradients_of_image_updates": left})
    arguments = (setting, digits.train, 10, tiny_teacher.network, compute)
    whole, _ = synthesize(*arguments, Progress("whole"))
    part, losses = synthesize(*arguments, Progress("part"), range(1, 3))
    assert torch.equal(part, whole[10:])
    progress = Remembered(breaks_after)
    with pytest.raises(KeyboardInterrupt):
        synthesize(*arguments, progress, range(1, 3))
    resumed, resumed_losses = synthesize(*arguments, progress, range(1, 3))
    assert torch.equal(resumed, part)
    assert resumed_losses == losses


def test_progress_sees_the_first_class_batch_of_every_ipc_index(digits, tiny_teacher, tiny_setting, compute):
    seen = []

    class Watching(Progress):
        def synthesised(self, index, losses, images_uint8):
            seen.append((index, losses, images_uint8))

    setting = tiny_setting(ipc=3, synthesis={"classes_per_batch": 5})
    images, losses = synthesize(
        setting, digits.train, 10, tiny_teacher.network, compute, Watching("watching"), range(1, 3)
    )
    assert [index for index, *_ in seen] == [1, 2]
    assert seen[0][1] == losses != seen[1][1]
    for place, (_, _, pictures) in enumerate(seen):
        assert torch.equal(pictures, images[10 * place : 10 * place + 5])
