"""Distils a folder of one's own images: writes a settings file for it and runs that. What `make distill` does.

The folder holds train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE alone, of which every fifth image is then
kept for testing. The settings file, settings/mine/NAME.yaml, can be changed and run again.
"""

import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dwa_core import devices, models
from dwa_core.batches import read_image
from dwa_core.errors import InputError
from dwa_paper.runs import real, runner, sources
from dwa_paper.runs.records import find_record, list_students
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import read
from dwa_paper.settings.presets import PRESETS, merge
from dwa_paper.settings.reading import parse_yaml
from dwa_paper.settings.schema import ALLOWED, NAME, quote, resolve

MEASURED = 2000  # images that the sizes and the colours are taken from
# Up to which median of the images' short sides a recipe is taken, and the side in pixels that it works at.
RECIPES = [
    (48, {"preset": "cifar10", "images": {"side": 32}}),
    (128, {"preset": "tiny-imagenet", "images": {"side": 64}}),
    (float("inf"), {"preset": "imagenet-1k", "images": {"side": 224}, "teacher": {"weights": None}}),
]


def distill(folder: Path, network: str, ipc: int, differences: list[str]) -> None:
    """Writes the settings of `folder`, with `differences` as `parse_differences` takes them, and makes their record."""
    given = parse_differences(differences)
    folder = Path(os.path.abspath(folder.expanduser()))  # a link keeps its own name
    if not folder.is_dir():
        raise InputError(f"DATA: {folder} is not a folder")
    if not re.fullmatch(NAME, folder.name):
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "images"
        link = f"ln -s {shlex.quote(folder.name)} {short}"
        raise InputError(f"DATA: {quote(folder.name)} is not allowed; {ALLOWED[NAME]}; rename it or link to it: {link}")
    os.environ["DWA_DATA"] = str(folder.parent)
    models.find_builders("network", network)
    path = write_settings(build_settings(folder.name, network, ipc, given))
    again = f"DWA_DATA={shlex.quote(os.environ['DWA_DATA'])} make results/{path.parent.name}/{path.stem}.json"
    print(f"settings: {path}; to run them again: {again}", flush=True)
    setting = resolve(read(path))
    runner.run(str(path), None, None, time.time(), None)
    for student in list_students(find_record(setting.model_copy(update={"seed": setting.seeds[0]}))):
        print(f"the distilled images for other tools: make share SET={student['distilled']['artifact']}")


def parse_differences(texts: list[str]) -> dict:
    """{"teacher": {"epochs": 30}} of ["teacher.epochs=30"]."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        stage, dot, inner = key.partition(".")
        if not equals or not stage or (dot and not inner):
            raise InputError(f"{quote(text)} is not allowed; expected key=value or stage.key=value")
        value = parse_yaml(value, key)
        result = merge(result, {stage: {inner: value} if dot else value})
    return result


def build_settings(dataset: str, network: str, ipc: int, differences: dict | None = None) -> dict:
    """The parameters of a setting for the data set `dataset`, a folder under $DWA_DATA.

    The recipe follows the size of the images; mean and standard deviation are ImageNet's with published weights, else
    measured on the training part at the recipe's side. `differences` are laid over what is chosen here, for example
    {"teacher": {"epochs": 30}}.
    """
    differences = dict(differences or {})
    if dataset == "digits":
        raise InputError("dataset: 'digits' is the name of the bundled digits; give the folder another name")
    train = sources.open_folder(dataset, Path(os.environ["DWA_DATA"]) / dataset)[0]["train"]
    some = train.select(np.linspace(0, len(train) - 1, min(len(train), MEASURED)).astype(int))
    try:
        short_side = np.median([min(read_image(image, row).size) for row, image in enumerate(some["image"])])
    except ValueError as error:
        raise InputError(f"dataset: {dataset}: training {error}") from None
    recipe = next(recipe for limit, recipe in RECIPES if short_side <= limit)
    method = differences.get("method", "dwa")
    name = f"{dataset}-{network}-{method}-ipc{ipc}"
    chosen = {"profile": "mine", "name": name, "dataset": dataset, "network": network, "method": method, "ipc": ipc}
    if "seed" in differences:
        chosen["seeds"] = [differences.pop("seed")]  # the seeds that are run
    setting = resolve(merge(chosen, recipe, differences))
    images = {key: PRESETS["imagenet-1k"]["images"][key] for key in ("mean", "std")}
    if not setting.teacher.published_weights():
        pixels = real.decode(dataset, "training", some, setting.images.side).numpy().reshape(-1, 3) / 255
        images = {"mean": pixels.mean(0).round(4).tolist(), "std": pixels.std(0).clip(0.01).round(4).tolist()}
    return merge(chosen, recipe, {"images": images}, differences)


def write_settings(parameters: dict) -> Path:
    """Writes settings/PROFILE/NAME.yaml, or finds it there with the same settings; returns its path.

    Raises:
        InputError: it is there with other settings, or a record of these settings is of other images.
    """
    setting = resolve(parameters)
    path = root() / "settings" / setting.profile / f"{setting.name}.yaml"
    otherwise = 'delete it, or give this run a name of its own with WITH="name=..."'
    if path.exists():
        settings = (resolve(read(path)), setting)
        there, here = (pd.json_normalize(each.model_dump()).to_dict("records")[0] for each in settings)
        for key in here:  # such as teacher.epochs
            if there[key] != here[key]:
                both = f"{key} is {quote(there[key])} there and {quote(here[key])} here"
                raise InputError(f"{path}: {both}; {otherwise}")
    if (record := find_record(setting.model_copy(update={"seed": setting.seeds[0]}))) is not None:
        device = devices.choose(setting.device).device
        data = real.load(setting.dataset, setting.images, device, validation=setting.validation)
        there, here = record["data"]["fingerprint"], data.fingerprint
        if there != here:
            both = f"the images' fingerprint is {there[:10]} there and {here[:10]} here"
            raise InputError(f"{setting.record_path()}: {both}; {otherwise}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None))
    return path
