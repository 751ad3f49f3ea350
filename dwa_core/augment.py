"""Augmentation in batches on the device.

Training draws one crop and flip per image; synthesis draws one view (crop, flip, roll) per iteration
for the whole batch, before the first iteration, so that nothing waits for the device.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

from dwa_core.seeds import CROPS, VIEWS, device_random, host_random

# Scale and aspect of RandomResizedCrop, in every recipe: torchvision's defaults.
CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


def normalise(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """(x - mean) / std per channel; `images` NCHW in [0, 1], of any float type."""
    return (images - broadcast_channels(mean, images)) / broadcast_channels(std, images)


def denormalise_to_uint8(images: torch.Tensor, mean: list[float], std: list[float], rounded: bool) -> torch.Tensor:
    """The pixels 0..255 (NHWC, uint8) of normalised images (NCHW): rounded, or truncated as the authors do."""
    images = images.float()
    pixels = (images * broadcast_channels(std, images) + broadcast_channels(mean, images)) * 255
    pixels = pixels.round() if rounded else pixels
    return pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def broadcast_channels(values: list[float], images: torch.Tensor) -> torch.Tensor:
    """One value per channel, shaped to broadcast over `images` (NCHW), of their type and on their device."""
    return make_channels(tuple(values), images.dtype, images.device)


@functools.cache
def make_channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Made once each: a copy from the host would make every training step wait for the device."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


def to_unit_range(images_uint8: torch.Tensor) -> torch.Tensor:
    """NHWC bytes to NCHW floats in [0, 1]; the memory stays channels-last."""
    return images_uint8.permute(0, 3, 1, 2).float().div_(255)


# ------------------------------------------------------------------------------------- training batches


def pad_crop_and_flip(images_uint8: torch.Tensor, padding: int, random: torch.Generator) -> torch.Tensor:
    """Pads with black, crops back to the size at a random place, flips every second image on average.

    Args:
        images_uint8: (N, H, W, 3), 0..255.
        padding: pixels on each side.
        random: on the images' device.

    Returns: (N, H, W, 3) uint8.
    """
    count, height, width, _ = images_uint8.shape
    device = images_uint8.device
    padded = F.pad(images_uint8, (0, 0, padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=random, device=device)
    flipped = torch.rand(count, 1, generator=random, device=device) < 0.5
    rows, across = top + torch.arange(height, device=device), torch.arange(width, device=device)
    columns = left + torch.where(flipped, across.flip(0), across)
    image = torch.arange(count, device=device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]


def crop_resize_and_flip(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """RandomResizedCrop to the images' own side and a random flip, drawn per image.

    A crop is never larger than the image, so it is only ever enlarged, and there the antialiased
    resize of PIL equals plain bilinear interpolation.

    Args:
        images: (N, C, H, W) floats.
        random: on the images' device.
    """
    count, _, height, width = images.shape
    top, left, crop_height, crop_width = draw_boxes(count, height, width, random)
    flipped = torch.rand(count, 1, generator=random, device=images.device) < 0.5

    def source(start, extent, size):
        # Centre of each output pixel in the source, kept inside the crop as an interpolation of the
        # crop alone would; returned in grid_sample's units of [-1, 1].
        position = (torch.arange(size, device=images.device) + 0.5) * (extent / size)[:, None] - 0.5
        position = start[:, None] + position.clamp(min=0).minimum(extent[:, None] - 1)
        return (2 * position + 1) / size - 1

    y = source(top, crop_height, height)
    x = source(left, crop_width, width)
    x = torch.where(flipped, x.flip(1), x)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def draw_boxes(count: int, height: int, width: int, random: torch.Generator) -> torch.Tensor:
    """Boxes of RandomResizedCrop: (4, count) floats of whole numbers: top, left, height, width.

    As torchvision draws them: ten tries of area and aspect, the first that fits; else a centred crop
    of the nearest allowed aspect.
    """
    uniform = torch.rand(4, count, CROP_TRIES, generator=random, device=random.device)
    area = height * width * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * uniform[0])
    log_ratio = [math.log(ratio) for ratio in CROP_RATIO]
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform[1])
    box_width, box_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    first = fits.int().argmax(1, keepdim=True)
    box_height, box_width = box_height.gather(1, first)[:, 0], box_width.gather(1, first)[:, 0]
    top = (uniform[2, :, 0] * (height - box_height + 1)).floor()
    left = (uniform[3, :, 0] * (width - box_width + 1)).floor()
    fallback_width = min(width, round(height * CROP_RATIO[1]))
    fallback_height = min(height, round(width / CROP_RATIO[0]))
    drawn = top, left, box_height, box_width
    centred = (height - fallback_height) // 2, (width - fallback_width) // 2, fallback_height, fallback_width
    found = fits.any(1)
    return torch.stack([torch.where(found, own, other) for own, other in zip(drawn, centred, strict=True)])


def mix(
    images: torch.Tensor, kind: str, alpha: float, host: np.random.Generator, device: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Images (N, C, H, W), each mixed with another of them, by one coefficient for all drawn from Beta(alpha, alpha).

    "mixup" blends whole images; "cutmix" pastes one rectangle whose share of the area is 1 - coefficient
    before it is cut at the border.

    Returns: the mixed images, which image of the batch each was mixed with (N,), and the share, in [0, 1], of a mixed
        image that is its own.
    """
    share = host.beta(alpha, alpha)
    partner = torch.randperm(len(images), generator=device, device=images.device)
    other = images[partner]
    if kind == "mixup":
        return images * share + other * (1 - share), partner, share
    height, width = images.shape[2:]
    cut = math.sqrt(1 - share)
    centre_y, centre_x = int(host.integers(height)), int(host.integers(width))
    half_y, half_x = int(height * cut) // 2, int(width * cut) // 2
    rows = slice(max(0, centre_y - half_y), min(height, centre_y + half_y))
    columns = slice(max(0, centre_x - half_x), min(width, centre_x + half_x))
    images = images.clone()
    images[:, :, rows, columns] = other[:, :, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return images, partner, 1 - pasted / (height * width)


# -------------------------------------------------------------------------------------- synthesis views


def draw_views(iterations: int, side: int, roll: list[int], resized_crop: bool, *key: int) -> torch.Tensor:
    """What each iteration of synthesis sees of every image: a crop enlarged to the side, then a flip, then a roll.

    Args:
        roll: the least and the most pixels of a roll, both ends included; the same for rows and columns.
        resized_crop: RandomResizedCrop and a random flip; without it the whole image is seen.
        key: what the views depend on, alone.

    Returns: (iterations, 7), float64 on the CPU: roll of rows, roll of columns, flipped (0 or 1), and the
        crop's top, left, height and width in pixels.
    """
    host = host_random(VIEWS, *key)
    rolls = torch.from_numpy(host.integers(roll[0], roll[1] + 1, size=(iterations, 2))).double()
    if not resized_crop:
        return make_whole_views(rolls, side)
    flips = torch.from_numpy(host.random((iterations, 1)) < 0.5).double()
    boxes = draw_boxes(iterations, side, side, device_random(torch.device("cpu"), CROPS, *key)).double().T
    return torch.cat([rolls, flips, boxes], dim=1)


def make_whole_views(rolls: torch.Tensor, side: int) -> torch.Tensor:
    """The views, as `draw_views` returns them, of whole images rolled by `rolls` (iterations, 2)."""
    whole = torch.tensor([0.0, 0, 0, side, side], dtype=torch.float64)
    return torch.cat([rolls.double(), whole.expand(len(rolls), 5)], dim=1)


def apply_view(images: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """`images` (N, C, side, side) as `view` (one row of `draw_views`) shows them; differentiable.

    The crop is enlarged bilinearly, without antialias, as torchvision does it. Every view is one matrix over
    the rows and one over the columns, made on the device from the view's seven numbers: so a CUDA graph of one
    iteration serves them all. A roll alone moves pixels exactly.
    """
    side = images.shape[-1]
    roll_rows, roll_columns, flipped, top, left, height, width = view.to(images).unbind()
    rows = build_sampling_matrix(top, height, roll_rows, torch.zeros_like(flipped), side)
    columns = build_sampling_matrix(left, width, roll_columns, flipped, side)
    return rows @ images @ columns.T


def build_sampling_matrix(start, extent, roll, flipped, side: int) -> torch.Tensor:
    """(side, side): the weight of each source pixel in each output pixel along one axis; arguments are 0-d tensors."""
    pixels = torch.arange(side, device=start.device, dtype=start.dtype)
    output = (pixels - roll) % side
    output = torch.where(flipped > 0, side - 1 - output, output)
    # The centre of the output pixel in the source, kept inside the crop.
    position = start + ((output + 0.5) * (extent / side) - 0.5).clamp(min=0).minimum(extent - 1)
    # Bilinear interpolation: a weight of 1 that falls to 0 at a distance of one pixel.
    return (1 - (position[:, None] - pixels).abs()).clamp(min=0)
