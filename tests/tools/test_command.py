"""The command line: what starts without torch, how errors end, and runs of the same setting side by side."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import papermill
import pytest

from dwa_core import errors
from dwa_paper.__main__ import main, report_error
from dwa_paper.runs import runner, store
from dwa_paper.settings import files

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments", [["-h"], ["missing", "demo"], ["status", "demo"], ["run", "results/demo/none.json"]]
)
def test_command_starts_without_torch_and_papermill(arguments):
    lines = [
        "import sys; from dwa_paper.__main__ import main",
        "try: main(sys.argv[1:])",
        "except SystemExit: pass",
        "print(*sorted({'torch', 'papermill', 'pandas'} & {*sys.modules}), file=sys.stderr)",
    ]
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (errors.InputError("ipc: 0\nis not allowed"), "ipc: 0 is not allowed", 2),
        (errors.StorageError("x: cannot be written"), "x: cannot be written", 1),
        (errors.DivergedError("teacher: the loss is nan"), "teacher: the loss is nan", 1),
        (errors.StoppedError("stopped by max_minutes 5; run"), "stopped by max_minutes 5; run", 75),
        (errors.StoppedError("stopped by SIGTERM; run"), "stopped by SIGTERM; run", 143),
        (FileExistsError(17, "File exists", "results"), "results: File exists", 1),
        (KeyError("a"), "KeyError: 'a' (DWA_DEBUG=1 shows the traceback)", 1),
    ],
)
def test_error_is_one_line_with_the_exit_code_of_its_class(error, line, code, capsys):
    assert report_error(error) == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_several_problems_are_a_line_each(capsys):
    assert report_error(ExceptionGroup("verify", [errors.UserError("a"), errors.UserError("b")])) == 1
    assert capsys.readouterr().err == "error: a\nerror: b\n"


def test_interrupt_and_a_reader_that_left_leave_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "check_profile", interrupted)
    assert main(["status", "demo"]) == 130
    assert capsys.readouterr().err == "error: stopped by SIGINT; run the same command to continue\n"
    done = subprocess.run(
        f"{sys.executable} -m dwa_paper status demo | true",
        shell=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "text", "line", "code"),
    [
        ("InputError", "ipc: 0", "{name}: ipc: 0", 2),
        ("DivergedError", "the loss is nan", "{name}: the loss is nan (see {log}, or set DWA_DEBUG=1)", 1),
        ("StoppedError", "stopped by SIGUSR1; run", "stopped by SIGUSR1; run", 138),
        ("KeyError", "'a'", "{name}: KeyError: 'a' (see {log}, or set DWA_DEBUG=1)", 1),
    ],
)
def test_error_of_a_cell_is_what_it_was_in_the_kernel(name, text, line, code, own_root, monkeypatch, capsys):
    def execute(path, output, **_):
        Path(output).write_text("{}")
        raise papermill.exceptions.PapermillExecutionError(0, 0, "", name, text, [])

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(runner.signal, "signal", lambda *_: None)
    assert main(["run", "results/demo/digits-dwa-ipc2.json"]) == code
    executed = own_root / "results" / "demo" / "executed" / "digits-dwa-ipc2-seed0.ipynb"
    log = executed.with_suffix(".log")
    assert capsys.readouterr().err == f"error: {line.format(name=log.stem, log=log)}\n"
    assert executed.exists() == log.exists() == (name != "InputError"), "what was refused at once leaves nothing"
    if log.exists():
        assert log.read_text().splitlines()[-1].startswith(f"=== {'stopped' if name == 'StoppedError' else 'failed'}: ")


def test_run_of_a_setting_that_another_process_runs_waits_and_finds_its_record(
    own_root, bare_record, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("run twice"))
    setting = files.list_runs("demo", "table-10")[0]
    target = f"results/demo/{setting.record_path().name}"
    with runner.reserve("demo", f"{setting.name}-seed{setting.seed}"):
        beside = threading.Thread(target=main, args=(["run", target],))
        beside.start()
        printed, deadline = "", time.monotonic() + 60
        while "is being run by another process; waiting for it" not in printed:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            printed += capsys.readouterr().out
        store.write_json(setting.record_path(), bare_record(setting))
    beside.join(20)
    assert not beside.is_alive()
    assert not list((own_root / "results" / "demo").glob("executed*"))
