"""The weight adjustment and the image optimisation against what the authors' own functions return."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dwa_core.adjust import adjust_directed
from dwa_core.augment import make_whole_views
from dwa_core.devices import Compute
from dwa_core.synthesis import ClassBatch, ImageOptimisation
from dwa_paper.settings import schema
from dwa_paper.settings.schema import Setting

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT64 = Compute(torch.device("cpu"), torch.float64)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class GoldenNetwork(nn.Module):
    """The small network of golden/README.md."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.fc(x.mean((2, 3)))


def golden_network(golden) -> nn.Module:
    """The network as it was before anything happened, frozen."""
    network = GoldenNetwork().double().eval().requires_grad_(False)
    state = {key.removeprefix("init/"): torch.from_numpy(golden[key]) for key in golden if key.startswith("init/")}
    network.load_state_dict(state)
    return network


def resolve(preset: str, authors: bool) -> Setting:
    return schema.resolve({"preset": preset, "profile": "test", "name": "golden", "authors": authors})


@pytest.mark.parametrize("authors", [False, True])
def test_adjustment_and_synthesis_match_the_authors_functions(authors):
    golden = np.load(GOLDEN / ("dwa_small_authors.npz" if authors else "dwa_small.npz"))

    def tensor(name):
        return torch.from_numpy(golden[name])

    setting = resolve("cifar100", authors)
    stage, network = setting.synthesis, golden_network(golden)
    images, labels = tensor("images"), tensor("labels")
    views = make_whole_views(tensor("offsets"), images.shape[-1])

    image_gradient = adjust_directed(network, images, labels, views[0], stage.rho, stage.steps)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, tensor(f"adjusted/{name}"), **TOLERANCE)

    added = image_gradient if stage.image_gradient_after_adjustment == "added" else None
    class_batch = ClassBatch(images, labels, views, added)
    batch = ImageOptimisation(copy.deepcopy(network), class_batch, stage, setting.images, FLOAT64)
    for iteration, expected in enumerate(tensor("images_after_each_iteration")):
        batch.step()
        torch.testing.assert_close(batch.images.detach(), expected, **TOLERANCE)
        if iteration == 0:
            torch.testing.assert_close(batch.terms.detach(), tensor("bn_terms_weighted_iter0"), **TOLERANCE)
    assert iteration + 1 == len(views)
    torch.testing.assert_close(batch.losses, tensor("loss_ce_bn_total_lr"), **TOLERANCE)


def test_two_class_batches_match_the_authors_functions_for_imagenet():
    """Adjustments pile up, and the weights' gradients of all image updates go into the next batch's first step."""
    golden = np.load(GOLDEN / "dwa_two_batches_authors.npz")
    setting = resolve("imagenet-1k", authors=True)
    stage, network, left = setting.synthesis, golden_network(golden), []
    for number in range(2):

        def tensor(name, number=number):
            return torch.from_numpy(golden[f"batch{number}/{name}"])

        images, labels = tensor("images"), tensor("labels")
        views = make_whole_views(tensor("offsets"), images.shape[-1])
        image_gradient = adjust_directed(network, images, labels, views[0], stage.rho, stage.steps, left)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, tensor(f"adjusted/{name}"), **TOLERANCE)

        class_batch = ClassBatch(images, labels, views, image_gradient)
        batch = ImageOptimisation(copy.deepcopy(network), class_batch, stage, setting.images, FLOAT64)
        for expected in tensor("images_after_each_iteration"):
            batch.step()
            torch.testing.assert_close(batch.images.detach(), expected, **TOLERANCE)
        torch.testing.assert_close(batch.losses, tensor("loss_ce_bn_total_lr"), **TOLERANCE)
        left = batch.weight_gradients
        norm = torch.cat([gradient.flatten() for gradient in left]).norm()
        torch.testing.assert_close(norm, tensor("weight_gradient_norm_left"), **TOLERANCE)
