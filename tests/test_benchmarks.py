"""Fast synthesis against the plain loop of benchmarks/, bf16 against fp32, and that the benchmarks run."""

import sys
from pathlib import Path

import pytest
import torch

from dwa_core import augment, devices, initialise, models
from dwa_core.devices import Compute
from dwa_core.synthesis import ClassBatch, ImageOptimisation, optimise
from dwa_core.training import Progress
from dwa_paper.settings import schema

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench
import growth
import plain


@pytest.mark.parametrize("name", ["convnet-16", "resnet18"])
def test_fast_and_plain_synthesis_agree_in_float64_after_ten_iterations(name):
    setting = schema.resolve({"preset": "cifar100", "profile": "test", "name": "plain"})
    network = models.build(name, 10, "small", 16, seed=0).double()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
                layer.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    network = network.eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=random)
    images = augment.normalise(pixels, setting.images.mean, setting.images.std)
    views = augment.draw_views(10, 16, setting.synthesis.roll, False, 0)
    stage, mean, std = setting.synthesis, setting.images.mean, setting.images.std
    class_batch = ClassBatch(images, torch.arange(4), views)
    twin = devices.copy_frozen(network)
    slow = plain.synthesize(twin, class_batch.images, class_batch.labels, views, mean, std)
    compute = Compute(torch.device("cpu"), torch.float64)
    batch = ImageOptimisation(devices.copy_frozen(network), class_batch, stage, setting.images, compute)
    optimise([batch], Progress("test"), torch.empty(0), {})
    fast = batch.images.detach()
    assert (fast - slow).norm() <= 1e-9 * slow.norm()
    assert (fast - images).abs().max() > 0.1, "ten iterations move the images, or this compares nothing"


def test_losses_in_bf16_end_within_the_spread_of_three_seeds_in_fp32(digits, tiny_teacher, tiny_setting):
    """Cross-entropy and BatchNorm terms, averaged over the last 30 of 300 iterations."""
    setting = tiny_setting(synthesis={"iterations": 300})
    stage, images = setting.synthesis, setting.images

    def last_losses(seed: int, precision: torch.dtype) -> torch.Tensor:
        chosen = initialise.draw_real(digits.train, 10, 1, seed)[0]
        initial = augment.normalise(augment.to_unit_range(digits.train.pictures(chosen)), images.mean, images.std)
        views = augment.draw_views(stage.iterations, 16, [0, 2], False, seed)
        network = devices.copy_frozen(tiny_teacher.network)
        class_batch = ClassBatch(initial, torch.arange(10), views)
        batch = ImageOptimisation(network, class_batch, stage, images, Compute(torch.device("cpu"), precision))
        optimise([batch], Progress("test"), torch.empty(0), {})
        return batch.losses[-30:, :2].mean(0)

    exact = torch.stack([last_losses(seed, torch.float32) for seed in range(3)])
    rough = last_losses(0, torch.bfloat16)
    spread = exact.max(0).values - exact.min(0).values
    assert ((rough - exact.mean(0)).abs() <= spread).all(), (rough, exact)


@pytest.mark.parametrize("stage", ["synthesis", "teacher", "student"])
def test_speed_of_the_plain_loop_and_of_ours_is_taken(stage, monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    case = (stage, "cifar10", "convnet-8", 20)
    theirs, ours = [bench.time_plain(case, with_loader) for with_loader in (False, True)], bench.time_ours(case)
    for taken in (*theirs, ours):
        assert 0 < taken["seconds"] < 10
        assert taken["peak_memory_mb"] > 0
    assert ours["flop"] > 0


def test_compiled_synthesis_on_a_gpu_has_a_column_seconds_per_image_and_gigabytes():
    taken = {"plain": (0.5, 5300), "plain without loader": (0.5, 5300), "ours": (0.1, 3000), "compiled": (0.05, 2900)}
    taken = {kind: {"seconds": took, "peak_memory_mb": memory, "flop": 1e12} for kind, (took, memory) in taken.items()}
    row = {"stage": "synthesis", "preset": "imagenet-1k", "network": "resnet18", "batch": 100, "iterations": 2000}
    line = bench.format_row(row | {"taken": taken}, 4e13)
    assert line["ours compiled, ms"] == "50.0"
    assert line["s per finished image"] == "10, 2, 1"
    assert line["peak memory, GB"] == "5.3, 3.0, 2.9"
    assert line["of the bf16 matrix rate"] == "25 %"
    on_cpu = bench.format_row(
        row | {"stage": "teacher", "taken": {kind: taken[kind] for kind in list(taken)[:3]}}, 4e13
    )
    assert "ours compiled, ms" not in on_cpu
    assert on_cpu["s per finished image"] == ""


def test_growth_is_taken(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(growth, "NETWORK", "convnet-8")
    monkeypatch.setitem(growth.SMALL, "classes_per_batch", 5)
    taken = growth.grow(2, 10, 32)
    assert taken["images"] == 20
    assert taken["seconds per image"] > 0
