"""Weight adjustment beyond the golden values: its direction, its length, and what it must not touch."""

import pytest
import torch
import torch.nn.functional as F

from dwa_core import devices, initialise
from dwa_core.adjust import adjust_weights
from dwa_core.augment import apply_view, normalise, to_unit_range, whole_views

VIEW = whole_views(torch.tensor([[1, 2]]), 16)[0]


@pytest.fixture(scope="session")
def real_batch(digits, tiny_setting):
    """One training image per digit, normalised, in float64, and the labels."""
    chosen = initialise.draw_real(digits.train, 10, 1, seed=0)[0]
    images = tiny_setting().images
    pixels = to_unit_range(digits.train.pictures(chosen)).double()
    return normalise(pixels, images.mean, images.std), torch.arange(10)


@pytest.fixture
def network(tiny_teacher):
    return devices.frozen_copy(tiny_teacher.network).double()


def adjusted(network, batch, kind: str, rho: float, steps: int = 3, *key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameters before and after, each as one vector."""
    before = torch.cat([parameter.flatten().clone() for parameter in network.parameters()])
    adjust_weights(network, *batch, VIEW, kind, rho, steps, *key)
    return before, torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def cross_entropy(network, batch) -> float:
    images, labels = batch
    return F.cross_entropy(network(apply_view(images, VIEW)), labels).item()


@pytest.mark.parametrize("rho", [0.001, 0.015, 0.1])
def test_one_directed_step_is_of_length_rho_along_the_gradient_of_the_loss(rho, network, real_batch):
    images, labels = real_batch
    plain = devices.frozen_copy(network).requires_grad_(True)
    F.cross_entropy(plain(apply_view(images, VIEW)), labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    before, after = adjusted(network, real_batch, "directed", rho, 1)
    assert (after - before).norm().item() == pytest.approx(rho, rel=1e-9)
    torch.testing.assert_close(after - before, rho * gradient / gradient.norm(), rtol=1e-8, atol=1e-12)


def test_directed_adjustment_raises_the_loss_within_the_length_rho(network, real_batch):
    loss = cross_entropy(network, real_batch)
    before, after = adjusted(network, real_batch, "directed", 0.015, 12)
    assert cross_entropy(network, real_batch) > loss
    # Twelve steps in nearly one direction: no longer than rho, and not much shorter.
    assert 0.9 * 0.015 < (after - before).norm().item() <= 0.015 * (1 + 1e-9)


def test_random_adjustment_is_one_direction_of_length_rho_that_depends_on_its_key(network, real_batch):
    def moved(*key):
        before, after = adjusted(devices.frozen_copy(network), real_batch, "random", 0.015, 12, *key)
        return after - before

    first = moved(3, 0)
    assert first.norm().item() == pytest.approx(0.015, rel=1e-9)
    assert torch.equal(moved(3, 0), first)
    cosine = F.cosine_similarity(moved(3, 1), first, dim=0).abs().item()
    assert cosine < 0.1  # independent directions in thousands of dimensions
    # Gaussian over all parameters together: none of them stands still.
    assert (first != 0).all()


@pytest.mark.parametrize(("kind", "rho"), [("none", 0.5), ("directed", 0.0), ("random", 0.0)])
def test_nothing_moves_without_adjustment_or_length(kind, rho, network, real_batch):
    before, after = adjusted(network, real_batch, kind, rho)
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", ["none", "random", "directed"])
def test_adjustment_leaves_batchnorm_statistics_images_and_freezing_alone(kind, network, real_batch):
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    images = real_batch[0].clone()
    adjusted(network, real_batch, kind, 0.1)
    for name, value in network.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert torch.equal(real_batch[0], images)
    assert not real_batch[0].requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(layer.training for layer in network.modules())


def test_image_gradient_is_returned_only_on_request(network, real_batch):
    assert adjust_weights(devices.frozen_copy(network), *real_batch, VIEW, "directed", 0.015, 2) is None
    images = real_batch[0].clone().requires_grad_(True)
    F.cross_entropy(network(apply_view(images, VIEW)), real_batch[1]).backward()
    found = adjust_weights(network, *real_batch, VIEW, "directed", 0.015, 1, with_image_gradient=True)
    torch.testing.assert_close(found, images.grad)
