"""Networks by name, and how they run: device, precision, memory format."""

import copy
import platform
import re
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
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
    ours = any(re.fullmatch(pattern, name) for pattern, _, _ in NETWORKS) and name != "convnet-0"
    if not ours and library_of(name) is None:
        known = ", ".join(names for _, names, _ in NETWORKS)
        raise InputError(f"{key}: {name!r} is not a network; allowed: {known}, and what torchvision and timm have")


def build(name: str, classes: int, stem: str, side: int, seed: int) -> nn.Module:
    """The network `name` with weights drawn by `seed`, on the CPU.

    Args:
        name: as in NETWORKS, for example "convnet-128" or "resnet18", or of a network of torchvision or timm.
        classes: outputs of the last layer.
        stem: "small" (3x3 stride 1, no max-pool) or "torchvision"; ConvNets, and networks not in NETWORKS, have one.
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
        return library_network(name, classes)


def library_of(name: str) -> str | None:
    """ "torchvision" or "timm", where one of them has a classifier called `name`; torchvision is asked first."""
    if name in torchvision.models.list_models(module=torchvision.models):
        return "torchvision"
    import timm  # a second or two, for those alone who ask for its networks

    return "timm" if timm.is_model(name) else None


def library_network(name: str, classes: int) -> nn.Module:
    """torchvision's or timm's network as it is, without pretrained weights; it has only its own stem."""
    if library_of(name) == "torchvision":
        # Without the second output that these two train with, they are classifiers as any other.
        single = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **single)
    import timm

    return timm.create_model(name, pretrained=False, num_classes=classes)


def check_batchnorm(name: str, stem: str, side: int) -> None:
    """Raises InputError if the network has no BatchNorm2d layer, whose statistics the synthesis needs."""
    network = build(name, 2, stem, side, seed=0)
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        raise InputError(f"network: {name!r} has no BatchNorm2d layers, so nothing can be distilled from it")


def with_own_weights(network: nn.Module, path: Path) -> nn.Module:
    """`network` with the state dict of a safetensors file, of any float type.

    Raises:
        InputError: the file cannot be read, or holds another network's weights.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"teacher.weights: {path} cannot be read; {error}") from None
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    own = network.state_dict()
    for name in [*own, *state]:
        if name.endswith("num_batches_tracked"):  # counts nothing that is used, and is often left out
            continue
        if name not in own or name not in state or own[name].shape != state[name].shape:
            shapes = [tuple(found[name].shape) if name in found else "none" for found in (state, own)]
            raise InputError(f"teacher.weights: {path} does not fit: {name} is {shapes[0]}, expected {shapes[1]}")
    network.load_state_dict(state, strict=False)
    return network


def published(name: str, weights: str, classes: int) -> nn.Module:
    """A torchvision network with torchvision's published `weights`, for example IMAGENET1K_V1.

    Raises:
        InputError: there are no such weights, they have other classes, or they cannot be downloaded.
    """
    check_name("network", name)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise InputError(f"teacher.weights: {weights!r} is not known for {name}; {error}") from None
    except OSError as error:
        raise InputError(f"teacher.weights: {weights!r} cannot be downloaded; {error}") from None
    outputs = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1].out_features
    if outputs != classes:
        raise InputError(
            f"teacher.weights: {weights!r} has {outputs} classes, the data set has {classes}; null trains one"
        )
    return network


def choose_device(wanted: str) -> torch.device:
    """The device for `wanted`: "cpu", "cuda", or "auto" (CUDA where there is one).

    Raises:
        InputError: CUDA was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not available here; set it to cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


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
