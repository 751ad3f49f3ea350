"""Presets: the recipes of presets.yaml, each whole, and the modifier `authors`."""

import copy
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("presets.yaml")


def merge(base: dict, *differences: dict) -> dict:
    """A deep copy of `base` with each of `differences` laid over it, nested mappings key by key."""
    result = copy.deepcopy(base)
    for difference in differences:
        for key, value in difference.items():
            both_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merge(result[key], value) if both_nested else copy.deepcopy(value)
    return result


DESCRIBED = yaml.safe_load(PATH.read_text())
AUTHORS = DESCRIBED.pop("authors")
PRESETS = {}
for name, preset in DESCRIBED.items():
    base = PRESETS.get(preset.pop("base", None), {"sre2l": {}, "authors": {}, "best": {}, "teacher_recipes": {}})
    PRESETS[name] = merge(base, preset)
del PRESETS["cifar"]  # the base of two, and no data set's
