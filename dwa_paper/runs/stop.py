"""When a run has to stop before it is done: at a signal, or when its time budget is used up.

A stage looks here between two steps, writes its checkpoint and raises `StoppedError`: nothing breaks off within a step.
"""

import math
import signal
import threading
import time

from dwa_core.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; the end of a job; Slurm's warning of it
received: signal.Signals | None = None
earlier_handlers = {}
budget_minutes: float | None = None
budget_end = math.inf


def start_budget(minutes: float | None, since: float | None = None) -> None:
    """Begins the time budget of this run, now or `since`, in seconds since 1970; None: there is none."""
    global budget_minutes, budget_end
    spent = time.time() - since if since is not None else 0
    budget_minutes, budget_end = minutes, time.monotonic() + 60 * minutes - spent if minutes is not None else math.inf


def seconds_left() -> float:
    """Until the budget is used up, at least 0; infinite without one."""
    return max(0.0, budget_end - time.monotonic())


def listen() -> None:
    """From now on a signal is a request to stop; a second SIGINT interrupts at once.

    Only the main thread can set handlers; elsewhere signals do what they did.
    """
    if not earlier_handlers and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            earlier_handlers[number] = signal.signal(number, remember)


def remember(number: int, _frame) -> None:
    global received
    if received is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    received = signal.Signals(number)


def restore_handlers() -> None:
    """Signals do again what they did before `listen`; one that came meanwhile is forgotten."""
    global received
    received = None
    if threading.current_thread() is threading.main_thread():
        while earlier_handlers:
            signal.signal(*earlier_handlers.popitem())


def reason() -> str | None:
    """Why to stop, or None where the run can go on."""
    if received is not None:
        return f"stopped by {received.name}; run the same command to continue"
    if time.monotonic() >= budget_end:
        return f"stopped by max_minutes {budget_minutes:.4g}; run the same command to continue"
    return None


def check() -> None:
    """Raises StoppedError if there is a reason to stop."""
    if (why := reason()) is not None:
        raise StoppedError(why)
