"""What ends a run whose numbers go wrong, or that does not fit into the GPU's memory, with one line that says why."""

import traceback
from collections.abc import Callable
from contextlib import contextmanager

import torch

from dwa_core.settings import InputError, SynthesisStage, Training

# Iterations of synthesis between two looks at its numbers: each look makes the host wait for the device.
CHECK_EVERY = 100
# A BatchNorm term is compared with that of the initial images before the weights are adjusted, or with that of
# statistics of zero if it is larger. In the demo and in lite the largest is about as large as that at most.
EXPLODING = 1000
STUCK = 0.99


class DivergedError(RuntimeError):
    """The numbers of a run have gone wrong; the message is one line: when, which term, and which setting to change."""


def check_training(label: str, stage: Training, epoch: int, losses: torch.Tensor) -> None:
    """Raises DivergedError if one of `losses`, those of the batches of `epoch` (from 0) so far, is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        batch = int(bad[0])
        raise DivergedError(
            f"{label}: the loss is {losses[batch].item()} in epoch {epoch + 1}, batch {batch + 1}; "
            f"try a learning_rate below {stage.learning_rate:g}"
        )


def check_synthesis(
    stage: SynthesisStage,
    losses: torch.Tensor,
    terms: torch.Tensor,
    usual_terms: torch.Tensor,
    images: torch.Tensor,
    black: torch.Tensor,
    white: torch.Tensor,
) -> None:
    """Raises DivergedError if a loss is not finite, a BatchNorm term explodes or the images are stuck at the clamp.

    Args:
        losses: (iterations so far, 4): cross-entropy, sum of BatchNorm terms, total, learning rate.
        terms: (layers,), the BatchNorm terms of the last iteration.
        usual_terms: (layers,), the terms that those of the last iteration are measured by.
        images: after the last iteration; `black` and `white` are what they are clamped to.
    """
    iteration = len(losses)
    finite = losses.isfinite()
    at_clamp = ((images <= black) | (images >= white)).float().mean()
    ratios = terms / usual_terms
    # One read for all three: the usual answer is that all is well.
    if not torch.stack([finite.all(), (ratios < EXPLODING).all(), at_clamp < STUCK]).all():
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            name = ("cross-entropy", "sum of BatchNorm terms", "total loss", "learning rate")[column]
            raise DivergedError(
                f"synthesis: the {name} is {losses[row, column].item()} in iteration {row + 1}; "
                f"try a synthesis.learning_rate below {stage.learning_rate:g} or a rho below {stage.rho:g}"
            )
        if not (ratios < EXPLODING).all():
            layer = int(ratios.argmax())
            raise DivergedError(
                f"synthesis: the BatchNorm term of layer {layer + 1} is {terms[layer].item():.3g} in iteration "
                f"{iteration}, {ratios[layer].item():.0f} times what is usual; "
                f"try a synthesis.rho below {stage.rho:g}"
            )
        raise DivergedError(
            f"synthesis: {100 * at_clamp.item():.1f} % of the pixels are stuck at black or white in iteration "
            f"{iteration}; try a synthesis.learning_rate below {stage.learning_rate:g}"
        )


def at_chance(accuracy: float, classes: int, tests: int) -> bool:
    """Whether an accuracy in percent is within three standard deviations of guessing among `classes`, or below."""
    chance = 1 / classes
    return accuracy <= 100 * (chance + 3 * (chance * (1 - chance) / tests) ** 0.5)


@contextmanager
def enough_memory(key: str, size: int, attempt: Callable[[int], None]):
    """If the block runs out of GPU memory: InputError with the largest part of `size` for which `attempt` does not.

    There is no fall-back to smaller batches: BatchNorm needs the statistics of the whole batch, so the numbers
    would be others.

    Args:
        key: the setting to blame.
        size: its value, the size of a batch.
        attempt: computes with a batch of the given size what takes the most memory.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        # The frames that broke off keep their tensors as long as the exception lives.
        traceback.clear_frames(error.__traceback__)
    smaller = size // 2
    while smaller >= 1 and not fits(attempt, smaller):
        smaller //= 2
    advice = f"{smaller} would" if smaller else "not even 1 would"
    raise InputError(f"{key}: a batch of {size} does not fit into the GPU's memory; {advice}")


def fits(attempt: Callable[[int], None], size: int) -> bool:
    torch.cuda.empty_cache()
    try:
        attempt(size)
    except torch.OutOfMemoryError:
        return False
    return True
