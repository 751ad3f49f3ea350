"""Settings: what a settings file may change, the checks, and where a run's numbers come from.

A settings file names a preset and what differs from it. `resolve` turns it into a `Setting` that
holds every number of a run, or stops with one line that names the key, the value and what is allowed.
"""

import re
from functools import reduce
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dwa_core.errors import InputError, quote, suggest
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
# Parts of file names, of which file systems take 255 bytes with what surrounds them.
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
Profile = Annotated[str, Field(pattern=PROFILE, max_length=40)]
Product = Annotated[str, Field(pattern=PRODUCT)]

SYNTHESISED = ("sre2l", "dwa")  # the methods whose images are made, not taken
# What says how a run is called and shown, and nothing of what it is.
NOT_RECORDED = {"seeds", "shown_in", "max_minutes"}


class Setting(Recipe):
    """Every number of one run, and how it is called, run and shown."""

    profile: Profile
    name: Name
    preset: str
    dataset: Name
    method: Literal["random-real", "herded-real", "sre2l", "dwa", "external"] = "dwa"
    distilled: str | None = None  # for `external`: the folder of a distilled set of others, or its id on the hub
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
    # Bit-exact on a GPU too, and slower. A CPU is bit-exact anyway, with the same number of threads.
    deterministic: bool = False
    max_minutes: Positive | None = None  # the run stops then and continues when it is run again; part of no result

    def record_path(self) -> Path:
        """Where this run's record lies."""
        return root() / "results" / self.profile / f"{self.name}-seed{self.seed}.json"

    def split_seeds(self) -> list["Setting"]:
        """The setting of each of its student seeds."""
        return [self.model_copy(update={"seed": seed}) for seed in self.seeds]

    def recorded(self) -> dict:
        """The setting as its record holds it: without what says how it is run and shown, not what it is."""
        return self.model_dump(exclude=NOT_RECORDED)


def resolve(parameters: dict) -> Setting:
    """The full setting of `parameters`: a preset and what differs from it.

    Later layers win: preset, teacher recipe, method, modifier `authors` or `best`, then the parameters themselves.

    Raises:
        InputError: an unknown key, a wrong type or an impossible value; one line.
    """
    if not isinstance(parameters, dict):
        raise InputError(f"settings: {quote(parameters)} is not a mapping of keys to values")
    given = {key: value for key, value in parameters.items() if value is not None}
    name = given.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: {quote(name)} is not known; {suggest(name, PRESETS)}")
    preset = dict(PRESETS[name])
    sre2l, authors, best, recipes = (preset.pop(key) for key in ("sre2l", "authors", "best", "teacher_recipes"))
    own_recipe, teacher = preset["teacher"]["recipe"], given.get("teacher")
    recipe = str(teacher.get("recipe", own_recipe)) if isinstance(teacher, dict) else own_recipe
    recipes = {own_recipe: {}, **recipes}
    if recipe not in recipes:
        allowed = ", ".join(recipes)
        raise InputError(f"teacher.recipe: {quote(recipe)} is not allowed with this preset; allowed: {allowed}")
    layers = [preset, {"teacher": recipes[recipe]}]
    if given.get("method") == "sre2l":
        layers.append({"synthesis": sre2l})
    if given.get("best") is True:
        layers.append(best or {})
    if given.get("authors") is True:
        layers += [AUTHORS, authors]
        if given.get("dataset", preset["dataset"]) != preset["dataset"]:
            # Their two values of CIFAR-10's std mean nothing for other images.
            layers.append({"images": {"std_after_teacher": None}})
    values = merge(*layers, given)
    values.setdefault("student", values["network"])
    try:
        setting = Setting.model_validate(values)
    except ValidationError as error:
        raise InputError(describe_error(error)) from None
    check_values(setting)
    check_environment()
    return setting


def non_default(stage: Strict) -> dict:
    """The values of `stage` that are not its fields' defaults: what an artifact's hash is made of.

    How often a network is tested and what its recipe is called determine nothing and are left out. A field that
    comes later leaves the hashes of stored artifacts as they are; a default that changes calls for a new
    store.FORMAT_VERSION.
    """
    return stage.model_dump(exclude_defaults=True, exclude={"test_every", "recipe"})


def describe_error(error: ValidationError) -> str:
    """One line for the first of pydantic's errors: key, value, what is allowed."""
    details = error.errors()[0]
    kind, place, value = details["type"], details["loc"], details["input"]
    key, allowed = ".".join(map(str, place))[:100], details["msg"][0].lower() + details["msg"][1:]
    if kind == "missing":
        return f"{key}: missing; the settings need a value for it"
    if kind == "extra_forbidden":
        model = reduce(lambda model, part: model.model_fields[part].annotation, place[:-1], Setting)
        return f"{key}: unknown key; {suggest(place[-1], model.model_fields)}"
    if kind == "model_type":
        allowed = "must hold keys and values"
    elif kind == "string_pattern_mismatch":
        allowed = ALLOWED[details["ctx"]["pattern"]]
    elif kind in ("float_type", "int_type") and isinstance(value, str) and re.fullmatch(r"[-+.\de]+", value):
        allowed += " (a number in quotes is text, and so is 1e-3 in YAML: write 0.001 or 1.0e-3)"
    return f"{key}: {quote(value)} is not allowed; {allowed}"


def check_values(setting: Setting) -> None:
    """Raises InputError for what the types of the fields cannot say."""
    method, best, roll, side = setting.method, setting.best, setting.synthesis.roll, setting.images.side
    published = setting.teacher.published_weights()
    chosen_for = [name for name, preset in PRESETS.items() if preset["best"]]
    together = "the folder of a distilled set of others and the method external need each other"
    file = "; a file must be .safetensors, as safetensors.torch.save_file writes a state dict"
    presets = f" with preset {setting.preset}; it was chosen for: {', '.join(chosen_for)}"
    rules = [
        ("seeds", len({*setting.seeds}) == len(setting.seeds), "; each seed may occur once"),
        ("distilled", (method == "external") == bool(setting.distilled), f" with method {method}; {together}"),
        ("best", not best or setting.preset in chosen_for, presets),
        ("best", not best or not setting.authors, " with authors: true; they are two answers to one question"),
        ("best", not best or method != "sre2l", " with method sre2l; it was chosen for dwa and random-real"),
        ("synthesis.roll", roll == sorted(roll), "; the first must not exceed the second"),
        ("synthesis.roll", max(map(abs, roll)) < side, f"; must be less than images.side, {side}"),
        ("relabel.labels", setting.relabel.labels == "teacher" or setting.tasks == 1, " with tasks; allowed: teacher"),
        ("teacher.weights", not published or re.fullmatch(r"\w+", setting.teacher.weights), file),
        ("stem", setting.stem == "torchvision" or not published, " with teacher.weights; allowed: torchvision"),
        ("teacher.fine_tune", setting.teacher.weights or not setting.teacher.fine_tune, " without teacher.weights"),
    ]
    for name, stage in {"teacher": setting.teacher, "relabel": setting.relabel}.items():
        limit = f"; must be below {name}.epochs, {stage.epochs}"
        rules.append((f"{name}.warmup_epochs", stage.warmup_epochs < stage.epochs, limit))
        padding = f"; must be less than images.side, {side}"
        rules.append((f"{name}.crop_padding", stage.crop_padding < side, padding))
    for key, holds, reason in rules:
        if not holds:
            value = reduce(getattr, key.split("."), setting)
            raise InputError(f"{key}: {quote(value)} is not allowed{reason}")
