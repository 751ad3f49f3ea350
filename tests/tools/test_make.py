"""The Makefile schedules: which commands each target runs, in which order, and that it never harms a record."""

import functools
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dwa_paper.report import product
from dwa_paper.runs import store
from dwa_paper.settings import files
from dwa_paper.tools import status

PROFILES = ("demo", "lite", "paper", "search")
PRODUCTS = files.list_products()


@pytest.fixture
def folder(checkout, tmp_path) -> Path:
    """A checkout of one's own."""
    shutil.copytree(checkout, tmp_path / "checkout")
    return tmp_path / "checkout"


def write(folder: Path, name: str, lines: str = "") -> None:
    """Writes settings/mine/NAME.yaml with further lines."""
    (folder / "settings" / "mine").mkdir(exist_ok=True)
    text = f"profile: mine\nname: {name}\npreset: digits\n{lines}"
    (folder / "settings" / "mine" / f"{name}.yaml").write_text(text)


def make(folder: Path, *arguments: str, environment=(), code: int = 0) -> subprocess.CompletedProcess:
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **dict(environment)}
    command = ["make", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def planned(folder: Path, *arguments: str) -> list[str]:
    """What make would run of records and products, in order: "mine/a" and "table-1"."""
    said = make(folder, "--dry-run", *arguments).stdout
    return re.findall(r"dwa_paper (?:run 'results/|draw ')([\w/.-]+?)(?:\.json)?'", said)


# ------------------------------------------------------------------------------------------ what is missing


def missing(capsys, profile: str, *products: str) -> list[str]:
    status.print_missing(profile, list(products))
    return capsys.readouterr().out.split()[1:]  # after STEPS


def records_of(profile: str, name: str | None = None) -> set[str]:
    return {f"results/{profile}/{setting.name}.json" for setting in files.list_runs(profile, name)}


@pytest.mark.parametrize("profile", PROFILES)
def test_table_or_figure_needs_the_records_that_are_shown_in_it(profile, capsys):
    for name in PRODUCTS:
        *records, last = missing(capsys, profile, name)
        assert set(records) == records_of(profile, name)
        assert len(set(records)) == len(records)
        assert last == (
            f"figures/{profile}/{name}.svg" if name.startswith("figure-") else f"results/{profile}/{name}.md"
        )


@pytest.mark.parametrize("profile", PROFILES)
def test_all_that_is_missing_is_every_record_and_every_product_once_table_1_first(profile, capsys):
    found = missing(capsys, profile)
    assert len(set(found)) == len(found)
    assert {path for path in found if path.endswith(".json")} == records_of(profile)
    shown = {name for setting in files.list_runs(profile) for name in setting.shown_in}
    assert {Path(path).stem for path in found if not path.endswith(".json")} == shown | {"table-6"}
    assert found[-1] == f"results/{profile}/table-6.md", "the hyper-parameters are those of all records"
    status.print_missing(profile, [])
    count = len(files.list_runs(profile)) + len([path for path in found if not path.endswith(".json")])
    assert capsys.readouterr().out.startswith(f"STEPS={count}\n")
    if "table-1" in shown:
        first = found[: found.index(f"results/{profile}/table-1.md")]
        assert set(first) == records_of(profile, "table-1")


def test_what_is_there_is_not_missing(own_root, bare_record, capsys):
    runs = files.list_runs("demo", "table-10")
    for setting in runs:
        store.write_json(setting.record_path(), bare_record(setting))
    assert missing(capsys, "demo", "table-10") == ["results/demo/table-10.md"]
    runs[0].record_path().write_text("{")
    assert missing(capsys, "demo", "table-10") == [f"results/demo/{runs[0].name}.json", "results/demo/table-10.md"]


def test_product_that_does_not_exist_is_refused(refused):
    with refused("table-7: no table or figure of this name; did you mean table-9?"):
        status.print_missing("demo", ["table-7"])


# ---------------------------------------------------------------------------------------------- dry runs


def test_make_alone_lists_the_targets(folder):
    shutil.rmtree(folder / ".venv")
    listed = make(folder).stdout
    for target in ("reproduce", "plan", "settings", "test", "lab", "clean", "distclean"):
        assert re.search(rf"make {target} +\w", listed)
    for name in PRODUCTS:
        assert name in listed


def test_dry_run_of_reproduce_is_what_is_missing(folder, capsys):
    found = planned(folder, "reproduce", "PROFILE=search")
    assert found == [
        re.sub(r"^results/(.*)\.json$|^.*/(.*)\.\w+$", r"\1\2", path) for path in missing(capsys, "search")
    ]


def test_targets_of_tables_figures_settings_and_records(folder):
    write(folder, "a", "seeds: [3, 4]\nshown_in: [figure-variance]\n")
    write(folder, "b", "shown_in: [table-1, figure-variance]\n")
    assert planned(folder, "table-1", "PROFILE=mine") == ["mine/b", "table-1"]
    assert planned(folder, "figure-variance", "PROFILE=mine") == ["mine/a", "mine/b", "figure-variance"]
    both = planned(folder, "table-1", "figure-variance", "PROFILE=mine")
    assert both == ["mine/b", "table-1", "mine/a", "figure-variance"]
    assert planned(folder, "results/mine/a.json") == ["mine/a"]
    assert planned(folder, "results/mine/a-seed4.json") == ["mine/a-seed4"]


def test_hyper_parameters_are_drawn_whoever_names_their_table(folder):
    write(folder, "a", "shown_in: [table-10]\n")
    assert planned(folder, "reproduce", "PROFILE=mine") == ["mine/a", "table-10", "table-6"]


def test_time_budget_is_that_of_the_whole_call(folder):
    for name in ("a", "b"):
        write(folder, name)
    said = make(folder, "--dry-run", "table-1", "PROFILE=mine", "MAX_MINUTES=7").stdout
    began = re.findall(r"--max-minutes 7 --since (\d+) --steps 3", said)
    assert len(began) == 2
    assert len(set(began)) == 1


def test_ray_makes_the_records_first_and_no_other_engine_is_known(folder):
    write(folder, "a")
    said = make(folder, "--dry-run", "reproduce", "PROFILE=mine", "ENGINE=ray", "FLEET=--tasks-per-set 2").stdout
    assert said.splitlines()[0].endswith("dwa_paper fleet $targets --tasks-per-set 2")
    assert "fleet" not in make(folder, "--dry-run", "reproduce", "PROFILE=mine").stdout
    refused = make(folder, "reproduce", "PROFILE=mine", "ENGINE=ray", "MAX_MINUTES=3", code=2).stderr
    assert "MAX_MINUTES: not allowed with ENGINE=ray" in refused
    wrong = make(folder, "reproduce", "ENGINE=dask", code=2)
    assert "ENGINE: dask is not known; allowed: ray, or nothing" in wrong.stderr


# ----------------------------------------------------------- what a user types, and what the settings files hold


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["table1"], "error: make table1: did you mean make table-1?"),
        (["reproduec"], "error: make reproduec: did you mean make reproduce?"),
        (["foo"], "error: make foo: no such target; make help lists them"),
        (["x';touch oops;'"], "error: make x';touch oops;': no such target; make help lists them"),
        (["plan", "PROFILE=liet"], "error: profile: 'liet' is not known; did you mean lite?"),
        (["table-1", "PROFILE=a;touch oops"], "error: profile: 'a;touch oops' is not known; allowed: demo, "),
        (["status", "PROFILE=$(shell touch oops)"], "error: profile: '$(shell touch oops)' is not known; allowed: "),
        (["results/$(shell touch oops)/`touch oops`.json"], "error: profile: "),
    ],
)
def test_slip_is_answered_in_one_line_and_no_text_is_executed(arguments, line, folder):
    said = make(folder, *arguments, code=2).stderr.splitlines()
    (error,) = (each for each in said if not each.startswith("make"))
    assert error.startswith(line)
    assert not (folder / "oops").exists()


def test_text_and_name_of_a_settings_file_are_never_executed(folder):
    write(folder, "a", "seeds: [0&touch seeds]\nshown_in: ['table-1;touch shown']\n")
    write(folder, "b`touch name`", "shown_in: [$(touch shown)]\n")
    before = {path.name for path in folder.iterdir()}
    for arguments, code in (
        (["help"], 0),
        (["--dry-run", "reproduce", "PROFILE=mine"], 2),
        (["reproduce", "PROFILE=mine"], 2),
        (["table-1", "PROFILE=mine"], 2),
        (["results/mine/a.json"], 2),
    ):
        make(folder, *arguments, code=code)
    assert {path.name for path in folder.iterdir()} - before <= {"dwa_core.pyc"}


@pytest.mark.parametrize(
    ("name", "lines", "text"),
    [
        ("a", "seeds: [0&touch x]\n", "seeds.0: '0&touch x' is not allowed"),
        ("b`touch x`", "", "name: 'b`touch x`' is not allowed; only letters, digits"),
        ("my own", "", "name: 'my own' is not allowed; only letters, digits"),
        ("-c", "", "name: '-c' is not allowed; only letters, digits"),
    ],
)
def test_settings_file_that_is_not_allowed_is_one_line(name, lines, text, folder):
    write(folder, name, lines)
    said = make(folder, "reproduce", "PROFILE=mine", code=2).stderr.splitlines()
    (line,) = (line for line in said if not line.startswith("make"))
    assert line.startswith(f"error: settings/mine/{name}.yaml: {text}")


# -------------------------------------------------------------------------------------- records are kept

FAKE = """#!/bin/sh
# In place of Python: `missing` prints targets, `run` writes the record of its last argument, `draw` a table.
shift 2
echo "$1 $2" >> log
case "$1" in
missing) printf 'results/mine/%s\\n' a-seed0.json b-seed0.json table-1.md c-seed0.json; echo STEPS=4;;
run) mkdir -p results/mine; {after}; code=$?; echo "ended $2" >> log; exit $code;;
draw) echo "ended $2" >> log;;
esac
"""


@pytest.fixture
def fake(folder):
    """A function that puts `FAKE` in place of Python, with what `run` does."""

    def put(after: str) -> Path:
        (folder / ".venv" / "bin" / "python").write_text(FAKE.replace("{after}", after))
        return folder

    return put


def test_record_of_a_run_that_then_fails_is_kept(fake):
    folder = fake('echo record > "$2"; exit 137')
    record = folder / "results" / "mine" / "a-seed0.json"
    for target in ("results/mine/a-seed0.json", "table-1"):
        make(folder, target, "PROFILE=mine", code=2)
        assert record.read_text() == "record\n"


@pytest.mark.parametrize("target", ["results/mine/a-seed0.json", "table-1"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_is_kept_when_make_is_interrupted_just_after_it_is_written(target, number, fake):
    folder = fake('echo record > "$2"; exec sleep 60')
    record = folder / "results" / "mine" / "a-seed0.json"
    command = ["make", target, "PROFILE=mine"]
    options = {"cwd": folder, "start_new_session": True, "stderr": subprocess.PIPE, "text": True}
    # A test run in the background of a shell ignores SIGINT, and so would make.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options, preexec_fn=heed) as process:
        deadline = time.monotonic() + 30
        while not record.exists() or not record.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        subprocess.run(["kill", f"-{number.value}", "--", f"-{process.pid}"], check=True)
        _, said = process.communicate(timeout=30)
    assert "Deleting" not in said
    assert record.read_text() == "record\n"


def test_ray_makes_the_records_of_the_product_that_is_asked_for(fake):
    folder = fake("true")
    make(folder, "table-1", "PROFILE=mine", "ENGINE=ray", code=2)  # nobody has drawn it
    log = (folder / "log").read_text().splitlines()
    assert log[:2] == ["missing mine", "fleet results/mine/a-seed0.json"]


def test_with_k_what_comes_after_a_record_that_fails_is_made(fake):
    folder = fake('test "$2" != results/mine/a-seed0.json')
    make(folder, "-k", "reproduce", "PROFILE=mine", code=2)
    log = (folder / "log").read_text().splitlines()
    ends = [f"ended {name}" for name in ("results/mine/b-seed0.json", "table-1", "results/mine/c-seed0.json")]
    assert [line for line in log if line.startswith("ended")] == ["ended results/mine/a-seed0.json", *ends]


def test_records_run_side_by_side_and_table_1_comes_before_those_that_it_does_not_show(fake):
    folder = fake("sleep 0.5")
    said = make(folder, "reproduce", "PROFILE=mine", "-j2").stderr
    assert "jobserver" not in said
    log = (folder / "log").read_text().splitlines()
    assert log[0] == "missing mine"
    assert {*log[1:3]} == {"run results/mine/a-seed0.json", "run results/mine/b-seed0.json"}
    drawn = log.index("draw table-1")
    assert {"ended results/mine/a-seed0.json", "ended results/mine/b-seed0.json"} <= {*log[:drawn]}
    assert log.index("ended table-1") < log.index("run results/mine/c-seed0.json"), "Table 1 comes first"


# ------------------------------------------------------------------------- whether a record is current


def test_changed_preset_makes_the_runs_that_it_changes_again(folder, monkeypatch, bare_record):
    write(folder, "a", "shown_in: [table-10]\n")
    write(folder, "b", "shown_in: [table-10]\nrelabel: {epochs: 7}\n")
    monkeypatch.setattr(files, "SETTINGS", folder / "settings")
    monkeypatch.setenv("DWA_ROOT", str(folder))
    for setting in files.list_runs("mine"):
        store.write_json(setting.record_path(), bare_record(setting))
    assert planned(folder, "table-10", "PROFILE=mine") == ["table-10"]
    presets = folder / "dwa_paper" / "settings" / "presets.py"
    presets.write_text(presets.read_text() + '\nPRESETS["digits"]["relabel"]["epochs"] += 1\n')
    assert planned(folder, "table-10", "PROFILE=mine") == ["mine/a", "table-10"]
    files_of_table = product.locate_files("table-10", "mine")
    assert not any(path.exists() for path in files_of_table)
