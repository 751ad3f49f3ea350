"""Distilled sets as artifacts: what determines them and so names them, made, written and read."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.table import InMemoryTable
from PIL import Image

from dwa_core import initialise
from dwa_core.batches import Resident
from dwa_core.devices import Compute
from dwa_core.errors import InputError
from dwa_core.synthesis import LOSSES, synthesize
from dwa_paper.runs import real, sources, stop, store
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.teachers import Teacher
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import SYNTHESISED, Setting, non_default, quote

PARQUET = "train-00000-of-00001.parquet"
CARD = Path(__file__).with_name("card.md")  # what the Hugging Face hub shows for a data set, and reads its files from
JPEG_QUALITY = 75  # the authors'
ROWS_AT_ONCE = 5000  # images; pyarrow neither takes nor gives more than 2 GB of them as one piece


@dataclass(frozen=True)
class DistilledSet:
    """Distilled images as stored, their labels and ipc indices, and the record of the artifact."""

    images_uint8: torch.Tensor
    labels: torch.Tensor
    ipc_index: torch.Tensor
    classes: list[str]
    artifact: str
    record: dict

    def split(self, device: torch.device) -> Resident:
        """The images as a training part on `device`; in the host's memory where half of what is free is too little."""
        room = torch.cuda.mem_get_info(device)[0] * real.MEMORY_SHARE if device.type == "cuda" else float("inf")
        place = device if self.images_uint8.nbytes <= room else torch.device("cpu")
        return Resident(self.images_uint8, self.labels, device, place)


def describe(setting: Setting, data_fingerprint: str, teacher_artifact: str) -> tuple[str, dict]:
    """The name of the distilled set's artifact, and what determines it: settings that agree in this share one set.

    Raises:
        InputError: the folder of a set of others cannot be read.
    """
    stage, images = setting.synthesis, setting.images
    if setting.method == "random-real":
        own = {"seed": stage.seed, "storage": stage.storage}
    elif setting.method == "herded-real":
        own = {"mean": images.mean, "std": images.std, "storage": stage.storage, "teacher": teacher_artifact}
    elif setting.method == "external":
        own = {"files": store.digest(store.compute_checksums(external_folder(setting)))}
    else:
        own = {"mean": images.mean, "std": images.distilled_std, "stage": non_default(stage)}
        own |= {"precision": setting.precision, "teacher": teacher_artifact}
        own |= setting.model_dump(include={"deterministic", "compile"}, exclude_defaults=True)
    described = {"method": setting.method, "ipc": setting.ipc, "side": images.side, "data": data_fingerprint, **own}
    return f"{setting.dataset}-{setting.method}-ipc{setting.ipc}-{store.digest(described)}", described


def external_folder(setting: Setting, download: bool = False) -> Path:
    """The folder of a set of the method "external", or the local copy of one on the hub.

    Args:
        download: makes that copy if there is none; whoever only asks for names needs no network.

    Raises:
        InputError: `setting.distilled` is no folder, and there is no copy of it.
    """
    folder = root() / setting.distilled
    if os.path.isdir(folder):  # False also of what can be no name; Path.is_dir raises some of that
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", setting.distilled):
        raise InputError(f"distilled: {folder} is not a folder")
    try:
        copy = huggingface_hub.snapshot_download(setting.distilled, repo_type="dataset", local_files_only=not download)
        return Path(copy)
    except Exception as error:  # the hub's client raises many kinds: connection, gated, missing
        reason = sources.summarise(error)
        raise InputError(f"distilled: {folder} is not a folder, and there is no copy from the hub; {reason}") from None


def load_or_synthesize(setting: Setting, data: ImageData, teacher: Teacher, compute: Compute) -> DistilledSet:
    """The distilled set of `setting`: the stored one, or one made and stored now.

    "random-real" takes the real images from which synthesis with the same seed would start, as they are, "herded-real"
    those nearest to the mean of their class in the teacher's features (see initialise.draw_herded);
    "external" takes those of the folder `setting.distilled`, and stores them without loss, whatever `storage` says.
    """
    if setting.method == "external":
        external_folder(setting, download=True)
    name, described = describe(setting, data.fingerprint, teacher.artifact)
    stage, classes = setting.synthesis, len(data.classes)

    def make() -> None:
        checkpoint, losses = Checkpoint(name, "synthesis"), {}
        parts = join_parts(name, classes, checkpoint)
        if setting.method == "external":
            folder, side = external_folder(setting), setting.images.side
            pictures = read_external(folder, data.name, data.classes, setting.ipc, side)
        elif setting.method in SYNTHESISED:
            pictures, losses = synthesize(setting, data.train, classes, teacher.network, compute, checkpoint)
        else:
            if setting.method == "random-real":
                chosen = initialise.draw_real(data.train, classes, setting.ipc, stage.seed)
            else:
                chosen = initialise.draw_herded(setting, data.train, classes, teacher.network)
            pictures = data.train.pictures(chosen.flatten()).cpu()
        with store.create_artifact("distilled", name) as folder:
            storage = "png" if setting.method == "external" else stage.storage
            write_parquet(pictures, data.classes, folder / PARQUET, storage)
            (folder / "README.md").write_text(CARD.read_text().format(setting=setting, name=name))
            about = store.collect_provenance(compute) | {"seconds": checkpoint.seconds(), "losses_first_batch": losses}
            store.seal(folder, described, **about)
        for unfinished in (checkpoint, *parts):
            unfinished.remove()

    return read_parquet(store.once("distilled", name, make))


def synthesize_part(setting: Setting, data: ImageData, teacher: Teacher, compute: Compute, indices: range) -> None:
    """Makes the ipc indices `indices` of a set and leaves them as a checkpoint, for `load_or_synthesize` to join.

    Each ipc index starts from the teacher's own weights, so parts can be made side by side on several machines.
    """
    name, _ = describe(setting, data.fingerprint, teacher.artifact)
    if store.find("distilled", name) is None:
        checkpoint = Checkpoint(f"{name}.part-{indices.start:05d}-{indices.stop:05d}", "synthesis")
        made, losses = synthesize(setting, data.train, len(data.classes), teacher.network, compute, checkpoint, indices)
        checkpoint.save({"done": made}, {"losses": losses})
        stop.restore_handlers()


def join_parts(name: str, classes: int, checkpoint: Checkpoint) -> list[Checkpoint]:
    """Makes `checkpoint` of the finished parts of the set `name` from ipc index 0 on; returns the parts.

    A checkpoint that has as many images already stays.
    """
    parts, done, losses, seconds = [], [], [], 0.0
    for path in sorted(checkpoint.path.parent.glob(f"{name}.part-*.safetensors")):
        part = Checkpoint(path.stem)
        first, last = (int(bound) for bound in path.stem.split("-")[-2:])
        if (found := part.load(torch.device("cpu"))) is None:
            continue
        parts.append(part)
        images = found[0]["done"]
        if first * classes == sum(map(len, done)) and len(images) == (last - first) * classes:
            done.append(images)
            losses = losses or found[1]["losses"]
            seconds += part.earlier
    before = checkpoint.load(torch.device("cpu")) if done else None
    if done and (before is None or sum(map(len, done)) > len(before[0]["done"])):
        checkpoint.earlier = seconds
        checkpoint.save({"done": torch.cat(done)}, {"losses": losses})
    return parts


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
    table = sources.open_distilled(path)
    labels = torch.tensor(table["label"][:])
    names = getattr(table.features["label"], "names", None)
    theirs = names or classes
    if len(theirs) != len(classes):
        raise InputError(f"distilled: {path} has {len(theirs)} classes; {name} has {len(classes)}")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(f"distilled: {path}: labels are not 0 to {len(classes) - 1}")
    if names is None:
        print(f"{path.name}: its labels have no names, so they are taken for the numbers of the classes, from 0")
    elif set(theirs) == set(classes):
        labels = torch.tensor([classes.index(label) for label in theirs])[labels]
    else:
        print(f"{path.name}: its classes have other names ({quote(theirs[0])}, ...), so they are taken in their order")
    counts = labels.bincount(minlength=len(classes))
    if not (counts == ipc).all():
        wrong = int((counts != ipc).nonzero()[0])
        raise InputError(f"ipc: {ipc} is not allowed; {path} has {counts[wrong]} images of class {classes[wrong]!r}")
    pictures = real.decode(path.name, "distilled", table, side)
    by_class = labels.argsort(stable=True).view(len(classes), ipc)
    return pictures[by_class.T.flatten()]


def write_parquet(pictures: torch.Tensor, classes: list[str], path: Path, storage: str) -> None:
    """Writes images ordered by ipc index, then class, as columns image (encoded), label, ipc_index."""
    options = {"format": "PNG"} if storage == "png" else {"format": "JPEG", "quality": JPEG_QUALITY}
    encoded = []
    for picture in pictures.numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, **options)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    order = np.arange(len(pictures))
    columns = {"image": encoded, "label": order % len(classes), "ipc_index": order // len(classes)}
    label = datasets.ClassLabel(names=classes)
    features = datasets.Features(image=datasets.Image(), label=label, ipc_index=datasets.Value("int32"))
    pieces = [
        datasets.Dataset.from_dict(
            {key: column[start : start + ROWS_AT_ONCE] for key, column in columns.items()}, features=features
        )
        for start in range(0, len(pictures), ROWS_AT_ONCE)
    ]
    datasets.concatenate_datasets(pieces).to_parquet(path)


def read_parquet(folder: Path) -> DistilledSet:
    """The distilled set stored in `folder`, as a student sees it: JPEG artefacts, if it has them, included."""
    # Not `Dataset.from_parquet`, whose cache knows a file by its place and time.
    batches = pq.ParquetFile(folder / PARQUET).iter_batches(ROWS_AT_ONCE)
    pieces = [datasets.Dataset(InMemoryTable(pa.Table.from_batches([batch]))) for batch in batches]
    pictures = np.stack([np.asarray(image.convert("RGB")) for piece in pieces for image in piece["image"]])
    columns = [torch.cat([torch.tensor(piece[key][:]) for piece in pieces]) for key in ("label", "ipc_index")]
    classes, record = pieces[0].features["label"].names, store.read_json(folder / "record.json")
    return DistilledSet(torch.from_numpy(pictures), *columns, classes, folder.name, record)


def read_losses(folder: Path) -> dict[str, list[float]]:
    """The LOSSES of the first class batch of the set stored in `folder`, by name; empty where nothing was optimised."""
    losses = store.read_json(folder / "record.json")["losses_first_batch"]
    if isinstance(losses, list):  # the older sets, whose records stay as they are, have a row per iteration
        return dict(zip(LOSSES, map(list, zip(*losses, strict=True)), strict=False))
    return losses
