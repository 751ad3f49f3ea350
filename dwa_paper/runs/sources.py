"""Where real images come from: bundled digits, a folder under $DWA_DATA, or the hub; all by Hugging Face `datasets`."""

import hashlib
import os
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
from PIL import Image

from dwa_core.errors import InputError

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
RESIDENT_SIDE = 64  # pixels; larger images stay in their files, and those are not read whole to tell them apart
TEST_SHARE = 0.2  # of the images of a folder without a test part
# What a part may be called, in the order in which it is looked for. Validation before test: ImageNet keeps the labels
# of its test part back.
PARTS = {"train": ["train"], "test": ["valid", "val", "validation", "test"]}

datasets.disable_progress_bars()
huggingface_hub.logging.set_verbosity_error()  # where there is no network, the last try's error says all


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
    held_out = next(part for part in PARTS["test"] if part in found)
    parts = {"train": found["train"], "test": found[held_out]}
    # The cache's file names hold the revision of the hub's files.
    source = [Path(file["filename"]).parts[-3:] for part in parts.values() for file in part.cache_files]
    return {part: named_columns(name, dataset) for part, dataset in parts.items()}, [HUB[name], source]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_folder(name: str, folder: Path, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """Parquet files train* and test* (or val*), or ImageFolder trees train/ and test/ (or val/, validation/).

    Where there are both, validation is what is tested on, as on the hub's ImageNet-1K. Of a plain tree CLASS/IMAGE,
    every fifth image of each class, drawn by seed 0, is the test part.
    """
    if folder_is_plain(folder):
        return split_tree(name, folder)
    parts, source = {}, []
    for part, names in PARTS.items():
        groups = [sorted(folder.glob(f"{beginning}*.parquet")) for beginning in names]
        parquet = next((files for files in groups if files), [])
        trees = [path for beginning in names for path in sorted(folder.glob(f"{beginning}*")) if path.is_dir()]
        try:
            if parquet:
                files = [str(path) for path in parquet]
                parts[part] = datasets.load_dataset("parquet", data_files=files, split="train")
                source += [file_identity(path, side) for path in parquet]
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


def file_identity(path: Path, side: int) -> str:
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
    """Whether it holds class folders with images rather than parts of a data set.

    A class may be called "train" or "valley" too: what begins as a part's name does is a part if it holds folders.
    """
    names = tuple(name for part in PARTS.values() for name in part)
    if any(path for name in names for path in folder.glob(f"{name}*.parquet")):
        return False
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    if any(within.is_dir() for path in inside if path.name.startswith(names) for within in path.iterdir()):
        return False
    return any(path.name not in names for path in inside)


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
