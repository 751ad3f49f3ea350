"""Records: read and checked, found by their setting, and the artifacts that they name."""

import json
from pathlib import Path

from dwa_core.errors import InputError
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

RECORD_FIELDS = {
    "setting": dict,
    "accuracy": dict,
    "data": dict,
    "precision": str,
    "device": str,
    "versions": dict,
}
STUDENT_FIELDS = {"accuracy": dict, "curve": list, "teacher": dict, "distilled": dict}


def read_record(path: Path) -> dict:
    """A record: of one student, or of one per task in its list `tasks`.

    Raises:
        InputError: it is damaged, or of an older format.
    """
    try:
        record = json.loads(path.read_text())
        good = all(isinstance(record[field], kind) for field, kind in RECORD_FIELDS.items())
        good = good and isinstance(record["setting"]["method"], str)
        for student in students(record):
            good = good and all(isinstance(student[field], kind) for field, kind in STUDENT_FIELDS.items())
            good = good and all(isinstance(student[part]["artifact"], str) for part in ("teacher", "distilled"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise InputError(f"{path}: the record is damaged, or of an older format; delete it, and make makes it again")
    return record


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
        recorded = Setting.model_validate({**record["setting"], "seeds": setting.seeds}).recorded()
        usable = recorded == setting.recorded() and not own_files_differ(setting, record)
    except ValueError:  # none yet, damaged, or of an older format
        return None
    return {**record, "setting": recorded} if usable else None


def own_files_differ(setting: Setting, record: dict) -> bool:
    """Whether the user's own weights or distilled set are others than those that `record` names."""
    if not setting.teacher.own_weights() and setting.method != "external":
        return False
    try:
        return artifacts_called_for(setting, record["data"]) != artifacts_named(record)
    except (InputError, OSError):  # they cannot be read
        return False


def artifacts_called_for(setting: Setting, data_recorded: dict) -> list[str]:
    """The names of the teacher and then the distilled set of each task that `setting` calls for.

    Args:
        data_recorded: what a record says of its data: fingerprint and number of classes.

    Raises:
        InputError: the user's own weights or distilled set cannot be read.
    """
    # Imported here because the runner asks for records too, and must not wait seconds for torch.
    from dwa_paper.runs import sets, tasks, teachers

    whole = data_recorded["fingerprint"]
    fingerprints = [whole]
    if setting.tasks > 1:
        labels_of_tasks = tasks.classes_of_tasks(setting, data_recorded["classes"])
        fingerprints = [tasks.fingerprint_of_classes(whole, labels) for labels in labels_of_tasks]
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
            named.setdefault(("teachers", student["teacher"]["artifact"]), []).append(path.name)
            if record["setting"]["method"] in methods:
                named.setdefault(("distilled", student["distilled"]["artifact"]), []).append(path.name)
    return named
