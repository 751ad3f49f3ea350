"""Synthesis beyond the golden values: BatchNorm terms, determinism, switches, and the set that comes of it."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from dwa_core import augment, batchnorm, devices, initialise, models, settings, store, synthesize

# ------------------------------------------------------------------------------------- BatchNorm statistics


def batchnorm_with_history(channels: int, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    """A BatchNorm layer in eval mode none of whose numbers is 0 or 1."""
    layer = nn.BatchNorm2d(channels).to(dtype).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(channels)
    for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        values.copy_(torch.rand(channels, generator=random) + 0.5)
    return layer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matched_batchnorm_is_batchnorm_with_the_statistics_of_its_input(dtype, memory_format):
    layer = batchnorm_with_history(5, dtype)
    inputs = (torch.randn(6, 5, 7, 3, dtype=dtype) * 3 + 2).contiguous(memory_format=memory_format)
    matched = batchnorm.MatchedBatchNorm(layer)
    before = copy.deepcopy(layer.state_dict())
    torch.testing.assert_close(matched(inputs), layer(inputs))
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    torch.testing.assert_close(matched.mean, mean)
    torch.testing.assert_close(matched.variance, variance)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_statistics_of_bf16_inputs_are_taken_in_fp32():
    inputs = (torch.randn(8, 4, 16, 16) + 100).bfloat16()  # bf16 sums would lose the spread beside the mean
    matched = batchnorm.MatchedBatchNorm(batchnorm_with_history(4))
    matched(inputs)
    mean, variance = matched.mean, matched.variance
    expected_variance, expected_mean = torch.var_mean(inputs.float(), (0, 2, 3), correction=0)
    assert mean.dtype is variance.dtype is torch.float32
    torch.testing.assert_close(mean, expected_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_output_mean_and_variance_is_exact(memory_format):
    inputs = torch.randn(3, 2, 4, 3, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_(True)
    matched = batchnorm.MatchedBatchNorm(batchnorm_with_history(2, torch.float64))
    assert torch.autograd.gradcheck(lambda x: (matched(x), matched.mean, matched.variance), inputs)


class NestedNetwork(nn.Module):
    """The first BatchNorm layer that the data meets lies one level deeper than the second."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.conv, self.bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.bn(self.conv(self.stem(x).relu())).relu().mean((2, 3)))


def build_network(name: str) -> nn.Module:
    """A network in float64 whose BatchNorm layers have a history."""
    network = NestedNetwork() if name == "nested" else models.build(name, 10, "small", 16, seed=0)
    network = network.double().eval().requires_grad_(False)
    for number, layer in enumerate(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        random = torch.Generator().manual_seed(number)
        layer.running_mean.copy_(torch.randn(layer.num_features, generator=random) / 10)
        layer.running_var.copy_(torch.rand(layer.num_features, generator=random) + 0.5)
    return network


@pytest.mark.parametrize("name", ["convnet-8", "resnet18", "nested"])
def test_batchnorm_terms_are_those_of_plain_hooks(name):
    network = build_network(name)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    plain_terms = []

    def hook(layer, inputs, _):
        mean = inputs[0].mean((0, 2, 3))
        variance = ((inputs[0] - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
        term = 7.0 * (variance - layer.running_var).norm() + (mean - layer.running_mean).norm()
        plain_terms.append(term if plain_terms else 10 * term)

    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(hook)
    seen = images.clone().requires_grad_(True)
    plain_logits = plain(seen)
    (plain_gradient,) = torch.autograd.grad(sum(plain_terms) + plain_logits.square().sum(), seen)

    layers = batchnorm.match_statistics(network)
    assert len(layers) == len(plain_terms)
    images.requires_grad_(True)
    logits = network(images)
    terms = batchnorm.BatchNormTerms(layers, 7.0)()
    (gradient,) = torch.autograd.grad(terms.sum() + logits.square().sum(), images)
    torch.testing.assert_close(logits, plain_logits)
    torch.testing.assert_close(terms.sum(), sum(plain_terms))
    torch.testing.assert_close(terms, torch.stack(plain_terms))
    torch.testing.assert_close(gradient, plain_gradient)


# ------------------------------------------------------------------------------------- image optimisation


@pytest.fixture
def made(digits, tiny_teacher, tiny_setting, cpu):
    """A function that synthesizes the images of the tiny setting with what differs, as bytes (ipc, 10, 16, 16, 3)."""
    numbers = itertools.count()

    def make(**differences):
        setting = tiny_setting(**differences)
        checkpoint = store.Checkpoint(f"made-{next(numbers)}")
        images, _ = synthesize.synthesize(setting, digits, tiny_teacher.network, cpu, checkpoint)
        return images.view(setting.ipc, 10, 16, 16, 3)

    return make


def test_images_stay_in_the_range_of_pixels_and_losses_fall(digits, tiny_teacher, tiny_setting, cpu):
    stage, images = (setting := tiny_setting(synthesis={"iterations": 60})).synthesis, setting.images
    initial = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    views = augment.draw_views(stage.iterations, 16, stage.roll, False, 0)
    black, white = (augment.normalise(torch.full((1, 3, 1, 1), v), images.mean, images.std) for v in (0.0, 1.0))

    batch = synthesize.ImageOptimisation(
        devices.frozen_copy(tiny_teacher.network),
        initial,
        torch.arange(10),
        views,
        stage,
        images.mean,
        images.std,
        torch.float32,
    )
    for iteration in range(stage.iterations):
        batch.step()
        assert ((batch.images >= black) & (batch.images <= white)).all(), iteration
    final, losses = batch.images.detach(), batch.losses
    assert (final == black).any()
    assert (final == white).any()
    first, last = losses[0].tolist(), losses[-1].tolist()
    assert last[0] < 0.5 * first[0]  # cross-entropy
    assert last[1] < 0.5 * first[1]  # BatchNorm terms
    for cross_entropy, terms, total, _ in losses.tolist():
        assert total == pytest.approx(cross_entropy + 0.01 * terms, rel=1e-5)
    assert losses[0, 3].item() == pytest.approx(0.25)
    assert losses[30, 3].item() == pytest.approx(0.125)
    # The images are what the labels say, to the network that made them.
    predicted = tiny_teacher.network(final).argmax(1)
    assert (predicted == torch.arange(10)).sum() >= 9


def test_learning_rate_reaches_the_images_through_adam_without_warmup(tiny_teacher, tiny_setting):
    stage, images = (setting := tiny_setting(synthesis={"learning_rate": 0.01})).synthesis, setting.images
    initial = torch.zeros(10, 3, 16, 16)
    views = augment.whole_views(torch.zeros(1, 2), 16)
    network = devices.frozen_copy(tiny_teacher.network)
    batch = synthesize.ImageOptimisation(
        network, initial, torch.arange(10), views, stage, images.mean, images.std, torch.float32
    )
    synthesize.optimise([batch])
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
    images = made(**settings.merged(arm, {"ipc": 2, "synthesis": {"rho": 0.5}}))
    assert not torch.equal(images[0], images[1])
    directed = made(ipc=2, synthesis={"rho": 0.5})
    assert not torch.equal(images, directed)


def test_rho_zero_is_no_adjustment(made):
    assert torch.equal(made(synthesis={"rho": 0.0}), made(synthesis={"adjustment": "none"}))


def test_kept_weights_reach_the_second_batch_of_classes_only(made):
    batches = {"classes_per_batch": 5, "rho": 1.0}
    restored = made(ipc=2, synthesis={**batches, "weights_between_class_batches": "restored"})
    kept = made(ipc=2, synthesis={**batches, "weights_between_class_batches": "kept"})
    assert torch.equal(restored[:, :5], kept[:, :5])  # of both ipc indices: each begins with the teacher's own
    for index in range(2):
        assert not torch.equal(restored[index, 5:], kept[index, 5:])


@pytest.mark.parametrize(
    ("key", "value"), [("image_gradient_after_adjustment", "added"), ("storage", "jpeg"), ("resized_crop", True)]
)
def test_switch_changes_the_images(key, value, made):
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
    original = synthesize.ImageOptimisation

    def spy(network, images, labels, *rest, **named):
        length = sum(
            (ours - teachers).square().sum().item()
            for ours, teachers in zip(network.parameters(), tiny_teacher.network.parameters(), strict=True)
        )
        calls.append((images.clone(), labels.clone(), length**0.5))
        return original(network, images, labels, *rest, **named)

    monkeypatch.setattr(synthesize, "ImageOptimisation", spy)
    made(ipc=2, **differences)
    assert len(calls) == 2
    drawn = initialise.draw_real(digits.train, 10, 2, setting.synthesis.seed)
    std = setting.images.std_after_teacher or setting.images.std
    for index, (images, labels, length) in enumerate(calls):
        assert torch.equal(labels, torch.arange(10))
        if starts_from == "real":
            pixels = augment.to_unit_range(digits.train.pictures(drawn[index]))
            torch.testing.assert_close(images, augment.normalise(pixels, setting.images.mean, std))
        else:
            assert images.mean().item() == pytest.approx(0, abs=0.05)
            assert images.std().item() == pytest.approx(1, abs=0.05)
        # Afresh for each ipc index: the second is no farther away than the first.
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


@pytest.mark.parametrize("between_class_batches", ["restored", "kept"])
@pytest.mark.parametrize("breaks_after", [3, 8, 11, 22])
def test_interrupted_synthesis_goes_on_to_the_same_bits(
    breaks_after, between_class_batches, digits, tiny_teacher, tiny_setting, tmp_path, monkeypatch, cpu
):
    """Two ipc indices of two class batches of six iterations: broken within and between them."""
    stage = {"iterations": 6, "classes_per_batch": 5, "weights_between_class_batches": between_class_batches}
    setting = tiny_setting(ipc=2, authors=True, synthesis={**stage, "rho": 0.5, "storage": "png"})
    unbroken = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)

    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    original, steps = synthesize.ImageOptimisation.step, []

    def breaking(batch):
        steps.append(batch)
        if len(steps) == breaks_after + 1:
            raise RuntimeError("power cut")
        original(batch)

    monkeypatch.setattr(synthesize.ImageOptimisation, "step", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    resumed = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    assert len(steps) == 24 + 1  # only the broken step was taken twice
    assert torch.equal(resumed.images_uint8, unbroken.images_uint8)
    assert resumed.record["losses_first_batch"] == unbroken.record["losses_first_batch"]
    assert resumed.record["files"] == unbroken.record["files"]
    assert not list((tmp_path / "broken" / "artifacts" / "checkpoints").iterdir())


def test_batches_side_by_side_end_as_they_do_one_after_the_other(digits, tiny_teacher, tiny_setting, cpu):
    setting = tiny_setting(ipc=2, synthesis={"classes_per_batch": 5})
    drawn = initialise.draw_real(digits.train, 10, 2, seed=0)

    def prepared():
        return list(synthesize.prepare(setting, digits, tiny_teacher.network, cpu, drawn, range(2), skip=0))

    together, apart = prepared(), prepared()
    assert len(together) == 4
    synthesize.optimise(together)
    for one, other in zip(apart, together, strict=True):
        synthesize.optimise([one])
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.losses, other.losses)


# ------------------------------------------------------------------------------------------ distilled sets


def test_images_are_made_without_the_test_part(digits, tiny_teacher, tiny_setting, cpu):
    blind = dataclasses.replace(digits, test=None)
    for method in ("random-real", "sre2l", "dwa"):
        made = synthesize.synthesize_or_load(tiny_setting(method=method), blind, tiny_teacher, cpu)
        assert len(made.labels) == 10


def test_random_real_is_where_dwa_would_start(digits, tiny_teacher, tiny_setting, cpu):
    setting = tiny_setting(method="random-real", ipc=3, synthesis={"seed": 5})
    found = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    drawn = initialise.draw_real(digits.train, 10, 3, seed=5).flatten()
    assert torch.equal(found.images_uint8, digits.train.images_uint8[drawn])
    assert torch.equal(found.labels, digits.train.labels[drawn])
    training_images = {image.numpy().tobytes() for image in digits.train.images_uint8}
    assert {image.numpy().tobytes() for image in found.images_uint8} <= training_images


def test_labels_and_ipc_indices_are_in_order(digits, tiny_teacher, tiny_setting, cpu):
    found = synthesize.synthesize_or_load(tiny_setting(ipc=2), digits, tiny_teacher, cpu)
    assert found.labels.tolist() == [*range(10), *range(10)]
    assert found.ipc_index.tolist() == [0] * 10 + [1] * 10
    assert found.classes == digits.classes


def test_stored_set_is_used_again_whatever_student_learns_from_it(
    digits, tiny_teacher, tiny_setting, monkeypatch, own_root, cpu
):
    first = synthesize.synthesize_or_load(tiny_setting(), digits, tiny_teacher, cpu)
    folder = own_root / "artifacts" / "distilled" / first.artifact
    assert first.record["files"] == store.file_checksums(folder)
    monkeypatch.setattr(synthesize, "synthesize", lambda *_: pytest.fail("made a second time"))
    later = tiny_setting(seed=3, student="resnet18", relabel={"epochs": 9}, name="other")
    again = synthesize.synthesize_or_load(later, digits, tiny_teacher, cpu)
    assert again.record == first.record
    assert torch.equal(again.images_uint8, first.images_uint8)


@pytest.mark.parametrize("differences", [{"ipc": 2}, {"method": "sre2l"}, {"synthesis": {"rho": 0.5}}])
def test_another_setting_is_another_set(differences, digits, tiny_teacher, tiny_setting, cpu):
    first = synthesize.synthesize_or_load(tiny_setting(), digits, tiny_teacher, cpu)
    other = synthesize.synthesize_or_load(tiny_setting(**differences), digits, tiny_teacher, cpu)
    assert other.artifact != first.artifact
    assert not torch.equal(other.images_uint8, first.images_uint8)
