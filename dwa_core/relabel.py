"""Relabel evaluation: a student trained from scratch on distilled images.

The teacher labels every batch on the fly, or each image once, or it does not label at all (`RelabelStage.labels`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

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
    labels = F.log_softmax(teacher_logits / stage.temperature, dim=1)
    return kl_divergence(student_logits, labels, stage, log_target=True)


def stored_label_loss(student_logits: torch.Tensor, labels: torch.Tensor, stage: RelabelStage) -> torch.Tensor:
    """The loss with labels that were stored: of soft ones as `soft_label_loss`, of hard ones the cross-entropy.

    Args:
        student_logits: (N, classes).
        labels: (N, classes), probabilities, mixed as the images were.
    """
    if stage.labels == "hard":
        return F.cross_entropy(student_logits, labels)
    return kl_divergence(student_logits, labels, stage, log_target=False)


def kl_divergence(
    student_logits: torch.Tensor, labels: torch.Tensor, stage: RelabelStage, log_target: bool
) -> torch.Tensor:
    """KL( labels || softmax(student / T) ), where `labels` are probabilities or, as `log_target`, their logarithms."""
    predicted = F.log_softmax(student_logits / stage.temperature, dim=1)
    loss = F.kl_div(predicted, labels, reduction="batchmean", log_target=log_target)
    return loss * stage.temperature**2 if stage.loss_times_temperature_squared else loss


def make_labeller(teacher: nn.Module, stage: RelabelStage, precision: torch.dtype) -> nn.Module:
    """The teacher as it labels: without gradients, its BatchNorm as the relabel stage says."""
    network = devices.cast_weights(devices.copy_frozen(teacher), precision)
    if stage.teacher_batch_statistics:  # the running ones stay as they are, as in the authors' code
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
                layer.momentum = 0.0
    return network


@torch.no_grad()
def label(teacher: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], compute: Compute) -> torch.Tensor:
    """The logits (N, classes), in fp32, of the images in `batches`."""
    with compute.autocast():
        return torch.cat([teacher(inputs).float() for inputs, _ in batches])


def store_labels(recipe: Recipe, training: Resident, classes: int, teacher: nn.Module, compute: Compute) -> Resident:
    """The distilled images with probabilities (N, classes) as labels: one-hot, or the teacher's of each image as it is.

    Args:
        teacher: as `make_labeller` returns it.
    """
    stage, images = recipe.relabel, recipe.images
    if stage.labels == "hard":
        labels = F.one_hot(training.labels, classes).float()
    else:
        logits = label(teacher, training.test_batches(images.mean, images.distilled_std), compute)
        labels = F.softmax(logits / stage.temperature, dim=1)
    return Resident(training.images_uint8, labels, training.device, training.images_uint8.device)


def draw_mixed_batches(recipe: Recipe, training: Resident, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the student of `recipe.seed` sees in `epoch`: cropped, flipped and mixed images, and their labels.

    Probabilities are mixed as the images are. Classes, from which no student learns, are those before the mixing.
    """
    stage, images, key = recipe.relabel, recipe.images, (STUDENT, recipe.seed, epoch)
    host, random = seeds.host_random(*key), seeds.device_random(training.device, *key, 1)
    for inputs, labels in training.train_batches(stage, images.mean, images.distilled_std, *key):
        mixed, partner, share = augment.mix(inputs, stage.mixing, stage.mixing_alpha, host, random)
        if labels.is_floating_point():
            labels = labels * share + labels[partner] * (1 - share)
        yield mixed, labels


def make_loss(teacher: nn.Module, stage: RelabelStage) -> Callable[..., torch.Tensor]:
    """The loss of a student: (student, mixed images, their labels) -> mean loss of the batch.

    Args:
        teacher: as `make_labeller` returns it.
    """

    def loss_with_teacher(student: nn.Module, images: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return soft_label_loss(student(images).float(), teacher_logits.float(), stage)

    def loss_with_stored_labels(student: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return stored_label_loss(student(images).float(), labels, stage)

    return loss_with_teacher if stage.labels == "teacher" else loss_with_stored_labels


def train_student(
    recipe: Recipe,
    classes: int,
    training: Resident,
    test: Resident | Streamed,
    batch_loss: Callable[..., torch.Tensor],
    compute: Compute,
    progress: Progress,
) -> list[dict]:
    """Trains one student from scratch with `recipe.seed`, from where `progress` was saved last.

    Args:
        classes: outputs of the student.
        training: the distilled images, which alone it learns from; `test` are the images that it is tested on.
        batch_loss: (student, mixed images, their labels) -> mean loss of a batch; nothing in it may be drawn or read on
            the host.

    Returns: the curve, as `training.fit` does.
    """
    images = recipe.images
    # By a key, so that student 0 does not begin with the very weights that teacher 0 began with.
    first_weights = seeds.key_to_seed(STUDENT, recipe.seed)
    student = models.build(recipe.student, classes, recipe.stem, images.side, first_weights)
    student = devices.move_to_device(student, compute.device)
    batches = Batches(
        train=lambda epoch: draw_mixed_batches(recipe, training, epoch),
        test=lambda: test.test_batches(images.mean, images.distilled_std),
        key=(STUDENT, recipe.seed),
    )
    return fit(student, recipe.relabel, batches, partial(batch_loss, student), compute, progress)
