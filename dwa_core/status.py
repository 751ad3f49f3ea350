"""How far the settings of a profile are: what `make status` prints.

    python -m dwa_core.status demo

done: recorded. running: its notebook is being executed. failed, stopped: its last execution ended with an error, or
without an end. waiting: not begun. From the records and the executed notebooks alone.
"""

import json
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from dwa_core import settings

WIDTH = 100  # of a last line


def execution_lock(executed: Path) -> FileLock:
    """Held while the notebook `executed` is being executed, so that a reader knows a running one from a dead one."""
    return FileLock(executed.with_name(f".{executed.name}.lock"))


def is_held(lock: FileLock) -> bool:
    """Whether another process holds `lock`."""
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def state_of(setting: settings.Setting) -> tuple[str, str]:
    """One of the words above, and the last line of what the run said."""
    executed = settings.root() / "results" / setting.profile / "executed" / f"{setting.name}-seed{setting.seed}.ipynb"
    running = executed.parent.is_dir() and is_held(execution_lock(executed))
    line, error, ended = last_line(executed)
    if running:
        return "running", line
    if setting.record_path().is_file():
        return "done", line
    if error:
        return "failed", error
    if executed.is_file():
        return ("failed" if ended else "stopped"), line
    return "waiting", ""


def last_line(executed: Path) -> tuple[str, str, bool]:
    """The last line that the cells printed, the error that ended them, and whether papermill came to an end."""
    try:
        notebook = json.loads(executed.read_text())
    except (OSError, ValueError):
        return "", "", False
    line = error = ""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                said = "".join(output["text"]).replace("\r", "\n").split("\n")
                line = next((text.strip() for text in reversed(said) if text.strip()), line)
            elif output["output_type"] == "error":
                error = " ".join(f"{output['ename']}: {output['evalue']}".split())
    return line[:WIDTH], error[:WIDTH], bool(notebook["metadata"].get("papermill", {}).get("end_time"))


def main() -> int:
    profile = sys.argv[1]
    counts = {}
    try:
        settings.check_profile(profile)
        for path in sorted((settings.SETTINGS / profile).glob("*.yaml")):
            parameters = settings.read(path)
            for seed in parameters.get("seeds", [0]):
                setting = settings.resolve({**parameters, "seed": seed})
                state, line = state_of(setting)
                counts[state] = counts.get(state, 0) + 1
                print(f"{state:8} {setting.name}-seed{seed}" + (f"\n         {line}" if line else ""))
    except settings.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{profile}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
