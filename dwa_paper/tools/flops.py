"""What a setting takes in FLOP and in memory, counted on networks without numbers, and how fast a device is.

FLOP are those of convolutions and matrix products, two for a multiplication and an addition. A gradient, of the images
or of the weights, takes as many as the pass forward. FlopCounterMode's own count of a pass backward is not used: to it,
grouped convolutions have the weights of whole ones.
"""

import functools
import timeit
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dwa_core import devices, models
from dwa_core.recipe import Training
from dwa_core.synthesis import GPU_IMAGES
from dwa_paper.runs.sources import RESIDENT_SIDE
from dwa_paper.settings.schema import SYNTHESISED, Setting


class Device(NamedTuple):
    name: str  # a part of what PyTorch calls it
    peak: float  # FLOP per second of dense bf16 products with sums in fp32, by the maker's data sheet
    share: float  # of the peak, that networks reach


# An H200 computed 54 PFLOP of the CIFAR-10 part of the profile paper in 545 s, loading and testing included: a tenth of
# its peak, which is an H100's too. On an A100, others train ResNet-18 at 32 px at 25 % of it (README of
# cifar10-airbench: 32.3 PFLOP in 7 minutes) and ResNet-50 at 224 px at 19 % (NVIDIA's DeepLearningExamples: 2,470
# images per second). The peaks are from NVIDIA's data sheets of H100 SXM and H200 (half of the numbers "with sparsity")
# and A100, and the white paper of the Ada architecture.
DEVICES = {
    "h200": Device("H200", 989.4e12, 0.1),
    "h100": Device("H100 80GB HBM3", 989.4e12, 0.1),
    "a100": Device("A100", 312e12, 0.2),
    "rtx4090": Device("RTX 4090", 165.2e12, 0.2),
}


class Counts(NamedTuple):
    flop: int  # of one image's pass forward
    kept: int  # numbers that it keeps for the pass backward
    parameters: int


@functools.cache
def count_network(name: str, stem: str, side: int, classes: int) -> Counts:
    """Counts the network `name` as models.build makes it."""
    network, kept = models.build_outline(name, classes, stem, side).eval(), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor  # by storage: several layers keep the same numbers
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(1, 3, side, side, device="meta"))
    numbers, parameters = (sum(tensor.numel() for tensor in some) for some in (kept.values(), network.parameters()))
    return Counts(counter.get_total_flops(), numbers, parameters)


def count_both(setting: Setting, data: dict) -> list[Counts]:
    """The counts of the teacher's and the student's network; `data` is, as below, what a record says of its data."""
    size = setting.stem, setting.images.side, data["classes"]
    return [count_network(name, *size) for name in (setting.network, setting.student)]


def count_tested(stage: Training, data: dict) -> int:
    """How many images a network is tested on in the course of its training."""
    return data["test_images"] * -(-stage.epochs // stage.test_every)


def count_flop(setting: Setting, stage: str, data: dict) -> float:
    """FLOP of a stage of `setting` as it is computed: teacher, synthesis, or student (of one seed)."""
    synthetic, made, relabel, tasks = setting.ipc * data["classes"], setting.synthesis, setting.relabel, setting.tasks
    teacher = student = 0.0  # images times passes through the network
    if stage == "teacher":
        teacher = data["test_images"]
        if setting.teacher.is_trained():
            teacher += 3 * setting.teacher.epochs * data["training_images"] + count_tested(setting.teacher, data)
    elif stage == "student":
        # After each of several tasks it is trained on the sets of the classes so far, labelled by all teachers so far.
        student = (tasks + 1) / 2 * (3 * relabel.epochs * synthetic + count_tested(relabel, data))
        labelled = {"teacher": (tasks + 1) * (2 * tasks + 1) / 6 * relabel.epochs, "fixed": 1, "hard": 0}
        teacher = labelled[relabel.labels] * synthetic
    elif setting.method in SYNTHESISED:
        iteration = 3 if made.sums_weight_gradients() else 2
        adjustment = 3 * made.steps if made.adjustment == "directed" else 0
        herding = data["training_images"] if made.initial == "herded" else 0
        teacher = synthetic * (iteration * made.iterations + adjustment + 1) + herding
    size = setting.stem, setting.images.side, data["classes"]
    passes = ((setting.network, teacher), (setting.student, student))
    return sum(images * count_network(name, *size).flop for name, images in passes if images)


def count_memory(setting: Setting, data: dict, width: int = 2) -> int:
    """Bytes of the device at the peak, about; a number that is kept for the pass backward takes `width`."""
    teacher, student = count_both(setting, data)
    pixels, per_batch = 3 * setting.images.side**2, min(setting.synthesis.classes_per_batch, data["classes"])
    synthetic = setting.ipc * data["classes"]
    real = data["training_images"] + data["test_images"] if setting.images.side <= RESIDENT_SIDE else 0
    # Weights, gradients and optimiser in fp32, beside what is kept; of networks that only label or are frozen, weights.
    stages = [width * student.kept * count_held(setting.relabel, synthetic) + 16 * student.parameters]
    stages[0] += 4 * teacher.parameters + synthetic * pixels
    if setting.teacher.is_trained():
        held = count_held(setting.teacher, data["training_images"])
        stages.append(width * teacher.kept * held + 16 * teacher.parameters)
    if setting.method in SYNTHESISED:  # the adjustment is in fp32
        bytes_per_number = max(width * max(GPU_IMAGES, per_batch), 4 * per_batch)
        stages.append(bytes_per_number * teacher.kept + 8 * teacher.parameters)
    return real * pixels + max(stages)


def count_held(stage: Training, images: int) -> int:
    """Images whose numbers a GPU keeps: those of a CUDA graph's batch, and of an epoch's smaller last one beside it."""
    return min(stage.batch_size, images) + (images % stage.batch_size if images > stage.batch_size else 0)


def identify(device: str) -> str:
    """A key of DEVICES for a name such as PyTorch's of that GPU, else the name, that of a CPU without its threads."""
    found = (key for key, known in DEVICES.items() if known.name in device)
    return next(found, device.rpartition(", ")[0] or device)


@functools.cache
def find_speed(device: str) -> tuple[float, str]:
    """FLOP per second that networks are taken to reach on a key of DEVICES or on the device here, and why."""
    if device in DEVICES:
        _, peak, share = DEVICES[device]
        return share * peak, f"{share * peak / 1e12:.0f} TFLOP/s, {100 * share:.0f} % of the data sheet's peak in bf16"
    compute = devices.choose()
    # A product reached 78 % of an H200's peak. On a CPU, networks reached 35 to 102 % of a product (docs/speed.md).
    side, share = {"cuda": (8192, 0.13), "cpu": (1024, 0.5)}[compute.device.type]
    factor = torch.rand(side, side, device=compute.device).to(compute.precision)
    timer = timeit.Timer(lambda: torch.mm(factor, factor)[0, 0].item())  # read, and so waited for
    number, _ = timer.autorange()  # so many take 0.2 s
    speed = share * 2 * side**3 * number / min(timer.repeat(3, number))
    return speed, f"{speed / 1e12:.3g} TFLOP/s, {100 * share:.0f} % of what a matrix product reaches here"
