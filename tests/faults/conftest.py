"""Fixtures of the fault tests: the command line in this process, its notebooks without a kernel."""

import signal

import papermill
import pytest
from fault_tools import execute_here, snapshot

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


@pytest.fixture
def place(tmp_path, own_root, monkeypatch):
    """The folder that holds everything a run could change: the root, the settings, the data."""
    own_root.mkdir()
    (tmp_path / "trial").mkdir()
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def refusal(command, place, capsys):
    """A function that runs a command, checks all that every refusal has in common, and returns its line."""

    def ask(*arguments, code: int = 2) -> str:
        before = snapshot(place)
        returned = command(*arguments)
        line = capsys.readouterr().err
        assert returned == code, line
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert "Traceback" not in line
        assert snapshot(place) == before
        return line

    return ask
