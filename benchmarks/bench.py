"""Our speed beside a plain loop (plain.py) on the same weights and images, in one run; `make bench` calls it.

Every number is taken in a process of its own. Prints one table and writes it, with every number, to
results/bench/speed-DEVICE.{md,json}.
"""

import itertools
import os
import re
import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd
import plain
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dwa_core import augment, devices, models, seeds
from dwa_core.batches import Resident
from dwa_core.relabel import labeller, soft_label_loss
from dwa_core.synthesis import GPU_IMAGES, ClassBatch, ImageOptimisation
from dwa_core.training import Batches, Progress, fit
from dwa_paper.runs import store
from dwa_paper.runs.runner import KERNEL_ENVIRONMENT
from dwa_paper.settings import schema
from dwa_paper.settings.environment import root

REPEATS = 3
CLASSES = {"cifar10": 10, "cifar100": 100}
# (stage, preset, network, images of an epoch, of which the batch is a part): the paper's recipes on a GPU. A CPU
# gets the ConvNet-128 of the profile lite, fewer images for the teacher, and ResNet-18 in synthesis alone.
ON_GPU = [
    ("synthesis", "cifar100", "resnet18", 100),
    ("synthesis", "cifar10", "resnet18", 10),
    ("teacher", "cifar100", "resnet18", 50_000),
    ("student", "cifar100", "resnet18", 5_000),
    ("student", "cifar10", "resnet18", 500),
]
ON_CPU = [
    ("synthesis", "cifar100", "resnet18", 100),
    ("synthesis", "cifar100", "convnet-128", 100),
    ("synthesis", "cifar10", "convnet-128", 10),
    ("teacher", "cifar10", "convnet-128", 640),
    ("student", "cifar10", "convnet-128", 256),
]


class Case:
    """One line of the table: weights, images and settings, the same for the plain loop and for ours."""

    def __init__(self, stage: str, preset: str, network: str, count: int):
        self.stage, self.classes = stage, CLASSES[preset]
        self.compute = devices.choose()
        self.device = self.compute.device
        self.setting = schema.resolve({"preset": preset, "profile": "bench", "name": "bench", "network": network})
        self.training = self.setting.teacher if stage == "teacher" else self.setting.relabel
        self.mean, self.std = self.setting.images.mean, self.setting.images.std
        self.side = self.setting.images.side
        self.batch = min(count, self.training.batch_size)
        random = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, self.side, self.side, 3), dtype=torch.uint8, generator=random)
        self.labels = torch.arange(count) % self.classes

    def network(self, seed: int = 0) -> torch.nn.Module:
        built = models.build(self.setting.network, self.classes, self.setting.stem, self.side, seed)
        return built.to(self.device)

    def one_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = augment.to_unit_range(self.pixels[: self.batch])
        images = augment.normalise(pixels, self.mean, self.std).contiguous()
        return images.to(self.device), self.labels[: self.batch].to(self.device)

    def views(self, iterations: int) -> torch.Tensor:
        return augment.draw_views(iterations, self.side, self.setting.synthesis.roll, False, 0)


def seconds_of(case: Case, steps: Iterator, per_repeat: int) -> float:
    """Median over the repeats of the seconds per step, after a warm-up; `steps` does one step per item."""
    times = []
    for repeat in range(REPEATS + 1):
        if case.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
        started = time.perf_counter()
        taken = sum(1 for _ in itertools.islice(steps, max(2, per_repeat // 3) if repeat == 0 else per_repeat))
        seconds = time.perf_counter() - started
        if case.device.type == "cuda":
            end.record()
            torch.cuda.synchronize()
            seconds = begin.elapsed_time(end) / 1000
        times.append(seconds / taken)
    return statistics.median(times[1:])


def plain_seconds(arguments: tuple, with_loader: bool) -> dict:
    """Seconds per step of the plain loop; without its DataLoader, one batch lies ready on the device."""
    torch.backends.cudnn.benchmark = True  # as the authors' scripts
    case = Case(*arguments)
    cuda = case.device.type == "cuda"
    network = case.network()
    if case.stage == "synthesis":
        per_repeat = 50 if cuda else max(2, 200 // case.batch)
        views = case.views((REPEATS + 1) * per_repeat)
        stage = case.setting.synthesis
        steps = plain.synthesis_steps(network.eval(), *case.one_batch(), views, stage, case.mean, case.std)
        return {"seconds": seconds_of(case, steps, per_repeat), **peak_memory(case.device)}
    if with_loader:
        batches = itertools.chain.from_iterable(
            plain.loader(case.pixels, case.labels, case.setting, case.batch) for _ in itertools.count()
        )
    else:
        batches = itertools.repeat(case.one_batch())
    if case.stage == "teacher":
        steps = plain.teacher_steps(network, batches, case.training, case.device)
    else:
        steps = plain.student_steps(network, case.network(1).train(), batches, case.training, case.device)
    per_repeat = -(-len(case.labels) // case.batch)  # one epoch, so that each repeat starts the workers once
    return {"seconds": seconds_of(case, steps, per_repeat), **peak_memory(case.device)}


def our_seconds(arguments: tuple) -> dict:
    """Seconds per step of ours, by the functions that a run calls, and the FLOP of one step."""
    case = Case(*arguments)
    cuda = case.device.type == "cuda"
    network = devices.on_device(case.network(), case.device)
    if case.stage == "synthesis":
        at_once = max(1, GPU_IMAGES // case.batch) if cuda else 1
        per_repeat = 200 if cuda else max(8, 400 // case.batch)
        batch, setting = ClassBatch(*case.one_batch(), case.views((REPEATS + 1) * per_repeat)), case.setting

        def one():
            twin = devices.frozen_copy(network)
            return ImageOptimisation(twin, batch, setting.synthesis, setting.images, case.compute)

        with FlopCounterMode(display=False) as counter:
            one().step()
        fast = [devices.Graphed(one().step, case.device) for _ in range(at_once)]
        steps = ([step() for step in fast] + [step.join() for step in fast] for _ in itertools.count())
        seconds = seconds_of(case, steps, per_repeat) / at_once
        return {"seconds": seconds, "flop": counter.get_total_flops(), **peak_memory(case.device)}
    teacher = labeller(devices.on_device(case.network(1), case.device), case.setting.relabel, case.compute.precision)
    split = Resident(case.pixels, case.labels, case.device)
    marks = []

    def train_batches(epoch: int):
        marks.append(time.perf_counter())
        host, random = seeds.host_random(0, epoch), seeds.device_random(case.device, 1, epoch)
        for inputs, labels in split.train_batches(case.training, case.mean, case.std, 2, epoch):
            if case.stage == "student":
                inputs, _, _ = augment.mix(inputs, case.training.mixing, case.training.mixing_alpha, host, random)
            yield inputs, labels

    def batch_loss(inputs, labels):
        if case.stage == "teacher":
            return F.cross_entropy(network(inputs).float(), labels)
        with torch.no_grad():
            soft = teacher(inputs)
        return soft_label_loss(network(inputs).float(), soft.float(), case.training)

    inputs, labels = case.one_batch()
    with FlopCounterMode(display=False) as counter, case.compute.autocast():
        batch_loss(inputs, labels).backward()
    epochs = REPEATS + 2  # the last one's end has no mark
    stage = case.training.model_copy(update={"epochs": epochs, "test_every": epochs})
    batches = Batches(train_batches, test=lambda: [(inputs, labels)], key=(0,))
    fit(network, stage, batches, batch_loss, case.compute, Progress("bench"))
    seconds = statistics.median(b - a for a, b in itertools.pairwise(marks[1:]))
    steps_per_epoch = -(-len(case.labels) // case.batch)
    return {"seconds": seconds / steps_per_epoch, "flop": counter.get_total_flops(), **peak_memory(case.device)}


def peak_memory(device: torch.device) -> dict:
    """MB: of tensors on a GPU; of the whole process on a CPU, which is mostly the libraries."""
    if device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6}
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def matrix_rate() -> float:
    """FLOP/s of a square bf16 matrix product."""
    device = devices.choose().device
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    times = []
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[5:])


def alone(function, *arguments, **environment: str):
    """The result of `function` in a new process, which `environment` reaches before torch is imported."""
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        for name in environment:
            del os.environ[name]


def measure(case: tuple) -> dict:
    """One line of the table, in seconds, FLOP and MB."""
    stage, preset, network, count = case
    print(f"{stage}, {preset}, {network} ...", flush=True)
    slow = alone(plain_seconds, case, True)
    without_loader = slow if stage == "synthesis" else alone(plain_seconds, case, False)
    # What the runner sets for every kernel is a part of how ours runs.
    ours = alone(our_seconds, case, **KERNEL_ENVIRONMENT)
    return {
        "stage": stage,
        "preset": preset,
        "network": network,
        "images per epoch": count,
        "batch": Case(*case).batch,
        "plain": slow["seconds"],
        "plain without loader": without_loader["seconds"],
        "ours": ours["seconds"],
        "flop": ours["flop"],
        "plain peak memory": slow["peak_memory_mb"],
        "our peak memory": ours["peak_memory_mb"],
    }


def shown(row: dict, rate: float) -> dict:
    """One line as the table shows it."""
    return {
        "stage": f"{row['stage']}, {row['preset']}",
        "network": row["network"],
        "batch": row["batch"],
        "plain, ms": f"{1000 * row['plain']:.1f}",
        "without DataLoader, ms": f"{1000 * row['plain without loader']:.1f}",
        "ours, ms": f"{1000 * row['ours']:.1f}",
        "ratio": f"{row['plain'] / row['ours']:.1f}",
        "ratio without DataLoader": f"{row['plain without loader'] / row['ours']:.1f}",
        "images/s": f"{row['batch'] / row['ours']:.0f}",
        "GFLOP/s": f"{row['flop'] / row['ours'] / 1e9:.0f}",
        "of the bf16 matrix rate": f"{100 * row['flop'] / row['ours'] / rate:.0f} %",
        "peak memory plain, ours, MB": f"{row['plain peak memory']:.0f}, {row['our peak memory']:.0f}",
    }


def main() -> None:
    compute = devices.choose()
    on_gpu = compute.device.type == "cuda"
    rate = alone(matrix_rate)
    rows = [measure(case) for case in (ON_GPU if on_gpu else ON_CPU)]
    table = pd.DataFrame([shown(row, rate) for row in rows])
    name, provenance = compute.describe(), store.provenance(compute)
    memory = "tensors on the GPU" if on_gpu else "the whole process, libraries included"
    lines = [
        f"# Time per step: {name}",
        "",
        f"`make bench`: medians of {REPEATS} repeats after a warm-up; ours in {provenance['precision']}, the plain "
        f"loop in fp32. A square bf16 matrix product ran at {rate / 1e9:.0f} GFLOP/s. Peak memory: {memory}.",
        "",
        table.to_markdown(index=False, disable_numparse=True),
    ]
    folder = root() / "results" / "bench"
    stem = "speed-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    store.write_json(folder / f"{stem}.json", {"rows": rows, "matrix_rate": rate, **provenance})
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\nwritten: results/bench/{stem}.md and .json")


if __name__ == "__main__":
    main()
