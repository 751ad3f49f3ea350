"""What a run costs before it starts, and what of a profile is done and missing.

Hours come from the seconds in earlier records of the same networks at the same side on the same device, in proportion
to their FLOP; where there is no such record, `print_plan` estimates them by the speed of the device. Bytes follow from
numbers of images, parameters, and activations.
"""

import shutil
import statistics
from collections import Counter, defaultdict

from tabulate import tabulate

from dwa_core import devices
from dwa_core.errors import InputError, quote
from dwa_paper.runs import store
from dwa_paper.runs.real import choose_place, describe_storage
from dwa_paper.runs.records import distinguish_artifacts, find_missing, parse_setting, read_all
from dwa_paper.runs.sources import RESIDENT_SIDE
from dwa_paper.settings.datasets import DATASETS
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile, list_runs
from dwa_paper.settings.schema import Setting
from dwa_paper.tools import flops

STAGES = ("teacher", "synthesis", "student")
DECODED_PER_SECOND = 16 * 200  # JPEG files of some 100 kB, with as many workers as a run has at most


def read_records() -> list[tuple[Setting, dict]]:
    """Setting and content of every record of every profile; of one that cannot be used, a printed line says so."""
    found, unreadable = read_all()
    for line in unreadable:
        print(line)
    return [(parse_setting(record["setting"]), record) for record in found.values()]


def find_data(setting: Setting, records: list[tuple[Setting, dict]]) -> dict | None:
    """What a record says of the data that `setting` reads. None if unknown.

    Without a record of the same data at the same side, from the data set as it is published, or from a record of the
    whole of which a part has to be held out for validation.
    """
    row, wanted = DATASETS.get(setting.dataset), (setting.dataset, setting.images.side)
    known = {0.0: {**row._asdict(), "fingerprint": "not recorded yet"}} if row else {}  # by the share held out
    for other, record in records:
        if (other.dataset, other.images.side) == wanted:
            known[other.validation] = record["data"]
    if setting.validation in known or 0.0 not in known:
        return known.get(setting.validation)
    whole, fingerprint = known[0.0], f"{setting.validation} not recorded yet"
    held_out = round(setting.validation * whole["training_images"])
    left = whole["training_images"] - held_out
    return whole | {"training_images": left, "test_images": held_out, "fingerprint": fingerprint}


def identify_workload(setting: Setting, stage: str, device: str) -> tuple:
    """What must be the same for the seconds per FLOP to be the same; of the device, all except its threads."""
    networks = (setting.network,)
    if stage == "student":
        networks = (setting.student, *(networks if setting.relabel.labels == "teacher" else ()))
    return (stage, *networks, setting.stem, setting.images.side, setting.precision, flops.identify(device))


def measure_rates(records: list[tuple[Setting, dict]], settings: list[Setting], device: str) -> dict[tuple, float]:
    """The seconds per FLOP on `device` of what `settings` do, by `identify_workload`: the median over the records.

    Sets that are not made do not count.
    """
    wanted = {identify_workload(setting, stage, device) for setting in settings for stage in STAGES}
    measured = defaultdict(list)
    for setting, record in records:
        for stage in STAGES:
            key = identify_workload(setting, stage, record["device"])
            if key in wanted and (flop := flops.count_flop(setting, stage, record["data"])):
                measured[key].append(record["seconds"][stage] / flop)
    return {key: statistics.median(values) for key, values in measured.items()}


def estimate(setting: Setting, data: dict | None, rates: dict[tuple, float], device: str) -> dict[str, float | None]:
    """The seconds of each stage on `device` if all have yet to be run; None where nothing was measured."""
    if data is None:
        return dict.fromkeys(STAGES)
    expected = {}
    for stage in STAGES:
        flop = flops.count_flop(setting, stage, data)
        rate = rates.get(identify_workload(setting, stage, device)) if flop else 0.0
        expected[stage] = None if rate is None else rate * flop
    return expected


def format_hours(seconds: float | None) -> str:
    """Seconds as hours, to hundredths, or to thousandths below a tenth."""
    return "unknown" if seconds is None else f"{seconds / 3600:.{2 if seconds >= 360 else 3}f}" if seconds else "0"


def describe_costs(setting: Setting) -> list[str]:
    """Lines that say, before any work, what a run takes in disk, memory and hours, as far as that is known."""
    records, compute, side = read_records(), devices.choose(setting.device), setting.images.side
    data = find_data(setting, records)
    rates = measure_rates(records, [setting], compute.describe())
    if data is None:
        return [f"hours, disk and memory: not known before {setting.dataset} has been read once"]
    expected = estimate(setting, data, rates, compute.describe())
    hours = {stage: format_hours(seconds) for stage, seconds in expected.items()}
    if unknown := [stage for stage in STAGES if expected[stage] is None]:
        speed, reason = flops.find_speed("here")
        guessed = {stage: flops.count_flop(setting, stage, data) / speed for stage in unknown}
        hours |= {stage: f"~{format_hours(seconds)}" for stage, seconds in guessed.items()}
    lines = [f"hours on this device, if nothing of it is there yet: {', '.join(map(' '.join, hours.items()))}"]
    lines += [f"~: estimated, at {reason}"] if unknown else []
    teacher, student = flops.count_both(setting, data)
    peak = format_bytes(flops.count_memory(setting, data, compute.precision.itemsize))
    count = data["training_images"] + data["test_images"]
    real, synthetic = count * 3 * side**2, format_bytes(setting.ipc * data["classes"] * 3 * side**2)
    place = choose_place(real, side, compute.device)
    free = shutil.disk_usage(next(folder for folder in (root(), *root().parents) if folder.exists())).free
    decoded = "" if place == "files" else f", decoded real images {format_bytes(real)}"
    lines += [
        f"disk, of which {format_bytes(free)} are free: teacher {format_bytes(2 * teacher.parameters)}, distilled set "
        f"at most {synthetic}, its checkpoint as much, the student's checkpoint {format_bytes(12 * student.parameters)}"
        f"{decoded}",
        f"memory of the device: about {peak}, with distilled images {synthetic}; of the host: twice these images",
        f"real images: {count:,}, {describe_storage(real, side, compute.device, place)} by the memory that is free now",
    ]
    if place == "files":
        lines.append("files are read in every epoch; Parquet files, from the hub or a folder, are copied once to disk")
    return lines


def format_bytes(count: float) -> str:
    """`count` bytes as 3.4 kB, 3.4 MB or 3.4 GB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


def print_plan(profile: str, device: str = "here") -> None:
    """Prints how much of `profile` is done, the hours of what is missing, and a line per setting, finished last.

    Args:
        device: which the hours are for: one of flops.DEVICES, or "here".
    """
    check_profile(profile)
    if device not in ("here", *flops.DEVICES):
        raise InputError(f"device: {quote(device)} is not known; allowed: here, {', '.join(flops.DEVICES)}")
    device = devices.choose().describe() if device == "here" else device
    records, runs = read_records(), list_runs(profile)
    missing = find_missing(runs)
    rates = measure_rates(records, missing, device)
    asked_for, left = (Counter(setting.name for setting in some) for some in (runs, missing))
    stored, rows, totals, planned = {}, [], Counter(), []
    for name, setting in {setting.name: setting for setting in missing}.items():
        data = find_data(setting, records)
        expected, cells = estimate(setting, data, rates, device), []
        shares = {**find_shares(setting, data, stored), "student": left[name]}
        for stage, share in shares.items():
            seconds, mark = expected[stage] if share else 0.0, ""
            if seconds is None and data is not None:
                seconds, mark = flops.count_flop(setting, stage, data) / flops.find_speed(device)[0], "~"
            if seconds and share:
                seconds *= share
                totals += Counter({stage: seconds, mark: seconds})
            cells.append("shared" if share is None else mark + format_hours(seconds))
        rows.append([*cells, f"{asked_for[name] - left[name]}/{asked_for[name]}", name])
        planned += [] if data is None else [(setting, data, shares)]
    done = f"{len(runs) - len(missing)}/{len(runs)}"
    rows.insert(0, [*(format_hours(totals[stage]) for stage in STAGES), done, "all"])
    rows += [["", "", "", f"{count}/{count}", name] for name, count in asked_for.items() if not left[name]]
    print(f"{profile}: {len(runs) - len(missing)} of {len(runs)} records are there.")
    print(f"Hours of the others on {device}: {totals[''] / 3600:.1f} by records of the same networks on it.")
    if totals["~"]:
        print(f"Estimated beside them, and marked ~: {totals['~'] / 3600:.1f}, at {flops.find_speed(device)[1]}.")
    if len(planned) < len(left):
        print(f"Unknown, for their data were not read yet: those of {len(left) - len(planned)} settings.")
    if planned:
        print(describe_needs(planned))
    print("Each teacher and each distilled set counts once, where it is first needed; below that it is shared.\n")
    headers, align = ["hours: teacher", "synthesis", "students", "done", "setting"], ("right",) * 3 + ("left",) * 2
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=align))


def describe_needs(planned: list[tuple[Setting, dict, dict]]) -> str:
    """What settings, of which the data are known, need beside hours; the dicts are the data and the shares to run."""
    disk, peak, name, decoded = 0.0, 0, "", 0
    for setting, data, shares in planned:
        images = setting.ipc * data["classes"] * 3 * setting.images.side**2
        weights = 2 * flops.count_both(setting, data)[0].parameters
        disk += images * (shares["synthesis"] or 0) + weights * (shares["teacher"] or 0)
        peak, name = max((peak, name), (flops.count_memory(setting, data), setting.name))
        decoded += flops.count_tested(setting.relabel, data) * shares["student"] * (setting.images.side > RESIDENT_SIDE)
    largest = f"about {format_bytes(peak)} of GPU memory, for {name}"
    hours = f"{decoded / DECODED_PER_SECOND / 3600:.1f}"
    files = f"; to decode {decoded:,} test images from files, {hours} more hours of 16 CPU cores" if decoded else ""
    return f"They need at most {format_bytes(disk)} of disk beside data sets; {largest}{files}."


def find_shares(setting: Setting, data: dict | None, stored: dict[str, bool]) -> dict[str, float | None]:
    """The share of its teachers and of its distilled sets, one for each task, that `setting` is the first to need.

    Args:
        stored: whether the store has each artifact that was asked for before; those of `setting` are added.

    Returns: by stage; None where all that is missing is needed by an earlier setting too.
    """
    names = distinguish_artifacts(setting, data)
    shares = {}
    for stage, kind, own in (("teacher", "teachers", names[::2]), ("synthesis", "distilled", names[1::2])):
        first = [name for name in own if name not in stored]
        stored |= {name: store.find(kind, name) is not None for name in first}
        new = sum(not stored[name] for name in first)
        shares[stage] = new / len(own) if new or all(stored[name] for name in own) else None
    return shares
