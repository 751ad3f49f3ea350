"""Where real images come from: bundled digits, a folder under $DWA_DATA, or the hub; all by Hugging Face `datasets`."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.table import InMemoryTable
from PIL import Image

from dwa_core.errors import InputError, quote
from dwa_paper.runs import store
from dwa_paper.settings.datasets import DATASETS
from dwa_paper.settings.environment import root

RESIDENT_SIDE = 64  # pixels; larger images stay in their files
# Bytes of files: more of Parquet are not held in memory, and more of any kind are read once to identify them.
LARGE = 10**9
ENCODED = datasets.Image(decode=False)  # rows of bytes and path, which batches.read_image decodes
TEST_SHARE = 0.2  # of the images of a folder without a test part
# Names of a part in the order of preference. Validation before test: ImageNet's test part has no labels.
PARTS = {"train": ["train"], "test": ["valid", "val", "validation", "test"]}

datasets.disable_progress_bars()
huggingface_hub.logging.set_verbosity_error()  # without a network, the last try's error says all


def open_parts(name: str, side: int) -> tuple[dict[str, datasets.Dataset], list]:
    """Training and test part with columns image (undecoded) and label, and what identifies their content."""
    if name == "digits":
        return read_digits(side), ["digits", "scikit-learn"]
    base = os.environ.get("DWA_DATA")
    folder = Path(base) / name if base else None
    if folder is not None and folder.is_dir():
        return open_folder(name, folder)
    where = f"there is no folder {folder}" if folder else "DWA_DATA is not set"
    hub = {known: row for known, row in DATASETS.items() if row.hub}
    if name not in hub:
        raise InputError(f"dataset: {name!r} cannot be found; {where}, and the hub has only {', '.join(hub)}")
    address, access = hub[name].hub, hub[name].access
    try:
        found = datasets.load_dataset(address)
    except Exception as error:  # the hub's client raises many kinds: connection, gated, missing
        refused = access if getattr(error, "errno", None) is None else ""  # no full disk, as far as is known
        reason = "; ".join(filter(None, (where, summarise(error), refused)))
        raise InputError(f"dataset: {name!r} cannot be downloaded from the hub ({address}); {reason}") from None
    chosen = {"train": found["train"], "test": next(found[part] for part in PARTS["test"] if part in found)}
    # The cache's file names hold the revision of the hub's files.
    source = [Path(file["filename"]).parts[-3:] for part in chosen.values() for file in part.cache_files]
    parts = {part: check_rows(f"dataset: the {part} part of {address}", rows) for part, rows in chosen.items()}
    return check_parts(name, parts), [address, source]


def summarise(error: Exception) -> str:
    """The first line of its message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_folder(name: str, folder: Path) -> tuple[dict[str, datasets.Dataset], list]:
    """As `open_parts`: Parquet files train* and test* (or val*), or ImageFolder trees train/ and test/ (or val*/).

    Where there are both, validation is what is tested on, as on the hub's ImageNet-1K. Of a plain tree CLASS/IMAGE,
    every fifth image of each class, drawn by seed 0, is the test part.
    """
    if is_plain_tree(folder):
        whole = open_tree(folder)
        try:
            split = whole.train_test_split(test_size=TEST_SHARE, stratify_by_column="label", seed=0)
        except ValueError as error:
            raise InputError(f"dataset: {name}: no test part can be split off; {summarise(error)}") from None
        print(f"{name}: no test part, so {len(split['test'])} of the {len(whole)} images are kept for testing")
        return {"train": split["train"], "test": split["test"]}, identify_tree(folder, whole)
    parts, source = {}, []
    for part, names in PARTS.items():
        found = [path for beginning in names for path in sorted(folder.glob(f"{beginning}*"))]
        tree = next((path for path in found if path.is_dir()), None)
        parquet = next(filter(None, (sorted(folder.glob(f"{beginning}*.parquet")) for beginning in names)), None)
        if parquet is not None:
            identity = identify(parquet, lambda sums: sums)
            parts[part] = open_parquet(f"dataset: the {part} part of {folder}", parquet, identity)
            source += identity
        elif tree is not None:
            parts[part] = open_tree(tree)
            source += identify_tree(folder, parts[part])
        else:
            expected = f"{part}-*.parquet or {part}/CLASS/IMAGE files"
            raise InputError(f"dataset: {folder} has no {part} part; expected {expected}")
    return check_parts(name, parts), source


def open_parquet(what: str, files: list[Path], identity: list[str]) -> datasets.Dataset:
    """The rows of `files` with columns image and label, as `check_rows` has them.

    Files of more than LARGE bytes go through an Arrow copy of their own, found by their content: `datasets` would take
    up an older copy from its cache for other files of the same place and time.

    Args:
        what: in messages.
        identity: of the content of `files`.

    Raises:
        InputError: they cannot be read, or a row cannot be used.
    """
    if large := sum(path.stat().st_size for path in files) > LARGE:
        copy = root() / "artifacts" / "data" / f".arrow-{store.digest(identity)}"
        with store.guard_writing(copy):
            copy.mkdir(parents=True, exist_ok=True)
    try:
        if large:
            paths = [*map(str, files)]
            rows = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(copy))
        else:
            tables = [InMemoryTable(pq.ParquetFile(path).read()) for path in files]
            rows = datasets.concatenate_datasets([*map(datasets.Dataset, tables)])
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise InputError(f"{what} cannot be read; {summarise(error)}") from None
    return check_rows(what, rows)


def check_rows(what: str, rows: datasets.Dataset) -> datasets.Dataset:
    """`rows` with an image column called image, undecoded, a label column called label, and no others.

    Raises:
        InputError: `what` has no such columns, or a row without a label or without the bytes of an image: a path
            in their place would read whatever file it names.
    """
    chosen = {}
    for wanted, possible in {"image": ("image", "img"), "label": ("fine_label", "label", "class_id")}.items():
        found = next((column for column in possible if column in rows.column_names), None)
        if found is None:
            there = ", ".join(rows.column_names)[:200]
            raise InputError(f"{what} has no column {' or '.join(possible)}; its columns: {there}")
        chosen[found] = wanted
    rows = rows.select_columns(list(chosen)).rename_columns(chosen)
    try:
        rows = rows.cast_column("image", ENCODED)
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise InputError(f"{what}: its column of images holds something else; {summarise(error)}") from None
    labels, images = rows.data.column("label"), rows.data.column("image")
    if not pa.types.is_integer(labels.type):
        raise InputError(f"{what}: its labels are {labels.type}; expected whole numbers")
    for column, missing in ((labels, "label"), (pc.struct_field(images, "bytes"), "image")):
        if column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            path = images[row].as_py() and images[row].as_py()["path"]
            instead = f", but a path, {quote(path)}; expected its bytes" if missing == "image" and path else ""
            raise InputError(f"{what}: row {row}, counted from 0, has no {missing}{instead}")
    return rows


def check_parts(name: str, parts: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """`parts`, whose label columns must name their classes, both the same."""
    for rows in parts.values():
        if not isinstance(rows.features["label"], datasets.ClassLabel):
            raise InputError(f"dataset: {name}: the label column does not name its classes (ClassLabel)")
    train, test = (rows.features["label"].names for rows in parts.values())
    if train != test:
        odd = sorted(set(train) ^ set(test))
        where = f"{odd[0]!r} is in the {'train' if odd[0] in train else 'test'} part alone" if odd else "order"
        raise InputError(f"dataset: {name}: train and test part do not have the same classes: {where}")
    return parts


def identify_tree(folder: Path, rows: datasets.Dataset) -> list[str]:
    """SHA-256 over the names below `folder` and the content of the images that `open_tree` found."""
    files = [Path(image["path"]) for image in rows["image"]]
    names = [str(path.relative_to(folder)) for path in files]
    return identify(files, lambda sums: [hashlib.sha256(store.canonical_json([names, sums]).encode()).hexdigest()])


def identify(files: list[Path], combine: Callable[[list[str]], list[str]]) -> list[str]:
    """What `combine` makes of the SHA-256 of each of `files`.

    Files of more than LARGE bytes together, such as ImageNet-1K's 150 GB, are read once. Later runs know them by what
    the file system says of them, the time of the last change included, which unlike that of the last modification no
    program can set back.
    """
    stats = [path.stat() for path in files]
    if sum(each.st_size for each in stats) <= LARGE:
        return combine([store.checksum(path) for path in files])
    # Not st_dev, which the machines that share a disk may number differently.
    about = [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in stats]
    known = root() / "artifacts" / "data" / f".identity-{store.digest([*map(str, files)], about)}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # not yet, or damaged
        return store.read_json(known)
    print(f"{files[0].parent}: reading {len(files):,} files whole, once, to identify the images", flush=True)
    with ThreadPoolExecutor() as pool:
        identity = combine([*pool.map(store.checksum, files)])
    store.write_json(known, identity)
    return identity


def is_plain_tree(folder: Path) -> bool:
    """Whether it holds class folders with images, not parts of a data set.

    A class may be called "train" or "valley" too: a folder whose name begins as a part's is one if it holds folders.
    """
    names = tuple(name for part in PARTS.values() for name in part)
    inside = [path for path in folder.iterdir() if path.name[0] != "."]
    folders = {path: any(within.is_dir() for within in path.iterdir()) for path in inside if path.is_dir()}
    named = [path for path in inside if path.name.startswith(names)]
    has_parts = any(path.suffix == ".parquet" or folders.get(path) for path in named)
    return not has_parts and any(path.name not in names for path in folders)


def open_tree(tree: Path) -> datasets.Dataset:
    """The images of an ImageFolder part, tree/CLASS/IMAGE, undecoded, with classes in the order of their names.

    Raises:
        InputError: there are none, one is no file, or a name is not UTF-8.
    """
    classes = sorted(path.name for path in tree.iterdir() if path.is_dir() and path.name[0] != ".")
    files, labels, suffixes = [], [], Image.registered_extensions()
    for label, class_name in enumerate(classes):
        for path in sorted((tree / class_name).iterdir()):
            if path.suffix.lower() in suffixes:
                if not path.is_file():  # a pipe would be waited for
                    raise InputError(f"dataset: {path} is no file, but is called as an image is")
                files.append(str(path))
                labels.append(label)
    nested = [path for name in classes for path in (tree / name).glob("*/**/*") if path.suffix.lower() in suffixes]
    if nested:
        print(f"warning: {tree}: {len(nested)} images lie deeper than CLASS/IMAGE and are not used, as {nested[0]}")
    for name in (*classes, *files):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"dataset: {tree}: the name {name!r} is not UTF-8; rename it") from None
    if not files:
        raise InputError(f"dataset: {tree} holds no images; expected {tree.name}/CLASS/IMAGE files")
    features = datasets.Features(image=ENCODED, label=datasets.ClassLabel(names=classes))
    rows = {"image": [{"bytes": None, "path": path} for path in files], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def open_distilled(path: Path) -> datasets.Dataset:
    """A distilled set of others with columns image and label, of which the latter may lack the names of the classes."""
    for place in (path, path / "train", path / "data"):
        if files := sorted(place.glob("train*.parquet")) or sorted(place.glob("*.parquet")):
            return open_parquet(f"distilled: {path}", files, identify(files, lambda sums: sums))
    # A folder that holds train/ alone is no set of one class.
    return open_tree(path / "train" if (path / "train").is_dir() else path)


def read_digits(side: int) -> dict[str, datasets.Dataset]:
    """scikit-learn's 1,797 handwritten digits of 8x8 px: 1,297 for training and 500 for testing, enlarged."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, labels = load_digits(return_X_y=True)
    pictures = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    grey, size = map(Image.fromarray, pictures), (side, side)
    enlarged = [picture.resize(size, Image.Resampling.BILINEAR).convert("RGB") for picture in grey]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(d) for d in range(10)]))
    whole = datasets.Dataset.from_dict({"image": enlarged, "label": labels}, features=features)
    whole = whole.cast_column("image", ENCODED)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    return {"train": whole.select(train), "test": whole.select(test)}
