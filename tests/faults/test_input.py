"""What a user can get wrong: each is answered with one line and an exit code, and leaves everything as it was.

The command line runs in this process, with the notebook's cells but without a kernel; a few cases go through make and
a real kernel.
"""

import importlib.metadata
import os
import re
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
import yaml
from fault_tools import GOOD, make, parquet, settings_file, snapshot, tree
from jupyter_client.kernelspec import NoSuchKernel
from PIL import Image

from dwa_paper.runs import real, stop

# --------------------------------------------------------------------------------------------- settings

SETTINGS = {
    "unknown key": ({"iterations": 5}, "iterations: unknown key"),
    "unknown key in a stage": ({"teacher": {"epoch": 5}}, "teacher.epoch: unknown key"),
    "unknown key in images": ({"images": {"size": 32}}, "images.size: unknown key"),
    "ipc zero": ({"ipc": 0}, "ipc: 0 is not allowed"),
    "ipc in words": ({"ipc": "ten"}, "ipc: 'ten' is not allowed"),
    "ipc a fraction": ({"ipc": 1.5}, "ipc: 1.5 is not allowed"),
    "negative rho": ({"synthesis": {"rho": -1.0}}, "synthesis.rho: -1.0 is not allowed"),
    "rho not a number": ({"synthesis": {"rho": float("nan")}}, "synthesis.rho: nan is not allowed"),
    "infinite weight": ({"synthesis": {"r_var": float("inf")}}, "synthesis.r_var: inf is not allowed"),
    "rate of zero": ({"teacher": {"learning_rate": 0.0}}, "teacher.learning_rate: 0.0 is not allowed"),
    "rate that YAML reads as text": ({"teacher": {"learning_rate": "1e-3"}}, "write 0.001"),
    "text for a truth value": ({"authors": "yes"}, "authors: 'yes' is not allowed"),
    "number for a truth value": ({"deterministic": 1}, "deterministic: 1 is not allowed"),
    "unknown preset": ({"preset": "mnist"}, "preset: 'mnist' is not known"),
    "preset a list": ({"preset": ["cifar10"]}, "preset: ['cifar10'] is not known"),
    "no preset": ({"preset": None}, "preset: None is not known"),
    "unknown method": ({"method": "mtt"}, "method: 'mtt' is not allowed"),
    "unknown precision": ({"precision": "fp16"}, "precision: 'fp16' is not allowed"),
    "unknown device": ({"device": "tpu"}, "device: 'tpu' is not allowed"),
    "unknown optimiser": ({"relabel": {"optimizer": "lion"}}, "relabel.optimizer: 'lion' is not allowed"),
    "data set that is a path": ({"dataset": "../secret"}, "dataset: '../secret' is not allowed"),
    "seed too large": ({"synthesis": {"seed": 2**31}}, "synthesis.seed: 2147483648 is not allowed"),
    "roll reversed": ({"synthesis": {"roll": [4, 0]}}, "synthesis.roll: [4, 0] is not allowed"),
    "roll of three": ({"synthesis": {"roll": [0, 1, 2]}}, "synthesis.roll: [0, 1, 2] is not allowed"),
    "std of zero": ({"images": {"std": [0.2, 0.0, 0.2]}}, "images.std.1: 0.0 is not allowed"),
    "mean of two channels": ({"images": {"mean": [0.5, 0.5]}}, "images.mean: [0.5, 0.5] is not allowed"),
    "side too small": ({"images": {"side": 4}}, "images.side: 4 is not allowed"),
    "warm-up as long as the training": ({"teacher": {"epochs": 5, "warmup_epochs": 5}}, "teacher.warmup_epochs: 5"),
    "batch of one": ({"teacher": {"batch_size": 1}}, "teacher.batch_size: 1 is not allowed"),
    "momentum of one": ({"teacher": {"momentum": 1.0}}, "teacher.momentum: 1.0 is not allowed"),
    "stage that is a number": ({"teacher": 5}, "teacher: 5 is not allowed; must hold keys and values"),
    "weights with the small stem": ({"teacher": {"weights": "IMAGENET1K_V1"}}, "stem: 'small' is not allowed"),
    "fine-tuning of nothing": ({"teacher": {"fine_tune": True}}, "teacher.fine_tune: True is not allowed without"),
    "no minutes": ({"max_minutes": 0.0}, "max_minutes: 0.0 is not allowed"),
    "other profile": ({"profile": "lite"}, "profile: 'lite' is not allowed"),
    "other name": ({"name": "good"}, "name: 'good' is not allowed"),
    # These are found by the notebook's first calls.
    "unknown network": ({"network": "resnet19"}, "network: 'resnet19' is not a network"),
    "unknown student": ({"student": "lenet"}, "student: 'lenet' is not a network"),
    "unknown data set": ({"dataset": "nowhere"}, "dataset: 'nowhere' cannot be found"),
    "more images than there are": ({"ipc": 1000}, "ipc: 1000 is not allowed"),
    "unknown weights": (
        {"network": "resnet18", "stem": "torchvision", "teacher": {"weights": "IMAGENET1K_V9"}},
        "teacher.weights: 'IMAGENET1K_V9' is not known for resnet18",
    ),
}
TEXTS = {
    "list instead of a mapping": ("- preset: digits\n", "not a YAML mapping"),
    "empty file": ("", "not a YAML mapping"),
    "YAML that does not parse": ("preset: [digits\n", "not YAML"),
    "seeds that are no list": ("profile: trial\nname: bad\npreset: digits\nseeds: 3\n", "seeds: 3 is not allowed"),
    "a product that is no list": (
        "profile: trial\nname: bad\npreset: digits\nshown_in: table-1\n",
        "shown_in: 'table-1' is not allowed",
    ),
    "a command for a seed": (
        "profile: trial\nname: bad\npreset: digits\nseeds: [0&touch x]\n",
        "seeds.0: '0&touch x' is not allowed",
    ),
    "no seeds": ("profile: trial\nname: bad\npreset: digits\nseeds: []\n", "seeds: [] is not allowed"),
    "the same seed twice": ("profile: trial\nname: bad\npreset: digits\nseeds: [1, 1]\n", "seeds: [1, 1]"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_setting(case, refusal, place):
    changed, expected = SETTINGS[case]
    assert expected in refusal("run", settings_file(place, **changed))


@pytest.mark.parametrize("case", TEXTS)
def test_bad_settings_file(case, refusal, place):
    text, expected = TEXTS[case]
    assert expected in refusal("run", settings_file(place, text))


def test_settings_file_that_is_not_text(refusal, place):
    path = settings_file(place, "")
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert "not UTF-8" in refusal("run", path)


def test_settings_file_that_is_not_there(refusal, place):
    assert "cannot be read; No such file" in refusal("run", place / "trial" / "none.yaml")


def test_settings_file_that_is_a_folder(refusal, place):
    (place / "trial" / "folder.yaml").mkdir()
    assert "cannot be read; Is a directory" in refusal("run", place / "trial" / "folder.yaml")
    assert "is not known; allowed: " in refusal("run", place / "trial")


# --------------------------------------------------------------------------------- parameters, command line


@pytest.mark.parametrize("arguments", [["--seed", "two"], ["--seed", "-1"], ["--max-minutes", "soon"], ["--fast"]])
def test_bad_argument(arguments, refusal, place):
    line = refusal("run", settings_file(place), *arguments)
    assert arguments[0].strip("-").partition("-")[0] in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["draw", "table-1", "--profile", "papre"],
        ["missing", "papre"],
        *([name, "papre"] for name in ("plan", "status", "verify", "publish")),
        ["run", "results/papre/a.json"],
    ],
)
def test_unknown_profile(arguments, refusal):
    assert refusal(*arguments).startswith("error: profile: 'papre' is not known; ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["plan"], "the following arguments are required: profile"),
        (["run", "results/demo/none.json"], "results/demo/none.json: no setting of this name"),
        (["draw", "table-7"], "table-7: no notebook of this name; "),
        (["draw", "setting"], "setting: no notebook of this name"),
        (["missing", "demo", "table-7"], "table-7: no table or figure of this name"),
        (["share", "none"], "none: no such distilled set"),
        (["share", "none", "--format", "zip"], "argument --format: invalid choice: 'zip' (choose from"),
        (["share", "none", "--soft-labels", "two"], "argument --soft-labels: invalid choice: 'two' (choose from"),
    ],
)
def test_bad_command(arguments, text, refusal):
    assert text in refusal(*arguments)


def test_papermill_parameter_that_the_notebook_does_not_know(refusal, place, monkeypatch):
    execute = papermill.execute_notebook

    def with_one_more(path, output, parameters, **rest):
        execute(path, output, {**parameters, "epochs": 5}, **rest)

    monkeypatch.setattr(papermill, "execute_notebook", with_one_more)
    answer = refusal("run", settings_file(place))
    assert "epochs: unknown parameter; allowed here: authors, best, compile, dataset" in answer


# ------------------------------------------------------------------------------------------------- data


def empty(place):
    (place / "data" / "own").mkdir()
    return "no train part"


def without_a_test_part(place):
    for path in sorted((tree(place) / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (place / "data" / "own" / "test").rmdir()
    return "no test part"


def with_a_class_missing_in_the_test_part(place):
    folder = tree(place) / "test" / "b"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return "do not have the same classes: 'b'"


def with_a_class_without_training_images(place):
    for path in (tree(place) / "train" / "b").iterdir():
        path.unlink()
    return "class 'b' has no training images"


def with_an_image_that_is_cut_short(place):
    path = tree(place) / "train" / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return "train image"


def with_text_for_an_image(place):
    (tree(place) / "test" / "a" / "1.png").write_text("no image")
    return "test image"


def with_one_image_too_few(place):
    (tree(place) / "train" / "b" / "1.png").unlink()
    return "ipc: 2 is not allowed; class 'b' of own has 1 training images"


def with_text_for_parquet(place):
    (parquet(place) / "train-0.parquet").write_text("no Parquet")
    return "train part"


def with_a_truncated_parquet_file(place):
    path = parquet(place) / "test-0.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    return "test part"


def with_a_label_below_zero(place):
    parquet(place, labels=(0, 1, -1, 1))
    return "labels are -1 to 1; expected 0 to 1"


def with_another_image_column(place):
    parquet(place, columns=("picture", "label"))
    return "no column image or img; its columns: picture, label"


def with_another_label_column(place):
    parquet(place, columns=("image", "kind"))
    return "no column fine_label or label or class_id; its columns: image, kind"


def with_labels_that_are_plain_numbers(place):
    parquet(place, names=None)
    return "does not name its classes"


@pytest.mark.parametrize(
    "spoilt",
    [
        empty,
        without_a_test_part,
        with_a_class_missing_in_the_test_part,
        with_a_class_without_training_images,
        with_an_image_that_is_cut_short,
        with_text_for_an_image,
        with_one_image_too_few,
        with_text_for_parquet,
        with_a_truncated_parquet_file,
        with_a_label_below_zero,
        with_another_image_column,
        with_another_label_column,
        with_labels_that_are_plain_numbers,
    ],
)
def test_bad_data_folder(spoilt, refusal, place, monkeypatch):
    monkeypatch.setenv("DWA_DATA", str(place / "data"))
    expected = spoilt(place)
    assert expected in refusal("run", settings_file(place, dataset="own", ipc=2))


# ------------------------------------------------------------------------------------------- environment


def test_data_folder_that_is_not_there(refusal, place, monkeypatch):
    monkeypatch.setenv("DWA_DATA", str(place / "nowhere"))
    assert "DWA_DATA: " in refusal("run", settings_file(place))


@pytest.mark.parametrize("value", ["often", "-1", "nan", "inf"])
def test_bad_checkpoint_clock(value, refusal, place, monkeypatch):
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", value)
    assert f"DWA_CHECKPOINT_SECONDS: '{value}' is not allowed" in refusal("run", settings_file(place))


def test_cuda_that_is_not_there(refusal, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device: 'cuda' is not available here" in refusal("run", settings_file(place, device="cuda"))


def test_library_that_is_too_old(refusal, place, monkeypatch):
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.13.1" if name == "torch" else found(name))
    assert "torch 1.13.1 is here, torch>=" in refusal("run", settings_file(place))


def test_library_that_is_missing(refusal, place, monkeypatch):
    found = importlib.metadata.version

    def version(name):
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "datasets is not installed" in refusal("run", settings_file(place))


def test_kernel_that_is_missing(refusal, place, monkeypatch):
    def execute(*_, **__):
        raise NoSuchKernel("python3")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert "the Jupyter kernel python3 is missing" in refusal("run", settings_file(place))


def test_file_where_the_results_should_go(refusal, place, own_root):
    (own_root / "results").write_text("in the way")
    assert "results" in refusal("run", settings_file(place), code=1)


def test_file_where_the_artifacts_should_go(refusal, place, own_root):
    (own_root / "artifacts").write_text("in the way")
    assert "cannot be written; Not a directory" in refusal("run", settings_file(place), code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_to_write(refusal, place, own_root):
    own_root.chmod(0o555)
    try:
        assert "Permission denied" in refusal("run", settings_file(place), code=1)
    finally:
        own_root.chmod(0o755)


# ------------------------------------------------------------------------------------- records of a table


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"setting": {}, "accuracy": {}}', '{"setting": 1}'])
def test_damaged_record_counts_as_not_run(text, command, own_root, capsys):
    path = own_root / "results" / "demo" / "digits-dwa-ipc10-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert command("draw", "table-1") == 0
    printed = capsys.readouterr().out
    assert re.search(r"Not run yet:\n(  .*\n)*  make results/demo/digits-dwa-ipc10-seed0.json\n", printed)


# ------------------------------------------------------------------------------- through make and a kernel


def refused_by_make(checkout: Path, *arguments: str, **environment: str) -> str:
    """What Python prints on stderr through make; make adds lines of its own, which begin with its name."""
    folders = [checkout / name for name in ("settings", "results", "figures", "dwa_core", "dwa_paper")]
    before = snapshot(*folders)
    done = make(checkout, *arguments, **environment)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    after = snapshot(*folders)
    assert {path for path in after if "__pycache__" not in str(path)} == {
        path for path in before if "__pycache__" not in str(path)
    }
    return lines[0]


@pytest.fixture
def own_settings(checkout):
    """A function that writes settings/trial/bad.yaml to the copy that make runs in; they are gone afterwards."""
    folder = checkout / "settings" / "trial"
    folder.mkdir()

    def write(file: str = "bad.yaml", **changed) -> None:
        text = yaml.safe_dump({"profile": "trial", "name": "bad", **GOOD, **changed})
        (folder / file).write_text(text)

    yield write
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_make_answers_a_bad_setting(checkout, own_settings):
    own_settings(ipc=0)
    assert "ipc: 0 is not allowed" in refused_by_make(checkout, "results/trial/bad.json")


def test_make_answers_what_a_real_kernel_finds(checkout, own_settings, tmp_path):
    (tmp_path / "data").mkdir()
    own_settings(dataset="own", ipc=2)
    expected = with_one_image_too_few(tmp_path)
    line = refused_by_make(checkout, "results/trial/bad.json", DWA_DATA=str(tmp_path / "data"))
    assert line.startswith("error: ")
    assert line.endswith(expected)


def test_make_answers_a_settings_file_with_a_space_in_its_name(checkout, own_settings):
    own_settings("my own.yaml", name="my own")
    assert "name: 'my own' is not allowed; only letters" in refused_by_make(checkout, "reproduce", "PROFILE=trial")


def test_make_answers_a_settings_file_that_is_not_there(checkout):
    line = refused_by_make(checkout, "results/demo/none.json")
    assert line == "error: results/demo/none.json: no setting of this name; make plan PROFILE=demo lists them"


# ------------------------------------------------------------------------------------------ out of time


def test_budget_ends_a_run_with_75_and_the_next_one_continues(command, place, own_root, monkeypatch, capsys):
    monkeypatch.setattr(stop, "budget_end", stop.budget_end)  # put back at the end, for the tests that follow
    path = settings_file(place, max_minutes=1e-9, teacher={"epochs": 1}, synthesis={"iterations": 1})
    for _ in range(2):
        assert command("run", path) == 75
        assert capsys.readouterr().err == "error: stopped by max_minutes 1e-09; run the same command to continue\n"
    assert len(list((own_root / "artifacts" / "checkpoints").iterdir())) == 1
    # A budget that is used up before the run begins is answered without a kernel.
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("started"))
    assert command("run", path, "--max-minutes", "5", "--since", "0") == 75


def test_make_out_of_time_says_how_to_continue(checkout):
    done = make(checkout, "results/demo/digits-dwa-ipc10.json", "MAX_MINUTES=0")
    assert done.returncode == 2
    assert "error: stopped by max_minutes 0; run the same command to continue" in done.stderr
    assert "Error 75" in done.stderr


# -------------------------------------------------------------------------------------- good after all


def test_grey_16_bit_and_transparent_images_are_good(place, monkeypatch, cpu, tiny_setting):
    folder = tree(place)
    wide = np.arange(0, 256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(wide).save(folder / "train" / "a" / "0.png")
    Image.fromarray((wide // 257).astype(np.uint8)).save(folder / "train" / "a" / "1.png")
    Image.fromarray(np.dstack([(wide // 257).astype(np.uint8)] * 3 + [np.full((16, 16), 9, np.uint8)])).save(
        folder / "train" / "b" / "0.png"
    )
    monkeypatch.setenv("DWA_DATA", str(place / "data"))
    found = real.load("own", tiny_setting().images, cpu).train.images_uint8[:3]
    expected = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    for image in found:
        assert torch.equal(image, expected)
