"""Networks: their sizes and shapes, weights by seed alone, names."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from dwa_core import models, weights


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_torchvision_stem_gives_torchvisions_own_network(name, count):
    with torch.device("meta"):  # shapes without numbers, which would take a second each
        network = models.build(name, 1000, "torchvision", 224, seed=0)
        assert sum(parameter.numel() for parameter in network.parameters()) == count
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        features = nn.Sequential(*list(network.children())[:-2])
        assert features(torch.empty(2, 3, 224, 224)).shape[2:] == (7, 7)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_small_stem_keeps_the_side_of_a_small_image(name):
    with torch.device("meta"):
        network = models.build(name, 10, "small", 32, seed=0)
        images = torch.empty(2, 3, 32, 32)
        assert network(images).shape == (2, 10)
        children = dict(network.named_children())
        stem = nn.Sequential(*[children[key] for key in ("conv1", "bn1", "relu", "maxpool")])
        assert stem(images).shape == (2, 64, 32, 32)
        features = nn.Sequential(*list(network.children())[:-2])
        assert features(images).shape[2:] == (4, 4)


@pytest.mark.parametrize(("width", "side"), [(128, 32), (16, 16), (8, 64), (8, 20)])
def test_convnet_has_three_blocks_and_one_linear_layer(width, side):
    network = models.build(f"convnet-{width}", 7, "small", side, seed=0)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)
    convolutions = (3 * 9 + 1) * width + 2 * (width * 9 + 1) * width
    batchnorms = 3 * 2 * width
    linear = (width * (side // 8) ** 2 + 1) * 7
    assert count(network) == convolutions + batchnorms + linear


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# torchvision's and timm's published counts for 1,000 classes.
AT_224 = {
    "vgg16_bn": 138_365_992,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "shufflenet_v2_x0_5": 1_366_792,
    "vit_tiny_patch16_224": 5_717_416,
}


@pytest.mark.parametrize("name", AT_224)
def test_networks_for_224_px_are_those_of_torchvision_and_timm(name):
    with torch.device("meta"):
        network = models.build(name, 1000, "torchvision", 224, seed=0)
        assert count(network) == AT_224[name]
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


def shufflenet_parameters(classes: int) -> int:
    """By hand from table 1 and figure 2 of the ShuffleNet paper, two groups: a unit's narrow part has a quarter of
    its output's channels, and a unit of stride 2 makes only what the pooled input beside it leaves over."""
    total, channels = 3 * 24 * 9 + 2 * 24, 24  # the 3x3 stem and its BatchNorm
    for outputs, units in ((200, 4), (400, 8), (800, 4)):
        for unit in range(units):
            narrow, made = outputs // 4, outputs - channels if unit == 0 else outputs
            groups = 1 if channels == 24 else 2
            total += channels * narrow // groups + 2 * narrow  # 1x1 and BatchNorm
            total += 9 * narrow + 2 * narrow  # depthwise 3x3 and BatchNorm
            total += narrow * made // 2 + 2 * made  # 1x1 and BatchNorm
            channels = outputs
    return total + 801 * classes


# For 10 classes at 32 px: parameters, and the side of the features before they are pooled.
AT_32 = {
    # 13 convolutions of 3x3 with biases (14,714,688), 4,224 channels of BatchNorm, and 512 x 10 + 10.
    "vgg16_bn": (14_714_688 + 2 * 4_224 + 5_130, 1),
    # A stride changes no count: torchvision's for 1,000 classes, less what 990 classes of a last layer of 1,280 have.
    "mobilenet_v2": (3_504_872 - 990 * 1_281, 4),
    "efficientnet_b0": (5_288_548 - 990 * 1_281, 2),
    "shufflenet_g2": (shufflenet_parameters(10), 4),
}


@pytest.mark.parametrize("name", AT_32)
def test_small_variants_have_the_parameters_and_the_features_that_they_should(name):
    parameters, side = AT_32[name]
    sides = []
    with torch.device("meta"):
        network = models.build(name, 10, "small", 32, seed=0)
        for layer in network.modules():
            if isinstance(layer, nn.AdaptiveAvgPool2d):
                layer.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[2:]))
        assert count(network) == parameters
        if name == "mobilenet_v2":  # which averages without a layer for it
            assert network.features(torch.empty(2, 3, 32, 32)).shape[2:] == (side, side)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    # EfficientNet's squeeze-and-excitation layers pool too; the last is the one before the classifier.
    assert name == "mobilenet_v2" or sides[-1] == (side, side)


def test_small_efficientnet_has_dropout_and_drop_connect_of_two_tenths():
    with torch.device("meta"):
        network = models.build("efficientnet_b0", 10, "small", 32, seed=0)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.2]
    # It grows with depth, from 0 towards .2: the last of 16 blocks has 15/16 of it.
    dropped = [layer.p for layer in network.modules() if type(layer).__name__ == "StochasticDepth"]
    assert len(dropped) == 16
    assert max(dropped) == pytest.approx(0.2 * 15 / 16)


def test_shuffle_unit_mixes_the_two_groups_of_channels():
    unit = models.ShuffleUnit(64, 64, groups=2, first_groups=2, stride=1).eval()
    images = torch.randn(4, 64, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(unit.branch(images)[:, :32].abs().sum(), images)
    assert gradient[:, :32].abs().sum() > 0, "the first half of the output must see the first group"
    assert gradient[:, 32:].abs().sum() > 0, "the first half of the output must see the second group"


STUDENTS = ["convnet-128", "resnet18", "resnet34", "resnet50", "resnet101", *AT_32]


@pytest.mark.parametrize(
    ("name", "stem"),
    [(name, "small") for name in STUDENTS] + [(name, "torchvision") for name in AT_224 if name != "vgg16_bn"],
)
def test_every_student_learns_a_batch_of_cifar_shape(name, stem):
    network = models.build(name, 10, stem, 32, seed=0)
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32, generator=random), torch.arange(4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout
        for _ in range(6):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert min(losses[-2:]) < 0.7 * losses[0], losses


@pytest.mark.parametrize(
    ("name", "stem", "side", "texts"),
    [
        ("shufflenet_g2", "torchvision", 224, ["stem", "shufflenet_g2", "small"]),
        ("shufflenet_v2_x0_5", "small", 32, ["stem", "shufflenet_v2_x0_5", "torchvision"]),
        ("vgg16_bn", "small", 16, ["images.side: 16", "vgg16_bn", "Output size is too small"]),
        ("vit_b_16", "torchvision", 32, ["images.side: 32", "vit_b_16", "Wrong image height! Expected 224"]),
        ("vit_tiny_patch16_224", "torchvision", 72, ["images.side: 72", "vit_tiny_patch16_224", "16"]),
    ],
)
def test_stem_or_side_that_a_network_does_not_have_is_refused(name, stem, side, texts, refused):
    with refused(*texts, "student"):
        models.check_network("student", name, stem, side)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_for_other_inputs_are_refused(name, refused):
    with refused("teacher.weights: 'IMAGENET1K_V1'", name, "null trains one"):
        weights.find_published(name, "IMAGENET1K_V1")


def test_network_without_batchnorm_is_refused_as_a_teacher(refused):
    with refused("network: 'vit_tiny_patch16_224'", "BatchNorm2d", "student"):
        models.check_teacher("vit_tiny_patch16_224", "torchvision", 32)
    for name in STUDENTS:
        models.check_teacher(name, "small", 32)


@pytest.mark.parametrize("name", ["convnet-8", "resnet18"])
def test_weights_depend_on_the_seed_alone_and_leave_the_global_state_alone(name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = parameters_to_vector(models.build(name, 10, "small", 16, seed=0).parameters())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(parameters_to_vector(models.build(name, 10, "small", 16, seed=0).parameters()), first)
    assert not torch.equal(parameters_to_vector(models.build(name, 10, "small", 16, seed=1).parameters()), first)


@pytest.mark.parametrize("name", ["resnet19", "ResNet18", "convnet-0", "convnet-", "convnet-1.5", "", "xresnet18"])
def test_unknown_network_is_refused(name, refused):
    with refused("network", repr(name), "convnet-N", "resnet101"):
        models.build(name, 10, "small", 32, seed=0)


@pytest.mark.parametrize(("name", "weights_name"), [("resnet18", "IMAGENET1K_V9"), ("convnet-128", "IMAGENET1K_V1")])
def test_unknown_published_weights_are_refused(name, weights_name, refused):
    with refused("teacher.weights", repr(weights_name), name):
        weights.load_published(name, weights_name, 1000)


def test_published_weights_of_other_classes_are_refused(refused):
    with refused("teacher.weights", "1000 classes", "has 10"):
        weights.load_published("resnet18", "IMAGENET1K_V1", 10)


DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


def test_published_weights_that_cannot_be_downloaded_are_refused(monkeypatch, refused):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(DOWNLOAD, unreachable)
    with refused("teacher.weights", "cannot be downloaded", "no route to host"):
        weights.load_published("resnet18", "IMAGENET1K_V1", 1000)


def test_published_weights_are_checked_and_nothing_in_their_file_is_run(monkeypatch, tmp_path, refused):
    state = models.build("resnet18", 1000, "torchvision", 224, seed=3).state_dict()
    asked = {}
    monkeypatch.setattr(DOWNLOAD, lambda url, **options: asked.update(options) or state)
    found = weights.load_published("resnet18", "IMAGENET1K_V1", 1000).state_dict()
    assert asked == {"check_hash": True, "weights_only": True}
    assert all(torch.equal(found[name], value) for name, value in state.items())

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was-run",)

    torch.save({"weight": Harmful()}, tmp_path / "weights.pth")
    file = tmp_path / "weights.pth"
    monkeypatch.setattr(DOWNLOAD, lambda url, weights_only, **_: torch.load(file, weights_only=weights_only))
    with refused("teacher.weights", "cannot be downloaded or read"):
        weights.load_published("resnet18", "IMAGENET1K_V1", 1000)
    assert not (tmp_path / "was-run").exists()
