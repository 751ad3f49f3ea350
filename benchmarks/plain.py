"""The yardstick: dwa.py with the slow habits of the authors' scripts, in fp32 under PyTorch's default rules for TF32.

The habits: gradients of all weights in synthesis, a hook with copies for every BatchNorm layer, numbers read back after
every step, images loaded one by one through PIL in workers that every epoch starts, and labelling with a graph.
"""

import sys
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dwa


@contextmanager
def slow_habits(network, **functions):
    """Within it, all weights of `network` get gradients, every step reads back, and `functions` replace dwa's."""

    def after_step(optimizer, _args, _options):
        network.zero_grad()
        optimizer.param_groups[0]["params"][0].flatten()[0].item()  # as for a metric: the host waits for the device

    network.requires_grad_(True)
    handle = register_optimizer_step_post_hook(after_step)
    with mock.patch.multiple(dwa, **functions), redirect_stdout(None):
        yield
    handle.remove()


def hook_batchnorm(network, r_var):
    """dwa.hook_batchnorm, with a permuted copy of every input, and a norm of its own for every layer."""
    layers, terms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)], {}

    def compare_statistics(layer, inputs, _output):
        flat = inputs[0].permute(1, 0, 2, 3).reshape(inputs[0].shape[1], -1)
        variance = torch.norm(flat.var(1, unbiased=False) - layer.running_var, 2)
        mean = torch.norm(flat.mean(1) - layer.running_mean, 2)
        terms[layer] = (r_var * variance + mean) * (dwa.FIRST_LAYER if layer is layers[0] else 1.0)

    for layer in layers:
        layer.register_forward_hook(compare_statistics)
    return terms


def synthesize(network, images, labels, views, mean, std):
    """The images after an iteration for each of `views` (augment.draw_views), which only roll; `network` gets hooks."""
    bounds = [dwa.normalize(torch.full_like(images[0, :, :1, :1], value), mean, std) for value in (0.0, 1.0)]
    with slow_habits(network, hook_batchnorm=hook_batchnorm):
        return dwa.synthesize(network, images, labels, views[:, :2].int().tolist(), bounds)


def train(network, batches, teacher=None):
    """An epoch of a teacher's training, or of a student's where there is a `teacher`, on `batches`."""
    with slow_habits(network, training_batches=lambda *_: batches):
        if teacher is None:
            dwa.train_teacher(network, None, None, 1, None)
        else:
            dwa.train_student(network, lambda mixed: teacher(mixed).detach(), None, None, dwa.Recipe(student_epochs=1))


def load_batches(images_uint8, labels, seen, batch_size, device):
    """An epoch of dwa.training_batches, through PIL and two workers; `seen` has side, mean and std."""
    augment = [transforms.ToPILImage(), transforms.RandomCrop(seen.side, padding=4), transforms.RandomHorizontalFlip()]
    normalise = [transforms.ToTensor(), transforms.Normalize(seen.mean, seen.std)]
    collate = partial(augment_and_collate, transforms.Compose(augment + normalise))
    pictures = list(zip(images_uint8.cpu().numpy(), labels.tolist(), strict=True))
    options = {"shuffle": True, "num_workers": 2, "pin_memory": device.type == "cuda", "collate_fn": collate}
    options["multiprocessing_context"] = "fork"  # as in a script; bench.py's processes would import all libraries anew
    for images, targets in DataLoader(pictures, batch_size, **options):
        yield images.to(device), targets.to(device)


def augment_and_collate(transform, batch):
    return default_collate([(transform(picture), label) for picture, label in batch])
