"""Diversity: numbers known by hand, what a record holds of them, and where the features come from."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dwa_core import batches, diversity, initialise, models
from dwa_core.recipe import Images
from dwa_paper.runs import real

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}


def split_of(values: list[int], labels: list[int], cpu) -> batches.Resident:
    """Images of 16 px each of which is one grey all over."""
    pictures = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].repeat(1, 16, 16, 3)
    return batches.Resident(pictures, torch.tensor(labels), cpu)


@pytest.fixture
def brightness():
    """A network whose last convolution gives the brightness of an image, 0 to 1, on one channel."""
    first, last = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        first.weight.fill_(1 / 3)
        last.weight.fill_(1 / 2)
    return nn.Sequential(first, last, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 2)).eval()


# ------------------------------------------------------------------------------------------- by hand


def test_distance_is_the_mean_over_the_pairs_of_each_class():
    features = torch.tensor([[0.0, 0.0], [7.0, 7.0], [3.0, 4.0], [7.0, 7.0], [0.0, 0.0], [1.0, 1.0]])
    found = diversity.measure_distance_within_class(features, torch.tensor([0, 1, 0, 1, 0, 2]), 4)
    assert found[:2].tolist() == pytest.approx([10 / 3, 0.0])  # pairs 5, 0 and 5; identical images
    assert found[2:].isnan().all()  # one image, and none


def cluster(centre: float, count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + centre


def test_a_set_covers_itself_and_one_of_two_far_clusters_is_half():
    near, far = cluster(0.0, 40, 0), cluster(1000.0, 40, 1)
    both = torch.cat([near, far])
    assert diversity.measure_coverage(both, both, 5) == 1.0
    assert diversity.measure_coverage(both, near, 5) == 0.5
    assert diversity.measure_coverage(both, cluster(-1000.0, 40, 2), 5) == 0.0


def test_coverage_counts_real_images_whose_ball_holds_a_generated_one():
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii at k 1: 1, 1, 2, 4; at k 2: 3, 2, 3, 6
    generated = torch.tensor([[-1.5], [4.5]])  # nearest: 1.5, 2.5, 1.5, 2.5
    assert diversity.measure_coverage(real, generated, 1) == 0.5
    assert diversity.measure_coverage(real, generated, 2) == 0.75
    on_the_border = torch.tensor([[-1.0]])  # the ball is open, as in prdc
    assert diversity.measure_coverage(real, on_the_border, 1) == 0.0


def test_coverage_of_a_sample_of_the_same_kind_is_as_its_docstring_says():
    real, generated = cluster(0.0, 1500, 0), cluster(0.0, 300, 1)
    assert diversity.measure_coverage(real, generated, 5) == pytest.approx(1 - (1500 / 1800) ** 5, abs=0.06)


# ------------------------------------------------------------------------------------------- features


def test_features_are_the_mean_of_the_last_convolution_before_anything_overwrites_it(brightness, cpu):
    with torch.no_grad():
        brightness[1].bias = nn.Parameter(torch.tensor([-0.5]))  # the ReLU behind it would cut half of them
    split = split_of([0, 51, 255], [0, 1, 1], cpu)
    features, logits = diversity.compute_features(brightness, split, **PLAIN)
    torch.testing.assert_close(features, torch.tensor([[-0.5], [-0.3], [0.5]]))
    torch.testing.assert_close(logits, brightness(torch.tensor([0, 0.2, 1]).view(3, 1, 1, 1).expand(3, 3, 16, 16)))
    assert not any(layer._forward_hooks for layer in brightness.modules())


def test_features_of_a_resnet_are_what_its_last_convolution_gives(digits, cpu):
    network = models.build("resnet18", 10, "small", 16, seed=0).eval()
    outputs = []
    hook = network.layer4[1].conv2.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    some = batches.Resident(digits.test.images_uint8[:3], digits.test.labels[:3], cpu)
    features, _ = diversity.compute_features(network, some, **PLAIN)
    hook.remove()
    torch.testing.assert_close(features, outputs[0].mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "stem", "side"),
    [
        ("convnet-8", "small", 32),
        ("resnet50", "small", 32),
        ("vgg16_bn", "small", 32),
        ("mobilenet_v2", "small", 32),
        ("efficientnet_b0", "small", 32),
        ("shufflenet_g2", "small", 32),
        ("shufflenet_v2_x0_5", "torchvision", 64),
        ("vit_tiny_patch16_224", "torchvision", 32),
    ],
)
def test_every_network_has_features(name, stem, side, cpu):
    network = models.build(name, 3, stem, side, seed=0).eval()
    pictures = torch.randint(0, 256, (2, side, side, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = batches.Resident(pictures, torch.tensor([0, 1]), cpu)
    features, logits = diversity.compute_features(network, split, **PLAIN)
    assert features.ndim == 2
    assert logits.shape == (2, 3)
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


# --------------------------------------------------------------------------------------------- records


@pytest.fixture
def measure(brightness):
    """A function that returns what a record holds of two sets of greys, the distilled and the real ones."""
    images = Images(side=16, **PLAIN)
    return lambda real_images, distilled: diversity.measure(images, real_images, 2, brightness, distilled)


def test_record_holds_distances_as_shares_of_the_real_ones(measure, cpu):
    real_images = split_of([0, 100, 200, 100, 150, 250], [0, 0, 0, 1, 1, 1], cpu)  # mean distances 400/3, 100
    distilled = split_of([10, 110, 120, 130], [0, 1, 0, 1], cpu)  # 110, 20
    found = measure(real_images, distilled)
    assert found.pop("feature_distance_by_class") == [0.825, 0.2]
    assert found.pop("feature_distance") == pytest.approx(0.5125)
    # At k 5 a ball reaches to the farthest real image, and there is always a distilled one nearer.
    assert found == {"coverage": 1.0, "k": 5, "classes": 2, "real_images": 6, "distilled_images": 4}


def test_record_has_no_number_where_there_is_none(measure, cpu):
    real_images = split_of([0, 100, 200], [0, 0, 1], cpu)
    one_each = measure(real_images, split_of([5, 5], [0, 1], cpu))
    assert one_each["feature_distance"] is None
    assert one_each["feature_distance_by_class"] == [None, None]
    two_each = measure(real_images, split_of([5, 55, 5, 5], [0, 0, 1, 1], cpu))
    assert two_each["feature_distance_by_class"] == [0.5, None]  # class b has one real image
    assert two_each["feature_distance"] == 0.5
    assert two_each["k"] == 2
    assert measure(split_of([0], [0], cpu), split_of([5, 5], [0, 1], cpu))["coverage"] is None


def test_real_images_are_bounded_class_by_class(measure, cpu, monkeypatch):
    monkeypatch.setattr(diversity, "MOST_REAL_IMAGES", 4)
    real_images = split_of([0, 100, 200, 100, 150, 250], [0, 0, 0, 1, 1, 1], cpu)
    found = measure(real_images, split_of([10, 110, 120, 130], [0, 1, 0, 1], cpu))
    assert found["real_images"] == 4
    assert found["feature_distance_by_class"] == [1.1, 0.4]


def test_streamed_images_are_measured_too(tiny_setting, cpu, monkeypatch):
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)
    images = tiny_setting(images={"side": 72}, stem="torchvision").images
    data = real.load("digits", images, cpu)
    assert isinstance(data.test, batches.Streamed)
    monkeypatch.setattr(diversity, "MOST_REAL_IMAGES", 60)
    network = models.build("convnet-8", 10, "torchvision", 72, seed=0).eval()
    drawn = initialise.draw_real(data.train, 10, 2, seed=0).flatten()
    distilled = batches.Resident(data.train.pictures(drawn), data.train.labels[drawn], cpu)
    found = diversity.measure(images, data.test, 10, network, distilled)
    assert found["real_images"] == 60
    assert 0.3 < found["feature_distance"] < 3
    assert 0 < found["coverage"] <= 1
    assert json.dumps(found)


# ------------------------------------------------------------------------------------------------ t-SNE


def test_tsne_keeps_clusters_apart_and_groups_in_order():
    groups = {"real": torch.cat([cluster(0.0, 30, 0), cluster(100.0, 30, 1)]), "made": cluster(100.0, 10, 2)}
    places = diversity.compute_tsne(groups)
    assert {name: place.shape for name, place in places.items()} == {"real": (60, 2), "made": (10, 2)}
    first, second = places["real"][:30].mean(0), places["real"][30:].mean(0)
    made = places["made"].mean(0)
    assert math.dist(made, second) < math.dist(made, first)
    np.testing.assert_array_equal(diversity.compute_tsne(groups)["made"], places["made"])
