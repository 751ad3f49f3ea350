"""Whether what is stored is what it says: artifacts by checksums, records by artifacts, tables by records."""

import re
from collections import defaultdict
from pathlib import Path

from dwa_core.errors import InputError
from dwa_paper.runs import store
from dwa_paper.runs.records import (
    artifacts_called_for,
    artifacts_named,
    as_setting,
    read_record,
    record_paths,
    students,
)
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

KINDS = ("teachers", "distilled", "data")  # of artifacts; what else lies beside them is none


def artifacts() -> list[str]:
    """Problems of the artifacts at hand, one line each: checksums, and the settings that their names stand for."""
    lines = []
    for base in (root() / "artifacts", root() / "results" / "artifacts"):
        for folder in (folder for kind in KINDS for folder in sorted((base / kind).glob("*/"))):
            if folder.name[0] != ".":  # not folders that a run is filling
                problem = store.damage(folder)
                lines += [f"{folder}: {problem}"] if problem else []
    return lines


def absent(profile: str) -> list[str]:
    """The artifacts that records of `profile` name and that are not at hand, one line each.

    That is no error, but they could not be checked. Sets of real images, drawn anew in a moment, are left out.
    """
    named = defaultdict(set)
    for path in record_paths(profile):
        try:
            record = read_record(path)
        except InputError:  # `records` says so
            continue
        for student in students(record):
            named["teachers", student["teacher"]["artifact"]].add(path)
            if record["setting"]["method"] != "random-real":
                named["distilled", student["distilled"]["artifact"]].add(path)
    return [
        f"{kind}/{name}: not at hand, so not checked; records that name it: {len(paths)}"
        for (kind, name), paths in named.items()
        if at_hand(kind, name) is None
    ]


def records(profile: str) -> list[str]:
    """Problems of the records of `profile`, one line each."""
    lines = []
    for path in record_paths(profile):
        try:
            lines += [f"{path}: {problem}" for problem in record_problems(path)]
        except InputError as error:
            lines.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            lines.append(f"{path}: it is of another form; {' '.join(f'{error!r}'.split())}")
    return lines


def record_problems(path: Path) -> list[str]:
    """What is wrong with the record at `path`.

    Its settings and the fingerprint of its data determine the names of its teachers and its distilled sets, and those
    must be the ones it names. Where artifacts are at hand, their checksums must be the ones it holds. Its accuracies
    must be those of its curves.
    """
    record = read_record(path)
    setting = as_setting(record["setting"])
    lines = [] if path == setting.record_path() else [f"its settings belong to {setting.record_path()}"]
    for called_for, named in zip(artifacts_called_for(setting, record["data"]), artifacts_named(record), strict=True):
        if called_for != named:
            lines.append(f"its settings call for {called_for}, it names {named}")
    for student in students(record):
        lines += student_problems(setting, student)
    return lines


def student_problems(setting: Setting, student: dict) -> list[str]:
    """What is wrong with what a record says of one student: artifacts, curve and accuracies."""
    lines = []
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        told = student[part]
        folder = at_hand(kind, told["artifact"])
        if folder is not None:
            stored = store.read_json(folder / "record.json")
            if without_card(stored["files"]) != without_card(told["files"]):
                lines.append(f"{folder} has other checksums than it names")
            if part == "teacher" and stored["accuracy"] != told["accuracy"]:
                lines.append(f"its teacher's accuracy is {told['accuracy']}, that of {folder} is {stored['accuracy']}")
    tested = [entry["top1"] for entry in student["curve"] if "top1" in entry]
    last, best = tested[-1], max(tested)
    expected = {"last": last, "best": best, "reported": best if setting.relabel.reported == "best" else last}
    if not expected.items() <= student["accuracy"].items():
        lines.append(f"its accuracy is {student['accuracy']}, by its curve {expected}")
    if len(student["curve"]) != setting.relabel.epochs:
        lines.append(f"its curve has {len(student['curve'])} epochs, its settings {setting.relabel.epochs}")
    return lines


def without_card(files: dict[str, str]) -> dict[str, str]:
    """The checksums of an artifact's files but its card: real images drawn anew get one in the words of today."""
    return {name: total for name, total in files.items() if name != "README.md"}


def at_hand(kind: str, name: str) -> Path | None:
    """The artifact's folder, damaged or not: `artifacts` looks at that."""
    for base in (root() / "artifacts", root() / "results" / "artifacts"):
        if (base / kind / name / "record.json").is_file():
            return base / kind / name
    return None


def tables(profile: str, rendered: Path) -> list[str]:
    """Where the tables of `profile` differ from those rendered anew under the root `rendered`, one line each."""
    lines = []
    kept, new = root() / "results" / profile, rendered / "results" / profile
    names = {path.name for folder in (kept, new) for path in folder.iterdir() if re.search(r"\.(md|csv)$", path.name)}
    for name in sorted(names):
        if not (kept / name).is_file():
            lines.append(f"{kept / name}: it is missing; make reproduce PROFILE={profile} makes it")
        elif not (new / name).is_file():
            lines.append(f"{kept / name}: no notebook makes it from the records")
        elif (kept / name).read_bytes() != (new / name).read_bytes():
            lines.append(f"{kept / name}: it is not what the records say")
    return lines
