"""What the images add: students of the same images under hard labels, fixed soft labels, and the teacher's own.

DD-Ranking's scores (Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", arXiv 2505.13300) are
made of the same accuracies:

    hard label recovery     HLR = Acc(real, hard) - Acc(set, hard)
    improvement over random IOR = Acc(set, as its method evaluates) - Acc(random real, likewise)
    label-robust score      LRS = (e^a - e^-1) / (e - e^-1),  a = IOR / 2 - HLR / 2

with accuracies as fractions, so that LRS lies in [0, 1]. Real images with hard labels are what our teacher was trained
on, and the method's own evaluation is under the teacher's labels.
"""

import math

import pandas as pd

from dwa_paper.report import intervals, results, tables
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS, RECIPES, format_number

LABELS = {"hard": "hard labels", "fixed": "fixed soft labels", "teacher": "teacher's labels"}
PLACE = ["data set", "ipc", "student"]


def accuracies(runs: list[Run]) -> pd.DataFrame:
    """`results.accuracies` with the columns "labels" and "images": the method, and what differs from its defaults."""
    rows = results.accuracies(runs, ("relabel.labels",)).rename(columns={"relabel.labels": "labels"})
    parts = zip(
        rows["method"].map(METHODS), rows["recipe"].map(RECIPES | {"defaults": ""}), rows["variant"], strict=True
    )
    rows["images"] = [", ".join(filter(None, texts)) for texts in parts]
    return rows


def label_robust_score(recovery: float, improvement: float) -> float:
    """LRS in [0, 1] from HLR and IOR, both as fractions."""
    alpha = (improvement - recovery) / 2
    return (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def scores(runs: list[Run]) -> pd.DataFrame:
    """One row per data set and kind of images: mean, std (n - 1) and count by labels, HLR and IOR in points, LRS.

    Random real images that are compared with follow the same recipe. NaN where an accuracy was not measured.
    """
    rows, found = accuracies(runs), []
    means = rows.groupby([*PLACE, "images", "labels"])["accuracy"].mean()
    for (*place, images), group in rows.groupby([*PLACE, "images"]):
        row = dict(zip([*PLACE, "images"], [*place, images], strict=True))
        for labels in LABELS:
            tops = group.loc[group["labels"] == labels, "accuracy"]
            row |= {f"{labels} mean": tops.mean(), f"{labels} std": tops.std(), f"{labels} count": tops.count()}
        method = group["method"].iloc[0]
        random_real = images.replace(METHODS[method], METHODS["random-real"], 1)
        row |= {"teacher": group["teacher"].mean(), "records": results.join_records(group["record"])}
        row["HLR"] = row["teacher"] - row["hard mean"]
        baseline = means.get((*place, random_real, "teacher"), math.nan)
        row["IOR"] = round(row["teacher mean"] - baseline, 6) + 0.0  # no -0.0
        row["LRS"] = label_robust_score(row["HLR"] / 100, row["IOR"] / 100)
        found.append(row | {"order": list(METHODS).index(method)})
    frame = pd.DataFrame(found)
    return frame.sort_values([*PLACE, "order", "images"], ignore_index=True).drop(columns="order") if found else frame


def label_blocks(runs: list[Run]) -> tuple[pd.DataFrame, list]:
    """The numbers of the table, and what it shows: a table of texts, the intervals, the notes."""
    frame = scores(runs)
    if frame.empty:
        return frame, [tables.NOTHING]
    shown = frame[[*PLACE, "images"]].copy()
    for labels, title in LABELS.items():
        shown[title] = [tables.mean_text(row, labels) for _, row in frame.iterrows()]
    for score, form in {"HLR": ".1f", "IOR": "+z.1f", "LRS": ".3f"}.items():
        shown[score] = [format_number(value, form) for value in frame[score]]
    rows = accuracies(runs)
    rows = rows[rows["recipe"] != "best"]  # it changes the student's training too
    lines = []
    for labels, title in LABELS.items():
        text = intervals.compare(rows[rows["labels"] == labels], [*PLACE, "recipe"], "dwa")
        lines += [f"- {title}: {text}"] if text else []
    compared = f"{intervals.LEGEND}\n\n" + "\n".join(lines) if lines else ""
    return frame, [shown, compared, tables.note_list(results.notes(runs))]
