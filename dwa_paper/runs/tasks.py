"""Class-incremental learning: the classes come task by task, and only distilled images of earlier tasks are kept.

Each task has a teacher of its own, trained on the real images of its classes alone, and a set distilled from that
teacher. After each task a student is trained from scratch on all distilled sets so far, and tested over all classes
seen so far. The paper leaves open how the pieces fit together; this is what is done here:

- The classes are put into one random order by the teacher's seed and cut into tasks of equal size. So student seeds
  and methods share the order and the teachers; another order is another teacher seed.
- A teacher knows its own classes only. In the soft label of an image, every class of another task is as likely as the
  least likely class of its own task. Probability zero would be no soft label: at the recipes' temperatures of 20 and
  30 all of a teacher's probabilities are nearly alike, and zeros among them would outweigh all else that they say.
- A batch is drawn from all distilled sets together, and its images are mixed across tasks as the recipe mixes them.
  Where two tasks meet in an image, both teachers label it, and their soft labels are weighted by the share of the
  image that is theirs. Within one task, and so in particular for a single task, this is the usual soft label.
- Every student is trained for the recipe's epochs. Of an earlier task, nothing but its distilled
  images and its teacher is used.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import relabel, seeds
from dwa_core.batches import Resident
from dwa_core.errors import InputError
from dwa_core.recipe import RelabelStage, Training
from dwa_paper.runs import store
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.settings.schema import Setting


def split_into_tasks(setting: Setting, whole: ImageData) -> list[ImageData]:
    """The data of each task, its classes labelled from 0; the data as they are where there is one task.

    Raises:
        InputError: `setting.tasks` does not divide the number of classes, or leaves a task a single class.
    """
    classes, tasks = len(whole.classes), setting.tasks
    if tasks == 1:
        return [whole]
    allowed = [count for count in range(1, classes // 2 + 1) if classes % count == 0]
    if tasks not in allowed:
        cuts = ", ".join(map(str, allowed))
        raise InputError(f"tasks: {tasks} is not allowed; the {classes} classes of {whole.name} can be cut into {cuts}")
    return [select_classes(whole, labels) for labels in split_classes(setting, classes)]


def select_classes(data: ImageData, classes: list[int]) -> ImageData:
    """The part of `data` that `classes` are, labels of it without repetition; they become 0, 1, ... in that order."""
    renumbered = torch.full((len(data.classes),), -1)
    renumbered[classes] = torch.arange(len(classes))
    train, test = (part.relabel(renumbered[part.labels.cpu()]) for part in (data.train, data.test))
    names = [data.classes[label] for label in classes]
    return replace(data, classes=names, train=train, test=test, fingerprint=digest_classes(data.fingerprint, classes))


def digest_classes(whole: str, classes: list[int]) -> str:
    """The fingerprint of the part that `classes` are of the data whose fingerprint is `whole`."""
    return store.digest(whole, classes)


def draw_class_order(classes: int, seed: int) -> list[int]:
    """The labels 0 to `classes` - 1 in the order in which class-incremental learning takes them."""
    return seeds.host_random(seeds.CLASS_ORDER, seed).permutation(classes).tolist()


def split_classes(setting: Setting, classes: int) -> list[list[int]]:
    """The labels of each task; `setting.tasks` divides the number of `classes`."""
    order, size = draw_class_order(classes, setting.teacher.seed), classes // setting.tasks
    return [order[start : start + size] for start in range(0, classes, size)]


class TaskImages(Resident):
    """The distilled images of several tasks; batches have one more channel for each, 1 where a pixel is of that task.

    Mixed along with the pixels, the channels say how much of an image is each task's.
    """

    def __init__(self, sets: list[DistilledSet], device: torch.device):
        self.tasks, self.size = len(sets), len(sets[0].classes)
        images = torch.cat([made.images_uint8 for made in sets])
        labels = torch.cat([made.labels + task * self.size for task, made in enumerate(sets)])
        super().__init__(images, labels, device)

    def train_batches(self, stage: Training, mean, std, *key: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in super().train_batches(stage, mean, std, *key):
            of_task = F.one_hot(labels // self.size, self.tasks).to(images.dtype)[:, :, None, None]
            yield torch.cat([images, of_task.expand(-1, -1, *images.shape[2:])], dim=1), labels


def make_loss(labellers: list[nn.Module], stage: RelabelStage) -> Callable[..., torch.Tensor]:
    """The loss of a student on mixed batches of TaskImages, labelled by the teachers of their tasks."""

    def batch_loss(student: nn.Module, mixed: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        images = mixed[:, :3].contiguous(memory_format=torch.channels_last)
        shares = mixed[:, 3:].mean((2, 3))
        with torch.no_grad():
            targets = mix_labels(images, shares, labellers, stage.temperature)
        return relabel.soft_label_loss(student(images).float(), targets, stage)

    return batch_loss


def mix_labels(
    images: torch.Tensor, shares: torch.Tensor, labellers: list[nn.Module], temperature: float
) -> torch.Tensor:
    """Logits (N, tasks * classes) over all classes seen, whose softmax at `temperature` is the soft label.

    Args:
        images: (N, 3, H, W), mixed.
        shares: (N, tasks), the share of each image that is of each task; they add up to 1.
        labellers: the teachers' networks, one per task, each for the same number of classes.
    """
    weighted = []
    # Every teacher sees every image, for a choice of images would have to be read from the device.
    for task, (share, network) in enumerate(zip(shares.T, labellers, strict=True)):
        own = network(images).float()
        others = own.min(dim=1, keepdim=True).values.repeat(1, own.shape[1])
        everywhere = torch.cat([others] * task + [own] + [others] * (len(labellers) - task - 1), dim=1)
        weighted.append((everywhere / temperature).log_softmax(1) + share.log()[:, None])
    return temperature * torch.stack(weighted).logsumexp(0)
