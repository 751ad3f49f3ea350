"""Runs settings on many GPUs or machines with Ray: what `make reproduce ENGINE=ray` does first.

First one task per teacher, then the distilled sets, then a papermill process per record, each as soon as what it
needs is there. RAY_ADDRESS names a running cluster; without it Ray starts one on this machine. This folder and the
data must lie at the same path on all machines.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from dwa_core import devices, models
from dwa_core.errors import InputError, StoppedError, UserError
from dwa_paper.runs import real, sets, tasks, teachers
from dwa_paper.runs.records import distinguish_artifacts, find_missing
from dwa_paper.settings.files import find_settings
from dwa_paper.settings.schema import SYNTHESISED, resolve

# Ray starts a task again when its worker or machine is lost, and it continues from its checkpoint. Where a notebook
# itself fails, as with bad settings, it is not tried again.
RETRIES = 3
PATHS = ("DWA_ROOT", "DWA_DATA", "DWA_TENSORBOARD")  # made absolute, for workers have another current folder
PASSED_ON = ("PYTHONPATH", "HF_HOME")
LAST_LINES = 3


def run_all(targets: list[str], gpus_per_task: float | None, cpus_per_task: float, tasks_per_set: int) -> None:
    """Makes the records that are missing of what `targets` name, each as `find_settings`; prints how each ended."""
    try:
        import ray
    except ImportError:
        raise InputError("ENGINE=ray needs Ray; .venv/bin/pip install -e '.[ray]'") from None
    wanted = list_missing(targets)
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {name: os.path.abspath(os.environ[name]) for name in PATHS if os.environ.get(name)}
    try:
        ray.init(log_to_driver=False, runtime_env={"env_vars": variables})
    except Exception as error:  # what Ray raises for a machine that does not start in time is no kind of its own
        reason = " ".join(str(error).split())
        raise InputError(f"Ray cannot be started or reached; {reason}; check RAY_ADDRESS and its machines") from None
    if gpus_per_task is None:
        gpus_per_task = 1 if ray.cluster_resources().get("GPU") else 0
    print(f"{len(wanted)} records to make on {len(ray.nodes())} machines", flush=True)
    stopped = [StoppedError]  # by a signal, as when its machine is taken away
    as_task = ray.remote(num_cpus=cpus_per_task, num_gpus=gpus_per_task, max_retries=RETRIES, retry_exceptions=stopped)
    unfinished = submit(as_task, wanted, tasks_per_set)
    failures = 0
    while unfinished:
        (done,), _ = ray.wait(list(unfinished))
        name = unfinished.pop(done)
        try:
            code, lines = ray.get(done)
        except ray.exceptions.RayError as error:
            code, lines = 1, str(getattr(error, "cause", None) or error).strip().splitlines()
        failures += code != 0
        shown = lines[-1:] if code == 0 else lines[-LAST_LINES:]
        print(f"{'done  ' if code == 0 else 'FAILED'} {name}", *shown, sep="\n    ", flush=True)
    if failures:
        raise UserError(f"{failures} of {len(wanted)} records could not be made; see the lines above, and run it again")


def list_missing(targets: list[str]) -> list[tuple[str, dict]]:
    """The target and the parameters of each run that `targets` name and that has no record yet."""
    found = []
    for target in targets:
        for parameters in find_settings(target):
            setting = resolve(parameters)
            path = f"results/{setting.profile}/{setting.name}.json"
            path = os.path.abspath(target) if target.endswith(".yaml") else path
            found += [(path, {**parameters, "seed": each.seed}) for each in find_missing(setting.split_seeds())]
    return found


def submit(as_task, wanted: list[tuple[str, dict]], tasks_per_set: int) -> dict:
    """Submits everything to Ray, each task with those that it waits for; returns the records' tasks and their names."""
    teacher_task, part_task, set_task, record_task = map(as_task, (train_teacher, make_part, make_set, run_notebook))
    teacher_of, set_of, records = {}, {}, {}
    for target, parameters in wanted:
        setting = resolve(parameters)
        trained, made = distinguish_artifacts(setting)[:2]
        if trained not in teacher_of:
            teacher_of[trained] = teacher_task.remote(parameters)
        teacher, parts = teacher_of[trained], []
        if made not in set_of:
            if tasks_per_set > 1 and setting.method in SYNTHESISED:
                parts = [part_task.remote(parameters, chosen, teacher) for chosen in split(setting.ipc, tasks_per_set)]
            set_of[made] = set_task.remote(parameters, teacher, *parts)
        # The same real images may be a set of several teachers, and the task that makes it waits for one of them.
        task = record_task.remote(target, parameters["seed"], set_of[made], teacher)
        records[task] = f"{setting.profile}/{setting.name}-seed{setting.seed}"
    return records


def split(ipc: int, count: int) -> list[range]:
    """The ipc indices in at most `count` runs of nearly the same length."""
    return [range(part[0], part[-1] + 1) for part in np.array_split(range(ipc), min(count, ipc))]


def load_parts(parameters: dict) -> list[tuple]:
    """Setting, data, teacher and compute of each task of `parameters`; trains the teachers that are missing."""
    setting = resolve(parameters)
    models.check_network("network", setting.network, setting.stem, setting.images.side)
    if setting.deterministic:
        devices.use_deterministic_algorithms()
    compute = devices.choose(setting.device, setting.precision, setting.compile, setting.images.side)
    whole = real.load(setting.dataset, setting.images, compute.device, setting.ipc, setting.validation)
    parts = tasks.split_into_tasks(setting, whole)
    return [(setting, part, teachers.load_or_train(setting, part, compute), compute) for part in parts]


def train_teacher(parameters: dict) -> None:
    load_parts({**parameters, "ipc": 1})  # another setting that shares the teacher may need fewer images of a class


def make_part(parameters: dict, indices: range, _teacher) -> None:
    """Some ipc indices of a distilled set, left as a checkpoint of their own."""
    for part in load_parts(parameters):
        sets.synthesize_part(*part, indices)


def make_set(parameters: dict, _teacher, *_parts) -> None:
    for part in load_parts(parameters):
        sets.load_or_synthesize(*part)


def run_notebook(target: str, seed: int, _set, _teacher) -> tuple[int, list[str]]:
    """The papermill process of one record: its exit code and its last lines."""
    command = [sys.executable, "-m", "dwa_paper", "run", target, "--seed", str(seed)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    folder, prepare = Path(__file__).resolve().parents[2], functools.partial(die_with_parent, os.getpid())
    process = subprocess.run(command, cwd=folder, preexec_fn=prepare, check=False, **output)
    return process.returncode, process.stdout.replace("\r", "\n").strip().splitlines()[-LAST_LINES:]


def die_with_parent(parent: int) -> None:
    """So that a killed worker leaves no process behind that runs beside the one that Ray starts again (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
