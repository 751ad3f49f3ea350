"""Distilled sets of others, as folders of Parquet or of images: read, and put in our order."""

from pathlib import Path

import datasets
import torch

from dwa_core.errors import InputError
from dwa_paper.runs import real, sources, store
from dwa_paper.settings.schema import shown


def read_external(path: Path, name: str, classes: list[str], ipc: int, side: int) -> torch.Tensor:
    """The images of an external distilled set, ordered by ipc index and then class.

    Args:
        path: a folder of Parquet files with an image and a label column, or of CLASS/IMAGE files, either of them
            also below train/ or data/.
        name: of the data set that it was made from, and `classes` its classes.

    Returns: bytes (ipc * classes, side, side, 3), resized regardless of aspect.

    Raises:
        InputError: it cannot be read, its classes are others, or a class does not have `ipc` images.
    """
    table = open_external(path)
    labels = torch.tensor(table["label"][:])
    theirs = getattr(table.features["label"], "names", None)
    if theirs is not None and set(theirs) == set(classes):
        labels = torch.tensor([classes.index(label) for label in theirs])[labels]
    elif theirs is not None and len(theirs) != len(classes):
        raise InputError(f"distilled: {path} has {len(theirs)} classes; {name} has {len(classes)}")
    elif theirs is not None:
        print(f"{path.name}: its classes have other names ({shown(theirs[0])}, ...), so they are taken in their order")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(f"distilled: {path}: labels are not 0 to {len(classes) - 1}")
    counts = labels.bincount(minlength=len(classes))
    if not (counts == ipc).all():
        wrong = int((counts != ipc).nonzero()[0])
        raise InputError(f"ipc: {ipc} is not allowed; {path} has {counts[wrong]} images of class {classes[wrong]!r}")
    pictures = real.decode(path.name, "distilled", table, side)
    by_class = labels.argsort(stable=True).view(len(classes), ipc)
    return pictures[by_class.T.flatten()]


def digest_folder(path: Path) -> str:
    """What identifies the set in the folder `path`: a digest of the names and SHA-256 of its files.

    Raises:
        InputError: there is no such folder.
    """
    if not path.is_dir():
        raise InputError(f"distilled: {path} is not a folder")
    return store.digest(store.file_checksums(path))


def open_external(path: Path) -> datasets.Dataset:
    """A table with columns image and label, whose label column may lack the names of the classes."""
    if not path.is_dir():
        raise InputError(f"distilled: {path} is not a folder")
    for place in (path, path / "train", path / "data"):
        files = sorted(place.glob("train*.parquet")) or sorted(place.glob("*.parquet"))
        if files:
            try:
                table = datasets.load_dataset("parquet", data_files=[*map(str, files)], split="train")
            except Exception as error:  # pyarrow's and datasets' own kinds
                raise InputError(f"distilled: {path} cannot be read; {sources.summarise(error)}") from None
            return sources.select_columns(path.name, table)
    # A folder that holds train/ alone is no set of one class.
    return sources.open_tree(path / "train" if (path / "train").is_dir() else path)
