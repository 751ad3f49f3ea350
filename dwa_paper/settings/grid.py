"""The settings that settings/grid.yaml describes: one for each combination, named after what sets it apart."""

import itertools
from functools import reduce
from pathlib import Path

import yaml

from dwa_core.errors import InputError
from dwa_paper.settings import schema
from dwa_paper.settings.reading import load_yaml

SETTINGS = Path(__file__).resolve().parents[2] / "settings"
GRID = SETTINGS / "grid.yaml"
# The first line of a generated file; a file without it is a user's own.
HEADER = b"# Generated from settings/grid.yaml by `make settings`. To change this setting here, delete this line.\n"
# In the order of a file's lines.
TOP_LEVEL = ("preset", "method", "distilled", "ipc", "network", "student", "authors", "tasks", "validation")


def expand(profile: str) -> dict[str, dict]:
    """The parameters of every setting that the grid describes for `profile`, by name; none if it does not know it.

    Raises:
        InputError: two runs have one name, or one cannot be used.
    """
    description = load_yaml(GRID).get(profile, {})
    template, seeds, common = (description.pop(key, {}) for key in ("name", "seeds", "common"))
    runs = {}
    for product, groups in description.items():
        for group in groups:
            # Every combination of its lists; what is no list is the same in all.
            axes = {key: value if isinstance(value, list) else [value] for key, value in group.items()}
            group_seeds = axes.pop("seeds", seeds)
            for values in itertools.product(*axes.values()):
                run = minimal_settings(dict(zip(axes, values, strict=True)), template, profile, common)
                known = runs.setdefault(run["name"], {**run, "seeds": set(), "shown_in": []})
                if {**run, "seeds": known["seeds"], "shown_in": known["shown_in"]} != known:
                    raise InputError(f"{GRID.name}: two runs are called {run['name']}")
                known["seeds"] |= set(group_seeds)
                known["shown_in"] += [product] if product not in known["shown_in"] else []
    return {name: {**run, "seeds": sorted(run["seeds"])} for name, run in runs.items()}


def minimal_settings(parameters: dict, template: str, profile: str, common: dict) -> dict:
    """The settings of one run without what its preset or a default says anyway, named after what is left.

    Args:
        parameters: keys of a settings file, those of stages with a dot: "synthesis.rho".
        template: the beginning of the name, with keys in braces.
        common: what holds for all runs of the profile and is no part of a name; `parameters` win.
    """
    own = {key for key, value in parameters.items() if common.get(key) != value}
    parameters = {**common, **parameters}
    top_level = {key: parameters[key] for key in TOP_LEVEL if key in parameters}
    base = schema.resolve({"profile": profile, "name": "unnamed", **top_level})
    usual = {"student": base.network, "authors": False, "tasks": 1, "validation": 0.0}
    usual["network"] = schema.PRESETS[base.preset]["network"]
    name = template.format(**top_level)
    for key in ("network", "student", "tasks"):
        if f"{{{key}}}" not in template and key in own and top_level[key] != usual[key]:
            name += label(key, top_level[key])
    stages = {}
    for dotted, value in parameters.items():
        stage, _, key = dotted.partition(".")
        if key and value != reduce(getattr, (stage, key), base):
            stages.setdefault(stage, {})[key] = value
            if dotted in own:
                name += label(f"{stage}-{key}" if key in schema.Setting.model_fields else key, value)
    name += "-authors" if base.authors else ""
    written = {key: value for key, value in top_level.items() if key == "network" or value != usual.get(key)}
    run = {"profile": profile, "name": name, **written, **stages}
    schema.resolve(run)
    return run


def label(key: str, value) -> str:
    """A value's part of a name: -student-resnet50, -rho0.02, and of what is switched on or a list, the key alone."""
    if isinstance(value, str):
        return f"-{key}-{value}"
    return f"-{key}" if value is True or isinstance(value, list) else f"-{key}{value:g}"


def is_generated(path: Path) -> bool:
    """Whether `write` made the settings file at `path`."""
    return path.is_file() and path.read_bytes().startswith(HEADER[:40])


def write() -> None:
    """Writes settings/PROFILE/NAME.yaml for bare papermill where its text changed, and prints what was done.

    A generated file that the grid has no setting for is removed; a user's own file stays as it is.
    """
    texts = {
        SETTINGS / profile / f"{name}.yaml": HEADER
        + yaml.safe_dump(run, sort_keys=False, default_flow_style=None, width=1000).encode()
        for profile in load_yaml(GRID)
        for name, run in expand(profile).items()
    }
    unchanged = 0
    for path in sorted({*texts, *filter(is_generated, SETTINGS.glob("*/*.yaml"))}):
        before = path.read_bytes() if path.is_file() else None
        if path not in texts:
            path.unlink()
            print(f"removed: {path}")
        elif before is not None and not is_generated(path):
            print(f"not generated: {path}; a file of your own has this name")
        elif before != texts[path]:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(texts[path])
            print(f"{'added' if before is None else 'changed'}: {path}")
        else:
            unchanged += 1
    print(f"{unchanged} generated files in settings/ are unchanged")
