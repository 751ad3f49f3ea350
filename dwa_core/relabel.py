"""Relabel evaluation: a student trained from scratch on distilled images, labelled on the fly by the teacher."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import augment, devices, models, seeds
from dwa_core.batches import Resident, Streamed
from dwa_core.devices import Compute
from dwa_core.recipe import Recipe, RelabelStage
from dwa_core.seeds import STUDENT
from dwa_core.training import Batches, Progress, fit


def soft_label_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, stage: RelabelStage) -> torch.Tensor:
    """KL( softmax(teacher / T) || softmax(student / T) ), batch mean; times T squared if the stage says so.

    Args:
        student_logits, teacher_logits: (N, classes).
    """
    temperature = stage.temperature
    loss = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return loss * temperature**2 if stage.loss_times_temperature_squared else loss


def use_batch_statistics(network: nn.Module) -> None:
    """Puts the BatchNorm layers in train mode, their running statistics unmoved, as the authors' teacher labels."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 0.0


def labeller(teacher: nn.Module, stage: RelabelStage, precision: torch.dtype) -> nn.Module:
    """The teacher as it labels: without gradients, its BatchNorm as the relabel stage says."""
    network = devices.cast_weights(devices.frozen_copy(teacher), precision)
    if stage.teacher_batch_statistics:
        use_batch_statistics(network)
    return network


def mixed_batches(recipe: Recipe, training: Resident, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the student of `recipe.seed` sees in `epoch`: cropped, flipped and mixed images, and their class labels.

    The class labels are those before the mixing; no student learns from them.
    """
    stage, images, key = recipe.relabel, recipe.images, (STUDENT, recipe.seed, epoch)
    host, random = seeds.host_random(*key), seeds.device_random(training.device, *key, 1)
    for inputs, labels in training.train_batches(stage, images.mean, images.distilled_std, *key):
        yield augment.mix(inputs, stage.mixing, stage.mixing_alpha, host, random), labels


def train_student(
    recipe: Recipe,
    classes: int,
    training: Resident,
    test: Resident | Streamed,
    batch_loss: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    compute: Compute,
    progress: Progress,
) -> list[dict]:
    """Trains one student from scratch with `recipe.seed`, from where `progress` was saved last.

    Args:
        classes: outputs of the student.
        training: the distilled images, which alone it learns from; `test` are the images that it is tested on.
        batch_loss: (student, mixed images) -> mean loss of a batch; nothing in it may be drawn or read on the host.

    Returns: the curve, as `training.fit` does.
    """
    images = recipe.images
    # By a key, so that student 0 does not begin with the very weights that teacher 0 began with.
    first_weights = seeds.key_to_seed(STUDENT, recipe.seed)
    student = models.build(recipe.student, classes, recipe.stem, images.side, first_weights)
    student = devices.on_device(student, compute.device)
    batches = Batches(
        train=lambda epoch: mixed_batches(recipe, training, epoch),
        test=lambda: test.test_batches(images.mean, images.distilled_std),
        key=(STUDENT, recipe.seed),
    )
    return fit(student, recipe.relabel, batches, lambda inputs, _: batch_loss(student, inputs), compute, progress)
