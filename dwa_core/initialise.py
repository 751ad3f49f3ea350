"""The images that synthesis starts from: real ones drawn at random or chosen by herding, or noise."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import diversity, seeds
from dwa_core.batches import Resident, Streamed
from dwa_core.recipe import Recipe


def choose_initial_indices(
    recipe: Recipe, train: Resident | Streamed, classes: int, teacher: nn.Module
) -> torch.Tensor | None:
    """Indices (ipc, classes) of the training images that the synthesis starts from; None where it starts from noise."""
    stage = recipe.synthesis
    if stage.initial == "noise":
        return None
    if stage.initial == "real":
        return draw_real(train, classes, recipe.ipc, stage.seed)
    return draw_herded(recipe, train, classes, teacher)


def draw_noise(labels: torch.Tensor, side: int, *key: int) -> torch.Tensor:
    """(N, 3, side, side) from N(0, 1), one image for each of `labels`, on their device, by `key`."""
    random = seeds.device_random(labels.device, seeds.INITIAL_NOISE, *key)
    noise = torch.randn(len(labels), 3, side, side, generator=random, device=labels.device)
    return noise.contiguous(memory_format=torch.channels_last)


def draw_real(split: Resident | Streamed, classes: int, ipc: int, seed: int) -> torch.Tensor:
    """Indices (ipc, classes) of training images drawn without repetition, class by class in each row.

    A larger ipc begins with the images of a smaller one. No class may have fewer than `ipc` images.
    """
    labels = split.labels.cpu().numpy()
    columns = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        columns.append(seeds.host_random(seeds.INITIAL_IMAGES, seed, label).permutation(members)[:ipc])
    return torch.from_numpy(np.stack(columns, axis=1))


def draw_herded(recipe: Recipe, train: Resident | Streamed, classes: int, teacher: nn.Module) -> torch.Tensor:
    """Indices (ipc, classes) of the training images that `herd` chooses by the features of `teacher`."""
    features, _ = diversity.compute_features(teacher, train, recipe.images.mean, recipe.images.std)
    return herd(features, train.labels.cpu(), classes, recipe.ipc)


def herd(features: torch.Tensor, labels: torch.Tensor, classes: int, ipc: int) -> torch.Tensor:
    """Indices (ipc, classes): per class the images whose mean feature stays nearest to that of the whole class.

    Herding (Welling, "Herding Dynamical Weights to Learn", ICML 2009), as iCaRL (Rebuffi et al., CVPR 2017) chooses its
    exemplars: one after the other, without repetition, so that a larger ipc begins with the images of a smaller one.

    Args:
        features: (N, channels).
        labels: (N,) class indices.
    """
    features = F.normalize(features.double(), dim=1)
    columns = []
    for label in range(classes):
        members = (labels == label).nonzero()[:, 0]
        of_class = features[members]
        mean, total, taken = of_class.mean(0), torch.zeros_like(of_class[0]), []
        for count in range(1, ipc + 1):
            distances = ((total + of_class) / count - mean).norm(dim=1)
            distances[taken] = math.inf
            taken.append(int(distances.argmin()))
            total += of_class[taken[-1]]
        columns.append(members[taken])
    return torch.stack(columns, dim=1)
