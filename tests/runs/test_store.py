"""Store: names from content, artifacts whole or not at all, and nothing that runs code when read."""

import ast
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

import dwa_core
import dwa_paper
from dwa_paper.runs import store


def named(label: str) -> str:
    """The name of an artifact whose settings are {"label": label}."""
    return f"{label}-{store.digest({'label': label})}"


def make_artifact(kind: str, label: str, content: str = "content") -> Path:
    with store.create_artifact(kind, named(label)) as folder:
        (folder / "file.txt").write_text(content)
        store.seal(folder, {"label": label})
    return store.find(kind, named(label))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- names


def test_digest_is_ten_hexadecimal_digits_whatever_the_order_of_keys():
    first = store.digest({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert first == store.digest({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert len(first) == 10
    assert int(first, 16) >= 0


def test_digest_changes_with_every_value_and_with_the_format_version(monkeypatch):
    values = [
        {"a": 1},
        {"a": 2},
        {"a": 1.5},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"b": 1},
        {},
        {"a": [1]},
        {"a": {"b": 1}},
    ]
    digests = {store.digest(value) for value in values} | {store.digest({"a": 1}, {}), store.digest({}, {"a": 1})}
    assert len(digests) == len(values) + 2
    monkeypatch.setattr(store, "FORMAT_VERSION", store.FORMAT_VERSION + 1)
    assert store.digest({"a": 1}) not in digests


def test_fingerprint_sees_names_shapes_types_and_bytes():
    tensor = torch.arange(6, dtype=torch.uint8)
    different = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.view(2, 3)},
        {"a": tensor.to(torch.int8)},
        {"a": tensor.flip(0)},
        {"a": tensor, "b": tensor},
    ]
    assert len({store.fingerprint(tensors) for tensors in different}) == len(different)
    assert store.fingerprint({"a": tensor}, ["class"]) != store.fingerprint({"a": tensor})
    square = torch.arange(6, dtype=torch.uint8).view(2, 3)
    strided = square.t().contiguous().t()
    assert store.fingerprint({"a": strided}) == store.fingerprint({"a": square})


# ------------------------------------------------------------------------------------------------- artifacts


def test_new_artifact_appears_whole_under_its_name(own_root):
    with store.create_artifact("teachers", named("one")) as folder:
        (folder / "file.txt").write_text("content")
        store.seal(folder, {"label": "one"})
        assert store.find("teachers", named("one")) is None
    found = store.find("teachers", named("one"))
    assert found == own_root / "artifacts" / "teachers" / named("one")
    assert [path.name for path in files(found)] == ["SHA256SUMS", "file.txt", "record.json"]
    assert [path.name for path in found.parent.iterdir()] == [named("one")]
    assert found.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_new_artifact_leaves_nothing_behind_when_its_block_raises(error, own_root):
    def broken():
        with store.create_artifact("teachers", "one") as folder:
            store.seal(folder, {})
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        broken()
    assert store.find("teachers", "one") is None
    assert files(own_root) == []


def test_finished_artifact_is_not_overwritten():
    first = make_artifact("teachers", "one", "first")
    assert make_artifact("teachers", "one", "second") == first
    assert (first / "file.txt").read_text() == "first"
    assert [path.name for path in first.parent.iterdir()] == [named("one")]


def test_what_a_killed_run_left_half_made_goes_with_the_next_attempt(own_root):
    left = own_root / "artifacts" / "teachers" / f".{named('one')}.{platform.node()}.1234"
    left.mkdir(parents=True)
    (left / "file.txt").write_text("half")
    made = make_artifact("teachers", "one")
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    record = own_root / "results" / "test" / "record.json"
    record.parent.mkdir(parents=True)
    record.with_name(f".record.json.{platform.node()}.1234").write_text("{")
    theirs = record.with_name(".record.json.another-machine.1234")  # which may be writing it just now
    theirs.write_text("{")
    store.write_json(record, {})
    assert {*record.parent.iterdir()} == {record, theirs}


def test_sums_are_those_of_sha256sum(own_root):
    folder = make_artifact("teachers", "one")
    checked = subprocess.run(
        ["sha256sum", "--check", store.SUMS], cwd=folder, capture_output=True, text=True, check=True
    )
    assert checked.stdout.splitlines() == ["file.txt: OK", "record.json: OK"]


def test_folder_without_a_record_is_unfinished_and_replaced(own_root):
    unfinished = own_root / "artifacts" / "teachers" / named("one")
    unfinished.mkdir(parents=True)
    (unfinished / "part.txt").write_text("half")
    assert store.find("teachers", named("one")) is None
    assert (make_artifact("teachers", "one") / "file.txt").read_text() == "content"


def test_artifacts_are_found_before_published_copies(own_root):
    published = own_root / "results" / "artifacts" / "teachers" / named("one")
    store.write_json(published / "record.json", {"settings": {"label": "one"}, "files": {}})
    assert store.find("teachers", named("one")) == published
    assert store.find("distilled", named("one")) is None
    assert store.find("teachers", named("two")) is None
    assert make_artifact("teachers", "one") == own_root / "artifacts" / "teachers" / named("one")


def test_file_checksums_change_with_the_content_and_leave_the_record_out(own_root):
    folder = make_artifact("teachers", "one", "content")
    sums = store.compute_checksums(folder)
    # printf content | sha256sum
    assert sums == {"file.txt": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}


# -------------------------------------------------------------------------------------------------- JSON


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "record.json"
    store.write_json(path, {"b": [1.5, None], "a": "text"})
    assert store.read_json(path) == {"b": [1.5, None], "a": "text"}
    with pytest.raises(TypeError):
        store.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"b": [1.5, None], "a": "text"}
    store.write_json(path, {"a": 2})
    assert store.read_json(path) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


# --------------------------------------------------------------------------------------------------- safety


MODULES = [path for package in (dwa_core, dwa_paper) for path in Path(package.__path__[0]).rglob("*.py")]


@pytest.mark.parametrize("path", sorted(MODULES), ids=lambda path: path.stem)
def test_no_module_reads_pickle_or_writes_it_except_a_tool_that_reads_nothing_else(path):
    forbidden = {"pickle", "cPickle", "dill", "joblib", "shelve"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not forbidden & {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in forbidden
        elif isinstance(node, ast.Attribute):
            call = ast.unparse(node)
            assert call != "torch.load"
            assert call != "torch.save" or path.stem == "export"  # DD-Ranking's teachers
            assert not (node.attr == "load" and call in ("np.load", "numpy.load"))
