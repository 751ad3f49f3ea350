"""Runs a setting or a product: its notebook through papermill, unless its record is there already."""

import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from dwa_core import errors
from dwa_core.errors import InputError, StorageError
from dwa_paper.runs import stop
from dwa_paper.runs.records import find_record
from dwa_paper.settings import files, schema
from dwa_paper.settings.environment import check_versions, root

KERNEL_ENVIRONMENT = {
    "TQDM_MININTERVAL": "10",  # seconds between lines of progress, so that a log stays short
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning of the debugger's at every start
    # Keep freed memory instead of returning it: 27 % off a training step of ConvNet-128 on two cores.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
WITHOUT_SETTINGS = ("walkthrough", "your_own_data")  # notebooks that bring their settings themselves


def run(setting: str, seed: int | None, max_minutes: float | None, since: float) -> None:
    """Makes the records that are missing of what `setting` names, as `files.find_runs`, one after the other.

    Args:
        seed: the one student seed to run; None: all that the setting asks for.
        max_minutes: the time budget of all together, which began at `since`, in seconds since 1970.

    Raises:
        UserError: as a cell of the notebook raised it; StoppedError also where the time budget is used up.
    """
    check_versions()
    stop.start_budget(max_minutes, since)
    runs = files.find_runs(setting)
    for parameters in runs if seed is None else [{**runs[0], "seed": seed}]:
        asked = schema.resolve(parameters)
        if find_record(asked) is not None:
            print(f"{asked.name} seed {asked.seed}: recorded already")
            continue
        stop.check()
        with executing(asked.profile, f"{asked.name}-seed{asked.seed}") as executed:
            if find_record(asked) is None:  # a run beside this one may have made it
                minutes = min(asked.max_minutes or math.inf, stop.seconds_left() / 60)
                budget = {"max_minutes": minutes if minutes < math.inf else None}
                execute(files.NOTEBOOKS / "setting.ipynb", executed, parameters | budget)


def draw(product: str, profile: str) -> None:
    """Executes notebooks/PRODUCT.ipynb, which draws a table, a figure or the report of `profile`.

    Raises:
        UserError: as a cell of the notebook raised it; InputError where there is no such notebook or profile.
    """
    check_versions()
    names = sorted(path.stem for path in files.NOTEBOOKS.glob("*.ipynb") if path.stem != "setting")
    if product not in names:
        raise InputError(f"{product}: no notebook of this name; allowed: {', '.join(names)}")
    if product not in WITHOUT_SETTINGS:
        files.check_profile(profile)
    with executing(profile, product) as executed:
        execute(files.NOTEBOOKS / f"{product}.ipynb", executed, {"profile": profile})


def unfinished(executed: Path) -> Path:
    """Where the notebook that is to become `executed` lies while it is being executed."""
    return executed.with_name(f".{executed.name}")


def execution_lock(executed: Path) -> FileLock:
    """Held while the notebook `executed` is being executed, so that a reader knows a running one from a dead one."""
    return FileLock(executed.with_name(f".{executed.name}.lock"), fallback_to_soft=False)


@contextlib.contextmanager
def executing(profile: str, name: str) -> Iterator[Path]:
    """Where the executed notebook of a run goes, its folder made and its lock held; waits for a run of the same."""
    executed = root() / "results" / profile / "executed" / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    lock = execution_lock(executed)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"{profile}: {name} is being run by another process; waiting for it", flush=True)
                lock.acquire()
        yield executed
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        for folder in list(executed.parents)[:3]:  # executed, the profile's, results: if they are empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def execute(notebook: Path, executed: Path, parameters: dict) -> None:
    """Executes `notebook`; its copy with outputs becomes `executed` when it is done or a cell has failed."""
    # Imported here because what needs no notebook must not wait seconds for papermill.
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel

    stop.check()
    running = unfinished(executed)  # its name until it is known that there was something to run
    for key, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for number in stop.SIGNALS:
        signal.signal(number, forward)
    logging.disable()  # papermill's log would say once more that a cell failed or the kernel died
    print(f"=== {executed.parents[1].name}: {executed.stem} ({notebook.name})", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(running),
            parameters={key: value for key, value in parameters.items() if value is not None},
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            # Errors of cells come back through papermill; the kernel's own log would add that it was shut down.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
        running.replace(executed)
    except NoSuchKernel:
        raise InputError("the Jupyter kernel python3 is missing; make environment installs it") from None
    except Exception as error:
        name, message = getattr(error, "ename", ""), getattr(error, "evalue", "")  # of what a cell raised
        kind = getattr(errors, name, None)
        if name and kind not in (InputError, StorageError):
            running.replace(executed)  # make status shows how it ended
        if stop.received is not None:  # the signal was passed on, and ended the kernel
            stop.check(error)
        if kind is not None:
            raise kind(message) from error
        if name:
            error.evalue += f" (in {executed})"
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        running.unlink(missing_ok=True)


def forward(number: int, _frame) -> None:
    """The kernel has a session of its own and gets no signal meant for us: pass it on, as a request to stop.

    Once a second until papermill returns, for it may come before there is a kernel. A second SIGINT is passed on as
    itself, and breaks off at once.
    """
    passed_on = signal.SIGINT if number == stop.received == signal.SIGINT else signal.SIGUSR1
    stop.received = stop.received or signal.Signals(number)

    def signal_kernel(*_) -> None:
        for child in psutil.Process().children():
            child.send_signal(passed_on)

    signal.signal(signal.SIGALRM, signal_kernel)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 1)
