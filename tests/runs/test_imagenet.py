"""The recipe of ImageNet-1K: published weights, class batches at 224 px, images that stream from their files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from dwa_core import batches, initialise, models, synthesis
from dwa_paper.runs import real, sets, students, teachers
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.runs.teachers import Teacher
from dwa_paper.settings.presets import merge
from dwa_paper.settings.schema import Setting, resolve

SHARED = Path(os.environ.get("DWA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]


def small(**given) -> Setting:
    """A run of the recipe that keeps its side, stem and order of things, and takes seconds on a CPU."""
    short = {
        "profile": "test",
        "name": "small",
        "preset": "imagenet-1k",
        "device": "cpu",
        "precision": "fp32",
        "ipc": 2,
        "synthesis": {"iterations": 2, "steps": 2, "classes_per_batch": 3},
        "relabel": {"epochs": 2, "test_every": 2, "batch_size": 4},
    }
    return resolve(merge(short, given))


def run(setting: Setting, compute) -> tuple[ImageData, Teacher, DistilledSet, dict]:
    photographs = real.load(setting.dataset, setting.images, compute.device, setting.ipc)
    trained = teachers.load_or_train(setting, photographs, compute)
    distilled = sets.load_or_synthesize(setting, photographs, trained, compute)
    record = students.evaluate(setting, photographs, [photographs], [trained], [distilled], compute)
    return photographs, trained, distilled, record


@pytest.fixture
def image_folder(tmp_path, monkeypatch):
    """$DWA_DATA/imagenet-1k with train/ and val/ of four classes, photographs of several sizes and aspects."""
    random = np.random.default_rng(0)
    for part, count in {"train": 3, "val": 2}.items():
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "imagenet-1k" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                size = (240 + 20 * index, 300 - 30 * label, 3)
                picture = np.full(size, 60 * label, np.uint8) + random.integers(0, 60, size, np.uint8)
                Image.fromarray(picture).save(folder / f"{name}_{index}.JPEG")
    monkeypatch.setenv("DWA_DATA", str(tmp_path))
    # One worker: starting processes is all that takes time here.
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)


class Weights:
    """Stands in for torchvision's entry of published weights and its download: four classes, drawn like no others."""

    meta = {"categories": CLASSES}  # noqa: RUF012

    def get_state_dict(self, check_hash, weights_only):
        assert check_hash
        assert weights_only
        torch.manual_seed(1234)
        return torchvision.models.resnet18(num_classes=len(CLASSES)).state_dict()


@pytest.fixture
def published_weights(monkeypatch):
    """The names that were asked for, in place of a download."""
    asked = []

    def get_model_weights(name):
        asked.append(name)
        return {"IMAGENET1K_V1": Weights()}

    monkeypatch.setattr(torchvision.models, "get_model_weights", get_model_weights)
    return asked


def test_recipe_runs_from_an_image_folder_with_published_weights(image_folder, published_weights, compute):
    setting = small()
    photographs, trained, distilled, record = run(setting, compute)
    assert isinstance(photographs.train, batches.Streamed)
    assert (photographs.classes, len(photographs.train), len(photographs.test)) == (CLASSES, 12, 8)
    # The teacher is what was published, tested on the validation part, and no epoch was trained.
    assert set(published_weights) == {"resnet18"}
    assert trained.record["curve"] == []
    torch.manual_seed(1234)
    expected = torchvision.models.resnet18(num_classes=len(CLASSES)).conv1.weight
    assert torch.equal(trained.network.conv1.weight, expected.half().float())
    assert 0 <= trained.record["accuracy"]["top1"] <= 100
    # Two images of each of four classes, made in batches of three classes and one.
    assert distilled.images_uint8.shape == (8, 224, 224, 3)
    assert distilled.labels.tolist() == [0, 1, 2, 3] * 2
    chosen = initialise.draw_real(photographs.train, 4, 2, seed=0).flatten()
    changed = (distilled.images_uint8.float() - photographs.train.pictures(chosen).float()).abs().mean((1, 2, 3))
    assert (changed > 1).all(), "every image was optimised, those of the last and smaller batch too"
    assert record["data"]["test_images"] == 8
    assert record["accuracy"]["reported"] in {100 * hits / 8 for hits in range(9)}


def test_each_batch_of_classes_starts_from_the_teachers_own_weights(
    image_folder, published_weights, compute, monkeypatch
):
    begun = []
    adjust = synthesis.adjust_directed

    def watch(network, images, labels, *others):
        begun.append((labels.tolist(), network.fc.weight.clone()))
        return adjust(network, images, labels, *others)

    monkeypatch.setattr(synthesis, "adjust_directed", watch)
    for authors in (False, True):
        begun.clear()
        setting = small(ipc=1, authors=authors)
        photographs = real.load(setting.dataset, setting.images, compute.device, setting.ipc)
        trained = teachers.load_or_train(setting, photographs, compute)
        sets.load_or_synthesize(setting, photographs, trained, compute)
        (first, before), (second, after) = begun
        assert (first, second) == ([0, 1, 2], [3])
        assert torch.equal(before, trained.network.fc.weight)
        assert torch.equal(after, before) is not authors, "kept between batches only as the authors' code does"


@pytest.mark.parametrize("source", ["published", "own"])
def test_weights_of_other_classes_are_fine_tuned_with_a_new_last_layer(
    source, image_folder, published_weights, compute, monkeypatch, tmp_path
):
    torch.manual_seed(1234)
    start = torchvision.models.resnet18(num_classes=7).state_dict()
    monkeypatch.setattr(Weights, "meta", {"categories": list("abcdefg")})
    monkeypatch.setattr(Weights, "get_state_dict", lambda *_, **__: start)
    save_file(start, own := tmp_path / "own.safetensors")
    stage = {"weights": str(own) if source == "own" else "IMAGENET1K_V1", "fine_tune": True, "batch_size": 8}
    # A rate at which an epoch changes nothing that fp16 shows.
    setting = small(teacher=stage | {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    photographs = real.load(setting.dataset, setting.images, compute.device, setting.ipc)
    trained = teachers.load_or_train(setting, photographs, compute)
    assert [entry["epoch"] for entry in trained.record["curve"]] == [1]
    state = trained.network.state_dict()
    assert torch.equal(state["conv1.weight"], start["conv1.weight"].half().float())
    drawn = models.build("resnet18", 4, "torchvision", 224, setting.teacher.seed).fc.weight
    assert torch.equal(state["fc.weight"], drawn.half().float())
    assert not torch.equal(state["bn1.running_mean"], start["bn1.running_mean"]), "it was trained on these images"


def test_images_with_other_classes_than_the_published_weights_are_refused(image_folder, compute, refused):
    with refused("teacher.weights", "1000 classes", "has 4", "null trains one", "teacher.fine_tune: true"):
        run(small(), compute)


def test_recipe_runs_on_twenty_classes_of_tiny_imagenet(monkeypatch, compute):
    if not (SHARED / "tiny-imagenet-20").is_dir():
        pytest.skip(f"there is no {SHARED / 'tiny-imagenet-20'}; DWA_DATA can name the folder above it")
    monkeypatch.setenv("DWA_DATA", str(SHARED))
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)
    setting = small(
        dataset="tiny-imagenet-20",
        network="convnet-8",
        ipc=1,
        images={"side": 72},
        teacher={"weights": None, "epochs": 1},
        synthesis={"classes_per_batch": 8, "roll": [0, 9]},
    )
    photographs, trained, distilled, record = run(setting, compute)
    assert isinstance(photographs.train, batches.Streamed)
    assert (len(photographs.classes), len(photographs.train), len(photographs.test)) == (20, 10_000, 1_000)
    assert trained.record["accuracy"]["top1"] > 10, "twice what guessing gets"
    assert distilled.images_uint8.shape == (20, 72, 72, 3)
    assert record["data"]["test_images"] == 1_000
