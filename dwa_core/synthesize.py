"""Synthesis (SRe2L's recover stage): images optimised against a teacher whose weights were adjusted."""

import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from dwa_core import augment, external, models, settings, store, watch
from dwa_core.adjust import adjust_weights
from dwa_core.augment import DIRECTION, INITIAL_NOISE, View
from dwa_core.data import ImageData, Resident, draw_real
from dwa_core.settings import Setting, SynthesisStage, changed
from dwa_core.teacher import Teacher

FIRST_LAYER_WEIGHT = 10.0
ADAM = {"betas": (0.5, 0.9), "eps": 1e-8}
JPEG_QUALITY = 75  # the authors'
PARQUET = "train-00000-of-00001.parquet"


# ------------------------------------------------------------------- BatchNorm statistics of the input


class NormaliseWithStatistics(torch.autograd.Function):
    """BatchNorm in eval mode that also returns mean and biased variance of its input.

    One backward formula serves all three outputs, `dx = dy * scale + a * x + b` per channel, in place of
    the several passes over the activations that autograd would make.
    """

    @staticmethod
    def forward(ctx, x, layer, scale):
        # BatchNorm's own kernel: one pass, wide accumulation, and fp32 results for bf16 input if the running
        # buffers, of which it updates these two idle ones, are fp32. var_mean took 20 times as long on a CPU.
        idle = torch.zeros_like(scale), torch.zeros_like(scale)
        mean, variance = torch.batch_norm_update_stats(x, *idle, momentum=0.0)
        ctx.save_for_backward(x, scale, mean)
        # Without the activation that timm's BatchNorm layers end with.
        return nn.BatchNorm2d.forward(layer, x), mean, variance

    @staticmethod
    def backward(ctx, d_output, d_mean, d_variance):
        x, scale, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = d_variance * (2 / count)
        offset = d_mean / count - slope * mean
        d_input = torch.addcmul(per_channel(offset, x), x, per_channel(slope, x))
        return d_input.addcmul_(d_output, per_channel(scale, x)), None, None


def per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per channel, of the type of `like` (NCHW) and shaped to broadcast over it."""
    return values.to(like.dtype).view(1, -1, 1, 1)


class MatchedBatchNorm(nn.Module):
    """A BatchNorm2d layer in eval mode that keeps the statistics of its latest input."""

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            self.scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        self.mean = self.variance = None
        # timm's BatchNorm2d layers go on with a dropout and an activation of their own.
        self.rest = nn.Sequential(layer.drop, layer.act) if hasattr(layer, "act") else nn.Identity()

    def forward(self, x):
        y, self.mean, self.variance = NormaliseWithStatistics.apply(x, self.layer, self.scale)
        return self.rest(y)


def match_statistics(network: nn.Module) -> list[MatchedBatchNorm]:
    """Replaces every BatchNorm2d of `network`, in place, and returns the new layers in their order."""
    layers = []
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            matched = MatchedBatchNorm(module)
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, matched)
            layers.append(matched)
    return layers


def batchnorm_terms(layers: list[MatchedBatchNorm], r_var: float) -> torch.Tensor:
    """(layers,): `w_l * (r_var * ||Var_l - sigma2_l||_2 + ||Mean_l - mu_l||_2)` of the latest forward pass.

    w is 10 for the first layer and 1 for the rest. SRe2L's loss, with the variance weighted apart as DWA does.
    """
    terms = [
        r_var * torch.linalg.vector_norm(matched.variance - matched.layer.running_var)
        + torch.linalg.vector_norm(matched.mean - matched.layer.running_mean)
        for matched in layers
    ]
    return torch.stack([terms[0] * FIRST_LAYER_WEIGHT, *terms[1:]])


# --------------------------------------------------------------------------------- image optimisation


def optimise_images(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    views: list[View],
    stage: SynthesisStage,
    mean: list[float],
    std: list[float],
    precision: torch.dtype,
    image_gradient: torch.Tensor | None = None,
    watch: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimises `images` against the frozen `network`: cross-entropy plus r_bn times the BatchNorm terms.

    Args:
        network: adjusted, in eval mode, without parameter gradients; its BatchNorm layers are replaced.
        images: (N, 3, H, W) initial images, normalised with `mean` and `std`; not changed.
        labels: (N,) class indices.
        views: the augmentation of each iteration; their number is the number of iterations.
        precision: of the network's forward and backward pass; the loss and the images keep the type of `images`.
        image_gradient: added to the gradient of the first update (the authors' switch).
        watch: called after each update with iteration, images, and the BatchNorm terms before it.

    Returns: the last iterate, and the losses (iterations, 4): cross-entropy, sum of BatchNorm terms,
        total, learning rate.
    """
    device = images.device
    layers = match_statistics(network)
    black, white = (augment.normalise(torch.full_like(images[:1], value), mean, std) for value in (0.0, 1.0))
    images = images.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=stage.learning_rate, **ADAM)
    losses = torch.zeros(len(views), 4, dtype=images.dtype, device=device)
    for iteration, view in enumerate(views):
        rate = stage.learning_rate * (1 + math.cos(math.pi * iteration / len(views))) / 2
        optimizer.param_groups[0]["lr"] = rate
        with models.autocast(device, precision):
            logits = network(augment.apply_view(images, view))
        cross_entropy = F.cross_entropy(logits.to(images.dtype), labels)
        terms = batchnorm_terms(layers, stage.r_var)
        loss = cross_entropy + stage.r_bn * terms.sum()
        (images.grad,) = torch.autograd.grad(loss, images)
        if image_gradient is not None and iteration == 0:
            images.grad += image_gradient
        optimizer.step()
        with torch.no_grad():
            images.copy_(torch.maximum(torch.minimum(images, white), black))
            losses[iteration] = torch.stack([cross_entropy, terms.sum(), loss, torch.full_like(loss, rate)])
        if watch is not None:
            watch(iteration, images.detach(), terms.detach())
    return images.detach(), losses


def synthesize(
    setting: Setting,
    data: ImageData,
    teacher: nn.Module,
    device: torch.device,
    checkpoint: store.Checkpoint,
    indices: range | None = None,
) -> tuple[torch.Tensor, list]:
    """All images of a distilled set, one ipc index after the other, from the checkpoint where there is one.

    Args:
        indices: the ipc indices to be made, where not all of them.

    Returns: bytes (indices * classes, side, side, 3), ordered by ipc index and then class, and the losses of the
        first class batch, a list of [cross-entropy, BatchNorm terms, total, learning rate].
    """
    indices = indices or range(setting.ipc)
    stage, images = setting.synthesis, setting.images
    std = images.std_after_teacher or images.std
    classes, side = len(data.classes), images.side
    precision = models.choose_precision(setting.precision, device)
    done = torch.empty(0, side, side, 3, dtype=torch.uint8)
    losses_of_first = []
    if (found := checkpoint.load(device)) is not None:
        done, losses_of_first = found[0]["done"].cpu(), found[1]["losses"]
    chosen = draw_real(data.train, classes, setting.ipc, stage.seed) if stage.initial == "real" else None
    finished = len(done) // classes
    progress = tqdm(
        indices[finished:], desc="synthesis", unit="ipc", initial=finished, total=len(indices), file=sys.stdout
    )
    for index in progress:
        network = models.frozen_copy(teacher)
        made = []
        for start in range(0, classes, stage.classes_per_batch):
            labels = torch.arange(start, min(start + stage.classes_per_batch, classes), device=device)
            key = (stage.seed, index, start)
            if stage.initial == "real":
                pixels = data.train.pictures(chosen[index, labels.cpu()]).to(device)
                initial = augment.normalise(augment.to_unit_range(pixels), images.mean, std)
            else:
                random = augment.device_random(device, INITIAL_NOISE, *key)
                initial = torch.randn(len(labels), 3, side, side, generator=random, device=device)
                initial = initial.contiguous(memory_format=torch.channels_last)
            views = augment.draw_views(stage.iterations, side, stage.roll, stage.resized_crop, *key)
            image_gradient = adjust_weights(
                network,
                initial,
                labels,
                views[0],
                stage.adjustment,
                stage.rho,
                stage.steps,
                *(DIRECTION, *key),
                with_image_gradient=stage.image_gradient_after_adjustment == "added",
            )
            twin = models.frozen_copy(network)
            result, losses = optimise_images(
                twin, initial, labels, views, stage, images.mean, std, precision, image_gradient
            )
            made.append(augment.denormalise_to_uint8(result, images.mean, std, rounded=stage.storage == "png").cpu())
            if start == 0:
                first_losses = losses
            if not losses_of_first:
                losses_of_first = losses.tolist()
            if stage.weights_between_class_batches == "restored":
                network = models.frozen_copy(teacher)
        done = torch.cat([done, *made])
        watch.synthesised(checkpoint.path.stem, index, first_losses, done[-classes:])
        if checkpoint.due() and index != indices[-1]:
            checkpoint.save({"done": done}, {"losses": losses_of_first})
    return done, losses_of_first


# ---------------------------------------------------------------------------------------- distilled sets


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


def synthesize_or_load(setting: Setting, data: ImageData, teacher: Teacher, device: torch.device) -> DistilledSet:
    """The distilled set of `setting`: the stored one, or one made and stored now.

    "random-real" takes the real images from which synthesis with the same seed would start, as they are;
    "external" takes those of the folder `setting.distilled`.
    """
    name, described, pictures = named(setting, data, teacher)
    with store.lock("distilled", name):
        if store.find("distilled", name) is None:
            synthesize_and_store(setting, data, teacher, device, name, described, pictures)
    return read_parquet(store.find("distilled", name))


def named(setting: Setting, data: ImageData, teacher: Teacher) -> tuple[str, dict, torch.Tensor | None]:
    """The name of the distilled set of `setting`, what determines it, and its images where they are made elsewhere."""
    stage, pictures = setting.synthesis, None
    described = {
        "method": setting.method,
        "ipc": setting.ipc,
        "side": setting.images.side,
        "data": data.fingerprint,
    }
    if setting.method == "random-real":
        described |= {"seed": stage.seed, "storage": stage.storage}
    elif setting.method == "external":
        path = settings.root() / setting.distilled  # as it is, if absolute
        pictures = external.read_external(path, data.name, data.classes, setting.ipc, setting.images.side)
        described |= {"images": store.fingerprint({"images": pictures})}
    else:
        described |= {
            "mean": setting.images.mean,
            "std": setting.images.std_after_teacher or setting.images.std,
            "stage": changed(stage),
            "precision": setting.precision,
            "teacher": teacher.artifact,
        }
    return f"{setting.dataset}-{setting.method}-ipc{setting.ipc}-{store.digest(described)}", described, pictures


def synthesize_part(setting: Setting, data: ImageData, teacher: Teacher, device: torch.device, indices: range) -> None:
    """Makes the ipc indices `indices` of a set and leaves them as a checkpoint, for `synthesize_or_load` to join.

    Each ipc index starts from the teacher's own weights, so parts can be made side by side on several machines.
    """
    name, _, _ = named(setting, data, teacher)
    if store.find("distilled", name) is None:
        checkpoint = store.Checkpoint(f"{name}.part-{indices.start:05d}-{indices.stop:05d}")
        made, losses = synthesize(setting, data, teacher.network, device, checkpoint, indices)
        checkpoint.save({"done": made}, {"losses": losses})


def join_parts(name: str, classes: int, checkpoint: store.Checkpoint) -> list[store.Checkpoint]:
    """Makes `checkpoint` of the finished parts of the set `name` from ipc index 0 on; returns the parts."""
    parts, done, losses, seconds = [], [], [], 0.0
    for path in sorted(checkpoint.path.parent.glob(f"{name}.part-*.safetensors")):
        part = store.Checkpoint(path.stem)
        tensors, state = part.load(torch.device("cpu"))
        first, last = (int(bound) for bound in path.stem.split("-")[-2:])
        parts.append(part)
        if first * classes == sum(map(len, done)) and len(tensors["done"]) == (last - first) * classes:
            done.append(tensors["done"])
            losses = losses or state["losses"]
            seconds += part.earlier
    if done:
        checkpoint.earlier = seconds
        checkpoint.save({"done": torch.cat(done)}, {"losses": losses})
    return parts


def synthesize_and_store(
    setting: Setting,
    data: ImageData,
    teacher: Teacher,
    device: torch.device,
    name: str,
    described: dict,
    pictures: torch.Tensor | None,
) -> None:
    """Makes the distilled set, or draws real images, and stores it as the artifact `name` with its record.

    `pictures`: what was made elsewhere is only stored.
    """
    stage, losses = setting.synthesis, []
    checkpoint = store.Checkpoint(name)
    parts = join_parts(name, len(data.classes), checkpoint)
    if setting.method == "random-real":
        chosen = draw_real(data.train, len(data.classes), setting.ipc, stage.seed)
        pictures = data.train.pictures(chosen.flatten()).cpu()
    elif setting.method != "external":
        pictures, losses = synthesize(setting, data, teacher.network, device, checkpoint)
    with store.new_artifact("distilled", name) as folder:
        write_parquet(pictures, data.classes, folder / PARQUET, stage.storage)
        (folder / "README.md").write_text(dataset_card(setting, name))
        precision = models.choose_precision(setting.precision, device)
        store.finish(folder, described, checkpoint, device, precision, losses_first_batch=losses)
    for unfinished in (checkpoint, *parts):
        unfinished.remove()


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
