"""Fixtures of the fault tests: the command line in this process, its notebooks without a kernel."""

import signal

import papermill
import pytest
from fault_tools import execute_here

from dwa_paper.__main__ import main


@pytest.fixture
def command(monkeypatch):
    """`python -m dwa_paper` as a function, its notebooks run by `execute_here`; signal handlers are put back."""
    monkeypatch.setattr(papermill, "execute_notebook", execute_here)
    monkeypatch.delenv("DWA_DEBUG", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield lambda *arguments: main([*map(str, arguments)])
    for number, handler in handlers.items():
        signal.signal(number, handler)
