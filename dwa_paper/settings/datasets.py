"""The data sets that are known by name, one row each; any other name is a folder of the user's own under $DWA_DATA."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """Where a data set comes from, its size in full, and what other tools and its owners say of it."""

    hub: str | None  # its id on the Hugging Face hub
    training_images: int
    test_images: int
    classes: int
    licence: str  # the hub's tag for the terms
    terms: str
    ddranking: str | None = None  # its name in DD-Ranking's get_dataset
    access: str = ""  # what to do where the hub does not give it to everybody


DIGITS = "UCI's Optical Recognition of Handwritten Digits, as scikit-learn bundles it: CC BY 4.0."
CIFAR = "(Krizhevsky, 2009) names no licence; its authors ask to be cited."
TINY = "Tiny-ImageNet is a part of ImageNet: non-commercial research and education only."
IMAGENET = "ImageNet's terms of access: non-commercial research and education only."
IMAGENET_ACCESS = (
    "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in with `.venv/bin/hf auth login`, "
    "or let DWA_DATA name the folder that holds imagenet-1k/train/CLASS/ and imagenet-1k/val/CLASS/"
)

DATASETS = {
    "digits": DataSet(None, 1_297, 500, 10, "cc-by-4.0", DIGITS),
    "cifar10": DataSet("uoft-cs/cifar10", 50_000, 10_000, 10, "unknown", f"CIFAR-10 {CIFAR}", "CIFAR10"),
    "cifar100": DataSet("uoft-cs/cifar100", 50_000, 10_000, 100, "unknown", f"CIFAR-100 {CIFAR}", "CIFAR100"),
    "tiny-imagenet": DataSet("zh-plus/tiny-imagenet", 100_000, 10_000, 200, "other", TINY, "TinyImageNet"),
    "tiny-imagenet-20": DataSet(None, 10_000, 1_000, 20, "other", TINY),
    "imagenet-1k": DataSet(
        "ILSVRC/imagenet-1k", 1_281_167, 50_000, 1_000, "other", IMAGENET, "ImageNet1K", IMAGENET_ACCESS
    ),
}
