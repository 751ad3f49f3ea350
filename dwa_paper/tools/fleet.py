"""Runs a folder of settings on many GPUs or machines with Ray: what `make reproduce ENGINE=ray` calls.

    python notebooks/fleet.py settings/demo --gpus-per-task 0.5 --tasks-per-set 4

First one task per teacher, then the distilled sets, then a papermill process per record, each as soon as what it
needs is there. RAY_ADDRESS names a running cluster; without it Ray starts one on this machine. This folder and the
data must lie at the same path on all machines. Exit codes: 0 all recorded, 1 something failed, 2 bad input.
"""

import argparse
import ctypes
import functools
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

from dwa_core.errors import InputError, StoppedError
from dwa_paper.command import failed
from dwa_paper.runs.records import find_record
from dwa_paper.settings.schema import SYNTHESISED, resolve

RUNNER = Path(__file__).with_name("run.py")
# Ray starts a task again when its worker or machine is lost; checkpoints let it go on. What a notebook itself
# answers with, such as bad settings, is not tried again.
RETRIES = 3
PATHS = ("DWA_ROOT", "DWA_DATA", "DWA_TENSORBOARD")  # made absolute, for workers have another current folder
PASSED_ON = ("PYTHONPATH", "HF_HOME")
LAST_LINES = 3


def main() -> int:
    """Reads the command line, runs what is not recorded yet, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Run a folder of settings with Ray.")
    parser.add_argument("folder", type=Path, help="settings/PROFILE")
    parser.add_argument("--gpus-per-task", type=float, help="default: 1 where the cluster has GPUs, else 0")
    parser.add_argument("--cpus-per-task", type=float, default=1)
    parser.add_argument("--tasks-per-set", type=int, default=1, help="over which each distilled set is split, by ipc")
    parser.error = lambda message: sys.exit(failed(message, 2))
    given = parser.parse_args()
    try:
        import ray
    except ImportError:
        return failed("ENGINE=ray needs Ray; .venv/bin/pip install -e '.[ray]'", 2)
    try:
        wanted = to_be_run(given.folder)
    except InputError as error:
        return failed(error, 2)
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {name: os.path.abspath(os.environ[name]) for name in PATHS if os.environ.get(name)}
    try:
        ray.init(log_to_driver=False, runtime_env={"env_vars": variables})
    except Exception as error:  # what Ray raises for a machine that does not start in time is no kind of its own
        return failed(f"Ray cannot be started or reached; {' '.join(str(error).split())}", 2)
    gpus = given.gpus_per_task
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
    print(f"{given.folder.name}: {len(wanted)} records to make on {len(ray.nodes())} machines", flush=True)
    options = {"num_cpus": given.cpus_per_task, "num_gpus": gpus, "max_retries": RETRIES}
    options["retry_exceptions"] = [StoppedError]  # told to end, as when its machine is taken away
    try:
        unfinished = submit(ray.remote(**options), wanted, given.tasks_per_set)
    except InputError as error:  # a file of weights or a set made elsewhere that is not there
        return failed(error, 2)
    failures = 0
    while unfinished:
        (done,), _ = ray.wait(list(unfinished))
        name = unfinished.pop(done)
        try:
            code, lines = ray.get(done)
        except ray.exceptions.RayError as error:
            code, lines = 1, str(getattr(error, "cause", None) or error).strip().splitlines()
        failures += code != 0
        told = lines[-1:] if code == 0 else lines[-LAST_LINES:]
        print(f"{'done  ' if code == 0 else 'FAILED'} {name}", *told, sep="\n    ", flush=True)
    print(f"{given.folder.name}: {f'{failures} failed' if failures else 'all recorded'}")
    return int(failures > 0)


def to_be_run(folder: Path) -> list[tuple[Path, dict]]:
    """The settings files of `folder` with the parameters of each record that is not there yet.

    Raises:
        InputError: there are none, or one cannot be used.
    """
    files = sorted(folder.resolve().glob("*.yaml"))
    if not files:
        raise InputError(f"{folder} holds no settings files")
    runs = files.runs(files)
    return [(path, one) for path, one in runs if find_record(resolve(one)) is None]


def submit(as_task, wanted: list[tuple[Path, dict]], tasks_per_set: int) -> dict:
    """Hands everything to Ray, each task with those that it waits for; returns the records' tasks and their names."""
    from dwa_paper.tools import (
        plan,  # here because what is wrong with the command line should not wait seconds for torch
    )

    make_teacher, make_part, make_set = as_task(teacher_task), as_task(part_task), as_task(set_task)
    make_record = as_task(record_task)
    teachers, sets, records = {}, {}, {}
    for path, parameters in wanted:
        setting = resolve(parameters)
        (*_, trained), (*_, made) = plan.artifacts(setting, None)
        if trained not in teachers:
            teachers[trained] = make_teacher.remote(parameters)
        if made not in sets:
            ready, parts = teachers[trained], []
            if tasks_per_set > 1 and setting.method in SYNTHESISED:
                parts = [make_part.remote(parameters, chosen, ready) for chosen in split(setting.ipc, tasks_per_set)]
            sets[made] = make_set.remote(parameters, ready, *parts)
        # The same real images may be a set of several teachers, and the task that makes it waits for one of them.
        task = make_record.remote(str(path), parameters["seed"], sets[made], teachers[trained])
        records[task] = f"{setting.profile}/{setting.name}-seed{setting.seed}"
    return records


def split(ipc: int, tasks: int) -> list[range]:
    """The ipc indices in at most `tasks` runs of nearly the same length."""
    tasks = min(tasks, ipc)
    bounds = [ipc * task // tasks for task in range(tasks + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


# ----------------------------------------------------------------------------------------- what Ray's workers do


def opened(parameters: dict, ipc: int = 1):
    """Setting, device and data of each task of `parameters`; fewer than `ipc` images in a class are refused."""
    from dwa_core import devices, models
    from dwa_paper.runs import real, tasks

    setting = resolve(parameters)
    models.check_network("network", setting.network, setting.stem, setting.images.side)
    if setting.deterministic:
        devices.use_deterministic_algorithms()
    compute = devices.choose(setting.device, setting.precision)
    whole = real.load(setting.dataset, setting.images, compute.device, ipc, setting.validation)
    return setting, compute, tasks.split_into_tasks(setting, whole)


def teacher_task(parameters: dict) -> None:
    from dwa_paper.runs import teachers

    setting, compute, parts = opened(parameters)
    for part in parts:
        teachers.load_or_train(setting, part, compute)


def part_task(parameters: dict, indices: range, _teacher) -> None:
    """Some ipc indices of a distilled set, left as a checkpoint of their own."""
    from dwa_paper.runs import sets, teachers

    setting, compute, parts = opened(parameters, resolve(parameters).ipc)
    for part in parts:
        trained = teachers.load_or_train(setting, part, compute)
        sets.synthesize_part(setting, part, trained, compute, indices)


def set_task(parameters: dict, _teacher, *_parts) -> None:
    from dwa_paper.runs import sets, teachers

    setting, compute, parts = opened(parameters, resolve(parameters).ipc)
    for part in parts:
        trained = teachers.load_or_train(setting, part, compute)
        sets.load_or_synthesize(setting, part, trained, compute)


def record_task(path: str, seed: int, _set, _teacher) -> tuple[int, list[str]]:
    """The papermill process of one record: its exit code and its last lines."""
    process = subprocess.run(
        [sys.executable, str(RUNNER), path, "--seed", str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    return process.returncode, process.stdout.replace("\r", "\n").strip().splitlines()[-LAST_LINES:]


def die_with_parent(parent: int) -> None:
    """So that a killed worker leaves no process behind that goes on beside the one that Ray starts anew (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
