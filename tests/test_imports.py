"""Imports go one way, tools -> report -> runs -> settings -> dwa_core, and the core stays small and pure."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = ["dwa_core", "dwa_paper.settings", "dwa_paper.runs", "dwa_paper.report", "dwa_paper.tools", "dwa_paper"]
FILES = sorted(
    path.relative_to(REPOSITORY) for package in LAYERS[::5] for path in REPOSITORY.glob(f"{package}/**/*.py")
)
NOT_IN_CORE = {"dwa_paper", "papermill", "yaml", "pandas", "matplotlib"}


def list_imports(file: Path) -> set[str]:
    """The dotted names that a file imports, also inside its functions: what it imports from, with each name."""
    nodes = list(ast.walk(ast.parse((REPOSITORY / file).read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in found), f"{file}: a relative import"
    return names | {f"{node.module}.{alias.name}" for node in found for alias in node.names}


def find_layer(name: str) -> int:
    """The place in LAYERS of a dotted name; -1 for other libraries."""
    return next((n for n, layer in enumerate(LAYERS) if f"{name}.".startswith(f"{layer}.")), -1)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_imports_from_its_own_layer_and_those_below_alone(file):
    own, names = find_layer(".".join(file.with_suffix("").parts)), list_imports(file)
    assert not {name for name in names if find_layer(name) > own}
    assert own > 0 or not {name.partition(".")[0] for name in names} & NOT_IN_CORE


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "dwa_core"], ids=str)
def test_no_file_of_the_core_is_longer_than_300_lines(file):
    assert len((REPOSITORY / file).read_text().splitlines()) <= 300
