"""Weight adjustment beyond the golden values: its direction, its length, and what it must not touch."""

import pytest
import torch
import torch.nn.functional as F

from dwa_core import devices, initialise
from dwa_core.adjust import adjust_directed, adjust_random
from dwa_core.augment import apply_view, make_whole_views, normalise, to_unit_range
from dwa_core.seeds import device_random

VIEW = make_whole_views(torch.tensor([[1, 2]]), 16)[0]


@pytest.fixture(scope="session")
def real_batch(digits, tiny_setting):
    """One training image per digit, normalised, in float64, and the labels."""
    chosen = initialise.draw_real(digits.train, 10, 1, seed=0)[0]
    images = tiny_setting().images
    pixels = to_unit_range(digits.train.pictures(chosen)).double()
    return normalise(pixels, images.mean, images.std), torch.arange(10)


@pytest.fixture
def network(tiny_teacher):
    return devices.copy_frozen(tiny_teacher.network).double()


def weights(network) -> torch.Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def adjust(kind: str, network, batch, rho: float) -> None:
    if kind == "directed":
        adjust_directed(network, *batch, VIEW, rho, 3)
    else:
        adjust_random(network, rho, device_random(torch.device("cpu"), 0))


def cross_entropy(network, batch) -> float:
    images, labels = batch
    return F.cross_entropy(network(apply_view(images, VIEW)), labels).item()


@pytest.mark.parametrize("rho", [0.001, 0.015, 0.1])
def test_one_directed_step_is_of_length_rho_along_the_gradient_of_the_loss(rho, network, real_batch):
    images, labels = real_batch
    plain = devices.copy_frozen(network).requires_grad_(True)
    F.cross_entropy(plain(apply_view(images, VIEW)), labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    before = weights(network)
    adjust_directed(network, images, labels, VIEW, rho, 1)
    after = weights(network)
    assert (after - before).norm().item() == pytest.approx(rho, rel=1e-9)
    torch.testing.assert_close(after - before, rho * gradient / gradient.norm(), rtol=1e-8, atol=1e-12)


def test_directed_adjustment_raises_the_loss_within_the_length_rho(network, real_batch):
    loss, before = cross_entropy(network, real_batch), weights(network)
    adjust_directed(network, *real_batch, VIEW, 0.015, 12)
    after = weights(network)
    assert cross_entropy(network, real_batch) > loss
    # Twelve steps in nearly one direction: no longer than rho, and not much shorter.
    assert 0.9 * 0.015 < (after - before).norm().item() <= 0.015 * (1 + 1e-9)


def test_random_adjustment_is_one_direction_of_length_rho_that_its_generator_draws(network, cpu):
    def moved(*key):
        twin = devices.copy_frozen(network)
        adjust_random(twin, 0.015, device_random(cpu, *key))
        return weights(twin) - weights(network)

    first = moved(3, 0)
    assert first.norm().item() == pytest.approx(0.015, rel=1e-9)
    assert torch.equal(moved(3, 0), first)
    cosine = F.cosine_similarity(moved(3, 1), first, dim=0).abs().item()
    assert cosine < 0.1  # independent directions in thousands of dimensions
    # Gaussian over all parameters together: each of them moves.
    assert (first != 0).all()


@pytest.mark.parametrize("kind", ["directed", "random"])
def test_nothing_moves_without_length(kind, network, real_batch):
    before = weights(network)
    adjust(kind, network, real_batch, 0.0)
    assert torch.equal(weights(network), before)


@pytest.mark.parametrize("kind", ["random", "directed"])
def test_adjustment_leaves_batchnorm_statistics_images_and_freezing_alone(kind, network, real_batch):
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    images = real_batch[0].clone()
    adjust(kind, network, real_batch, 0.1)
    for name, value in network.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert torch.equal(real_batch[0], images)
    assert not real_batch[0].requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(layer.training for layer in network.modules())


def test_image_gradient_is_summed_over_the_steps(network, real_batch):
    images, labels = real_batch
    expected, twin = torch.zeros_like(images), devices.copy_frozen(network)
    for _ in range(2):
        seen = images.clone().requires_grad_(True)
        F.cross_entropy(twin(apply_view(seen, VIEW)), labels).backward()
        expected += seen.grad
        adjust_directed(twin, images, labels, VIEW, 0.5, 1)  # each of the two steps below is half of rho long
    torch.testing.assert_close(adjust_directed(network, images, labels, VIEW, 1.0, 2), expected)
