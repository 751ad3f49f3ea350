"""Makes tables, figures and records again under a temporary root, and compares them with those that are kept."""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from PIL import Image

from dwa_core import devices, training
from dwa_paper.report import product, results
from dwa_paper.runs import real, records, store, tasks, teachers
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

KINDS = ("teachers", "distilled", "data")  # of artifacts; what else lies beside them is none
FINISHED = "[!.]*/"  # not the folders that a run is filling
# How far a record made again may be from the first where device, precision, threads or torch differ: the accuracy of
# the student in points (in lite, seeds of one setting are up to 3.6 apart), that of its teacher, and diversity.
STUDENT_POINTS, TEACHER_POINTS, DIVERSITY = 4.0, 0.2, 0.02


def list_artifacts() -> list[Path]:
    """The folders of the local artifacts, those that `store.find` prefers first."""
    return [path for base in store.BASES for kind in KINDS for path in sorted((root() / base / kind).glob(FINISHED))]


def find_local(kind: str, name: str) -> Path | None:
    """The artifact's folder, damaged or not: `check_artifacts` looks at that."""
    folders = (root() / base / kind / name for base in store.BASES)
    return next((folder for folder in folders if (folder / "record.json").is_file()), None)


@contextlib.contextmanager
def make_scratch_root(profile: str) -> Iterator[Path]:
    """A temporary root with copies of the records of `profile`, and links to the local artifacts."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "results" / profile).mkdir(parents=True)
        for path in records.list_records(profile):
            shutil.copy(path, scratch / "results" / profile)
        for folder in list_artifacts():
            link = scratch / "artifacts" / folder.parent.name / folder.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(folder.resolve())
        yield scratch


def execute(scratch: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m dwa_paper` with these arguments under the root `scratch`."""
    variables = {**os.environ, "DWA_ROOT": str(scratch), **environment}
    command = [sys.executable, "-m", "dwa_paper", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def check_products(profile: str, found: dict[Path, dict]) -> list[str]:
    """Where tables and figures of `profile` differ from those that its records, `found`, give, one line each.

    Prints which figures could not be drawn as they were.
    """
    made_on = {record["device"].partition(",")[0] for record in found.values()}
    kept, lines, skipped = read_products(root(), profile), [], set()
    # What has records, and what somebody has asked for by its name.
    recorded = [setting for setting in files.list_runs(profile) if setting.record_path() in found]
    asked_for = {Path(name).stem for name in kept} & {*files.list_products()}
    with make_scratch_root(profile) as scratch:
        for name in sorted(asked_for | {*product.select_products(recorded)}):
            done = execute(scratch, "draw", name, "--profile", profile, HF_HUB_OFFLINE="1")
            if done.returncode != 0:
                lines.append(f"{name}: cannot be drawn again; {done.stderr.removeprefix('error: ').strip()}")
            elif reason := find_hindrance(name, profile, done.stdout, made_on):
                print(f"{name}: not compared; {reason}")
                skipped.add(name)
        drawn = read_products(scratch, profile)
    if lines:
        return lines
    for name in sorted(name for name in {*kept, *drawn} if Path(name).stem not in skipped):
        path = root() / name
        if name not in kept:
            lines.append(f"{path}: it is missing; make reproduce PROFILE={profile} makes it")
        elif name not in drawn:
            lines.append(f"{path}: no notebook makes it from the records; delete it")
        elif kept[name] != drawn[name]:
            lines.append(f"{path}: differs from what the records give; delete it, and make draws it again")
    return lines


def find_hindrance(name: str, profile: str, printed: str, made_on: set[str]) -> str | None:
    """Why the figure `name`, drawn again, may rightly differ from the one that is kept; None if it may not.

    Args:
        printed: what its notebook printed.
        made_on: the devices of the records.
    """
    svg = product.locate_files(name, profile)[0]
    if svg.suffix != ".svg" or not svg.is_file():
        return None
    if lacking := re.search(r".*not on this machine, so it is not drawn|no real images: .*", printed):
        return lacking[0]
    version = re.search(r"Matplotlib v([\w.]+)", svg.read_text(errors="replace"))
    if version and version[1] != matplotlib.__version__:
        return f"it was drawn by Matplotlib {version[1]}, and here is {matplotlib.__version__}"
    if name == "figure-tsne" and made_on != {devices.choose().describe().partition(",")[0]}:
        return f"its points depend on the processor; the records were made on {', '.join(sorted(made_on))}"
    return None


def read_products(base: Path, profile: str) -> dict[str, object]:
    """What is compared of the tables and figures under the root `base`, by path.

    Of a PNG file the pixels, None if it cannot be read; of the others the text, without what it was drawn from.
    """
    drawn_from = re.compile(r"\s*<!-- drawn from .*-->\s*$|<dc:source>.*?</dc:source>", re.DOTALL)
    found = {}
    for path in [*(base / "results" / profile).glob("*.*"), *(base / "figures" / profile).glob("*.*")]:
        name = str(path.relative_to(base))
        if path.suffix in (".md", ".csv", ".svg"):
            found[name] = drawn_from.sub("\n", path.read_text(errors="replace"))
        elif path.suffix == ".png":
            found[name] = None
            with contextlib.suppress(OSError), Image.open(path) as image:
                found[name] = (image.size, image.tobytes())
    return found


def diversity_differs(one: dict | None, other: dict | None) -> bool:
    """Whether two measurements of the diversity of one set differ; False where one is missing."""
    pairs = [(one.get(key), other.get(key)) for key in results.DIVERSITY] if one and other else []
    return any((a is None) != (b is None) or (a is not None and abs(a - b) > DIVERSITY) for a, b in pairs)


def check_records(profile: str, count: int, left_out: set[str]) -> list[str]:
    """Makes `count` records of `profile` again, drawn at random, with their stored teachers and distilled sets.

    Args:
        left_out: the files of records whose artifacts are not local.

    Returns: where they differ from the first, and where a teacher has another accuracy on the test images.
    """
    runs = [setting for setting in files.list_runs(profile) if setting.record_path().name not in left_out]
    found = [(setting, record) for setting in runs if (record := records.find_record(setting)) is not None]
    lines = []
    with make_scratch_root(profile) as scratch:
        for setting, record in random.sample(found, min(count, len(found))):
            path = setting.record_path()
            print(f"{path.name}: made again; its student took {record['seconds']['student']:.0f} s", flush=True)
            again = scratch / path.relative_to(root())
            again.unlink()
            threads = re.search(r"(\d+) threads$", record["device"])
            environment = {"OMP_NUM_THREADS": threads[1]} if threads else {}
            done = execute(scratch, "run", str(path.relative_to(root())), **environment)
            if done.returncode != 0:
                lines.append(f"{path}: cannot be made again; {done.stderr.removeprefix('error: ').strip()}")
                continue
            problems = [*find_changes(record, records.read_record(again)), *check_teachers(setting, record)]
            hint = "delete it and, if they were changed, its teacher and set; make makes them again"
            lines += [f"{path}: made again, {problem}; {hint}" for problem in problems]
    return lines


def find_changes(first: dict, again: dict) -> list[str]:
    """Where a record made again differs from the first: in any bit where it must agree in all, else by much.

    It must on the same kind of CPU, and on the same kind of GPU under `deterministic` alone: without it, the fastest
    kernel may differ from run to run.
    """
    exact = first["device"].endswith("threads") or first["setting"]["deterministic"]
    machines = [(record["device"], record["precision"], record["versions"]["torch"]) for record in (first, again)]
    lines = []
    for one, other in zip(records.list_students(first), records.list_students(again), strict=True):
        if exact and machines[0] == machines[1]:
            keys = [key for key in ("accuracy", "curve", "diversity") if key in one and one[key] != other[key]]
            lines += [f"it has another {key}" for key in keys]
            continue
        before, after = one["accuracy"]["reported"], other["accuracy"]["reported"]
        if abs(before - after) > STUDENT_POINTS:
            lines.append(f"its accuracy is {after}, not {before} (made again on: {machines[1]})")
        if diversity_differs(one.get("diversity"), other["diversity"]):
            lines.append("its set has another diversity")
    return lines


def check_teachers(setting: Setting, record: dict) -> list[str]:
    """Where the stored teachers of a record have another accuracy on the test images than it says."""
    precision = next(key for key, kind in devices.PRECISIONS.items() if str(kind).endswith(record["precision"]))
    compute, images, lines = devices.choose(setting.device, precision), setting.images, []
    whole = real.load(setting.dataset, images, compute.device, setting.ipc, setting.validation)
    parts = tasks.split_into_tasks(setting, whole)
    for part, student in zip(parts, records.list_students(record), strict=True):
        folder = find_local("teachers", student["teacher"]["artifact"])
        network = teachers.load(setting, len(part.classes), compute.device, folder)
        top1, _ = training.accuracy(network, part.test.test_batches(images.mean, images.std), compute)
        if abs(top1 - (said := student["teacher"]["accuracy"]["top1"])) > TEACHER_POINTS:
            lines.append(f"its teacher's accuracy is {top1}, not {said}")
    return lines
