"""Directed weight adjustment: the step that makes each batch of distilled images differ."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core.augment import apply_view, device_random


def adjust_weights(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    view: torch.Tensor,
    kind: str,
    rho: float,
    steps: int,
    *key: int,
    with_image_gradient: bool = False,
) -> torch.Tensor | None:
    """Moves the weights of `network` by a total length of at most `rho`, in place.

    "directed": `steps` times `theta += (rho / steps) * g / (||g|| + 1e-12)`, where g is the gradient of
    the cross-entropy of the images with respect to all parameters together, so the loss rises (the
    directed weight adjustment of the DWA paper). "random": one step of length rho in a Gaussian direction.
    "none": nothing.

    Args:
        network: in eval mode, so that BatchNorm's running statistics do not move.
        images: (N, 3, H, W), normalised, before augmentation.
        labels: (N,) class indices.
        view: the augmentation, one for all steps: a row of `augment.draw_views`.
        kind: "none", "random" or "directed".
        rho: the weight magnitude.
        steps: K; used by "directed" alone.
        key: what the random direction depends on.
        with_image_gradient: whether to return, for "directed", the sum over the steps of the gradient
            with respect to `images`, which the authors' code leaves in place for the first image update.
    """
    parameters = list(network.parameters())
    image_gradient = torch.zeros_like(images) if with_image_gradient and kind == "directed" else None
    if kind == "random":
        random = device_random(images.device, *key)
        direction = [torch.randn(p.shape, generator=random, device=p.device, dtype=p.dtype) for p in parameters]
        move(parameters, direction, rho)
    elif kind == "directed":
        images, view = images.detach().requires_grad_(image_gradient is not None), view.to(images)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            loss = F.cross_entropy(network(apply_view(images, view)), labels)
            wanted = parameters if image_gradient is None else [*parameters, images]
            gradients = torch.autograd.grad(loss, wanted)
            if image_gradient is not None:
                image_gradient += gradients[-1]
            move(parameters, gradients[: len(parameters)], rho / steps)
        for parameter in parameters:
            parameter.requires_grad_(False)
    return image_gradient


@torch.no_grad()
def move(parameters: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], length: float) -> None:
    """Adds `direction`, scaled to norm `length` over all parameters together, to `parameters`, in place."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
    torch._foreach_add_(parameters, torch._foreach_mul(direction, length / (norm + 1e-12)))
