"""make verify: the committed records pass, and whatever is changed by hand is found."""

import json
import re
import shutil
import subprocess

import pytest
from fault_tools import REPOSITORY, execute_here

from dwa_core.errors import UserError
from dwa_paper.settings import files
from dwa_paper.tools import verify


@pytest.fixture
def lite(own_root, monkeypatch, tmp_path):
    """A copy of the committed results as the root."""
    shutil.copytree(REPOSITORY / "results", own_root / "results")
    return own_root / "results"


@pytest.fixture
def problems(lite, tmp_path, monkeypatch):
    """A function that verifies a profile, the tables' notebooks run in this process, and returns what it finds."""
    monkeypatch.setenv("MPLBACKEND", "agg")

    def run(command, env, **_):
        monkeypatch.setenv("DWA_ROOT", env["DWA_ROOT"])
        name, profile = command[4], command[6]
        execute_here(str(files.NOTEBOOKS / f"{name}.ipynb"), tmp_path / "executed.ipynb", {"profile": profile})
        monkeypatch.setenv("DWA_ROOT", str(lite.parent))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(verify.subprocess, "run", run)

    def check(profile: str = "lite") -> list[str]:
        try:
            verify.verify(profile)
        except UserError as error:
            return [str(error)]
        except ExceptionGroup as group:
            return [str(error) for error in group.exceptions]
        return []

    return check


@pytest.mark.parametrize("profile", ["lite", "search"])
def test_committed_results_match(profile, problems, capsys):
    assert problems(profile) == []
    assert f"{profile}: everything matches: " in capsys.readouterr().out


def test_profile_that_was_never_run_has_nothing(problems, lite):
    assert problems("paper") == [f"{lite / 'paper'}: there is nothing yet; make reproduce PROFILE=paper makes it"]


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
        (lambda record: record.pop("versions"), "the record is damaged"),
    ],
)
def test_changed_record_is_found(change, expected, lite):
    edit(lite / "lite" / RECORD, change)
    found = verify.check_records("lite")
    assert any(str(lite / "lite" / RECORD) in line and expected in line for line in found), found


def test_card_in_other_words_is_no_other_set(lite):
    edit(lite / "lite" / RECORD, lambda record: record["distilled"]["files"].update({"README.md": "0"}))
    assert verify.check_records("lite") == []


def test_changed_artifact_is_found(lite):
    path = next((lite / "artifacts" / "teachers").glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify.check_artifacts() == [f"{path.parent}: model.safetensors is damaged"]


def test_what_is_no_artifact_is_not_checked(lite):
    for kind in ("exports", "set-aside", "checkpoints"):
        (lite.parent / "artifacts" / kind / "folder").mkdir(parents=True)
    assert verify.check_artifacts() == []
    (lite.parent / "artifacts" / "data" / "folder").mkdir(parents=True)
    assert verify.check_artifacts() == [f"{lite.parent / 'artifacts' / 'data' / 'folder'}: record.json is missing"]


def test_artifacts_that_records_name_and_that_are_not_local_are_listed_and_no_error(lite):
    before = verify.list_absent("lite")
    record = json.loads((lite / "lite" / RECORD).read_text())
    shutil.rmtree(lite / "artifacts")
    edit(lite / "lite" / "cifar10-convnet-128-sre2l-ipc10-seed0.json", lambda record: record.pop("versions"))
    gone = verify.list_absent("lite")
    assert verify.check_artifacts() == []
    assert not any("distilled" in line and "random-real" in line for line in gone)
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        name = f"{kind}/{record[part]['artifact']}: not local, so not checked; records that name it: "
        assert not any(line.startswith(name) for line in before)
        assert sum(line.startswith(name) for line in gone) == 1
    assert any(line.endswith("records that name it: 3") for line in gone)


def test_changed_missing_and_foreign_tables_are_found(problems, lite):
    table, csv = lite / "lite" / "table-1.md", lite / "lite" / "table-1.csv"
    table.write_text(table.read_text().replace("33.5", "45.0"))
    csv.unlink()
    (lite / "lite" / "table-99.md").write_text("| accuracy |\n| 99.9 |\n")
    found = "\n".join(problems())
    assert f"{table}: differs from what the records give" in found
    assert f"{csv}: it is missing" in found
    assert "table-99.md: no notebook makes it from the records" in found
    assert len(found.splitlines()) == 3


def test_table_whose_record_is_gone_is_found(problems, lite):
    (lite / "lite" / RECORD).unlink()
    assert any("table-1.md: differs from what the records give" in line for line in problems())


def test_line_of_what_a_table_was_drawn_from_does_not_matter(problems, lite):
    table = lite / "lite" / "table-1.md"
    table.write_text(re.sub("<!-- drawn from .* -->", "<!-- drawn from 0123456789 -->", table.read_text()))
    assert problems() == []
