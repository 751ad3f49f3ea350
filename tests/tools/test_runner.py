"""What surrounds a kernel: the configuration that it starts with, and the lines that make's steps print."""

import os
import time

import nbformat
import pytest

from dwa_core.errors import StoppedError
from dwa_paper.runs import runner, stop
from dwa_paper.settings.schema import Setting


def test_startup_files_in_a_home_folder_change_nothing(tmp_path, monkeypatch):
    home, spoilt = tmp_path / "home", "import builtins; builtins.spoilt = True\n"
    startup = home / ".ipython" / "profile_default" / "startup" / "spoil.py"
    startup.parent.mkdir(parents=True)
    for path in (startup, home / "python_startup.py"):
        path.write_text(spoilt)
    for key, value in {
        "HOME": home,
        "IPYTHONDIR": home / ".ipython",
        "PYTHONSTARTUP": home / "python_startup.py",
    }.items():
        monkeypatch.setenv(key, str(value))
    for key in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):  # which the runner sets for its process
        monkeypatch.setenv(key, str(home))
    cell = nbformat.v4.new_code_cell("import builtins\nprint('spoilt' if hasattr(builtins, 'spoilt') else 'clean')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "cell.ipynb")
    executed = tmp_path / "results" / "test" / "executed" / "cell.ipynb"
    executed.parent.mkdir(parents=True)
    printed = []
    runner.execute(tmp_path / "cell.ipynb", executed, {}, printed.append)
    assert "clean\n" in printed
    assert executed.with_suffix(".log").read_text().splitlines()[-1].startswith("=== done in ")


def test_step_is_counted_by_what_was_written_since_the_first(own_root, capsys):
    since = time.time() - 60
    for path, age in {
        "results/test/a-seed0.json": 0,
        "figures/test/figure-gain.svg": 0,
        "results/test/old.md": 99,
    }.items():
        (own_root / path).parent.mkdir(parents=True, exist_ok=True)
        (own_root / path).touch()
        os.utime(own_root / path, (since + 10 - age, since + 10 - age))
    runner.print_step("a seed 0 ... 82.8 %", "test", time.time() - 14, since, 6)
    assert capsys.readouterr().out == "[2/6] a seed 0 ... 82.8 %  14 s\n"
    (own_root / "results/test").rename(own_root / "results/demo")  # whose steps take about equally long
    (own_root / "figures/test").rename(own_root / "figures/demo")
    runner.print_step("a seed 0 ... 82.8 %", "demo", time.time() - 14, since, 6)
    assert capsys.readouterr().out == "[2/6] a seed 0 ... 82.8 %  14 s  about 2 min left\n"
    runner.print_step("b seed 0 ... 82.8 %", "demo", time.time(), since, 2)
    assert capsys.readouterr().out == "[2/2] b seed 0 ... 82.8 %  0 s\n"


def test_notebook_is_given_every_parameter_whatever_somebody_left_in_it(tiny_setting, own_root, monkeypatch):
    given = {}
    monkeypatch.setattr(runner, "execute", lambda notebook, executed, parameters, show: given.update(parameters))
    said = {"profile": "test", "name": "tiny", "preset": "digits", "seeds": [0], "synthesis": {"rho": 0.5}}
    monkeypatch.setattr(runner.files, "find_settings", lambda setting, seed: [said])
    runner.run("tiny", None, None, time.time(), None)
    assert given.keys() == Setting.model_fields.keys()
    not_said = {"images": {}, "teacher": {}, "relabel": {}}
    assert {key: value for key, value in given.items() if value is not None} == said | not_said


def test_time_budget_ends_the_wait_for_a_run_of_the_same_setting(own_root):
    stop.start_budget(0.2 / 60)
    stopped = pytest.raises(StoppedError, match="max_minutes")
    try:
        with runner.reserve("test", "one"), stopped, runner.reserve("test", "one"):
            pytest.fail("both have it")
    finally:
        stop.start_budget(None)


def test_of_what_a_kernel_prints_make_shows_results_and_warnings(tiny_setting, own_root, capsys):
    show = runner.track_results(tiny_setting(), time.time(), 3)
    show("digits: 1,297 training images\nwarning: the teacher guesses\n")
    show("tiny seed 0: 82.8 %\ntiny-er seed 0: 1.0 %\nseed 0: student 82.8 %\n")
    warning, result = capsys.readouterr().out.splitlines()
    assert warning == "warning: the teacher guesses"
    assert result.startswith("[1/3] tiny seed 0 ... 82.8 %  0 s")
