"""The settings of each profile: those that settings/grid.yaml describes, and the files in settings/PROFILE/."""

import re
from pathlib import Path

from dwa_core.errors import InputError
from dwa_paper.settings import grid
from dwa_paper.settings.schema import Setting, resolve, shown

SETTINGS = grid.SETTINGS
NOTEBOOKS = SETTINGS.with_name("notebooks")


def list_profiles() -> list[str]:
    """The profiles that have settings, sorted."""
    return sorted({*grid.load_yaml(grid.GRID), *(path.parent.name for path in SETTINGS.glob("*/*.yaml"))})


def check_profile(profile: str) -> None:
    """Raises InputError if there are no settings of that profile."""
    if profile not in (profiles := list_profiles()):
        raise InputError(f"profile: {shown(profile)} is not known; allowed: {', '.join(profiles)}")


def list_products() -> list[str]:
    """The tables and figures there are: table-1, figure-gain and so on, each with a notebook of that name."""
    return sorted(path.stem for kind in ("table", "figure", "what") for path in NOTEBOOKS.glob(f"{kind}-*.ipynb"))


def read(path: Path) -> dict:
    """The parameters of the settings file at `path`, whose profile and name must be those of its place."""
    parameters = grid.load_yaml(path)
    for key, expected in {"profile": path.parent.name, "name": path.stem}.items():
        if parameters.get(key) != expected:
            raise InputError(f"{key}: {shown(parameters.get(key))} is not allowed; {path} must say {expected}")
    products, names = list_products(), parameters.get("shown_in")
    for name in names if isinstance(names, list) else []:
        if name not in products:
            raise InputError(f"shown_in: {shown(name)} in {path} has no notebook; allowed: {', '.join(products)}")
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
        try:
            setting = resolve(parameters)
        except InputError as error:
            raise InputError(f"settings/{profile}/{name}.yaml: {error}") from None
        if product is None or product in setting.shown_in:
            runs += [setting.model_copy(update={"seed": seed}) for seed in setting.seeds]
    return runs


def find_runs(target: str) -> list[dict]:
    """The parameters of each run that `target` names, one for each student seed.

    Args:
        target: a profile, settings/PROFILE/NAME.yaml, results/PROFILE/NAME.json for all seeds of a setting, or
            results/PROFILE/NAME-seedN.json for one.

    Raises:
        InputError: there is no such setting, or it cannot be used.
    """
    path = Path(target)
    profile, name = path.parent.name, path.stem
    if path.suffix == ".yaml":
        chosen = [(not path.exists() and grid.expand(profile).get(name)) or read(path)]
    elif path.suffix == ".json":
        check_profile(profile)
        settings, record = read_settings(profile), re.fullmatch(r"(.+)-seed(0|[1-9]\d*)", name)
        if record and record[1] in settings:
            return [{**settings[record[1]], "seed": int(record[2])}]
        if name not in settings:
            raise InputError(f"{target}: no setting of this name; make plan PROFILE={profile} lists them")
        chosen = [settings[name]]
    else:
        check_profile(target)
        chosen = read_settings(target).values()
    return [{**parameters, "seed": seed} for parameters in chosen for seed in resolve(parameters).seeds]
