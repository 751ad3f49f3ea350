"""Trains the teacher of a setting on several GPUs, with torch's DistributedDataParallel.

    torchrun --nproc-per-node=8 -m dwa_paper train-teacher settings/paper/NAME.yaml

Each process trains on its share of every batch, with BatchNorm statistics of its own share; the first one tests and
stores. Runs of the same settings then find the teacher. On CPUs it works too, by gloo.
"""

import contextlib
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from dwa_core import devices, models
from dwa_core.errors import InputError
from dwa_paper.runs import real, stop, store, tasks, teachers
from dwa_paper.settings.files import find_settings
from dwa_paper.settings.schema import resolve


def train_teachers(setting: str) -> None:
    """Trains the teachers of what `setting` names, as `files.find_settings`, in the processes that torchrun started."""
    found = resolve(find_settings(setting)[0])
    if not found.teacher.is_trained():
        raise InputError(f"teacher.weights: {found.teacher.weights!r} leaves nothing to be trained")
    models.check_network("network", found.network, found.stem, found.images.side)
    if found.deterministic:
        devices.use_deterministic_algorithms()
    stop.start_budget(found.max_minutes)
    if found.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # first of all, else each process takes memory of GPU 0
    compute = devices.choose(found.device, found.precision)
    if compute.device.type == "cuda":
        compute = compute._replace(device=torch.device("cuda", torch.cuda.current_device()))
    # The others wait while the first one decodes the images, or for a run that trains the same teacher.
    dist.init_process_group("nccl" if compute.device.type == "cuda" else "gloo", timeout=timedelta(days=30))
    rank, processes = dist.get_rank(), dist.get_world_size()
    if (size := found.teacher.batch_size) < 2 * processes:
        wrong = f"{size} is not allowed with {processes} processes; each needs at least two images"
        raise InputError(f"teacher.batch_size: {wrong}")
    if rank > 0:
        dist.barrier()  # the first process decodes the images, and the others find them
    whole = real.load(found.dataset, found.images, compute.device, validation=found.validation)
    if rank == 0:
        dist.barrier()
    for part in tasks.split_into_tasks(found, whole):
        part.train.share = (rank, processes)
        name, described = teachers.describe(found, part.fingerprint)
        with store.lock("teachers", name) if rank == 0 else contextlib.nullcontext():
            names = [None] * processes
            dist.all_gather_object(names, name)  # and all wait until the first one has the lock
            if len(set(names)) > 1:  # images that only some keep in memory come in another order
                raise InputError("the processes read different images; is there memory for all of them?")
            if store.find("teachers", name) is None:
                teachers.train_and_store(found, part, compute, name, described)
            dist.barrier()
        if rank == 0:
            record = store.read_json(store.find("teachers", name) / "record.json")
            print(f"{name}: {record['accuracy']['top1']:.1f} %, {record['seconds']:.0f} s on {processes} processes")
    dist.destroy_process_group()
