"""Students: one trained, tested and recorded after each task, and so once where all classes come at once."""

from dwa_core import diversity, relabel
from dwa_core.devices import Compute
from dwa_core.errors import StoppedError
from dwa_paper.runs import store, tasks
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.records import find_record
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.runs.teachers import Teacher, note_large_batch
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
    before = find_record(setting)
    with store.lock("students", f"{setting.profile}-{setting.name}-seed{setting.seed}"):
        # Of runs of the same setting side by side, the first makes the record.
        if before is None and (record := find_record(setting)) is not None:
            return record
        finished = Checkpoint(f"tasks-{name_checkpoint(setting, whole, teachers, sets)}")
        found = finished.load(compute.device)
        entries = found[1]["entries"] if found is not None else []
        for count, part in enumerate(parts[len(entries) :], len(entries) + 1):
            entry, checkpoint = train_after_task(setting, whole, part, teachers[:count], sets[:count], compute)
            entries.append(entry)
            if count < len(parts):
                try:
                    finished.save({}, {"entries": entries})
                except StoppedError:  # it was saved before
                    checkpoint.remove()
                    raise
                checkpoint.remove()
        data = {"fingerprint": whole.fingerprint, "classes": len(whole.classes)}
        data |= {"training_images": len(whole.train), "test_images": len(whole.test)}
        record = {"setting": setting.recorded(), "data": data, **store.collect_provenance(compute)}
        if setting.tasks == 1:
            record |= entry
        else:
            seconds = {stage: round(sum(one["seconds"][stage] for one in entries), 1) for stage in entry["seconds"]}
            record |= {"accuracy": entry["accuracy"], "tasks": entries, "seconds": seconds}
        if setting.record_path().is_file() and find_record(setting) is None:
            store.set_aside(setting.record_path(), "it is the record of another setting, or damaged")
        store.write_json(setting.record_path(), record)
        checkpoint.remove()
        finished.remove()
    return record


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
    labellers = [relabel.make_labeller(one.network, setting.relabel, compute.precision) for one in teachers]
    own_images = distilled.split(compute.device)
    if setting.tasks == 1:
        seen, training, label = whole, own_images, f"student {setting.seed}"
        if setting.relabel.labels != "teacher":
            training = relabel.store_labels(setting, training, len(whole.classes), labellers[0], compute)
        batch_loss = relabel.make_loss(labellers[0], setting.relabel)
    else:
        count = sum(len(one.classes) for one in sets)
        seen = tasks.select_classes(whole, tasks.draw_class_order(len(whole.classes), setting.teacher.seed)[:count])
        training, label = tasks.TaskImages(sets, compute.device), f"student {setting.seed}, task {len(sets)}"
        batch_loss = tasks.make_loss(labellers, setting.relabel)
    note_large_batch("relabel", setting.relabel, len(training))
    measured = diversity.measure(setting.images, part.test, len(part.classes), teacher.network, own_images)
    checkpoint = Checkpoint(f"student-{name_checkpoint(setting, seen, teachers, sets)}", label)
    curve = relabel.train_student(setting, len(seen.classes), training, seen.test, batch_loss, compute, checkpoint)
    tested = [row for row in curve if "top1" in row]
    last, best = tested[-1], max(row["top1"] for row in tested)
    accuracy = {"last": last["top1"], "best": best, "top5": last["top5"]}
    seconds = {"teacher": teacher.record["seconds"], "synthesis": distilled.record["seconds"]}
    entry = {
        "accuracy": {**accuracy, "reported": accuracy[setting.relabel.reported]},
        "curve": curve,
        "teacher": {"artifact": teacher.artifact} | {key: teacher.record[key] for key in ("accuracy", "files")},
        "distilled": {"artifact": distilled.artifact, "files": distilled.record["files"]},
        "diversity": measured,
        "seconds": seconds | {"student": checkpoint.seconds()},
    }
    if setting.tasks > 1:
        entry |= {"classes": part.classes, "classes_seen": len(seen.classes)}
    return entry, checkpoint


def name_checkpoint(setting: Setting, data: ImageData, teachers: list[Teacher], sets: list[DistilledSet]) -> str:
    """A name of what `setting` makes of these teachers, distilled sets and data."""
    settings = setting.model_dump(exclude=NOT_RECORDED | {"device", "profile", "name"})
    identity = store.digest(settings, *[made.artifact for made in (*teachers, *sets)], data.fingerprint)
    return f"{setting.profile}-{setting.name}-seed{setting.seed}-{identity}"
