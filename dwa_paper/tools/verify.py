"""Whether what is stored is right: artifacts by checksums, records by artifacts, tables by records."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dwa_core.errors import InputError, UserError
from dwa_paper.report import product
from dwa_paper.runs import records, store
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import SYNTHESISED, Setting

BASES = ("artifacts", "results/artifacts")
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
    count = len(records.record_paths(profile))
    print(f"{profile}: everything matches: {count} records, their tables and all local artifacts")


def check_artifacts() -> list[str]:
    """Problems of the local artifacts, one line each: their checksums, and the settings that gave them their names."""
    finished = "[!.]*/"  # not the folders that a run is filling
    folders = [path for base in BASES for kind in KINDS for path in sorted((root() / base / kind).glob(finished))]
    return [f"{folder}: {problem}" for folder in folders if (problem := store.damage(folder))]


def list_absent(profile: str) -> list[str]:
    """The artifacts that records of `profile` name and that are not local, one line each.

    That is no error, but they could not be checked. Sets of real images, drawn again in a moment, are left out.
    """
    return [
        f"{kind}/{name}: not local, so not checked; records that name it: {len(set(paths))}"
        for (kind, name), paths in records.artifacts_of_profile(profile, (*SYNTHESISED, "external")).items()
        if find_local(kind, name) is None
    ]


def check_records(profile: str) -> list[str]:
    """Problems of the records of `profile`, one line each."""
    lines = []
    for path in records.record_paths(profile):
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
    record = records.read_record(path)
    setting = records.as_setting(record["setting"])
    lines = [] if path == setting.record_path() else [f"its settings belong to {setting.record_path()}"]
    called_for = records.artifacts_called_for(setting, record["data"])
    for expected, named in zip(called_for, records.artifacts_named(record), strict=True):
        if expected != named:
            lines.append(f"its settings call for {expected}, it names {named}")
    for student in records.students(record):
        lines += [*artifact_problems(student), *curve_problems(setting, student)]
    return lines


def artifact_problems(student: dict) -> Iterator[str]:
    """Where what a record says of a student's teacher and distilled set differs from the local ones."""
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        named = student[part]
        if (folder := find_local(kind, named["artifact"])) is None:
            continue
        stored = store.read_json(folder / "record.json")
        differing = {name for name, _ in stored["files"].items() ^ named["files"].items()}
        if differing - {"README.md"}:  # the card of real images, drawn again, may be in other words
            yield f"{folder} has other checksums than it names"
        if part == "teacher" and stored["accuracy"] != named["accuracy"]:
            yield f"its teacher's accuracy is {named['accuracy']}, that of {folder} is {stored['accuracy']}"


def curve_problems(setting: Setting, student: dict) -> Iterator[str]:
    """Where a student's curve differs from its accuracies and its number of epochs."""
    tested = [entry["top1"] for entry in student["curve"] if "top1" in entry]
    last, best = tested[-1], max(tested)
    expected = {"last": last, "best": best, "reported": best if setting.relabel.reported == "best" else last}
    if not expected.items() <= student["accuracy"].items():
        yield f"its accuracy is {student['accuracy']}, by its curve {expected}"
    if len(student["curve"]) != setting.relabel.epochs:
        yield f"its curve has {len(student['curve'])} epochs, its settings {setting.relabel.epochs}"


def find_local(kind: str, name: str) -> Path | None:
    """The artifact's folder, damaged or not: `check_artifacts` looks at that."""
    folders = (root() / base / kind / name for base in BASES)
    return next((folder for folder in folders if (folder / "record.json").is_file()), None)


def check_tables(profile: str) -> list[str]:
    """Where the tables of `profile` differ from those that its records give, one line each."""
    folder = root() / "results" / profile
    kept = read_tables(folder)
    # Also a table that no setting is shown in, where somebody has asked for it by its name.
    asked_for = {Path(name).stem for name in kept} & {*files.list_products()}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        drawn_in = Path(scratch) / "results" / profile
        drawn_in.mkdir(parents=True)
        for path in records.record_paths(profile):
            shutil.copy(path, drawn_in)
        for name in sorted(asked_for | {*product.products(files.list_runs(profile))}):
            if not name.startswith("figure-"):
                command = [sys.executable, "-m", "dwa_paper", "draw", name, "--profile", profile]
                variables = {**os.environ, "DWA_ROOT": scratch}
                done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
                lines += [f"{name}: {done.stderr.strip()}"] if done.returncode != 0 else []
        drawn = read_tables(drawn_in)
    if lines:
        return lines
    for name in sorted({*kept, *drawn}):
        if name not in kept:
            lines.append(f"{folder / name}: it is missing; make reproduce PROFILE={profile} makes it")
        elif name not in drawn:
            lines.append(f"{folder / name}: no notebook makes it from the records")
        elif kept[name] != drawn[name]:
            lines.append(f"{folder / name}: differs from what the records give; delete it, and make draws it again")
    return lines


def read_tables(folder: Path) -> dict[str, str]:
    """The texts of the tables in `folder` by file name, without the line that says what each was drawn from."""
    drawn_from = re.compile(r"\s*<!-- drawn from .*-->\s*$")
    tables = (path for path in folder.iterdir() if path.suffix in (".md", ".csv"))
    return {path.name: drawn_from.sub("\n", path.read_text()) for path in tables}
