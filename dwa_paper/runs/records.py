"""Records: read and checked, found by their setting, and the artifacts that they name."""

import contextlib
import json
from pathlib import Path

from dwa_core.errors import InputError
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

# What every record holds, and each of its students: keys and types.
RUN = {"setting": {"method": str}, "accuracy": dict, "data": dict, "precision": str, "device": str, "versions": dict}
STUDENT = {"accuracy": dict, "curve": list, "teacher": {"artifact": str}, "distilled": {"artifact": str}}


def read_record(path: Path) -> dict:
    """A record: of one student, or of one per task in its list `tasks`.

    Raises:
        InputError: it is damaged, or of an older format.
    """
    try:
        record = json.loads(path.read_text())
        good = has_shape(record, RUN) and all(has_shape(student, STUDENT) for student in students(record))
    except (OSError, ValueError, TypeError):
        good = False
    if not good:
        raise InputError(f"{path}: the record is damaged, or of an older format; delete it, and make makes it again")
    return record


def has_shape(value, shape) -> bool:
    """Whether `value` is of the type `shape`, or has the keys of the dict `shape` with values of their shapes."""
    if isinstance(shape, type):
        return isinstance(value, shape)
    return isinstance(value, dict) and all(has_shape(value.get(key), inner) for key, inner in shape.items())


def students(record: dict) -> list[dict]:
    """What has accuracies, a teacher and a distilled set in `record`: each of its tasks, or the record itself."""
    return record.get("tasks", [record])


def record_paths(profile: str) -> list[Path]:
    """The files of all records of `profile`, whether or not a setting asks for them."""
    return sorted((root() / "results" / profile).glob("*-seed*.json"))


def as_setting(recorded: dict) -> Setting:
    """The setting that a record holds, checked."""
    return Setting.model_validate({**recorded, "seeds": [recorded["seed"]]})


def find_record(setting: Setting) -> dict | None:
    """The record of this very setting, or None where there is none that can be used.

    Its setting has the fields that came later than the record, at their defaults. Where the setting names a file or
    folder of the user's own, the record is of what that holds now, or held last if it cannot be read.
    """
    try:
        record = read_record(setting.record_path())
        recorded = as_setting(record["setting"]).recorded()
    except (ValueError, KeyError):  # none yet, damaged, or of an older format
        return None
    if recorded != setting.recorded():
        return None
    if setting.teacher.own_weights() or setting.method == "external":
        with contextlib.suppress(InputError, OSError):
            if artifacts_called_for(setting, record["data"]) != artifacts_named(record):
                return None
    return {**record, "setting": recorded}


def artifacts_called_for(setting: Setting, data_recorded: dict) -> list[str]:
    """The names of the teacher and then the distilled set of each task that `setting` calls for.

    Args:
        data_recorded: what a record says of its data: fingerprint and number of classes.

    Raises:
        InputError: the user's own weights or distilled set cannot be read.
    """
    # Imported here because the runner asks for records too, and must not wait seconds for torch.
    from dwa_paper.runs import sets, tasks, teachers

    fingerprints = [data_recorded["fingerprint"]]
    if setting.tasks > 1:
        labels_of_tasks = tasks.classes_of_tasks(setting, data_recorded["classes"])
        fingerprints = [tasks.fingerprint_of_classes(fingerprints[0], labels) for labels in labels_of_tasks]
    names = []
    for fingerprint in fingerprints:
        trained, _ = teachers.describe(setting, fingerprint)
        names += [trained, sets.describe(setting, fingerprint, trained)[0]]
    return names


def artifacts_named(record: dict) -> list[str]:
    """The names of the teacher and then the distilled set of each task that `record` names."""
    return [student[part]["artifact"] for student in students(record) for part in ("teacher", "distilled")]


def artifacts_of_profile(profile: str, methods: tuple[str, ...]) -> dict[tuple[str, str], list[str]]:
    """Kind and name of each teacher that records of `profile` name, and of each distilled set made by one of `methods`.

    Returns: the names of those records by artifact. Of a record that cannot be read, a printed line says so.
    """
    named = {}
    for path in record_paths(profile):
        try:
            record = read_record(path)
        except InputError as error:
            print(error)
            continue
        for student in students(record):
            for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
                if kind == "teachers" or record["setting"]["method"] in methods:
                    named.setdefault((kind, student[part]["artifact"]), []).append(path.name)
    return named
