"""Fixtures of the fault tests: the runner in this process, and a checkout to run make in."""

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fault_tools import REPOSITORY, execute_here


@pytest.fixture
def runner(monkeypatch):
    """notebooks/run.py as a module, its notebooks run by `execute_here`; signal handlers are put back."""
    specification = importlib.util.spec_from_file_location("run_under_test", REPOSITORY / "notebooks" / "run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "execute_notebook", execute_here)
    monkeypatch.delenv("DWA_DEBUG", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the tracked files, to run make in; the environment is this one."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "installed").touch()
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    return folder
