"""The README and docs/: links lead somewhere, and the commands of the how-tos run in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dwa_paper.runs import sources

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# In an order in which each page finds what an earlier one leaves, as fleet.md finds the settings of one's own images.
HOW_TOS = ["own-data.md", "share.md", "watch.md", "fleet.md"]
# What a command needs that may not be installed.
EXTRAS = {"ENGINE=ray": "ray", "dwa_paper fleet": "ray", "DWA_TENSORBOARD": "tensorboard"}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each code block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (REPOSITORY / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's files with .venv, a folder `pictures` of one's own and a set of digits made by others."""
    copy = tmp_path_factory.mktemp("docs") / "repository"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for file in files:
        if (REPOSITORY / file).is_file() and not (REPOSITORY / file).is_symlink():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / file, copy / file)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    for file in ("pyproject.toml", "requirements.lock"):
        os.utime(copy / file, (0, 0))  # older than the environment, which make would else build again
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 150)):
        (copy / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            Image.fromarray(random.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)).save(
                copy / "pictures" / name / f"{index}.png"
            )
    digits = sources.read_digits(side=16)["train"].cast_column("image", datasets.Image())
    for label in range(10):
        (copy / "theirs" / str(label)).mkdir(parents=True)
        digits[digits["label"][:].index(label)]["image"].save(copy / "theirs" / str(label) / "0.png")
    return copy


def run(command: str, copy: Path) -> str:
    hidden = ("DWA_DATA", "DWA_ROOT", "MAKEFLAGS", "MAKELEVEL")
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    paths = [str(copy), *filter(None, [variables.get("PYTHONPATH")])]
    variables |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, shell=True, cwd=copy, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", HOW_TOS)
def test_commands_of_the_page_run(page, copy, quick_ray):
    missing = []
    for language, content in blocks(page):
        if language == "yaml":
            place = copy / "settings" / "theirs" / "theirs.yaml"
            place.parent.mkdir(exist_ok=True)
            place.write_text(content)
        elif language == "python":
            run(f"{sys.executable} - <<'EOF'\n{content}\nEOF", copy)
        else:
            for line in content.strip().splitlines():
                needed = [package for text, package in EXTRAS.items() if text in line]
                if any(not (Path(sys.prefix) / "bin" / package).exists() for package in needed):
                    missing += needed
                    continue
                run(line, copy)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; the page's other commands ran")


def test_pages_with_commands_are_run():
    for page in HOW_TOS:
        assert {language for language, _ in blocks(page)} <= {"sh", "python", "yaml"}
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name in HOW_TOS or "sh" not in {language for language, _ in blocks(page.name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#(L\d+)?[^)]*)?\)|src=\"([^\"]+)\"", page.read_text())
    for link, line, picture in links:
        target = page.parent / (link or picture)
        assert target.exists(), f"{page.name}: {target}"
        if line:
            assert "move(parameters, gradients" in target.read_text().splitlines()[int(line[1:]) - 1]


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 130


def test_slurm_script_is_a_shell_script_with_the_options_that_ray_has():
    script = REPOSITORY / "docs" / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    ray = Path(sys.prefix) / "bin" / "ray"
    if not ray.exists():
        pytest.skip("Ray is an extra: pip install .[ray]")
    known = subprocess.run([str(ray), "symmetric-run", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--address", "--min-nodes"):
        assert option in known
        assert option in script.read_text()
