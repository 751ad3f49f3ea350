"""Records: read and checked, found by their setting, and the artifacts that they name."""

import ast
import contextlib
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

import dwa_core
from dwa_core.errors import InputError
from dwa_core.recipe import Count, NotNegative
from dwa_paper.settings.environment import root
from dwa_paper.settings.reading import read_text
from dwa_paper.settings.schema import NAME, Setting

MOST_BYTES = 10**8  # of a record


def require(**fields) -> type[BaseModel]:
    """A part of a record that has these fields, each a type or its type and default; what else it has is free."""
    kinds = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in fields.items()}
    return create_model("Part", __config__=ConfigDict(strict=True, allow_inf_nan=False), **kinds)


def add_seeds(recorded):
    """The setting that a record holds with its one seed as `seeds`, which are not recorded."""
    return {**recorded, "seeds": [recorded.get("seed")]} if isinstance(recorded, dict) else recorded


ARTIFACT = {"artifact": Annotated[str, Field(pattern=NAME)], "files": dict[str, str]}  # a folder, and nowhere else
EITHER = {
    "accuracy": require(last=float, best=float, reported=float),
    "seconds": require(teacher=NotNegative, synthesis=NotNegative, student=NotNegative),
}
STUDENT = {
    **EITHER,
    "curve": list[dict[str, float]],
    "teacher": require(**ARTIFACT, accuracy=require(top1=float, top5=float)),
    "distilled": require(**ARTIFACT),
    "diversity": (require(feature_distance=(float | None, None), coverage=(float | None, None)) | None, None),
}
RUN = {
    **EITHER,
    "setting": Annotated[Setting, BeforeValidator(add_seeds)],
    "data": require(fingerprint=str, training_images=Count, test_images=Count, classes=Count),
    **{"precision": str, "device": str, "versions": require(torch=str)},
}
OF_ONE = require(**RUN | STUDENT)
OF_TASKS = require(**RUN, tasks=Annotated[list[require(**STUDENT)], Field(min_length=1)])


def read_record(path: Path) -> dict:
    """A record: of one student, or of one per task in its list `tasks`. Fields that came later are in its setting.

    Raises:
        InputError: it is damaged, or of an older format; the message names the first field that is wrong.
    """
    try:
        record = from_json(read_text(path, MOST_BYTES), allow_inf_nan=False)
        of_tasks = isinstance(record, dict) and "tasks" in record
        checked = (OF_TASKS if of_tasks else OF_ONE).model_validate(record)
        return {**record, "setting": checked.setting.recorded()}
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"]))[:100], first["msg"])))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
    hint = "the record is damaged, or of an older format; delete it, and make makes it again"
    raise InputError(f"{path}: {reason}; {hint}")


def read_all(profile: str = "*") -> tuple[dict[Path, dict], list[str]]:
    """The records of `profile`, or of all profiles, by file; and a line for each that cannot be read."""
    found, problems = {}, []
    for path in list_records(profile):
        try:
            found[path] = read_record(path)
        except InputError as error:
            problems.append(str(error))
    return found, problems


def list_records(profile: str) -> list[Path]:
    """The files of all records of `profile`, whether or not a setting asks for them."""
    return sorted((root() / "results").glob(f"{profile}/*-seed*.json"))


def list_students(record: dict) -> list[dict]:
    """What has accuracies, a teacher and a distilled set in `record`: each of its tasks, or the record itself."""
    return record.get("tasks", [record])


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


def describe_code(profile: str, found: Iterable[dict]) -> str:
    """One line: how many of the records of `profile` were made by another dwa_core than this one. That is no error."""
    made_by = [record.get("code") for record in found]
    other = sum(code not in (None, code_fingerprint()) for code in made_by)
    text = f"{profile}: of {len(made_by)} records, {other} were made by other code of dwa_core than this"
    return f"{text}, and {made_by.count(None)} are older and do not say"


def parse_setting(recorded: dict) -> Setting:
    """The setting that a record holds, checked."""
    return Setting.model_validate(add_seeds(recorded))


def find_record(setting: Setting) -> dict | None:
    """The record of this very setting, or None where there is none that can be used.

    Where the setting names a file or folder of the user's own, the record is of what that holds now, or held last if it
    cannot be read.
    """
    try:
        record = read_record(setting.record_path())
    except InputError:  # none yet, damaged, or of an older format
        return None
    if record["setting"] != setting.recorded():
        return None
    if setting.teacher.own_weights() or setting.method == "external":
        with contextlib.suppress(InputError, OSError):
            if name_artifacts(setting, record["data"]) != list_named_artifacts(record):
                return None
    return record


def find_missing(settings: Iterable[Setting]) -> list[Setting]:
    """Those of `settings`, each with its one student seed, that have no record."""
    return [setting for setting in settings if find_record(setting) is None]


def name_artifacts(setting: Setting, data_recorded: dict) -> list[str]:
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
        labels_of_tasks = tasks.split_classes(setting, data_recorded["classes"])
        fingerprints = [tasks.digest_classes(fingerprints[0], labels) for labels in labels_of_tasks]
    names = []
    for fingerprint in fingerprints:
        trained, _ = teachers.describe(setting, fingerprint)
        names += [trained, sets.describe(setting, fingerprint, trained)[0]]
    return names


def distinguish_artifacts(setting: Setting, data_recorded: dict | None = None) -> list[str]:
    """As `name_artifacts`, without reading images or downloading anything.

    A set of others, which is named after its files, has another name here, and so has all of data that are not known:
    they only tell what differs apart.
    """
    if data_recorded is None or data_recorded["classes"] % setting.tasks:
        unknown = f"unknown, {setting.validation} held out, {setting.tasks} tasks"
        data_recorded = {"fingerprint": unknown, "classes": setting.tasks}
    of_others = f" {setting.distilled}" if setting.method == "external" else ""
    if of_others:
        setting = setting.model_copy(update={"method": "random-real"})
    return [name + of_others * (place % 2) for place, name in enumerate(name_artifacts(setting, data_recorded))]


def list_named_artifacts(record: dict) -> list[str]:
    """The names of the teacher and then the distilled set of each task that `record` names."""
    return [student[part]["artifact"] for student in list_students(record) for part in ("teacher", "distilled")]


def map_artifacts(found: dict[Path, dict], methods: tuple[str, ...]) -> dict[tuple[str, str], list[str]]:
    """The file names of records by what they name: kind and name of each teacher, and of each set made by `methods`."""
    named = defaultdict(list)
    for path, record in found.items():
        for student in list_students(record):
            named["teachers", student["teacher"]["artifact"]].append(path.name)
            if record["setting"]["method"] in methods:
                named["distilled", student["distilled"]["artifact"]].append(path.name)
    return named


def is_at_chance(accuracy: float, classes: int, tests: int) -> bool:
    """Whether an accuracy in percent is within three standard deviations of guessing among `classes`, or below."""
    chance = 1 / classes
    return accuracy <= 100 * (chance + 3 * (chance * (1 - chance) / tests) ** 0.5)
