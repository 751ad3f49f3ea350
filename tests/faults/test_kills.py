"""kill -9 at random moments: in the end there is what an unbroken run makes, to the bit, and nothing else."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from fault_tools import REPOSITORY, environment_with

from dwa_paper.runs import real, sets, store, students, teachers
from dwa_paper.settings.schema import Setting

STAGES = ("teacher", "synthesis", "student")
# The lines of a run's log after which a stage begins; the last ends the run.
BEGINNINGS = (
    "training and .* test images",
    r"^digits-convnet-.*: [\d.]+ %",
    r"^digits-\w+-ipc.* images, ",
    "^record: ",
)


def stage_of(log: Path) -> str | None:
    """The stage that a run is in, as its log proves; None before the first and after the last."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    begun = sum(bool(re.search(line, text, re.MULTILINE)) for line in BEGINNINGS)
    return STAGES[begun - 1] if 1 <= begun <= len(STAGES) else None


def kill_and_resume(start, log: Path, quota: dict[str, int], longest: float, chance: random.Random) -> Counter:
    """Kills the run that `start` begins, again and again, until each stage has had its share; then lets it end.

    Args:
        start: begins or resumes the run, with its log in `log`, and returns a function that kills it and one that
            returns its exit code, None while it lasts.
        longest: seconds from the beginning of a stage, or its resumption, to the kill, at most.

    Returns: the kills of each stage.
    """
    kills = Counter()
    for _ in range(sum(quota.values()) + 1):
        log.unlink(missing_ok=True)
        kill, ended = start()
        awaited, moment = None, 0.0
        while ended() is None:
            stage = stage_of(log)
            if stage != awaited:
                awaited, moment = stage, time.monotonic() + chance.uniform(0, longest)
            if stage is not None and kills[stage] < quota[stage] and time.monotonic() >= moment:
                kill()
                # What the log says now is what counts: the run may have continued meanwhile.
                kills[stage_of(log) or "end"] += 1
                break
            time.sleep(0.005)
        else:
            break
    assert ended() == 0, log.read_text()
    return kills


def products(root: Path) -> dict[str, object]:
    """Every file below `root` but set-aside ones: the content of records without times, and the rest by checksum."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.name == store.SUMS or path.suffix in (".ipynb", ".log"):
            content = None
        elif path.suffix == ".json":
            content = without_times(json.loads(path.read_text()))
        else:
            content = store.checksum(path)
        found[str(path.relative_to(root))] = content
    return found


def without_times(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("seconds", "finished", "revision", "tree_clean")}


# ------------------------------------------------------------------------------------------ the short form


def run_here(setting: Setting, root: Path, log: Path, compute) -> None:
    """One run in a process of its own, forked from this one so that nothing is imported again; logs as a run does."""
    os.environ["DWA_ROOT"] = str(root)
    sys.stdout = log.open("w", buffering=1)
    os.environ["DWA_CHECKPOINT_SECONDS"] = "0.05"
    digits = real.load("digits", setting.images, compute.device)
    print(f"digits: {len(digits.train)} training and {len(digits.test)} test images")
    trained = teachers.load_or_train(setting, digits, compute)
    print(f"{trained.artifact}: {trained.record['accuracy']['top1']:.1f} %")
    distilled = sets.load_or_synthesize(setting, digits, trained, compute)
    print(f"{distilled.artifact}: {len(distilled.labels)} images, ")
    students.evaluate(setting, digits, [digits], [trained], [distilled], compute)
    print("record: written")


def test_killed_runs_end_as_an_unbroken_one(tiny_setting, tmp_path, compute):
    setting = tiny_setting(
        ipc=3,
        synthesis={"iterations": 40, "classes_per_batch": 5, "weights_between_class_batches": "kept"},
        relabel={"epochs": 60, "batch_size": 8, "test_every": 20},
    )
    fork, log = multiprocessing.get_context("fork"), tmp_path / "log"

    def start(root):
        process = fork.Process(target=run_here, args=(setting, root, log, compute))
        process.start()

        def kill():
            process.kill()
            process.join()

        def ended():
            process.join(0)
            return process.exitcode

        return kill, ended

    kill_and_resume(lambda: start(tmp_path / "unbroken"), log, dict.fromkeys(STAGES, 0), 0, random.Random(0))
    quota = dict.fromkeys(STAGES, 1)
    kills = kill_and_resume(lambda: start(tmp_path / "killed"), log, quota, 0.2, random.Random(1))
    assert kills.total() == 3
    assert products(tmp_path / "killed") == products(tmp_path / "unbroken")


# ------------------------------------------------------------------------------------------ the whole form


@pytest.mark.whole
def test_killed_demo_runs_end_as_an_unbroken_one(tmp_path, capsys):
    """Up to 25 kills of one demo run through runner, papermill and kernel, at least 5 in each stage."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "dwa_paper", "run", "results/demo/digits-dwa-ipc10-seed0.json"]

    def start(root):
        variables = environment_with(
            DWA_ROOT=str(root), DWA_CHECKPOINT_SECONDS="0.2", PYTHONPATH=str(REPOSITORY), PYTHONUNBUFFERED="1"
        )
        with log.open("w") as stream:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=stream, stderr=stream)

        def kill():
            everyone = [process, *psutil.Process(process.pid).children(recursive=True)]
            for one in everyone:
                os.kill(one.pid, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(everyone[1:], timeout=10)

        return kill, process.poll

    none = dict.fromkeys(STAGES, 0)
    kill_and_resume(lambda: start(tmp_path / "unbroken"), log, none, 0, random.Random(0))
    quota = {"teacher": 9, "synthesis": 8, "student": 8}
    kills = kill_and_resume(lambda: start(tmp_path / "killed"), log, quota, 1.5, random.Random(2))
    same = products(tmp_path / "killed") == products(tmp_path / "unbroken")
    with capsys.disabled():
        print(f"\nkills: {kills.total()} ({dict(kills)}); products equal to an unbroken run's: {same}")
    assert min(kills[stage] for stage in STAGES) >= 5  # a stage may end before its last kill
    assert same
