"""The teacher (SRe2L's squeeze stage), and the training loop that students share."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from dwa_core import augment, devices, guard, models, stop, store, watch
from dwa_core.augment import LAYERS, TEACHER
from dwa_core.data import ImageData
from dwa_core.settings import InputError, Setting, Training, changed, root


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode without gradients, the name of its artifact, and that artifact's record."""

    artifact: str
    network: nn.Module
    record: dict


def describe(setting: Setting, data_fingerprint: str) -> tuple[str, dict]:
    """The name of the teacher's artifact, and what determines it: settings that agree in this share one teacher.

    Raises:
        InputError: the file of the user's own weights cannot be read.
    """
    stage = changed(setting.teacher)
    if (path := weights_file(setting)) is not None:
        try:
            stage["weights"] = store.checksum(path)
        except OSError as error:
            raise InputError(f"teacher.weights: {path} cannot be read; {error.strerror}") from None
    described = {
        "network": setting.network,
        "stem": setting.stem,
        "images": {key: getattr(setting.images, key) for key in ("side", "mean", "std")},
        "stage": stage,
        "precision": setting.precision,
        "data": data_fingerprint,
        **({"deterministic": True} if setting.deterministic else {}),
    }
    return f"{setting.dataset}-{setting.network}-{store.digest(described)}", described


def weights_file(setting: Setting) -> Path | None:
    """The file of the user's own weights, or None where the teacher is trained or its weights are published."""
    return root() / setting.teacher.weights if setting.teacher.own_weights() else None


def train_or_load(setting: Setting, data: ImageData, device: torch.device) -> Teacher:
    """The teacher of `setting`: the stored one, or one trained on `data.train`, stored, and loaded again.

    Weights are stored in fp16, BatchNorm in fp32; the accuracy in the record is that of the stored weights.
    """
    name, described = describe(setting, data.fingerprint)
    with store.lock("teachers", name):
        folder = store.find("teachers", name)
        if folder is None:
            train_and_store(setting, data, device, name, described)
            folder = store.find("teachers", name)
    return Teacher(name, loaded(setting, len(data.classes), device, folder), store.read_json(folder / "record.json"))


def train_and_store(setting: Setting, data: ImageData, device: torch.device, name: str, described: dict) -> None:
    """Trains the teacher, or takes published weights, and stores it as the artifact `name` with its record.

    Where processes share the batches (`distributed.py`), each trains on its share and the first of them stores.
    """
    stage, images = setting.teacher, setting.images
    precision = devices.choose_precision(setting.precision, device)
    rank, processes = data.train.share
    checkpoint = store.Checkpoint(name, written=rank == 0)

    def test_batches():
        return data.test.test_batches(images.mean, images.std)

    if (path := weights_file(setting)) is not None:
        network = models.build(setting.network, len(data.classes), setting.stem, images.side, stage.seed)
        network, curve = devices.on_device(models.with_own_weights(network, path), device), []
    elif stage.weights is not None:
        network = devices.on_device(models.published(setting.network, stage.weights, len(data.classes)), device)
        curve = []
    else:
        network = models.build(setting.network, len(data.classes), setting.stem, images.side, stage.seed)
        network = devices.on_device(network, device)
        # All that fit does to the network itself holds for its wrapper, which only averages the gradients.
        shared = nn.parallel.DistributedDataParallel(network) if processes > 1 else network
        with memory_for("teacher", stage, network, images.side, device, precision, processes):
            curve = fit(
                network,
                stage,
                batches=lambda epoch: data.train.train_batches(
                    stage, images.mean, images.std, TEACHER, stage.seed, epoch
                ),
                batch_loss=lambda inputs, labels: F.cross_entropy(shared(inputs).float(), labels),
                test_batches=test_batches,
                device=device,
                precision=precision,
                checkpoint=checkpoint,
                label="teacher",
                key=(TEACHER, stage.seed),
            )
    if rank > 0:
        stop.unlisten()
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
    return devices.on_device(network, device).eval().requires_grad_(False)


# ---------------------------------------------------------------------------- training, shared with students


def learning_rate(stage: Training, epoch: int) -> float:
    """The rate of `epoch` (from 0): linear from 1 % over the warm-up, then a cosine down to 0, or constant.

    A `cosine_stretch` of more than 1 is the smoothed cosine of Shao et al., "Elucidating the Design Space of Dataset
    Condensation", NeurIPS 2024.
    """
    if epoch < stage.warmup_epochs:
        return stage.learning_rate * (0.01 + 0.99 * epoch / stage.warmup_epochs)
    if stage.schedule == "constant":
        return stage.learning_rate
    done = (epoch - stage.warmup_epochs) / (stage.epochs - stage.warmup_epochs)
    return stage.learning_rate * (1 + math.cos(math.pi * done / stage.cosine_stretch)) / 2


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
    options = {"lr": stage.learning_rate}
    if parameters[0].device.type == "cuda":
        # A CUDA graph reads its learning rate from the device, and steps all parameters in one kernel.
        options = {"lr": torch.tensor(stage.learning_rate, device=parameters[0].device), "fused": True}
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options, capturable="fused" in options)
    return torch.optim.SGD(groups, **options, momentum=stage.momentum)


def set_rate(group: dict, rate: float) -> None:
    """Sets the learning rate of an optimiser's parameter group, in place where a CUDA graph reads it."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


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
    key: tuple[int, ...],
) -> list[dict]:
    """Trains `network` in place for `stage.epochs`, from the checkpoint where there is one.

    Args:
        batches: epoch -> iterator of (inputs, labels) on `device`; all that is random in an epoch is drawn here and
            comes from its number. A run that resumes within an epoch draws the batches that are done again, so that
            the rest are those of an unbroken run.
        batch_loss: (inputs, labels) -> the mean loss of the batch; nothing in it may be drawn or read on the host.
        test_batches: () -> iterator of (inputs, labels), for the test every `stage.test_every` epochs and
            after the last.
        precision: of the forward pass; weights and optimiser stay in fp32.
        key: what the layers that draw random numbers (dropout, drop-connect) depend on, beside the epoch.

    Returns: the curve, one dict per epoch: epoch (from 1), learning_rate, loss, and where tested top1, top5.
    """
    optimizer = make_optimizer(network, stage)
    curve, losses, drawn, done = [], [], None, 0
    if (found := checkpoint.load(device)) is not None:
        tensors, state = found
        curve, losses = state["curve"], list(tensors.pop("losses"))
        drawn, done = tensors, len(losses)
        unpack(tensors, network, optimizer)
    # Text to stdout, here and elsewhere, as a notebook shows it too. tqdm.auto would make a widget of it, which
    # papermill's log leaves out altogether, and which stands at 0 % in the executed notebook.
    progress = tqdm(
        range(len(curve), stage.epochs),
        desc=label,
        unit="epoch",
        initial=len(curve),
        total=stage.epochs,
        file=sys.stdout,
    )
    latest = torch.zeros((), device=device)

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        with devices.autocast(device, precision):
            loss = batch_loss(inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        latest.copy_(loss.detach())

    # What processes tell each other in a step is no part of a CUDA graph.
    step_fast = step if dist.is_available() and dist.is_initialized() else devices.Graphed(step, device)
    for epoch in progress:
        rate = learning_rate(stage, epoch)
        for group in optimizer.param_groups:
            set_rate(group, rate)
        network.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(augment.key_to_seed(LAYERS, *key, epoch))
            if drawn is not None:
                restore_random_state(drawn, device)
                drawn = None
            for batch, (inputs, labels) in enumerate(batches(epoch)):
                if batch < done:
                    continue
                step_fast(inputs, labels)
                losses.append(latest.clone())
                if checkpoint.due():
                    guard.check_training(label, stage, epoch, torch.stack(losses))
                    tensors = packed(network, optimizer) | random_state(device) | {"losses": torch.stack(losses)}
                    checkpoint.save(tensors, {"curve": curve})
        # The first read of an epoch: until here the host runs ahead of the device.
        guard.check_training(label, stage, epoch, torch.stack(losses))
        entry = {"epoch": epoch + 1, "learning_rate": rate, "loss": torch.stack(losses).mean().item()}
        if (epoch + 1) % stage.test_every == 0 or epoch + 1 == stage.epochs:
            entry["top1"], entry["top5"] = accuracy(network, test_batches(), device, precision)
        curve.append(entry)
        if checkpoint.written:
            watch.epoch(checkpoint.path.stem, entry)
        progress.set_postfix(loss=f"{entry['loss']:.3g}", refresh=False)
        losses, done = [], 0
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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            # Steps are counted on the CPU; an optimiser that a CUDA graph calls moves them to the GPU itself. The
            # others lie in memory as their parameter does: a fast optimiser step wants that.
            value = value.cpu() if name == "step" else torch.empty_like(parameters[int(index)]).copy_(value)
            state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the generators that networks draw from, on the host and on `device`."""
    states = {"random.cpu": torch.get_rng_state()}
    return states | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `random_state` returned."""
    torch.set_rng_state(tensors["random.cpu"].cpu())
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"].cpu(), device)


def memory_for(
    key: str,
    stage: Training,
    network: nn.Module,
    side: int,
    device: torch.device,
    precision: torch.dtype,
    processes: int = 1,
):
    """Context for `fit`: what it does not have GPU memory for ends with the batch size that would fit.

    Args:
        processes: how many share each batch, with a GPU each.
    """

    def attempt(size: int) -> None:
        own = -(-size // processes)
        images = torch.zeros(own, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        with devices.autocast(device, precision):
            outputs = network.train()(images)
        outputs.float().sum().backward()

    return guard.enough_memory(f"{key}.batch_size", stage.batch_size, attempt)


@torch.inference_mode()
def accuracy(network: nn.Module, batches, device: torch.device, precision: torch.dtype) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; the network is left in eval mode."""
    network.eval()
    hits, count = torch.zeros(2, device=device), 0
    for inputs, labels in batches:
        with devices.autocast(device, precision):
            logits = network(inputs)
        ranked = logits.float().topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        count += len(labels)
    top1, top5 = (100 * hits / count).tolist()
    return round(top1, 3), round(top5, 3)
