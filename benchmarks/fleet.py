"""What Ray gains: the same settings one after another and with `fleet`, one thread each.

    .venv/bin/python benchmarks/fleet.py settings/mine/*.yaml --workers 2

Prints the seconds of both and their ratio, and fails where two records differ in anything except their times. All is
made in a temporary folder from nothing, teachers included, so that both do the same work. The machine must be quiet.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dwa_paper.settings.files import find_runs

TIMES = ("seconds", "finished")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time settings one after another and with Ray.")
    parser.add_argument("settings", nargs="+", help="settings/PROFILE/NAME.yaml or results/PROFILE/NAME.json")
    parser.add_argument("--workers", type=int, default=2, help="tasks at a time, at most the number of cores")
    given = parser.parse_args()
    count = sum(len(find_runs(setting)) for setting in given.settings)
    serial = [["run", setting] for setting in given.settings]
    # So many cores to a task that as many tasks as there are workers fit on this machine.
    fleet = [["fleet", *given.settings, "--cpus-per-task", str(os.cpu_count() / given.workers)]]
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        run(serial[:1], temporary / "first")  # reads from disk what all the others then find in memory
        seconds = {"serial": run(serial, temporary / "serial"), "fleet": run(fleet, temporary / "fleet")}
        found = {name: read_records(temporary / name) for name in seconds}
    same = found["serial"] == found["fleet"] and len(found["serial"]) == count
    print(f"{count} records, one after another: {seconds['serial']:.0f} s")
    print(f"{count} records, Ray with {given.workers} workers: {seconds['fleet']:.0f} s")
    print(
        f"speed-up {seconds['serial'] / seconds['fleet']:.2f}; records {'equal except for times' if same else 'DIFFER'}"
    )
    return int(not same)


def run(commands: list[list[str]], root: Path) -> float:
    """Seconds that the commands take one after another, with one thread each, writing under `root`."""
    variables = {**os.environ, "DWA_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "dwa_paper", *command], env=variables, check=False, stdout=subprocess.DEVNULL
        )
        if done.returncode != 0:
            sys.exit(done.returncode)  # it has printed why
    return time.perf_counter() - start


def read_records(root: Path) -> dict[str, dict]:
    """All records under `root` by their names, without their times."""
    found = {path.name: json.loads(path.read_text()) for path in root.glob("results/*/*.json")}
    return {name: {key: record[key] for key in record if key not in TIMES} for name, record in found.items()}


if __name__ == "__main__":
    sys.exit(main())
