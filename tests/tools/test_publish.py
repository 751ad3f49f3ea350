"""make publish: the artifacts that records name are copied, whole, and nothing else."""

import errno
import os
from pathlib import Path

import pytest

from dwa_core.errors import StorageError
from dwa_paper.runs import store
from dwa_paper.settings.environment import root
from dwa_paper.tools import publish


def make_artifact(kind: str, name: str, content: str = "content") -> None:
    folder = root() / "artifacts" / kind / name
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text(content)


def a_record(method: str, **students) -> dict:
    made = {"data": {}, "precision": "fp32", "device": "cpu", "versions": {}}
    return {"setting": {"method": method}, "accuracy": {}, **made, **students}


def a_student(teacher: str, distilled: str) -> dict:
    artifacts = {"teacher": {"artifact": teacher}, "distilled": {"artifact": distilled}}
    return {"accuracy": {}, "curve": [], **artifacts}


def write_record(own_root: Path, seed: int, method: str, teacher: str, distilled: str) -> None:
    record = a_record(method, **a_student(teacher, distilled))
    store.write_json(own_root / "results" / "lite" / f"{method}-seed{seed}.json", record)


def test_publish_copies_what_records_name_but_no_real_images(own_root, capsys):
    for kind, name in [
        ("teachers", "used"),
        ("teachers", "unused"),
        ("distilled", "dwa"),
        ("distilled", "random"),
        ("distilled", "unused"),
    ]:
        make_artifact(kind, name)
    for seed in range(2):
        write_record(own_root, seed, "dwa", "used", "dwa")
    write_record(own_root, 0, "random-real", "used", "random")
    # An artifact that lies nowhere, as after a clean-up, is no reason to stop.
    write_record(own_root, 0, "sre2l", "gone", "gone")
    published = own_root / "results" / "artifacts"
    publish.publish("lite")
    copied = sorted(path for path in published.rglob("*") if path.is_file())
    assert [str(path.relative_to(published)) for path in copied] == ["distilled/dwa/file.txt", "teachers/used/file.txt"]
    assert {path.read_text() for path in copied} == {"content"}
    publish.publish("lite")
    assert "used: there already" in capsys.readouterr().out


def test_publish_copies_what_each_task_of_a_record_names(own_root):
    tasks = []
    for task in ("a", "b"):
        make_artifact("teachers", f"teacher-{task}")
        make_artifact("distilled", f"set-{task}")
        tasks.append(a_student(f"teacher-{task}", f"set-{task}"))
    store.write_json(own_root / "results" / "lite" / "own-seed0.json", a_record("dwa", tasks=tasks))
    publish.publish("lite")
    copied = sorted(path.name for path in (own_root / "results" / "artifacts").glob("*/*"))
    assert copied == ["set-a", "set-b", "teacher-a", "teacher-b"]


def test_publish_leaves_out_what_is_too_large_and_says_so(own_root, monkeypatch, capsys):
    make_artifact("teachers", "large", "x" * 2000)
    make_artifact("distilled", "small")
    write_record(own_root, 0, "dwa", "large", "small")
    monkeypatch.setattr(publish, "LIMIT_MB", 0.001)
    publish.publish("lite")
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == ["small"]
    assert "above the limit" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", '{"setting": {}}'])
def test_publish_names_a_record_that_cannot_be_read_and_copies_what_the_others_name(content, own_root, capsys):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "sre2l", "used", "gone")
    damaged = own_root / "results" / "lite" / "a-seed0.json"
    damaged.write_text(content)
    publish.publish("lite")
    assert capsys.readouterr().out.count(f"{damaged}: ") == 1
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == ["used"]


def test_publish_leaves_nothing_half_copied_where_there_is_no_room(own_root, monkeypatch):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "random-real", "used", "gone")

    def full(source, target):
        target.mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(publish.shutil, "copytree", full)
    with pytest.raises(StorageError, match="used: cannot be written; No space left on device"):
        publish.publish("lite")
    assert list((own_root / "results" / "artifacts" / "teachers").iterdir()) == []
