"""What the report page of a profile is made of: its tables and figures as files, and where the records come from."""

import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from dwa_paper.report import results
from dwa_paper.report.product import Run
from dwa_paper.runs.records import students
from dwa_paper.settings.environment import root


class Shown(NamedTuple):
    """One table or figure: title, its text as Markdown (a caption, and of a table all of it), and its file."""

    title: str
    text: str
    path: Path


def tables(profile: str) -> dict[str, Shown]:
    """Each table that is there, by its name, Table 2 before Table 10; headings inside two levels lower."""
    found = {}
    for path in list_files(root() / "results" / profile, "md"):
        title, _, text = path.read_text().partition("\n")
        title = title.removeprefix("# ").removesuffix(f", profile {profile}")
        found[path.stem] = Shown(title, text.partition("\n<!--")[0].replace("\n## ", "\n#### "), path)
    return found


def figures(profile: str) -> dict[str, Shown]:
    """Each figure that is there, by its name: the title and caption in its PNG."""
    found = {}
    for path in list_files(root() / "figures" / profile, "png"):
        with Image.open(path) as picture:
            found[path.stem] = Shown(picture.text["Title"], picture.text["Description"], path)
    return found


def list_files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*.{ending}"), key=lambda path: results.natural_key(path.stem))


def contents(profile: str, runs: list[Run]) -> str:
    """How many runs have records, and links to the anchors of all tables and figures, as Markdown."""
    done = sum(run.record is not None for run in runs)
    shown = tables(profile) | figures(profile)
    lines = [f"- [{entry.title}](#{name})" for name, entry in shown.items()]
    lines += ["- [Where the records come from](#provenance)", "- [What is not run yet](#missing)"]
    head = f"Profile `{profile}`: of {len(runs)} runs that its settings ask for, {done} have records."
    return head + "\n\n" + "\n".join(lines)


def origins(runs: list[Run]) -> pd.DataFrame:
    """How many records each device, code revision and set of versions has, and when the last of them was finished."""
    keys = ["device", "precision", "revision", "versions"]
    rows = [
        (
            record["device"],
            record["precision"],
            f"{(record['revision'] or 'unknown')[:10]}{'' if record['tree_clean'] else ', with changes'}",
            ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items())),
            record["finished"][:10],
        )
        for _, _, record in runs
        if record is not None
    ]
    grouped = pd.DataFrame(rows, columns=[*keys, "finished"]).groupby(keys, sort=False)["finished"]
    return grouped.agg(["size", "max"]).reset_index().set_axis([*keys, "records", "last finished"], axis=1)


def durations(runs: list[Run]) -> pd.DataFrame:
    """Wall time of teachers, distilled sets and students by data set; what several records share counts once."""
    seconds = {}
    for setting, _, record in runs:
        for part in students(record) if record else []:
            made = {"teacher": part["teacher"]["artifact"], "synthesis": part["distilled"]["artifact"]}
            made["student"] = setting["name"], setting["seed"], part.get("classes_seen")
            for stage, what in made.items():
                seconds.setdefault((results.dataset_label(setting), stage), {})[what] = part["seconds"][stage]
    rows = [
        (*key, len(times), f"{statistics.median(times.values()):,.1f}", f"{sum(times.values()) / 3600:,.2f}")
        for key, times in seconds.items()
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
