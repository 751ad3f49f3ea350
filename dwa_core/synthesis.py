"""Synthesis (SRe2L's recover stage): images optimised against a teacher whose weights were adjusted."""

import functools
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from dwa_core import augment, devices, guard, initialise, seeds
from dwa_core.adjust import adjust_directed, adjust_random
from dwa_core.batches import Resident, Streamed
from dwa_core.batchnorm import BatchNormTerms, match_statistics, measure_reference
from dwa_core.devices import Compute
from dwa_core.recipe import Images, Recipe, SynthesisStage
from dwa_core.training import Progress

ADAM = {"betas": (0.5, 0.9), "eps": 1e-8}
LOSSES = ("cross_entropy", "batchnorm_terms", "total", "learning_rate")  # of an iteration
GPU_IMAGES = 100  # in flight at once, unless one batch alone has more


@dataclass(frozen=True)
class ClassBatch:
    """A batch of images, one of each of some classes, before its first iteration.

    images: (N, 3, H, W), normalised.
    labels: (N,) class indices.
    views: the augmentation of each iteration (`augment.draw_views`); their number is that of the iterations.
    image_gradient: added to the gradient of the first update (authors' code).
    reference_terms: (layers,), the BatchNorm terms that exploding ones are measured by.
    """

    images: torch.Tensor
    labels: torch.Tensor
    views: torch.Tensor
    image_gradient: torch.Tensor | None = None
    reference_terms: torch.Tensor | None = None


class ImageOptimisation:
    """A batch of images from its first to its last iteration, by gradient steps of Adam.

    Minimises cross-entropy plus r_bn times the BatchNorm terms under the frozen, adjusted `network`. All that
    changes lies in tensors on the device, so that `step` can be replayed as a CUDA graph.

    Args:
        network: adjusted, in eval mode, without parameter gradients; its BatchNorm layers are replaced.
        normalisation: mean and standard deviation of the images, which bound what a pixel can be.
        compute: how the network runs; the loss and the images keep the type of the images.
    """

    def __init__(
        self, network: nn.Module, batch: ClassBatch, stage: SynthesisStage, normalisation: Images, compute: Compute
    ):
        images, count = batch.images, len(batch.views)
        self.labels, self.stage, self.compute = batch.labels, stage, compute
        self.network = devices.cast_weights(network, compute.precision)
        self.terms_of = BatchNormTerms(match_statistics(network), stage.r_var)
        # Summed over all iterations for the next class batch, where the authors' code adds them to its adjustment.
        self.weights = list(network.parameters()) if stage.sums_weight_gradients() else []
        self.weight_gradients = [torch.zeros_like(w.requires_grad_(True), dtype=images.dtype) for w in self.weights]
        given = batch.reference_terms
        self.reference_terms = self.terms_of.reference_terms() if given is None else given
        mean, std = normalisation.mean, normalisation.distilled_std
        self.black, self.white = (augment.normalise(torch.full_like(images[:1], v), mean, std) for v in (0.0, 1.0))
        self.views = batch.views.to(images)
        turns = torch.arange(count, dtype=torch.float64) * (math.pi / count)
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
        gradient = batch.image_gradient
        self.added_gradient = torch.zeros_like(images) if gradient is None else gradient.clone()
        self.iteration = torch.zeros(1, dtype=torch.long, device=images.device)
        self.losses = images.new_zeros(count, len(LOSSES))
        self.terms = None

    def step(self) -> None:
        """One iteration; its row of `losses` gets the LOSSES."""
        rate = self.rates.index_select(0, self.iteration).squeeze(0)
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        seen = augment.apply_view(self.images, self.views.index_select(0, self.iteration).squeeze(0))
        logits = devices.run(self.compute, self.network, seen)
        cross_entropy = F.cross_entropy(logits.to(seen.dtype), self.labels)
        self.terms = self.terms_of()
        loss = cross_entropy + self.stage.r_bn * self.terms.sum()
        gradient, *of_weights = torch.autograd.grad(loss, [self.images, *self.weights])
        for total, of_weight in zip(self.weight_gradients, of_weights, strict=True):
            total.add_(of_weight)
        self.images.grad = gradient.add_(self.added_gradient)
        self.added_gradient.zero_()  # it was for the first update alone
        self.optimizer.step()
        with torch.no_grad():
            self.images.copy_(torch.maximum(torch.minimum(self.images, self.white), self.black))
            losses = torch.stack([cross_entropy, self.terms.sum(), loss, rate])
            self.losses.index_copy_(0, self.iteration, losses[None])
            self.iteration += 1

    def check(self) -> None:
        """Raises DivergedError if the numbers have gone wrong; makes the host wait for the device."""
        losses = dict(zip(LOSSES, self.losses[: int(self.iteration)].T, strict=True))
        clamped = ((self.images <= self.black) | (self.images >= self.white)).float().mean()
        guard.check_synthesis(self.stage, losses, self.terms, self.reference_terms, clamped)

    def losses_by_name(self) -> dict[str, list[float]]:
        """The LOSSES of every iteration."""
        return dict(zip(LOSSES, self.losses.T.tolist(), strict=True))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint must hold beside what the recipe determines; `copy_` into them to continue."""
        state = self.optimizer.state[self.images]
        kept = {name: getattr(self, name) for name in ("images", "added_gradient", "iteration", "losses")}
        return {name: tensor.detach() for name, tensor in {**kept, **state}.items()}


def optimise(batches: list[ImageOptimisation], progress: Progress, done: torch.Tensor, losses: dict) -> None:
    """Runs all iterations of `batches`, which are at the same one, side by side on a GPU.

    Args:
        progress: asked after every iteration whether to save, which it then does with all batches at the same one.
        done: the finished images, and `losses` those of the first class batch; both are saved beside the batches.

    Raises:
        DivergedError: the numbers of a batch have gone wrong; they are looked at every guard.CHECK_EVERY iterations.
    """
    steps = [devices.Graphed(batch.step, batch.compute.device) for batch in batches]
    iterations = len(batches[0].views)
    for iteration in range(int(batches[0].iteration), iterations):
        for step in steps:
            step()
        due = progress.due()
        if due or (iteration + 1) % guard.CHECK_EVERY == 0 or iteration + 1 == iterations:
            for step, batch in zip(steps, batches, strict=True):
                step.join()
                batch.check()
        if due:
            unfinished = [batch for batch in batches if not batch.weights]  # chained batches restart
            tensors = {f"{n}.{name}": t for n, batch in enumerate(unfinished) for name, t in batch.tensors().items()}
            progress.save({"done": done, **tensors}, {"losses": losses, "unfinished": len(unfinished)})


def synthesize(
    recipe: Recipe,
    train: Resident | Streamed,
    classes: int,
    teacher: nn.Module,
    compute: Compute,
    progress: Progress,
    indices: range | None = None,
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The images of a distilled set, from where `progress` was saved last.

    One class batch of one ipc index after the other; on a GPU several at once, if one alone would not fill it.

    Args:
        train: the real training images that the synthesis starts from.
        teacher: in eval mode, without gradients; it stays as it is.
        indices: the ipc indices to make, where not all of them.

    Returns: bytes (indices * classes, side, side, 3), ordered by ipc index and then class, and the LOSSES of the first
        class batch by name, one per iteration.

    Raises:
        DivergedError: the numbers of a batch have gone wrong.
        InputError: one class batch alone does not fit into the GPU's memory.
    """
    indices = indices or range(recipe.ipc)
    stage, side, device = recipe.synthesis, recipe.images.side, compute.device
    total, per_batch = len(indices) * classes, min(recipe.synthesis.classes_per_batch, classes)
    done, made = torch.empty(total, side, side, 3, dtype=torch.uint8), 0
    losses_of_first, saved = {}, {}
    # In the authors' code on ImageNet-1K, each class batch needs the weight gradients that the one before it sums up to
    # its last iteration. So they run one by one, and a stopped run restarts its ipc index.
    in_chain = stage.sums_weight_gradients()
    at_once = max(1, GPU_IMAGES // per_batch) if device.type == "cuda" and not in_chain else 1
    if (found := progress.load(device)) is not None:
        saved, state = found
        made = len(saved["done"])
        done[:made] = saved.pop("done")
        losses_of_first, at_once = state["losses"], state.get("unfinished") or at_once
    bar = tqdm(desc=progress.label, unit="image", total=total, initial=made, file=sys.stdout)

    waiting = prepare_batches(recipe, train, classes, teacher, compute, indices, made)
    while made < total:
        batches = []
        try:
            batches += itertools.islice(waiting, at_once)
            for name, tensor in saved.items():
                number, key = name.split(".")
                batches[int(number)].tensors()[key].copy_(tensor)
            saved = {}
            optimise(batches, progress, done[: made // classes * classes if in_chain else made], losses_of_first)
        except RuntimeError as error:
            guard.raise_unless_out_of_memory(error)
            batches, saved, waiting = [], {}, None  # else they would keep what broke off in memory
            if at_once == 1:
                attempt = functools.partial(try_batch, recipe, teacher, compute)
                raise guard.make_too_large_error("synthesis.classes_per_batch", per_batch, attempt) from None
            at_once //= 2  # each is computed by itself, so fewer at once give the same images
            waiting = prepare_batches(recipe, train, classes, teacher, compute, indices, made)
            continue
        losses_of_first = losses_of_first or batches[0].losses_by_name()
        for batch in batches:
            images, rounded = batch.images.detach(), stage.storage == "png"
            mean, std = recipe.images.mean, recipe.images.distilled_std
            pixels = augment.denormalise_to_uint8(images, mean, std, rounded).cpu()
            if made % classes == 0:
                progress.synthesised(indices[made // classes], batch.losses_by_name(), pixels)
            done[made : made + len(pixels)] = pixels
            made += len(pixels)
        bar.update(made - bar.n)
    bar.close()
    return done, losses_of_first


def try_batch(recipe: Recipe, teacher: nn.Module, compute: Compute, size: int) -> None:
    """One step of the adjustment, if it is directed, and one iteration, with `size` black images."""
    stage, side = recipe.synthesis, recipe.images.side
    images = torch.zeros(size, 3, side, side, device=compute.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.long, device=compute.device)
    views = augment.make_whole_views(torch.zeros(1, 2), side)
    if stage.adjustment == "directed":
        adjust_directed(devices.copy_frozen(teacher), images, labels, views[0], stage.rho, 1)
    eager = compute._replace(compile=False)  # each size would be compiled
    batch = ClassBatch(images, labels, views)
    ImageOptimisation(devices.copy_frozen(teacher), batch, stage, recipe.images, eager).step()


def prepare_batches(
    recipe: Recipe,
    train: Resident | Streamed,
    classes: int,
    teacher: nn.Module,
    compute: Compute,
    indices: range,
    skip: int,
) -> Iterator[ImageOptimisation]:
    """Every class batch of the ipc indices `indices`, in order, under the network whose weights were adjusted for it.

    Where the stage sums weight gradients, a batch must have had all its iterations before the next is asked for.

    Args:
        skip: how many images are done already; weights that are kept between class batches are adjusted for
            those all the same.
    """
    stage, device = recipe.synthesis, compute.device
    chosen = initialise.choose_initial_indices(recipe, train, classes, teacher)
    for number, index in enumerate(indices):
        if (number + 1) * classes <= skip:
            continue
        network, left = devices.copy_frozen(teacher), []
        for start in range(0, classes, stage.classes_per_batch):
            is_done = number * classes + start < skip
            if stage.weights_between_class_batches == "restored":
                if is_done:
                    continue
                network = devices.copy_frozen(teacher)
            labels = torch.arange(start, min(start + stage.classes_per_batch, classes), device=device)
            key = (stage.seed, index, start)
            if chosen is None:
                images = initialise.draw_noise(labels, recipe.images.side, *key)
            else:
                pixels = augment.to_unit_range(train.pictures(chosen[index, labels.cpu()]))
                images = augment.normalise(pixels, recipe.images.mean, recipe.images.distilled_std)
            views = augment.draw_views(stage.iterations, recipe.images.side, stage.roll, stage.resized_crop, *key)
            gradient = None
            if stage.adjustment == "random":
                adjust_random(network, stage.rho, seeds.device_random(device, seeds.DIRECTION, *key))
            elif stage.adjustment == "directed":
                gradient = adjust_directed(network, images, labels, views[0], stage.rho, stage.steps, left)
            if not is_done:
                if stage.image_gradient_after_adjustment == "cleared":
                    gradient = None
                seen = augment.apply_view(images, views[0])
                reference = measure_reference(devices.copy_frozen(teacher), seen, stage.r_var)
                batch = ClassBatch(images, labels, views, gradient, reference)
                optimisation = ImageOptimisation(devices.copy_frozen(network), batch, stage, recipe.images, compute)
                yield optimisation
                left = optimisation.weight_gradients  # of all its iterations, which it has had by now
