"""How far the settings of a profile are: what `make status` prints.

    python -m dwa_core.status demo

done: recorded. running: its notebook is being executed. failed: its last execution ended with an error. stopped: it was
told to stop, or killed, and goes on when it is run again. waiting: not begun, as are settings that were refused before
any work. From the records and the executed notebooks alone.
"""

import json
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from dwa_core.errors import InputError
from dwa_paper.command import failed
from dwa_paper.runs.records import find_record
from dwa_paper.settings import files
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting, resolve

WIDTH = 100  # of a last line


def unfinished(executed: Path) -> Path:
    """Where the notebook that is to become `executed` lies while it is being executed."""
    return executed.with_name(f".{executed.name}")


def execution_lock(executed: Path) -> FileLock:
    """Held while the notebook `executed` is being executed, so that a reader knows a running one from a dead one."""
    return FileLock(executed.with_name(f".{executed.name}.lock"), fallback_to_soft=False)


def is_held(lock: FileLock) -> bool:
    """Whether another process holds `lock`."""
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def state_of(setting: Setting) -> tuple[str, str]:
    """One of the words above, and the last line of what the run said."""
    executed = root() / "results" / setting.profile / "executed" / f"{setting.name}-seed{setting.seed}.ipynb"
    if is_held(execution_lock(executed)):
        return "running", last_line(unfinished(executed))[0]
    line, error = last_line(executed)
    if find_record(setting) is not None:
        return "done", line
    if unfinished(executed).is_file():  # killed
        return "stopped", last_line(unfinished(executed))[0]
    if error:
        return ("stopped" if error.startswith("StoppedError") else "failed"), error
    return "waiting", ""


def last_line(notebook: Path) -> tuple[str, str]:
    """The last line that the cells printed, and the error that ended them; empty where there is none."""
    try:
        cells = json.loads(notebook.read_text())["cells"]
    except (OSError, ValueError, KeyError):
        return "", ""
    line = error = ""
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                said = "".join(output["text"]).replace("\r", "\n").split("\n")
                line = next((text.strip() for text in reversed(said) if text.strip()), line)
            elif output["output_type"] == "error":
                error = " ".join(f"{output['ename']}: {output['evalue']}".split())
    return line[:WIDTH], error[:WIDTH]


def main() -> int:
    profile = " ".join(sys.argv[1:])
    counts = {}
    try:
        files.check_profile(profile)
        for _, parameters in files.runs(files.files(profile)):
            setting = resolve(parameters)
            state, line = state_of(setting)
            counts[state] = counts.get(state, 0) + 1
            print(f"{state:8} {setting.name}-seed{setting.seed}" + (f"\n         {line}" if line else ""))
    except InputError as error:
        return failed(error, 2)
    print(f"{profile}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
