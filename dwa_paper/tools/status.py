"""How far the runs of a profile are, and what of it is missing: what `make status` prints and what make makes.

running: its notebook is being executed. failed: its last execution ended with an error. stopped: by a signal or a time
budget, or killed; it continues when it is run again. waiting: not begun, as are settings that were refused before any
work. done: recorded. From the records and the logs alone.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from filelock import FileLock, Timeout

from dwa_core.errors import InputError, suggest
from dwa_paper.report import product
from dwa_paper.runs.records import describe_code, find_missing, find_record, read_all
from dwa_paper.runs.runner import make_lock
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

STATES = ("running", "failed", "stopped", "waiting", "done")
WIDTH = 100  # of a last line


def print_missing(profile: str, products: list[str]) -> None:
    """Prints what is missing of `products`, or of all that `profile` asks for, as make targets, one a line.

    The first line is STEPS, how many records, tables and figures they make; one target makes all the records that a
    setting lacks. Table 1 comes first, and every table or figure as soon as its records are listed. Whether a record is
    current is decided from its content: one of other numbers than its setting has now counts as missing.
    """
    files.check_profile(profile)
    known = files.list_products()
    for name in products:
        if name not in known:
            raise InputError(f"{name}: no table or figure of this name; {suggest(name, known)}")
    runs = files.list_runs(profile)
    missing = find_missing(runs)
    steps, targets = set(), {}  # in their order
    wanted = {name: product.shows_all_runs(name) for name in products or product.select_products(runs)}
    for name in sorted(wanted, key=lambda name: (wanted[name], name != "table-1")):
        # What shows all runs comes last, after their records; asked for by its name, it shows those that are there.
        waits_for_all = wanted[name] and not products
        records = [setting for setting in missing if waits_for_all or name in setting.shown_in]
        steps |= {setting.record_path() for setting in records}
        targets |= dict.fromkeys(f"results/{profile}/{setting.name}.json" for setting in records)
        if records or not product.is_current(name, profile, runs):
            path = product.locate_files(name, profile)[0]
            steps.add(path)
            targets[path.relative_to(root())] = None
    if not targets:
        return print(f"{profile}: nothing is missing", file=sys.stderr)
    print(f"STEPS={len(steps)}", *targets, sep="\n")
    records = sum(path.suffix == ".json" for path in steps)
    print(f"{profile}: {records} records, {len(steps) - records} tables and figures are to be made", file=sys.stderr)
    print(f"logs: results/{profile}/executed/; to see how far each is: make status PROFILE={profile}", file=sys.stderr)


def print_states(profile: str) -> None:
    """Prints how many runs of `profile` are in each state, and of each that is not done its state and last line."""
    files.check_profile(profile)
    states = {f"{setting.name}-seed{setting.seed}": find_state(setting) for setting in files.list_runs(profile)}
    counts = Counter(state for state, _ in states.values())
    print(f"{profile}: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    if found := read_all(profile)[0]:
        print(describe_code(profile, found.values()))
    for state in STATES[:-1]:
        for name in [name for name in states if states[name][0] == state]:
            print(f"{state:8} {name}" + (f"\n         {states[name][1]}" if states[name][1] else ""))


def find_state(setting: Setting) -> tuple[str, str]:
    """One of STATES, and the last line that the run printed, or how it ended."""
    folder, own = root() / "results" / setting.profile / "executed", f"{setting.name}-seed{setting.seed}"
    executions = [folder / f"{name}.ipynb" for name in (own, setting.name)]  # alone, or with the setting's other seeds
    if find_record(setting) is not None:
        return "done", ""
    for executed in executions:
        if is_held(make_lock(executed)):
            return "running", read_end(executed.with_suffix(".log"))[0]
    logs = [log for executed in executions if (log := executed.with_suffix(".log")).is_file()]
    if not logs:
        return "waiting", ""
    line, ended, why = read_end(max(logs, key=lambda log: log.stat().st_mtime))
    if ended == "done":  # with other numbers than its setting has now
        return "waiting", ""
    return (ended, why) if ended else ("stopped", line)  # killed


def is_held(lock: FileLock) -> bool:
    """Whether another process holds `lock`."""
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def read_end(log: Path) -> tuple[str, str, str]:
    """The last line that a run printed to its log, and as its end "done", "stopped", "failed" or "", and why."""
    lines = [line.strip()[:WIDTH] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = re.fullmatch(r"=== (done|stopped|failed)(?: in|:) (.*)", lines[-1]) if lines else None
    printed = lines[:-1] if ended else lines
    return (printed or [""])[-1], *(ended.groups() if ended else ("", ""))
