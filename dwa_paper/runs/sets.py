"""Distilled sets as artifacts: what determines them and so names them, made, written and read."""

import io
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from dwa_core import initialise
from dwa_core.batches import Resident
from dwa_core.devices import Compute
from dwa_core.synthesis import LOSSES, synthesize
from dwa_paper.runs import external, stop, store
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.teachers import Teacher
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting, non_default

PARQUET = "train-00000-of-00001.parquet"
JPEG_QUALITY = 75  # the authors'


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
        """The images as a training part on `device`."""
        return Resident(self.images_uint8, self.labels, device)


def describe(setting: Setting, data_fingerprint: str, teacher_artifact: str) -> tuple[str, dict]:
    """The name of the distilled set's artifact, and what determines it: settings that agree in this share one set.

    Raises:
        InputError: the folder of a set of others cannot be read.
    """
    stage = setting.synthesis
    described = {
        "method": setting.method,
        "ipc": setting.ipc,
        "side": setting.images.side,
        "data": data_fingerprint,
    }
    if setting.method == "random-real":
        described |= {"seed": stage.seed, "storage": stage.storage}
    elif setting.method == "herded-real":
        described |= {"mean": setting.images.mean, "std": setting.images.std}
        described |= {"storage": stage.storage, "teacher": teacher_artifact}
    elif setting.method == "external":
        described |= {"files": external.digest_folder(external_folder(setting))}
    else:
        described |= {
            "mean": setting.images.mean,
            "std": setting.images.distilled_std,
            "stage": non_default(stage),
            "precision": setting.precision,
            "teacher": teacher_artifact,
            **({"deterministic": True} if setting.deterministic else {}),
        }
    return f"{setting.dataset}-{setting.method}-ipc{setting.ipc}-{store.digest(described)}", described


def external_folder(setting: Setting) -> Path:
    """The folder of a set of the method "external"; as it is, if absolute."""
    return root() / setting.distilled


def load_or_synthesize(setting: Setting, data: ImageData, teacher: Teacher, compute: Compute) -> DistilledSet:
    """The distilled set of `setting`: the stored one, or one made and stored now.

    "random-real" takes the real images from which synthesis with the same seed would start, as they are, "herded-real"
    those nearest to the mean of their class in the teacher's features (see initialise.herd);
    "external" takes those of the folder `setting.distilled`.
    """
    name, described = describe(setting, data.fingerprint, teacher.artifact)

    def make() -> None:
        synthesize_and_store(setting, data, teacher, compute, name, described)

    return read_parquet(store.once("distilled", name, make))


def synthesize_and_store(
    setting: Setting, data: ImageData, teacher: Teacher, compute: Compute, name: str, described: dict
) -> None:
    """Makes the distilled set, or takes real images or those of others, and stores it as the artifact `name`."""
    stage, classes, losses = setting.synthesis, len(data.classes), {}
    checkpoint = Checkpoint(name, "synthesis")
    parts = join_parts(name, classes, checkpoint)
    if setting.method == "random-real":
        chosen = initialise.draw_real(data.train, classes, setting.ipc, stage.seed)
        pictures = data.train.pictures(chosen.flatten()).cpu()
    elif setting.method == "herded-real":
        chosen = initialise.draw_herded(setting, data.train, classes, teacher.network)
        pictures = data.train.pictures(chosen.flatten()).cpu()
    elif setting.method == "external":
        pictures = external.read_external(
            external_folder(setting), data.name, data.classes, setting.ipc, setting.images.side
        )
    else:
        pictures, losses = synthesize(setting, data.train, classes, teacher.network, compute, checkpoint)
    with store.new_artifact("distilled", name) as folder:
        write_parquet(pictures, data.classes, folder / PARQUET, stage.storage)
        (folder / "README.md").write_text(dataset_card(setting, name))
        about = store.provenance(compute) | {"seconds": checkpoint.seconds(), "losses_first_batch": losses}
        store.seal(folder, described, **about)
    for unfinished in (checkpoint, *parts):
        unfinished.remove()


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
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=classes), ipc_index=datasets.Value("int32")
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def read_parquet(folder: Path) -> DistilledSet:
    """The distilled set stored in `folder`, as a student sees it: JPEG artefacts, if it has them, included."""
    table = datasets.Dataset.from_parquet(str(folder / PARQUET), keep_in_memory=True)
    pictures = np.stack([np.asarray(image.convert("RGB")) for image in table["image"]])
    return DistilledSet(
        torch.from_numpy(pictures),
        torch.tensor(table["label"][:]),
        torch.tensor(table["ipc_index"][:]),
        table.features["label"].names,
        folder.name,
        store.read_json(folder / "record.json"),
    )


def read_losses(folder: Path) -> dict[str, list[float]]:
    """The LOSSES of the first class batch of the set stored in `folder`, by name; empty where nothing was optimised."""
    losses = store.read_json(folder / "record.json")["losses_first_batch"]
    if isinstance(losses, list):  # the older sets, whose records stay as they are, have a row per iteration
        return dict(zip(LOSSES, map(list, zip(*losses, strict=True)), strict=False))
    return losses


def dataset_card(setting: Setting, name: str) -> str:
    """The README.md that the Hugging Face hub shows for a data set, and reads its files from."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
---
# {name}

{setting.ipc} images per class, made from the training part of {setting.dataset} by the method {setting.method}
(Diversity-Driven Synthesis, NeurIPS 2024). Columns: `image`, `label`, `ipc_index`. The settings in full, the
teacher and the checksums are in `record.json`. The terms of the source data set apply. `make share` writes a card
with accuracies.

```python
import datasets
distilled = datasets.load_dataset("path/to/{name}", split="train")
```
"""
