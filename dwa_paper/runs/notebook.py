"""What papermill or a reader gives to a notebook, checked before any work: a setting, or a profile; and its saving."""

import ast
import subprocess
from pathlib import Path

import yaml

from dwa_core.errors import InputError
from dwa_paper.runs import stop
from dwa_paper.settings import schema
from dwa_paper.settings.environment import check_versions
from dwa_paper.settings.files import check_profile, read_settings
from dwa_paper.settings.schema import Setting


def read_setting(variables: dict) -> Setting:
    """The setting of a notebook's parameters; `variables` is its `globals()`. A `seed` is then the only one of `seeds`.

    Raises:
        InputError: as `resolve`, for a network that does not exist or cannot be a teacher, for a parameter that the
            notebook does not know, a distilled set that is not there, and a folder in the way of the record.
    """
    # Imported here because a table's notebook reads its profile alone, and must not wait seconds for torchvision.
    from dwa_core import devices, models, weights
    from dwa_paper.runs import sets

    check_versions()
    check_parameters(variables, known := set(Setting.model_fields))
    setting = schema.resolve({key: variables[key] for key in known if key in variables})
    if variables.get("seed") is not None:
        setting = setting.model_copy(update={"seeds": [setting.seed]})
    for key in ("network", "student"):
        models.check_network(key, getattr(setting, key), setting.stem, setting.images.side)
    models.check_teacher(setting.network, setting.stem, setting.images.side)
    if setting.teacher.published_weights():
        weights.find_published(setting.network, setting.teacher.weights)
    if setting.method == "external":
        sets.external_folder(setting, download=True)
    for one in setting.split_seeds():
        if (record := one.record_path()).is_dir():
            raise InputError(f"{record}: a folder is where the record goes; move it away")
    if setting.deterministic:
        devices.use_deterministic_algorithms()
    stop.start_budget(setting.max_minutes)
    return setting


def format_settings(variables: dict) -> str:
    """The lines of a settings file that says what a notebook's parameters say; "" where their profile has that setting.

    Args:
        variables: the notebook's `globals()`.
    """
    given = {key: value for key, value in variables.items() if key in Setting.model_fields and value not in (None, {})}
    if given["name"] in read_settings(given["profile"]):
        return ""
    if (seed := given.pop("seed", None)) is not None:
        given["seeds"] = [seed]
    return yaml.safe_dump(given, sort_keys=False, default_flow_style=None)


def check_parameters(variables: dict, known: set[str]) -> None:
    """Raises InputError if papermill was given a parameter that is not in `known`.

    papermill writes what it was given into a cell of its own and only warns of names that the notebook
    does not use. Jupyter keeps the text of the cells that were run in the notebook's variable `In`.
    """
    given = "\n".join(cell for cell in variables["In"] if cell.startswith("# Parameters"))
    for node in ast.walk(ast.parse(given)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in known:
            raise InputError(f"{node.id}: unknown parameter; allowed here: {', '.join(sorted(known))}")


def read_profile(variables: dict) -> str:
    """The profile of a table's or figure's notebook, its one parameter; `variables` is its `globals()`.

    Raises:
        InputError: an unknown parameter, or a profile without settings.
    """
    check_parameters(variables, {"profile"})
    check_profile(variables["profile"])
    return variables["profile"]


def strip_outputs(model: dict, path: str, contents_manager, **_) -> None:
    """JupyterLab's hook before it saves: of a notebook that git has, outputs, counts and most metadata are left out.

    Args:
        model: what is saved to `path`, under the root of `contents_manager`; changed in place.
    """
    file = Path(contents_manager.root_dir, path)
    known = ["git", "ls-files", "--error-unmatch", file.name]
    if model["type"] != "notebook" or subprocess.run(known, cwd=file.parent, capture_output=True).returncode:
        return
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    model["content"]["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in model["content"]["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
