"""Networks by name: their layers, and the sides that they take.

torchvision and timm are imported where they are used, because each takes seconds and a ConvNet needs neither.
"""

import functools
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from dwa_core.errors import InputError

# Every builder takes the network's name, the number of classes and the side of the images.


def build_convnet(name: str, classes: int, side: int) -> nn.Module:
    """ConvNet of the field: three blocks of 3x3 convolution, BatchNorm, ReLU, 2x2 average pool; one linear layer."""
    width = int(name.removeprefix("convnet-"))
    layers = []
    for channels in (3, width, width):
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 8) ** 2, classes))


def build_torchvision(name: str, classes: int, _side: int = 0, **settings) -> nn.Module:
    """torchvision's own network, without weights."""
    import torchvision

    if name in SECOND_OUTPUT:
        settings = {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **settings)


def build_small_resnet(name: str, classes: int, side: int) -> nn.Module:
    """ResNet with the small stem of the field: 3x3 stride 1, no max-pool."""
    network = build_torchvision(name, classes, side)
    # torchvision's 7x7 stride 2 and max-pool leave an image of 32 px only 8 px wide.
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def build_small_vgg(name: str, classes: int, side: int) -> nn.Module:
    """VGG with one 512-to-classes linear layer in place of torchvision's three, which expect 7x7 features."""
    features = build_torchvision(name, classes, side).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def build_small_mobilenet(name: str, classes: int, side: int) -> nn.Module:
    """MobileNetV2 with the stem and the first two stages at stride 1: 32 px become 4."""
    # Expansion, channels, blocks and stride of each stage, as in table 2 of Sandler et al. (2018) except for the second
    # stage's stride, there 2.
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    network = build_torchvision(name, classes, side, inverted_residual_setting=stages)
    network.features[0][0].stride = (1, 1)
    return network


def build_small_efficientnet(name: str, classes: int, side: int) -> nn.Module:
    """EfficientNet with its 3x3 stem at stride 1: 32 px become 2."""
    network = build_torchvision(name, classes, side, dropout=0.2, stochastic_depth_prob=0.2)
    network.features[0][0].stride = (1, 1)
    return network


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNet (Zhang et al., 2018, figure 2): grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1.

    With stride 2 the input, average-pooled, is put beside the result instead of being added to it.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, first_groups: int, stride: int):
        super().__init__()
        self.stride = stride
        middle, made = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.ChannelShuffle(groups),
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, made, 1, groups=groups, bias=False),
            nn.BatchNorm2d(made),
        )

    def forward(self, x):
        made = self.branch(x)
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, padding=1), made], dim=1))
        return F.relu(x + made)


def build_small_shufflenet(_name: str, classes: int, _side: int) -> nn.Module:
    """ShuffleNet of two groups, with a 3x3 stem at stride 1 and no max-pool: 32 px become 4.

    torchvision has only the second version. As in the paper, the first 1x1 convolution of all is not grouped.
    """
    layers = [nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)]
    channels, groups = 24, 2
    for outputs, units in ((200, 4), (400, 8), (800, 4)):
        for unit in range(units):
            first_groups = 1 if channels == 24 else groups
            layers.append(ShuffleUnit(channels, outputs, groups, first_groups, stride=2 if unit == 0 else 1))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def build_timm(name: str, classes: int, side: int) -> nn.Module:
    """timm's own network, without weights; one that takes images in patches takes those of `side`."""
    import timm

    return timm.create_model(name, num_classes=classes, **({"img_size": side} if name in PATCH_SIDE else {}))


STEMS = ("small", "torchvision")
# One entry per family: a pattern of names, names to show, and what builds it for each of STEMS.
NETWORKS = [
    (r"convnet-[1-9]\d*", "convnet-N (N channels)", build_convnet, build_convnet),
    (r"resnet(18|34|50|101)", "resnet18, resnet34, resnet50, resnet101", build_small_resnet, build_torchvision),
    ("vgg16_bn", "vgg16_bn", build_small_vgg, build_torchvision),
    ("mobilenet_v2", "mobilenet_v2", build_small_mobilenet, build_torchvision),
    ("efficientnet_b0", "efficientnet_b0", build_small_efficientnet, build_torchvision),
    ("shufflenet_g2", "shufflenet_g2", build_small_shufflenet, None),
    ("shufflenet_v2_x0_5", "shufflenet_v2_x0_5", None, build_torchvision),
    ("vit_tiny_patch16_224", "vit_tiny_patch16_224", None, build_timm),
]
# Without the second output that they are trained with, these are classifiers as any other.
SECOND_OUTPUT = ("googlenet", "inception_v3")
PATCH_SIDE = {"vit_tiny_patch16_224": 16}


def find_builders(key: str, name: str) -> dict[str, Callable]:
    """What builds the network `name`, by stem; `key` is the setting to blame.

    Raises:
        InputError: no network is called `name`.
    """
    for pattern, _, *builders in NETWORKS:
        if re.fullmatch(pattern, name):
            return {stem: build for stem, build in zip(STEMS, builders, strict=True) if build is not None}
    if (build := find_in_libraries(name)) is not None:
        return dict.fromkeys(STEMS, build)
    known = ", ".join(names for _, names, *_ in NETWORKS)
    raise InputError(f"{key}: {name!r} is not a network; allowed: {known}, and what torchvision and timm have")


def find_in_libraries(name: str) -> Callable | None:
    """What builds the classifier `name` as torchvision or else timm has it, for the side that it was made for."""
    import torchvision

    if name in torchvision.models.list_models(module=torchvision.models):
        return build_torchvision
    import timm

    return build_timm if timm.is_model(name) else None


def check_stem(key: str, name: str, stem: str, side: int) -> None:
    """Raises InputError if there is no network `name` with this stem, or its patches do not cover the side."""
    builders = find_builders(key, name)
    if stem not in builders:
        raise InputError(f"stem: {stem!r} is not allowed for {key} {name}; allowed: {', '.join(builders)}")
    if side % PATCH_SIDE.get(name, 1):
        raise InputError(f"images.side: {side} is not allowed for {key} {name}; a multiple of {PATCH_SIDE[name]}")


def check_network(key: str, name: str, stem: str, side: int) -> None:
    """Raises InputError if there is no network `name` with this stem, or it does not take images of this side."""
    check_stem(key, name, stem, side)
    if (problem := find_side_problem(name, stem, side)) is not None:
        raise InputError(f"images.side: {side} is not allowed for {key} {name}; {problem}")


@functools.cache
def find_side_problem(name: str, stem: str, side: int) -> str | None:
    """Why the network does not take images of this side, in its library's words; None where it does."""
    try:
        build_outline(name, 2, stem, side).eval()(torch.empty(1, 3, side, side, device="meta"))
    except Exception as error:  # of the network's own kind
        if "meta tensor" in str(error):  # it computes with its numbers, and the outline has none
            return None
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def check_teacher(name: str, stem: str, side: int) -> None:
    """Raises InputError if the network cannot be a teacher: synthesis matches the statistics of BatchNorm2d layers."""
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in build_outline(name, 2, stem, side).modules()):
        raise InputError(f"network: {name!r} has no BatchNorm2d layers, which a teacher needs; it can be a student")


def build_outline(name: str, classes: int, stem: str, side: int) -> nn.Module:
    """The network as `build` makes it, its layers and shapes without their numbers (on the device "meta")."""
    try:
        with torch.device("meta"):
            return build(name, classes, stem, side, seed=0)
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
        return build(name, classes, stem, side, seed=0).to("meta")  # a RegNet computes its widths with tensors


def build(name: str, classes: int, stem: str, side: int, seed: int) -> nn.Module:
    """The network `name` with weights drawn by `seed`, on the CPU.

    Args:
        name: one of NETWORKS, such as "convnet-128" or "resnet18", or of torchvision's or timm's.
        classes: outputs of the last layer.
        stem: "small" (for images up to 64 px: 3x3 stride 1, no max-pool) or "torchvision"; ConvNets, and networks
            that are not in NETWORKS, have only one.
        side: of the images, pixels.

    Raises:
        InputError: there is no such network.
    """
    check_stem("network", name, stem, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return find_builders("network", name)[stem](name, classes, side)
