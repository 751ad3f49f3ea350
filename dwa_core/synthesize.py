"""Synthesis (SRe2L's recover stage): images optimised against a teacher whose weights were adjusted."""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from dwa_core import augment, devices, distilled, external, guard, initialise, stop, store, watch
from dwa_core.adjust import adjust_weights
from dwa_core.augment import DIRECTION, INITIAL_NOISE
from dwa_core.batchnorm import BatchNormTerms, match_statistics
from dwa_core.data import ImageData
from dwa_core.distilled import DistilledSet
from dwa_core.settings import Setting, SynthesisStage
from dwa_core.teacher import Teacher

ADAM = {"betas": (0.5, 0.9), "eps": 1e-8}
GPU_IMAGES = 100  # in flight at once, unless one batch alone has more


# --------------------------------------------------------------------------------- image optimisation


class ImageOptimisation:
    """One batch of images on its way, by gradient steps of Adam, from its initial to its distilled images.

    Minimises cross-entropy plus r_bn times the BatchNorm terms under the frozen, adjusted `network`. All that
    changes lies in tensors on the device, so that `step` can be replayed as a CUDA graph.

    Args:
        network: adjusted, in eval mode, without parameter gradients; its BatchNorm layers are replaced.
        images: (N, 3, H, W) initial images, normalised with `mean` and `std`; not changed.
        labels: (N,) class indices.
        views: the augmentation of each iteration (`augment.draw_views`); their number is that of the iterations.
        precision: of the network's forward and backward pass; the loss and the images keep the type of `images`.
        image_gradient: added to the gradient of the first update (the authors' switch).
        usual_terms: (layers,), the BatchNorm terms that exploding ones are measured by.
    """

    def __init__(
        self,
        network: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        views: torch.Tensor,
        stage: SynthesisStage,
        mean: list[float],
        std: list[float],
        precision: torch.dtype,
        image_gradient: torch.Tensor | None = None,
        usual_terms: torch.Tensor | None = None,
    ):
        self.labels, self.stage, self.precision, self.device = labels, stage, precision, images.device
        self.network = devices.cast_weights(network, precision)
        self.terms_of = BatchNormTerms(match_statistics(network), stage.r_var)
        self.usual_terms = self.terms_of.of_zero_statistics() if usual_terms is None else usual_terms
        self.black, self.white = (augment.normalise(torch.full_like(images[:1], v), mean, std) for v in (0.0, 1.0))
        self.views = views.to(images)
        turns = torch.arange(len(views), dtype=torch.float64) * (math.pi / len(views))
        self.rates = (stage.learning_rate * (1 + turns.cos()) / 2).to(images)
        self.images = images.clone().requires_grad_(True)
        on_cuda = images.device.type == "cuda"
        self.optimizer = torch.optim.Adam([self.images], lr=self.rates[0].clone(), capturable=on_cuda, **ADAM)
        # What Adam would make at its first step; made here because a checkpoint may come first.
        self.optimizer.state[self.images] = {
            "step": torch.zeros((), device=images.device if on_cuda else None),
            "exp_avg": torch.zeros_like(images),
            "exp_avg_sq": torch.zeros_like(images),
        }
        self.added_gradient = torch.zeros_like(images) if image_gradient is None else image_gradient.clone()
        self.iteration = torch.zeros(1, dtype=torch.long, device=images.device)
        self.losses = images.new_zeros(len(views), 4)
        self.terms = None

    def step(self) -> None:
        """One iteration; `losses` gets its cross-entropy, sum of BatchNorm terms, total, and learning rate."""
        rate = self.rates.index_select(0, self.iteration).squeeze(0)
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        seen = augment.apply_view(self.images, self.views.index_select(0, self.iteration).squeeze(0))
        with devices.autocast(self.device, self.precision):
            logits = self.network(seen)
        cross_entropy = F.cross_entropy(logits.to(seen.dtype), self.labels)
        self.terms = self.terms_of()
        loss = cross_entropy + self.stage.r_bn * self.terms.sum()
        (gradient,) = torch.autograd.grad(loss, self.images)
        self.images.grad = gradient.add_(self.added_gradient)
        self.added_gradient.zero_()  # it was for the first update alone
        self.optimizer.step()
        with torch.no_grad():
            self.images.copy_(torch.maximum(torch.minimum(self.images, self.white), self.black))
            losses = torch.stack([cross_entropy, self.terms.sum(), loss, rate])
            self.losses.index_copy_(0, self.iteration, losses[None])
            self.iteration += 1

    def check(self) -> None:
        """Raises guard.DivergedError if the numbers have gone wrong; makes the host wait for the device."""
        losses = self.losses[: int(self.iteration)]
        guard.check_synthesis(self.stage, losses, self.terms, self.usual_terms, self.images, self.black, self.white)

    def release(self) -> None:
        """Lets go of the activations that the statistics of a broken-off iteration keep for their backward pass."""
        self.terms = None
        for layer in self.terms_of.layers:
            layer.mean = layer.variance = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint must hold beside what the setting determines; `copy_` into them to go on."""
        state = self.optimizer.state[self.images]
        kept = {name: getattr(self, name) for name in ("images", "added_gradient", "iteration", "losses")}
        return {name: tensor.detach() for name, tensor in {**kept, **state}.items()}


@torch.no_grad()
def terms_before_adjustment(teacher: nn.Module, images: torch.Tensor, view: torch.Tensor, r_var: float) -> torch.Tensor:
    """(layers,): the BatchNorm terms of the initial images, or of statistics of zero where those are larger.

    A teacher of few epochs has running statistics that are far from those of any images.
    """
    twin = devices.frozen_copy(teacher)
    terms_of = BatchNormTerms(match_statistics(twin), r_var)
    twin(augment.apply_view(images, view))
    return torch.maximum(terms_of(), terms_of.of_zero_statistics())


def optimise(
    batches: list[ImageOptimisation],
    due: Callable[[], bool] = lambda: False,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Runs all iterations of `batches`, which stand at the same one, side by side on a GPU.

    After an iteration at which `due()` is true, `save()` is called with all batches at the same iteration again.

    Raises:
        DivergedError: the numbers of a batch have gone wrong; they are looked at every guard.CHECK_EVERY iterations.
    """
    steps = [devices.Graphed(batch.step, batch.device) for batch in batches]
    iterations = len(batches[0].views)
    for iteration in range(int(batches[0].iteration), iterations):
        try:
            for step in steps:
                step()
        except torch.OutOfMemoryError:
            for batch in batches:
                batch.release()
            raise
        is_due = due()
        if is_due or (iteration + 1) % guard.CHECK_EVERY == 0 or iteration + 1 == iterations:
            for step, batch in zip(steps, batches, strict=True):
                step.join()
                batch.check()
        if is_due:
            save()


def synthesize(
    setting: Setting,
    data: ImageData,
    teacher: nn.Module,
    device: torch.device,
    checkpoint: store.Checkpoint,
    indices: range | None = None,
) -> tuple[torch.Tensor, list]:
    """All images of a distilled set, from the checkpoint where there is one.

    One class batch of one ipc index after the other; on a GPU several at once, if one alone would not fill it.

    Args:
        indices: the ipc indices to be made, where not all of them.

    Returns: bytes (indices * classes, side, side, 3), ordered by ipc index and then class, and the losses of the
        first class batch, a list of [cross-entropy, BatchNorm terms, total, learning rate].
    """
    indices = indices or range(setting.ipc)
    stage, images = setting.synthesis, setting.images
    classes, side = len(data.classes), images.side
    done, losses_of_first, unfinished = torch.empty(0, side, side, 3, dtype=torch.uint8), [], []
    if (found := checkpoint.load(device)) is not None:
        done, unfinished, losses_of_first = found[0]["done"].cpu(), unflattened(found[0]), found[1]["losses"]
    at_once = max(1, GPU_IMAGES // min(stage.classes_per_batch, classes)) if device.type == "cuda" else 1
    chosen = initialise.initial_indices(setting, data, teacher)
    prepared = prepare(setting, data, teacher, device, chosen, indices, skip=len(done))

    def attempt(size: int) -> None:
        zeros = torch.zeros(size, 3, side, side, device=device)
        labels = torch.zeros(size, dtype=torch.long, device=device)
        whole = augment.whole_views(torch.zeros(1, 2), side)[0]
        adjust_weights(devices.frozen_copy(teacher), zeros, labels, whole, stage.adjustment, stage.rho, 1)
        twin = devices.frozen_copy(teacher)
        terms = BatchNormTerms(match_statistics(twin), stage.r_var)
        zeros.requires_grad_(True)
        with devices.autocast(device, devices.choose_precision(setting.precision, device)):
            logits = twin(zeros)
        torch.autograd.grad(logits.sum() + terms().sum(), zeros)

    progress = tqdm(desc="synthesis", unit="image", total=len(indices) * classes, initial=len(done), file=sys.stdout)
    while len(done) < len(indices) * classes:
        with guard.enough_memory("synthesis.classes_per_batch", min(stage.classes_per_batch, classes), attempt):
            batches = list(itertools.islice(prepared, len(unfinished) or at_once))
            for batch, tensors in zip(batches, unfinished, strict=False):
                for name, tensor in batch.tensors().items():
                    tensor.copy_(tensors[name])
            unfinished = []
            save = functools.partial(save_progress, checkpoint, done, batches, losses_of_first)
            optimise(batches, checkpoint.due, save)
        losses_of_first = losses_of_first or batches[0].losses.tolist()
        for batch in batches:
            pixels = augment.denormalise_to_uint8(
                batch.images.detach(), images.mean, images.distilled_std, rounded=stage.storage == "png"
            ).cpu()
            if len(done) % classes == 0:
                watch.synthesised(checkpoint.path.stem, indices[len(done) // classes], batch.losses, pixels)
            done = torch.cat([done, pixels])
        progress.update(len(done) - progress.n)
    progress.close()
    return done, losses_of_first


def save_progress(checkpoint: store.Checkpoint, done: torch.Tensor, batches: list[ImageOptimisation], losses) -> None:
    """A checkpoint of the images that are done, of the batches on their way, and of the losses of the first batch."""
    tensors = {f"{n}.{key}": value for n, batch in enumerate(batches) for key, value in batch.tensors().items()}
    checkpoint.save({"done": done, **tensors}, {"losses": losses})


def unflattened(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors of each batch that was on its way when `save_progress` wrote them all."""
    batches = {}
    for name, tensor in tensors.items():
        if name != "done":
            number, key = name.split(".")
            batches.setdefault(int(number), {})[key] = tensor
    return [batches[number] for number in sorted(batches)]


def prepare(
    setting: Setting,
    data: ImageData,
    teacher: nn.Module,
    device: torch.device,
    chosen: torch.Tensor | None,
    indices: range,
    skip: int,
) -> Iterator[ImageOptimisation]:
    """Every batch of the ipc indices `indices`, in order, before its first iteration: images drawn, weights adjusted.

    Args:
        chosen: indices (ipc, classes) of the real images to start from; None starts from noise.
        skip: how many images are done already; weights that are kept between class batches are adjusted for
            those all the same.
    """
    stage, images = setting.synthesis, setting.images
    classes, side = len(data.classes), images.side
    precision = devices.choose_precision(setting.precision, device)
    for number, index in enumerate(indices):
        if (number + 1) * classes <= skip:
            continue
        network = devices.frozen_copy(teacher)
        for start in range(0, classes, stage.classes_per_batch):
            is_done = number * classes + start < skip
            if stage.weights_between_class_batches == "restored":
                if is_done:
                    continue
                network = devices.frozen_copy(teacher)
            labels = torch.arange(start, min(start + stage.classes_per_batch, classes), device=device)
            key = (stage.seed, index, start)
            if chosen is not None:
                pixels = data.train.pictures(chosen[index, labels.cpu()])
                initial = augment.normalise(augment.to_unit_range(pixels), images.mean, images.distilled_std)
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
            if not is_done:
                usual = terms_before_adjustment(teacher, initial, views[0], stage.r_var)
                twin = devices.frozen_copy(network)
                yield ImageOptimisation(
                    twin,
                    initial,
                    labels,
                    views,
                    stage,
                    images.mean,
                    images.distilled_std,
                    precision,
                    image_gradient,
                    usual,
                )


# ----------------------------------------------------------------------------------- the set, made and stored


def synthesize_or_load(setting: Setting, data: ImageData, teacher: Teacher, device: torch.device) -> DistilledSet:
    """The distilled set of `setting`: the stored one, or one made and stored now.

    "random-real" takes the real images from which synthesis with the same seed would start, as they are;
    "external" takes those of the folder `setting.distilled`.
    """
    name, described = distilled.describe(setting, data.fingerprint, teacher.artifact)
    with store.lock("distilled", name):
        folder = store.find("distilled", name)
        if folder is None:
            synthesize_and_store(setting, data, teacher, device, name, described)
            folder = store.find("distilled", name)
    return distilled.read_parquet(folder)


def synthesize_part(setting: Setting, data: ImageData, teacher: Teacher, device: torch.device, indices: range) -> None:
    """Makes the ipc indices `indices` of a set and leaves them as a checkpoint, for `synthesize_or_load` to join.

    Each ipc index starts from the teacher's own weights, so parts can be made side by side on several machines.
    """
    name, _ = distilled.describe(setting, data.fingerprint, teacher.artifact)
    if store.find("distilled", name) is None:
        checkpoint = store.Checkpoint(f"{name}.part-{indices.start:05d}-{indices.stop:05d}")
        made, losses = synthesize(setting, data, teacher.network, device, checkpoint, indices)
        checkpoint.save({"done": made}, {"losses": losses})
        stop.unlisten()


def join_parts(name: str, classes: int, checkpoint: store.Checkpoint) -> list[store.Checkpoint]:
    """Makes `checkpoint` of the finished parts of the set `name` from ipc index 0 on; returns the parts.

    A checkpoint that has as many images already stays.
    """
    parts, done, losses, seconds = [], [], [], 0.0
    for path in sorted(checkpoint.path.parent.glob(f"{name}.part-*.safetensors")):
        part = store.Checkpoint(path.stem)
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


def synthesize_and_store(
    setting: Setting, data: ImageData, teacher: Teacher, device: torch.device, name: str, described: dict
) -> None:
    """Makes the distilled set, or takes real images or those made elsewhere, and stores it as the artifact `name`."""
    stage, losses = setting.synthesis, []
    checkpoint = store.Checkpoint(name)
    parts = join_parts(name, len(data.classes), checkpoint)
    if setting.method == "random-real":
        chosen = initialise.draw_real(data.train, len(data.classes), setting.ipc, stage.seed)
        pictures = data.train.pictures(chosen.flatten()).cpu()
    elif setting.method == "external":
        folder = distilled.made_elsewhere(setting)
        pictures = external.read_external(folder, data.name, data.classes, setting.ipc, setting.images.side)
    else:
        pictures, losses = synthesize(setting, data, teacher.network, device, checkpoint)
    with store.new_artifact("distilled", name) as folder:
        distilled.write_parquet(pictures, data.classes, folder / distilled.PARQUET, stage.storage)
        (folder / "README.md").write_text(distilled.dataset_card(setting, name))
        precision = devices.choose_precision(setting.precision, device)
        store.finish(folder, described, checkpoint, device, precision, losses_first_batch=losses)
    for unfinished in (checkpoint, *parts):
        unfinished.remove()
