"""What docs/results.md says of the weight adjustment in bf16: how long and in which direction rounded weights move."""

import pytest
import torch
from torch import nn

from dwa_core import devices
from dwa_core.adjust import adjust_directed
from dwa_core.augment import make_whole_views, normalise, to_unit_range
from dwa_paper.runs import store, teachers
from dwa_paper.runs.records import read_all
from dwa_paper.runs.sets import read_parquet
from dwa_paper.settings import grid
from dwa_paper.settings.schema import Setting


def read_weights(network: nn.Module) -> torch.Tensor:
    """Those of convolutions and linear layers, the numbers that bf16 rounds."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return torch.cat([parameter.flatten() for layer in layers for parameter in layer.parameters()])


@pytest.mark.parametrize(
    ("name", "length", "along"),
    [
        ("resnet18/cifar10-resnet18-dwa-ipc10-authors", 0.140, 1.5),
        ("lite/cifar10-convnet-128-dwa-ipc10-authors-gvbsm", 0.056, 1.1),
    ],
)
def test_adjusted_weights_move_further_in_bf16(name, length, along, monkeypatch, cpu):
    monkeypatch.setenv("DWA_ROOT", str(grid.SETTINGS.parent))
    profile, name = name.split("/")
    record = next(each for each in read_all(profile)[0].values() if each["setting"]["name"] == name)
    setting = Setting.model_validate({**record["setting"], "seeds": [0]})
    folder = store.find("teachers", record["teacher"]["artifact"])
    network = devices.copy_frozen(teachers.load(setting, record["data"]["classes"], cpu, folder))
    before = read_weights(network)  # a copy
    distilled = read_parquet(store.find("distilled", record["distilled"]["artifact"]))
    first = distilled.ipc_index == 0
    images = normalise(to_unit_range(distilled.images_uint8[first]), setting.images.mean, setting.images.distilled_std)
    view = make_whole_views(torch.zeros(1, 2), setting.images.side)[0]
    adjust_directed(network, images, distilled.labels[first], view, setting.synthesis.rho, setting.synthesis.steps)
    step = read_weights(network) - before
    rounded = (before + step).bfloat16().float() - before.bfloat16().float()
    assert step.norm() == pytest.approx(setting.synthesis.rho, rel=0.1), "BatchNorm's weights move, too"
    assert rounded.norm() == pytest.approx(length, rel=0.05)
    assert rounded @ step / step.norm() ** 2 == pytest.approx(along, abs=0.1)
