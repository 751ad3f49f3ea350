"""What the report page of a profile is made of: its tables and figures as files, and where the records come from."""

import os
import re
import statistics
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from dwa_paper.report import intervals, product, results
from dwa_paper.report.product import Run
from dwa_paper.runs.records import list_students
from dwa_paper.settings import files, grid
from dwa_paper.settings.environment import root


class Shown(NamedTuple):
    """One table or figure: title, its text as Markdown (a caption, and of a table all of it), and its file."""

    title: str
    text: str
    path: Path


def tables(profile: str) -> dict[str, Shown]:
    """Each table that is there, by its name, Table 2 before Table 10; headings inside two levels lower.

    A mean and its deviation stay on one line, and `group_rows` makes the tables narrow.
    """
    found = {}
    for path in list_files(root() / "results" / profile, "md"):
        title, _, text = path.read_text().partition("\n")
        title = title.removeprefix("# ").removesuffix(f", profile {profile}")
        text = text.partition("\n<!--")[0].replace("\n## ", "\n#### ")
        text = re.sub(r"(?<=\d) (?=[±†(%])|(?<=±) |(?<=\(\d) (?=seed)", "\N{NO-BREAK SPACE}", text)
        text = re.sub(r"^\|.*\n\|:?-.*\n(\|.*\n?)+", lambda table: group_rows(table[0]), text, flags=re.MULTILINE)
        found[path.stem] = Shown(title, text, path)
    return found


def group_rows(table: str) -> str:
    """A Markdown table with a bold row over rows that begin alike, instead of what they begin with."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    (head, rule), rows = lines[:2], lines[2:]
    alike = [n for n in range(1, len(head) - 1) if 2 * len({tuple(row[:n]) for row in rows}) <= len(rows)]
    first, grouped = max(alike, default=0), []
    for place, group in groupby(rows, lambda row: row[:first]):
        named = {**dict(zip(head, place, strict=False)), "": ""}
        texts = [f"{name} {text}" if name in ("ipc", "teacher") else text for name, text in named.items() if text]
        grouped += [[f"**{', '.join(texts)}**", *[""] * (len(head) - first - 1)]] if texts else []
        grouped += [row[first:] for row in group]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head[first:], rule[first:], *grouped)) + "\n"


def figures(profile: str) -> dict[str, Shown]:
    """Each figure that is there, by its name: the title and caption in its PNG."""
    found = {}
    for path in list_files(root() / "figures" / profile, "png"):
        with Image.open(path) as picture:
            found[path.stem] = Shown(picture.text["Title"], picture.text["Description"], path)
    return found


def list_files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*.{ending}"), key=lambda path: results.natural_key(path.stem))


def headline(profile: str) -> str:
    """What Table 1 of a profile comes to, as Markdown."""
    compared = intervals.compare_recipes(product.collect_runs(profile, "table-1"))
    if not compared:
        return "No two methods have several students of one cell yet."
    return f"Mean difference in test accuracy over the cells of Table 1, by recipe. {compared}"


def sources(profile: str) -> dict[str, str]:
    """Links from results/PROFILE/ to the notebook, the settings and the records of each product, as Markdown."""
    here, runs, own, found = root() / "results" / profile, files.list_runs(profile), files.SETTINGS / profile, {}
    for name in product.select_products(runs):
        shown = [setting for setting in runs if product.shows_all_runs(name) or name in setting.shown_in]
        records = [path for path in (setting.record_path() for setting in shown) if path.is_file()]
        paths = [files.NOTEBOOKS / f"{name}.ipynb", own if own.is_dir() else grid.GRID, *records]
        links = ", ".join(f"[{path.name}]({os.path.relpath(path, here)})" for path in paths)
        summary = f"<summary>Notebook, settings and {len(records)} records</summary>"
        found[name] = f"<details>{summary}\n\n{links}\n\n</details>"
    return found


def contents(profile: str, runs: list[Run]) -> str:
    """How many runs have records, and links to the anchors of all tables and figures, as Markdown."""
    done = sum(run.record is not None for run in runs)
    shown = tables(profile) | figures(profile)
    lines = [f"- [{entry.title}](#{name})" for name, entry in shown.items()]
    lines += ["- [Where the records come from](#provenance)", "- [What is not run yet](#missing)"]
    head = f"Profile `{profile}`: of {len(runs)} runs that its settings ask for, {done} have records."
    return head + "\n\n" + "\n".join(lines)


def origins(runs: list[Run]) -> pd.DataFrame:
    """How many records each device and code revision has, and when the last of them was finished."""
    keys, rows = ["device", "precision", "revision"], []
    for record in [run.record for run in runs if run.record is not None]:
        revision = (record["revision"] or "unknown")[:10] + ("" if record["tree_clean"] else ", with changes")
        rows.append((record["device"], record["precision"], revision, record["finished"][:10]))
    grouped = pd.DataFrame(rows, columns=[*keys, "finished"]).groupby(keys, sort=False)["finished"]
    return grouped.agg(["size", "max"]).reset_index().set_axis([*keys, "records", "last finished"], axis=1)


def versions(runs: list[Run]) -> str:
    """Each library once, with the versions of it that the records were made with."""
    found = {}
    for name, version in [pair for run in runs if run.record for pair in run.record["versions"].items()]:
        found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' or '.join(sorted(found[name]))}" for name in sorted(found))


def collect_seconds(runs: list[Run]) -> dict[tuple[str, str], dict]:
    """Wall times in seconds by data set and stage; what several records share, such as a teacher, is there once."""
    seconds = {}
    for setting, _, record in runs:
        for part in list_students(record) if record else []:
            made = {"teacher": part["teacher"]["artifact"], "synthesis": part["distilled"]["artifact"]}
            made["student"] = setting["name"], setting["seed"], part.get("classes_seen")
            for stage, what in made.items():
                seconds.setdefault((results.dataset_label(setting), stage), {})[what] = part["seconds"][stage]
    return seconds


def durations(runs: list[Run]) -> pd.DataFrame:
    """Wall time of teachers, distilled sets and students by data set: their number, median, and all together."""
    rows = [
        (*key, len(times), f"{statistics.median(times.values()):,.1f}", f"{sum(times.values()) / 3600:,.2f}")
        for key, times in collect_seconds(runs).items()
    ]
    return pd.DataFrame(rows, columns=["data set", "stage", "runs", "median, s", "together, h"])


def data_sets(runs: list[Run]) -> pd.DataFrame:
    """The data that the records were made from: images, classes, and the first digits of their fingerprint."""
    numbers = ("training_images", "test_images", "classes")
    rows = [
        (results.dataset_label(setting), *(record["data"][key] for key in numbers), record["data"]["fingerprint"][:10])
        for setting, _, record in runs
        if record is not None
    ]
    columns = ["data set", "training images", "test images", "classes", "fingerprint"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates()
