"""Class-incremental learning: the classes come task by task, and only distilled images of earlier tasks are kept.

Each task has a teacher of its own, trained on the real images of its classes alone, and a set distilled from that
teacher. After each task a student is trained from scratch on all distilled sets so far, and tested over all classes
seen so far. Print leaves open how the pieces fit together; this is what is done here:

- The classes are put into one random order by the teacher's seed and cut into tasks of equal size. So student seeds
  and methods share the order and the teachers; another order is another teacher seed.
- A teacher knows its own classes only. In the soft label of an image, every class of another task is as likely as the
  least likely class of its own task. Probability zero would be no soft label: at the recipes' temperatures of 20 and
  30 all of a teacher's probabilities are nearly alike, and zeros among them would outweigh all else that they say.
- A batch is drawn from all distilled sets together, and its images are mixed across tasks as the recipe mixes them.
  Where two tasks meet in an image, both teachers label it, and their soft labels are weighted by the share of the
  image that is theirs. Within one task, and so in particular for a single task, this is the usual soft label.
- Every student is trained for the recipe's epochs. Of what a task before has learned, nothing but its distilled
  images and its teacher is used.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import data, diversity, relabel, stop, store
from dwa_core.batches import Resident
from dwa_core.data import ImageData
from dwa_core.distilled import DistilledSet
from dwa_core.settings import InputError, Setting
from dwa_core.teacher import Teacher


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
        raise InputError(
            f"tasks: {tasks} is not allowed; the {classes} classes of {whole.name} can be cut into "
            f"{', '.join(map(str, allowed))}"
        )
    return [data.of_classes(whole, labels) for labels in data.classes_of_tasks(setting, classes)]


def soft_labels(
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


def evaluate(
    setting: Setting,
    whole: ImageData,
    parts: list[ImageData],
    teachers: list[Teacher],
    distilled: list[DistilledSet],
    device: torch.device,
) -> dict:
    """Trains one student after each task, tests it over the classes seen, and writes and returns the record.

    Args:
        parts: the data of each task, as split_into_tasks returns them; teachers and distilled sets are theirs.

    Returns: as relabel.evaluate, but `tasks`, a list with one entry per task, holds what is otherwise there once:
        accuracy, curve, teacher, distilled, diversity and seconds, beside the task's classes and the number of
        classes seen. The record's own accuracy is that after the last task, over all classes.
    """

    def train_and_record() -> dict:
        finished = store.Checkpoint(
            f"tasks-{relabel.student_name(setting, whole, [made.artifact for made in distilled])}"
        )
        found = finished.load(device)
        entries = found[1]["entries"] if found is not None else []
        for number in range(len(entries) + 1, len(parts) + 1):
            entry, checkpoint = after_task(
                setting, whole, parts[:number], teachers[:number], distilled[:number], device
            )
            entries.append(entry)
            try:
                finished.save({}, {"entries": entries})
            except stop.StoppedError:  # it was saved before
                checkpoint.remove()
                raise
            checkpoint.remove()
        seconds = {
            stage: round(sum(entry["seconds"][stage] for entry in entries), 1) for stage in entries[0]["seconds"]
        }
        record = {
            **relabel.run_record(setting, whole, seconds, device),
            "accuracy": entries[-1]["accuracy"],
            "tasks": entries,
        }
        store.write_json(setting.record_path(), record)
        finished.remove()
        return record

    return relabel.record_once(setting, train_and_record)


def after_task(
    setting: Setting,
    whole: ImageData,
    parts: list[ImageData],
    teachers: list[Teacher],
    distilled: list[DistilledSet],
    device: torch.device,
) -> tuple[dict, store.Checkpoint]:
    """Trains the student of the last of `parts`; returns its entry of the record and its checkpoint."""
    stage, size, tasks = setting.relabel, len(parts[0].classes), len(parts)
    seen = data.of_classes(whole, data.class_order(len(whole.classes), setting.teacher.seed)[: tasks * size])
    training = Resident(
        torch.cat([made.images_uint8 for made in distilled]),
        torch.cat([made.labels + task * size for task, made in enumerate(distilled)]),
        device,
    )
    labellers = [relabel.labeller(setting, teacher, device) for teacher in teachers]

    def with_tasks(images, labels):
        # What task each pixel is of, to be mixed along with the pixels: as many more channels as there are tasks.
        of_task = F.one_hot(labels // size, tasks).to(images.dtype)[:, :, None, None]
        return torch.cat([images, of_task.expand(-1, -1, *images.shape[2:])], dim=1)

    def batch_loss(student, mixed):
        images = mixed[:, :3].contiguous(memory_format=torch.channels_last)
        shares = mixed[:, 3:].mean((2, 3))
        with torch.no_grad():
            targets = soft_labels(images, shares, labellers, stage.temperature)
        return relabel.soft_label_loss(student(images).float(), targets, stage)

    measured = diversity.measure(setting, parts[-1], teachers[-1].network, distilled[-1].split(device))
    artifacts = [made.artifact for made in distilled]
    curve, checkpoint = relabel.train_student(
        setting,
        seen,
        training,
        batch_loss,
        device,
        f"student {setting.seed}, task {tasks}",
        artifacts,
        with_tasks,
    )
    entry = {
        "classes": parts[-1].classes,
        "classes_seen": len(seen.classes),
        "seconds": relabel.stage_seconds(teachers[-1], distilled[-1], checkpoint),
        **relabel.student_record(setting, teachers[-1], distilled[-1], measured, curve),
    }
    return entry, checkpoint
