"""make verify: the committed records pass, and whatever is changed by hand is found."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pyarrow.parquet
import pytest
import yaml
from fault_tools import REPOSITORY, execute_here
from PIL import Image

from dwa_core import recipe
from dwa_core.errors import UserError
from dwa_paper.__main__ import main
from dwa_paper.report import prose
from dwa_paper.runs import records, sets, store
from dwa_paper.settings import files
from dwa_paper.tools import again, verify

SLOW = ("figure-gallery", "figure-losses", "figure-tsne")  # of lite


@pytest.fixture
def lite(own_root):
    """A copy of the committed results and figures as the root."""
    for folder in ("results", "figures"):
        shutil.copytree(REPOSITORY / folder, own_root / folder)
    return own_root / "results"


@pytest.fixture
def here(monkeypatch):
    """What verify does in processes of their own happens in this one; of the figures that are SLOW, nothing."""
    monkeypatch.setattr(again, "execute", execute_in)
    monkeypatch.setattr(prose, "pages", list)


def execute_in(folder, *arguments, **_) -> subprocess.CompletedProcess:
    """In place of `again.execute`: the command line under the root `folder`, its notebooks without a kernel."""
    if arguments[1] in SLOW:
        return subprocess.CompletedProcess(arguments, 0, "a set is not on this machine, so it is not drawn", "")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(papermill, "execute_notebook", execute_here)
        patch.setenv("DWA_ROOT", str(folder))
        patch.setenv("MPLBACKEND", "agg")
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main([*map(str, arguments)])
    plt.close("all")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, printed.getvalue(), errors.getvalue())


def find_problems(profile: str, rerun: int = 0) -> list[str]:
    try:
        verify.verify(profile, rerun)
    except UserError as error:
        return [str(error)]
    except ExceptionGroup as group:
        return [str(error) for error in group.exceptions]
    return []


@pytest.mark.parametrize("profile", ["lite", "search", "paper"])
def test_committed_results_match(profile, lite, here, capsys):
    assert find_problems(profile) == []
    assert f"{profile}: everything matches: " in capsys.readouterr().out


def test_profile_that_was_never_run_has_nothing(own_root):
    folder = own_root / "results" / "demo"
    assert find_problems("demo") == [f"{folder}: there is nothing yet; make reproduce PROFILE=demo makes it"]


def check_records(profile: str) -> list[str]:
    found, unreadable = records.read_all(profile)
    return unreadable + verify.check_records(found)


def check_runs(profile: str) -> list[str]:
    return verify.check_runs(profile, records.read_all(profile)[0])


def edit(path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


RECORD = "cifar10-convnet-128-dwa-ipc10-seed0.json"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda record: record["accuracy"].update(reported=99.0), "by its curve"),
        (lambda record: record["setting"]["synthesis"].update(rho=0.5), "its settings call for cifar10-dwa-ipc10-"),
        (lambda record: record["setting"]["teacher"].update(epochs=200), "its settings call for cifar10-convnet-128-"),
        (lambda record: record["data"].update(fingerprint="0" * 64), "its settings call for"),
        (lambda record: record["teacher"]["accuracy"].update(top1=95.0), "its teacher's accuracy"),
        (lambda record: record["distilled"]["files"].update({"train-00000-of-00001.parquet": "0"}), "other checksums"),
        (lambda record: record["setting"].update(seed=7), "its settings belong to"),
        (lambda record: record["curve"].pop(0), "its curve has 399 epochs"),
        (lambda record: record.pop("versions"), "versions: Field required; the record is damaged"),
    ],
)
def test_changed_record_is_found(change, expected, lite):
    edit(lite / "lite" / RECORD, change)
    found = check_records("lite")
    assert any(str(lite / "lite" / RECORD) in line and expected in line for line in found), found


def test_card_in_other_words_is_no_other_set(lite):
    edit(lite / "lite" / RECORD, lambda record: record["distilled"]["files"].update({"README.md": "0"}))
    assert check_records("lite") == []


def test_changed_artifact_is_found(lite):
    path = next((lite / "artifacts" / "teachers").glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify.check_artifacts() == [f"{path.parent}: model.safetensors is damaged; {verify.HINT}"]


def test_what_is_no_artifact_is_not_checked(lite):
    for kind in ("exports", "set-aside", "checkpoints"):
        (lite.parent / "artifacts" / kind / "folder").mkdir(parents=True)
    assert verify.check_artifacts() == []
    (lite.parent / "artifacts" / "data" / "folder").mkdir(parents=True)
    assert verify.check_artifacts() == [
        f"{lite.parent / 'artifacts' / 'data' / 'folder'}: record.json is missing; {verify.HINT}"
    ]


def test_artifacts_that_records_name_and_that_are_not_local_are_listed_and_no_error(lite):
    assert verify.find_absent(records.read_all("lite")[0]) == {}
    record = json.loads((lite / "lite" / RECORD).read_text())
    shutil.rmtree(lite / "artifacts")
    edit(lite / "lite" / "cifar10-convnet-128-sre2l-ipc10-seed0.json", lambda record: record.pop("versions"))
    gone = verify.find_absent(records.read_all("lite")[0])
    assert verify.check_artifacts() == []
    assert not any(kind == "distilled" and "random-real" in name for kind, name in gone)
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        assert RECORD in gone[kind, record[part]["artifact"]]


# ------------------------------------------------------------------------- a small profile, run in this test


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with the artifacts, records and products of a small profile, `mine`, and the folder of its settings."""
    base = tmp_path_factory.mktemp("mine")
    (base / "settings" / "mine").mkdir(parents=True)
    setting = {
        **{"profile": "mine", "name": "tiny", "preset": "digits", "network": "convnet-16", "ipc": 2, "seeds": [0, 1]},
        **{"device": "cpu", "precision": "fp32", "shown_in": ["table-1", "figure-accuracy"]},
        **{"teacher": {"epochs": 2}, "synthesis": {"iterations": 4}, "relabel": {"epochs": 3}},
    }
    (base / "settings" / "mine" / "tiny.yaml").write_text(yaml.safe_dump(setting))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SETTINGS", base / "settings")
        for arguments in (["run", "results/mine/tiny.json"], *(["draw", name, "--profile", "mine"] for name in DRAWN)):
            done = execute_in(base / "root", *arguments)
            assert done.returncode == 0, done.stderr
    return base


DRAWN = ("table-1", "table-6", "figure-accuracy", "what-moves-the-number")


@pytest.fixture
def mine(finished, here, tmp_path, monkeypatch):
    """A copy of it as the root; the folder of its records."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(files, "SETTINGS", tmp_path / "settings")
    return tmp_path / "root" / "results" / "mine"


def test_small_profile_matches_and_its_records_made_again_are_the_same_to_the_bit(mine, capsys):
    assert find_problems("mine", rerun=9) == []
    printed = capsys.readouterr().out
    assert printed.count("made again; its student took") == 2
    assert "of 2 records, 0 were made by other code of dwa_core than this, and 0 are older" in printed


def edit_both(mine, change) -> None:
    for path in mine.glob("*-seed*.json"):
        edit(path, change)


def replace_set(mine, change) -> None:
    """The images of the distilled set as `change` returns the table of them, with all checksums and records."""
    (folder,) = (mine.parents[1] / "artifacts" / "distilled").glob("[!.]*")
    path, record = folder / sets.PARQUET, store.read_json(folder / "record.json")
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)
    store.seal(folder, record.pop("settings"), **{key: record[key] for key in record if key != "files"})
    sums = store.compute_checksums(folder)
    edit_both(mine, lambda record: record["distilled"].update(files=sums))


fewer = partial(replace_set, change=lambda table: table.slice(0, 19))
unbalanced = partial(replace_set, change=lambda table: table.take([0, 0, *range(2, 20)]))


def other_teacher(top1: float, mine):
    (folder,) = (mine.parents[1] / "artifacts" / "teachers").glob("[!.]*")
    record = store.read_json(folder / "record.json")
    record["accuracy"]["top1"] = top1
    store.seal(folder, record.pop("settings"), **{key: record[key] for key in record if key != "files"})
    edit_both(mine, lambda one: one["teacher"]["accuracy"].update(top1=top1))


def other_accuracy(top1: float, mine):
    def change(record):
        record["accuracy"].update(last=top1, best=top1, reported=top1)
        record["curve"] = [{**entry, **({"top1": top1} if "top1" in entry else {})} for entry in record["curve"]]

    edit(mine / "tiny-seed0.json", change)


def remade_without(mine):
    """One record deleted, which was committed, and the tables drawn again."""
    for command in (
        ["init", "-q"],
        ["add", "results"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], cwd=mine.parents[1], check=True)
    (mine / "tiny-seed1.json").unlink()
    for name in DRAWN:
        assert execute_in(mine.parents[1], "draw", name, "--profile", "mine").returncode == 0


def copied(mine, **changed):
    """The record of seed 0 as that of another setting, which its other keys belong to."""
    shutil.copy(mine / "tiny-seed0.json", mine / "tiny-seed1.json")
    relabel = {**store.read_json(mine / "tiny-seed0.json")["setting"]["relabel"], **changed.pop("relabel", {})}
    edit(mine / "tiny-seed1.json", lambda record: record["setting"].update(**changed, relabel=relabel))


def other_top5(mine):
    edit(mine / "tiny-seed1.json", lambda record: record["accuracy"].update(top5=100.0))


def other_diversity(mine):
    edit(mine / "tiny-seed1.json", lambda record: record["diversity"].update(coverage=0.99))


def other_settings(mine):
    path = files.SETTINGS / "mine" / "tiny.yaml"
    path.write_text(path.read_text().replace("epochs: 3", "epochs: 4"))


def repainted_png(mine):
    path = mine.parents[1] / "figures" / "mine" / "figure-accuracy.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[40:60, 40:60] = 0
    Image.fromarray(pixels).save(path)


def repainted_svg(mine):
    path = mine.parents[1] / "figures" / "mine" / "figure-accuracy.svg"
    path.write_text(path.read_text().replace("L ", "L 1", 1))


def exchanged(mine):
    replace_set(mine, lambda table: table.set_column(0, "image", table["image"].take([1, 0, *range(2, 20)])))


def other_diversity_of_both(mine):
    edit_both(mine, lambda record: record["diversity"].update(coverage=0.99))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (partial(other_accuracy, 45.1), "45.1 % is no share of 500 test images"),
        (partial(other_teacher, 95.3), "95.3 % is no share of 500 test images"),
        (fewer, "it has 19 images, and not those of its settings, 2 of each of 10 classes"),
        (unbalanced, "it has 20 images, and not those of its settings"),
        (remade_without, "tiny-seed1.json: it was committed and is gone"),
        (partial(copied, seed=1), "its curve is that of"),
        (partial(copied, student="resnet18"), "its curve is that of"),
        (partial(copied, relabel={"labels": "hard"}), "its curve is that of"),
        (partial(copied, relabel={"batch_size": 5}), "its curve is that of"),
        (other_top5, "its accuracy is"),
        (other_diversity, "its diversity is not that of"),
        (other_settings, "it has relabel.epochs 3, and its settings give 4 now; make makes it again"),
    ],
)
def test_edit_by_hand_is_found(change, expected, mine):
    change(mine)
    found = [*verify.check_artifacts(), *check_runs("mine"), *check_records("mine")]
    found += verify.compare_records(records.read_all("mine")[0])
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(("change", "ending"), [(repainted_png, "png"), (repainted_svg, "svg")])
def test_repainted_figure_is_found(change, ending, mine):
    change(mine)
    path = mine.parents[1] / "figures" / "mine" / f"figure-accuracy.{ending}"
    (line,) = again.check_products("mine", records.read_all("mine")[0])
    assert line == f"{path}: differs from what the records give; delete it, and make draws it again"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (partial(other_accuracy, 44.4), "made again, it has another accuracy"),
        (partial(other_teacher, 95.2), "made again, its teacher's accuracy is"),
        (exchanged, "made again, it has another curve"),
        (other_diversity_of_both, "made again, it has another diversity"),
    ],
)
def test_consistent_edit_is_found_by_making_records_again(change, expected, mine):
    change(mine)
    assert (
        check_records("mine") == verify.compare_records(records.read_all("mine")[0]) == verify.check_artifacts() == []
    )
    found = again.check_records("mine", 2, set())
    assert any(expected in line for line in found), found


def test_record_of_another_machine_is_compared_within_a_tolerance(mine):
    record = store.read_json(mine / "tiny-seed0.json")
    later = {**record, "versions": {"torch": "3.0"}, "accuracy": {**record["accuracy"], "last": 0}}
    assert again.find_changes(record, later) == []
    later["accuracy"]["reported"] += again.STUDENT_POINTS + 0.2
    assert "its accuracy is" in again.find_changes(record, later)[0]
    later["diversity"] = {**record["diversity"], "coverage": 0.99}
    assert again.find_changes(record, later)[1] == "its set has another diversity"


@pytest.mark.parametrize(("deterministic", "said"), [(False, []), (True, ["it has another accuracy"])])
def test_record_of_a_gpu_is_compared_to_the_bit_if_it_is_deterministic(deterministic, said, mine):
    """Without it, the fastest kernel, and so the last bits, may differ from run to run."""
    record = store.read_json(mine / "tiny-seed0.json")
    record |= {"device": "NVIDIA H100", "setting": {**record["setting"], "deterministic": deterministic}}
    later = {**record, "accuracy": {**record["accuracy"], "last": 0}}
    assert again.find_changes(record, later) == said
    assert again.find_changes(record, record) == []


def test_records_that_no_training_tells_apart_are_no_copies(mine):
    copied(mine, relabel={"test_every": 3, "momentum": 0.5})
    assert verify.compare_records(records.read_all("mine")[0]) == []


def test_seed_without_a_record_is_named(mine, capsys):
    (mine / "tiny-seed1.json").unlink()
    assert check_runs("mine") == []
    assert capsys.readouterr().out == "mine: tiny has no record yet of seed 1; make makes it\n"


def test_records_of_other_code_are_counted_and_no_error(mine, monkeypatch):
    edit(mine / "tiny-seed0.json", lambda record: record.update(code="0" * 64))
    edit(mine / "tiny-seed1.json", lambda record: record.pop("code"))
    text = "mine: of 2 records, 1 were made by other code of dwa_core than this, and 1 are older and do not say"
    assert records.describe_code("mine", records.read_all("mine")[0].values()) == text
    assert check_runs("mine") == check_records("mine") == []


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [("a + b", "a - b", False), ("# why", "# because", True), ('"""Adds."""', '"""Sums\n    up."""', True)],
)
def test_fingerprint_of_code_sees_code_and_no_comment(old, new, same, tmp_path, monkeypatch):
    monkeypatch.setattr(records.dwa_core, "__file__", str(tmp_path / "__init__.py"))
    text = 'def add(a, b):\n    """Adds."""\n    # why\n    return a + b\n'
    found = []
    for content in (text, text.replace(old, new)):
        (tmp_path / "some.py").write_text(content)
        records.code_fingerprint.cache_clear()
        found.append(records.code_fingerprint())
    records.code_fingerprint.cache_clear()
    assert (found[0] == found[1]) == same


TRAINING = {
    **{"momentum": 0.9, "decay_matrices_only": False, "warmup_epochs": 0, "schedule": "cosine", "cosine_stretch": 1.0},
    **{"crop_padding": 4, "test_every": 10},
}
DEFAULTS = {
    recipe.TeacherStage: {**TRAINING, "recipe": "authors", "seed": 0, "weights": None},
    recipe.SynthesisStage: {
        **{"initial": "real", "adjustment": "directed", "rho": 0.015, "steps": 12, "r_bn": 0.01, "roll": [0, 4]},
        **{"resized_crop": False, "seed": 0, "image_gradient_after_adjustment": "cleared", "storage": "png"},
        **{"weights_between_class_batches": "restored", "weight_gradients_of_image_updates": "cleared"},
    },
    recipe.RelabelStage: {
        **TRAINING,
        **{"labels": "teacher", "loss_times_temperature_squared": False, "teacher_batch_statistics": False},
        "reported": "last",
    },
}


@pytest.mark.parametrize("stage", DEFAULTS, ids=lambda stage: stage.__name__)
def test_default_that_changes_needs_a_new_format_version(stage):
    """Names of artifacts leave out what is a default, and older records lack later fields: both mean these values."""
    assert store.FORMAT_VERSION == 1
    assert {key: stage.model_fields[key].get_default() for key in DEFAULTS[stage]} == DEFAULTS[stage]


def test_numbers_that_pages_quote_wrongly_are_found(mine, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    monkeypatch.setattr(prose, "pages", lambda: [page])
    monkeypatch.setattr(prose, "REPOSITORY", tmp_path)
    page.write_text("<!-- records lite -->9<!-- -->")
    assert verify.check_pages("mine") == []
    page.write_text("<!-- records mine -->9<!-- -->")
    assert verify.check_pages("mine") == [
        "README.md: records mine is given as '9'; the records give '2'; make docs writes it again"
    ]
    page.write_text("<!-- mine/unheard-of -->9<!-- -->")
    assert "there is no record of results/mine/unheard-of" in verify.check_pages("mine")[0]


def test_negative_rerun_is_refused(mine, refused):
    with refused("--rerun: -1 is not allowed"):
        verify.verify("mine", -1)


def test_set_with_fewer_images_is_named_set_aside_and_not_used(mine, capsys):
    fewer(mine)
    (folder,) = (mine.parents[1] / "artifacts" / "distilled").glob("[!.]*")
    assert store.find("distilled", folder.name) is None
    assert "it has 19 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "versions", "found"),
    [("random-real", "2.0", 1), ("random-real", "2.1", 0), ("dwa", "2.0", 1), ("dwa", "2.1", 1)],
)
def test_files_of_real_images_that_other_libraries_drew_again_are_not_compared(
    method, versions, found, tmp_path, monkeypatch
):
    settings = {"settings": {"method": method}, "versions": {"torch": versions}, "accuracy": {}}
    (tmp_path / "record.json").write_text(json.dumps({**settings, "files": {"train.parquet": "other bytes"}}))
    monkeypatch.setattr(again, "find_local", lambda kind, name: tmp_path if kind == "distilled" else None)
    named = {"artifact": "some-set", "files": {"train.parquet": "bytes"}}
    problems = [*verify.compare_artifacts({"teacher": named, "distilled": named}, {"torch": "2.0"})]
    assert len(problems) == found


def test_changed_missing_and_foreign_tables_are_found(mine):
    table, csv = mine / "table-1.md", mine / "table-1.csv"
    table.write_text(table.read_text().replace("digits", "cifar10"))
    csv.unlink()
    (mine / "table-99.md").write_text("| accuracy |\n| 99.9 |\n")
    found = "\n".join(find_problems("mine"))
    assert f"{table}: differs from what the records give" in found
    assert f"{csv}: it is missing" in found
    assert "table-99.md: no notebook makes it from the records" in found
    assert len(found.splitlines()) == 3


def test_table_whose_record_is_gone_is_found(mine):
    (mine / "tiny-seed1.json").unlink()
    assert any("table-1.md: differs from what the records give" in line for line in find_problems("mine"))


def test_line_of_what_a_table_was_drawn_from_does_not_matter(mine):
    table = mine / "table-1.md"
    table.write_text(re.sub("<!-- drawn from .* -->", "<!-- drawn from 0123456789 -->", table.read_text()))
    assert find_problems("mine") == []
