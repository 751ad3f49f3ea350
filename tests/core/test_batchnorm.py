"""The BatchNorm terms of the synthesis: statistics, their gradients, and plain hooks beside them."""

import copy

import pytest
import torch
from torch import nn

from dwa_core import batchnorm, models


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
