"""What Ray gains: the same settings one after another and by notebooks/fleet.py, one thread each.

    .venv/bin/python benchmarks/fleet.py settings/demo/digits-*-ipc2.yaml --workers 2

Prints the seconds of both and their ratio, and fails where two records differ in anything but their times. All is
made in a temporary folder from nothing, teachers included, so that both do the same work. The machine must be quiet.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dwa_core import settings_files

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TIMES = ("seconds", "finished")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time settings one after another and with Ray.")
    parser.add_argument("files", type=Path, nargs="+", help="settings/PROFILE/NAME.yaml, all of one profile")
    parser.add_argument("--workers", type=int, default=2, help="tasks at a time, at most the number of cores")
    given = parser.parse_args()
    runs = list(settings_files.runs(path.resolve() for path in given.files))
    profile = runs[0][1]["profile"]
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        folder = temporary / "settings" / profile
        folder.mkdir(parents=True)
        for path in given.files:
            shutil.copy(path, folder)
        serial = [
            [str(NOTEBOOKS / "run.py"), str(folder / path.name), "--seed", str(parameters["seed"])]
            for path, parameters in runs
        ]
        # So many cores to a task that as many tasks as there are workers fit on this machine.
        fleet = [str(NOTEBOOKS / "fleet.py"), str(folder), "--cpus-per-task", str(os.cpu_count() / given.workers)]
        run([serial[0]], temporary / "first")  # reads from disk what all the others then find in memory
        seconds = {"serial": run(serial, temporary / "serial"), "fleet": run([fleet], temporary / "fleet")}
        found = {name: records(temporary / name / "results" / profile) for name in seconds}
    same = found["serial"] == found["fleet"] and len(found["serial"]) == len(serial)
    print(f"{len(serial)} records, one after another: {seconds['serial']:.0f} s")
    print(f"{len(serial)} records, Ray with {given.workers} workers: {seconds['fleet']:.0f} s")
    print(f"speed-up {seconds['serial'] / seconds['fleet']:.2f}; records {'equal but for times' if same else 'DIFFER'}")
    return int(not same)


def run(commands: list[list[str]], root: Path) -> float:
    """Seconds that the commands take one after another, with one thread each, writing under `root`."""
    variables = {**os.environ, "DWA_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    for command in commands:
        code = subprocess.run(
            [sys.executable, *command], env=variables, check=False, stdout=subprocess.DEVNULL
        ).returncode
        if code != 0:
            sys.exit(code)  # it has said why
    return time.perf_counter() - start


def records(folder: Path) -> dict[str, dict]:
    """All records of `folder` by their names, without their times."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {name: {key: record[key] for key in record if key not in TIMES} for name, record in found.items()}


if __name__ == "__main__":
    sys.exit(main())
