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


CIFAR_TERMS = "(Krizhevsky, 2009) names no licence; its authors ask to be cited."
TINY_IMAGENET_TERMS = "Tiny-ImageNet is a part of ImageNet: non-commercial research and education only."

DATASETS = {
    "digits": DataSet(
        hub=None,
        training_images=1_297,
        test_images=500,
        classes=10,
        licence="cc-by-4.0",
        terms="UCI's Optical Recognition of Handwritten Digits, as scikit-learn bundles it: CC BY 4.0.",
    ),
    "cifar10": DataSet(
        hub="uoft-cs/cifar10",
        training_images=50_000,
        test_images=10_000,
        classes=10,
        licence="unknown",
        terms=f"CIFAR-10 {CIFAR_TERMS}",
        ddranking="CIFAR10",
    ),
    "cifar100": DataSet(
        hub="uoft-cs/cifar100",
        training_images=50_000,
        test_images=10_000,
        classes=100,
        licence="unknown",
        terms=f"CIFAR-100 {CIFAR_TERMS}",
        ddranking="CIFAR100",
    ),
    "tiny-imagenet": DataSet(
        hub="zh-plus/tiny-imagenet",
        training_images=100_000,
        test_images=10_000,
        classes=200,
        licence="other",
        terms=TINY_IMAGENET_TERMS,
        ddranking="TinyImageNet",
    ),
    "tiny-imagenet-20": DataSet(
        hub=None,
        training_images=10_000,
        test_images=1_000,
        classes=20,
        licence="other",
        terms=TINY_IMAGENET_TERMS,
    ),
    "imagenet-1k": DataSet(
        hub="ILSVRC/imagenet-1k",
        training_images=1_281_167,
        test_images=50_000,
        classes=1_000,
        licence="other",
        terms="ImageNet's terms of access: non-commercial research and education only.",
        ddranking="ImageNet1K",
        access="accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in with "
        "`.venv/bin/hf auth login`, or let DWA_DATA name the folder that holds imagenet-1k/train/CLASS/ and "
        "imagenet-1k/val/CLASS/",
    ),
}
