"""The yardstick: teacher, synthesis and student steps as the authors' scripts take them, in our own words.

fp32 under PyTorch's default rules for TF32, weight gradients computed in synthesis, one hook per BatchNorm
layer, a DataLoader with two workers and PIL augmentation, and metrics read back to the host in every step.
Each function yields once per step.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dwa_core.settings import Setting, SynthesisStage, Training

WORKERS = 2  # in the authors' scripts for CIFAR


class BatchNormHook:
    """Keeps the distance between one layer's input statistics and its running statistics."""

    def __init__(self, layer: nn.BatchNorm2d, r_var: float):
        self.r_var = r_var
        self.handle = layer.register_forward_hook(self)

    def __call__(self, layer, inputs, _output):
        flat = inputs[0].permute(1, 0, 2, 3).reshape(inputs[0].shape[1], -1)
        mean_term = torch.norm(flat.mean(1) - layer.running_mean, 2)
        var_term = torch.norm(flat.var(1, unbiased=False) - layer.running_var, 2)
        self.term = self.r_var * var_term + mean_term


def synthesis_steps(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    views: torch.Tensor,
    stage: SynthesisStage,
    mean: list[float],
    std: list[float],
) -> Iterator[torch.Tensor]:
    """What `dwa_core.synthesize.ImageOptimisation` does, for views that only roll; yields the images of each step."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    hooks = [BatchNormHook(layer, stage.r_var) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    weights = [10.0] + [1.0] * (len(hooks) - 1)
    images = images.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=stage.learning_rate, betas=(0.5, 0.9), eps=1e-8)
    for iteration, (rows, columns) in enumerate(views[:, :2].int().tolist()):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1 + np.cos(np.pi * iteration / len(views))) * stage.learning_rate
        optimizer.zero_grad()
        network.zero_grad()
        rolled = torch.roll(images, shifts=(rows, columns), dims=(2, 3))
        cross_entropy = F.cross_entropy(network(rolled), labels)
        terms = sum(weight * hook.term for weight, hook in zip(weights, hooks, strict=True))
        loss = cross_entropy + stage.r_bn * terms
        loss.backward()
        optimizer.step()
        for channel in range(3):
            low, high = -mean[channel] / std[channel], (1 - mean[channel]) / std[channel]
            images.data[:, channel] = torch.clamp(images.data[:, channel], low, high)
        _ = cross_entropy.item(), terms.item(), loss.item()
        yield images.detach()


class Pictures(Dataset):
    """Images as PIL pictures through torchvision's transforms, one at a time."""

    def __init__(self, images_uint8: torch.Tensor, labels: torch.Tensor, transform):
        self.images, self.labels, self.transform = images_uint8.cpu().numpy(), labels.cpu().tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(images_uint8: torch.Tensor, labels: torch.Tensor, setting: Setting, batch_size: int) -> DataLoader:
    """Shuffled batches, cropped with padding and flipped by PIL in worker processes, which each epoch starts anew."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(setting.images.side, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(setting.images.mean, setting.images.std),
        ]
    )
    pictures = Pictures(images_uint8, labels, transform)
    return DataLoader(pictures, batch_size, shuffle=True, num_workers=WORKERS, pin_memory=torch.cuda.is_available())


def teacher_steps(network: nn.Module, batches: Iterable, stage: Training, device: torch.device) -> Iterator[float]:
    """Trains `network` on batches of images and labels; yields the loss of each step."""
    optimizer = torch.optim.SGD(
        network.parameters(), stage.learning_rate, momentum=stage.momentum, weight_decay=stage.weight_decay
    )
    network.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        (logits.argmax(1) == labels).sum().item()
        yield loss.item()


def student_steps(
    student: nn.Module, teacher: nn.Module, batches: Iterable, stage: Training, device: torch.device
) -> Iterator[float]:
    """Trains `student` on mixed batches that `teacher` labels; yields the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    divergence = nn.KLDivLoss(reduction="batchmean")
    student.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        keep = np.random.default_rng().beta(stage.mixing_alpha, stage.mixing_alpha)
        mixed = keep * images + (1 - keep) * images[torch.randperm(len(images), device=device)]
        # The authors compute the teacher's labels with a graph and then detach them.
        soft_labels = F.softmax(teacher(mixed).detach() / stage.temperature, dim=1)
        optimizer.zero_grad()
        logits = student(mixed)
        loss = divergence(F.log_softmax(logits / stage.temperature, dim=1), soft_labels)
        loss.backward()
        optimizer.step()
        (logits.argmax(1) == labels).sum().item()
        yield loss.item()
