"""The weight adjustment and the image optimisation against what the authors' own functions return."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dwa_core import settings
from dwa_core.adjust import adjust_weights
from dwa_core.augment import whole_views
from dwa_core.synthesize import ImageOptimisation

GOLDEN = Path(__file__).parent / "golden"
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


@pytest.mark.parametrize("authors", [False, True])
def test_adjustment_and_synthesis_match_the_authors_functions(authors):
    golden = np.load(GOLDEN / ("dwa_small_authors.npz" if authors else "dwa_small.npz"))

    def tensor(name):
        return torch.from_numpy(golden[name])

    setting = settings.resolve({"preset": "cifar100", "profile": "test", "name": "golden", "authors": authors})
    stage = setting.synthesis
    network = GoldenNetwork().double().eval()
    network.load_state_dict({k.removeprefix("init/"): tensor(k) for k in golden.files if k.startswith("init/")})
    network.requires_grad_(False)
    images, labels = tensor("images"), tensor("labels")
    views = whole_views(tensor("offsets"), images.shape[-1])

    image_gradient = adjust_weights(
        network,
        images,
        labels,
        views[0],
        stage.adjustment,
        stage.rho,
        stage.steps,
        with_image_gradient=stage.image_gradient_after_adjustment == "added",
    )
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, tensor(f"adjusted/{name}"), **TOLERANCE)

    batch = ImageOptimisation(
        copy.deepcopy(network),
        images,
        labels,
        views,
        stage,
        setting.images.mean,
        setting.images.std,
        torch.float64,
        image_gradient,
    )
    for iteration, expected in enumerate(tensor("images_after_each_iteration")):
        batch.step()
        torch.testing.assert_close(batch.images.detach(), expected, **TOLERANCE)
        if iteration == 0:
            torch.testing.assert_close(batch.terms.detach(), tensor("bn_terms_weighted_iter0"), **TOLERANCE)
    assert iteration + 1 == len(views)
    torch.testing.assert_close(batch.losses, tensor("loss_ce_bn_total_lr"), **TOLERANCE)
