"""Presets: the numbers of each recipe, from the DWA paper and its published code; the Tiny-ImageNet teacher is SRe2L's.

dwa_core/recipe.py documents each number and its allowed values, and has the defaults that no recipe changes. A preset's
entries "sre2l", "authors" and "best" hold what differs for that method and under those modifiers.
"""

import copy


def merge(base: dict, *differences: dict) -> dict:
    """A deep copy of `base` with each of `differences` laid over it, nested mappings key by key."""
    result = copy.deepcopy(base)
    for difference in differences:
        for key, value in difference.items():
            both_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merge(result[key], value) if both_nested else copy.deepcopy(value)
    return result


CIFAR = {
    "network": "resnet18",
    "stem": "small",
    "images": {"side": 32},
    "teacher": {
        "recipe": "authors",
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "crop": "padded",
    },
    "synthesis": {"iterations": 1000, "learning_rate": 0.25, "classes_per_batch": 100, "r_var": 11.0},
    "relabel": {
        "epochs": 400,
        "batch_size": 128,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "crop": "padded",
        "mixing": "mixup",
        "mixing_alpha": 0.8,
        "temperature": 30.0,
        "test_every": 10,
    },
    # SRe2L starts from noise and adjusts nothing; a data set's preset adds what else differs.
    "sre2l": {"initial": "noise", "adjustment": "none", "r_var": 1.0},
    "authors": {},
    "best": {},
    "teacher_recipes": {},
}

CIFAR10 = merge(
    CIFAR,
    {
        "dataset": "cifar10",
        "images": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
        "authors": {"images": {"std_after_teacher": [0.2023, 0.1994, 0.2010]}},
    },
)
CIFAR100 = merge(
    CIFAR,
    {"dataset": "cifar100", "images": {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}},
)
# G-VBSM's teachers, which EDC shares, for ConvNet-128 and ResNet-18 alike: `squeeze/squeeze.sh` and `train.py` of
# Branch_CIFAR_10 and Branch_CIFAR_100 in the code of Shao et al., "Generalized Large-Scale Data Condensation via
# Various Backbone and Statistical Matching", CVPR 2024. It normalises both data sets with CIFAR-100's mean and
# deviation, ours each with its own.
for cifar, epochs in ((CIFAR10, 5), (CIFAR100, 50)):
    cifar["teacher_recipes"]["gvbsm"] = {
        "epochs": epochs,
        "batch_size": 64,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "schedule": "constant",
    }
# Only the CIFAR scripts in the authors' code relabel with the teacher in train mode.
for cifar in (CIFAR10, CIFAR100):
    cifar["authors"]["relabel"] = {"teacher_batch_statistics": True}

TINY_IMAGENET = {
    "dataset": "tiny-imagenet",
    "network": "resnet18",
    "stem": "small",
    "images": {"side": 64, "mean": [0.4802, 0.4481, 0.3975], "std": [0.2302, 0.2265, 0.2262]},
    "teacher": {
        "recipe": "sre2l",
        "epochs": 100,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 1e-4,
        "warmup_epochs": 5,
        "crop": "resized",
    },
    "synthesis": {
        "iterations": 2000,
        "learning_rate": 0.1,
        "classes_per_batch": 200,
        "r_var": 11.0,
        "resized_crop": True,
    },
    "relabel": {
        "epochs": 200,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 1e-4,
        "warmup_epochs": 5,
        "crop": "resized",
        "mixing": "cutmix",
        "mixing_alpha": 1.0,
        "temperature": 20.0,
        "loss_times_temperature_squared": True,
        "test_every": 1,
    },
    "sre2l": {
        "initial": "noise",
        "adjustment": "none",
        "r_var": 1.0,
        "r_bn": 1.0,
        "iterations": 4000,
        "roll": [-4, 4],
    },
    "authors": {},
    "best": {},
    "teacher_recipes": {},
}

IMAGENET_1K = {
    "dataset": "imagenet-1k",
    "network": "resnet18",
    "stem": "torchvision",
    "images": {"side": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "teacher": {
        "recipe": "torchvision",
        "weights": "IMAGENET1K_V1",
        # Used only where the weights are set to null: torchvision's own classic recipe for ResNets.
        "epochs": 90,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 1e-4,
        "crop": "resized",
    },
    "synthesis": {
        "iterations": 2000,
        "learning_rate": 0.25,
        "classes_per_batch": 100,
        "r_var": 2.0,
        "steps": 15,
        "resized_crop": True,
        "roll": [0, 32],
    },
    "relabel": {
        "epochs": 300,
        "batch_size": 128,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "decay_matrices_only": True,
        "crop": "resized",
        "mixing": "cutmix",
        "mixing_alpha": 1.0,
        "temperature": 20.0,
        "test_every": 10,
    },
    "sre2l": {"initial": "noise", "adjustment": "none", "r_var": 1.0, "iterations": 4000},
    "authors": {"synthesis": {"weight_gradients_of_image_updates": "added"}},
    "best": {},
    "teacher_recipes": {},
}

# The demo: the three recipes above on scikit-learn's handwritten digits. It differs from them in these sizes alone.
DIGITS_IMAGES = {"side": 16, "mean": [0.305] * 3, "std": [0.376] * 3}
DEMO_SIZES = {
    "digits": {
        "network": "convnet-64",
        "images": DIGITS_IMAGES,
        # As far from the std of the teacher's training as CIFAR-10's is.
        "authors": {"images": {"std_after_teacher": [0.308] * 3}},
        "teacher": {"epochs": 20, "crop_padding": 2},
        "synthesis": {"iterations": 100, "classes_per_batch": 10, "roll": [0, 2]},
        "relabel": {"epochs": 100, "batch_size": 16, "crop_padding": 2, "test_every": 50},
    },
    "digits-tiny-imagenet-recipe": {
        "network": "convnet-32",
        "images": {**DIGITS_IMAGES, "side": 32},
        "teacher": {"epochs": 12, "warmup_epochs": 2},
        "synthesis": {"iterations": 50, "classes_per_batch": 10},
        "relabel": {"epochs": 60, "test_every": 20},
        "sre2l": {"iterations": 100},
    },
    # 80 px is above the limit for images kept on the device, so these stream as ImageNet-1K's do; and it is a
    # multiple of the side of a vision transformer's patches.
    "digits-imagenet-1k-recipe": {
        "images": {**DIGITS_IMAGES, "side": 80},
        "teacher": {"epochs": 1, "batch_size": 64, "weights": None},
        "synthesis": {"iterations": 10, "classes_per_batch": 5, "roll": [0, 11]},
        "relabel": {"epochs": 10},
        "sre2l": {"iterations": 20},
    },
}

PRESETS = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "tiny-imagenet": TINY_IMAGENET,
    "imagenet-1k": IMAGENET_1K,
    **{
        name: merge(recipe, {"dataset": "digits"}, DEMO_SIZES[name])
        for name, recipe in {
            "digits": CIFAR10,
            "digits-tiny-imagenet-recipe": TINY_IMAGENET,
            "digits-imagenet-1k-recipe": IMAGENET_1K,
        }.items()
    },
}

# The modifier `authors`, on top of any preset: what the authors' code does where it departs from our defaults. A
# preset's own "authors" entry adds what applies to its data set alone.
AUTHORS = {
    "synthesis": {
        "image_gradient_after_adjustment": "added",
        "weights_between_class_batches": "kept",
        "storage": "jpeg",
    },
    "relabel": {"reported": "best"},
}

# The modifier `best`: batches and mixing that made the best students on random real images, and a short synthesis that
# keeps images near the real ones that they start from: a tenth of the iterations at a fifth of the learning rate, with
# the means of the BatchNorm statistics matched and their variances left alone. Tried with ConvNet-128 at ipc 10 on
# validation images of CIFAR-10 (results/search), so it belongs to that preset alone; set last, because the presets of
# the digits are copies of this one.
PRESETS["cifar10"]["best"] = {
    "synthesis": {"iterations": 100, "learning_rate": 0.05, "r_var": 0.0},
    "relabel": {"batch_size": 10, "mixing": "cutmix", "mixing_alpha": 1.0},
}
