"""What a run costs before it starts, and what of a profile is done and missing.

Hours come from the seconds in earlier records of the same networks at the same side on the same device, in
proportion to the images that pass through them; where there is no such record they are unknown. Bytes follow from
numbers of images and parameters.
"""

import shutil
import statistics
from collections import Counter, defaultdict

from tabulate import tabulate

from dwa_core import devices, models
from dwa_core.recipe import Training
from dwa_paper.runs import store
from dwa_paper.runs.real import describe_storage, place_for
from dwa_paper.runs.records import artifacts_called_for, as_setting, find_record, read_record
from dwa_paper.settings.datasets import DATASETS
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile, list_runs
from dwa_paper.settings.schema import SYNTHESISED, Setting

STAGES = ("teacher", "synthesis", "student")
DATA_FIELDS = ("training_images", "test_images", "classes", "fingerprint")


def read_records() -> list[tuple[Setting, dict]]:
    """Setting and content of every record of every profile; of one that cannot be used, a printed line says so."""
    records = []
    for path in sorted((root() / "results").glob("*/*-seed*.json")):
        try:
            record = read_record(path)
            setting = as_setting(record["setting"])
            usable = {*DATA_FIELDS} <= {*record["data"]}
            usable = usable and all(isinstance(record["seconds"][stage], int | float) for stage in STAGES)
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if usable:
            records.append((setting, record))
        else:
            print(f"{path}: skipped: damaged, or an older format")
    return records


def find_data(setting: Setting, records: list[tuple[Setting, dict]]) -> dict | None:
    """What a record says of the data that `setting` reads: the DATA_FIELDS. None if unknown.

    Without a record of the same data at the same side, from the data set as it is published, or from a record of the
    whole of which a part has to be held out for validation.
    """
    same = {
        other.validation: record["data"]
        for other, record in records
        if (other.dataset, other.images.side) == (setting.dataset, setting.images.side)
    }
    if setting.validation in same:
        return same[setting.validation]
    whole, row = same.get(0.0), DATASETS.get(setting.dataset)
    if whole is None and row is not None:
        whole = {**row._asdict(), "fingerprint": "not recorded yet"}
    if whole is None or setting.validation == 0:
        return whole
    held_out = round(setting.validation * whole["training_images"])
    return whole | {
        "training_images": whole["training_images"] - held_out,
        "test_images": held_out,
        "fingerprint": f"{setting.validation} not recorded yet",
    }


# ------------------------------------------------------------------------------------------------- hours


def count_passes(setting: Setting, data: dict) -> dict[str, float]:
    """The images that pass forward through a network in each stage; a pass backward counts as two."""

    def tests(stage: Training) -> int:
        return data["test_images"] * -(-stage.epochs // stage.test_every)

    synthetic = setting.ipc * data["classes"]
    # After each of several tasks a student is trained on the sets of the classes seen so far, and tested on those.
    students = (setting.tasks + 1) / 2
    trained = 3 * setting.teacher.epochs * data["training_images"] + tests(setting.teacher)
    return {
        "teacher": trained if setting.teacher.weights is None else data["test_images"],
        "synthesis": 3 * synthetic * setting.synthesis.iterations if setting.method in SYNTHESISED else 0,
        "student": students * (4 * setting.relabel.epochs * synthetic + tests(setting.relabel)),
    }


def workload_key(setting: Setting, stage: str, device: str) -> tuple:
    """What must be the same for the seconds per image to be the same; of the device, all except its threads."""
    networks = (setting.network, setting.student) if stage == "student" else (setting.network,)
    device = device.rpartition(", ")[0] or device
    return (stage, *networks, setting.stem, setting.images.side, setting.precision, device)


def measure_rates(records: list[tuple[Setting, dict]]) -> dict[tuple, float]:
    """The seconds per pass by `workload_key`: the median over the records. Sets that are not made do not count."""
    measured = defaultdict(list)
    for setting, record in records:
        for stage, passes in count_passes(setting, record["data"]).items():
            if passes:
                measured[workload_key(setting, stage, record["device"])].append(record["seconds"][stage] / passes)
    return {key: statistics.median(values) for key, values in measured.items()}


def estimate(setting: Setting, data: dict | None, rates: dict[tuple, float], device: str) -> dict[str, float | None]:
    """The seconds of each stage on `device` if all have yet to be run; None where nothing was measured."""
    if data is None:
        return dict.fromkeys(STAGES)
    expected = {}
    for stage, passes in count_passes(setting, data).items():
        rate = 0.0 if passes == 0 else rates.get(workload_key(setting, stage, device))
        expected[stage] = None if rate is None else rate * passes
    return expected


def format_hours(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds / 3600:.2f}"


# ------------------------------------------------------------------------------- what one run costs


def describe_costs(setting: Setting) -> list[str]:
    """Lines that say, before any work, what a run takes in disk, memory and hours, as far as that is known."""
    records, compute, side = read_records(), devices.choose(setting.device), setting.images.side
    data = find_data(setting, records)
    expected = estimate(setting, data, measure_rates(records), compute.describe())
    hours = ", ".join(f"{stage} {format_hours(expected[stage])}" for stage in STAGES)
    lines = [f"hours on this device, if nothing of it is there yet: {hours}"]
    if data is None:
        return [*lines, f"disk and memory: not known before {setting.dataset} has been read once"]
    weights, student = (
        sum(weight.numel() for weight in models.build_outline(name, data["classes"], setting.stem, side).parameters())
        for name in (setting.network, setting.student)
    )
    count = data["training_images"] + data["test_images"]
    real, synthetic = count * 3 * side**2, format_bytes(setting.ipc * data["classes"] * 3 * side**2)
    place = place_for(real, side, compute.device)
    free = shutil.disk_usage(next(folder for folder in (root(), *root().parents) if folder.exists())).free
    decoded = "" if place == "files" else f", decoded real images {format_bytes(real)}"
    lines += [
        f"disk, of which {format_bytes(free)} are free: teacher {format_bytes(2 * weights)}, distilled set at most "
        f"{synthetic}, its checkpoint as much, the student's checkpoint {format_bytes(12 * student)}{decoded}",
        f"memory of the device: distilled images {synthetic}, twice that of the host while they are read; what the "
        "networks need for their batches is not known beforehand",
        f"real images: {count:,}, {describe_storage(real, side, compute.device, place)} by the memory that is free now",
    ]
    if place == "files":
        lines.append(
            "files are read in every epoch; Parquet files, from the hub or a folder, are copied once into the cache of "
            "the library datasets"
        )
    return lines


def format_bytes(count: float) -> str:
    """`count` bytes as 3.4 kB, 3.4 MB or 3.4 GB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


# ---------------------------------------------------------------------------------- what is left to do


def print_plan(profile: str) -> None:
    """Prints how much of `profile` is done, the hours of what is missing, and a line per setting, finished last."""
    check_profile(profile)
    records, device, runs = read_records(), devices.choose().describe(), list_runs(profile)
    rates, missing = measure_rates(records), [setting for setting in runs if find_record(setting) is None]
    asked_for, left = (Counter(setting.name for setting in some) for some in (runs, missing))
    stored, rows, expected = {}, [], []
    for name, setting in {setting.name: setting for setting in missing}.items():
        data = find_data(setting, records)
        seconds = estimate(setting, data, rates, device)
        shares = {**share_to_make(setting, data, stored), "student": left[name]}
        for stage, share in shares.items():
            seconds[stage] = 0.0 if not share else seconds[stage] and seconds[stage] * share
        expected.append(seconds.values())
        cells = ["shared" if shares[stage] is None else format_hours(seconds[stage]) for stage in STAGES]
        rows.append([*cells, f"{asked_for[name] - left[name]}/{asked_for[name]}", name])
    rows += [["", "", "", f"{count}/{count}", name] for name, count in asked_for.items() if not left[name]]
    hours, unknown = sum(sum(filter(None, each)) for each in expected) / 3600, sum(None in each for each in expected)
    print(f"{profile}: {len(runs) - len(missing)} of {len(runs)} records are there.")
    total = f"{hours:.1f}" if hours or not unknown else "unknown"
    print(f"Hours of the others, as far as measured on this device ({device}): {total}")
    print(f"For {unknown} settings at least one stage was never measured here.")
    print("Each teacher and each distilled set counts once, where it is first needed; below that it is shared.\n")
    headers, align = ["hours: teacher", "synthesis", "students", "done", "setting"], ("right",) * 3 + ("left",) * 2
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=align))


def share_to_make(setting: Setting, data: dict | None, stored: dict[str, bool]) -> dict[str, float | None]:
    """The share of its teachers and of its distilled sets, one for each task, that `setting` is the first to need.

    Args:
        stored: whether the store has each artifact that was asked for before; those of `setting` are added.

    Returns: by stage; None where all that is missing is needed by an earlier setting too.
    """
    if data is None or data["classes"] % setting.tasks:  # the names then only tell the artifacts of settings apart
        text = f"unknown, {setting.validation} held out, {setting.tasks} tasks"
        data = {"fingerprint": text, "classes": setting.tasks}
    names = artifacts_called_for(setting, data)
    shares = {}
    for stage, kind, own in (("teacher", "teachers", names[::2]), ("synthesis", "distilled", names[1::2])):
        first = [name for name in own if name not in stored]
        stored |= {name: store.find(kind, name) is not None for name in first}
        new = sum(not stored[name] for name in first)
        shares[stage] = new / len(own) if new or all(stored[name] for name in own) else None
    return shares
