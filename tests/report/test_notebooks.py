"""The notebooks as files, and executed in the demo profile through the command line that make calls."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import yaml
from jupyter_server.services.contents.largefilemanager import LargeFileManager

from dwa_paper.report import product
from dwa_paper.settings import files, presets, schema

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
RECORD_FIELDS = {
    "setting",
    "accuracy",
    "curve",
    "seconds",
    "precision",
    "compiled",
    "device",
    "versions",
    "code",
    "revision",
    "tree_clean",
    "finished",
    "data",
    "teacher",
    "distilled",
    "diversity",
}


def short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def run(*arguments: str, root: Path, **environment: str) -> subprocess.CompletedProcess:
    """The command line, with artifacts, results and figures under `root`.

    On one thread: the demo's networks gain little from a second, and lose minutes where cores are busy.
    """
    command = [sys.executable, "-m", "dwa_paper", *arguments]
    variables = {key: value for key, value in os.environ.items() if key not in ("DWA_DATA", "DWA_DEBUG")}
    variables |= {"DWA_ROOT": str(root), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_notebook_file_is_tidy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert len(tagged) == 1
    assert code[0] is tagged[0], "nothing may run before the parameters are known"
    for line in tagged[0].source.splitlines():
        assert re.match(r"\w+ = .*  # \S", line), f"a parameter without a comment: {line}"
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= 40


def test_lab_saves_an_executed_notebook_as_git_has_it(tmp_path):
    hook = re.search(r"pre_save_hook=(\S+)", (REPOSITORY / "Makefile").read_text())[1]
    manager = LargeFileManager(root_dir=str(tmp_path), pre_save_hook=hook)
    copies = [shutil.copy(path, tmp_path) for path in NOTEBOOKS]
    subprocess.run("git init -q && git add *.ipynb", shell=True, cwd=tmp_path, check=True)
    for path in [*map(Path, copies), tmp_path / "own.ipynb"]:
        content = manager.get(path.name if path.exists() else NOTEBOOKS[0].name)["content"]
        content["metadata"]["language_info"] |= {"version": "3.11.9", "file_extension": ".py"}
        content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
        code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
        output = {"output_type": "stream", "name": "stdout", "text": "2"}
        code |= {"execution_count": 1, "outputs": [nbformat.from_dict(output)]}
        code["metadata"] |= {"trusted": True, "execution": {"shell.execute_reply": "2026-01-01T00:00:00Z"}}
        manager.save({"type": "notebook", "format": "json", "content": content}, path.name)
    for path in NOTEBOOKS:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert "3.11.9" in (tmp_path / "own.ipynb").read_text(), "what git has not is saved as it is"


def test_setting_notebook_knows_every_parameter_of_every_setting():
    known = set(papermill.inspect_notebook(str(REPOSITORY / "notebooks" / "setting.ipynb")))
    assert known == set(schema.Setting.model_fields)
    for profile in files.list_profiles():
        for name, parameters in files.read_settings(profile).items():
            assert set(parameters) <= known, (profile, name)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """One seed of DWA and of SRe2L from the demo profile, run as make runs them."""
    root = tmp_path_factory.mktemp("demo")
    for method in ("dwa", "sre2l"):
        done = run("run", f"settings/demo/digits-{method}-ipc10.yaml", "--seed", "0", root=root)
        assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_demo_record_holds_all_fields_and_the_accuracies_expected_of_the_demo(demo):
    record = json.loads((demo / "results/demo/digits-dwa-ipc10-seed0.json").read_text())
    assert set(record) == RECORD_FIELDS
    assert record["teacher"]["accuracy"]["top1"] >= 95
    assert record["accuracy"]["reported"] > 60
    assert len(record["curve"]) == record["setting"]["relabel"]["epochs"]
    assert {"training_images": 1297, "test_images": 500}.items() <= record["data"].items()
    assert set(record["seconds"]) == {"teacher", "synthesis", "student"}


def test_notebook_alone_changes_nothing_in_a_preset():
    defaults = papermill.inspect_notebook(str(REPOSITORY / "notebooks" / "setting.ipynb"))
    values = {name: ast.literal_eval(parameter["default"]) for name, parameter in defaults.items()}
    for preset in presets.PRESETS:
        place = {"profile": values["profile"], "name": values["name"], "preset": preset}
        assert schema.resolve({**values, "preset": preset}) == schema.resolve(place)


def test_published_artifacts_are_not_ignored_by_git():
    for path, ignored in (
        ("artifacts/teachers/x/record.json", True),
        ("results/artifacts/teachers/x/record.json", False),
    ):
        asked = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY, check=False)
        assert (asked.returncode == 0) is ignored, path


def test_second_run_of_a_recorded_setting_does_nothing(demo):
    executed = demo / "results/demo/executed/digits-dwa-ipc10-seed0.ipynb"
    before = executed.stat().st_mtime_ns
    again = run("run", "settings/demo/digits-dwa-ipc10.yaml", "--seed", "0", root=demo)
    assert again.returncode == 0
    assert "recorded already" in again.stdout
    assert executed.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", files.list_products())
def test_table_and_figure_notebooks_run_on_the_demo_records(demo, name, monkeypatch):
    done = run("draw", name, "--profile", "demo", root=demo)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "table-6":
        assert "Not run yet" not in done.stdout, "hyper-parameters need no records"
    else:
        assert re.search(r"Not run yet:\n  make results/demo/digits\S+-seed\d\.json\n", done.stdout)
    monkeypatch.setenv("DWA_ROOT", str(demo))
    for path in product.locate_files(name, "demo"):
        assert path.stat().st_size > 0
        assert str(path.relative_to(demo)) in done.stdout
    assert product.is_current(name, "demo", files.list_runs("demo"))


def test_executed_figure_notebook_shows_the_figure(demo):
    assert run("draw", "figure-accuracy", "--profile", "demo", root=demo).returncode == 0
    executed = nbformat.read(demo / "results/demo/executed/figure-accuracy.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_report_is_one_page_that_loads_nothing(demo):
    for name in ("table-1", "figure-accuracy", "report"):
        done = run("draw", name, "--profile", "demo", root=demo)
        assert done.returncode == 0, done.stdout + done.stderr
    plan = subprocess.run(
        ["make", "--dry-run", "report"], capture_output=True, text=True, cwd=REPOSITORY, check=True
    ).stdout.replace("\\\n", " ")
    convert = re.search(r"^\S*jupyter (nbconvert .*?)( &&.*)?$", plan, re.MULTILINE).group(1)
    command = [word.replace("results/$PROFILE", str(demo / "results" / "demo")) for word in shlex.split(convert)]
    subprocess.run([sys.executable, "-m", "jupyter", *command], cwd=REPOSITORY, check=True, capture_output=True)
    page = (demo / "results/demo/report.html").read_text()
    assert re.search(r"of \d+ runs that its settings ask for, 2 have records", page)
    assert "Table 1: students trained on distilled images" in page
    assert "make results/demo/digits-dwa-ipc10-seed1.json" in page
    (image,) = re.findall(r'<img [^>]*alt="Test accuracy by method[^>]*>', page)
    assert re.search(r'src="data:image/png;base64,[^"]{1000,}"', image)
    links = re.findall(r'href="#([^"]+)"', page)
    assert {"table-1", "figure-accuracy", "provenance", "missing"} <= set(links)
    for anchor in ("table-1", "figure-accuracy", "provenance", "missing"):
        assert f'<a id="{anchor}">' in page
    assert not re.search(r"<script|<link|<iframe|@import|(src|href)=.?https?:", page)


def test_walkthrough_runs_without_a_warning(demo):
    done = run("draw", "walkthrough", "--profile", "walkthrough", root=demo)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = nbformat.read(demo / "results/walkthrough/executed/walkthrough.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_notebook_of_ones_own_data_runs_without_a_warning_and_its_teacher_learns(tmp_path):
    done = run("draw", "your_own_data", "--profile", "your-own-data", root=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    (record, _) = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("results/your-own-data/*.json"))]
    assert record["data"]["training_images"] == 360
    assert record["teacher"]["accuracy"]["top1"] > 60, "three classes: chance is 33"
    assert len(list(tmp_path.glob("exports/*-imagefolder/train/*/*.png"))) == 3 * 2


@pytest.mark.parametrize("name", ["setting", "walkthrough"])
def test_notebook_that_is_run_twice_reads_the_same_setting(name):
    """A variable of a later cell would be taken for a parameter of its name."""
    path = REPOSITORY / "notebooks" / f"{name}.ipynb"
    first, *others = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert first.metadata.tags == ["parameters"]

    def list_assigned(cells) -> set[str]:
        trees = [ast.walk(ast.parse(cell.source)) for cell in cells]
        names = [node for tree in trees for node in tree if isinstance(node, ast.Name)]
        return {node.id for node in names if isinstance(node.ctx, ast.Store)}

    assert not list_assigned(others) & schema.Setting.model_fields.keys() - list_assigned([first])


def test_every_notebook_is_run_by_a_test():
    others = {path.stem for path in NOTEBOOKS} - set(files.list_products())
    assert others == {"setting", "walkthrough", "your_own_data", "report"}


# ------------------------------------------- what a user gets wrong, as far as it needs a real kernel

GOOD = {"preset": "digits", "method": "dwa", "ipc": 10, "network": "convnet-64"}


def test_papermill_parameter_that_no_notebook_knows_is_the_last_line_of_its_traceback(tmp_path):
    path = tmp_path / "digits-dwa-ipc10.yaml"
    path.write_text(yaml.safe_dump(files.read_settings("demo")[path.stem]))
    command = [sys.executable, "-m", "papermill", "notebooks/setting.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-f", str(path), "-p", "epochs", "5", "-k", "python3"]
    variables = {**os.environ, "DWA_ROOT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=REPOSITORY, check=False)
    assert done.returncode != 0
    last = [line for line in done.stderr.splitlines() if line.strip()][-1]
    assert last.startswith("InputError: epochs: unknown parameter")
    assert not (tmp_path / "artifacts").exists()


def test_failure_inside_a_notebook_is_one_line_and_a_traceback_on_request(tmp_path):
    broken = {"root": tmp_path, "MPLBACKEND": "nonsense"}  # which matplotlib refuses when a cell imports it
    plain = run("draw", "figure-accuracy", "--profile", "demo", **broken)
    assert plain.returncode == 1
    assert "executed/figure-accuracy.log, or set DWA_DEBUG=1" in plain.stderr
    assert "Traceback" in (tmp_path / "results/demo/executed/figure-accuracy.log").read_text()
    assert plain.stderr.count("\n") == 1
    debug = run("draw", "figure-accuracy", "--profile", "demo", DWA_DEBUG="1", **broken)
    assert "Traceback" in debug.stderr


def test_runner_passes_an_interrupt_on_to_the_kernel(tmp_path):
    path = tmp_path / "trial" / "long.yaml"
    path.parent.mkdir()
    long = {"profile": "trial", "name": "long", **GOOD, "teacher": {"epochs": 100_000}}
    path.write_text(yaml.safe_dump(long))
    command = [sys.executable, "-m", "dwa_paper", "run", str(path)]
    variables = {**os.environ, "DWA_ROOT": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, cwd=REPOSITORY
    ) as process:
        for line in process.stdout:
            if "training and" in line:  # the data are loaded, the teacher comes next
                break
        process.terminate()
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                left.kill()
            process.kill()
    assert process.returncode == 128 + 15
    assert errors == "error: stopped by SIGTERM; run the same command to continue\n"
