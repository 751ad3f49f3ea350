"""Runs one notebook through papermill: what `make` calls for each record, table and figure.

    python notebooks/run.py settings/demo/digits-dwa-ipc10.yaml --seed 1
    python notebooks/run.py notebooks/table_01.ipynb --profile demo

Exit codes: 0 done, 1 the notebook failed, 2 the input cannot be used, 128 + N stopped by signal N.
DWA_DEBUG=1 shows tracebacks.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import psutil
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError

from dwa_core import settings
from dwa_core.status import execution_lock

NOTEBOOKS = Path(__file__).parent
KERNEL_ENVIRONMENT = {
    "TQDM_MININTERVAL": "10",  # seconds between lines of progress, so that a log stays short
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning of the debugger's at every start
    # Keep freed memory instead of returning it: 27 % off a training step of ConvNet-128 on two cores.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
OWN_PROFILE = ("walkthrough", "your_own_data")  # notebooks that bring their settings themselves
received_signal = None


def main() -> int:
    """Reads the command line, runs what it names unless that is recorded already, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Run one setting or one table or figure notebook.")
    parser.add_argument("path", type=Path, help="settings/PROFILE/NAME.yaml or notebooks/NAME.ipynb")
    parser.add_argument("--seed", type=int, default=0, help="student seed of a setting")
    parser.add_argument("--profile", default="demo", help="profile of a table or figure")
    arguments = parser.parse_args()
    try:
        if arguments.path.suffix == ".ipynb":
            if arguments.path.stem not in OWN_PROFILE:
                settings.check_profile(arguments.profile)
            return run(arguments.path, arguments.profile, arguments.path.stem, {"profile": arguments.profile})
        parameters = {**settings.read(arguments.path), "seed": arguments.seed}
        setting = settings.resolve(parameters)
        if is_recorded(setting):
            print(f"{setting.name} seed {setting.seed}: recorded already")
            return 0
        name = f"{setting.name}-seed{setting.seed}"
        return run(NOTEBOOKS / "setting.ipynb", setting.profile, name, parameters)
    except settings.InputError as error:
        return failed(str(error), 2)
    except Exception as error:
        # The kernel was killed, the disk is full, a record is damaged: one line, unless a traceback is wanted.
        if os.environ.get("DWA_DEBUG") == "1":
            raise
        return failed(f"{' '.join(f'{type(error).__name__}: {error}'.split())} (DWA_DEBUG=1 shows the traceback)", 1)


def is_recorded(setting: settings.Setting) -> bool:
    """Whether the record is there and of the same setting; it then gets a new date, for make compares dates."""
    path = setting.record_path()
    try:
        recorded = settings.Setting.model_validate({**json.loads(path.read_text())["setting"], "seeds": setting.seeds})
    except (OSError, ValueError, KeyError):
        return False  # none yet, damaged, or of an older form
    if recorded != setting:
        return False
    path.touch()
    return True


def run(notebook: Path, profile: str, name: str, parameters: dict) -> int:
    """Executes `notebook`; the executed copy goes to results/<profile>/executed/<name>.ipynb."""
    executed = settings.root() / "results" / profile / "executed" / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    for key, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    print(f"=== {profile}: {name} ({notebook.name})", flush=True)
    try:
        with execution_lock(executed):
            execute_notebook(
                str(notebook),
                str(executed),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                # Errors of cells come back through papermill; the kernel's own log would add that it was shut down.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.environ.get("DWA_DEBUG") == "1":
            raise
        if received_signal is not None:
            return failed(f"stopped by {received_signal.name}; the same command goes on", 128 + received_signal)
        if error.ename == "InputError":
            return failed(error.evalue, 2)
        reason = " ".join(f"{error.ename}: {error.evalue}".split())
        return failed(f"{reason} (in {executed}; DWA_DEBUG=1 shows the traceback)", 1)
    return 0


def stop(number: int, _frame) -> None:
    """The kernel has a session of its own and gets no signal meant for us: pass it on as an interrupt.

    Once a second until papermill returns, for a kernel between two cells ignores an interrupt.
    """
    global received_signal
    received_signal = signal.Signals(number)
    signal.signal(signal.SIGALRM, interrupt_kernel)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 1)


def interrupt_kernel(_number: int, _frame) -> None:
    for child in psutil.Process().children():
        child.send_signal(signal.SIGINT)


def failed(message: str, code: int) -> int:
    """Says why on one line of stderr and returns `code`."""
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
