"""Relabel evaluation: a student trained from scratch on distilled images, labelled on the fly by the teacher."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import augment, models, store
from dwa_core.augment import STUDENT
from dwa_core.data import ImageData, Resident
from dwa_core.settings import RelabelStage, Setting
from dwa_core.synthesize import DistilledSet
from dwa_core.teacher import Teacher, fit


def soft_label_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, stage: RelabelStage) -> torch.Tensor:
    """KL( softmax(teacher / T) || softmax(student / T) ), batch mean; times T squared if the stage says so."""
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


def mixed_batches(
    setting: Setting, training: Resident, mean: list[float], std: list[float], epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the student of `setting.seed` sees in `epoch`: cropped, flipped and mixed images, and their class labels.

    The class labels are those before the mixing; no student learns from them.
    """
    stage, key = setting.relabel, (STUDENT, setting.seed, epoch)
    host, random = augment.host_random(*key), augment.device_random(training.device, *key, 1)
    for inputs, labels in training.train_batches(stage, mean, std, *key):
        yield augment.mix(inputs, stage.mixing, stage.mixing_alpha, host, random), labels


def evaluate(
    setting: Setting, data: ImageData, teacher: Teacher, distilled: DistilledSet, device: torch.device
) -> dict:
    """Trains one student with `setting.seed`, tests it, and writes and returns its record.

    The student sees the distilled images alone; `data.test` is used for testing only.
    """
    stage, images = setting.relabel, setting.images
    std = images.std_after_teacher or images.std
    precision = models.choose_precision(setting.precision, device)
    # By a key, so that student 0 does not begin with the very weights that teacher 0 began with.
    first_weights = augment.key_to_seed(STUDENT, setting.seed)
    student = models.build(setting.student, len(data.classes), setting.stem, images.side, first_weights)
    student = models.on_device(student, device)
    labeller = models.frozen_copy(teacher.network)
    if stage.teacher_batch_statistics:
        use_batch_statistics(labeller)
    training = distilled.split(device)

    def loss_of(inputs, _):
        with torch.no_grad():
            teacher_logits = labeller(inputs)
        return soft_label_loss(student(inputs).float(), teacher_logits.float(), stage)

    identity = store.digest(
        setting.model_dump(exclude={"seeds", "device", "profile", "name"}),
        distilled.artifact,
        data.fingerprint,
    )
    checkpoint = store.Checkpoint(f"student-{setting.profile}-{setting.name}-seed{setting.seed}-{identity}")
    curve = fit(
        student,
        stage,
        batches=lambda epoch: mixed_batches(setting, training, images.mean, std, epoch),
        batch_loss=lambda epoch: loss_of,
        test_batches=lambda: data.test.test_batches(images.mean, std),
        device=device,
        precision=precision,
        checkpoint=checkpoint,
        label=f"student {setting.seed}",
    )
    record = make_record(setting, data, teacher, distilled, curve, precision, checkpoint.seconds(), device)
    store.write_json(setting.record_path(), record)
    checkpoint.remove()
    return record


def make_record(setting, data, teacher, distilled, curve, precision, seconds: float, device: torch.device) -> dict:
    """All that a reader of one result needs: accuracies in percent, curve, settings, times, where it comes from."""
    tested = [entry for entry in curve if "top1" in entry]
    best = max(entry["top1"] for entry in tested)
    last = tested[-1]["top1"]
    return {
        "setting": setting.recorded(),
        "accuracy": {
            "reported": best if setting.relabel.reported == "best" else last,
            "last": last,
            "best": best,
            "top5": tested[-1]["top5"],
        },
        "curve": curve,
        "teacher": {"artifact": teacher.artifact} | {key: teacher.record[key] for key in ("accuracy", "files")},
        "distilled": {"artifact": distilled.artifact, "files": distilled.record["files"]},
        "data": {
            "fingerprint": data.fingerprint,
            "training_images": len(data.train),
            "test_images": len(data.test),
            "classes": len(data.classes),
        },
        "seconds": {
            "teacher": teacher.record["seconds"],
            "synthesis": distilled.record["seconds"],
            "student": seconds,
        },
        "precision": str(precision).removeprefix("torch."),
        **store.provenance(device),
    }
