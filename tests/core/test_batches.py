"""Batches of real or distilled images: kept in memory or left in their files, shuffled and augmented by key."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dwa_core import batches, initialise
from dwa_core.augment import normalise, to_unit_range
from dwa_core.recipe import Training

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def training(batch_size: int, crop: str, padding: int = 2) -> Training:
    return Training(
        epochs=1,
        batch_size=batch_size,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        crop=crop,
        crop_padding=padding,
    )


def numbered_images(count: int, cpu) -> batches.Resident:
    """Image i is all i, so that no crop or flip hides which one it is; its label is i too."""
    numbers = torch.arange(count)
    return batches.Resident(numbers.to(torch.uint8)[:, None, None, None].repeat(1, 8, 8, 3), numbers, cpu)


@pytest.mark.parametrize(("crop", "padding"), [("padded", 0), ("resized", 2)])
def test_an_epoch_visits_every_image_once_in_an_order_of_its_key(crop, padding, cpu):
    images = numbered_images(20, cpu)
    stage = training(8, crop, padding)

    def epoch(*key):
        batches = list(images.train_batches(stage, [0.0] * 3, [1 / 255] * 3, *key))
        assert [len(labels) for _, labels in batches] == [8, 8, 4]
        for pixels, labels in batches:
            torch.testing.assert_close(pixels, labels.float()[:, None, None, None].expand(-1, 3, 8, 8))
        return torch.cat([labels for _, labels in batches]).tolist()

    first = epoch(0, 0)
    assert sorted(first) == list(range(20))
    assert epoch(0, 0) == first
    assert epoch(0, 1) != first


def test_a_last_batch_of_one_is_dropped(cpu):
    batches = numbered_images(17, cpu).train_batches(training(8, "padded"), MEAN, STD, 0)
    assert [len(labels) for _, labels in batches] == [8, 8]
    only = numbered_images(1, cpu).train_batches(training(8, "padded"), MEAN, STD, 0)
    assert [len(labels) for _, labels in only] == [1]


def test_test_batches_hold_every_image_in_order_and_unchanged(digits):
    batches = list(digits.test.test_batches(MEAN, STD))
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.test.labels)
    expected = normalise(to_unit_range(digits.test.images_uint8), MEAN, STD)
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected)


@pytest.fixture
def pictures():
    """17 images of 96x80 px."""
    return np.random.default_rng(0).integers(0, 256, (17, 96, 80, 3), dtype=np.uint8)


@pytest.fixture
def streamed(pictures, monkeypatch):
    """A function that returns the images at a side of 72 px, left encoded: 9 of one class, then 8 of the other."""
    # One worker: starting processes is all that takes time here.
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    encoded = {"image": [Image.fromarray(picture) for picture in pictures], "label": [0] * 9 + [1] * 8}
    dataset = datasets.Dataset.from_dict(encoded, features=features).cast_column("image", datasets.Image(decode=False))
    return lambda device: batches.Streamed(dataset, 72, device)


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_streamed_training_batches_are_augmented_by_their_key(crop, streamed, cpu):
    found = streamed(cpu)

    def epoch(*key):
        batches = list(found.train_batches(training(8, crop), MEAN, STD, *key))
        assert [images.shape for images, _ in batches] == [(8, 3, 72, 72), (8, 3, 72, 72)]
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    images, labels = epoch(0, 0)
    again, labels_again = epoch(0, 0)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(epoch(0, 1)[0], images)
    # The last of the shuffled images is dropped.
    assert labels.bincount().min() >= 7
    assert labels.tolist() != sorted(labels.tolist())
    black, white = (normalise(torch.full((1, 3, 1, 1), value), MEAN, STD) for value in (0.0, 1.0))
    assert ((images >= black) & (images <= white)).all()
    assert images.amin() < 0 < images.amax()


def test_streamed_test_images_are_resized_by_their_short_side_and_cropped_at_the_centre(streamed, pictures, cpu):
    ((images, labels),) = streamed(cpu).test_batches(MEAN, STD)
    assert labels.tolist() == [0] * 9 + [1] * 8
    # 72 * 256 / 224 = 82.3 px for the short side of 80; the long one follows: 96 * 82 / 80 = 98.4.
    resized = [Image.fromarray(picture).resize((82, 98), Image.Resampling.BILINEAR) for picture in pictures]
    expected = np.stack([np.asarray(image.crop((5, 13, 77, 85))) for image in resized])
    torch.testing.assert_close(images, normalise(to_unit_range(torch.from_numpy(expected)), MEAN, STD))


def test_streamed_pictures_are_resized_regardless_of_aspect(streamed, pictures, cpu):
    found = streamed(cpu)
    expected = [Image.fromarray(pictures[index]).resize((72, 72), Image.Resampling.BILINEAR) for index in (4, 2)]
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in expected]))
    assert torch.equal(found.pictures(torch.tensor([4, 2])), expected)
    assert initialise.draw_real(found, 2, 8, seed=0).unique().numel() == 16


def test_streamed_batches_come_on_the_device(streamed):
    elsewhere = torch.device("meta")
    found = streamed(elsewhere)
    for images, labels in (
        next(found.train_batches(training(8, "padded"), MEAN, STD, 0)),
        next(found.test_batches(MEAN, STD)),
    ):
        assert images.device == labels.device == elsewhere
        assert images.dtype is torch.float32
    assert found.pictures(torch.arange(2)).device == elsewhere


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_number_of_workers_changes_no_streamed_batch(crop, streamed, cpu):
    found = streamed(cpu)

    def epoch(workers):
        found.workers = workers
        return torch.cat([images for images, _ in found.train_batches(training(5, crop), MEAN, STD, 3, 0)])

    state = torch.get_rng_state()
    without = epoch(0)
    assert torch.equal(torch.get_rng_state(), state), "the main process keeps its random numbers"
    assert torch.equal(epoch(1), without)
    assert torch.equal(epoch(2), without)
