"""Our speed beside a plain loop (plain.py) on the same weights and images, in one run; `make bench` calls it.

Every number is taken in a process of its own. Prints one table and writes it, with every number, to
results/bench/speed-DEVICE.{md,json}.
"""

import copy
import itertools
import os
import re
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from unittest import mock

import pandas as pd
import plain
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dwa_core import augment, devices, models, relabel
from dwa_core.batches import Resident
from dwa_core.synthesis import GPU_IMAGES, ClassBatch, ImageOptimisation
from dwa_core.training import Batches, Progress, fit
from dwa_paper.runs import store
from dwa_paper.runs.runner import KERNEL_ENVIRONMENT
from dwa_paper.settings import schema
from dwa_paper.settings.environment import root

REPEATS = 3
# (stage, preset, network, images of an epoch, of which the batch is a part): the paper's recipes on a GPU. A CPU
# gets the ConvNet-128 of the profile lite, and ResNet-18 in synthesis alone. A teacher gets a part of an epoch.
ON_GPU = [
    ("synthesis", "imagenet-1k", "resnet18", 100),
    ("synthesis", "cifar100", "resnet18", 100),
    ("synthesis", "cifar10", "resnet18", 10),
    ("teacher", "cifar100", "resnet18", 12_800),
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
        self.stage, self.compute = stage, devices.choose()
        self.classes = {"cifar10": 10, "cifar100": 100, "imagenet-1k": 1000}[preset]
        self.setting = schema.resolve({"preset": preset, "profile": "bench", "name": "bench", "network": network})
        self.device, self.images = self.compute.device, self.setting.images
        self.training = self.setting.teacher if stage == "teacher" else self.setting.relabel
        self.batch = min(count, self.training.batch_size)
        self.steps = -(-count // self.batch)  # of an epoch
        random, side = torch.Generator().manual_seed(0), self.images.side
        self.pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=random)
        self.labels = torch.arange(count) % self.classes
        first = augment.to_unit_range(self.pixels[: self.batch])
        first = augment.normalise(first, self.images.mean, self.images.std).contiguous()
        self.one_batch = first.to(self.device), self.labels[: self.batch].to(self.device)

    def network(self, seed: int = 0) -> torch.nn.Module:
        built = models.build(self.setting.network, self.classes, self.setting.stem, self.images.side, seed)
        return built.to(self.device)

    def views(self, iterations: int) -> torch.Tensor:
        return augment.draw_views(iterations, self.images.side, self.setting.synthesis.roll, False, 0)


def measure_median(function: Callable[[], None]) -> float:
    """Seconds of one call, after a warm-up."""
    times = []
    for _ in range(REPEATS + 1):
        started = now()
        function()
        times.append(now() - started)
    return statistics.median(times[1:])


def now() -> float:
    """Seconds, when all that the device was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_plain(arguments: tuple, with_loader: bool) -> dict:
    """Seconds per step of the plain loop; without its DataLoader, one batch lies ready on the device."""
    torch.backends.cudnn.benchmark = True  # as the authors' scripts
    case = Case(*arguments)
    network, steps = case.network(), case.steps
    if case.stage == "synthesis":
        steps = max(5, 50 * 32**2 // case.images.side**2) if case.device.type == "cuda" else max(2, 200 // case.batch)
        networks = iter([copy.deepcopy(network.eval()) for _ in range(REPEATS + 1)])
        given = *case.one_batch, case.views(steps), case.images.mean, case.images.std
        seconds = measure_median(lambda: plain.synthesize(next(networks), *given))
    else:
        teacher = case.network(1).train() if case.stage == "student" else None
        given = case.pixels, case.labels, case.images, case.batch, case.device
        load = partial(plain.load_batches, *given) if with_loader else partial(itertools.repeat, case.one_batch, steps)
        seconds = measure_median(lambda: plain.train(network, load(), teacher))
    return {"seconds": seconds / steps, **read_peak_memory(case.device)}


def time_ours(arguments: tuple, compile: str | bool = False) -> dict:
    """Seconds per step of ours, by the functions that a run calls, the FLOP of one, and whether it was compiled."""
    case = Case(*arguments)
    case.compute = case.compute._replace(compile=compile)
    seconds, flop = time_synthesis(case) if case.stage == "synthesis" else time_training(case)
    return {"seconds": seconds, "flop": flop, "compiled": case.compute.compiles(), **read_peak_memory(case.device)}


def time_synthesis(case: Case) -> tuple[float, int]:
    """Seconds and FLOP of a step, where batches run side by side on a GPU."""
    on_cuda, network = case.device.type == "cuda", devices.move_to_device(case.network(), case.device)
    steps = max(8, 200 * 32**2 // case.images.side**2 if on_cuda else 400 // case.batch)
    at_once = max(1, GPU_IMAGES // case.batch) if on_cuda else 1
    batch, stage = ClassBatch(*case.one_batch, case.views((REPEATS + 1) * steps)), case.setting.synthesis
    twins = [devices.copy_frozen(network) for _ in range(at_once + 1)]
    computes = [case.compute._replace(compile=False)] + [case.compute] * at_once  # the first counts operations
    given = batch, stage, case.images
    first, *others = (ImageOptimisation(twin, *given, each) for twin, each in zip(twins, computes, strict=True))
    with FlopCounterMode(display=False) as counter:
        first.step()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    graphed = [devices.Graphed(one.step, case.device) for one in others]

    def run() -> None:
        for _ in range(steps):
            for step in graphed:
                step()
            for step in graphed:
                step.join()

    return measure_median(run) / steps / at_once, counter.get_total_flops()


def time_training(case: Case) -> tuple[float, int]:
    """Seconds and FLOP of a step, from epoch to epoch of `fit`."""
    setting, data = case.setting, Resident(case.pixels, case.labels, case.device)
    network = devices.move_to_device(case.network(), case.device)
    if case.stage == "student":
        teacher = relabel.make_labeller(case.network(1), setting.relabel, case.compute.precision)
        teacher = devices.move_to_device(teacher, case.device)
        loss_of = relabel.make_loss(teacher, setting.relabel)
        draw = partial(relabel.draw_mixed_batches, setting, data)
    else:
        draw = partial(data.train_batches, setting.teacher, case.images.mean, case.images.std, 0)

        def loss_of(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(network(inputs).float(), labels)

    # On a copy: a gradient's place in the graph that is made here must not be one of those that `fit` captures.
    with FlopCounterMode(display=False) as counter, case.compute.autocast():
        loss_of(copy.deepcopy(network), *case.one_batch).backward()
    begun = []

    def train(epoch: int):
        begun.append(now())
        return draw(epoch)

    epochs = REPEATS + 2  # the first is a warm-up, and the last one's end is not seen
    stage = case.training.model_copy(update={"epochs": epochs, "test_every": epochs})
    batches = Batches(train, test=lambda: [case.one_batch], key=(0,))
    fit(network, stage, batches, partial(loss_of, network), case.compute, Progress("bench"))
    seconds = statistics.median(after - before for before, after in itertools.pairwise(begun[1:]))
    return seconds / case.steps, counter.get_total_flops()


def read_peak_memory(device: torch.device) -> dict:
    """MB: of tensors on a GPU; of the whole process on a CPU, which is mostly the libraries."""
    if device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6}
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def measure_matrix_rate() -> float:
    """FLOP/s of a square bf16 matrix product."""
    device = devices.choose().device
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    return 5 * 2 * size**3 / measure_median(lambda: [a @ b for _ in range(5)])


def run_alone(function, *arguments, **environment: str):
    """The result of `function` in a new process, which `environment` reaches before torch is imported."""
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(case: tuple) -> dict:
    """What one line of the table shows, in seconds, FLOP and MB."""
    print(*case[:3], sep=", ", end=" ...\n", flush=True)
    one, taken, is_synthesis = Case(*case), {"plain": run_alone(time_plain, case, True)}, case[0] == "synthesis"
    taken["plain without loader"] = taken["plain"] if is_synthesis else run_alone(time_plain, case, False)
    # What the runner sets for every kernel is a part of how ours runs.
    taken["ours"] = run_alone(time_ours, case, **KERNEL_ENVIRONMENT)
    if is_synthesis and one.device.type == "cuda":
        compiled = run_alone(time_ours, case, "auto", **KERNEL_ENVIRONMENT)
        taken |= {"compiled": compiled} if compiled["compiled"] else {}  # there is no compiler on every machine
    about = dict(zip(("stage", "preset", "network", "images per epoch"), case, strict=True))
    return about | {"batch": one.batch, "iterations": one.setting.synthesis.iterations, "taken": taken}


def format_row(row: dict, rate: float) -> dict:
    """One line as the table shows it; `rate` as `measure_matrix_rate` returns it."""
    taken, seconds = row["taken"], {kind: one["seconds"] for kind, one in row["taken"].items()}
    kinds = [kind for kind in ("plain", "ours", "compiled") if kind in taken]
    per_image = [f"{seconds[kind] * row['iterations'] / row['batch']:.2g}" for kind in kinds]
    memory = [f"{taken[kind]['peak_memory_mb'] / 1000:.1f}" for kind in kinds]
    rate_of_ours = taken["ours"]["flop"] / seconds["ours"]
    return {
        "stage": f"{row['stage']}, {row['preset']}",
        "network": row["network"],
        "batch": row["batch"],
        "plain, ms": f"{1000 * seconds['plain']:.1f}",
        "without DataLoader, ms": f"{1000 * seconds['plain without loader']:.1f}",
        "ours, ms": f"{1000 * seconds['ours']:.1f}",
        **({"ours compiled, ms": f"{1000 * seconds['compiled']:.1f}"} if "compiled" in taken else {}),
        "ratio": f"{seconds['plain'] / seconds['ours']:.1f}",
        "ratio without DataLoader": f"{seconds['plain without loader'] / seconds['ours']:.1f}",
        "GFLOP/s": f"{rate_of_ours / 1e9:.0f}",
        "of the bf16 matrix rate": f"{100 * rate_of_ours / rate:.0f} %",
        "s per finished image": ", ".join(per_image) if row["stage"] == "synthesis" else "",
        "peak memory, GB": ", ".join(memory),
    }


def make_stem(kind: str, device: str) -> str:
    """The name of a file of results: speed-amd-epyc-2-threads."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def main() -> None:
    compute = devices.choose()
    on_gpu, name, provenance = compute.device.type == "cuda", compute.describe(), store.collect_provenance(compute)
    rate = run_alone(measure_matrix_rate)
    rows = [measure(case) for case in (ON_GPU if on_gpu else ON_CPU)]
    memory = "tensors on the GPU" if on_gpu else "the whole process, libraries included"
    text = f"""# Time per step: {name}

`make bench`: medians of {REPEATS} repeats after a warm-up; ours in {provenance["precision"]}, the plain loop in fp32. \
A square bf16 matrix product ran at {rate / 1e9:.0f} GFLOP/s. Seconds per finished image (all \
iterations of the preset, without its weight adjustment) and peak memory ({memory}): \
plain, ours{", ours compiled" if on_gpu else ""}.

{pd.DataFrame([format_row(row, rate) for row in rows]).fillna("").to_markdown(index=False, disable_numparse=True)}
"""
    path = root() / "results" / "bench" / f"{make_stem('speed', name)}.json"
    store.write_json(path, {"rows": rows, "matrix_rate": rate, **provenance})
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"written: results/bench/{path.stem}.md and .json")


if __name__ == "__main__":
    main()
