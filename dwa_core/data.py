"""Real images: digits, CIFAR, Tiny-ImageNet, ImageNet-1K, or one's own folder, all through Hugging Face `datasets`.

Up to 64 px the whole set is decoded once, kept as bytes in the memory of the device or else of the host, and augmented
on the device in batches; larger images, and sets larger than the memory, stream through DataLoader workers.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dwa_core import augment, store
from dwa_core.settings import Images, InputError, Training

HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
    "imagenet-1k": "ILSVRC/imagenet-1k",
}
# How to get at what the hub does not give to everybody.
GATED = {
    "imagenet-1k": "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in with "
    "`.venv/bin/hf auth login`, or let DWA_DATA name the folder that holds imagenet-1k/train/CLASS/ and "
    "imagenet-1k/val/CLASS/",
}
RESIDENT_SIDE = 64
MEMORY_SHARE = 0.5  # of what is free, that decoded images may take
TEST_SHARE = 0.2  # of the images of a folder without a test part
TEST_BATCH = 1000
STREAMED_TEST_BATCH = 256

datasets.disable_progress_bars()
huggingface_hub.logging.set_verbosity_error()  # where there is no network, the last try's error says all


@dataclass(frozen=True)
class ImageData:
    """A data set: a training part, which is all that teacher, synthesis and students see, and a test part."""

    name: str
    classes: list[str]
    train: "Resident | Streamed"
    test: "Resident | Streamed"
    fingerprint: str  # of the decoded images where they are kept, else of their files
    place: str = ""  # how large the images are and where they are kept, for the log


def load(name: str, images: Images, device: torch.device, ipc: int = 1, validation: float = 0.0) -> ImageData:
    """The data set `name` at `images.side`: bundled digits, $DWA_DATA/<name>, or the hub.

    Args:
        validation: the share of the training images that stands in for the test part; see `with_validation`.

    Raises:
        InputError: it cannot be found or read, a label is out of range, or a class has fewer than `ipc`
            training images.
    """
    parts, source = open_parts(name, images.side)
    classes = parts["train"].features["label"].names
    for part, dataset in parts.items():
        check_labels(name, part, torch.tensor(dataset["label"][:]), classes, ipc)
    size = sum(map(len, parts.values())) * images.side**2 * 3
    place = place_for(size, images.side, device)
    told = told_place(size, images.side, device, place)
    if place == "files":
        splits = {part: Streamed(dataset, images.side) for part, dataset in parts.items()}
        content = store.digest(source, images.side)
    else:
        tensors, content = decoded(name, parts, images.side, source, classes)
        kept_on = torch.device("cpu") if place == "host" else device
        splits = {
            part: Resident(tensors[part], tensors[f"{part}_labels"], device, kept_on) for part in ("train", "test")
        }
    whole = ImageData(name, classes, splits["train"], splits["test"], content, told)
    return with_validation(whole, validation, ipc)


def with_validation(data: ImageData, share: float, ipc: int) -> ImageData:
    """`data` tested on that share of the training images of each class, which the training part then lacks.

    What is chosen by accuracy is chosen on it; the test images have no part in it. Drawn by seed 0. A share of 0
    changes nothing.

    Raises:
        InputError: a class is left without validation images, or with fewer than `ipc` training images.
    """
    if share == 0:
        return data
    labels = data.train.labels.cpu()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(data.classes):
        members = (labels == label).nonzero()[:, 0]
        count = round(share * len(members))
        if count == 0 or len(members) - count < max(ipc, 1):
            raise InputError(
                f"validation: {share} is not allowed; of the {len(members)} training images of class {name!r} it "
                f"holds out {count}, and {max(ipc, 1)} are needed for training"
            )
        order = augment.host_random(augment.VALIDATION, label).permutation(len(members))
        held_out[members[torch.from_numpy(order[:count])]] = True
    train, test = (data.train.relabelled(labels.masked_fill(out, -1)) for out in (held_out, ~held_out))
    content = store.digest(data.fingerprint, "validation", share)
    return ImageData(data.name, data.classes, train, test, content, data.place)


def place_for(size: int, side: int, device: torch.device) -> str:
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


def told_place(size: int, side: int, device: torch.device, place: str) -> str:
    """For people: how large the images are and where they are kept, which is what place_for answered."""
    where = {"files": "left in their files", "host": "in host memory", "device": f"on {device}"}[place]
    return f"{size / 1e6:,.1f} MB decoded at {side} px, {where}"


def open_parts(name: str, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """Training and test part with columns image and label, and what tells this source from any other."""
    if name == "digits":
        return digits(side), ["digits", "scikit-learn"]
    base = os.environ.get("DWA_DATA")
    folder = Path(base) / name if base else None
    if folder is not None and folder.is_dir():
        return open_folder(name, folder, side)
    where = f"there is no folder {folder}" if folder else "DWA_DATA is not set"
    if name not in HUB:
        raise InputError(f"dataset: {name!r} cannot be found; {where}, and the hub's are {', '.join(HUB)}")
    try:
        found = datasets.load_dataset(HUB[name])
    except Exception as error:  # the hub's client raises many kinds: connection, gated, missing
        access = f"; {GATED[name]}" if name in GATED else ""
        raise InputError(
            f"dataset: {name!r} cannot be had from the hub ({HUB[name]}), and {where}; {first_line(error)}{access}"
        ) from None
    # Validation before test: ImageNet keeps the labels of its test part back.
    held_out = next(part for part in ("valid", "validation", "test") if part in found)
    parts = {"train": found["train"], "test": found[held_out]}
    # The cache's file names hold the revision of the hub's files.
    source = [Path(file["filename"]).parts[-3:] for part in parts.values() for file in part.cache_files]
    return {part: named_columns(name, dataset) for part, dataset in parts.items()}, [HUB[name], source]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_folder(name: str, folder: Path, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """Parquet files train-* and test-* (or valid*), or ImageFolder trees train/ and test/ (or val/).

    Where there are both, validation is what is tested on, as on the hub's ImageNet-1K. Of a plain tree CLASS/IMAGE,
    every fifth image of each class, drawn by seed 0, is the test part.
    """
    if folder_is_plain(folder):
        return split_tree(name, folder)
    beginnings = {"train": ["train"], "test": ["val", "test"]}
    parts, source = {}, []
    for part, prefixes in beginnings.items():
        groups = [sorted(folder.glob(f"{prefix}*.parquet")) for prefix in prefixes]
        parquet = next((files for files in groups if files), [])
        trees = [path for prefix in prefixes for path in sorted(folder.glob(f"{prefix}*")) if path.is_dir()]
        try:
            if parquet:
                files = [str(path) for path in parquet]
                parts[part] = datasets.load_dataset("parquet", data_files=files, split="train")
                source += [checksum(path, side) for path in parquet]
            elif trees:
                parts[part] = open_tree(trees[0])
                source += [
                    (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
                    for path in sorted(trees[0].rglob("*"))
                    if path.is_file()
                ]
            else:
                raise InputError(
                    f"dataset: {folder} has no {part} part; expected {part}-*.parquet or {part}/CLASS/IMAGE files"
                )
        except InputError:
            raise
        except Exception as error:  # pyarrow's and datasets' own kinds
            raise InputError(f"dataset: the {part} part of {folder} cannot be read; {first_line(error)}") from None
    parts = {part: named_columns(name, dataset) for part, dataset in parts.items()}
    names = {part: dataset.features["label"].names for part, dataset in parts.items()}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        where = f"{odd[0]!r} is in the {'train' if odd[0] in names['train'] else 'test'} part alone" if odd else "order"
        raise InputError(f"dataset: {folder}: train and test part do not have the same classes: {where}")
    return parts, source


def checksum(path: Path, side: int) -> str:
    """SHA-256 of a Parquet file; where images stream, of its size and its last MB, which says where everything lies.

    ImageNet-1K has some 150 GB, and every run begins with this.
    """
    with path.open("rb") as stream:
        if side <= RESIDENT_SIDE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        stream.seek(max(0, size - 2**20))
        return hashlib.sha256(f"{size} ".encode() + stream.read()).hexdigest()


def folder_is_plain(folder: Path) -> bool:
    """Whether it holds class folders with images rather than parts of a data set."""
    inside = [path for path in folder.iterdir() if path.name[0] != "."]
    parts = [path for path in inside if path.name.startswith(("train", "val", "test"))]
    return any(path.is_dir() for path in inside) and not parts


def split_tree(name: str, folder: Path) -> tuple[dict[str, datasets.Dataset], list]:
    """The two parts of a plain tree, and what tells it from any other.

    Raises:
        InputError: there are no images, or too few to leave every class one of each part.
    """
    whole = open_tree(folder)
    try:
        split = whole.train_test_split(test_size=TEST_SHARE, stratify_by_column="label", seed=0)
    except ValueError as error:
        raise InputError(f"dataset: {name}: no test part can be split off; {first_line(error)}") from None
    print(f"{name}: no test part, so {len(split['test'])} of the {len(whole)} images are kept for testing")
    files = [Path(image["path"]) for image in whole.cast_column("image", datasets.Image(decode=False))["image"]]
    source = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"train": split["train"], "test": split["test"]}, source


def open_tree(tree: Path) -> datasets.Dataset:
    """The images of an ImageFolder part, tree/CLASS/IMAGE, with classes in the order of their names.

    Raises:
        InputError: there are none.
    """
    classes = sorted(path.name for path in tree.iterdir() if path.is_dir() and path.name[0] != ".")
    files, labels = [], []
    for label, class_name in enumerate(classes):
        for path in sorted((tree / class_name).iterdir()):
            if path.suffix.lower() in Image.registered_extensions():
                files.append(str(path))
                labels.append(label)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    if not files:
        raise InputError(f"dataset: {tree} holds no images; expected {tree.name}/CLASS/IMAGE files")
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)


def named_columns(name: str, dataset: datasets.Dataset) -> datasets.Dataset:
    """As `two_columns`, and the label column must name its classes."""
    dataset = two_columns(name, dataset)
    if not isinstance(dataset.features["label"], datasets.ClassLabel):
        raise InputError(f"dataset: {name}: the label column does not name its classes (ClassLabel)")
    return dataset


def two_columns(name: str, dataset: datasets.Dataset) -> datasets.Dataset:
    """`dataset` with its image column called image and its label column called label, and no others."""
    chosen = {}
    for wanted, possible in {"image": ("image", "img"), "label": ("fine_label", "label")}.items():
        found = [column for column in possible if column in dataset.column_names]
        if not found:
            raise InputError(
                f"dataset: {name} has no column {' or '.join(possible)}; its columns: {', '.join(dataset.column_names)}"
            )
        chosen[found[0]] = wanted
    return dataset.select_columns(list(chosen)).rename_columns({k: v for k, v in chosen.items() if k != v})


def digits(side: int) -> dict[str, datasets.Dataset]:
    """scikit-learn's 1,797 handwritten digits of 8x8 px: 1,297 for training and 500 for testing, enlarged."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, labels = load_digits(return_X_y=True)
    pictures = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(d) for d in range(10)]))

    def part(indices):
        resized = [Image.fromarray(pictures[i]).resize((side, side), Image.Resampling.BILINEAR) for i in indices]
        return datasets.Dataset.from_dict(
            {"image": [image.convert("RGB") for image in resized], "label": labels[indices]}, features=features
        )

    return {"train": part(train), "test": part(test)}


def decoded(name, parts, side: int, source, classes: list[str]) -> tuple[dict[str, torch.Tensor], str]:
    """All images as (N, side, side, 3) bytes with their labels, decoded once and kept under artifacts/data."""
    artifact = f"{name}-{side}px-{store.digest({'source': source, 'side': side})}"
    folder = store.find("data", artifact)
    if folder is None:
        tensors = {}
        for part, dataset in parts.items():
            tensors[part] = decode(name, part, dataset, side)
            tensors[f"{part}_labels"] = torch.tensor(dataset["label"][:])
        with store.lock("data", artifact), store.new_artifact("data", artifact) as temporary:
            save_file(tensors, temporary / "images.safetensors")
            content = store.fingerprint(tensors, classes)
            described = {"source": source, "side": side}
            store.seal(temporary, described, fingerprint=content, classes=classes)
        folder = store.find("data", artifact)
    return load_file(folder / "images.safetensors"), store.read_json(folder / "record.json")["fingerprint"]


def decode(name: str, part: str, dataset: datasets.Dataset, side: int) -> torch.Tensor:
    """All images as RGB bytes (N, side, side, 3).

    Raises:
        InputError: an image cannot be read.
    """
    images = np.empty((len(dataset), side, side, 3), np.uint8)
    encoded = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    feature = datasets.Image()
    for index, item in enumerate(encoded):
        try:
            images[index] = np.asarray(squared(feature.decode_example(item), side))
        except Exception as error:  # PIL raises OSError, ValueError, SyntaxError and its own
            where = item["path"] or f"number {index}"
            raise InputError(f"dataset: {name}: {part} image {where} cannot be read; {error}") from None
    return torch.from_numpy(images)


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits per channel, the 16 bits of a grey image scaled down; transparency is left out."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def squared(image: Image.Image, side: int) -> Image.Image:
    """RGB at side x side, regardless of aspect."""
    image = as_rgb(image)
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def check_labels(name: str, part: str, labels: torch.Tensor, classes: list[str], ipc: int) -> None:
    """Raises InputError unless every label names a class, and every class has `ipc` training images."""
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        seen = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise InputError(f"dataset: {name}: {part} labels are {seen}; expected 0 to {len(classes) - 1}")
    counts = torch.bincount(labels, minlength=len(classes))
    fewest, rarest = int(counts.min()), classes[int(counts.argmin())]
    if part == "train" and fewest == 0:
        raise InputError(f"dataset: {name}: class {rarest!r} has no training images")
    if part == "train" and fewest < ipc:
        raise InputError(f"ipc: {ipc} is not allowed; class {rarest!r} of {name} has {fewest} training images")


def draw_real(split: "Resident | Streamed", classes: int, ipc: int, seed: int) -> torch.Tensor:
    """Indices (ipc, classes) of training images drawn without repetition, class by class in each row.

    A larger ipc begins with the images of a smaller one. No class may have fewer than `ipc` images.
    """
    labels = split.labels.cpu().numpy()
    columns = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        columns.append(augment.host_random(augment.INITIAL_IMAGES, seed, label).permutation(members)[:ipc])
    return torch.from_numpy(np.stack(columns, axis=1))


def of_classes(data: ImageData, classes: list[int]) -> ImageData:
    """The part of `data` that `classes` are, labels of it without repetition; they become 0, 1, ... in that order."""
    renumbered = torch.full((len(data.classes),), -1)
    renumbered[classes] = torch.arange(len(classes))
    train, test = (part.relabelled(renumbered[part.labels.cpu()]) for part in (data.train, data.test))
    names = [data.classes[label] for label in classes]
    return ImageData(data.name, names, train, test, fingerprint_of_classes(data.fingerprint, classes))


def fingerprint_of_classes(whole: str, classes: list[int]) -> str:
    """The fingerprint of the part that `classes` are of the data whose fingerprint is `whole`."""
    return store.digest(whole, classes)


class Resident:
    """Images kept as bytes (N, H, W, 3) on the device, or where `place` says, and their labels (N,) on the device."""

    def __init__(
        self, images_uint8: torch.Tensor, labels: torch.Tensor, device: torch.device, place: torch.device | None = None
    ):
        self.images_uint8, self.labels, self.device = images_uint8.to(place or device), labels.to(device), device
        self.share = (0, 1)  # of each training batch: this process's number, and how many share it

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self, indices: torch.Tensor) -> torch.Tensor:
        """The images of `indices` as bytes."""
        return self.images_uint8[indices.to(self.images_uint8.device)].to(self.device)

    def relabelled(self, labels: torch.Tensor) -> "Resident":
        """The images with `labels` (N,) instead of their own, without those whose label is negative."""
        labels, place = labels.to(self.device), self.images_uint8.device
        kept = labels >= 0
        return Resident(self.images_uint8[kept.to(place)], labels[kept], self.device, place)

    def train_batches(self, stage: Training, mean, std, *key: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch, shuffled: augmented, normalised images (B, 3, H, W) and labels; it depends on `key` alone."""
        random = augment.device_random(self.device, *key)
        order = torch.randperm(len(self), generator=random, device=self.device)
        for chosen in order.split(stage.batch_size):
            if len(chosen) == 1 < len(order):
                continue  # BatchNorm cannot train on one image
            pixels = self.pictures(chosen)
            if stage.crop == "padded":
                images = augment.to_unit_range(augment.padded_crop_and_flip(pixels, stage.crop_padding, random))
            else:
                images = augment.resized_crop_and_flip(augment.to_unit_range(pixels), random)
            rank, processes = self.share
            if processes == 1:
                yield augment.normalise(images, mean, std), self.labels[chosen]
            elif len(chosen) > processes:  # no process may be left without any
                yield augment.normalise(images[rank::processes], mean, std), self.labels[chosen[rank::processes]]

    def test_batches(self, mean, std) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, normalised."""
        batches = zip(self.images_uint8.split(TEST_BATCH), self.labels.split(TEST_BATCH), strict=True)
        for pixels, labels in batches:
            yield augment.normalise(augment.to_unit_range(pixels.to(self.device)), mean, std), labels


class Streamed:
    """Images left in their files, decoded, cropped and batched by DataLoader workers; batches come as CPU tensors.

    Each image's crop and flip depend on the epoch's key and on the image, not on the worker that draws them.
    """

    def __init__(self, dataset: datasets.Dataset, side: int):
        self.dataset, self.side = dataset, side
        self.labels = torch.tensor(dataset["label"][:])
        self.workers = min(16, os.cpu_count() or 1)
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
                chosen.append(np.asarray(squared(self.dataset[index]["image"], self.side)))
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"dataset: training image number {index} cannot be read; {error}") from None
        return torch.from_numpy(np.stack(chosen))

    def relabelled(self, labels: torch.Tensor) -> "Streamed":
        """As Resident.relabelled; the files stay as they are."""
        dataset = self.dataset.remove_columns("label").add_column("label", labels.numpy())
        return Streamed(dataset.select((labels >= 0).nonzero()[:, 0].numpy()), self.side)

    def train_batches(self, stage: Training, mean, std, *key: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As Resident.train_batches, with a crop resized as PIL does."""
        if stage.crop == "padded":
            crop = [v2.Resize((self.side, self.side)), v2.RandomCrop(self.side, padding=stage.crop_padding)]
        else:
            crop = [v2.RandomResizedCrop(self.side, augment.CROP_SCALE, augment.CROP_RATIO)]
        return self.batches([*crop, v2.RandomHorizontalFlip()], mean, std, stage.batch_size, key)

    def test_batches(self, mean, std) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once: resized so that the short side is 256/224 of the side, then cropped at the centre."""
        crop = [v2.Resize(round(self.side * 256 / 224)), v2.CenterCrop(self.side)]
        return self.batches(crop, mean, std, STREAMED_TEST_BATCH, None)

    def batches(self, crop: list, mean, std, batch_size: int, key: tuple[int, ...] | None):
        """Normalised batches (B, 3, side, side) on the CPU, each image through `crop`; shuffled if there is a `key`."""
        order = torch.arange(len(self))
        if key is not None:
            order = torch.randperm(len(self), generator=augment.device_random(torch.device("cpu"), *key))
        chosen = order.split(batch_size)
        if key is not None:
            rank, processes = self.share
            # BatchNorm cannot train on one image, and no process may be left without any.
            chosen = [batch[rank::processes] for batch in chosen if len(batch) > processes or len(self) == 1]
        loader = DataLoader(
            Cropped(self.dataset, v2.Compose([as_rgb, *crop, v2.PILToTensor()]), key),
            batch_sampler=[batch.tolist() for batch in chosen],
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it draws from the global one
        )
        for images, labels in readable(loader):
            images = images.float().div_(255).contiguous(memory_format=torch.channels_last)
            yield augment.normalise(images, mean, std), labels


class Cropped(torch.utils.data.Dataset):
    """What a worker makes of an image: bytes (3, side, side) and the label, drawn by `key` and the image's number."""

    def __init__(self, dataset: datasets.Dataset, transform, key: tuple[int, ...] | None):
        self.dataset, self.transform, self.key = dataset, transform, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.dataset[index]
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.manual_seed(augment.key_to_seed(*(self.key or ()), index))
            return self.transform(row["image"]), row["label"]


def readable(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    """The batches of `loader`, with a worker's traceback over an image that cannot be read put into one line."""
    try:
        yield from loader
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises
        last = str(error).strip().splitlines()[-1]
        raise InputError(f"dataset: an image cannot be read; {last}") from None
