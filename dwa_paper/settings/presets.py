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


def load_presets() -> tuple[dict[str, dict], dict]:
    """Every preset by name, with what it takes from its base filled in, and the modifier `authors`."""
    described, presets = yaml.safe_load(PATH.read_text()), {}
    authors = described.pop("authors")
    for name, preset in described.items():
        base = presets.get(preset.pop("base", None), {"sre2l": {}, "authors": {}, "best": {}, "teacher_recipes": {}})
        presets[name] = merge(base, preset)
    return {name: preset for name, preset in presets.items() if "dataset" in preset}, authors


PRESETS, AUTHORS = load_presets()
