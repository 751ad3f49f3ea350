"""Augmentation: each batched operation against a plain one, image by image, and against torchvision."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from dwa_core import augment, seeds
from dwa_paper.settings import schema


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return seeds.device_random(torch.device(device), seed)


# ------------------------------------------------------------------------------------------- random numbers


def test_random_numbers_depend_on_the_whole_key_alone(cpu):
    keys = [(0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 1, 2)]
    torch.manual_seed(0)
    device = [torch.rand(3, generator=seeds.device_random(cpu, *key)).tolist() for key in keys]
    host = [seeds.host_random(*key).random(3).tolist() for key in keys]
    torch.manual_seed(1)
    assert device == [torch.rand(3, generator=seeds.device_random(cpu, *key)).tolist() for key in keys]
    assert host == [seeds.host_random(*key).random(3).tolist() for key in keys]
    assert len({tuple(values) for values in device + host}) == 8


# -------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("preset", ["cifar10", "cifar100", "tiny-imagenet", "imagenet-1k", "digits"])
def test_every_pixel_value_survives_normalisation_and_back(preset):
    chosen = schema.resolve({"preset": preset, "profile": "test", "name": "name"}).images
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    normalised = augment.normalise(augment.to_unit_range(pixels), chosen.mean, chosen.std)
    assert torch.equal(augment.denormalise_to_uint8(normalised, chosen.mean, chosen.std, rounded=True), pixels)


def test_normalisation_is_per_channel():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    expected = torch.tensor([(0.0 - 0.1) / 0.5, (0.5 - 0.2) / 0.25, (1.0 - 0.3) / 0.125])
    torch.testing.assert_close(augment.normalise(images, [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]).flatten(), expected)


def test_pixels_are_rounded_or_truncated_and_kept_in_range():
    images = torch.tensor([-3.0, 0.4, 0.6, 1.5, 99.7, 254.6, 255.2, 300.0]).view(8, 1, 1, 1).expand(8, 3, 1, 1) / 255

    def stored(rounded):
        return augment.denormalise_to_uint8(images, [0.0] * 3, [1.0] * 3, rounded)[:, 0, 0, 0].tolist()

    assert stored(rounded=True) == [0, 0, 1, 2, 100, 255, 255, 255]
    assert stored(rounded=False) == [0, 0, 0, 1, 99, 254, 255, 255]


# -------------------------------------------------------------------------------------------- training crops


def test_padded_crop_and_flip_is_a_crop_of_the_blackened_border():
    images = random_bytes(64, 6, 6, 3).clamp(min=1)
    result = augment.pad_crop_and_flip(images, 2, seeded(0))
    assert result.dtype == torch.uint8
    seen = []
    for image, got in zip(images, result, strict=True):
        padded = torch.zeros(10, 10, 3, dtype=torch.uint8)
        padded[2:8, 2:8] = image
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(got, padded[top : top + 6, left : left + 6].flip(1 if flip else ()))
        ]
        assert len(matches) == 1
        seen += matches
    tops, lefts, flips = zip(*seen, strict=True)
    assert set(tops) == set(lefts) == set(range(5))  # both ends included
    assert 16 < sum(flips) < 48
    assert len(set(seen)) > 25  # drawn per image


def test_padded_crop_without_padding_only_flips():
    images = random_bytes(32, 5, 5, 3)
    result = augment.pad_crop_and_flip(images, 0, seeded(0))
    flipped = [torch.equal(got, image.flip(1)) for image, got in zip(images, result, strict=True)]
    kept = [torch.equal(got, image) for image, got in zip(images, result, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 8 <= sum(flipped) <= 24


def test_resized_crop_and_flip_is_torchvisions_resized_crop_of_the_same_boxes():
    images = random_images(40, 3, 24, 24)
    boxes = augment.draw_boxes(40, 24, 24, seeded(3)).int().T.tolist()
    result = augment.crop_resize_and_flip(images, seeded(3))
    flips = 0
    for image, got, box in zip(images, result, boxes, strict=True):
        plain = TF.resized_crop(image, *box, size=[24, 24], antialias=True)
        flip = (got - plain).abs().max() > (got - plain.flip(2)).abs().max()
        torch.testing.assert_close(got, plain.flip(2) if flip else plain, atol=1e-4, rtol=0)
        flips += int(flip)
    assert 10 < flips < 30
    assert len({tuple(box) for box in boxes}) > 30  # drawn per image


def test_crop_boxes_are_distributed_as_torchvisions():
    side, count = 64, 20_000
    top, left, height, width = augment.draw_boxes(count, side, side, seeded(0))
    torch.manual_seed(0)
    image = torch.empty(3, side, side)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(5_000)])

    def summary(top, left, height, width):
        area, ratio = height * width / side**2, (width / height).log()
        inside = [start / (side - size).clamp(min=1) for start, size in ((top, height), (left, width))]
        values = [area, ratio, *inside]
        return torch.tensor([*(v.mean() for v in values), *(v.std() for v in values), area.min(), area.max()])

    # Standard errors are below 0.005; drawing the ratio itself in place of its logarithm shifts a mean by 0.03.
    torch.testing.assert_close(
        summary(top, left, height, width), summary(*theirs.float().unbind(1)), atol=0.015, rtol=0
    )
    assert ((top >= 0) & (left >= 0) & (top + height <= side) & (left + width <= side)).all()


# ---------------------------------------------------------------------------------------------------- mixing


def test_mixup_blends_with_another_image_by_one_coefficient():
    count = 16
    # Image i is one in pixel i alone, so each result shows what it was blended from.
    images = torch.eye(count).view(count, 1, 4, 4).expand(-1, 3, -1, -1)
    mixed, partner, share = augment.mix(images, "mixup", 0.8, seeds.host_random(0), seeded(0))
    weights = mixed[:, 0].reshape(count, count)
    assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    kept = weights.diagonal()
    keep = kept.min().item()
    others = weights - torch.diag(kept)
    assert 0 < keep < 1
    for row in range(count):
        if kept[row] < 1:  # not blended with itself
            assert kept[row].item() == pytest.approx(keep)
            assert others[row].max().item() == pytest.approx(1 - keep)
            assert others[row].argmax() == partner[row]
    assert share == pytest.approx(keep)
    assert (weights.sum(0) - 1).abs().max() < 1e-6  # every image is the other of exactly one
    assert (kept < 1).sum() > count // 2


class FixedDraws:
    """Stands in for the host's random numbers: the coefficient, then the centre's row and column."""

    def __init__(self, coefficient: float, row: int, column: int):
        self.coefficient, self.centre = coefficient, [row, column]

    def beta(self, *_):
        return self.coefficient

    def integers(self, *_):
        return self.centre.pop(0)


@pytest.mark.parametrize(
    ("coefficient", "row", "column", "rows", "columns"),
    [
        (0.75, 8, 16, range(4, 12), range(8, 24)),  # a quarter of the area: half of either side
        (0.75, 1, 31, range(0, 5), range(23, 32)),  # cut at the border
        (1.0, 8, 16, range(0), range(0)),
        (0.0, 8, 16, range(16), range(32)),
    ],
)
def test_cutmix_pastes_one_rectangle_of_another_image(coefficient, row, column, rows, columns):
    numbers = torch.arange(1.0, 13)
    images = numbers.view(12, 1, 1, 1).expand(12, 3, 16, 32).contiguous()
    mixed, partner, share = augment.mix(images, "cutmix", 1.0, FixedDraws(coefficient, row, column), seeded(0))
    inside = torch.zeros(16, 32, dtype=torch.bool)
    if len(rows):
        inside[rows.start : rows.stop, columns.start : columns.stop] = True
        pasted = mixed[:, :, inside]
        assert (pasted == pasted[:, :1, :1]).all()
        assert sorted(pasted[:, 0, 0].tolist()) == numbers.tolist()
        assert (pasted[:, 0, 0] != numbers).sum() > 6
        assert torch.equal(pasted[:, 0, 0], numbers[partner])
    assert share == 1 - inside.double().mean()
    assert torch.equal(mixed[:, :, ~inside], images[:, :, ~inside])
    assert (images == numbers.view(12, 1, 1, 1)).all()  # the batch itself is left alone


# ------------------------------------------------------------------------------------------- synthesis views


@pytest.mark.parametrize("roll", [[0, 4], [-4, 4], [3, 3]])
def test_views_roll_between_both_ends_included(roll):
    views = augment.draw_views(300, 16, roll, False, 1, 2)
    for axis in range(2):
        assert set(views[:, axis].tolist()) == set(range(roll[0], roll[1] + 1))
    assert (views[:, 2:] == torch.tensor([0, 0, 0, 16, 16])).all(), "not flipped, and the whole image"


def test_views_depend_on_their_key_alone():
    for resized_crop in (False, True):
        views = augment.draw_views(20, 16, [0, 4], resized_crop, 1, 2)
        assert torch.equal(augment.draw_views(20, 16, [0, 4], resized_crop, 1, 2), views)
        assert not torch.equal(augment.draw_views(20, 16, [0, 4], resized_crop, 1, 3), views)


def test_views_with_a_crop_draw_crop_and_flip_per_iteration():
    views = augment.draw_views(300, 16, [0, 4], True, 0)
    tops, lefts, heights, widths = views[:, 3:].T
    assert (tops >= 0).all()
    assert (tops + heights <= 16).all()
    assert (lefts >= 0).all()
    assert (lefts + widths <= 16).all()
    assert len(views[:, 3:].unique(dim=0)) > 100
    assert 100 < views[:, 2].sum() < 200


def view_of(*numbers: float) -> torch.Tensor:
    """Roll of rows and columns, flipped, and the crop's top, left, height, width."""
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("crop", [(1, 4, 9, 7), (0, 0, 12, 12), (5, 11, 1, 1), (3, 0, 2, 12)])
def test_view_is_crop_then_flip_then_roll(crop):
    images = random_images(2, 3, 12, 12)
    top, left, height, width = crop
    expected = images[:, :, top : top + height, left : left + width]
    expected = F.interpolate(expected, size=(12, 12), mode="bilinear", align_corners=False, antialias=False)
    expected = torch.stack([expected[..., 11 - column] for column in range(12)], dim=-1)
    expected = torch.cat([expected[:, :, 9:], expected[:, :, :9]], dim=2)
    expected = torch.cat([expected[..., 2:], expected[..., :2]], dim=3)
    torch.testing.assert_close(augment.apply_view(images, view_of(3, -2, 1, *crop)), expected)


@pytest.mark.parametrize("view", [(1, -2, 0, 0, 0, 5, 5), (2, 1, 1, 0, 1, 4, 3)])
def test_gradients_flow_through_a_view(view):
    images = random_images(1, 2, 5, 5).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augment.apply_view(x, view_of(*view)), images)


def test_roll_alone_moves_pixels_exactly_and_loses_none():
    images = random_images(2, 3, 6, 6)
    (view,) = augment.make_whole_views(torch.tensor([[2, 1]]), 6)
    assert torch.equal(augment.apply_view(images, view), images.roll((2, 1), dims=(2, 3)))
