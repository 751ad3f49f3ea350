"""What a run takes from its environment: the root of its files, variables, and the versions of libraries."""

import importlib.metadata
import os
from pathlib import Path

from packaging.requirements import Requirement
from pydantic import TypeAdapter, ValidationError

from dwa_core.errors import InputError
from dwa_core.recipe import NotNegative

SECONDS = TypeAdapter(NotNegative)


def root() -> Path:
    """The folder of artifacts/, results/ and figures/: $DWA_ROOT, or the repository itself.

    Raises:
        InputError: DWA_ROOT is empty, as a variable that was not set leaves it; that would be the current folder.
    """
    folder = os.environ.get("DWA_ROOT")
    if folder == "":
        raise InputError("DWA_ROOT: '' is not allowed; set it to the folder of all results, or unset it")
    return Path(folder or Path(__file__).resolve().parents[2])


def check_environment() -> None:
    """Raises InputError if a variable of the environment that runs read cannot be used."""
    folder = os.environ.get("DWA_DATA")
    if folder and not Path(folder).is_dir():
        raise InputError(f"DWA_DATA: {folder!r} is not a folder; set it to the folder that holds the data sets")
    read_checkpoint_seconds()


def read_checkpoint_seconds() -> float:
    """Seconds between two checkpoints of a stage: $DWA_CHECKPOINT_SECONDS, or 60; InputError if it is no number."""
    text = os.environ.get("DWA_CHECKPOINT_SECONDS", "60")
    try:
        return SECONDS.validate_python(text)
    except ValidationError:
        raise InputError(f"DWA_CHECKPOINT_SECONDS: {text!r} is not allowed; must be a number of at least 0") from None


def check_versions() -> None:
    """Raises InputError if a library is missing or older than pyproject.toml asks for."""
    for wanted in map(Requirement, importlib.metadata.requires("dwa-companion")):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"{wanted.name} is not installed; make environment installs it") from None
        if not wanted.specifier.contains(version, prereleases=True):
            raise InputError(f"{wanted.name} {version} is here, {wanted} is needed; make environment installs it")
