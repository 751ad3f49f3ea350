"""How far the runs of a profile are, and what of it is missing: what `make status` prints and what make makes.

done: recorded. running: its notebook is being executed. failed: its last execution ended with an error. stopped: by a
signal or a time budget, or killed; it continues when it is run again. waiting: not begun, as are settings that were
refused before any work. From the records and the executed notebooks alone.
"""

import json
from collections import Counter
from pathlib import Path

from filelock import FileLock, Timeout

from dwa_core.errors import InputError
from dwa_paper.report import product
from dwa_paper.runs.records import find_record
from dwa_paper.runs.runner import execution_lock, unfinished
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

WIDTH = 100  # of a last line


def print_missing(profile: str, products: list[str]) -> None:
    """Prints what is missing of `products`, or of all that `profile` asks for, as make targets, one a line.

    Table 1 comes first, and every table or figure as soon as its records are listed. Whether a record is current is
    decided from its content: one of other numbers than its setting has now counts as missing.
    """
    files.check_profile(profile)
    known = files.list_products()
    for name in products:
        if name not in known:
            raise InputError(f"{name}: no table or figure of this name; allowed: {', '.join(known)}")
    runs = files.list_runs(profile)
    missing = [setting for setting in runs if find_record(setting) is None]
    paths = []
    wanted = {name: product.shows_all_runs(name) for name in products or product.products(runs)}
    for name in sorted(wanted, key=lambda name: (wanted[name], name != "table-1")):
        # What shows all runs comes last, after their records; asked for by its name, it shows those that are there.
        waits_for_all = wanted[name] and not products
        records = [setting.record_path() for setting in missing if waits_for_all or name in setting.shown_in]
        paths += records
        if records or not product.is_current(name, profile, runs):
            paths.append(product.files_of(name, profile)[0])
    for path in dict.fromkeys(paths):  # each once
        print(path.relative_to(root()))


def print_states(profile: str) -> None:
    """Prints the state of every run of `profile` and the last line that it printed, and how many are in each state."""
    files.check_profile(profile)
    counts = Counter()
    for setting in files.list_runs(profile):
        state, line = find_state(setting)
        counts[state] += 1
        print(f"{state:8} {setting.name}-seed{setting.seed}" + (f"\n         {line}" if line else ""))
    print(f"{profile}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))


def find_state(setting: Setting) -> tuple[str, str]:
    """One of the words above, and the last line that the run printed."""
    executed = root() / "results" / setting.profile / "executed" / f"{setting.name}-seed{setting.seed}.ipynb"
    (line, error), (line_so_far, _) = read_end(executed), read_end(unfinished(executed))
    if is_held(execution_lock(executed)):
        return "running", line_so_far
    if find_record(setting) is not None:
        return "done", line
    if unfinished(executed).is_file():  # killed
        return "stopped", line_so_far
    if error:
        return ("stopped" if error.startswith("StoppedError") else "failed"), error
    return "waiting", ""


def is_held(lock: FileLock) -> bool:
    """Whether another process holds `lock`."""
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def read_end(notebook: Path) -> tuple[str, str]:
    """The last line that the cells of `notebook` printed, and the error that ended them; empty where there is none."""
    try:
        cells = json.loads(notebook.read_text())["cells"]
    except (OSError, ValueError, KeyError):
        return "", ""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    lines = ["", *filter(str.strip, printed.splitlines())]
    errors = ["", *(f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error")]
    return lines[-1].strip()[:WIDTH], " ".join(errors[-1].split())[:WIDTH]
