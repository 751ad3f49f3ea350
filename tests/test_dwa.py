"""The page dwa.py: against what the authors' own functions return, against dwa_core, and from its command line."""

import copy
import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dwa_core import augment, models
from dwa_core.adjust import adjust_directed
from dwa_core.devices import Compute
from dwa_core.recipe import Images, RelabelStage, SynthesisStage
from dwa_core.relabel import soft_label_loss
from dwa_core.synthesis import ClassBatch, ImageOptimisation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dwa

GOLDEN = Path(__file__).parent / "golden"
assert_close = torch.testing.assert_close
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def normalised_bounds(recipe: dwa.Recipe) -> list[torch.Tensor]:
    """Black and white, (3, 1, 1), in float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    return [(0 - mean) / std, (1 - mean) / std]


def golden_network() -> nn.Module:
    """The small network of golden/README.md."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(8),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        bn2=nn.BatchNorm2d(16),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(16, 16, 3, stride=2, padding=1),
        bn3=nn.BatchNorm2d(16),
        relu3=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(16, 10),
    )
    return nn.Sequential(layers).double().eval().requires_grad_(False)


@pytest.mark.parametrize("file", ["dwa_small.npz", "dwa_small_authors.npz"])
def test_adjustment_and_synthesis_match_the_golden_values(file):
    golden = np.load(GOLDEN / file)

    def tensor(name):
        return torch.from_numpy(golden[name])

    network = golden_network()
    network.load_state_dict({k.removeprefix("init/"): tensor(k) for k in golden.files if k.startswith("init/")})
    images, labels, rolls = tensor("images"), tensor("labels"), tensor("offsets").tolist()

    image_gradient = dwa.adjust_weights(network, images, labels, rolls[0], rho=0.015, steps=12)
    for name, value in network.state_dict().items():
        assert_close(value, tensor(f"adjusted/{name}"), **TOLERANCE)

    after_each = tensor("images_after_each_iteration")
    gradient = image_gradient if "authors" in file else None
    bounds = normalised_bounds(dwa.CIFAR100)
    distilled = dwa.synthesize(copy.deepcopy(network), images, labels, rolls, bounds, image_gradient=gradient)
    assert_close(distilled, after_each[-1], **TOLERANCE)

    # The losses of each iteration, at the images before it.
    terms = dwa.hook_batchnorm(network)
    for iteration, before in enumerate([images, *after_each[:-1]]):
        cross_entropy = F.cross_entropy(network(before.roll(rolls[iteration], (2, 3))), labels)
        total = cross_entropy + dwa.R_BN * sum(terms.values())
        losses = torch.stack([cross_entropy, sum(terms.values()), total])
        assert_close(losses, tensor("loss_ce_bn_total_lr")[iteration, :3], **TOLERANCE)
        if iteration == 0:
            assert_close(torch.stack(list(terms.values())), tensor("bn_terms_weighted_iter0"), **TOLERANCE)


def trained_looking(network: nn.Module) -> nn.Module:
    """`network` in float64 and eval mode, with running statistics as after a training."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
                layer.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize("authors", [False, True])
def test_adjustment_and_ten_iterations_equal_those_of_dwa_core(authors):
    recipe, random = dwa.CIFAR100, torch.Generator().manual_seed(0)
    stage = SynthesisStage(iterations=10, learning_rate=0.25, classes_per_batch=10, r_var=11.0)
    ours = trained_looking(models.build("convnet-16", 10, "small", 16, seed=0))
    theirs = copy.deepcopy(ours)
    black, white = bounds = normalised_bounds(recipe)
    initial = black + (white - black) * torch.rand(10, 3, 16, 16, dtype=torch.float64, generator=random)
    labels, rolls = torch.arange(10), torch.randint(5, (stage.iterations, 2), generator=random)
    views = augment.make_whole_views(rolls, 16)

    gradient = dwa.adjust_weights(ours, initial, labels, rolls[0].tolist())
    assert_close(gradient, adjust_directed(theirs, initial, labels, views[0], stage.rho, stage.steps), **TOLERANCE)
    for ours_adjusted, theirs_adjusted in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(ours_adjusted, theirs_adjusted, **TOLERANCE)

    gradient = gradient if authors else None
    batch = ClassBatch(initial, labels, views, image_gradient=gradient)
    images = Images(side=16, mean=list(recipe.mean), std=list(recipe.std))
    optimisation = ImageOptimisation(theirs, batch, stage, images, Compute(torch.device("cpu"), torch.float64))
    for _ in rolls:
        optimisation.step()
    distilled = dwa.synthesize(ours, initial, labels, rolls.tolist(), bounds, image_gradient=gradient)
    assert_close(distilled, optimisation.images.detach(), **TOLERANCE)
    assert (distilled - initial).abs().max() > 0.1, "ten iterations move the images, or this compares nothing"


def test_relabel_loss_equals_that_of_dwa_core():
    student, teacher = torch.randn(2, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    training = {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01}
    stage = RelabelStage(**training, crop="padded", mixing="mixup", mixing_alpha=0.8, temperature=30.0)
    assert_close(dwa.relabel_loss(student, teacher), soft_label_loss(student, teacher, stage), **TOLERANCE)


@pytest.mark.parametrize("name", ["convnet-128", "resnet18"])
def test_networks_take_the_weights_of_stored_teachers(name):
    stored = trained_looking(models.build(name, 10, "small", 32, seed=0))
    network = dwa.build(name, 10, 32).double().eval()
    network.load_state_dict(stored.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(network(images), stored(images), **TOLERANCE)


def test_the_page_reads_parquet_and_random_crops_are_padded_with_black(tmp_path, monkeypatch):
    monkeypatch.setenv("DWA_DATA", str(tmp_path))
    written = np.random.default_rng(0).integers(1, 256, (6, 32, 32, 3), np.uint8)
    features = datasets.Features(img=datasets.Image(), label=datasets.Value("int64"))
    for number, part in enumerate([slice(0, 4), slice(4, 6)]):
        columns = {"img": [Image.fromarray(picture) for picture in written[part]], "label": list(range(6))[part]}
        file = tmp_path / "cifar10" / f"train-{number:05d}-of-00002.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    pixels, labels = dwa.read("cifar10", "train", 32)
    assert (pixels.permute(0, 2, 3, 1).numpy() == written).all()
    assert labels.tolist() == list(range(6))

    torch.manual_seed(0)
    recipe = dwa.RECIPES["cifar10"]
    black = normalised_bounds(recipe)[0].float()
    for images, chosen in dwa.training_batches(pixels, labels, 3, recipe):
        assert images.shape == (3, 3, 32, 32)
        assert chosen.shape == (3,)
        is_black = torch.isclose(images, black, atol=1e-6)
        assert (is_black.any(1) == is_black.all(1)).all(), "only the padding is black, in all channels"


def test_the_page_distils_the_digits():
    command = [sys.executable, dwa.__file__, "--teacher-epochs", "5", "--ipc", "5"]  # a third of the default's time
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    teacher, student = (float(value) for value in re.findall(r"(?:teacher|student): ([\d.]+) %", done.stdout))
    assert teacher > 90
    assert student > 60
