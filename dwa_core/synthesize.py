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

from dwa_core import augment, guard, models, store
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
        return layer(x), mean, variance

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

    def forward(self, x):
        y, self.mean, self.variance = NormaliseWithStatistics.apply(x, self.layer, self.scale)
        return y


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
    begun: dict[str, torch.Tensor] | None = None,
    keep: Callable[[Callable[[], dict[str, torch.Tensor]]], None] | None = None,
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
        begun: the state to go on from: `keep`'s.
        keep: called after each update with a function that returns the state so far, for whom wants to store it.

    Returns: the last iterate, and the losses (iterations, 4): cross-entropy, sum of BatchNorm terms,
        total, learning rate.

    Raises:
        DivergedError: the numbers have gone wrong (`guard.check_synthesis`).
    """
    device = images.device
    layers = match_statistics(network)
    black, white = (augment.normalise(torch.full_like(images[:1], value), mean, std) for value in (0.0, 1.0))
    images = images.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=stage.learning_rate, **ADAM)
    losses = torch.zeros(len(views), 4, dtype=images.dtype, device=device)
    usual_terms = terms_of_zero_statistics(layers, stage.r_var)

    def check(iteration):
        guard.check_synthesis(stage, losses[: iteration + 1], terms, usual_terms, images, black, white)

    def state():
        check(iteration)
        return packed_images(images, optimizer, losses[: iteration + 1])

    first = 0 if begun is None else unpack_images(begun, images, optimizer, losses)
    for iteration, view in enumerate(views[first:], first):
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
        if (iteration + 1) % guard.CHECK_EVERY == 0 or iteration + 1 == len(views):
            check(iteration)
        if keep is not None:
            keep(state)
    return images.detach(), losses


def terms_of_zero_statistics(layers: list[MatchedBatchNorm], r_var: float) -> torch.Tensor:
    """(layers,): `batchnorm_terms` if mean and variance of every layer's input were zero."""
    norms = [
        r_var * torch.linalg.vector_norm(matched.layer.running_var)
        + torch.linalg.vector_norm(matched.layer.running_mean)
        for matched in layers
    ]
    return torch.stack([norms[0] * FIRST_LAYER_WEIGHT, *norms[1:]])


def packed_images(
    images: torch.Tensor, optimizer: torch.optim.Optimizer, losses: torch.Tensor
) -> dict[str, torch.Tensor]:
    """All that the optimisation of `images` goes on from; `losses` (iterations so far, 4) tell how far it came."""
    return {"images": images, "losses": losses} | {f"adam.{k}": v for k, v in optimizer.state[images].items()}


def unpack_images(
    begun: dict[str, torch.Tensor], images: torch.Tensor, optimizer: torch.optim.Optimizer, losses: torch.Tensor
) -> int:
    """Puts back what `packed_images` returned, in place; returns the number of iterations that are done."""
    done = len(begun["losses"])
    with torch.no_grad():
        images.copy_(begun["images"])
        losses[:done] = begun["losses"]
    for name, value in begun.items():
        if name.startswith("adam."):
            name = name.removeprefix("adam.")
            # Adam counts its steps on the CPU; its moments lie in memory as the images do.
            value = value.cpu() if name == "step" else torch.empty_like(images).copy_(value)
            optimizer.state[images][name] = value.detach()
    return done


def synthesize(
    setting: Setting, data: ImageData, teacher: nn.Module, device: torch.device, checkpoint: store.Checkpoint
) -> tuple[torch.Tensor, list]:
    """All images of a distilled set, one ipc index after the other, from the checkpoint where there is one.

    Returns: bytes (ipc * classes, side, side, 3), ordered by ipc index and then class, and the losses of the
        first class batch of ipc index 0, a list of [cross-entropy, BatchNorm terms, total, learning rate].
    """
    stage, images = setting.synthesis, setting.images
    std = images.std_after_teacher or images.std
    classes, side = len(data.classes), images.side
    precision = models.choose_precision(setting.precision, device)
    done = made = torch.empty(0, side, side, 3, dtype=torch.uint8)  # whole ipc indices; class batches of the next
    losses_of_first, begun = [], None
    if (found := checkpoint.load(device)) is not None:
        begun, losses_of_first = found[0], found[1]["losses"]
        done, made = begun.pop("done").cpu(), begun.pop("made").cpu()

    def keep(state):
        if checkpoint.due():
            checkpoint.save({"done": done, "made": made} | state(), {"losses": losses_of_first})

    def attempt(size):
        twin = models.frozen_copy(teacher)
        layers = match_statistics(twin)
        zeros = torch.zeros(size, 3, side, side, device=device, requires_grad=True)
        with models.autocast(device, precision):
            logits = twin(zeros)
        torch.autograd.grad(logits.sum() + batchnorm_terms(layers, stage.r_var).sum(), zeros)

    chosen = draw_real(data.train, classes, setting.ipc, stage.seed) if stage.initial == "real" else None
    first = len(done) // classes
    progress = tqdm(
        range(first, setting.ipc), desc="synthesis", unit="ipc", initial=first, total=setting.ipc, file=sys.stdout
    )
    for index in progress:
        network = models.frozen_copy(teacher)
        for start in range(0, classes, stage.classes_per_batch):
            labels = torch.arange(start, min(start + stage.classes_per_batch, classes), device=device)
            finished = start < len(made)
            if finished and stage.weights_between_class_batches == "restored":
                continue
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
            if finished:  # only its adjustment of the weights, on which the next one builds, was needed again
                continue
            twin = models.frozen_copy(network)
            with guard.enough_memory("synthesis.classes_per_batch", len(labels), attempt):
                result, losses = optimise_images(
                    twin,
                    initial,
                    labels,
                    views,
                    stage,
                    images.mean,
                    std,
                    precision,
                    image_gradient,
                    begun=begun,
                    keep=keep,
                )
            begun = None
            result_uint8 = augment.denormalise_to_uint8(result, images.mean, std, rounded=stage.storage == "png")
            made = torch.cat([made, result_uint8.cpu()])
            if not losses_of_first:
                losses_of_first = losses.tolist()
            if stage.weights_between_class_batches == "restored":
                network = models.frozen_copy(teacher)
        done, made = torch.cat([done, made]), made[:0]
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

    "random-real" takes the real images from which synthesis with the same seed would start, as they are.
    """
    name, described = identity(setting, data.fingerprint, teacher.artifact)
    with store.lock("distilled", name):
        folder = store.find("distilled", name)
        if folder is None:
            synthesize_and_store(setting, data, teacher, device, name, described)
            folder = store.find("distilled", name)
    return read_parquet(folder)


def identity(setting: Setting, fingerprint: str, teacher: str) -> tuple[str, dict]:
    """The name of the distilled set's artifact, and what determines it.

    Args:
        fingerprint: of the data.
        teacher: the name of its artifact.
    """
    stage = setting.synthesis
    described = {
        "method": setting.method,
        "ipc": setting.ipc,
        "side": setting.images.side,
        "data": fingerprint,
    }
    if setting.method == "random-real":
        described |= {"seed": stage.seed, "storage": stage.storage}
    else:
        described |= {
            "mean": setting.images.mean,
            "std": setting.images.std_after_teacher or setting.images.std,
            "stage": changed(stage),
            "precision": setting.precision,
            "teacher": teacher,
            **({"deterministic": True} if setting.deterministic else {}),
        }
    return f"{setting.dataset}-{setting.method}-ipc{setting.ipc}-{store.digest(described)}", described


def synthesize_and_store(
    setting: Setting, data: ImageData, teacher: Teacher, device: torch.device, name: str, described: dict
) -> None:
    """Makes the distilled set, or draws real images, and stores it as the artifact `name` with its record."""
    stage = setting.synthesis
    checkpoint = store.Checkpoint(name)
    if setting.method == "random-real":
        chosen = draw_real(data.train, len(data.classes), setting.ipc, stage.seed)
        pictures, losses = data.train.pictures(chosen.flatten()).cpu(), []
    else:
        pictures, losses = synthesize(setting, data, teacher.network, device, checkpoint)
    with store.new_artifact("distilled", name) as folder:
        write_parquet(pictures, data.classes, folder / PARQUET, stage.storage)
        (folder / "README.md").write_text(dataset_card(setting, name))
        precision = models.choose_precision(setting.precision, device)
        store.finish(folder, described, checkpoint, device, precision, losses_first_batch=losses)
    checkpoint.remove()


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


def export_image_folder(distilled: DistilledSet, target: Path) -> None:
    """Writes the set as target/CLASS/IPC_INDEX.png, which torchvision's ImageFolder reads."""
    rows = zip(distilled.images_uint8.numpy(), distilled.labels.tolist(), distilled.ipc_index.tolist(), strict=True)
    for picture, label, index in rows:
        folder = target / distilled.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index:05d}.png")


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
teacher and the checksums stand in `record.json`. The terms of the source data set apply.

```python
import datasets
distilled = datasets.load_dataset("path/to/{name}", split="train")
```
"""
