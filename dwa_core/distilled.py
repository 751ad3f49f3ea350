"""Distilled sets as artifacts: what determines them and so names them, and how they are written and read."""

import io
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from dwa_core import external, store
from dwa_core.batches import Resident
from dwa_core.settings import Setting, changed, root

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
        InputError: the folder of a set made elsewhere cannot be read.
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
    elif setting.method == "external":
        described |= {"files": external.checksums(made_elsewhere(setting))}
    else:
        described |= {
            "mean": setting.images.mean,
            "std": setting.images.distilled_std,
            "stage": changed(stage),
            "precision": setting.precision,
            "teacher": teacher_artifact,
            **({"deterministic": True} if setting.deterministic else {}),
        }
    return f"{setting.dataset}-{setting.method}-ipc{setting.ipc}-{store.digest(described)}", described


def made_elsewhere(setting: Setting) -> Path:
    """The folder of a set of the method "external"; as it is, if absolute."""
    return root() / setting.distilled


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
teacher and the checksums stand in `record.json`. The terms of the source data set apply. `make share` writes a card
with accuracies.

```python
import datasets
distilled = datasets.load_dataset("path/to/{name}", split="train")
```
"""
