"""Records: read and checked, found by their setting, and the artifacts that they name."""

import ast
import contextlib
import functools
import hashlib
import json
import re
from pathlib import Path

import dwa_core
from dwa_core.errors import InputError
from dwa_paper.settings.environment import root
from dwa_paper.settings.reading import read_text
from dwa_paper.settings.schema import NAME, Setting

MOST_BYTES = 10**8  # of a record
# What every record holds, and each of its students: keys, and types or the pattern of a text.
ARTIFACT = {"artifact": re.compile(NAME)}  # a name of a folder, which leads nowhere else
ACCURACY = {"last": (int, float), "best": (int, float), "reported": (int, float)}
RUN = {
    "setting": {"method": str},
    "accuracy": ACCURACY,
    "data": {"fingerprint": str, "classes": int},
    **{"precision": str, "device": str, "versions": dict},
}
STUDENT = {"accuracy": ACCURACY, "curve": list, "teacher": ARTIFACT, "distilled": ARTIFACT}


def read_record(path: Path) -> dict:
    """A record: of one student, or of one per task in its list `tasks`.

    Raises:
        InputError: it is damaged, or of an older format.
    """
    try:
        record = json.loads(read_text(path, MOST_BYTES), parse_constant=int)  # int refuses NaN
        good = has_shape(record, RUN) and all(has_shape(student, STUDENT) for student in [*students(record)] or [None])
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"{path}: the record is damaged, or of an older format; delete it, and make makes it again")
    return record


def has_shape(value, shape) -> bool:
    """Whether `value` is of the type or types `shape`, fits the pattern, or has the dict's keys with their shapes."""
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.match(value) is not None
    if isinstance(shape, type | tuple):
        return isinstance(value, shape)
    return isinstance(value, dict) and all(has_shape(value.get(key), inner) for key, inner in shape.items())


def students(record: dict) -> list[dict]:
    """What has accuracies, a teacher and a distilled set in `record`: each of its tasks, or the record itself."""
    return record.get("tasks", [record])


def record_paths(profile: str) -> list[Path]:
    """The files of all records of `profile`, whether or not a setting asks for them."""
    return sorted((root() / "results" / profile).glob("*-seed*.json"))


@functools.cache
def code_fingerprint() -> str:
    """SHA-256 of the code that computes, dwa_core's, without docstrings, lines of comment and blank lines."""
    sha = hashlib.sha256()
    for path in sorted(Path(dwa_core.__file__).parent.glob("*.py")):
        lines = path.read_text().split("\n")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        code = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        sha.update("\n".join([path.name, *code]).encode())
    return sha.hexdigest()


def describe_code(profile: str) -> str:
    """One line: how many records of `profile` were made by another dwa_core than this one. That is no error."""
    made_by = []
    for path in record_paths(profile):
        with contextlib.suppress(InputError):
            made_by.append(read_record(path).get("code"))
    other = sum(code not in (None, code_fingerprint()) for code in made_by)
    text = f"{profile}: of {len(made_by)} records, {other} were made by other code of dwa_core than this"
    return f"{text}, and {made_by.count(None)} are older and do not say"


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


def is_at_chance(accuracy: float, classes: int, tests: int) -> bool:
    """Whether an accuracy in percent is within three standard deviations of guessing among `classes`, or below."""
    chance = 1 / classes
    return accuracy <= 100 * (chance + 3 * (chance * (1 - chance) / tests) ** 0.5)
