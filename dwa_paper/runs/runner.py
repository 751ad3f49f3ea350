"""Runs a setting or a product: its notebook through papermill, unless its record is there already."""

import contextlib
import functools
import logging
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
from filelock import FileLock, Timeout

from dwa_core import errors
from dwa_core.errors import InputError, StoppedError, StorageError, UserError, suggest
from dwa_core.recipe import Strict
from dwa_paper.runs import stop
from dwa_paper.runs.records import find_missing
from dwa_paper.settings import files, schema
from dwa_paper.settings.environment import check_versions, root

KERNEL_ENVIRONMENT = {
    "TQDM_MININTERVAL": "10",  # seconds between lines of progress, so that a log stays short
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning of the debugger's at every start
    # Keep freed memory instead of returning it: 27 % off a training step of ConvNet-128 on two cores.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
SHOW_ALL = functools.partial(print, end="", flush=True)  # shows on the terminal what a kernel prints
# What notebooks/setting.ipynb is given where a setting says nothing: not what somebody has left in its parameters.
FROM_PRESET = {
    key: {} if isinstance(field.annotation, type) and issubclass(field.annotation, Strict) else None
    for key, field in schema.Setting.model_fields.items()
}
WITHOUT_SETTINGS = ("walkthrough", "your_own_data")  # notebooks that bring their settings themselves


def run(setting: str, seed: int | None, max_minutes: float | None, since: float, steps: int | None) -> None:
    """Makes the records that are missing of what `setting` names, as `files.find_settings`, setting by setting.

    Args:
        seed: the one student seed to run; None: all that the setting asks for.
        max_minutes: the time budget of all together, which began at `since`, in seconds since 1970.
        steps: how many records, tables and figures the call of make makes that began at `since`. The terminal then
            shows a line for each; None: it shows all that the log has.

    Raises:
        UserError: as a cell of the notebook raised it; StoppedError also where the time budget is used up.
    """
    check_versions()
    stop.start_budget(max_minutes, since)
    for parameters in files.find_settings(setting, seed):
        asked = schema.resolve(parameters)
        missing = find_missing(asked.split_seeds())
        for each in asked.split_seeds():
            if each not in missing:
                print(f"{asked.name} seed {each.seed}: recorded already")
        if not missing:
            continue
        stop.check()
        name = asked.name if len(asked.seeds) > 1 else f"{asked.name}-seed{asked.seeds[0]}"
        with reserve(asked.profile, name) as executed:
            if missing := find_missing(missing):  # a run beside this one may have made them
                minutes = min(asked.max_minutes or math.inf, stop.seconds_left() / 60)
                budget = {"max_minutes": minutes if minutes < math.inf else None}
                show = SHOW_ALL if steps is None else track_results(asked, since, steps)
                given = FROM_PRESET | parameters | {"seeds": [each.seed for each in missing]} | budget
                execute(files.NOTEBOOKS / "setting.ipynb", executed, given, show)


def draw(product: str, profile: str, since: float, steps: int | None) -> None:
    """Executes notebooks/PRODUCT.ipynb, which draws a table, a figure or the report of `profile`; the rest as `run`.

    Raises:
        UserError: as a cell of the notebook raised it; InputError where there is no such notebook or profile.
    """
    check_versions()
    names = sorted(path.stem for path in files.NOTEBOOKS.glob("*.ipynb") if path.stem != "setting")
    if product not in names:
        raise InputError(f"{product}: no notebook of this name; {suggest(product, names)}")
    if product not in WITHOUT_SETTINGS:
        files.check_profile(profile)
    began = time.time()
    with reserve(profile, product) as executed:
        show = SHOW_ALL if steps is None else show_warnings
        execute(files.NOTEBOOKS / f"{product}.ipynb", executed, {"profile": profile}, show)
    if steps is not None:
        print_step(f"{product} ... drawn", profile, began, since, steps)
        if product == "table-1":
            print((root() / "results" / profile / "table-1.md").read_text(), flush=True)


def show_warnings(text: str) -> None:
    """Shows on the terminal the lines of it that begin with "warning: "."""
    print(*re.findall("^warning: .*\n", text, re.MULTILINE), sep="", end="", flush=True)


def track_results(setting: schema.Setting, since: float, steps: int) -> Callable[[str], None]:
    """A function that shows warnings, and of each student its accuracy, as notebooks/setting.ipynb prints it."""
    began = time.time()

    def show(text: str) -> None:
        nonlocal began
        show_warnings(text)
        for run, accuracy in re.findall(rf"^({re.escape(setting.name)} seed \d+): (.*)$", text, re.MULTILINE):
            print_step(f"{run} ... {accuracy}", setting.profile, began, since, steps)
            began = time.time()

    return show


def print_step(result: str, profile: str, began: float, since: float, steps: int) -> None:
    """Prints `result` with the number of its step among `steps`, and the time since `began`.

    The number is that of the profile's records, tables and figures that were written `since` the first step. In the
    demo, whose steps take about equally long, it also says how long the others take.
    """
    places = (f"results/{profile}/*-seed*.json", f"results/{profile}/*.md", f"figures/{profile}/*.svg")
    written = sum(path.stat().st_mtime >= since for place in places for path in root().glob(place))
    done, now = min(max(written, 1), steps), time.time()
    estimated = done < steps and profile == "demo"
    left = f"  about {format_time((now - since) * (steps / done - 1))} left" if estimated else ""
    print(f"[{done}/{steps}] {result}  {format_time(now - began)}{left}", flush=True)


def format_time(seconds: float) -> str:
    """Seconds as 14 s, 9 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def make_lock(executed: Path) -> FileLock:
    """Held while the notebook `executed` is being executed, so that a reader knows a running one from a dead one."""
    return FileLock(executed.with_name(f".{executed.name}.lock"), fallback_to_soft=False)


@contextlib.contextmanager
def reserve(profile: str, name: str) -> Iterator[Path]:
    """Where the executed notebook of a run goes, its folder made and its lock held; waits for a run of the same."""
    executed = root() / "results" / profile / "executed" / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    lock = make_lock(executed)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"{profile}: {name} is being run by another process; waiting for it", flush=True)
                try:
                    lock.acquire(timeout=stop.seconds_left())
                except Timeout:
                    raise StoppedError(stop.reason()) from None
        yield executed
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        for folder in list(executed.parents)[:3]:  # executed, the profile's, results: if they are empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def execute(notebook: Path, executed: Path, parameters: dict, show: Callable[[str], None]) -> None:
    """Executes `notebook`; its copy with outputs becomes `executed` when it is done or a cell has failed.

    What it prints goes to its log, beside `executed`, whose last line says how it ended, and piece by piece to `show`.
    """
    # Imported here because what needs no notebook must not wait seconds for papermill.
    sys.modules.setdefault("rfc3987_syntax", None)  # a grammar that jsonschema would build in half of those seconds
    import papermill

    stop.check()
    # Its name until it is known that there was something to run.
    running, log_path, began = executed.with_name(f".{executed.name}"), executed.with_suffix(".log"), time.time()
    for number in stop.SIGNALS:
        signal.signal(number, forward)
    logging.disable()  # papermill's log would say once more that a cell failed or the kernel died
    with log_path.open("w", errors="backslashreplace") as log, isolate_kernels():

        def write(text: str) -> None:
            log.write(text)
            log.flush()
            show(text)

        stream = SimpleNamespace(write=write, flush=log.flush)
        options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": stream, "stderr_file": stream}
        options["parameters"] = parameters
        # Errors of cells come back through papermill; the kernel's own log would add that it was shut down.
        options["extra_arguments"] = ["--IPKernelApp.log_level=CRITICAL"]
        write(f"=== {executed.parents[1].name}: {executed.stem} ({notebook.name})\n")
        try:
            papermill.execute_notebook(str(notebook), str(running), **options)
            running.replace(executed)
            log.write(f"=== done in {format_time(time.time() - began)}\n")
        except BrokenPipeError:  # nobody reads what is shown
            raise
        except Exception as error:
            failure = explain(error, executed)
            if isinstance(failure, InputError | StorageError):
                log_path.unlink()  # nothing was done, or there is no room for it
            elif hasattr(error, "ename"):
                running.replace(executed)
            log.write(f"{error}\n=== {'stopped' if isinstance(failure, StoppedError) else 'failed'}: {failure}\n")
            raise failure from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            running.unlink(missing_ok=True)


def explain(error: Exception, executed: Path) -> UserError:
    """The error that a user sees for papermill's `error`, which has name and text of what a cell raised."""
    name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    kind = getattr(errors, name, None)
    if stop.received is not None:  # the signal was passed on, and ended the kernel
        return StoppedError(stop.reason())
    if kind is StoppedError:
        return StoppedError(message)
    if name == "NoSuchKernel":
        return InputError("the Jupyter kernel python3 is missing; make environment installs it")
    if kind in (InputError, StorageError):
        return kind(f"{executed.stem}: {message}")
    message = message if kind else f"{name}: {message}"
    if name == "DeadKernelError":
        message += "; it may have run out of memory"
    return (kind or UserError)(f"{executed.stem}: {message} (see {executed.with_suffix('.log')}, or set DWA_DEBUG=1)")


@contextlib.contextmanager
def isolate_kernels() -> Iterator[None]:
    """Kernels start with KERNEL_ENVIRONMENT, and without what files in a user's home tell Python, IPython and Jupyter.

    A startup file would run before the first cell, and could change every result.
    """
    for key, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for key in ("PYTHONSTARTUP", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        os.environ.pop(key, None)
    with tempfile.TemporaryDirectory(prefix="dwa-", ignore_cleanup_errors=True) as empty:
        os.environ |= dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"), empty)
        yield


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
