"""Diversity-Driven Synthesis (DWA, NeurIPS 2024) on one page: the whole method in plain PyTorch, from top to bottom.

Data set distillation makes a few images per class (ipc) and trains a network on them instead of the whole data set:
    1. teacher    Train a classifier on the real images.
    2. synthesis  Take one real image per class. Move the teacher's weights UP the loss of these very images (directed
                  weight adjustment, the paper's idea: every batch gets a teacher of its own, so the images differ).
                  Then optimise the images: cross-entropy, and BatchNorm statistics as in the teacher's training.
    3. relabel    Train a student on the distilled images alone. The teacher labels every augmented, mixed batch.

    python dwa.py                                 # handwritten digits: no download, under a minute on two cores
    python dwa.py cifar10                         # the paper's recipe, from $DWA_DATA/cifar10/{train,test}-*.parquet
    python dwa.py cifar10 --method random-real    # the baseline: real images in place of distilled ones

`pixels` are (N, 3, side, side) uint8; `images` are the same normalised, in floats; `labels` are (N,) class indices.
This file and the package dwa_core share no code: tests/test_dwa.py checks one against the other.
"""

import argparse
import copy
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.transforms.functional import normalize, pil_to_tensor

# ----------------------------------------------------------------------------------------------------- hyper-parameters
TEACHER_SGD, TEACHER_BATCH = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}, 128
RHO, K = 0.015, 12  # weight adjustment: total length of the steps, over all weights together, and their number
SYNTHESIS_ADAM = {"lr": 0.25, "betas": (0.5, 0.9)}
R_BN, R_VAR, FIRST_LAYER = 0.01, 11.0, 10.0  # weights of the BatchNorm loss, of variances in it, of the first layer
STUDENT_ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
MIXUP, TEMPERATURE = 0.8, 30.0  # both parameters of mixup's Beta distribution; temperature of the soft labels


@dataclass
class Recipe:  # what differs between data sets; the defaults are CIFAR-10's
    side: int = 32
    mean: tuple = (0.4914, 0.4822, 0.4465)
    std: tuple = (0.2470, 0.2435, 0.2616)
    network: str = "resnet18"  # teacher and student
    teacher_epochs: int = 200
    iterations: int = 1000  # of synthesis, with one image of each class in a batch
    shift: int = 4  # pixels: padding of the crops in training, and largest roll in synthesis
    student_epochs: int = 400
    student_batch: int = 128


CIFAR100 = Recipe(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
SHORT = {"teacher_epochs": 20, "iterations": 100, "student_epochs": 100, "student_batch": 16}
DIGITS = Recipe(side=16, mean=(0.305,) * 3, std=(0.376,) * 3, network="convnet-64", shift=2, **SHORT)
RECIPES = {"digits": DIGITS, "cifar10": Recipe(), "cifar100": CIFAR100}


# ------------------------------------------------------------------------------------------------------- data, networks
def read(dataset, part, side):
    """Returns pixels (N, 3, side, side) and labels (N,) of the part "train" or "test"."""
    if dataset == "digits":
        from sklearn import datasets, model_selection

        values, labels = datasets.load_digits(return_X_y=True)  # (1797, 64), 0..16
        chosen = {"test_size": 500, "stratify": labels, "random_state": 0}
        train_values, test_values, *both = model_selection.train_test_split(values, labels, **chosen)
        values, labels = (train_values, both[0]) if part == "train" else (test_values, both[1])
        pictures = map(Image.fromarray, (values.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8"))
    else:
        from pyarrow.dataset import dataset as open_files

        files = sorted(Path(os.environ["DWA_DATA"], dataset).glob(f"{part}-*.parquet"))
        table = open_files(files).to_table().to_pydict()
        pictures = (Image.open(io.BytesIO(image["bytes"])) for image in table["img"])
        labels = table["fine_label" if dataset == "cifar100" else "label"]
    resized = (picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for picture in pictures)
    return torch.stack([pil_to_tensor(picture) for picture in resized]), torch.tensor(labels)


def training_batches(pixels, labels, batch_size, recipe):
    """Yields one epoch in random order: images (batch_size, 3, side, side), each cropped and flipped, and labels."""
    for chosen in torch.randperm(len(labels)).split(batch_size):
        padded = F.pad(pixels[chosen], [recipe.shift] * 4).permute(0, 2, 3, 1)  # black, which is 0 in pixels alone
        top, left = torch.randint(2 * recipe.shift + 1, (2, len(chosen), 1, 1))
        rows, columns = top + torch.arange(recipe.side)[:, None], left + torch.arange(recipe.side)
        columns = torch.where(torch.rand(len(chosen), 1, 1) < 0.5, columns, columns.flip(2))
        cropped = padded[torch.arange(len(chosen))[:, None, None], rows, columns].permute(0, 3, 1, 2)
        yield normalize(cropped / 255, recipe.mean, recipe.std), labels[chosen]


def build(name, classes, side):
    """Returns a ConvNet (convnet-128 has 128 channels) or a ResNet of torchvision (resnet18), for small images."""
    if name.startswith("convnet-"):
        width, layers = int(name.removeprefix("convnet-")), []
        for channels in (3, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 8) ** 2, classes))
    network = torchvision.models.get_model(name, num_classes=classes)
    # torchvision's stem, a 7x7 convolution of stride 2 and a max-pool, would shrink 32 pixels to 8.
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


# ---------------------------------------------------------------------------------------------- 1. teacher, and testing
def train(network, optimizer, epochs, batches, batch_loss):
    """Minimises `batch_loss(images, labels)` over epochs of `batches()`; leaves `network` frozen in eval mode."""
    schedule = CosineAnnealingLR(optimizer, epochs)  # to 0, a step per epoch
    network.train()
    for epoch in range(1, epochs + 1):
        for images, labels in batches():
            loss = batch_loss(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch % max(1, epochs // 5) == 0:
            print(f"  epoch {epoch}/{epochs}, loss {loss.item():.3g}", flush=True)
    network.eval().requires_grad_(False)


@torch.no_grad()
def test(network, pixels, labels, recipe):
    """Returns the top-1 accuracy in percent of `network`, which is in eval mode."""
    batches = normalize(pixels / 255, recipe.mean, recipe.std).split(500)
    return 100 * (torch.cat([network(images).argmax(1) for images in batches]) == labels).float().mean().item()


def train_teacher(network, pixels, labels, epochs, recipe):
    """Trains `network` on the real images."""
    optimizer = torch.optim.SGD(network.parameters(), **TEACHER_SGD)
    batches = partial(training_batches, pixels, labels, TEACHER_BATCH, recipe)
    train(network, optimizer, epochs, batches, lambda images, labels: F.cross_entropy(network(images), labels))


# --------------------------------------------------------------------------------------------------------- 2. synthesis
def adjust_weights(network, images, labels, roll, rho=RHO, steps=K):
    """Moves the weights of `network`, in eval mode, up the loss of the images (N, 3, H, W), in place.

    All steps see the images rolled by roll, (rows, columns). Returns the gradient at the images, summed over the steps.
    """
    parameters = list(network.requires_grad_(True).parameters())
    images, image_gradient = images.detach().requires_grad_(True), torch.zeros_like(images)
    for _ in range(steps):
        loss = F.cross_entropy(network(images.roll(roll, (2, 3))), labels)
        *gradients, at_images = torch.autograd.grad(loss, [*parameters, images])
        norm = nn.utils.get_total_norm(gradients)  # over all parameters together
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += (rho / steps) * gradient / (norm + 1e-12)
        image_gradient += at_images
    network.requires_grad_(False)
    return image_gradient


def hook_batchnorm(network, r_var=R_VAR):
    """Returns a dict that each forward pass fills with the BatchNorm term of each BatchNorm2d layer of `network`."""
    layers, terms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)], {}

    def compare_statistics(layer, inputs, _output):
        (x,) = inputs  # (N, C, H, W)
        mean = x.mean((0, 2, 3))
        variance = x.square().mean((0, 2, 3)) - mean.square()  # on a CPU, three times as fast as torch.var
        distance = r_var * (variance - layer.running_var).norm() + (mean - layer.running_mean).norm()
        terms[layer] = distance * (FIRST_LAYER if layer is layers[0] else 1.0)

    for layer in layers:
        layer.register_forward_hook(compare_statistics)
    return terms


def synthesize(network, images, labels, rolls, bounds, r_var=R_VAR, image_gradient=None):
    """Optimises images (N, 3, H, W) under the frozen, adjusted `network`, and returns the last iterate.

    Iteration t sees them rolled by (rows, columns) = rolls[t]; bounds are black and white, normalised, (3, 1, 1).
    The authors' code adds the image_gradient of `adjust_weights` to the first update; our default does not.
    """
    terms = hook_batchnorm(network, r_var)
    images = images.clone().requires_grad_(True)
    images.grad = None if image_gradient is None else image_gradient.clone()
    optimizer = torch.optim.Adam([images], **SYNTHESIS_ADAM)
    schedule = CosineAnnealingLR(optimizer, len(rolls))  # to 0, a step per iteration
    for roll in rolls:
        cross_entropy = F.cross_entropy(network(images.roll(roll, (2, 3))), labels)
        (cross_entropy + R_BN * sum(terms.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            images.clamp_(*bounds)
    return images.detach()


def distil(teacher, pixels, labels, method, ipc, recipe):
    """Returns distilled pixels (ipc * classes, 3, side, side) and their labels: dwa's, sre2l's, or random-real's."""
    classes = labels.unique()
    black, white = bounds = [normalize(torch.full((3, 1, 1), v), recipe.mean, recipe.std) for v in (0.0, 1.0)]
    order = torch.randperm(len(labels))
    chosen = torch.stack([order[labels[order] == label][:ipc] for label in classes], dim=1)  # (ipc, classes)
    if method == "random-real":
        return pixels[chosen.flatten()], classes.repeat(ipc)
    distilled = []
    for index in range(ipc):
        network = copy.deepcopy(teacher)  # so that adjustments do not pile up
        rolls = torch.randint(recipe.shift + 1, (recipe.iterations, 2)).tolist()
        images = normalize(pixels[chosen[index]] / 255, recipe.mean, recipe.std)
        if method == "dwa":
            adjust_weights(network, images, classes, rolls[0])
            images = synthesize(network, images, classes, rolls, bounds)
        else:  # SRe2L starts from noise, adjusts nothing, and weights variances as it does means
            images = synthesize(network, torch.randn_like(images), classes, rolls, bounds, r_var=1.0)
        distilled.append(((images - black) / (white - black) * 255).round().to(torch.uint8))
        print(f"  image {index + 1}/{ipc} of each class", flush=True)
    return torch.cat(distilled), classes.repeat(ipc)


# ----------------------------------------------------------------------------------------------------------- 3. relabel
def relabel_loss(student_logits, teacher_logits, temperature=TEMPERATURE):
    """Returns KL(softmax(teacher / T) || softmax(student / T)), the mean over a batch of logits (N, classes)."""
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def train_student(network, teacher, pixels, labels, recipe):
    """Trains `network` on the distilled images, blended in pairs (mixup) and then labelled by `teacher`."""
    optimizer = torch.optim.AdamW(network.parameters(), **STUDENT_ADAMW)
    batches = partial(training_batches, pixels, labels, recipe.student_batch, recipe)

    def batch_loss(images, _labels):
        keep = torch.distributions.Beta(MIXUP, MIXUP).sample()  # one coefficient for the batch
        mixed = keep * images + (1 - keep) * images[torch.randperm(len(images))]
        return relabel_loss(network(mixed), teacher(mixed))

    train(network, optimizer, recipe.student_epochs, batches, batch_loss)


def main():
    parser = argparse.ArgumentParser(description="Distil a data set with DWA and train a student on the result.")
    parser.add_argument("dataset", nargs="?", default="digits", choices=RECIPES)
    parser.add_argument("--method", default="dwa", choices=["dwa", "sre2l", "random-real"])
    parser.add_argument("--network", help="of teacher and student, convnet-128 or resnet18; default: the recipe's")
    parser.add_argument("--ipc", type=int, default=10, help="images per class")
    parser.add_argument("--teacher-epochs", type=int, help="default: the recipe's")
    parser.add_argument("--teacher", metavar="FILE", help="weights of a trained teacher, *.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = RECIPES[args.dataset]
    if args.dataset != "digits" and "DWA_DATA" not in os.environ:
        parser.error(f"set DWA_DATA to the folder that holds {args.dataset}/train-*.parquet and test-*.parquet")
    real, held_out = (read(args.dataset, part, recipe.side) for part in ("train", "test"))
    shape = args.network or recipe.network, len(real[1].unique()), recipe.side
    teacher, student = (build(*shape).to(memory_format=torch.channels_last) for _ in range(2))  # the faster layout
    if args.teacher:
        teacher.load_state_dict(load_file(args.teacher))  # fp16 becomes fp32
        teacher.eval().requires_grad_(False)
    else:
        train_teacher(teacher, *real, args.teacher_epochs or recipe.teacher_epochs, recipe)
    print(f"teacher: {test(teacher, *held_out, recipe):.2f} %", flush=True)
    distilled = distil(teacher, *real, args.method, args.ipc, recipe)
    train_student(student, teacher, *distilled, recipe)
    print(f"student: {test(student, *held_out, recipe):.2f} % with {len(distilled[0])} images")


if __name__ == "__main__":
    main()
