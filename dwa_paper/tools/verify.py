"""Whether what is stored is right: artifacts by checksums, records by artifacts and settings, tables by records.

docs/reliability.md says which changes by hand this finds, and which no check inside a repository can.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from dwa_core.errors import InputError, UserError
from dwa_paper.report import prose, results
from dwa_paper.runs import records, store
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import SYNTHESISED, Setting
from dwa_paper.tools import again

HINT = "delete it, or bring it back from git; make makes what is missing"


def verify(profile: str, rerun: int = 0) -> None:
    """Checks the local artifacts, and the records, tables and figures of `profile`; prints what it could not check.

    Args:
        rerun: how many records, drawn at random, are made again and compared.

    Raises:
        InputError: no such profile, or a negative `rerun`.
        UserError: it has no results yet.
        ExceptionGroup: of a UserError for each problem.
    """
    files.check_profile(profile)
    if rerun < 0:
        raise InputError(f"--rerun: {rerun} is not allowed; must be 0 or more")
    folder = root() / "results" / profile
    if not folder.is_dir():
        raise UserError(f"{folder}: there is nothing yet; make reproduce PROFILE={profile} makes it")
    found, unreadable = records.read_all(profile)
    problems, absent = check_artifacts() + check_runs(profile, found), find_absent(found)
    if wrong := unreadable + check_records(found):  # tables cannot be drawn from records that cannot be read
        problems += wrong
    else:
        incomplete = {path for paths in absent.values() for path in paths}
        problems += compare_records(found) + again.check_products(profile, found) + check_pages(profile)
        problems += again.check_records(profile, rerun, incomplete)
    for (kind, name), paths in absent.items():
        print(f"{kind}/{name}: not local, so not checked; make makes it; records that name it: {len(set(paths))}")
    print(records.describe_code(profile, found.values()))
    if problems:
        raise ExceptionGroup("verify", [UserError(line) for line in problems])
    print(f"{profile}: everything matches: {len(found)} records, their tables and figures and all local artifacts")


def check_artifacts() -> list[str]:
    """Problems of the local artifacts, one line each: their checksums, and the settings that gave them their names."""
    damage = {folder: store.find_damage(folder) for folder in again.list_artifacts()}
    return [f"{folder}: {problem}; {HINT}" for folder, problem in damage.items() if problem]


def check_runs(profile: str, found: dict[Path, dict]) -> list[str]:
    """One line for each run whose record in `found` is not that of its settings now, or was committed and is gone.

    Prints which runs have never had a record.
    """
    lines, waiting, committed = [], {}, list_committed(profile)
    for setting in files.list_runs(profile):
        path = setting.record_path()
        if not path.is_file() and path.name in committed:
            lines.append(f"{path}: it was committed and is gone; bring it back from git, or make makes it again")
        elif not path.is_file():
            waiting.setdefault(setting.name, []).append(str(setting.seed))
        elif path in found and records.find_record(setting) is None:
            lines.append(f"{path}: {describe_change(found[path]['setting'], setting)}; make makes it again")
    for name, seeds in waiting.items():
        print(f"{profile}: {name} has no record yet of seed {', '.join(seeds)}; make makes it")
    return lines


def describe_change(recorded: dict, setting: Setting) -> str:
    """In what the setting of a record, `recorded`, which is not `setting`, differs from it."""
    before, now = ({**each, **results.read_numbers(each)} for each in (recorded, setting.recorded()))
    changed = [key for key in now if before[key] != now[key] and not isinstance(now[key], dict)]
    texts = [f"{key} {before[key]}, and its settings give {now[key]} now" for key in changed]
    return "it has " + ("; ".join(texts) or "weights or a distilled set of your own that have changed")


def list_committed(profile: str) -> set[str]:
    """The names of the files in results/PROFILE that were ever committed; none where there is no git."""
    history = ["log", "--format=", "--name-only", "--no-renames", "--diff-filter=A", "--", f"results/{profile}"]
    try:
        done = subprocess.run(["git", "-C", root(), *history], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return set()
    return {Path(line).name for line in done.stdout.splitlines()}


def name_student(record: dict) -> list:
    """Of a record's setting, what always changes the curve of a student that learns from the same images."""
    setting, stage = record["setting"], record["setting"]["relabel"]
    keys = ["labels", "mixing", "mixing_alpha", "optimizer", "learning_rate", "weight_decay", "crop"]
    if stage["labels"] != "hard":
        keys += ["temperature", "teacher_batch_statistics"]
    images_per_step = min(stage["batch_size"], setting["ipc"] * record["data"]["classes"])
    return [setting["seed"], setting["student"], images_per_step, *map(stage.get, keys)]


def compare_records(found: dict[Path, dict]) -> list[str]:
    """Where two records have one curve, but other students, teachers or sets; or one set, but another diversity."""
    lines, curves, measured = [], {}, {}
    for path, record in found.items():
        for student in records.list_students(record):
            made_from = (student["teacher"]["artifact"], student["distilled"]["artifact"])
            run = (name_student(record), *made_from)
            curve = tuple(entry.get("loss") for entry in student["curve"])
            first, other = curves.setdefault(curve, (path, run))
            if run != other:
                lines.append(f"{path}: its curve is that of {first}, which is another run; delete the copy of the two")
            diversity = student.get("diversity")
            first, other = measured.setdefault(made_from, (path, diversity)) if diversity else (path, diversity)
            if again.diversity_differs(diversity, other):
                lines.append(f"{path}: its diversity is not that of {first}, which has its set; delete the wrong one")
    return [f"{line}; make makes it again" for line in lines]


def find_absent(found: dict[Path, dict]) -> dict[tuple[str, str], list[str]]:
    """Kind and name of the artifacts that records name and that are not local, with those records.

    That is no error, but they cannot be checked. Sets of real images, drawn again in a moment, are left out.
    """
    named = records.map_artifacts(found, (*SYNTHESISED, "external"))
    return {artifact: paths for artifact, paths in named.items() if again.find_local(*artifact) is None}


def check_records(found: dict[Path, dict]) -> list[str]:
    """Problems of records, one line each."""
    lines = []
    for path, record in found.items():
        try:
            lines += [f"{path}: {problem}; {HINT}" for problem in check_record(path, record)]
        except InputError as error:
            lines.append(f"{path}: its {error}; bring it back")
    return lines


def check_record(path: Path, record: dict) -> Iterator[str]:
    """What is wrong with the record at `path`.

    Its settings and the fingerprint of its data determine the names of its teachers and its distilled sets, and those
    must be the ones it names. Where artifacts are local, their checksums must be the ones it holds. Its accuracies
    must be those of its curves, and each a whole number of test images.

    Raises:
        InputError: the user's own weights or distilled set cannot be read.
    """
    setting = records.parse_setting(record["setting"])
    if path != setting.record_path():
        yield f"its settings belong to {setting.record_path()}"
    called_for = records.name_artifacts(setting, record["data"])
    for expected, named in zip_longest(called_for, records.list_named_artifacts(record)):
        if expected != named:
            yield f"its settings call for {expected}, it names {named}"
    if record["accuracy"] != (last := records.list_students(record)[-1]["accuracy"]):
        yield f"its accuracy is not that after its last task, {last}"
    tests = record["data"]["test_images"] if setting.tasks == 1 else None
    for student in records.list_students(record):
        yield from compare_artifacts(student, record["versions"])
        yield from check_curve(setting, student)
        tested = [student["teacher"]["accuracy"], *student["curve"]] if tests else []
        for share in (entry[key] for entry in tested for key in ("top1", "top5") if key in entry):
            if abs(share - 100 * round(share * tests / 100) / tests) >= 0.0006:  # stored with three decimals
                yield f"{share} % is no share of {tests} test images"


def compare_artifacts(student: dict, versions: dict) -> Iterator[str]:
    """Where what a record says of a student's teacher and distilled set differs from the local ones.

    Not compared are the files of real images that other libraries than the record's, `versions`, drew again here: the
    same pixels are other bytes in Parquet.
    """
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        named = student[part]
        if (folder := again.find_local(kind, named["artifact"])) is None:
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged, as check_artifacts says
            stored = store.read_json(folder / "record.json")
            differing = {name for name, _ in stored["files"].items() ^ named["files"].items()}
            real = part == "distilled" and stored["settings"]["method"] not in (*SYNTHESISED, "external")
            redrawn = real and stored["versions"] != versions
            if differing - {"README.md"} and not redrawn:  # the card of real images may be in other words too
                yield f"{folder} has other checksums than it names"
            if part == "teacher" and stored["accuracy"] != named["accuracy"]:
                yield f"its teacher's accuracy is {named['accuracy']}, that of {folder} is {stored['accuracy']}"


def check_curve(setting: Setting, student: dict) -> Iterator[str]:
    """Where a student's curve differs from its accuracies and its number of epochs."""
    tested = [entry for entry in student["curve"] if "top1" in entry] or [{"top1": None, "top5": None}]
    last, best = tested[-1]["top1"], max(entry["top1"] for entry in tested)
    expected = {"last": last, "best": best, "reported": best if setting.relabel.reported == "best" else last}
    expected["top5"] = tested[-1]["top5"]
    if not expected.items() <= student["accuracy"].items():
        yield f"its accuracy is {student['accuracy']}, by its curve {expected}"
    if len(student["curve"]) != setting.relabel.epochs:
        yield f"its curve has {len(student['curve'])} epochs, its settings {setting.relabel.epochs}"


def check_pages(profile: str) -> list[str]:
    """The numbers that README and docs/ quote wrongly, one line each, if they quote `profile` at all."""
    quoted = re.compile(rf"<!-- (?=[a-z])[^<>\n]*\b{re.escape(profile)}\b")
    if not any(quoted.search(page.read_text()) for page in prose.pages()):
        return []
    try:
        return [f"{line}; make docs writes it again" for line in prose.find_differences()]
    except InputError as error:
        return [str(error)]
