"""The site: it has the executed walkthrough and every page, and loads nothing from elsewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
RENEW = (
    "run `.venv/bin/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.record_timing=False "
    "--output-dir docs notebooks/walkthrough.ipynb`"
)


def test_executed_walkthrough_is_that_of_the_notebooks():
    executed, source = ((REPOSITORY / folder / "walkthrough.ipynb").read_text() for folder in ("docs", "notebooks"))
    cells = json.loads(executed)["cells"]
    assert [cell["source"] for cell in cells] == [cell["source"] for cell in json.loads(source)["cells"]], RENEW
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert not re.search(r'"output_type": "error"|"name": "stderr"|file://|/home/|/tmp/', executed)
    assert len(executed) < 1_500_000


def test_contents_list_every_page_and_the_api_every_module():
    contents, api = (DOCS / "contents.txt").read_text(), (DOCS / "api.md").read_text()
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]:
        assert re.search(rf"^(\w+ <)?docs/{path.stem}>?$", contents, re.MULTILINE), path.name
    for path in REPOSITORY.glob("dwa_core/[!_]*.py"):
        assert f"dwa_core.{path.stem}\n" in api or f"dwa_core/{path.name}\n" in api, path.name


def test_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("myst_nb", reason="the site is an extra: make site")
    command = [sys.executable, "-m", "sphinx", "-M", "html", ".", str(tmp_path), "-c", "docs", "-q", "-W"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    pages = list(tmp_path.glob("html/**/*.html"))
    assert {"index.html", "walkthrough.html", "api.html", "table-1.html"} <= {page.name for page in pages}
    loads = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=.(?:https?:)?//[^>]*>")
    for page in pages:
        assert not loads.search(page.read_text()), page.name
    for sheet in tmp_path.glob("html/**/*.css"):
        assert not re.search(r"@import|url\(.?(?:https?:)?//", sheet.read_text()), sheet.name
