"""Whether what is stored is right: artifacts by checksums, records by artifacts, tables by records."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dwa_core.errors import InputError, UserError
from dwa_paper.report import product
from dwa_paper.runs import store
from dwa_paper.runs.records import (
    artifacts_called_for,
    artifacts_named,
    artifacts_of_profile,
    as_setting,
    read_record,
    record_paths,
    students,
)
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import SYNTHESISED, Setting

KINDS = ("teachers", "distilled", "data")  # of artifacts; what else lies beside them is none


def verify(profile: str) -> None:
    """Checks the local artifacts, and the records and tables of `profile`; prints what it could not check.

    Raises:
        InputError: no such profile.
        UserError: it has no results yet.
        ExceptionGroup: of a UserError for each problem.
    """
    files.check_profile(profile)
    folder = root() / "results" / profile
    if not folder.is_dir():
        raise UserError(f"{folder}: there is nothing yet; make reproduce PROFILE={profile} makes it")
    problems = check_records(profile)
    # Tables cannot be drawn from records that cannot be read.
    problems = check_artifacts() + (problems or check_tables(profile))
    for line in list_absent(profile):
        print(line)
    if problems:
        raise ExceptionGroup("verify", [UserError(line) for line in problems])
    print(f"{profile}: everything matches: {len(record_paths(profile))} records, their tables and all local artifacts")


def check_artifacts() -> list[str]:
    """Problems of the local artifacts, one line each: their checksums, and the settings that gave them their names."""
    lines = []
    for base in (root() / "artifacts", root() / "results" / "artifacts"):
        for folder in (folder for kind in KINDS for folder in sorted((base / kind).glob("*/"))):
            if folder.name[0] != ".":  # not folders that a run is filling
                problem = store.damage(folder)
                lines += [f"{folder}: {problem}"] if problem else []
    return lines


def list_absent(profile: str) -> list[str]:
    """The artifacts that records of `profile` name and that are not local, one line each.

    That is no error, but they could not be checked. Sets of real images, drawn again in a moment, are left out.
    """
    return [
        f"{kind}/{name}: not local, so not checked; records that name it: {len(set(records))}"
        for (kind, name), records in artifacts_of_profile(profile, (*SYNTHESISED, "external")).items()
        if find_local(kind, name) is None
    ]


def check_records(profile: str) -> list[str]:
    """Problems of the records of `profile`, one line each."""
    lines = []
    for path in record_paths(profile):
        try:
            lines += [f"{path}: {problem}" for problem in record_problems(path)]
        except InputError as error:
            lines.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            lines.append(f"{path}: damaged, or of an older format; {' '.join(f'{error!r}'.split())}")
    return lines


def record_problems(path: Path) -> list[str]:
    """What is wrong with the record at `path`.

    Its settings and the fingerprint of its data determine the names of its teachers and its distilled sets, and those
    must be the ones it names. Where artifacts are local, their checksums must be the ones it holds. Its accuracies
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
        named = student[part]
        folder = find_local(kind, named["artifact"])
        if folder is not None:
            stored = store.read_json(folder / "record.json")
            if without_card(stored["files"]) != without_card(named["files"]):
                lines.append(f"{folder} has other checksums than it names")
            if part == "teacher" and stored["accuracy"] != named["accuracy"]:
                lines.append(f"its teacher's accuracy is {named['accuracy']}, that of {folder} is {stored['accuracy']}")
    tested = [entry["top1"] for entry in student["curve"] if "top1" in entry]
    last, best = tested[-1], max(tested)
    expected = {"last": last, "best": best, "reported": best if setting.relabel.reported == "best" else last}
    if not expected.items() <= student["accuracy"].items():
        lines.append(f"its accuracy is {student['accuracy']}, by its curve {expected}")
    if len(student["curve"]) != setting.relabel.epochs:
        lines.append(f"its curve has {len(student['curve'])} epochs, its settings {setting.relabel.epochs}")
    return lines


def without_card(files: dict[str, str]) -> dict[str, str]:
    """The checksums of an artifact's files except its card: that of real images, drawn again, may be in other words."""
    return {name: total for name, total in files.items() if name != "README.md"}


def find_local(kind: str, name: str) -> Path | None:
    """The artifact's folder, damaged or not: `check_artifacts` looks at that."""
    for base in (root() / "artifacts", root() / "results" / "artifacts"):
        if (base / kind / name / "record.json").is_file():
            return base / kind / name
    return None


# ------------------------------------------------------------------------------------------------ tables


def check_tables(profile: str) -> list[str]:
    """Where the tables of `profile` differ from those that its records give, one line each."""
    kept, lines = root() / "results" / profile, []
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "results" / profile
        drawn.mkdir(parents=True)
        for path in record_paths(profile):
            (drawn / path.name).write_bytes(path.read_bytes())
        names = {path.name for path in kept.iterdir() if path.suffix in (".md", ".csv")}
        # Also a table that no setting is shown in, where somebody has asked for it by its name.
        wanted = {
            *product.products(files.list_runs(profile)),
            *({Path(name).stem for name in names} & {*files.list_products()}),
        }
        tables = sorted(name for name in wanted if not name.startswith("figure-"))
        if failures := [failure for name in tables if (failure := draw_table(name, profile, Path(scratch)))]:
            return failures
        for name in sorted(names | {path.name for path in drawn.iterdir() if path.suffix in (".md", ".csv")}):
            if not (kept / name).is_file():
                lines.append(f"{kept / name}: it is missing; make reproduce PROFILE={profile} makes it")
            elif not (drawn / name).is_file():
                lines.append(f"{kept / name}: no notebook makes it from the records")
            elif content(kept / name) != content(drawn / name):
                lines.append(f"{kept / name}: differs from what the records give; delete it, and make draws it again")
    return lines


def draw_table(name: str, profile: str, scratch: Path) -> str:
    """Draws the table `name` from the records under the root `scratch`; returns what failed, or an empty text."""
    command = [sys.executable, "-m", "dwa_paper", "draw", name, "--profile", profile]
    variables = {**os.environ, "DWA_ROOT": str(scratch)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return f"{name}: {done.stderr.strip()}" if done.returncode != 0 else ""


def content(path: Path) -> str:
    """The text of a table without the line that says what it was drawn from."""
    return re.sub(r"\s*<!-- drawn from .*-->\s*$", "\n", path.read_text())
