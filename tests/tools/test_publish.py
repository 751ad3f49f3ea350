"""make publish: the artifacts that records name are copied, whole, and nothing else."""

import errno
import os
from pathlib import Path

import pytest

from dwa_core.errors import StorageError
from dwa_paper.runs import store
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import resolve
from dwa_paper.tools import publish

ACCURACY = {"last": 0.0, "best": 0.0, "reported": 0.0}
SECONDS = {"teacher": 1.0, "synthesis": 1.0, "student": 1.0}


def named(label: str) -> str:
    """The name of the artifact that `make_artifact` makes."""
    return f"{label}-{store.digest({'label': label})}"


def make_artifact(kind: str, label: str, content: str = "content", base: str = "artifacts") -> Path:
    folder = root() / base / kind / named(label)
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text(content)
    store.seal(folder, {"label": label})
    return folder


def a_record(method: str, **students) -> dict:
    setting = resolve({"profile": "lite", "name": method, "preset": "digits", "method": method})
    data = {"fingerprint": "f", "training_images": 100, "test_images": 100, "classes": 10}
    made = {"data": data, "precision": "fp32", "device": "cpu", "versions": {"torch": "2.0"}}
    return {"setting": setting.recorded(), "accuracy": ACCURACY, "seconds": SECONDS, **made, **students}


def a_student(teacher: str, distilled: str) -> dict:
    artifacts = {
        "teacher": {"artifact": named(teacher), "files": {}, "accuracy": {"top1": 0.0, "top5": 0.0}},
        "distilled": {"artifact": named(distilled), "files": {}},
    }
    return {"accuracy": ACCURACY, "curve": [], "seconds": SECONDS, **artifacts}


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
    copied = sorted(str(path.relative_to(published)) for path in published.glob("*/*"))
    assert copied == [f"distilled/{named('dwa')}", f"teachers/{named('used')}"]
    assert all(store.find_damage(published / name) is None for name in copied)
    assert {path.read_text() for path in published.rglob("file.txt")} == {"content"}
    publish.publish("lite")
    assert f"{named('used')}: there already" in capsys.readouterr().out


def test_publish_copies_what_each_task_of_a_record_names(own_root):
    tasks = []
    for task in ("a", "b"):
        make_artifact("teachers", f"teacher-{task}")
        make_artifact("distilled", f"set-{task}")
        tasks.append(a_student(f"teacher-{task}", f"set-{task}"))
    store.write_json(own_root / "results" / "lite" / "own-seed0.json", a_record("dwa", tasks=tasks))
    publish.publish("lite")
    copied = sorted(path.name for path in (own_root / "results" / "artifacts").glob("*/*"))
    assert copied == sorted(map(named, ["set-a", "set-b", "teacher-a", "teacher-b"]))


def test_publish_leaves_out_what_is_too_large_and_says_so(own_root, monkeypatch, capsys):
    make_artifact("teachers", "large", "x" * 2000)
    make_artifact("distilled", "small")
    write_record(own_root, 0, "dwa", "large", "small")
    monkeypatch.setattr(publish, "LIMIT_MB", 0.0015)
    publish.publish("lite")
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == [named("small")]
    assert "above the limit" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", '{"setting": {}}'])
def test_publish_names_a_record_that_cannot_be_read_and_copies_what_the_others_name(content, own_root, capsys):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "sre2l", "used", "gone")
    damaged = own_root / "results" / "lite" / "a-seed0.json"
    damaged.write_text(content)
    publish.publish("lite")
    assert capsys.readouterr().out.count(f"{damaged}: ") == 1
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == [named("used")]


def test_publish_leaves_nothing_half_copied_where_there_is_no_room(own_root, monkeypatch):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "random-real", "used", "gone")

    def full(source, target):
        target.mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(publish.shutil, "copytree", full)
    with pytest.raises(StorageError, match=f"{named('used')}: cannot be written; No space left on device"):
        publish.publish("lite")
    assert list((own_root / "results" / "artifacts" / "teachers").iterdir()) == []


def test_publish_copies_no_damaged_artifact_and_names_it_after_the_others(own_root):
    folder = make_artifact("teachers", "used")
    make_artifact("distilled", "dwa")
    (folder / "file.txt").write_text("changed")
    write_record(own_root, 0, "dwa", "used", "dwa")
    with pytest.raises(ExceptionGroup) as caught:
        publish.publish("lite")
    (error,) = caught.value.exceptions
    assert str(error) == f"{folder}: file.txt is damaged; delete it, and make makes it again"
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == [named("dwa")]


def test_publish_replaces_a_damaged_copy_and_names_one_that_it_cannot_replace(own_root):
    make_artifact("teachers", "used")
    for label in ("used", "alone"):
        copy = make_artifact("teachers", label, base="results/artifacts")
        (copy / "file.txt").write_text("changed")
    write_record(own_root, 0, "random-real", "used", "gone")
    publish.publish("lite")
    assert store.find_damage(copy.with_name(named("used"))) is None
    write_record(own_root, 1, "random-real", "alone", "gone")
    with pytest.raises(ExceptionGroup) as caught:
        publish.publish("lite")
    assert f"{copy}: file.txt is damaged; delete it, or bring it back from git" in str(caught.value.exceptions)


def test_publish_compares_the_copy(own_root, monkeypatch):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "random-real", "used", "gone")

    def copy_badly(source, target):
        target.mkdir()
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(publish.shutil, "copytree", copy_badly)
    with pytest.raises(StorageError, match=r"its copy is damaged, .*; run the same command again"):
        publish.publish("lite")
    assert list((own_root / "results" / "artifacts" / "teachers").iterdir()) == []


def test_publish_removes_what_a_killed_one_left(own_root):
    make_artifact("teachers", "used")
    write_record(own_root, 0, "random-real", "used", "gone")
    left = make_artifact("teachers", "other", base="results/artifacts")
    left.rename(left.with_name(f".{left.name}.12345"))
    publish.publish("lite")
    assert [path.name for path in (own_root / "results" / "artifacts").glob("*/*")] == [named("used")]
