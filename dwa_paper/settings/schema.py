"""Settings: what a settings file may change, the checks, and where a run's numbers come from.

A settings file names a preset and what differs from it. `resolve` turns it into a `Setting` that
holds every number of a run, or stops with one line that names the key, the value and what is allowed.
"""

import copy
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dwa_core.errors import InputError
from dwa_core.recipe import Count, Positive, Recipe, Seed, Strict
from dwa_paper.settings.environment import check_environment, root
from dwa_paper.settings.presets import AUTHORS, PRESETS, merge

# Patterns of texts, and what a message says of them.
NAME, PROFILE, PRODUCT = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^[a-z0-9-]+$", r"^(table|figure|what)-[a-z0-9-]+$"
ALLOWED = {
    NAME: "only letters, digits, '-', '_' and '.', and none of the last three at the beginning",
    PROFILE: "only small letters, digits and '-'",
    PRODUCT: "must be a table or figure as make calls it, such as table-1 or figure-gain",
}
Name = Annotated[str, Field(pattern=NAME)]  # part of file names
Product = Annotated[str, Field(pattern=PRODUCT)]

SYNTHESISED = ("sre2l", "dwa")  # the methods whose images are made, not taken
# What says how a run is called and shown, and nothing of what it is.
NOT_RECORDED = {"seeds", "shown_in", "max_minutes"}


class Setting(Recipe):
    """Every number of one run, and how it is called, run and shown."""

    profile: Annotated[str, Field(pattern=PROFILE)]
    name: Name
    preset: str
    dataset: Name
    method: Literal["random-real", "herded-real", "sre2l", "dwa", "external"] = "dwa"
    distilled: str | None = None  # for `external`: the folder of a distilled set of others
    authors: bool = False
    best: bool = False
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([0])
    # The tables and figures that its records go into.
    shown_in: list[Product] = Field(["table-1", "figure-accuracy", "figure-losses", "figure-gallery"])
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Class-incremental learning: the classes come in so many tasks of equal size; 1 is all at once.
    tasks: Count = 1
    # This share of the training images is held out, and tested on instead of the test part: to choose by.
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deterministic: bool = False  # bit-exact on a GPU too, and slower; a CPU is bit-exact anyway
    max_minutes: Positive | None = None  # the run stops then and continues when it is run again; part of no result

    def record_path(self) -> Path:
        """Where this run's record lies."""
        return root() / "results" / self.profile / f"{self.name}-seed{self.seed}.json"

    def recorded(self) -> dict:
        """The setting as its record holds it: without what says how it is run and shown, not what it is."""
        return self.model_dump(exclude=NOT_RECORDED)


# ----------------------------------------------------------------------------------------------- checks


def resolve(parameters: dict) -> Setting:
    """The full setting of `parameters`: a preset and what differs from it.

    Later layers win: preset, teacher recipe, method, modifier `authors` or `best`, then the parameters themselves.

    Raises:
        InputError: an unknown key, a wrong type or an impossible value; one line.
    """
    if not isinstance(parameters, dict):
        raise InputError(f"settings: {shown(parameters)} is not a mapping of keys to values")
    given = {key: value for key, value in parameters.items() if value is not None}
    preset_name = given.get("preset")
    if not isinstance(preset_name, str) or preset_name not in PRESETS:
        raise InputError(f"preset: {shown(preset_name)} is not known; allowed: {', '.join(PRESETS)}")
    preset = copy.deepcopy(PRESETS[preset_name])
    sre2l, authors, best, recipes = (preset.pop(key) for key in ("sre2l", "authors", "best", "teacher_recipes"))
    if given.get("dataset", preset["dataset"]) != preset["dataset"]:
        authors.pop("images", None)  # the authors' two values of CIFAR-10's std mean nothing for other images
    layers = [preset, given]
    if given.get("authors") is True:
        layers[1:1] = [AUTHORS, authors]
    if given.get("best") is True:
        if not best:
            chosen_for = ", ".join(name for name, recipe in PRESETS.items() if recipe["best"])
            raise InputError(f"best: true is not allowed with preset {preset_name}; it was chosen for: {chosen_for}")
        if given.get("authors") is True:
            raise InputError("best: true is not allowed with authors: true; they are two answers to one question")
        if given.get("method") == "sre2l":
            raise InputError("best: true is not allowed with method sre2l; it was chosen for dwa and real images")
        layers[1:1] = [best]
    if given.get("method") == "sre2l":
        layers[1:1] = [{"synthesis": sre2l}]
    layers[1:1] = [{"teacher": teacher_recipe(given, preset, recipes)}]
    values = merge(*layers)
    values.setdefault("student", values["network"])
    try:
        setting = Setting.model_validate(values)
    except ValidationError as error:
        raise InputError(first_line_of(error)) from None
    check_values(setting)
    check_environment()
    return setting


def teacher_recipe(given: dict, preset: dict, recipes: dict) -> dict:
    """The numbers of the teacher recipe that `given` names, where it is not the preset's own.

    Raises:
        InputError: the preset has no recipe of that name.
    """
    stage = given.get("teacher")
    name = stage.get("recipe") if isinstance(stage, dict) else None
    if name is None or name == preset["teacher"]["recipe"]:
        return {}
    if not isinstance(name, str) or name not in recipes:
        allowed = ", ".join([preset["teacher"]["recipe"], *recipes])
        raise InputError(f"teacher.recipe: {shown(name)} is not allowed with this preset; allowed: {allowed}")
    return recipes[name]


def non_default(stage: Strict) -> dict:
    """The values of `stage` that are not its fields' defaults: what an artifact's hash is made of.

    How often a network is tested and what its recipe is called determine nothing and are left out. A field that
    comes later leaves the hashes of stored artifacts as they are; a default that changes calls for a new
    store.FORMAT_VERSION.
    """
    return stage.model_dump(exclude_defaults=True, exclude={"test_every", "recipe"})


def shown(value) -> str:
    """`value` as a message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def first_line_of(error: ValidationError) -> str:
    """One line for the first of pydantic's errors: key, value, what is allowed."""
    details = error.errors()[0]
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        *parents, _ = details["loc"]
        model = Setting
        for parent in parents:
            model = model.model_fields[parent].annotation
        return f"{key}: unknown key; allowed here: {', '.join(model.model_fields)}"
    if details["type"] == "missing":
        return f"{key}: missing; the settings need a value for it"
    allowed = details["msg"][0].lower() + details["msg"][1:]
    hint = ""
    if details["type"] in ("float_type", "int_type") and re.fullmatch(r"[-+.\de]+", str(details["input"])):
        hint = " (a number in quotes is text, and so is 1e-3 in YAML: write 0.001 or 1.0e-3)"
    if details["type"] == "model_type":
        allowed = "must hold keys and values"
    if details["type"] == "string_pattern_mismatch":
        allowed = ALLOWED[details["ctx"]["pattern"]]
    return f"{key}: {shown(details['input'])} is not allowed; {allowed}{hint}"


def check_values(setting: Setting) -> None:
    """What the types of the fields cannot say."""
    if len(set(setting.seeds)) != len(setting.seeds):
        raise InputError(f"seeds: {setting.seeds} is not allowed; each seed may occur once")
    if (setting.method == "external") != (setting.distilled is not None):
        raise InputError(
            f"distilled: {shown(setting.distilled)} is not allowed with method {setting.method}; the folder of a "
            "distilled set of others and the method external need each other"
        )
    low, high = setting.synthesis.roll
    if low > high:
        raise InputError(f"synthesis.roll: {[low, high]} is not allowed; the first must not exceed the second")
    for stage in ("teacher", "relabel"):
        training = getattr(setting, stage)
        if training.warmup_epochs >= training.epochs:
            raise InputError(
                f"{stage}.warmup_epochs: {training.warmup_epochs} is not allowed; "
                f"must be below {stage}.epochs, {training.epochs}"
            )
    if setting.relabel.labels != "teacher" and setting.tasks > 1:
        raise InputError(f"relabel.labels: {setting.relabel.labels!r} is not allowed with tasks; allowed: teacher")
    if setting.teacher.published_weights() and setting.stem != "torchvision":
        raise InputError(f"stem: {setting.stem!r} is not allowed with teacher.weights; allowed: torchvision")
