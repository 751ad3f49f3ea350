"""The settings of each profile: those that settings/grid.yaml describes, and the files in settings/PROFILE/."""

import difflib
import re
from pathlib import Path

from dwa_core.errors import InputError, suggest
from dwa_paper.settings import grid
from dwa_paper.settings.reading import load_yaml
from dwa_paper.settings.schema import PROFILE, Setting, quote, resolve

SETTINGS = grid.SETTINGS
NOTEBOOKS = SETTINGS.with_name("notebooks")


def list_profiles() -> list[str]:
    """The profiles that have settings, sorted."""
    return sorted({*load_yaml(grid.GRID), *(path.parent.name for path in SETTINGS.glob("*/*.yaml"))})


def check_profile(profile: str) -> None:
    """Raises InputError if there are no settings of that profile."""
    if profile not in (profiles := list_profiles()):
        own = f"; a settings file in settings/{profile}/ makes it one" if re.fullmatch(PROFILE, str(profile)) else ""
        raise InputError(f"profile: {quote(profile)} is not known; {suggest(profile, profiles)}{own}")


def list_products() -> list[str]:
    """The tables and figures there are: table-1, figure-gain and so on, each with a notebook of that name."""
    return sorted(path.stem for kind in ("table", "figure", "what") for path in NOTEBOOKS.glob(f"{kind}-*.ipynb"))


def read(path: Path) -> dict:
    """The parameters of the settings file at `path`, whose profile and name must be those of its place."""
    parameters = load_yaml(path)
    if "seed" in parameters:  # which every run sets for itself
        raise InputError(f"seed: not allowed in {path}; seeds says which student seeds are run, such as seeds: [0, 1]")
    for key, expected in {"profile": path.parent.name, "name": path.stem}.items():
        if parameters.get(key) != expected:
            raise InputError(f"{key}: {quote(parameters.get(key))} is not allowed; {path} must say {expected}")
    products, names = list_products(), parameters.get("shown_in")
    for name in names if isinstance(names, list) else []:
        if name not in products:
            raise InputError(f"shown_in: {quote(name)} in {path} has no notebook; {suggest(name, products)}")
    return parameters


def read_settings(profile: str) -> dict[str, dict]:
    """The parameters of the settings of `profile`, by name.

    A file of the user's own wins over the setting of its name in the grid; generated files are not read.
    """
    own = {path.stem: read(path) for path in (SETTINGS / profile).glob("*.yaml") if not grid.is_generated(path)}
    return dict(sorted({**grid.expand(profile), **own}.items()))


def list_runs(profile: str, product: str | None = None) -> list[Setting]:
    """Every run that the settings of `profile` ask for, in all or in `product`: setting by setting, seed by seed."""
    runs = []
    for name, parameters in read_settings(profile).items():
        setting = resolve_file(f"settings/{profile}/{name}.yaml", parameters)
        if product is None or product in setting.shown_in:
            runs += setting.split_seeds()
    return runs


def resolve_file(path: str, parameters: dict) -> Setting:
    """As `resolve`, with the settings file in the message."""
    try:
        return resolve(parameters)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def find_settings(target: str, seed: int | None = None) -> list[dict]:
    """The parameters of each setting that `target` names; their `seeds` are the student seeds that it asks for.

    Args:
        target: a profile, settings/PROFILE/NAME.yaml, results/PROFILE/NAME.json for all seeds of a setting, or
            results/PROFILE/NAME-seedN.json for one.
        seed: the only one of its seeds to run; None: all.

    Raises:
        InputError: there is no such setting, it has no such seed, or it cannot be used.
    """
    path = Path(target)
    profile, name = path.parent.name, path.stem
    if path.suffix == ".yaml":
        chosen = [(not path.exists() and grid.expand(profile).get(name)) or read(path)]
    elif path.suffix == ".json":
        check_profile(profile)
        settings = read_settings(profile)
        record = re.fullmatch(r"(.+)-seed(0|[1-9]\d*)", name)
        if name not in settings and record:
            name, seed = record[1], int(record[2])
        if name not in settings:
            close = difflib.get_close_matches(name, settings, n=1)
            hint = f"did you mean {close[0]}?" if close else f"make plan PROFILE={profile} lists them"
            raise InputError(f"{target}: no setting of this name; {hint}")
        chosen = [settings[name]]
    else:
        check_profile(target)
        chosen = read_settings(target).values()
    found = []
    for parameters in chosen:
        path = f"settings/{parameters['profile']}/{parameters['name']}.yaml"
        seeds = resolve_file(path, parameters).seeds
        if seed is not None and seed not in seeds:
            raise InputError(f"seed: {seed} is not one of the seeds of {path}, {seeds}; add it there")
        found.append({**parameters, "seeds": seeds if seed is None else [seed]})
    return found
