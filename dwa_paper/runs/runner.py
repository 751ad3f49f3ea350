"""Runs one notebook through papermill: what `make` calls for each record, table and figure.

    python notebooks/run.py settings/demo/digits-dwa-ipc10.yaml --seed 1
    python notebooks/run.py notebooks/table_01.ipynb --profile demo

Exit codes: 0 done, 1 the notebook failed, 2 the input cannot be used, 75 the time budget is used up (the same
command goes on), 128 + N stopped by signal N. DWA_DEBUG=1 shows tracebacks.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import psutil
from jupyter_client.kernelspec import NoSuchKernel
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError

from dwa_paper.command import failed
from dwa_paper.runs import stop
from dwa_paper.runs.records import find_record
from dwa_paper.settings import files, schema
from dwa_paper.settings.environment import check_versions, root
from dwa_paper.tools.status import execution_lock, unfinished

NOTEBOOKS = files.NOTEBOOKS
OUT_OF_TIME = 75  # "temporary failure" in sysexits.h
# Errors of the core whose message is the one line to show, and the exit code of each.
PLAIN = {"InputError": 2, "StorageError": 1, "DivergedError": 1}
KERNEL_ENVIRONMENT = {
    "TQDM_MININTERVAL": "10",  # seconds between lines of progress, so that a log stays short
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning of the debugger's at every start
    # Keep freed memory instead of returning it: 27 % off a training step of ConvNet-128 on two cores.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
OWN_PROFILE = ("walkthrough", "your_own_data")  # notebooks that bring their settings themselves
received_signal = None
forwarded_signal = signal.SIGUSR1


def main() -> int:
    """Reads the command line, runs what it names unless that is recorded already, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Run one setting or one table or figure notebook.")
    parser.add_argument("path", type=Path, help="settings/PROFILE/NAME.yaml or notebooks/NAME.ipynb")
    parser.add_argument("--seed", type=int, default=0, help="student seed of a setting")
    parser.add_argument("--profile", default="demo", help="profile of a table or figure")
    parser.add_argument("--max-minutes", type=float, help="time budget; a setting stops when it is used up")
    parser.add_argument("--since", type=float, default=time.time(), help="when the budget began; seconds since 1970")
    parser.error = lambda message: sys.exit(failed(message, 2))
    arguments = parser.parse_args()
    try:
        check_versions()
        if arguments.path.suffix == ".ipynb":
            if arguments.path.stem not in OWN_PROFILE:
                files.check_profile(arguments.profile)
            return run(arguments.path, arguments.profile, arguments.path.stem, {"profile": arguments.profile})
        parameters = {**files.read(arguments.path), "seed": arguments.seed}
        setting = schema.resolve(parameters)
        if find_record(setting) is not None:
            if setting.record_path().stat().st_mtime < arguments.path.stat().st_mtime:
                setting.record_path().touch()  # make compares dates
            print(f"{setting.name} seed {setting.seed}: recorded already")
            return 0
        if arguments.max_minutes is not None:
            left = arguments.max_minutes - (time.time() - arguments.since) / 60
            if left <= 0:
                return failed(
                    f"stopped by max_minutes {arguments.max_minutes:g}; the same command goes on", OUT_OF_TIME
                )
            parameters["max_minutes"] = min(left, setting.max_minutes or left)
        name = f"{setting.name}-seed{setting.seed}"
        return run(NOTEBOOKS / "setting.ipynb", setting.profile, name, parameters)
    except Exception as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.environ.get("DWA_DEBUG") == "1":
            raise
        return answered(error)


def run(notebook: Path, profile: str, name: str, parameters: dict) -> int:
    """Executes `notebook`; the executed copy goes to results/<profile>/executed/<name>.ipynb."""
    executed = root() / "results" / profile / "executed" / f"{name}.ipynb"
    running = unfinished(executed)  # its name until it is known that there was something to run
    executed.parent.mkdir(parents=True, exist_ok=True)
    for key, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for number in stop.SIGNALS:
        signal.signal(number, forward)
    logging.disable()  # papermill's log would say once more that a cell failed or the kernel died
    print(f"=== {profile}: {name} ({notebook.name})", flush=True)
    shown_running = execution_lock(executed)
    with contextlib.suppress(OSError):  # it is held already, or the file system has no locks
        shown_running.acquire(timeout=0)
    try:
        execute_notebook(
            str(notebook),
            str(running),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            # Errors of cells come back through papermill; the kernel's own log would add that it was shut down.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
        running.replace(executed)
    except PapermillExecutionError as error:
        if error.ename not in ("InputError", "StorageError"):
            running.replace(executed)  # make status shows how it ended
        if error.ename not in ("StoppedError", *PLAIN):
            error.evalue += f" (in {executed})"
        raise
    finally:
        running.unlink(missing_ok=True)
        if shown_running.is_locked:
            shown_running.release()
            Path(shown_running.lock_file).unlink(missing_ok=True)
        for folder in list(executed.parents)[:3]:  # executed, the profile's, results: if they are empty
            with contextlib.suppress(OSError):
                folder.rmdir()
    return 0


def forward(number: int, _frame) -> None:
    """The kernel has a session of its own and gets no signal meant for us: pass it on, as a request to stop.

    Once a second until papermill returns, for it may come before there is a kernel. A second SIGINT is passed on as
    itself, and breaks off at once.
    """
    global received_signal, forwarded_signal
    if number == received_signal == signal.SIGINT:
        forwarded_signal = signal.SIGINT
    received_signal = received_signal or signal.Signals(number)
    signal.signal(signal.SIGALRM, signal_kernel)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 1)


def signal_kernel(_number: int, _frame) -> None:
    for child in psutil.Process().children():
        child.send_signal(forwarded_signal)


def answered(error: Exception) -> int:
    """Says on one line what went wrong; returns the exit code."""
    name, message = type(error).__name__, str(error)
    if isinstance(error, PapermillExecutionError):
        name, message = error.ename, error.evalue
    if received_signal is not None:
        return failed(f"stopped by {received_signal.name}; the same command goes on", 128 + received_signal)
    if name == "StoppedError":
        signals = {number.name: 128 + number for number in stop.SIGNALS}
        return failed(message, next((code for key, code in signals.items() if f" {key};" in message), OUT_OF_TIME))
    if name in PLAIN:
        return failed(message, PLAIN[name])
    if isinstance(error, NoSuchKernel):
        return failed("the Jupyter kernel python3 is missing; make environment installs it", 2)
    if isinstance(error, OSError) and error.filename:
        return failed(f"{error.filename}: {error.strerror}", 1)
    return failed(f"{name}: {message} (DWA_DEBUG=1 shows the traceback)", 1)


if __name__ == "__main__":
    sys.exit(main())
