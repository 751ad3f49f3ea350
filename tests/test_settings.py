"""Settings: every preset holds the numbers of DESIGN section 2, layers win in order, bad input is one line."""

from functools import reduce

import pytest

from dwa_core import devices, notebook, settings, settings_files

GIVEN = {"profile": "test", "name": "name"}


def resolved(preset="cifar10", **given) -> settings.Setting:
    return settings.resolve({**GIVEN, "preset": preset, **given})


def value_at(setting: settings.Setting, dotted: str):
    return reduce(getattr, dotted.split("."), setting)


# ------------------------------------------------------------------------------------- numbers in print

# Written out by hand from the table of DESIGN section 2, one row per number, one column per data set.
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

# What DESIGN says of the SRe2L baseline: the same, but for these.
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
def test_presets_hold_the_numbers_of_the_design(preset, method):
    setting = resolved(preset, method=method)
    table = {**TABLE, **SRE2L_TABLE} if method == "sre2l" else TABLE
    for dotted, row in table.items():
        assert value_at(setting, dotted) == row[COLUMNS.index(preset)], dotted


# The table "Where the authors' code departs": what the modifier turns each switch to, and where.
DEPARTURES = {
    "synthesis.image_gradient_after_adjustment": ("cleared", {"added": settings.PRESETS.keys()}),
    "synthesis.weights_between_class_batches": ("restored", {"kept": settings.PRESETS.keys()}),
    "synthesis.storage": ("png", {"jpeg": settings.PRESETS.keys()}),
    "relabel.reported": ("last", {"best": settings.PRESETS.keys()}),
    "relabel.teacher_batch_statistics": (False, {True: ("cifar10", "cifar100", "digits")}),
}


@pytest.mark.parametrize("dotted", DEPARTURES)
@pytest.mark.parametrize("preset", settings.PRESETS)
def test_authors_flips_every_switch_of_the_departures(preset, dotted):
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
@pytest.mark.parametrize("preset", settings.PRESETS)
def test_every_preset_resolves_with_every_method_and_modifier(preset, method, authors):
    setting = resolved(preset, method=method, authors=authors)
    assert (setting.preset, setting.method, setting.authors) == (preset, method, authors)
    assert setting.synthesis.iterations >= 1
    assert setting.relabel.reported == ("best" if authors else "last")


def test_layers_win_in_the_order_preset_method_authors_given(monkeypatch):
    layered = settings.merged(
        settings.PRESETS["cifar10"],
        {
            "synthesis": {"storage": "png", "r_bn": 1.0, "r_var": 1.0, "rho": 1.0},
            "sre2l": {"storage": "png", "r_bn": 2.0, "r_var": 2.0, "rho": 2.0},
            "authors": {"synthesis": {"r_bn": 3.0, "r_var": 3.0}},
        },
    )
    monkeypatch.setitem(settings.PRESETS, "layered", layered)
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
    "unknown preset": ({"preset": "cifar11"}, "preset", "'cifar11'", "cifar10", "imagenet-1k"),
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
    "name with a slash": ({"name": "a/b"}, "name", "'a/b'"),
    "key of several lines": ({"ipc\nseed": 1}, "unknown key"),
    "value of several lines": ({"method": "dwa\nsre2l"}, "method", "dwa"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_value_is_refused_in_one_line_that_names_key_and_value(case, refused):
    given, *texts = BAD[case]
    with refused(*texts):
        settings.resolve({**GIVEN, "preset": "cifar10", **given})


@pytest.mark.parametrize("missing", ["profile", "name"])
def test_missing_key_is_named(missing, refused):
    given = {key: value for key, value in GIVEN.items() if key != missing}
    with refused(missing, "missing"):
        settings.resolve({**given, "preset": "cifar10"})


def test_settings_that_are_no_mapping_are_refused(refused):
    with refused("['preset']"):
        settings.resolve(["preset"])


def test_data_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("DWA_DATA", str(tmp_path / "nowhere"))
    with refused("DWA_DATA", str(tmp_path / "nowhere")):
        resolved()


def test_cuda_where_there_is_none_is_refused(monkeypatch, refused):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with refused("device", "'cuda'", "cpu"):
        devices.choose_device(resolved(device="cuda").device)


# ------------------------------------------------------------------------------------------ settings files


@pytest.fixture
def settings_file(tmp_path):
    """A function that writes a settings file called lite/setting.yaml and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "lite" / "setting.yaml"
        path.parent.mkdir()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_settings_file_is_read_as_it_is(settings_file):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nsynthesis: {rho: 1.0e-3}\n")
    parameters = settings_files.read(path)
    assert parameters == {"profile": "lite", "name": "setting", "preset": "cifar10", "synthesis": {"rho": 0.001}}
    assert settings.resolve(parameters).synthesis.rho == 0.001


def test_exponent_that_yaml_reads_as_text_is_refused_with_a_hint(settings_file, refused):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nsynthesis: {rho: 1e-3}\n")
    with refused("synthesis.rho", "'1e-3'", "1.0e-3"):
        settings.resolve(settings_files.read(path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- profile\n- name\n", "mapping"),
        ("", "mapping"),
        ("profile: [lite\nname: setting\n", "not YAML"),
        ("profile: lite\n\tname: setting\n", "not YAML"),
        (b"profile: lite\nname: setting\npreset: \xe9\n", "not YAML"),
        ("name: setting\npreset: cifar10\n", "profile"),
        ("profile: lite\nname: setting\nseeds:\n- 0\n", "seeds: [0, 1, 2]"),
        ("profile: lite\nname: setting\nshown_in: table-1\n", "shown_in: [table-1]"),
        ("profile: lite\nname: setting\nshown_in: [table-1, table-77]\n", "'table-77'"),
        ("profile: lite\nname: setting\nshown_in: [1]\n", "allowed: figure-accuracy, "),
        ("profile: paper\nname: setting\npreset: cifar10\n", "'paper'"),
        ("profile: lite\nname: other\npreset: cifar10\n", "'other'"),
    ],
)
def test_bad_settings_file_is_refused_in_one_line_that_names_it(content, text, settings_file, refused):
    path = settings_file(content)
    with refused(str(path), text):
        settings_files.read(path)


def test_missing_settings_file_is_refused(tmp_path, refused):
    with refused(str(tmp_path / "lite" / "none.yaml"), "cannot be read"):
        settings_files.read(tmp_path / "lite" / "none.yaml")


def test_settings_can_be_shown_wherever_make_has_a_notebook_and_nowhere_else(settings_file):
    products = settings_files.products()
    assert products["table-1"].name == "table_01.ipynb"
    assert products["table-10"].name == "table_10.ipynb"
    assert products["figure-steps-rho"].name == "figure_steps_rho.ipynb"
    assert {"table-6", "table-spread"} < products.keys()
    assert not {"table-01", "table-7", "table-8", "report", "setting"} & products.keys()
    path = settings_file(f"profile: lite\nname: setting\nshown_in: [{', '.join(products)}]\n")
    assert settings_files.read(path)["shown_in"] == list(products)


def test_files_of_a_product_are_those_that_name_it_or_say_nothing(settings_file, tmp_path, monkeypatch):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\n")
    other = path.with_name("other.yaml")
    other.write_text("profile: lite\nname: other\npreset: cifar10\nshown_in: [table-3, figure-variance]\n")
    monkeypatch.setattr(settings_files, "SETTINGS", tmp_path)
    assert settings_files.files("lite") == [other, path]
    assert settings_files.files("lite", "table-3") == [other]
    assert settings_files.files("lite", "table-1") == settings_files.files("lite", "figure-gallery") == [path]


# ---------------------------------------------------------------------------------------------- notebooks

# What a kernel holds when a notebook makes its first call; `In` is Jupyter's list of the cells that were run.
NOTEBOOK = {**GIVEN, "preset": "digits", "ipc": 10, "student": None, "np": object(), "In": ["", "ipc = 10"]}


def test_notebook_parameters_become_a_setting():
    cells = [*NOTEBOOK["In"], "# Parameters\nipc = 3\n"]
    setting = notebook.read_setting({**NOTEBOOK, "ipc": 3, "synthesis": {"rho": 0.5}, "In": cells})
    assert (setting.ipc, setting.synthesis.rho, setting.student) == (3, 0.5, "convnet-64")


def test_parameter_that_papermill_does_not_know_is_refused(refused):
    cells = [*NOTEBOOK["In"], "# Parameters\nipc = 3\nipcs = 5\n"]
    with refused("ipcs: ", "ipc,"):
        notebook.read_setting({**NOTEBOOK, "ipc": 3, "ipcs": 5, "In": cells})


@pytest.mark.parametrize("key", ["network", "student"])
def test_unknown_network_is_refused_before_any_work(key, refused):
    with refused(key, "'resnet19'", "resnet18", "convnet-N"):
        notebook.read_setting({**NOTEBOOK, key: "resnet19"})


def test_network_that_cannot_be_a_teacher_is_refused_before_any_work(refused):
    transformer = {"network": "vit_tiny_patch16_224", "stem": "torchvision", "images": {"side": 32}}
    with refused("network", "BatchNorm2d"):
        notebook.read_setting({**NOTEBOOK, **transformer})
    with refused("stem", "student", "small"):
        notebook.read_setting({**NOTEBOOK, "student": "vit_tiny_patch16_224"})


def test_notebook_of_a_profile_knows_profiles_and_no_other_parameter(refused):
    notebook.read_profile({"profile": "demo", "In": ["", "# Parameters\nprofile = 'demo'\n"]})
    with refused("profile", "'huge'", "demo", "lite", "paper", "search"):
        notebook.read_profile({"profile": "huge", "In": [""]})
    with refused("ipc: ", "profile"):
        notebook.read_profile({"profile": "demo", "ipc": 3, "In": ["", "# Parameters\nipc = 3\n"]})


def test_best_is_a_recipe_of_its_own_for_the_preset_that_it_was_chosen_for():
    best, usual = resolved("cifar10", best=True), resolved("cifar10")
    assert (best.synthesis.iterations, best.synthesis.r_var) == (100, 0.0)
    assert (best.relabel.mixing, best.relabel.batch_size) == ("cutmix", 10)
    assert best.teacher == usual.teacher
    assert resolved("cifar10", best=True, relabel={"batch_size": 50}).relabel.batch_size == 50


@pytest.mark.parametrize("preset", ["cifar100", "tiny-imagenet", "digits"])
def test_best_of_another_preset_is_refused(preset):
    with pytest.raises(settings.InputError, match=rf"^best: true is not allowed with preset {preset}; .*: cifar10$"):
        resolved(preset, best=True)


def test_best_and_authors_exclude_each_other():
    with pytest.raises(settings.InputError, match="best: true is not allowed with authors: true"):
        resolved("cifar10", best=True, authors=True)


def test_best_of_a_method_that_it_was_not_chosen_for_is_refused():
    with pytest.raises(settings.InputError, match=r"^best: true is not allowed with method sre2l; .*dwa"):
        resolved("cifar10", best=True, method="sre2l")
