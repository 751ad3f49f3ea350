"""Batches of real or distilled images: from bytes in memory, augmented on the device, or from files through workers."""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader

from dwa_core import augment, devices, seeds
from dwa_core.errors import InputError, quote
from dwa_core.recipe import Training

if TYPE_CHECKING:  # a run whose images are in memory need not wait for it
    import datasets

TEST_BATCH = 1000
STREAMED_TEST_BATCH = 256
# What is decoded. Pillow knows many more, and starts Ghostscript for an EPS file of whatever name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class Resident:
    """Images kept as bytes (N, H, W, 3) on the device, or where `place` says, and their labels on the device.

    Labels are classes (N,), or probabilities (N, classes).
    """

    def __init__(
        self, images_uint8: torch.Tensor, labels: torch.Tensor, device: torch.device, place: torch.device | None = None
    ):
        self.images_uint8, self.labels, self.device = images_uint8.to(place or device), labels.to(device), device
        self.share = (0, 1)  # of each training batch: this process's number, and how many share it

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self, indices: torch.Tensor) -> torch.Tensor:
        """The images of `indices` as bytes."""
        return upload(self.images_uint8[indices.to(self.images_uint8.device)], self.device)

    def relabel(self, labels: torch.Tensor) -> "Resident":
        """The images with `labels` (N,) instead of their own, without those whose label is negative."""
        labels, place = labels.to(self.device), self.images_uint8.device
        kept = labels >= 0
        return Resident(self.images_uint8[kept.to(place)], labels[kept], self.device, place)

    def train_batches(self, stage: Training, mean, std, *key: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch, shuffled: augmented, normalised images (B, 3, H, W) and labels; it depends on `key` alone."""
        random = seeds.device_random(self.device, *key)
        order = torch.randperm(len(self), generator=random, device=self.device)
        rank, processes = self.share
        places = order.to(self.images_uint8.device)  # read once an epoch, where a read per batch would wait for the GPU
        for chosen, place in zip(order.split(stage.batch_size), places.split(stage.batch_size), strict=True):
            if is_too_small(chosen, len(self), processes):
                continue
            pixels = self.pictures(place)
            if stage.crop == "padded":
                images = augment.to_unit_range(augment.pad_crop_and_flip(pixels, stage.crop_padding, random))
            else:
                images = augment.crop_resize_and_flip(augment.to_unit_range(pixels), random)
            yield augment.normalise(images[rank::processes], mean, std), self.labels[chosen[rank::processes]]

    def test_batches(self, mean, std) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, normalised."""
        batches = zip(self.images_uint8.split(TEST_BATCH), self.labels.split(TEST_BATCH), strict=True)
        for pixels, labels in batches:
            yield augment.normalise(augment.to_unit_range(upload(pixels, self.device)), mean, std), labels


class Streamed:
    """Images left in their files, decoded, cropped and batched by DataLoader workers; batches come on the device.

    Each image's crop and flip depend on the epoch's key and on the image, not on the worker that draws them.

    Args:
        dataset: rows of a label and an image as `read_image` takes it.
        rows: the number of each row in its part, for messages; None: they are all there.
    """

    def __init__(self, dataset: "datasets.Dataset", side: int, device: torch.device, rows: np.ndarray | None = None):
        self.dataset, self.side, self.device = dataset, side, device
        self.rows = np.arange(len(dataset)) if rows is None else rows
        self.labels = torch.tensor(dataset["label"][:])
        self.workers = min(16, devices.count_cpus())
        self.share = (0, 1)  # of each training batch: this process's number, and how many share it

    def __len__(self) -> int:
        return len(self.dataset)

    def pictures(self, indices: torch.Tensor) -> torch.Tensor:
        """The images of `indices` as bytes, resized to the side regardless of aspect.

        Raises:
            InputError: one of them cannot be read.
        """
        chosen = []
        for index in indices.tolist():
            try:
                image = read_image(self.dataset[index]["image"], self.rows[index])
            except ValueError as error:
                raise InputError(f"dataset: training {error}") from None
            chosen.append(np.asarray(resize_to_square(image, self.side)))
        return torch.from_numpy(np.stack(chosen)).to(self.device)

    def relabel(self, labels: torch.Tensor) -> "Streamed":
        """As Resident.relabel; the files stay as they are."""
        dataset = self.dataset.remove_columns("label").add_column("label", labels.numpy())
        kept = (labels >= 0).nonzero()[:, 0].numpy()
        return Streamed(dataset.select(kept), self.side, self.device, self.rows[kept])

    def train_batches(self, stage: Training, mean, std, *key: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As Resident.train_batches, with a crop resized as PIL does."""
        order = torch.randperm(len(self), generator=seeds.device_random(torch.device("cpu"), *key))
        rank, processes = self.share
        whole = [batch for batch in order.split(stage.batch_size) if not is_too_small(batch, len(self), processes)]
        return self.batches([batch[rank::processes] for batch in whole], stage, mean, std, key)

    def test_batches(self, mean, std) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once: resized so that the short side is 256/224 of the side, then cropped at the centre."""
        return self.batches(torch.arange(len(self)).split(STREAMED_TEST_BATCH), None, mean, std, ())

    def batches(self, chosen: Sequence[torch.Tensor], stage: Training | None, mean, std, key: tuple[int, ...]):
        """Normalised batches (B, 3, side, side) of the images `chosen`, as `list_crops` has them; drawn by `key`."""
        loader = DataLoader(
            Cropped(self.dataset, [convert_to_rgb, *list_crops(stage, self.side)], key, self.rows),
            batch_sampler=[batch.tolist() for batch in chosen],
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws from the global one
            pin_memory=self.device.type == "cuda",
        )
        for images, labels in read_batches(loader):
            images = upload(images, self.device)  # as bytes, a quarter of what they are as numbers
            images = images.float().div_(255).contiguous(memory_format=torch.channels_last)
            yield augment.normalise(images, mean, std), upload(labels, self.device)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; where that is a GPU, the host does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_too_small(batch: torch.Tensor, images: int, processes: int) -> bool:
    """Whether a process would train on less than two images, as BatchNorm cannot; of one image in all, it has to."""
    return len(batch) < 2 * processes and images > 1


def list_crops(stage: Training | None, side: int) -> list:
    """What turns an RGB image into bytes (3, side, side) in training, or in testing, where there is no `stage`."""
    from torchvision.transforms import v2  # here because it takes seconds, and images in memory do without

    if stage is None:
        crop = [v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side)]
    elif stage.crop == "padded":
        crop = [v2.Resize((side, side)), v2.RandomCrop(side, padding=stage.crop_padding), v2.RandomHorizontalFlip()]
    else:
        crop = [v2.RandomResizedCrop(side, augment.CROP_SCALE, augment.CROP_RATIO), v2.RandomHorizontalFlip()]
    return [*crop, v2.PILToTensor()]


class Cropped(torch.utils.data.Dataset):
    """What a worker makes of an image: bytes (3, side, side) and the label, drawn by `key` and the image's number."""

    def __init__(self, dataset: "datasets.Dataset", steps: list[Callable], key: tuple[int, ...], rows: np.ndarray):
        self.dataset, self.steps, self.key, self.rows = dataset, steps, key, rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.dataset[index]
        image = read_image(row["image"], self.rows[index])
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.manual_seed(seeds.key_to_seed(*self.key, index))
            return functools.reduce(lambda image, step: step(image), self.steps, image), row["label"]


def read_batches(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    """The batches of `loader`, with a worker's traceback over an image that cannot be read put into one line."""
    try:
        yield from loader
    except ValueError as error:  # of `read_image`
        last = str(error).strip().splitlines()[-1]
        raise InputError(f"dataset: {last.removeprefix('ValueError: ')}") from None


def read_image(item: dict, row: int) -> Image.Image:
    """The first frame of an image of one of FORMATS, turned as its EXIF data say.

    Args:
        item: what a row of `datasets` holds undecoded: "bytes" of the file, or None and the "path" of a file.
        row: its number, counted from 0, for the message.

    Raises:
        ValueError: it cannot be read; the message begins with "image", and names its file, or its row.
    """
    content, path = item["bytes"], item["path"]
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            turned = image.getexif().get(Image.ExifTags.Base.Orientation) is not None
            return ImageOps.exif_transpose(image) if turned else image
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, its own, and what a damaged file hits
        where = path if content is None else f"number {row}" + (f" ({quote(path)})" if path else "")
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is damaged, or none of {', '.join(FORMATS)}"
        raise ValueError(f"image {where} cannot be read; {reason}") from None


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits per channel, the 16 bits of a grey image scaled down; transparency is left out."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def resize_to_square(image: Image.Image, side: int) -> Image.Image:
    """RGB at side x side, regardless of aspect."""
    image = convert_to_rgb(image)
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)
