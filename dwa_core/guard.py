"""What ends a run whose numbers go wrong, or that does not fit into the GPU's memory, with one line that says why."""

import traceback
from collections.abc import Callable

import torch

from dwa_core.errors import DivergedError, InputError
from dwa_core.recipe import SynthesisStage, Training

# Iterations of synthesis between two looks at its numbers: each look makes the host wait for the device.
CHECK_EVERY = 100
# A BatchNorm term is compared with that of the initial images before the weights are adjusted, or with that of
# statistics of zero if it is larger. In the demo and in lite the largest is about as large as that at most.
EXPLODING = 1000
STUCK = 0.99
# How PyTorch, cuBLAS and cuDNN (pytorch#108645 has its sentence) say that a device has no memory left.
OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "unable to find an engine to execute this computation")


def check_training(label: str, stage: Training, epoch: int, losses: torch.Tensor) -> None:
    """Raises DivergedError if one of `losses`, those of the batches of `epoch` (from 0) so far, is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        batch = int(bad[0])
        advice = f"try a learning_rate below {stage.learning_rate:g}"
        if epoch == batch == 0:
            advice = "nothing was learned yet, so look at what it learns from: images.mean and std, labels, a teacher"
        raise DivergedError(
            f"{label}: the loss is {losses[batch].item()} in epoch {epoch + 1}, batch {batch + 1}; {advice}"
        )


def check_weights(label: str, weights: dict[str, torch.Tensor], advice: str) -> None:
    """Raises DivergedError, with `advice`, if one of `weights` is not finite."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise DivergedError(f"{label}: {name} has numbers that are not finite; {advice}")


def check_synthesis(
    stage: SynthesisStage,
    losses: dict[str, torch.Tensor],
    terms: torch.Tensor,
    reference: torch.Tensor,
    clamped: torch.Tensor,
) -> None:
    """Raises DivergedError if a loss is not finite, a BatchNorm term explodes or the images are stuck at the clamp.

    Args:
        losses: by name, (iterations so far,) each.
        terms: (layers,), the BatchNorm terms of the last iteration.
        reference: (layers,), the terms that those of the last iteration are measured by.
        clamped: 0-d, the share of the images' values that are those of a black or a white pixel.
    """
    values = torch.stack(list(losses.values()), dim=1)
    iteration, finite = len(values), values.isfinite()
    ratios = terms / reference
    # One read for all three: the usual answer is that all is well.
    if torch.stack([finite.all(), (ratios < EXPLODING).all(), clamped < STUCK]).all():
        return
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        name = list(losses)[column].replace("_", " ")
        advice = f"try a synthesis.learning_rate below {stage.learning_rate:g} or a rho below {stage.rho:g}"
        if not reference.isfinite().all():
            advice = "the teacher gives no finite numbers for the initial images either: look at its weights, and r_var"
        elif row == 0 and stage.adjustment != "none":  # no image was changed yet
            advice = f"try a synthesis.rho below {stage.rho:g}"
        raise DivergedError(f"synthesis: the {name} is {values[row, column].item()} in iteration {row + 1}; {advice}")
    if not (ratios < EXPLODING).all():
        layer = int(ratios.argmax())
        raise DivergedError(
            f"synthesis: the BatchNorm term of layer {layer + 1} is {terms[layer].item():.3g} in iteration "
            f"{iteration}, {ratios[layer].item():.0f} times what is usual; "
            f"try a synthesis.rho below {stage.rho:g}"
        )
    raise DivergedError(
        f"synthesis: {100 * clamped.item():.1f} % of the pixels are stuck at black or white in iteration "
        f"{iteration}; try a synthesis.learning_rate below {stage.learning_rate:g}"
    )


def raise_unless_out_of_memory(error: RuntimeError) -> None:
    """Raises `error` again unless the device had no memory left; then lets go of what its frames hold.

    Those that broke off keep their tensors as long as the exception lives. A CUDA graph, cuBLAS or cuDNN that has no
    memory says so as a plain RuntimeError.
    """
    if not isinstance(error, torch.OutOfMemoryError) and not any(phrase in str(error) for phrase in OUT_OF_MEMORY):
        raise error
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what another stream still computes with is not to be given away
    traceback.clear_frames(error.__traceback__)


def make_too_large_error(key: str, size: int, attempt: Callable[[int], None] | None) -> InputError:
    """Tries smaller batches, and returns the error to raise for one of `size`, which names the largest that fits.

    There is no fall-back to smaller batches: BatchNorm needs the statistics of the whole batch, so the numbers
    would be others.

    Args:
        key: the setting that the message names.
        attempt: computes with so many images what ran out of memory with all of them; None where it cannot be tried.
    """
    smaller = size // 2
    while attempt is not None and smaller >= 1 and not fits(attempt, smaller):
        smaller //= 2
    advice = f"try {smaller}" if attempt is None else f"{smaller} would" if smaller else "not even 1 would"
    return InputError(f"{key}: a batch of {size} does not fit into the GPU's memory; {advice}")


def fits(attempt: Callable[[int], None], size: int) -> bool:
    """Whether `attempt(size)` finds the memory that it needs."""
    torch.cuda.empty_cache()
    try:
        attempt(size)
    except RuntimeError as error:
        raise_unless_out_of_memory(error)
        return False
    return True
