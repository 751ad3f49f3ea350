"""What the fault tests share: pictures of a folder, a notebook without a kernel, make in a checkout."""

import os
import subprocess
from pathlib import Path

import datasets
import nbformat
import numpy as np
import papermill.parameterize
import yaml
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = {"preset": "digits", "method": "dwa", "ipc": 1, "network": "convnet-8", "device": "cpu"}


def snapshot(*folders: Path) -> dict[Path, tuple]:
    """Every path below `folders`, with size and date of the files."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else () for path in paths}


def execute_here(path: str, output: str, parameters: dict, **_) -> None:
    """In place of papermill's execute_notebook: the same cells with the same parameters, without a kernel."""
    notebook = papermill.parameterize.parameterize_notebook(load_notebook_node(path), parameters)
    variables = {"__name__": "__main__", "In": []}
    try:
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                variables["In"].append(cell.source)
                try:
                    exec(compile(cell.source, f"cell {index}", "exec"), variables)
                except Exception as error:
                    raise PapermillExecutionError(
                        index, index, cell.source, type(error).__name__, str(error), []
                    ) from error
    finally:
        nbformat.write(notebook, output)


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment without what would reach a run from outside, and with `variables`."""
    unwanted = ("DWA_ROOT", "DWA_DATA", "DWA_DEBUG")
    return {key: value for key, value in os.environ.items() if key not in unwanted} | variables


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`make` in `checkout`, with its own packages."""
    variables = environment_with(PYTHONPATH=str(checkout), **environment)
    return subprocess.run(
        ["make", *arguments], cwd=checkout, env=variables, capture_output=True, text=True, check=False
    )


def settings_file(place: Path, text: str | None = None, **changed) -> Path:
    path = place / "trial" / "bad.yaml"
    path.write_text(
        text if text is not None else yaml.safe_dump({"profile": "trial", "name": "bad", **GOOD, **changed})
    )
    return path


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def tree(place: Path) -> Path:
    folder = place / "data" / "own"
    for part in ("train", "test"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number in range(2):
                picture(number).save(folder / part / label / f"{number}.png")
    return folder


def parquet(place: Path, columns=("image", "label"), labels=(0, 1, 0, 1), names=("a", "b")) -> Path:
    folder = place / "data" / "own"
    folder.mkdir()
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
    for part in ("train", "test"):
        rows = {columns[0]: [picture(number) for number in range(4)], columns[1]: list(labels)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}-0.parquet")
    return folder
