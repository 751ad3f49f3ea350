"""Numbers in prose: what markers quote, and that a page changed by hand is found."""

import json
import re
from pathlib import Path

import pytest

from dwa_paper.report import prose
from dwa_paper.settings import files

REPOSITORY = Path(__file__).resolve().parents[2]
SETTING = "lite/cifar10-convnet-128-dwa-ipc10"


@pytest.fixture(autouse=True)
def committed_records(own_settings, monkeypatch):
    monkeypatch.setattr(files, "SETTINGS", REPOSITORY / "settings")
    monkeypatch.setenv("DWA_ROOT", str(REPOSITORY))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of one's own beside the repository's records; a function that writes it."""
    monkeypatch.setattr(prose, "REPOSITORY", tmp_path)
    path = tmp_path / "README.md"

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        (SETTING, "33.5 ± 0.3"),
        (f"mean {SETTING}", "33.5"),
        (f"teacher {SETTING}", "86.4"),
        (f"distance {SETTING}-authors-gvbsm", "0.61"),
        (f"coverage {SETTING}-authors-gvbsm", "0.04"),
        ("paper cifar10 ipc10 convnet-128 dwa", "45.0 ± 0.4"),
        (f"{SETTING} minus paper cifar10 ipc10 convnet-128 dwa", "-11.5"),
        (f"paper cifar10 ipc10 convnet-128 dwa above {SETTING}", "11.5"),
        ("records search", "43"),
        ("runs search", "43"),
        ("last paper/cifar10-resnet18-dwa-ipc10-authors", "32.4 ± 0.7"),
        ("missing search", "0"),
        ("hours search", "2.6"),
        ("hours teacher search", "0.4"),
        (f"seconds teacher {SETTING}", "3,808"),
        (f"seconds student {SETTING}", "164"),
        (f"lacking {SETTING}", "1,135"),
        (
            "interval lite dwa random-real authors",
            "DWA minus random real, 7 cells: -8.2 points, 95 % interval -8.9 to -7.6.",
        ),
    ],
)
def test_marker_quotes_the_records(marker, expected, page):
    path = page(f"DWA: <!-- {marker} -->?<!-- --> %.\n")
    (line,) = prose.find_differences()
    assert line == f"README.md: {marker} is given as '?'; the records give {expected!r}"
    prose.write()
    assert path.read_text() == f"DWA: <!-- {marker} -->{expected}<!-- --> %.\n"
    assert prose.find_differences() == []


def test_mean_is_that_of_the_committed_records():
    records = (REPOSITORY / "results").glob(f"{SETTING}-seed*.json")
    tops = [json.loads(path.read_text())["accuracy"]["reported"] for path in records]
    assert prose.value(f"mean {SETTING}") == f"{sum(tops) / len(tops):.1f}"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("lite/unheard-of", "no record of results/lite/unheard-of"),
        ("paper cifar10 ipc3 convnet-128 dwa", "is not in published_results.csv"),
        (f"{SETTING} above paper cifar10 ipc10 convnet-128 dwa", "the first is smaller than the second, by 11.5"),
    ],
)
def test_marker_without_a_number_is_one_line(marker, message, page, refused):
    page(f"<!-- {marker} -->1<!-- -->")
    with refused("marker", message):
        prose.find_differences()


def test_pages_of_the_repository_quote_the_records():
    assert sum(len(prose.MARKED.findall(path.read_text())) for path in prose.pages()) > 50
    assert prose.find_differences() == []


def test_no_line_begins_with_a_marker():
    """A line that does is a block of HTML to Markdown, in which links and emphasis are not read."""
    for path in prose.pages():
        assert not re.search(r"^ *<!-- [a-z]", path.read_text(), re.MULTILINE), path.name
