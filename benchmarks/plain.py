"""The yardstick: the steps of dwa.py with the slow habits of the authors' scripts, each of which a comment names.

All in fp32, under PyTorch's default rules for TF32. Every `..._steps` yields once per step.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dwa


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


def synthesis_steps(network, images, labels, views, stage, mean, std):
    """dwa.synthesize, for views (augment.draw_views) that only roll; yields the images of each step."""
    network.requires_grad_(True)  # gradients of all weights, which nothing uses
    terms, images = hook_batchnorm(network, stage.r_var), images.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], stage.learning_rate, dwa.SYNTHESIS_ADAM["betas"])
    schedule = CosineAnnealingLR(optimizer, len(views))
    for roll in views[:, :2].int().tolist():
        optimizer.zero_grad()
        network.zero_grad()
        cross_entropy = F.cross_entropy(network(images.roll(roll, (2, 3))), labels)
        batchnorm_loss = sum(terms.values())
        loss = cross_entropy + stage.r_bn * batchnorm_loss
        loss.backward()
        optimizer.step()
        schedule.step()
        for channel in range(3):  # one after the other
            low, high = -mean[channel] / std[channel], (1 - mean[channel]) / std[channel]
            images.data[:, channel] = torch.clamp(images.data[:, channel], low, high)
        _ = cross_entropy.item(), batchnorm_loss.item(), loss.item()  # the host waits for the device
        yield images.detach()


def augment_and_collate(transform, batch):
    return default_collate([(transform(Image.fromarray(picture)), label) for picture, label in batch])


def loader(images_uint8, labels, setting, batch_size):
    """dwa.training_batches, with PIL, one image at a time, in two workers that start again in every epoch."""
    crop = [transforms.RandomCrop(setting.images.side, padding=4), transforms.RandomHorizontalFlip()]
    normalise = [transforms.ToTensor(), transforms.Normalize(setting.images.mean, setting.images.std)]
    pictures = list(zip(images_uint8.cpu().numpy(), labels.tolist(), strict=True))
    collate = partial(augment_and_collate, transforms.Compose(crop + normalise))
    options = {"shuffle": True, "num_workers": 2, "pin_memory": torch.cuda.is_available()}
    return DataLoader(pictures, batch_size, collate_fn=collate, **options)


def training_steps(network, optimizer, batches, batch_loss, device):
    """dwa.train, with the loss and the accuracy of every step read back; yields the loss."""
    network.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        loss, logits = batch_loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _ = (logits.argmax(1) == labels).sum().item()  # the host waits for the device
        yield loss.item()


def teacher_steps(network, batches, stage, device):
    """dwa.train_teacher; `stage` is a TeacherStage."""

    def batch_loss(images, labels):
        logits = network(images)
        return F.cross_entropy(logits, labels), logits

    optimizer = torch.optim.SGD(network.parameters(), stage.learning_rate, stage.momentum, 0, stage.weight_decay)
    return training_steps(network, optimizer, batches, batch_loss, device)


def student_steps(student, teacher, batches, stage, device):
    """dwa.train_student; `stage` is a RelabelStage. The teacher's weights may want gradients."""

    def batch_loss(images, _labels):
        keep = np.random.default_rng().beta(stage.mixing_alpha, stage.mixing_alpha)
        mixed = keep * images + (1 - keep) * images[torch.randperm(len(images), device=device)]
        logits = student(mixed)
        soft = teacher(mixed).detach()  # with a graph, which is then thrown away
        return dwa.relabel_loss(logits, soft, stage.temperature), logits

    optimizer = torch.optim.AdamW(student.parameters(), stage.learning_rate, weight_decay=stage.weight_decay)
    return training_steps(student, optimizer, batches, batch_loss, device)
