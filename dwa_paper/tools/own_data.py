"""Distils a folder of one's own images: writes a settings file for it and runs that. What `make distill` does.

The folder holds train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE alone, of which every fifth image is then
kept for testing. The settings file, settings/mine/NAME.yaml, can be changed and run again.
"""

import os
import shlex
import time
from pathlib import Path

import numpy as np
import yaml

from dwa_core import devices, models
from dwa_core.errors import InputError
from dwa_paper.runs import real, runner, sources
from dwa_paper.runs.records import find_record
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import read
from dwa_paper.settings.presets import merge
from dwa_paper.settings.schema import resolve, shown

MEASURED = 2000  # images that the sizes and the colours are taken from
# Up to which median of the images' short sides a recipe is taken, and the side in pixels that it works at.
RECIPES = [
    (48, {"preset": "cifar10", "images": {"side": 32}}),
    (128, {"preset": "tiny-imagenet", "images": {"side": 64}}),
    (float("inf"), {"preset": "imagenet-1k", "images": {"side": 224}, "teacher": {"weights": None}}),
]


def distill(folder: Path, network: str, ipc: int, differences: list[str]) -> None:
    """Writes the settings of `folder` and makes their record.

    Args:
        differences: what differs from the recipe, each as `parse_differences` takes it.

    Raises:
        InputError: something that was given cannot be used.
    """
    given = parse_differences(differences)
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"DATA: {folder} is not a folder")
    os.environ["DWA_DATA"] = str(folder.resolve().parent)
    models.find_builders("network", network)
    path = write_settings(settings_for(folder.resolve().name, network, ipc, given))
    again = f"DWA_DATA={shlex.quote(os.environ['DWA_DATA'])} make results/{path.parent.name}/{path.stem}.json"
    print(f"settings: {path}; to run them again: {again}", flush=True)
    runner.run(str(path), None, None, time.time())


def settings_for(dataset: str, network: str, ipc: int, differences: dict | None = None) -> dict:
    """The parameters of a setting for the data set `dataset`, a folder under $DWA_DATA.

    The recipe follows the size of the images; mean and standard deviation are measured on the training part at the
    recipe's side.

    Args:
        differences: laid over what is chosen here, for example {"teacher": {"epochs": 30}}.

    Raises:
        InputError: the folder cannot be read as a data set.
    """
    differences = differences or {}
    if dataset == "digits":
        raise InputError("dataset: 'digits' is the name of the bundled digits; give the folder another name")
    folder, largest = Path(os.environ["DWA_DATA"]) / dataset, RECIPES[-1][1]["images"]["side"]
    train = sources.open_folder(dataset, folder, largest)[0]["train"]  # at this side, no file is read whole
    some = train.select(np.linspace(0, len(train) - 1, min(len(train), MEASURED)).astype(int))
    short_sides = [min(image.size) for image in some["image"]]
    recipe = next(recipe for limit, recipe in RECIPES if np.median(short_sides) <= limit)
    side = merge(recipe, differences)["images"]["side"]
    pixels = real.decode(dataset, "training", some, side).numpy().reshape(-1, 3) / 255
    images = {"mean": pixels.mean(0).round(4).tolist(), "std": pixels.std(0).clip(0.01).round(4).tolist()}
    method = differences.get("method", "dwa")
    name = f"{dataset}-{network}-{method}-ipc{ipc}"
    chosen = {"profile": "mine", "name": name, "dataset": dataset, "network": network, "method": method, "ipc": ipc}
    if "seed" in differences:
        chosen["seeds"] = [differences["seed"]]  # the seeds that are run
    return merge(chosen, recipe, {"images": images}, differences)


def write_settings(parameters: dict) -> Path:
    """Writes settings/<profile>/<name>.yaml, or finds it there with the same settings; returns its path.

    Raises:
        InputError: it is there with other settings, or a record of these settings is of other images.
    """
    setting = resolve(parameters)
    path = root() / "settings" / setting.profile / f"{setting.name}.yaml"
    otherwise = 'delete it, or give this run a name of its own with WITH="name=..."'
    if path.exists():
        there, asked = (flat(each.model_dump()) for each in (resolve(read(path)), setting))
        key = next((key for key in asked if there[key] != asked[key]), None)
        if key is not None:
            raise InputError(f"{path}: {key} is {shown(there[key])} there and {shown(asked[key])} here; {otherwise}")
    if (record := find_record(setting)) is not None:
        device = devices.choose(setting.device).device
        found = real.load(setting.dataset, setting.images, device, validation=setting.validation)
        if found.fingerprint != record["data"]["fingerprint"]:
            there, here = record["data"]["fingerprint"][:10], found.fingerprint[:10]
            raise InputError(
                f"{setting.record_path()}: the images' fingerprint is {there} there and {here} here; {otherwise}"
            )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None))
    return path


def flat(values: dict) -> dict:
    """{"teacher.epochs": 30} of {"teacher": {"epochs": 30}}."""
    return {
        f"{key}.{inner}" if inner else key: value
        for key, stage in values.items()
        for inner, value in (stage.items() if isinstance(stage, dict) else [("", stage)])
    }


def parse_differences(texts: list[str]) -> dict:
    """{"teacher": {"epochs": 30}} of ["teacher.epochs=30"].

    Raises:
        InputError: a text is not of the form key=value or stage.key=value.
    """
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        stage, dot, inner = key.partition(".")
        if not equals or not stage or (dot and not inner):
            raise InputError(f"{shown(text)} is not allowed; expected key=value or stage.key=value")
        value = yaml.safe_load(value)
        result = merge(result, {stage: {inner: value}} if dot else {stage: value})
    return result
