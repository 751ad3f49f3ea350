"""The teacher (SRe2L's squeeze stage), and the training loop that students share."""

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from dwa_core import models, store, watch
from dwa_core.augment import TEACHER
from dwa_core.data import ImageData
from dwa_core.settings import InputError, Setting, Training, changed, root


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode without gradients, the name of its artifact, and that artifact's record."""

    artifact: str
    network: nn.Module
    record: dict


def train_or_load(setting: Setting, data: ImageData, device: torch.device) -> Teacher:
    """The teacher of `setting`: the stored one, or one trained on `data.train`, stored, and loaded again.

    Weights are stored in fp16, BatchNorm in fp32; the accuracy in the record is that of the stored weights.
    """
    described = determined_by(setting, data.fingerprint)
    name = f"{setting.dataset}-{setting.network}-{store.digest(described)}"
    with store.lock("teachers", name):
        if store.find("teachers", name) is None:
            train_and_store(setting, data, device, name, described)
    folder = store.find("teachers", name)
    return Teacher(name, loaded(setting, len(data.classes), device, folder), store.read_json(folder / "record.json"))


def determined_by(setting: Setting, fingerprint: str) -> dict:
    """All that determines a teacher; `fingerprint` is that of the data.

    Raises:
        InputError: a file of weights cannot be read.
    """
    stage = changed(setting.teacher)
    if (path := weights_file(setting)) is not None:
        try:
            stage["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"teacher.weights: {path} cannot be read; {error.strerror}") from None
    return {
        "network": setting.network,
        "stem": setting.stem,
        "images": {key: getattr(setting.images, key) for key in ("side", "mean", "std")},
        "stage": stage,
        "precision": setting.precision,
        "data": fingerprint,
    }


def weights_file(setting: Setting) -> Path | None:
    """The file of the user's own weights, or None where the teacher is trained or its weights are published."""
    weights = setting.teacher.weights
    return root() / weights if weights is not None and weights.endswith(".safetensors") else None


def train_and_store(setting: Setting, data: ImageData, device: torch.device, name: str, described: dict) -> None:
    """Trains the teacher, or takes published weights, and stores it as the artifact `name` with its record.

    Where processes share the batches (`distributed.py`), each trains on its share and the first of them stores.
    """
    stage, images = setting.teacher, setting.images
    precision = models.choose_precision(setting.precision, device)
    checkpoint = store.Checkpoint(name)
    rank, processes = data.train.share
    if rank > 0:
        checkpoint.save = lambda *_: None

    def test_batches():
        return data.test.test_batches(images.mean, images.std)

    if (path := weights_file(setting)) is not None:
        network = models.build(setting.network, len(data.classes), setting.stem, images.side, stage.seed)
        network, curve = models.on_device(models.with_own_weights(network, path), device), []
    elif stage.weights is not None:
        network = models.on_device(models.published(setting.network, stage.weights, len(data.classes)), device)
        curve = []
    else:
        network = models.build(setting.network, len(data.classes), setting.stem, images.side, stage.seed)
        network = models.on_device(network, device)
        # All that fit does to the network itself holds for its wrapper, which only averages the gradients.
        shared = nn.parallel.DistributedDataParallel(network) if processes > 1 else network
        curve = fit(
            network,
            stage,
            batches=lambda epoch: data.train.train_batches(stage, images.mean, images.std, TEACHER, stage.seed, epoch),
            batch_loss=lambda epoch: lambda inputs, labels: F.cross_entropy(shared(inputs).float(), labels),
            test_batches=test_batches,
            device=device,
            precision=precision,
            checkpoint=checkpoint,
            label="teacher",
        )
    if rank > 0:
        return
    with store.new_artifact("teachers", name) as folder:
        save_file(as_stored(network), folder / "model.safetensors")
        top1, top5 = accuracy(loaded(setting, len(data.classes), device, folder), test_batches(), device, precision)
        tested = {"accuracy": {"top1": top1, "top5": top5}, "curve": curve}
        if processes > 1:
            tested["processes"] = processes
        store.finish(folder, described, checkpoint, device, precision, **tested)
    checkpoint.remove()


def as_stored(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with floats in fp16, but for BatchNorm's, whose variances need fp32's range."""
    exact = {
        f"{prefix}.{name}"
        for prefix, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for name in layer.state_dict()
    }
    return {
        name: (value.half() if value.is_floating_point() and name not in exact else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def loaded(setting: Setting, classes: int, device: torch.device, folder: Path) -> nn.Module:
    """The stored teacher in `folder`, in fp32 on `device`, in eval mode and without gradients."""
    network = models.build(setting.network, classes, setting.stem, setting.images.side, seed=0)
    state = load_file(folder / "model.safetensors")
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return models.on_device(network, device).eval().requires_grad_(False)


# ---------------------------------------------------------------------------- training, shared with students


def learning_rate(stage: Training, epoch: int) -> float:
    """The rate of `epoch` (from 0): linear from 1 % over the warm-up, then a cosine down to 0."""
    if epoch < stage.warmup_epochs:
        return stage.learning_rate * (0.01 + 0.99 * epoch / stage.warmup_epochs)
    done = (epoch - stage.warmup_epochs) / (stage.epochs - stage.warmup_epochs)
    return stage.learning_rate * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(network: nn.Module, stage: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; `decay_matrices_only` spares biases and BatchNorm the weight decay."""
    parameters = list(network.parameters())
    if stage.decay_matrices_only:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stage.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": parameters, "weight_decay": stage.weight_decay}]
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=stage.learning_rate)
    return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=stage.momentum)


def fit(
    network: nn.Module,
    stage: Training,
    batches: Callable,
    batch_loss: Callable,
    test_batches: Callable,
    device: torch.device,
    precision: torch.dtype,
    checkpoint: store.Checkpoint,
    label: str,
) -> list[dict]:
    """Trains `network` in place for `stage.epochs`, from the checkpoint where there is one.

    Args:
        batches: epoch -> iterator of (inputs, labels); all that is random in an epoch comes from its number,
            so a resumed run draws what an unbroken one draws.
        batch_loss: epoch -> function of (inputs, labels) that returns the mean loss of the batch.
        test_batches: () -> iterator of (inputs, labels), for the test every `stage.test_every` epochs and
            after the last.
        precision: of the forward pass; weights and optimiser stay in fp32.

    Returns: the curve, one dict per epoch: epoch (from 1), learning_rate, loss, and where tested top1, top5.
    """
    optimizer = make_optimizer(network, stage)
    curve, first = [], 0
    if (found := checkpoint.load(device)) is not None:
        tensors, state = found
        curve, first = state["curve"], len(state["curve"])
        unpack(tensors, network, optimizer)
    progress = tqdm(
        range(first, stage.epochs), desc=label, unit="epoch", initial=first, total=stage.epochs, file=sys.stdout
    )
    for epoch in progress:
        rate = learning_rate(stage, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss_of, losses = batch_loss(epoch), []
        network.train()
        for inputs, labels in batches(epoch):
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with models.autocast(device, precision):
                loss = loss_of(inputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        # The one read of an epoch: until here the host runs ahead of the device.
        entry = {"epoch": epoch + 1, "learning_rate": rate, "loss": torch.stack(losses).mean().item()}
        if (epoch + 1) % stage.test_every == 0 or epoch + 1 == stage.epochs:
            entry["top1"], entry["top5"] = accuracy(network, test_batches(), device, precision)
        curve.append(entry)
        watch.epoch(checkpoint.path.stem, entry)
        progress.set_postfix(loss=f"{entry['loss']:.3g}", refresh=False)
        if checkpoint.due() and epoch + 1 < stage.epochs:
            checkpoint.save(packed(network, optimizer), {"curve": curve})
    return curve


def packed(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of a network and its optimiser under flat names."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    return tensors


def unpack(tensors: dict[str, torch.Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts what `packed` returned back into a network and an optimiser of the same kind."""
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            # AdamW counts its steps on the CPU.
            state["state"].setdefault(int(index), {})[name] = value.cpu() if name == "step" else value
    optimizer.load_state_dict(state)


@torch.inference_mode()
def accuracy(network: nn.Module, batches, device: torch.device, precision: torch.dtype) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; the network is left in eval mode."""
    network.eval()
    hits, count = torch.zeros(2, device=device), 0
    for inputs, labels in batches:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with models.autocast(device, precision):
            logits = network(inputs)
        ranked = logits.float().topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        count += len(labels)
    top1, top5 = (100 * hits / count).tolist()
    return round(top1, 3), round(top5, 3)
