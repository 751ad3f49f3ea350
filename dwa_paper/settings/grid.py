"""The settings files of the profiles demo, paper and search, generated from the one description settings/grid.yaml.

    python -m dwa_core.grid

Files that a user adds stay; a generated file that is edited by hand gets its old content back.
"""

import itertools
from functools import reduce

import yaml

from dwa_core.errors import InputError
from dwa_paper.settings import schema
from dwa_paper.settings.files import SETTINGS

GRID = SETTINGS / "grid.yaml"
# In the order of a file's lines.
TOP_LEVEL = ("preset", "method", "ipc", "network", "student", "authors", "tasks", "validation")


def generated() -> dict[str, str]:
    """The text of every settings file of the description, by its name under settings/, such as "demo/digits.yaml"."""
    texts = {}
    for profile, description in yaml.safe_load(GRID.read_text()).items():
        template, seeds, common = (description.pop(key, {}) for key in ("name", "seeds", "common"))
        runs = {}
        for product, groups in description.items():
            for group in groups:
                for parameters in combinations(group):
                    run = stripped(parameters, template, profile, common)
                    known = runs.setdefault(run["name"], {**run, "seeds": set(), "shown_in": []})
                    if known | run != known:
                        raise InputError(f"{GRID.name}: two runs are called {run['name']}")
                    known["seeds"] |= set(group.get("seeds", seeds))
                    known["shown_in"] += [product] if product not in known["shown_in"] else []
        for name, run in runs.items():
            run["seeds"] = sorted(run["seeds"])
            texts[f"{profile}/{name}.yaml"] = yaml.safe_dump(run, sort_keys=False, default_flow_style=None, width=1000)
    return texts


def combinations(group: dict) -> list[dict]:
    """Every combination of the lists of a group; what is no list is the same in all."""
    axes = {key: value if isinstance(value, list) else [value] for key, value in group.items() if key != "seeds"}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def stripped(parameters: dict, template: str, profile: str, common: dict) -> dict:
    """The settings of one run without what its preset or a default says anyway, named after what is left.

    Args:
        parameters: keys of a settings file, those of stages with a dot: "synthesis.rho".
        template: the beginning of the name, with keys in braces.
        common: what holds for all runs of the profile and no name tells; `parameters` win.
    """
    told = {key for key, value in parameters.items() if common.get(key) != value}
    parameters = {**common, **parameters}
    place = {"profile": profile, "name": "unnamed"}
    top_level = {key: parameters[key] for key in TOP_LEVEL if key in parameters}
    base = schema.resolve({**place, **top_level})
    usual = {"network": schema.PRESETS[base.preset]["network"], "student": base.network, "authors": False}
    usual |= {"tasks": 1, "validation": 0.0}
    name = template.format(**top_level)
    for key in ("network", "student", "tasks"):
        if f"{{{key}}}" not in template and key in told and top_level[key] != usual[key]:
            name += labelled(key, top_level[key])
    stages = {}
    for dotted, value in parameters.items():
        stage, _, key = dotted.partition(".")
        if key and value != reduce(getattr, (stage, key), base):
            stages.setdefault(stage, {})[key] = value
            if dotted in told:
                name += labelled(f"{stage}-{key}" if key in schema.Setting.model_fields else key, value)
    name += "-authors" if base.authors else ""
    written = {key: value for key, value in top_level.items() if key == "network" or value != usual.get(key)}
    run = {"profile": profile, "name": name, **written, **stages}
    schema.resolve(run)
    return run


def labelled(key: str, value) -> str:
    """What a name says of a value: -student-resnet50, -rho0.02, and of what is switched on or a list, the key alone."""
    if isinstance(value, str):
        return f"-{key}-{value}"
    return f"-{key}" if value is True or isinstance(value, list) else f"-{key}{value:g}"


if __name__ == "__main__":
    for name, text in generated().items():
        (SETTINGS / name).parent.mkdir(exist_ok=True)
        (SETTINGS / name).write_text(text)
    print(f"{len(generated())} files in settings/")
