"""The settings files under settings/, one folder a profile, and the tables and figures that they name."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from dwa_core.errors import InputError
from dwa_paper.settings.schema import Setting, shown

SETTINGS = Path(__file__).resolve().parents[2] / "settings"
NOTEBOOKS = SETTINGS.with_name("notebooks")


def check_profile(profile: str) -> None:
    """Raises InputError if there are no settings of that profile."""
    profiles = sorted(path.name for path in SETTINGS.iterdir() if path.is_dir())
    if profile not in profiles:
        raise InputError(f"profile: {shown(profile)} is not known; allowed: {', '.join(profiles)}")


def files(profile: str, product: str | None = None) -> list[Path]:
    """The settings files of `profile`, or those of them whose records go into `product`, such as "table-1".

    Raises:
        InputError: one of them cannot be read.
    """
    paths = sorted((SETTINGS / profile).glob("*.yaml"))
    if product is None:
        return paths
    usual = Setting.model_fields["shown_in"].default
    return [path for path in paths if product in read(path).get("shown_in", usual)]


def read(path: Path) -> dict:
    """The parameters of the settings file at `path`, whose profile and name must be those of its place.

    Raises:
        InputError: the file is missing or is not a YAML mapping; one line.
    """
    try:
        text = path.read_text()
        parameters = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read; {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML; {' '.join(str(error).split())}") from None
    if not isinstance(parameters, dict):
        raise InputError(f"{path}: not a YAML mapping of keys to values")
    for key, expected in {"profile": path.parent.name, "name": path.stem}.items():
        if parameters.get(key) != expected:
            raise InputError(f"{key}: {shown(parameters.get(key))} is not allowed; {path} must say {expected}")
    for key, example in {"seeds": "[0, 1, 2]", "shown_in": "[table-1]"}.items():
        if key in parameters and not re.search(rf"^{key}: *\[[\w, -]*\] *$", text, re.MULTILINE):
            value = shown(parameters[key])
            raise InputError(f"{key}: {value} in {path} must stand on a line as in `{key}: {example}`, for make")
    known = products()
    for name in parameters.get("shown_in", []):
        if name not in known:
            raise InputError(f"shown_in: {shown(name)} in {path} has no notebook; allowed: {', '.join(known)}")
    return parameters


def runs(paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """The parameters of every run that the settings files at `paths` ask for, one for each student seed.

    Raises:
        InputError: as `read`.
    """
    for path in paths:
        parameters = read(path)
        for seed in parameters.get("seeds", Setting.model_fields["seeds"].default):
            yield path, {**parameters, "seed": seed}


def products() -> dict[str, Path]:
    """The tables and figures there are, as make calls them, and the notebook of each."""
    paths = sorted(path for kind in ("table", "figure", "what") for path in NOTEBOOKS.glob(f"{kind}_*.ipynb"))
    return {re.sub("^table-0", "table-", path.stem.replace("_", "-")): path for path in paths}
