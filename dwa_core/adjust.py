"""The weight adjustment of DWA: the step that makes each batch of distilled images differ."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core.augment import apply_view


def adjust_directed(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    view: torch.Tensor,
    rho: float,
    steps: int,
    added: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Moves the weights of `network`, in place, up the loss of `images` by a total length of at most `rho`.

    K = `steps` times `theta += (rho / K) * g / (||g|| + 1e-12)`, where g is the gradient of the cross-entropy with
    respect to all parameters together (Du et al., NeurIPS 2024).

    Args:
        network: in eval mode, so that BatchNorm's running statistics do not move.
        images: (N, 3, H, W), normalised, before augmentation.
        labels: (N,) class indices.
        view: the augmentation, one for all steps: a row of `augment.draw_views`.
        added: one tensor per parameter, added to g in the first step (authors' code); empty for none.

    Returns: (N, 3, H, W), the sum over the steps of the gradient with respect to `images`, which the authors' code
        leaves in place for the first image update.
    """
    parameters = list(network.requires_grad_(True).parameters())
    images, view = images.detach().requires_grad_(True), view.to(images)
    image_gradient = torch.zeros_like(images)
    for step in range(steps):
        loss = F.cross_entropy(network(apply_view(images, view)), labels)
        *gradients, of_images = torch.autograd.grad(loss, [*parameters, images])
        image_gradient += of_images
        if added and step == 0:
            torch._foreach_add_(gradients, list(added))
        move(parameters, gradients, rho / steps)
    network.requires_grad_(False)
    return image_gradient


def adjust_random(network: nn.Module, rho: float, generator: torch.Generator) -> None:
    """Moves the weights of `network`, in place, by a length of `rho` in one Gaussian direction over all parameters."""
    parameters = list(network.parameters())
    direction = [torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype) for p in parameters]
    move(parameters, direction, rho)


@torch.no_grad()
def move(parameters: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], length: float) -> None:
    """Adds `direction`, scaled to norm `length` over all parameters together, to `parameters`, in place."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
    torch._foreach_add_(parameters, torch._foreach_mul(direction, length / (norm + 1e-12)))
