"""Relabel evaluation: a student trained from scratch on distilled images, labelled on the fly by the teacher."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import augment, devices, diversity, models, store
from dwa_core.augment import STUDENT
from dwa_core.batches import Resident
from dwa_core.data import ImageData
from dwa_core.distilled import DistilledSet
from dwa_core.records import find_record
from dwa_core.settings import NOT_RECORDED, RelabelStage, Setting
from dwa_core.teacher import Teacher, fit, memory_for


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


def labeller(setting: Setting, teacher: Teacher, device: torch.device) -> nn.Module:
    """The teacher's network as it labels: without gradients, its BatchNorm as the relabel stage says."""
    precision = devices.choose_precision(setting.precision, device)
    network = devices.cast_weights(devices.frozen_copy(teacher.network), precision)
    if setting.relabel.teacher_batch_statistics:
        use_batch_statistics(network)
    return network


def mixed_batches(
    setting: Setting, training: Resident, epoch: int, before_mixing: Callable = lambda images, labels: images
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the student of `setting.seed` sees in `epoch`: cropped, flipped and mixed images, and their class labels.

    The class labels are those before the mixing; no student learns from them.

    Args:
        before_mixing: (images, labels) -> what is mixed: the images, with more channels where the loss must know
            what else went into the mixture.
    """
    stage, images, key = setting.relabel, setting.images, (STUDENT, setting.seed, epoch)
    host, random = augment.host_random(*key), augment.device_random(training.device, *key, 1)
    for inputs, labels in training.train_batches(stage, images.mean, images.distilled_std, *key):
        inputs = before_mixing(inputs, labels)
        yield augment.mix(inputs, stage.mixing, stage.mixing_alpha, host, random), labels


def evaluate(
    setting: Setting, data: ImageData, teacher: Teacher, distilled: DistilledSet, device: torch.device
) -> dict:
    """Trains one student with `setting.seed`, tests it, and writes and returns its record.

    The student sees the distilled images alone; `data.test` is used for testing and for measuring diversity only.
    """
    return record_once(setting, lambda: train_and_record(setting, data, teacher, distilled, device))


def record_once(setting: Setting, make: Callable[[], dict]) -> dict:
    """What `make()` returns, the record of `setting`; of runs of the same setting side by side, one makes it."""
    before = find_record(setting)
    with store.lock("students", f"{setting.profile}-{setting.name}-seed{setting.seed}"):
        if before is None and (record := find_record(setting)) is not None:
            return record
        return make()


def train_and_record(
    setting: Setting, data: ImageData, teacher: Teacher, distilled: DistilledSet, device: torch.device
) -> dict:
    """What `evaluate` does once it is this run's turn."""
    stage = setting.relabel
    network, training = labeller(setting, teacher, device), distilled.split(device)

    def batch_loss(student, images):
        with torch.no_grad():
            teacher_logits = network(images)
        return soft_label_loss(student(images).float(), teacher_logits.float(), stage)

    measured = diversity.measure(setting, data, teacher.network, training)
    curve, checkpoint = train_student(
        setting, data, training, batch_loss, device, f"student {setting.seed}", [distilled.artifact]
    )
    record = {
        **run_record(setting, data, stage_seconds(teacher, distilled, checkpoint), device),
        **student_record(setting, teacher, distilled, measured, curve),
    }
    store.write_json(setting.record_path(), record)
    checkpoint.remove()
    return record


def train_student(
    setting: Setting,
    data: ImageData,
    training: Resident,
    batch_loss: Callable,
    device: torch.device,
    label: str,
    artifacts: list[str],
    before_mixing: Callable = lambda images, labels: images,
) -> tuple[list[dict], store.Checkpoint]:
    """Trains one student from scratch with `setting.seed`, from its checkpoint where there is one.

    Args:
        data: whose classes the student tells apart; of its images, the test images are used alone.
        training: the distilled images.
        batch_loss: (student, mixed images) -> mean loss of a batch; nothing in it may be drawn or read on the host.
        label: of the progress bar.
        artifacts: the distilled sets that the images come from.
        before_mixing: as mixed_batches has it.

    Returns: the curve, as teacher.fit does, and the checkpoint, to be removed once the result is stored.
    """
    stage, images = setting.relabel, setting.images
    # By a key, so that student 0 does not begin with the very weights that teacher 0 began with.
    first_weights = augment.key_to_seed(STUDENT, setting.seed)
    student = models.build(setting.student, len(data.classes), setting.stem, images.side, first_weights)
    student = devices.on_device(student, device)

    checkpoint = store.Checkpoint(f"student-{student_name(setting, data, artifacts)}")
    precision = devices.choose_precision(setting.precision, device)
    with memory_for("relabel", stage, student, images.side, device, precision):
        curve = fit(
            student,
            stage,
            batches=lambda epoch: mixed_batches(setting, training, epoch, before_mixing),
            batch_loss=lambda inputs, _: batch_loss(student, inputs),
            test_batches=lambda: data.test.test_batches(images.mean, images.distilled_std),
            device=device,
            precision=precision,
            checkpoint=checkpoint,
            label=label,
            key=(STUDENT, setting.seed),
        )
    return curve, checkpoint


def student_name(setting: Setting, data: ImageData, artifacts: list[str]) -> str:
    """A name of what `setting` makes of these distilled sets and data, for checkpoints."""
    settings = setting.model_dump(exclude=NOT_RECORDED | {"device", "profile", "name"})
    identity = store.digest(settings, *artifacts, data.fingerprint)
    return f"{setting.profile}-{setting.name}-seed{setting.seed}-{identity}"


# ----------------------------------------------------------------------------------------------- records


def stage_seconds(teacher: Teacher, distilled: DistilledSet, student: store.Checkpoint) -> dict:
    """Wall time of each stage."""
    return {
        "teacher": teacher.record["seconds"],
        "synthesis": distilled.record["seconds"],
        "student": student.seconds(),
    }


def run_record(setting: Setting, data: ImageData, seconds: dict, device: torch.device) -> dict:
    """What holds for a run as a whole: settings, data, wall time per stage, and where it was run."""
    precision = devices.choose_precision(setting.precision, device)
    return {
        "setting": setting.recorded(),
        "data": {
            "fingerprint": data.fingerprint,
            "training_images": len(data.train),
            "test_images": len(data.test),
            "classes": len(data.classes),
        },
        "seconds": seconds,
        "precision": str(precision).removeprefix("torch."),
        **store.provenance(device),
    }


def student_record(
    setting: Setting, teacher: Teacher, distilled: DistilledSet, measured: dict, curve: list[dict]
) -> dict:
    """What one student came to: accuracies in percent, curve, and the artifacts that it stands on."""
    tested = [entry for entry in curve if "top1" in entry]
    best = max(entry["top1"] for entry in tested)
    last = tested[-1]["top1"]
    return {
        "accuracy": {
            "reported": best if setting.relabel.reported == "best" else last,
            "last": last,
            "best": best,
            "top5": tested[-1]["top5"],
        },
        "curve": curve,
        "teacher": {"artifact": teacher.artifact} | {key: teacher.record[key] for key in ("accuracy", "files")},
        "distilled": {"artifact": distilled.artifact, "files": distilled.record["files"]},
        "diversity": measured,
    }
