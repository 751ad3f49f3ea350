"""The training loop that teachers and students share, and their accuracy."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from dwa_core import devices, guard, seeds
from dwa_core.devices import Compute
from dwa_core.recipe import TeacherStage, Training


class Progress:
    """Callbacks of a running stage. This class saves nothing and starts from the beginning.

    dwa_paper's Checkpoint stores how far a stage is, and stops it where it has to stop.
    """

    def __init__(self, label: str):
        self.label = label  # of the progress bar

    def load(self, device: torch.device) -> tuple[dict[str, torch.Tensor], dict] | None:
        """What `save` was given last, the tensors on `device`; None where nothing is stored."""

    def due(self) -> bool:
        """Whether to call `save` now."""
        return False

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Stores all that the stage needs to continue from here; `state` is what JSON can hold."""

    def epoch(self, entry: dict) -> None:
        """An epoch of training is done; `entry` is its row of the curve."""

    def synthesised(self, index: int, losses: dict[str, list[float]], images_uint8: torch.Tensor) -> None:
        """The first class batch of an ipc index is done: its losses by name, and its images (NHWC)."""


@dataclass(frozen=True)
class Batches:
    """What a network is trained and tested on.

    train: epoch -> iterator of (inputs, labels) on the device; all that is random in an epoch is drawn here and comes
        from its number. A run that resumes within an epoch draws the batches that are done again, so that the rest
        are those of an unbroken run.
    test: () -> iterator of (inputs, labels).
    key: what the layers that draw random numbers (dropout, drop-connect) depend on, beside the epoch.
    """

    train: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    test: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    key: tuple[int, ...]


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
    batches: Batches,
    batch_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    compute: Compute,
    progress: Progress,
) -> list[dict]:
    """Trains `network` in place for `stage.epochs`, from where `progress` was saved last.

    Args:
        batch_loss: (inputs, labels) -> the mean loss of the batch; nothing in it may be drawn or read on the host.
        compute: how the forward pass runs; weights and optimiser stay in fp32.

    Returns: the curve, one dict per epoch: epoch (from 1), learning_rate, loss, and where tested top1, top5 in
        percent: every `stage.test_every` epochs and after the last.

    Raises:
        DivergedError: a loss is not finite.
        InputError: a batch does not fit into the GPU's memory.
    """
    device = compute.device
    optimizer = make_optimizer(network, stage)
    curve, losses, drawn, done = [], [], None, 0
    if (found := progress.load(device)) is not None:
        drawn, state = found
        curve, losses = state["curve"], list(drawn.pop("losses"))
        done = len(losses)
        unpack(drawn, network, optimizer)
    # Text to stdout, here and elsewhere, as a notebook shows it too. tqdm.auto would make a widget of it, which
    # papermill's log leaves out altogether, and which stays at 0 % in the executed notebook.
    shown = {"desc": progress.label, "unit": "epoch", "initial": len(curve), "total": stage.epochs, "file": sys.stdout}
    bar = tqdm(range(len(curve), stage.epochs), **shown)
    latest = torch.zeros((), device=device)

    def backward(compute: Compute, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = devices.run(compute, batch_loss, inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        return loss

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        loss = backward(compute, inputs, labels)
        optimizer.step()
        latest.copy_(loss.detach())

    # What processes tell each other in a step is no part of a CUDA graph, and they cannot try a smaller batch alone.
    alone = not (dist.is_available() and dist.is_initialized())
    step_fast = devices.Graphed(step, device) if alone else step
    key = f"{'teacher' if isinstance(stage, TeacherStage) else 'relabel'}.batch_size"

    def guarded_step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        try:
            step_fast(inputs, labels)
        except RuntimeError as error:
            guard.raise_unless_out_of_memory(error)
            eager = compute._replace(compile=False)  # each size would be compiled
            attempt = (lambda size: backward(eager, inputs[:size], labels[:size])) if alone else None
            raise guard.make_too_large_error(key, len(inputs) if alone else stage.batch_size, attempt) from None

    for epoch in bar:
        rate = learning_rate(stage, epoch)
        for group in optimizer.param_groups:
            set_rate(group, rate)
        network.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seeds.key_to_seed(seeds.LAYERS, *batches.key, epoch))
            if drawn is not None:
                restore_random_state(drawn, device)
                drawn = None
            for number, (inputs, labels) in enumerate(batches.train(epoch)):
                if number < done:
                    continue
                guarded_step(inputs, labels)
                losses.append(latest.clone())
                if progress.due():
                    guard.check_training(progress.label, stage, epoch, torch.stack(losses))
                    tensors = pack(network, optimizer) | get_random_state(device) | {"losses": torch.stack(losses)}
                    progress.save(tensors, {"curve": curve})
        # The first read of an epoch: until here the host runs ahead of the device.
        guard.check_training(progress.label, stage, epoch, torch.stack(losses))
        entry = {"epoch": epoch + 1, "learning_rate": rate, "loss": torch.stack(losses).mean().item()}
        if (epoch + 1) % stage.test_every == 0 or epoch + 1 == stage.epochs:
            entry["top1"], entry["top5"] = accuracy(network, batches.test(), compute)
        curve.append(entry)
        progress.epoch(entry)
        bar.set_postfix(loss=f"{entry['loss']:.3g}", refresh=False)
        losses, done = [], 0
    return curve


def pack(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of a network and its optimiser under flat names."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    return tensors


def unpack(tensors: dict[str, torch.Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts what `pack` returned back into a network and an optimiser of the same kind."""
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


def get_random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the generators that networks draw from, on the host and on `device`."""
    states = {"random.cpu": torch.get_rng_state()}
    return states | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `get_random_state` returned."""
    torch.set_rng_state(tensors["random.cpu"].cpu())
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"].cpu(), device)


@torch.inference_mode()
def accuracy(network: nn.Module, batches, compute: Compute) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; the network is left in eval mode.

    Where a GPU's memory does not hold a batch at once, it is tested in halves: in eval mode, each image is by itself.
    """
    network.eval()

    def score(inputs: torch.Tensor) -> torch.Tensor:
        try:
            return network(inputs).float()
        except RuntimeError as error:
            guard.raise_unless_out_of_memory(error)
            if len(inputs) == 1:
                raise
        return torch.cat([score(half) for half in inputs.chunk(2)])

    hits, count = torch.zeros(2, device=compute.device), 0
    for inputs, labels in batches:
        with compute.autocast():
            logits = score(inputs)
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        count += len(labels)
    top1, top5 = (100 * hits / count).tolist()
    return round(top1, 3), round(top5, 3)
