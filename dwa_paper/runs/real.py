"""Real images as a training and a test part: bundled digits, CIFAR, Tiny-ImageNet, ImageNet-1K, or one's own folder.

Up to 64 px the whole set is decoded once, kept as bytes in the memory of the device or else of the host, and augmented
on the device in batches; larger images, and sets larger than the memory, stream through DataLoader workers.
"""

from dataclasses import dataclass, replace

import datasets
import numpy as np
import psutil
import torch
from safetensors.torch import load_file, save_file

from dwa_core import seeds
from dwa_core.batches import Resident, Streamed, read_image, resize_to_square
from dwa_core.errors import InputError
from dwa_core.recipe import Images
from dwa_paper.runs import sources, store
from dwa_paper.runs.sources import RESIDENT_SIDE

MEMORY_SHARE = 0.5  # of what is free, that decoded images may take


@dataclass(frozen=True)
class ImageData:
    """A data set: a training part, which is all that teacher, synthesis and students see, and a test part."""

    name: str
    classes: list[str]
    train: Resident | Streamed
    test: Resident | Streamed
    fingerprint: str  # of the decoded images where they are kept, else of their files
    storage: str = ""  # how large the images are and where they are kept, for the log


def load(name: str, images: Images, device: torch.device, ipc: int = 1, validation: float = 0.0) -> ImageData:
    """The data set `name` at `images.side`: bundled digits, $DWA_DATA/<name>, or the hub.

    Args:
        validation: the share of the training images that replaces the test part; see `hold_out`.

    Raises:
        InputError: it cannot be found or read, a label is out of range, or a class has fewer than `ipc`
            training images.
    """
    parts, source = sources.open_parts(name, images.side)
    classes = parts["train"].features["label"].names
    for part, dataset in parts.items():
        check_labels(name, part, torch.tensor(dataset["label"][:]), classes, ipc)
    size = sum(map(len, parts.values())) * images.side**2 * 3
    place = choose_place(size, images.side, device)
    storage = describe_storage(size, images.side, device, place)
    if place == "files":
        content = store.digest(source, images.side)
        train, test = (Streamed(dataset, images.side, device) for dataset in parts.values())
    else:
        tensors, content = load_decoded(name, parts, images.side, source, classes)
        kept_on = torch.device("cpu") if place == "host" else device
        train, test = (Resident(tensors[part], tensors[f"{part}_labels"], device, kept_on) for part in parts)
    return hold_out(ImageData(name, classes, train, test, content, storage), validation, ipc)


def hold_out(data: ImageData, share: float, ipc: int) -> ImageData:
    """`data` tested on that share of the training images of each class, which the training part then lacks.

    What is chosen by accuracy is chosen on it; the test images have no part in it. Drawn by seed 0. A share of 0
    changes nothing; one that leaves a class without validation images, or with fewer than `ipc` others, is refused.
    """
    if share == 0:
        return data
    labels = data.train.labels.cpu()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(data.classes):
        members = (labels == label).nonzero()[:, 0]
        count = round(share * len(members))
        if count == 0 or len(members) - count < ipc:
            reason = f"of the {len(members)} training images of class {name!r} it holds out {count}"
            raise InputError(f"validation: {share} is not allowed; {reason}, and {ipc} are needed for training")
        order = seeds.host_random(seeds.VALIDATION, label).permutation(len(members))
        held_out[members[torch.from_numpy(order[:count])]] = True
    train, test = (data.train.relabel(labels.masked_fill(out, -1)) for out in (held_out, ~held_out))
    return replace(data, train=train, test=test, fingerprint=store.digest(data.fingerprint, "validation", share))


def choose_place(size: int, side: int, device: torch.device) -> str:
    """Where `size` bytes of images decoded at `side` go: "device", "host" (memory), or "files".

    Those above RESIDENT_SIDE stay in their files, and those for which neither memory has the room: half of what is
    free is left to the training. Device and host give the same batches to the bit; files larger than the side are
    cropped at their own resolution, and the same images are then another source of data.
    """
    if side > RESIDENT_SIDE:
        return "files"
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE:
        return "device"
    if size <= psutil.virtual_memory().available * MEMORY_SHARE:
        return "host" if device.type == "cuda" else "device"
    return "files"


def describe_storage(size: int, side: int, device: torch.device, place: str) -> str:
    """For people: how large the images are and where they are kept, as choose_place decides."""
    where = {"files": "left in their files", "host": "in host memory", "device": f"on {device}"}[place]
    return f"{size / 1e6:,.1f} MB decoded at {side} px, {where}"


def load_decoded(name, parts, side: int, source, classes: list[str]) -> tuple[dict[str, torch.Tensor], str]:
    """All images as (N, side, side, 3) bytes with their labels, decoded once and kept under artifacts/data."""
    described = {"source": source, "side": side}
    artifact = f"{name}-{side}px-{store.digest(described)}"
    folder = store.find("data", artifact)
    if folder is None:
        tensors = {}
        for part, dataset in parts.items():
            tensors[part] = decode(name, part, dataset, side)
            tensors[f"{part}_labels"] = torch.tensor(dataset["label"][:])
        # Only now: an image that cannot be read leaves no file behind.
        with store.lock("data", artifact), store.create_artifact("data", artifact) as new:
            save_file(tensors, new / "images.safetensors")
            store.seal(new, described, fingerprint=store.fingerprint(tensors, classes), classes=classes)
        folder = store.find("data", artifact)
    return load_file(folder / "images.safetensors"), store.read_json(folder / "record.json")["fingerprint"]


def decode(name: str, part: str, dataset: datasets.Dataset, side: int) -> torch.Tensor:
    """All images as RGB bytes (N, side, side, 3).

    Raises:
        InputError: an image cannot be read.
    """
    images = np.empty((len(dataset), side, side, 3), np.uint8)
    for row, item in enumerate(dataset["image"]):
        try:
            images[row] = np.asarray(resize_to_square(read_image(item, row), side))
        except ValueError as error:
            raise InputError(f"dataset: {name}: {part} {error}") from None
    return torch.from_numpy(images)


def check_labels(name: str, part: str, labels: torch.Tensor, classes: list[str], ipc: int) -> None:
    """Raises InputError unless every label names a class, and every class has `ipc` training images."""
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        seen = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise InputError(f"dataset: {name}: {part} labels are {seen}; expected 0 to {len(classes) - 1}")
    if part == "test":
        return
    counts = labels.bincount(minlength=len(classes))
    fewest, rarest = int(counts.min()), classes[int(counts.argmin())]
    if fewest == 0:
        raise InputError(f"dataset: {name}: class {rarest!r} has no training images")
    if fewest < ipc:
        raise InputError(f"ipc: {ipc} is not allowed; class {rarest!r} of {name} has {fewest} training images")
