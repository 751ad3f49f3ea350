"""Networks by name, and how they run: device, precision, memory format."""

import copy
import os
import platform
import re

import torch
import torchvision
from torch import nn

from dwa_core.settings import InputError


def convnet(width: int, classes: int, side: int) -> nn.Module:
    """ConvNet of the field: three blocks of 3x3 convolution, BatchNorm, ReLU, 2x2 average pool; one linear layer."""
    layers, channels = [], 3
    for _ in range(3):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 8) ** 2, classes))


def resnet(name: str, classes: int, stem: str) -> nn.Module:
    """torchvision's ResNet, with the "small" stem of the field (3x3 stride 1, no max-pool) or its own."""
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if stem == "small":
        # torchvision's 7x7 stride 2 and max-pool leave an image of 32 px only 8 px wide.
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


# One entry per family: a pattern of names, a name to show, and how to build one.
NETWORKS = [
    (
        r"convnet-(\d+)",
        "convnet-N (N channels)",
        lambda name, classes, stem, side: convnet(int(name[8:]), classes, side),
    ),
    (
        r"resnet(18|34|50|101)",
        "resnet18, resnet34, resnet50, resnet101",
        lambda name, classes, stem, side: resnet(name, classes, stem),
    ),
]


def check_name(key: str, name: str) -> None:
    """Raises InputError if no network is called `name`; `key` is the setting to blame."""
    if not any(re.fullmatch(pattern, name) for pattern, _, _ in NETWORKS) or name == "convnet-0":
        known = ", ".join(names for _, names, _ in NETWORKS)
        raise InputError(f"{key}: {name!r} is not a network; allowed: {known}")


def build(name: str, classes: int, stem: str, side: int, seed: int) -> nn.Module:
    """The network `name` with weights drawn by `seed`, on the CPU.

    Args:
        name: as in NETWORKS, for example "convnet-128" or "resnet18".
        classes: outputs of the last layer.
        stem: "small" (3x3 stride 1, no max-pool) or "torchvision"; ConvNets have only one.
        side: of the images, pixels.

    Raises:
        InputError: no network has that name.
    """
    check_name("network", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for pattern, _, builder in NETWORKS:
            if re.fullmatch(pattern, name):
                return builder(name, classes, stem, side)


def find_weights(name: str, weights: str):
    """torchvision's entry for the published `weights` of a network, for example IMAGENET1K_V1.

    Raises:
        InputError: there are none of that name.
    """
    try:
        return torchvision.models.get_model_weights(name)[weights]
    except (ValueError, KeyError) as error:
        raise InputError(f"teacher.weights: {weights!r} is not known for {name}; {error}") from None


def published(name: str, weights: str, classes: int) -> nn.Module:
    """A torchvision network with torchvision's published `weights`, for example IMAGENET1K_V1.

    Raises:
        InputError: there are no such weights, they have other classes, or they cannot be downloaded or read.
    """
    check_name("network", name)
    found = find_weights(name, weights)
    outputs = len(found.meta["categories"])
    if outputs != classes:
        raise InputError(
            f"teacher.weights: {weights!r} has {outputs} classes, the data set has {classes}; null trains one"
        )
    try:
        # Left to torchvision, whatever the file holds would be unpickled, code included.
        state = found.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # the download, its checksum, or what the file would have run
        raise InputError(f"teacher.weights: {weights!r} cannot be downloaded or read; {error}") from None
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    network.load_state_dict(state)
    return network


def choose_device(wanted: str) -> torch.device:
    """The device for `wanted`: "cpu", "cuda", or "auto" (CUDA where there is one).

    Raises:
        InputError: CUDA was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not available here; set it to cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def use_deterministic_algorithms() -> None:
    """From now on the same run on the same GPU gives the same bits; an operation that cannot raises RuntimeError.

    To be called before anything is computed on the GPU.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS's own condition for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def device_name(device: torch.device) -> str:
    """What a reader of a record should know of the device: the GPU's name, or the CPU's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions and matrix products: "auto" takes bf16 where the device computes in it."""
    if wanted == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
        wanted = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Context in which a network computes in `precision`; its weights stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16)


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Moves `network` to `device` in the channels-last format, which both cuDNN and oneDNN prefer."""
    return network.to(device, memory_format=torch.channels_last)


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode none of whose parameters gets a gradient."""
    twin = copy.deepcopy(network).eval()
    return twin.requires_grad_(False)
