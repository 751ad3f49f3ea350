"""Settings: every preset holds the numbers of the paper, layers win in order, bad input is one line."""

from functools import reduce

import pytest

from dwa_core.errors import InputError
from dwa_paper.settings import schema
from dwa_paper.settings.presets import PRESETS, merge
from dwa_paper.settings.schema import Setting

GIVEN = {"profile": "test", "name": "name"}


def resolved(preset="cifar10", **given) -> Setting:
    return schema.resolve({**GIVEN, "preset": preset, **given})


def value_at(setting: Setting, dotted: str):
    return reduce(getattr, dotted.split("."), setting)


# --------------------------------------------------------------------------------- numbers of the paper

# Written out by hand from the paper and the authors' code, one row per number, one column per data set.
COLUMNS = ("cifar10", "cifar100", "tiny-imagenet", "imagenet-1k")
TABLE = {
    "images.side": (32, 32, 64, 224),
    "images.mean": (
        [0.4914, 0.4822, 0.4465],
        [0.5071, 0.4867, 0.4408],
        [0.4802, 0.4481, 0.3975],
        [0.485, 0.456, 0.406],
    ),
    "images.std": ([0.2470, 0.2435, 0.2616], [0.2675, 0.2565, 0.2761], [0.2302, 0.2265, 0.2262], [0.229, 0.224, 0.225]),
    "images.std_after_teacher": (None, None, None, None),
    "stem": ("small", "small", "small", "torchvision"),
    "network": ("resnet18",) * 4,
    "teacher.weights": (None, None, None, "IMAGENET1K_V1"),
    "teacher.optimizer": ("sgd", "sgd", "sgd", "sgd"),
    "teacher.learning_rate": (0.1, 0.1, 0.2, 0.1),
    "teacher.momentum": (0.9, 0.9, 0.9, 0.9),
    "teacher.weight_decay": (5e-4, 5e-4, 1e-4, 1e-4),
    "teacher.epochs": (200, 200, 100, 90),
    "teacher.warmup_epochs": (0, 0, 5, 0),
    "teacher.cosine_stretch": (1, 1, 1, 1),
    "teacher.batch_size": (128, 128, 256, 256),
    "teacher.crop": ("padded", "padded", "resized", "resized"),
    "teacher.crop_padding": (4, 4, 4, 4),
    "teacher.seed": (0, 0, 0, 0),
    "synthesis.initial": ("real", "real", "real", "real"),
    "synthesis.adjustment": ("directed", "directed", "directed", "directed"),
    "synthesis.learning_rate": (0.25, 0.25, 0.1, 0.25),
    "synthesis.iterations": (1000, 1000, 2000, 2000),
    "synthesis.classes_per_batch": (100, 100, 200, 100),
    "synthesis.r_bn": (0.01, 0.01, 0.01, 0.01),
    "synthesis.r_var": (11.0, 11.0, 11.0, 2.0),
    "synthesis.steps": (12, 12, 12, 15),
    "synthesis.rho": (0.015, 0.015, 0.015, 0.015),
    "synthesis.resized_crop": (False, False, True, True),
    "synthesis.roll": ([0, 4], [0, 4], [0, 4], [0, 32]),
    "synthesis.seed": (0, 0, 0, 0),
    "relabel.optimizer": ("adamw", "adamw", "sgd", "adamw"),
    "relabel.learning_rate": (1e-3, 1e-3, 0.2, 1e-3),
    "relabel.weight_decay": (0.01, 0.01, 1e-4, 0.01),
    "relabel.decay_matrices_only": (False, False, False, True),
    "relabel.epochs": (400, 400, 200, 300),
    "relabel.warmup_epochs": (0, 0, 5, 0),
    "relabel.cosine_stretch": (1, 1, 1, 1),
    "relabel.batch_size": (128, 128, 64, 128),
    "relabel.crop": ("padded", "padded", "resized", "resized"),
    "relabel.crop_padding": (4, 4, 4, 4),
    "relabel.mixing": ("mixup", "mixup", "cutmix", "cutmix"),
    "relabel.mixing_alpha": (0.8, 0.8, 1.0, 1.0),
    "relabel.temperature": (30.0, 30.0, 20.0, 20.0),
    "relabel.loss_times_temperature_squared": (False, False, True, False),
    "relabel.test_every": (10, 10, 1, 10),
}

# The SRe2L baseline: the same except for these.
SRE2L_TABLE = {
    "synthesis.initial": ("noise", "noise", "noise", "noise"),
    "synthesis.adjustment": ("none", "none", "none", "none"),
    "synthesis.r_var": (1.0, 1.0, 1.0, 1.0),
    "synthesis.r_bn": (0.01, 0.01, 1.0, 0.01),
    "synthesis.learning_rate": (0.25, 0.25, 0.1, 0.25),
    "synthesis.iterations": (1000, 1000, 4000, 4000),
    "synthesis.roll": ([0, 4], [0, 4], [-4, 4], [0, 32]),
}


@pytest.mark.parametrize("method", ["dwa", "random-real", "sre2l"])
@pytest.mark.parametrize("preset", COLUMNS)
def test_presets_hold_the_numbers_of_the_paper(preset, method):
    setting = resolved(preset, method=method)
    table = {**TABLE, **SRE2L_TABLE} if method == "sre2l" else TABLE
    for dotted, row in table.items():
        assert value_at(setting, dotted) == row[COLUMNS.index(preset)], dotted


# Where the authors' code departs: the default, what the modifier `authors` changes it to, and for which presets.
DEPARTURES = {
    "synthesis.image_gradient_after_adjustment": ("cleared", {"added": PRESETS.keys()}),
    "synthesis.weights_between_class_batches": ("restored", {"kept": PRESETS.keys()}),
    "synthesis.weight_gradients_of_image_updates": (
        "cleared",
        {"added": ("imagenet-1k", "digits-imagenet-1k-recipe")},
    ),
    "synthesis.storage": ("png", {"jpeg": PRESETS.keys()}),
    "relabel.reported": ("last", {"best": PRESETS.keys()}),
    "relabel.teacher_batch_statistics": (False, {True: ("cifar10", "cifar100", "digits")}),
}


@pytest.mark.parametrize("dotted", DEPARTURES)
@pytest.mark.parametrize("preset", PRESETS)
def test_authors_changes_each_of_the_departures(preset, dotted):
    default, ((flipped, presets),) = DEPARTURES[dotted][0], DEPARTURES[dotted][1].items()
    assert value_at(resolved(preset), dotted) == default
    assert value_at(resolved(preset, authors=True), dotted) == (flipped if preset in presets else default)


def test_authors_gives_cifar10_the_second_standard_deviation_after_the_teacher():
    images = resolved("cifar10", authors=True).images
    assert images.std == [0.2470, 0.2435, 0.2616]
    assert images.std_after_teacher == [0.2023, 0.1994, 0.2010]
    for preset in ("cifar100", "tiny-imagenet", "imagenet-1k"):
        assert resolved(preset, authors=True).images.std_after_teacher is None


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("method", ["random-real", "sre2l", "dwa"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_with_every_method_and_modifier(preset, method, authors):
    setting = resolved(preset, method=method, authors=authors)
    assert (setting.preset, setting.method, setting.authors) == (preset, method, authors)
    assert setting.synthesis.iterations >= 1
    assert setting.relabel.reported == ("best" if authors else "last")


def test_layers_win_in_the_order_preset_method_authors_given(monkeypatch):
    layered = merge(
        PRESETS["cifar10"],
        {
            "synthesis": {"storage": "png", "r_bn": 1.0, "r_var": 1.0, "rho": 1.0},
            "sre2l": {"storage": "png", "r_bn": 2.0, "r_var": 2.0, "rho": 2.0},
            "authors": {"synthesis": {"r_bn": 3.0, "r_var": 3.0}},
        },
    )
    monkeypatch.setitem(PRESETS, "layered", layered)
    stage = resolved("layered", method="sre2l", authors=True, synthesis={"r_bn": 4.0}).synthesis
    assert (stage.rho, stage.storage, stage.r_var, stage.r_bn) == (2.0, "jpeg", 3.0, 4.0)
    assert resolved("layered", method="dwa").synthesis.rho == 1.0


def test_what_is_given_replaces_single_keys_of_a_stage_and_leaves_presets_alone():
    before = resolved().model_dump()
    given = {"synthesis": {"rho": 0.5}, "images": {"side": 16}}
    changed = resolved(**given).model_dump()
    assert changed["synthesis"].pop("rho") == 0.5
    assert changed["images"].pop("side") == 16
    del before["synthesis"]["rho"], before["images"]["side"]
    assert changed == before
    assert resolved().synthesis.rho == 0.015


def test_student_is_the_network_unless_named():
    assert resolved(network="convnet-64").student == "convnet-64"
    assert resolved(network="convnet-64", student="resnet50").student == "resnet50"


def test_a_key_without_a_value_means_the_default():
    assert resolved(ipc=None, student=None).model_dump() == resolved().model_dump()


# --------------------------------------------------------------------------------------------- bad input

BAD = {
    "unknown key": ({"ipcs": 10}, "ipcs"),
    "unknown key of a stage": ({"synthesis": {"lambda": 11}}, "synthesis.lambda", "r_var"),
    "unknown key of images": ({"images": {"size": 32}}, "images.size", "side"),
    "a stage that is no mapping": ({"teacher": 5}, "teacher", "5"),
    "text for a number": ({"ipc": "ten"}, "ipc", "'ten'"),
    "a number for text": ({"network": 18}, "network", "18"),
    "a fraction for a count": ({"ipc": 10.5}, "ipc", "10.5"),
    "true for a count": ({"ipc": True}, "ipc", "True"),
    "text for true": ({"authors": "yes"}, "authors", "'yes'"),
    "ipc 0": ({"ipc": 0}, "ipc", "0", "1"),
    "negative rho": ({"synthesis": {"rho": -0.015}}, "synthesis.rho", "-0.015", "0"),
    "rho that is no number": ({"synthesis": {"rho": float("nan")}}, "synthesis.rho", "nan"),
    "infinite rate": ({"teacher": {"learning_rate": float("inf")}}, "teacher.learning_rate", "inf"),
    "temperature 0": ({"relabel": {"temperature": 0.0}}, "relabel.temperature", "0.0"),
    "no epochs": ({"relabel": {"epochs": 0}}, "relabel.epochs", "0"),
    "batch of one": ({"teacher": {"batch_size": 1}}, "teacher.batch_size", "1"),
    "unknown preset": ({"preset": "cifar11"}, "preset", "'cifar11'", "did you mean cifar10?"),
    "no preset": ({"preset": None}, "preset"),
    "a preset that is no text": ({"preset": ["cifar10"]}, "preset", "['cifar10']"),
    "unknown method": ({"method": "mtt"}, "method", "'mtt'", "random-real", "sre2l", "dwa"),
    "unknown optimiser": ({"relabel": {"optimizer": "lion"}}, "relabel.optimizer", "'lion'", "adamw"),
    "unknown device": ({"device": "tpu"}, "device", "'tpu'", "cuda"),
    "no seeds": ({"seeds": []}, "seeds", "[]"),
    "negative seed": ({"seeds": [0, -1]}, "seeds", "-1"),
    "roll the wrong way round": ({"synthesis": {"roll": [4, 0]}}, "synthesis.roll", "[4, 0]"),
    "roll of one number": ({"synthesis": {"roll": [4]}}, "synthesis.roll", "[4]"),
    "warm-up as long as training": (
        {"teacher": {"epochs": 5, "warmup_epochs": 5}},
        "teacher.warmup_epochs",
        "5",
        "teacher.epochs",
    ),
    "standard deviation 0": ({"images": {"std": [0.2, 0.0, 0.2]}}, "images.std", "0.0"),
    "mean that is no number": ({"images": {"mean": [0.5, float("nan"), 0.5]}}, "images.mean", "nan"),
    "two channels": ({"images": {"mean": [0.5, 0.5]}}, "images.mean", "[0.5, 0.5]"),
    "a product that make cannot have": (
        {"shown_in": ["chart-1"]},
        "shown_in",
        "'chart-1'",
        "must be a table or figure",
    ),
    "weights of another format": (
        {"teacher": {"weights": "model.pth"}},
        "teacher.weights",
        "'model.pth'",
        ".safetensors",
    ),
    "name with a slash": ({"name": "a/b"}, "name", "'a/b'"),
    "key of several lines": ({"ipc\nseed": 1}, "unknown key"),
    "value of several lines": ({"method": "dwa\nsre2l"}, "method", "dwa"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_value_is_refused_in_one_line_that_names_key_and_value(case, refused):
    given, *texts = BAD[case]
    with refused(*texts):
        schema.resolve({**GIVEN, "preset": "cifar10", **given})


@pytest.mark.parametrize("missing", ["profile", "name"])
def test_missing_key_is_named(missing, refused):
    given = {key: value for key, value in GIVEN.items() if key != missing}
    with refused(missing, "missing"):
        schema.resolve({**given, "preset": "cifar10"})


def test_settings_that_are_no_mapping_are_refused(refused):
    with refused("['preset']"):
        schema.resolve(["preset"])


def test_data_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("DWA_DATA", str(tmp_path / "nowhere"))
    with refused("DWA_DATA", str(tmp_path / "nowhere")):
        resolved()


# -------------------------------------------------------------------------------------- the modifier best


def test_best_is_a_recipe_of_its_own_for_the_preset_that_it_was_chosen_for():
    best, usual = resolved("cifar10", best=True), resolved("cifar10")
    assert (best.synthesis.iterations, best.synthesis.r_var) == (100, 0.0)
    assert (best.relabel.mixing, best.relabel.batch_size) == ("cutmix", 10)
    assert best.teacher == usual.teacher
    assert resolved("cifar10", best=True, relabel={"batch_size": 50}).relabel.batch_size == 50


@pytest.mark.parametrize("preset", ["cifar100", "tiny-imagenet", "digits"])
def test_best_of_another_preset_is_refused(preset):
    with pytest.raises(InputError, match=rf"^best: True is not allowed with preset {preset}; .*: cifar10$"):
        resolved(preset, best=True)


def test_best_and_authors_exclude_each_other():
    with pytest.raises(InputError, match="best: True is not allowed with authors: true"):
        resolved("cifar10", best=True, authors=True)


def test_best_of_a_method_that_it_was_not_chosen_for_is_refused():
    with pytest.raises(InputError, match=r"^best: True is not allowed with method sre2l; .*dwa"):
        resolved("cifar10", best=True, method="sre2l")
