"""What the report page of a profile is made of: its tables and figures as files, and where the records come from."""

import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from dwa_paper.report import results
from dwa_paper.report.results import Run
from dwa_paper.runs.records import students
from dwa_paper.settings.environment import root


class Shown(NamedTuple):
    """One table or figure: title, what is said of it as Markdown (of a table all of it), and its file."""

    title: str
    text: str
    path: Path


def tables(profile: str) -> dict[str, Shown]:
    """Each table that is there, by its file's name without ending; headings inside two levels lower."""
    found = {}
    for path in sorted((root() / "results" / profile).glob("*.md")):
        title, _, text = path.read_text().partition("\n")
        title = title.removeprefix("# ").removesuffix(f", profile {profile}")
        found[path.stem] = Shown(title, text.replace("\n## ", "\n#### "), path)
    return found


def figures(profile: str) -> dict[str, Shown]:
    """Each figure that is there, by "figure_" and its file's name: the title and caption that are kept in its PNG."""
    found = {}
    for path in sorted((root() / "figures" / profile).glob("*.png")):
        with Image.open(path) as picture:
            found[f"figure_{path.stem}"] = Shown(picture.text["Title"], picture.text["Description"], path)
    return found


def contents(profile: str, runs: list[Run]) -> str:
    """How many runs have records, and links to the anchors of all tables and figures, as Markdown."""
    done = len(results.records(runs))
    shown = tables(profile) | figures(profile)
    lines = [f"- [{entry.title}](#{name})" for name, entry in shown.items()]
    lines += ["- [Where the records come from](#provenance)", "- [What is not run yet](#missing)"]
    head = f"Profile `{profile}`: of {len(runs)} runs that its settings ask for, {done} have records."
    return head + "\n\n" + "\n".join(lines)


def origins(runs: list[Run]) -> pd.DataFrame:
    """How many records each device, code revision and set of versions has, and when the last of them was finished."""
    rows = [
        {
            "device": record["device"],
            "precision": record["precision"],
            "revision": f"{(record['revision'] or 'unknown')[:10]}{'' if record['tree_clean'] else ', with changes'}",
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items())),
            "finished": record["finished"][:10],
        }
        for record in results.records(runs)
    ]
    frame = pd.DataFrame(rows, columns=["device", "precision", "revision", "versions", "finished"])
    keys = ["device", "precision", "revision", "versions"]
    return (
        frame.groupby(keys, sort=False)["finished"]
        .agg(["size", "max"])
        .reset_index()
        .set_axis([*keys, "records", "last finished"], axis=1)
    )


def durations(runs: list[Run]) -> pd.DataFrame:
    """Wall time of teachers, distilled sets and students by data set; what several records share counts once."""
    seconds = {}
    for setting, _, record in runs:
        for part in students(record) if record else []:
            label = results.dataset_label(setting)
            for stage, what in (("teacher", "teacher"), ("synthesis", "distilled")):
                seconds.setdefault((label, stage), {})[part[what]["artifact"]] = part["seconds"][stage]
            student = setting["name"], setting["seed"], part.get("classes_seen")
            seconds.setdefault((label, "student"), {})[student] = part["seconds"]["student"]
    return pd.DataFrame(
        [
            {
                "data set": label,
                "stage": stage,
                "runs": len(times),
                "median, s": f"{statistics.median(times.values()):,.1f}",
                "together, h": f"{sum(times.values()) / 3600:,.2f}",
            }
            for (label, stage), times in seconds.items()
        ],
        columns=["data set", "stage", "runs", "median, s", "together, h"],
    )


def data_sets(runs: list[Run]) -> pd.DataFrame:
    """The data that the records stand on: images, classes, and the first digits of their fingerprint."""
    rows = [
        {
            "data set": results.dataset_label(setting),
            "training images": record["data"]["training_images"],
            "test images": record["data"]["test_images"],
            "classes": record["data"]["classes"],
            "fingerprint": record["data"]["fingerprint"][:10],
        }
        for setting, _, record in runs
        if record is not None
    ]
    return pd.DataFrame(rows).drop_duplicates()
