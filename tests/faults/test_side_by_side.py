"""Runs side by side: a shared teacher is trained once, a dead holder's lock is taken over, records are the same."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from fault_tools import make

from dwa_paper.runs import real, store, teachers

FORK = multiprocessing.get_context("fork")


def train(setting, root: Path, number: int, compute) -> None:
    """One of several processes that want the same teacher; leaves a file when it is the one that trains."""
    os.environ["DWA_ROOT"] = str(root)
    original = teachers.train_and_store

    def noted(*arguments):
        (root / f"trained-by-{number}").touch()
        original(*arguments)

    teachers.train_and_store = noted
    teachers.load_or_train(setting, real.load("digits", setting.images, compute.device), compute)
    (root / f"done-{number}").touch()


def start(setting, root, compute, numbers) -> list:
    root.mkdir(exist_ok=True)
    processes = [FORK.Process(target=train, args=(setting, root, number, compute)) for number in numbers]
    for process in processes:
        process.start()
    return processes


def test_four_processes_train_one_teacher(tiny_setting, tmp_path, compute):
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 2})
    for process in start(setting, tmp_path / "root", compute, range(4)):
        process.join(120)
        assert process.exitcode == 0
    assert len(list((tmp_path / "root").glob("trained-by-*"))) == 1
    assert len(list((tmp_path / "root").glob("done-*"))) == 4
    assert len(list((tmp_path / "root" / "artifacts" / "teachers").glob("[!.]*"))) == 1


def wait_for(pattern: str, root: Path) -> Path:
    deadline = time.monotonic() + 120
    while not (found := list(root.glob(pattern))):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.01)
    return found[0]


def killed_holder(tiny_setting, tmp_path, compute) -> None:
    """Three processes want one teacher; the one that trains it is killed, and another takes its place."""
    root = tmp_path / "root"
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 15})
    first = start(setting, root, compute, [0])[0]
    wait_for("trained-by-0", root)
    others = start(setting, root, compute, [1, 2])
    time.sleep(0.3)
    first.kill()
    first.join()
    for process in others:
        process.join(180)
        assert process.exitcode == 0
    assert not (root / "done-0").exists()
    assert len(list(root.glob("trained-by-[12]"))) == 1
    assert len(list((root / "artifacts" / "teachers").glob("[!.]*"))) == 1


def test_lock_of_a_killed_holder_is_taken_over(tiny_setting, tmp_path, compute):
    killed_holder(tiny_setting, tmp_path, compute)


def test_lock_of_a_killed_holder_is_taken_over_without_advisory_locks(tiny_setting, tmp_path, compute, monkeypatch):
    def unsupported(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store.FileLock, "acquire", unsupported)
    monkeypatch.setattr(store, "LEASE_SECONDS", 1.5)
    killed_holder(tiny_setting, tmp_path, compute)


@pytest.mark.whole
def test_make_with_four_jobs_makes_the_same_records(checkout, capsys):
    records = {}
    for jobs in ("-j1", "-j4"):
        done = make(checkout, "table-1", jobs)
        assert done.returncode == 0, done.stderr
        folder = checkout / "results" / "demo"
        paths = sorted(folder.glob("*-seed*.json"))
        records[jobs] = {path.name: json.loads(path.read_text()) for path in paths}
        for record in records[jobs].values():
            for key in ("seconds", "finished", "revision", "tree_clean"):
                del record[key]
        for kept in ("artifacts", "results/demo"):
            (checkout / kept).rename(checkout / f"{kept.replace('/', '-')}{jobs}")
    equal = [name for name, record in records["-j1"].items() if records["-j4"].get(name) == record]
    with capsys.disabled():
        print(f"\nrecords equal under -j4: {len(equal)} of {len(records['-j1'])}")
    assert records["-j4"] == records["-j1"]
    assert equal
