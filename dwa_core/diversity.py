"""How diverse a distilled set is: feature distance within class, coverage of real test images, and t-SNE.

Features are the output of the last convolution that an image passes in the teacher, averaged over space. Flattened
maps would count an object that only moved as another one, which the student's crops undo, and would hold tens of
thousands of numbers per image at 224 px. Real images are test images: they are only compared with.
"""

import numpy as np
import torch
from torch import nn

from dwa_core.batches import Resident, Streamed
from dwa_core.recipe import Images

NEAREST = 5  # k of coverage, as in the package prdc
MOST_REAL_IMAGES = 10_000
PASS = 250  # images in one pass through the network


@torch.inference_mode()
def compute_features(network: nn.Module, split: Resident | Streamed, mean, std) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, channels) and logits (N, classes) of the images of `split`, in order, on the CPU.

    Args:
        network: on the device of `split`, in eval mode, with at least one nn.Conv2d.
        mean, std: of the normalisation that the network was trained with.
    """
    features, logits, latest = [], [], {}

    def keep(_layer, _inputs, output):
        # Averaged at once, for layers behind may overwrite the output. The last convolution has the last word.
        latest["features"] = output.float().mean((2, 3))

    hooks = [layer.register_forward_hook(keep) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    try:
        for images, _ in split.test_batches(mean, std):
            for some in images.split(PASS):
                logits.append(network(some).float().cpu())
                features.append(latest["features"].cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(features), torch.cat(logits)


def select_first_of_each_class(split: Resident | Streamed, per_class: int) -> Resident | Streamed:
    """The first `per_class` images of each class, or all that there are, in their order."""
    labels = split.labels.cpu().clone()
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        labels[members[per_class:]] = -1
    return split.relabel(labels)


def measure_distance_within_class(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes,): mean Euclidean distance over the pairs of images of each class; NaN where it has fewer than two."""
    of_class = [features[labels == label] for label in range(classes)]
    return torch.stack([torch.pdist(members).mean() for members in of_class])


def measure_coverage(real: torch.Tensor, generated: torch.Tensor, k: int) -> float:
    """The share of real images with a generated one nearer than their k-th nearest real one.

    Coverage of Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020, as
    their package prdc computes it. M images drawn like the N real ones would cover about 1 - (N / (N + M))^k of them,
    so that only sets of one size compare.

    Args:
        real: (N, channels), with N above k.
        generated: (M, channels).
    """
    from sklearn.neighbors import NearestNeighbors  # here because it takes a second, and few callers need it

    radius = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(real.numpy()).kneighbors()[0][:, -1]
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(generated.numpy()).kneighbors(real.numpy())[0]
    return float((nearest[:, 0] < radius).mean())


def measure(images: Images, test: Resident | Streamed, classes: int, teacher: nn.Module, distilled: Resident) -> dict:
    """What a record holds of the diversity of `distilled`, with None for what is not defined.

    The distance within a class is divided by that of the real test images of the class under the same
    teacher: 1 is as spread as real images. At most MOST_REAL_IMAGES test images are used, the first of each class.
    """
    real = select_first_of_each_class(test, max(1, MOST_REAL_IMAGES // classes))
    # The teacher's own std for both, also where the authors' students see another.
    of_real, _ = compute_features(teacher, real, images.mean, images.std)
    of_distilled, _ = compute_features(teacher, distilled, images.mean, images.std)
    distances = measure_distance_within_class(of_distilled, distilled.labels.cpu(), classes)
    ratios = distances / measure_distance_within_class(of_real, real.labels.cpu(), classes)
    ratios = torch.where(ratios.isfinite(), ratios, torch.nan)
    k = min(NEAREST, len(real) - 1)
    return {
        "feature_distance": round_or_none(ratios.nanmean()),
        "feature_distance_by_class": [round_or_none(ratio) for ratio in ratios],
        "coverage": round(measure_coverage(of_real, of_distilled, k), 4) if k > 0 else None,
        "k": k,
        "classes": classes,
        "real_images": len(real),
        "distilled_images": len(distilled),
    }


def round_or_none(value: torch.Tensor) -> float | None:
    """`value` to four decimals, None for NaN, which JSON does not know."""
    return None if value.isnan() else round(value.item(), 4)


def compute_tsne(groups: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Places in the plane, (N, 2) per group, by one t-SNE of the vectors (N, channels) of all groups together.

    Distances mean something within one call only. About 10 s for 2,000 vectors on one core.
    """
    from sklearn.manifold import TSNE

    vectors = torch.cat(list(groups.values())).numpy()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    ends = np.cumsum([len(group) for group in groups.values()])
    return dict(zip(groups, np.split(places, ends[:-1]), strict=True))
