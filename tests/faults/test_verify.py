"""make verify: the committed records pass, and whatever is changed by hand is found."""

import importlib.util
import json
import shutil

import pytest
from fault_tools import REPOSITORY, execute_here

from dwa_core import verify


@pytest.fixture
def lite(own_root, monkeypatch, tmp_path):
    """A copy of the committed results as the root."""
    shutil.copytree(REPOSITORY / "results", own_root / "results")
    return own_root / "results"


@pytest.fixture
def problems(lite, tmp_path, monkeypatch):
    """A function that does what notebooks/verify.py does, the tables' notebooks run in this process."""
    specification = importlib.util.spec_from_file_location("verify_under_test", REPOSITORY / "notebooks" / "verify.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setenv("MPLBACKEND", "agg")

    def run(command, env, **_):
        monkeypatch.setenv("DWA_ROOT", env["DWA_ROOT"])
        execute_here(command[2], tmp_path / "executed.ipynb", {"profile": command[4]})
        monkeypatch.setenv("DWA_ROOT", str(lite.parent))
        return script.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", run)

    def check(capsys, profile: str = "lite") -> list[str]:
        code = script.main(profile)
        lines = capsys.readouterr().err.splitlines()
        assert code == bool(lines)
        assert all(line.startswith("error: ") for line in lines)
        return lines

    return check


@pytest.mark.parametrize("profile", ["lite", "search"])
def test_committed_results_are_as_they_say(profile, problems, capsys):
    assert problems(capsys, profile) == []


def test_profile_that_was_never_run_is_said_to_have_nothing(problems, lite, capsys):
    assert problems(capsys, "paper") == [
        f"error: {lite / 'paper'}: there is nothing yet; make reproduce PROFILE=paper makes it"
    ]


def changed(path, change) -> None:
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
        (lambda record: record.pop("versions"), "the record is damaged or of another form"),
    ],
)
def test_changed_record_is_found(change, expected, lite, capsys):
    changed(lite / "lite" / RECORD, change)
    found = verify.records("lite")
    assert any(str(lite / "lite" / RECORD) in line and expected in line for line in found), found


def test_card_in_other_words_is_no_other_set(lite):
    changed(lite / "lite" / RECORD, lambda record: record["distilled"]["files"].update({"README.md": "0"}))
    assert verify.records("lite") == []


def test_changed_artifact_is_found(lite):
    path = next((lite / "artifacts" / "teachers").glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify.artifacts() == [f"{path.parent}: model.safetensors is damaged"]


def test_what_is_no_artifact_is_not_looked_at(lite):
    for kind in ("exports", "set-aside", "checkpoints"):
        (lite.parent / "artifacts" / kind / "folder").mkdir(parents=True)
    assert verify.artifacts() == []
    (lite.parent / "artifacts" / "data" / "folder").mkdir(parents=True)
    assert verify.artifacts() == [f"{lite.parent / 'artifacts' / 'data' / 'folder'}: record.json is missing"]


def test_artifacts_that_records_name_and_that_are_not_at_hand_are_listed_and_no_error(lite):
    before = verify.absent("lite")
    told = json.loads((lite / "lite" / RECORD).read_text())
    shutil.rmtree(lite / "artifacts")
    changed(lite / "lite" / "cifar10-convnet-128-sre2l-ipc10-seed0.json", lambda record: record.pop("versions"))
    gone = verify.absent("lite")
    assert verify.artifacts() == []
    assert not any("distilled" in line and "random-real" in line for line in gone)
    for kind, part in (("teachers", "teacher"), ("distilled", "distilled")):
        name = f"{kind}/{told[part]['artifact']}: not at hand, so not checked; records that name it: "
        assert not any(line.startswith(name) for line in before)
        assert sum(line.startswith(name) for line in gone) == 1
    assert any(line.endswith("records that name it: 3") for line in gone)


def test_changed_missing_and_foreign_tables_are_found(problems, lite, capsys):
    table, csv = lite / "lite" / "table_01.md", lite / "lite" / "table_01.csv"
    table.write_text(table.read_text().replace("33.5", "45.0"))
    csv.unlink()
    (lite / "lite" / "table_99.md").write_text("| accuracy |\n| 99.9 |\n")
    found = "\n".join(problems(capsys))
    assert f"{table}: it is not what the records say" in found
    assert f"{csv}: it is missing" in found
    assert "table_99.md: no notebook makes it from the records" in found
    assert len(found.splitlines()) == 3


def test_table_whose_record_is_gone_is_found(problems, lite, capsys):
    (lite / "lite" / RECORD).unlink()
    assert any("table_01.md: it is not what the records say" in line for line in problems(capsys))
