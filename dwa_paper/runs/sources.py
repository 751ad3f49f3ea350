"""Where real images come from: bundled digits, a folder under $DWA_DATA, or the hub; all by Hugging Face `datasets`."""

import hashlib
import os
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
from PIL import Image

from dwa_core.errors import InputError
from dwa_paper.runs import store
from dwa_paper.settings.datasets import DATASETS

RESIDENT_SIDE = 64  # pixels; larger images stay in their files, which are then not read whole to identify them
TEST_SHARE = 0.2  # of the images of a folder without a test part
# Names of a part in the order of preference. Validation before test: ImageNet's test part has no labels.
PARTS = {"train": ["train"], "test": ["valid", "val", "validation", "test"]}

datasets.disable_progress_bars()
huggingface_hub.logging.set_verbosity_error()  # without a network, the last try's error says all


def open_parts(name: str, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """Training and test part with columns image and label, and what identifies their source."""
    if name == "digits":
        return read_digits(side), ["digits", "scikit-learn"]
    base = os.environ.get("DWA_DATA")
    folder = Path(base) / name if base else None
    if folder is not None and folder.is_dir():
        return open_folder(name, folder, side)
    where = f"there is no folder {folder}" if folder else "DWA_DATA is not set"
    hub = {known: row for known, row in DATASETS.items() if row.hub}
    if name not in hub:
        raise InputError(f"dataset: {name!r} cannot be found; {where}, and the hub has only {', '.join(hub)}")
    address, access = hub[name].hub, hub[name].access
    try:
        found = datasets.load_dataset(address)
    except Exception as error:  # the hub's client raises many kinds: connection, gated, missing
        reason = "; ".join(filter(None, (where, summarise(error), access)))
        raise InputError(f"dataset: {name!r} cannot be downloaded from the hub ({address}); {reason}") from None
    parts = {"train": found["train"], "test": next(found[part] for part in PARTS["test"] if part in found)}
    # The cache's file names hold the revision of the hub's files.
    source = [Path(file["filename"]).parts[-3:] for part in parts.values() for file in part.cache_files]
    return check_parts(name, parts), [address, source]


def summarise(error: Exception) -> str:
    """The first line of its message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_folder(name: str, folder: Path, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """As `open_parts`: Parquet files train* and test* (or val*), or ImageFolder trees train/ and test/ (or val*/).

    Where there are both, validation is what is tested on, as on the hub's ImageNet-1K. Of a plain tree CLASS/IMAGE,
    every fifth image of each class, drawn by seed 0, is the test part.
    """
    if is_plain_tree(folder):
        return split_tree(name, folder)
    parts, source = {}, []
    for part, names in PARTS.items():
        found = [path for beginning in names for path in sorted(folder.glob(f"{beginning}*"))]
        tree = next((path for path in found if path.is_dir()), None)
        parquet = next(filter(None, (sorted(folder.glob(f"{beginning}*.parquet")) for beginning in names)), None)
        if parquet is not None:
            parts[part] = open_parquet(f"dataset: the {part} part of {folder}", parquet)
            source += [identify_parquet(path, side) for path in parquet]
        elif tree is not None:
            parts[part] = open_tree(tree)
            source += identify_images(folder, [path for path in sorted(tree.rglob("*")) if path.is_file()])
        else:
            expected = f"{part}-*.parquet or {part}/CLASS/IMAGE files"
            raise InputError(f"dataset: {folder} has no {part} part; expected {expected}")
    return check_parts(name, parts), source


def open_parquet(what: str, files: list[Path]) -> datasets.Dataset:
    """The rows of `files`; where they cannot be read, InputError says so of `what`."""
    try:
        return datasets.load_dataset("parquet", data_files=[*map(str, files)], split="train")
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise InputError(f"{what} cannot be read; {summarise(error)}") from None


def check_parts(name: str, parts: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """`parts` with columns image and label alone; the label columns must name their classes, both the same."""
    parts = {part: select_columns(name, dataset) for part, dataset in parts.items()}
    for dataset in parts.values():
        if not isinstance(dataset.features["label"], datasets.ClassLabel):
            raise InputError(f"dataset: {name}: the label column does not name its classes (ClassLabel)")
    train, test = (dataset.features["label"].names for dataset in parts.values())
    if train != test:
        odd = sorted(set(train) ^ set(test))
        where = f"{odd[0]!r} is in the {'train' if odd[0] in train else 'test'} part alone" if odd else "order"
        raise InputError(f"dataset: {name}: train and test part do not have the same classes: {where}")
    return parts


def identify_images(folder: Path, files: list[Path]) -> list[tuple]:
    """Name, size and date of each of `files`, which lie under `folder`."""
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def identify_parquet(path: Path, side: int) -> str:
    """SHA-256 of the file; where images stream, of its size and its last MB, which says where everything lies.

    ImageNet-1K has some 150 GB, and every run begins with this.
    """
    if side <= RESIDENT_SIDE:
        return store.checksum(path)
    with path.open("rb") as stream:
        size = path.stat().st_size
        stream.seek(max(0, size - 2**20))
        return hashlib.sha256(f"{size} ".encode() + stream.read()).hexdigest()


def is_plain_tree(folder: Path) -> bool:
    """Whether it holds class folders with images, not parts of a data set.

    A class may be called "train" or "valley" too: a folder whose name begins as a part's is one if it holds folders.
    """
    names = tuple(name for part in PARTS.values() for name in part)
    inside = [path for path in folder.iterdir() if path.name[0] != "."]
    folders = {path: any(within.is_dir() for within in path.iterdir()) for path in inside if path.is_dir()}
    parts = [
        path for path in inside if path.name.startswith(names) and (path.suffix == ".parquet" or folders.get(path))
    ]
    return not parts and any(path.name not in names for path in folders)


def split_tree(name: str, folder: Path) -> tuple[dict[str, datasets.Dataset], list]:
    """The two parts of a plain tree, and what identifies it; InputError where a class has too few images for both."""
    whole = open_tree(folder)
    try:
        split = whole.train_test_split(test_size=TEST_SHARE, stratify_by_column="label", seed=0)
    except ValueError as error:
        raise InputError(f"dataset: {name}: no test part can be split off; {summarise(error)}") from None
    print(f"{name}: no test part, so {len(split['test'])} of the {len(whole)} images are kept for testing")
    files = [Path(image["path"]) for image in whole.cast_column("image", datasets.Image(decode=False))["image"]]
    return {"train": split["train"], "test": split["test"]}, identify_images(folder, files)


def open_tree(tree: Path) -> datasets.Dataset:
    """The images of an ImageFolder part, tree/CLASS/IMAGE, with classes in the order of their names."""
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


def open_distilled(path: Path) -> datasets.Dataset:
    """A distilled set of others with columns image and label, of which the latter may lack the names of the classes."""
    for place in (path, path / "train", path / "data"):
        if files := sorted(place.glob("train*.parquet")) or sorted(place.glob("*.parquet")):
            return select_columns(path.name, open_parquet(f"distilled: {path}", files))
    # A folder that holds train/ alone is no set of one class.
    return open_tree(path / "train" if (path / "train").is_dir() else path)


def select_columns(name: str, dataset: datasets.Dataset) -> datasets.Dataset:
    """`dataset` with its image column called image and its label column called label, and no others."""
    chosen = {}
    for wanted, possible in {"image": ("image", "img"), "label": ("fine_label", "label", "class_id")}.items():
        found = next((column for column in possible if column in dataset.column_names), None)
        if found is None:
            raise InputError(
                f"dataset: {name} has no column {' or '.join(possible)}; its columns: {', '.join(dataset.column_names)}"
            )
        chosen[found] = wanted
    return dataset.select_columns(list(chosen)).rename_columns(chosen)


def read_digits(side: int) -> dict[str, datasets.Dataset]:
    """scikit-learn's 1,797 handwritten digits of 8x8 px: 1,297 for training and 500 for testing, enlarged."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, labels = load_digits(return_X_y=True)
    pictures = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = [
        Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR).convert("RGB") for each in pictures
    ]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(d) for d in range(10)]))
    whole = datasets.Dataset.from_dict({"image": enlarged, "label": labels}, features=features)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    return {"train": whole.select(train), "test": whole.select(test)}
