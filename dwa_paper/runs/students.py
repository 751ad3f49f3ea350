"""Students: one trained, tested and recorded after each task, and so once where all classes come at once."""

from collections.abc import Callable

from dwa_core import diversity, relabel
from dwa_core.devices import Compute
from dwa_core.errors import StoppedError
from dwa_paper.runs import store, tasks
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.records import find_record
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.runs.teachers import Teacher
from dwa_paper.settings.schema import NOT_RECORDED, Setting


def evaluate(
    setting: Setting,
    whole: ImageData,
    parts: list[ImageData],
    teachers: list[Teacher],
    sets: list[DistilledSet],
    compute: Compute,
) -> dict:
    """Trains the students of `setting.seed`, tests them, and writes and returns their record.

    A student sees the distilled images alone; `test` is used for testing and for measuring diversity only.

    Args:
        parts: the data of each task, as tasks.split_into_tasks returns them; teachers and sets are theirs.

    Returns: the record. With several tasks it holds `tasks`, a list with one entry per task of what is otherwise there
        once (accuracy, curve, teacher, distilled, diversity, seconds) beside the task's classes and the number of
        classes seen. The record's own accuracy is that after the last task, over all classes.
    """

    def train_and_record() -> dict:
        finished = Checkpoint(f"tasks-{checkpoint_name(setting, whole, sets)}")
        found = finished.load(compute.device)
        entries = found[1]["entries"] if found is not None else []
        for count in range(len(entries) + 1, len(parts) + 1):
            entry, checkpoint = train_after_task(
                setting, whole, parts[count - 1], teachers[:count], sets[:count], compute
            )
            entries.append(entry)
            if count < len(parts):
                try:
                    finished.save({}, {"entries": entries})
                except StoppedError:  # it was saved before
                    checkpoint.remove()
                    raise
                checkpoint.remove()
        record = run_record(setting, whole, compute)
        if setting.tasks == 1:
            record |= entries[0]
        else:
            seconds = {stage: round(sum(entry["seconds"][stage] for entry in entries), 1) for stage in entry["seconds"]}
            record |= {"accuracy": entry["accuracy"], "tasks": entries, "seconds": seconds}
        store.write_json(setting.record_path(), record)
        checkpoint.remove()
        finished.remove()
        return record

    return record_once(setting, train_and_record)


def record_once(setting: Setting, make: Callable[[], dict]) -> dict:
    """What `make()` returns, the record of `setting`; of runs of the same setting side by side, one makes it."""
    before = find_record(setting)
    with store.lock("students", f"{setting.profile}-{setting.name}-seed{setting.seed}"):
        if before is None and (record := find_record(setting)) is not None:
            return record
        return make()


def train_after_task(
    setting: Setting,
    whole: ImageData,
    part: ImageData,
    teachers: list[Teacher],
    sets: list[DistilledSet],
    compute: Compute,
) -> tuple[dict, Checkpoint]:
    """Trains the student that follows the task with the data `part`; `teachers` and `sets` are those of all so far.

    Returns: its entry of the record, and its checkpoint, to be removed once the entry is stored.
    """
    teacher, distilled = teachers[-1], sets[-1]
    labellers = [relabel.labeller(one.network, setting.relabel, compute.precision) for one in teachers]
    if setting.tasks == 1:
        seen, training, label = whole, distilled.split(compute.device), f"student {setting.seed}"
        if setting.relabel.labels != "teacher":
            training = relabel.with_stored_labels(setting, training, len(whole.classes), labellers[0], compute)
        batch_loss = relabel.make_loss(labellers[0], setting.relabel)
    else:
        seen = tasks.seen_after(setting, whole, len(sets))
        training, label = tasks.TaskImages(sets, compute.device), f"student {setting.seed}, task {len(sets)}"
        batch_loss = tasks.make_loss(labellers, setting.relabel)
    own_images = distilled.split(compute.device)
    measured = diversity.measure(setting.images, part.test, len(part.classes), teacher.network, own_images)
    checkpoint = Checkpoint(f"student-{checkpoint_name(setting, seen, sets)}", label)
    curve = relabel.train_student(setting, len(seen.classes), training, seen.test, batch_loss, compute, checkpoint)
    entry = student_record(setting, teacher, distilled, measured, curve)
    entry["seconds"] = {
        "teacher": teacher.record["seconds"],
        "synthesis": distilled.record["seconds"],
        "student": checkpoint.seconds(),
    }
    if setting.tasks > 1:
        entry |= {"classes": part.classes, "classes_seen": len(seen.classes)}
    return entry, checkpoint


def checkpoint_name(setting: Setting, data: ImageData, sets: list[DistilledSet]) -> str:
    """A name of what `setting` makes of these distilled sets and data."""
    settings = setting.model_dump(exclude=NOT_RECORDED | {"device", "profile", "name"})
    identity = store.digest(settings, *[made.artifact for made in sets], data.fingerprint)
    return f"{setting.profile}-{setting.name}-seed{setting.seed}-{identity}"


def run_record(setting: Setting, data: ImageData, compute: Compute) -> dict:
    """What holds for a run as a whole: settings, data, and where it was run."""
    return {
        "setting": setting.recorded(),
        "data": {
            "fingerprint": data.fingerprint,
            "training_images": len(data.train),
            "test_images": len(data.test),
            "classes": len(data.classes),
        },
        **store.provenance(compute),
    }


def student_record(
    setting: Setting, teacher: Teacher, distilled: DistilledSet, measured: dict, curve: list[dict]
) -> dict:
    """The result of one student: accuracies in percent, curve, and the artifacts that it depends on."""
    tested = [entry for entry in curve if "top1" in entry]
    best, last = max(entry["top1"] for entry in tested), tested[-1]["top1"]
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
