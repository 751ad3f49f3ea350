"""Numbers in prose: what README.md and docs/*.md quote from records, kept between markers.

    DWA reaches <!-- lite/cifar10-convnet-128-dwa-ipc10 -->33.5 ± 0.3<!-- --> %.

A marker is one of

    PROFILE/SETTING             test accuracy in percent, mean ± standard deviation over its student seeds
    mean PROFILE/SETTING        the mean alone
    last PROFILE/SETTING        after the last epoch, where the best of a student's tests is reported
    teacher PROFILE/SETTING     the accuracy of its teacher
    distance, coverage PROFILE/SETTING   feature distance and coverage of its distilled set
    paper DATASET ipcN STUDENT METHOD   the paper's number in published/published_results.csv
    A minus B                   the difference of the means of two of these, in points, with its sign
    A above B                   the same without a sign; A must be the larger
    runs, records, missing PROFILE   how many runs there are, and how many of them have a record or none
    hours [STAGE] PROFILE       wall time of what its records are made of: in all, or of teacher, synthesis or student
    seconds STAGE PROFILE/SETTING   wall time of a stage, the median over its student seeds
    lacking PROFILE/SETTING     how many images its copy of the data set lacks
    interval PROFILE METHOD BASELINE RECIPE   intervals.compare over the profile's Table 1

`python -m dwa_paper docs` writes them again, and verify reports a page whose numbers differ.
"""

import functools
import re
import statistics
from pathlib import Path

import pandas as pd

from dwa_core.errors import InputError
from dwa_paper.report import intervals, page, product, results, tables
from dwa_paper.settings.datasets import DATASETS

COLUMNS = {"mean": "accuracy", "teacher": "teacher", "distance": "feature distance", "coverage": "coverage"}
MARKED = re.compile(r"<!-- (?P<marker>[a-z][^<>\n]*?) -->(?P<text>[^<]*)<!-- -->")
REPOSITORY = Path(__file__).parents[2]
collect_runs = functools.cache(product.collect_runs)  # read once for all markers, each of which asks for a profile's


def pages() -> list[Path]:
    """The pages that may quote numbers."""
    return [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))]


def quantity(text: str) -> pd.Series:
    """mean, std and count of what a marker without an operator names.

    Raises:
        InputError: there is no record of it, or no such number.
    """
    first, _, rest = text.partition(" ")
    if first == "paper":
        dataset, ipc, student, method = rest.split()
        paper = results.reported_numbers().rename(columns={"top1_mean": "mean", "top1_std": "std"})
        key = {"data set": dataset, "ipc": int(ipc.removeprefix("ipc")), "student": student, "method": method}
        found = paper[(paper[list(key)] == pd.Series(key)).all(axis=1)].assign(count=3)
        if found.empty:
            raise InputError(f"marker {text!r}: the paper's number is not in {results.PUBLISHED.name}")
        return found.iloc[0]
    profile, name = (rest if first in {*COLUMNS, "last"} else text).split("/")
    runs = [run for run in collect_runs(profile) if run.setting["name"] == name]
    if first == "last":
        values = pd.Series([run.record["accuracy"]["last"] for run in runs if run.record])
    else:
        values = results.accuracies(runs)[COLUMNS.get(first, "accuracy")].dropna()
    if values.empty:
        raise InputError(f"marker {text!r}: there is no record of results/{profile}/{name}")
    return values.agg(["mean", "std", "count"])


def value(marker: str) -> str:
    """The text of a marker, made from the records."""
    kind, _, rest = marker.partition(" ")
    if kind in ("runs", "records", "missing"):
        there = [run.record is not None for run in collect_runs(rest)]
        return str({"runs": len(there), "records": sum(there), "missing": there.count(False)}[kind])
    if kind in ("hours", "seconds", "lacking"):
        *stage, place = rest.split()
        profile, _, name = place.partition("/")
        runs = [run for run in collect_runs(profile) if run.record and name in ("", run.setting["name"])]
        if not runs:
            raise InputError(f"marker {marker!r}: there is no record of results/{place}")
        if kind == "lacking":
            official, data = DATASETS[runs[0].setting["dataset"]], runs[0].record["data"]
            images = official.training_images + official.test_images
            return f"{images - data['training_images'] - data['test_images']:,}"
        groups = page.collect_seconds(runs).items()
        times = [seconds for (_, made), group in groups if stage in ([], [made]) for seconds in group.values()]
        return f"{sum(times) / 3600:.1f}" if kind == "hours" else f"{statistics.median(times):,.0f}"
    if kind == "interval":
        profile, method, baseline, recipe = rest.split()
        rows = results.accuracies(collect_runs(profile, "table-1"))
        cell = [name for name in results.CELL if name != "method"]
        return intervals.compare(rows[rows["recipe"] == recipe], cell, method, baseline)
    for operator, form in {" minus ": "+z.1f", " above ": ".1f"}.items():
        if operator in marker:
            first, second = map(quantity, marker.split(operator))
            difference = first["mean"] - second["mean"]
            if form == ".1f" and difference < 0:
                raise InputError(f"marker {marker!r}: the first is smaller than the second, by {-difference:.1f}")
            return format(difference, form)
    found = quantity(marker)
    if kind in COLUMNS:
        return format(found["mean"], ".2f" if kind in ("distance", "coverage") else ".1f")
    return tables.mean_text(found)


def render(text: str) -> str:
    """`text` with what is between its markers made again."""
    return MARKED.sub(lambda found: f"<!-- {found['marker']} -->{value(found['marker'])}<!-- -->", text)


def write() -> None:
    """Writes the numbers of every page again, and prints which pages changed."""
    collect_runs.cache_clear()
    for path in pages():
        before = path.read_text()
        if (after := render(before)) != before:
            path.write_text(after)
            print(f"changed: {path.relative_to(REPOSITORY)}")


def find_differences() -> list[str]:
    """One line for each number of the pages that is not what the records give."""
    collect_runs.cache_clear()
    lines = []
    for path in pages():
        for found in MARKED.finditer(path.read_text()):
            if (expected := value(found["marker"])) != found["text"]:
                place = f"{path.relative_to(REPOSITORY)}: {found['marker']}"
                lines.append(f"{place} is given as {found['text']!r}; the records give {expected!r}")
    return lines
