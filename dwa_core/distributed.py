"""Trains the teacher of a settings file on several GPUs, with torch's DistributedDataParallel.

    torchrun --nproc-per-node=8 -m dwa_core.distributed settings/paper/NAME.yaml

Each process trains on its share of every batch, with BatchNorm statistics of its own share; the first one tests and
stores. Runs of the same settings then find the teacher. On CPUs it works too, by gloo.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dwa_core import data, models, settings, store, teacher


def main() -> int:
    """Trains the teacher of the settings file on the command line in the processes that torchrun started."""
    try:
        setting = settings.resolve(settings.read(Path(sys.argv[1])))
        if setting.teacher.weights is not None:
            raise settings.InputError(f"teacher.weights: {setting.teacher.weights!r} leaves nothing to be trained")
        device = models.choose_device(setting.device)
    except settings.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    if rank > 0:
        dist.barrier()  # the first process decodes the images, and the others find them
    real = data.load(setting.dataset, setting.images, device)
    if rank == 0:
        dist.barrier()
    real.train.share = (rank, processes)
    described = teacher.determined_by(setting, real.fingerprint)
    name = f"{setting.dataset}-{setting.network}-{store.digest(described)}"
    if store.find("teachers", name) is None:
        teacher.train_and_store(setting, real, device, name, described)
    dist.barrier()
    if rank == 0:
        record = store.read_json(store.find("teachers", name) / "record.json")
        print(f"{name}: {record['accuracy']['top1']:.1f} %, {record['seconds']:.0f} s on {processes} processes")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
