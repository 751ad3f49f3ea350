"""The teacher (SRe2L's squeeze stage) as an artifact: trained or taken from published weights, stored, loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from dwa_core import devices, guard, models, weights
from dwa_core.devices import Compute
from dwa_core.errors import InputError
from dwa_core.recipe import Training
from dwa_core.seeds import TEACHER
from dwa_core.training import Batches, accuracy, fit
from dwa_paper.runs import stop, store
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.runs.real import ImageData
from dwa_paper.runs.records import is_at_chance
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting, non_default


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
    stage = non_default(setting.teacher)
    if setting.teacher.own_weights():
        path = root() / setting.teacher.weights
        try:
            stage["weights"] = store.checksum(path)
        except (OSError, ValueError) as error:  # the latter of what can be no name
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"teacher.weights: {path} cannot be read; {reason}") from None
    described = {"network": setting.network, "stem": setting.stem, "stage": stage, "precision": setting.precision}
    described |= {"images": setting.images.model_dump(include={"side", "mean", "std"}), "data": data_fingerprint}
    described |= setting.model_dump(include={"deterministic", "compile"}, exclude_defaults=True)
    return f"{setting.dataset}-{setting.network}-{store.digest(described)}", described


def load_or_train(setting: Setting, data: ImageData, compute: Compute) -> Teacher:
    """The teacher of `setting`: the stored one, or one trained on `data.train`, stored, and loaded again.

    Weights are stored in fp16, BatchNorm in fp32; the accuracy in the record is that of the stored weights.
    """
    name, described = describe(setting, data.fingerprint)
    folder = store.once("teachers", name, lambda: train_and_store(setting, data, compute, name, described))
    network = load(setting, len(data.classes), compute.device, folder)
    record = store.read_json(folder / "record.json")
    if is_at_chance(record["accuracy"]["top1"], len(data.classes), len(data.test)):
        rate, size = setting.teacher.learning_rate, setting.teacher.batch_size
        numbers = f"teacher.epochs {setting.teacher.epochs}, learning_rate {rate:g}, batch_size {size}"
        print(f"warning: the teacher guesses: {record['accuracy']['top1']:.1f} % of the test images; change {numbers}")
    return Teacher(name, network, record)


def train_and_store(setting: Setting, data: ImageData, compute: Compute, name: str, described: dict) -> None:
    """Trains the teacher, or takes the weights that it names, and stores it as the artifact `name` with its record.

    Where processes share the batches (`tools/distributed.py`), each trains on its share and the first of them stores.
    """
    stage, images, classes = setting.teacher, setting.images, len(data.classes)
    rank, processes = data.train.share
    checkpoint, curve = Checkpoint(name, "teacher", written=rank == 0), []
    if stage.published_weights():
        seed = stage.seed if stage.fine_tune else None
        network = weights.load_published(setting.network, stage.weights, classes, seed)
    else:
        network = models.build(setting.network, classes, setting.stem, images.side, stage.seed)
    if stage.own_weights():
        network = weights.load_own(network, root() / stage.weights, classes if stage.fine_tune else None)
    network = devices.move_to_device(network, compute.device)
    batches = Batches(
        train=lambda epoch: data.train.train_batches(stage, images.mean, images.std, TEACHER, stage.seed, epoch),
        test=lambda: data.test.test_batches(images.mean, images.std),
        key=(TEACHER, stage.seed),
    )
    if stage.is_trained():
        note_large_batch("teacher", stage, len(data.train))
        # All that fit does to the network itself holds for its wrapper, which only averages the gradients.
        shared = nn.parallel.DistributedDataParallel(network) if processes > 1 else network

        def batch_loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(shared(inputs).float(), labels)

        curve = fit(network, stage, batches, batch_loss, compute, checkpoint)
    if rank > 0:
        stop.restore_handlers()
        return
    with store.create_artifact("teachers", name) as folder:
        stored = convert_to_stored(network)
        guard.check_weights("teacher", stored, f"try a teacher.learning_rate below {stage.learning_rate:g}")
        save_file(stored, folder / "model.safetensors")
        top1, top5 = accuracy(load(setting, classes, compute.device, folder), batches.test(), compute)
        tested = {"accuracy": {"top1": top1, "top5": top5}, "curve": curve}
        if processes > 1:
            tested["processes"] = processes
        store.seal(folder, described, seconds=checkpoint.seconds(), **tested, **store.collect_provenance(compute))
    checkpoint.remove()


def note_large_batch(key: str, stage: Training, images: int) -> None:
    """Prints what training in batches of `stage` does where there are fewer images."""
    if stage.batch_size > images:
        print(f"{key}.batch_size {stage.batch_size} is more than the {images} images: each epoch is one step, on all")


def convert_to_stored(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with floats in fp16, except BatchNorm's, whose variances need fp32's range."""
    exact = {name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    stored = {}
    for name, value in network.state_dict().items():
        halved = value.is_floating_point() and name.rpartition(".")[0] not in exact
        stored[name] = (value.half() if halved else value).cpu().contiguous()
    return stored


def load(setting: Setting, classes: int, device: torch.device, folder: Path) -> nn.Module:
    """The stored teacher in `folder`, in fp32 on `device`, in eval mode and without gradients."""
    network = models.build(setting.network, classes, setting.stem, setting.images.side, seed=0)
    state = load_file(folder / "model.safetensors")
    guard.check_weights(f"{folder}", state, "delete it, so that it is made again")
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return devices.move_to_device(network, device).eval().requires_grad_(False)
