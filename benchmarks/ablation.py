"""What each change to a synthesis step gains, one after the other, from the plain loop to ours; for NOTES.md."""

import itertools
import statistics
import time

import plain
import torch
from bench import Case, alone

from dwa_core import devices, models
from dwa_core.batchnorm import match_statistics
from dwa_core.synthesize import ImageOptimisation

# The case, and the steps that are timed.
CASES = [(("synthesis", "cifar100", "resnet18", 100), 5), (("synthesis", "cifar10", "convnet-128", 10), 100)]
WARM_UP = 2


def hooked(layers, r_var):
    """SRe2L's loss by one forward hook per layer, as in the plain loop."""
    hooks = [plain.BatchNormHook(layer, r_var) for layer in layers]
    return lambda: torch.stack([10 * hooks[0].term, *[hook.term for hook in hooks[1:]]])


def layer_by_layer(layers, r_var):
    """The terms of MatchedBatchNorm layers, each layer's with its own few kernels."""

    def terms():
        values = [
            r_var * torch.linalg.vector_norm(matched.variance - matched.layer.running_var)
            + torch.linalg.vector_norm(matched.mean - matched.layer.running_mean)
            for matched in layers
        ]
        return torch.stack([10 * values[0], *values[1:]])

    return terms


def milliseconds(arguments: tuple, count: int, changes: int) -> float:
    """Median of `count` steps with the first `changes` changes of CHANGES; 0 is the plain loop."""
    case = Case(*arguments)
    stage, views = case.setting.synthesis, case.views(WARM_UP + count)
    network = case.network().eval()
    images, labels = case.one_batch()
    if changes == 0:
        steps = plain.synthesis_steps(network, images, labels, views, stage, case.mean, case.std)
    else:
        precision = torch.bfloat16 if changes >= 4 else torch.float32
        network.requires_grad_(False)
        if changes >= 3:
            network = devices.on_device(network, case.device)
        if changes == 6:
            batch = ImageOptimisation(network, images, labels, views, stage, case.mean, case.std, precision)
        else:
            batch = partly_changed(changes, network, images, labels, views, stage, case, precision)
        steps = (batch.step() for _ in itertools.count())
    times = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        next(steps)
        if case.device.type == "cuda":
            torch.cuda.synchronize()  # a step returns before the GPU has done it
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[WARM_UP:])


def partly_changed(changes, network, images, labels, views, stage, case, precision) -> ImageOptimisation:
    """An ImageOptimisation with some of its parts replaced by the plain ones."""
    twin = models.build("convnet-1", case.classes, "small", case.side, seed=0)
    batch = ImageOptimisation(twin, images, labels, views, stage, case.mean, case.std, torch.float32)
    batch.precision = precision
    batch.network = network if changes < 5 else devices.cast_weights(network, precision)
    if changes == 1:
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        batch.terms_of = hooked(layers, stage.r_var)
    else:
        batch.terms_of = layer_by_layer(match_statistics(network), stage.r_var)
    return batch


CHANGES = [
    "plain loop (fp32, weight gradients, hooks, metrics read back)",
    "no weight gradients, nothing read back",
    "statistics by BatchNorm's own kernel, one backward formula",
    "channels-last",
    "bf16 by autocast",
    "frozen weights stored in bf16",
    "BatchNorm terms of all layers at once",
]


def main() -> None:
    for case, count in CASES:
        print(f"{case[2]}, batch {case[3]}")
        before = None
        for changes, name in enumerate(CHANGES):
            now = alone(milliseconds, case, count, changes)
            gain = "" if before is None else f"{before / now:.2f} times"
            print(f"| {name} | {now:.1f} | {gain} |", flush=True)
            before = now


if __name__ == "__main__":
    main()
