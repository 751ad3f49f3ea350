"""What a run costs before it starts, and what of a profile is done and missing.

    python -m dwa_core.plan paper

Hours come from the seconds in earlier records of the same networks at the same side on the same device, in
proportion to the images that pass through them; where there is no such record they are unknown. Bytes follow from
numbers of images and parameters.
"""

import shutil
import statistics
import sys
from collections import Counter, defaultdict
from typing import NamedTuple

from dwa_core import devices, models
from dwa_core.errors import InputError
from dwa_core.recipe import Training
from dwa_paper.command import failed
from dwa_paper.report import results
from dwa_paper.runs import sets, store, teachers
from dwa_paper.runs.real import describe_storage, place_for
from dwa_paper.runs.records import as_setting, read_record
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile
from dwa_paper.settings.presets import PRESETS
from dwa_paper.settings.schema import SYNTHESISED, Setting

CLASSES_IN_FULL = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet-1k": 1000}
STAGES = ("teacher", "synthesis", "student")


class Size(NamedTuple):
    """How many images and classes a data set has, and the fingerprint of the copy that records were made from."""

    training_images: int
    test_images: int
    classes: int
    fingerprint: str


def recorded() -> list[dict]:
    """Every record of every profile; of one that cannot be used, a printed line says so."""
    records = []
    for path in sorted((root() / "results").glob("*/*-seed*.json")):
        try:
            record = read_record(path)
            as_setting(record["setting"])
            good = all(field in record["data"] for field in Size._fields)
            good = good and all(isinstance(record["seconds"][stage], int | float) for stage in STAGES)
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if good:
            records.append(record)
        else:
            print(f"{path}: the record is left out here; it is damaged or of another form")
    return records


def size_recorded(record: dict) -> Size:
    """The data that `record` was made from."""
    return Size(*(record["data"][field] for field in Size._fields))


def sizes(records: list[dict]) -> dict[tuple[str, int, float], Size]:
    """By data set, side and share held out for validation: as the records have it, else as the whole is published."""
    found = {}
    for name, (training, test) in results.IMAGES_IN_FULL.items():
        preset = PRESETS[name]
        found[name, preset["images"]["side"], 0.0] = Size(training, test, CLASSES_IN_FULL[name], "not recorded yet")
    for record in records:
        setting = as_setting(record["setting"])
        found[setting.dataset, setting.images.side, setting.validation] = size_recorded(record)
    return found


def size_of(setting: Setting, known: dict[tuple[str, int, float], Size]) -> Size | None:
    """The size of what `setting` reads, of which a validation part may have to be held out yet; None if unknown."""
    exact = known.get((setting.dataset, setting.images.side, setting.validation))
    whole = known.get((setting.dataset, setting.images.side, 0.0))
    if exact is not None or whole is None:
        return exact
    held_out = round(setting.validation * whole.training_images)
    return Size(whole.training_images - held_out, held_out, whole.classes, f"{setting.validation} not recorded yet")


def device_kind(name: str) -> str:
    """A device as records call it, less the number of threads."""
    return name.rpartition(", ")[0] or name


# ------------------------------------------------------------------------------------------------- hours


def forward_passes(setting: Setting, size: Size) -> dict[str, float]:
    """The images that pass forward through a network in each stage; a pass backward counts as two."""

    def tests(stage: Training) -> int:
        return size.test_images * -(-stage.epochs // stage.test_every)

    synthetic = setting.ipc * size.classes
    # After each of several tasks a student is trained on the sets of the classes seen so far, and tested on those.
    students = (setting.tasks + 1) / 2
    trained = 3 * setting.teacher.epochs * size.training_images + tests(setting.teacher)
    return {
        "teacher": trained if setting.teacher.weights is None else size.test_images,
        "synthesis": 3 * synthetic * setting.synthesis.iterations if setting.method in SYNTHESISED else 0,
        "student": students * (4 * setting.relabel.epochs * synthetic + tests(setting.relabel)),
    }


def workload(setting: Setting, stage: str, device: str) -> tuple:
    """What must be the same for seconds per image to be the same, but for the number of images."""
    networks = (setting.network, setting.student) if stage == "student" else (setting.network,)
    return (stage, *networks, setting.stem, setting.images.side, setting.precision, device_kind(device))


def seconds_per_pass(records: list[dict]) -> dict[tuple, float]:
    """By workload: the median over the records. Sets of real images, which take no synthesis, tell nothing of it."""
    measured = defaultdict(list)
    for record in records:
        setting = as_setting(record["setting"])
        for stage, passes in forward_passes(setting, size_recorded(record)).items():
            if passes:
                measured[workload(setting, stage, record["device"])].append(record["seconds"][stage] / passes)
    return {key: statistics.median(values) for key, values in measured.items()}


def seconds(setting: Setting, size: Size | None, rates: dict[tuple, float], device: str) -> dict[str, float | None]:
    """The seconds of each stage on `device` if all have yet to be run; None where nothing was measured."""
    if size is None:
        return dict.fromkeys(STAGES)
    expected = {}
    for stage, passes in forward_passes(setting, size).items():
        rate = rates.get(workload(setting, stage, device))
        expected[stage] = 0.0 if not passes else None if rate is None else rate * passes
    return expected


def hours(expected: float | None) -> str:
    return "unknown" if expected is None else f"{expected / 3600:.2f}"


# ------------------------------------------------------------------------------- what one run costs


def costs(setting: Setting) -> list[str]:
    """Lines that say, before any work, what a run takes in disk, memory and hours, as far as that is known."""
    records = recorded()
    size = size_of(setting, sizes(records))
    compute = devices.choose(setting.device)
    device = compute.device
    expected = seconds(setting, size, seconds_per_pass(records), compute.describe())
    lines = [
        "hours on this device, if nothing of it is there yet: "
        + ", ".join(f"{stage} {hours(expected[stage])}" for stage in STAGES)
    ]
    if size is None:
        return [*lines, f"disk and memory: not known before {setting.dataset} has been read once"]
    networks = [
        models.outline(name, size.classes, setting.stem, setting.images.side)
        for name in (setting.network, setting.student)
    ]
    weights, student = (sum(parameter.numel() for parameter in network.parameters()) for network in networks)
    image = 3 * setting.images.side**2
    real, synthetic = (size.training_images + size.test_images) * image, setting.ipc * size.classes * image
    place = place_for(real, setting.images.side, device)
    free = gigabytes(shutil.disk_usage(existing(root())).free)
    decoded = "" if place == "files" else f", decoded real images {gigabytes(real)}"
    lines += [
        f"disk, of which {free} are free: teacher {gigabytes(2 * weights)}, distilled set at most "
        f"{gigabytes(synthetic)}, its checkpoint as much, the student's checkpoint {gigabytes(12 * student)}{decoded}",
        f"memory of the device: distilled images {gigabytes(synthetic)}, twice that of the host while they are read; "
        "what the networks need for their batches is not known beforehand",
        f"real images: {size.training_images + size.test_images:,}, "
        f"{describe_storage(real, setting.images.side, device, place)} by the memory that is free now",
    ]
    if place == "files":
        lines.append(
            "files are read in every epoch; Parquet files, from the hub or a folder, are copied once into the cache of "
            "the library datasets"
        )
    return lines


def existing(path):
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


# ---------------------------------------------------------------------------------- what is left to do


def main(profile: str) -> None:
    """Prints a line per setting: students done of those wanted, and the hours of what is missing."""
    check_profile(profile)
    records = recorded()
    known = sizes(records)
    rates = seconds_per_pass(records)
    device = devices.choose().describe()
    runs = results.runs_of(profile)
    by_name = defaultdict(list)
    for run in runs:
        by_name[run.setting["name"]].append(run)
    stored, total, unknown = {}, Counter(), 0
    print(f"{'hours: teacher':>14} {'synthesis':>9} {'students':>9}  done  setting")
    for name, group in by_name.items():
        setting = as_setting(group[0].setting)
        missing = sum(run.record is None for run in group)
        size = size_of(setting, known)
        shown = dict.fromkeys(STAGES, "")
        if missing:
            expected = seconds(setting, size, rates, device)
            if expected["student"] is not None:
                expected["student"] *= missing
            shared = set()
            # A teacher or set that is stored, or that an earlier line has counted, costs nothing.
            for stage, kind, artifact in artifacts(setting, size):
                if artifact not in stored:
                    stored[artifact] = store.find(kind, artifact) is not None
                elif not stored[artifact]:
                    shared.add(stage)
                if stored[artifact] or stage in shared:
                    expected[stage] = 0.0
            unknown += None in expected.values()
            total.update({stage: value or 0.0 for stage, value in expected.items()})
            shown = {stage: "shared" if stage in shared else hours(expected[stage]) for stage in STAGES}
        row = f"{shown['teacher']:>14} {shown['synthesis']:>9} {shown['student']:>9}"
        print(f"{row}  {len(group) - missing}/{len(group)}   {name}")
    done = sum(run.record is not None for run in runs)
    print(
        f"\n{profile}: {done} of {len(runs)} records are there. Missing, as far as measured on this device ({device}):"
    )
    measured = f"{sum(total.values()) / 3600:.1f}" if any(total.values()) or not unknown else "unknown"
    print(f"{measured} hours; for {unknown} settings at least one stage was never measured here.")
    print("Each teacher and each distilled set counts once, where it is first needed; below that it is shared.")


def artifacts(setting: Setting, size: Size | None) -> list[tuple[str, str, str]]:
    """Stage, kind and name of the teacher and the distilled set that a setting stands on.

    With several tasks there are several of each, whose names only their data give: here one name stands for all.
    """
    fingerprint = size.fingerprint if size else f"unknown, {setting.validation} held out"
    if setting.tasks > 1:
        fingerprint += f", {setting.tasks} tasks"
    trained, _ = teachers.describe(setting, fingerprint)
    made, _ = sets.describe(setting, fingerprint, trained)
    return [("teacher", "teachers", trained), ("synthesis", "distilled", made)]


if __name__ == "__main__":
    try:
        main(" ".join(sys.argv[1:]))
    except InputError as error:
        sys.exit(failed(error, 2))
