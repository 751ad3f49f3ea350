"""Tables from runs: the paper's numbers beside ours, as frames of numbers and as texts.

A cell that was never run stays empty: nothing is filled in from the paper.
"""

import math
from collections.abc import Iterable
from itertools import takewhile

import pandas as pd

from dwa_paper.report import results
from dwa_paper.report.product import Run
from dwa_paper.report.results import CELL, METHODS, RECIPES, format_number
from dwa_paper.settings import files, schema
from dwa_paper.settings.presets import PRESETS

TOLERANCE = 1.0  # points of accuracy; a smaller difference is not taken seriously
MARK = "†"
LEGEND = (
    f"{MARK} ours differs from the paper by more than {TOLERANCE} point and by more than twice the larger of the two "
    "standard deviations."
)
NOT_REPORTED = "The paper's numbers are not available for this table, so it has no column of them."
NOTHING = "No setting of this profile belongs here."
DIVERSITY_NOTE = (
    "Feature distance: how far apart the distilled images of a class lie at the teacher's last convolution, relative "
    "to real test images of the class (1: as far). Coverage: the share of real test images that have a distilled image "
    "nearer than their k-th nearest real one, from 0 to 1 (k is in the record, 5 as a rule); it grows with ipc."
)
# The arms of Table 3 in its order.
ARMS = {"none": "no adjustment", "random": "random direction", "directed": "directed (DWA)"}


def accuracy_table(runs: list[Run], table: int | None = None, axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per cell, with the paper beside ours; mean and standard deviation (n - 1) over student seeds, in percent.

    The paper is compared with runs of the authors' code; the defaults and the best on validation images have columns of
    their own, "defaults mean" and "best mean" beside "authors mean". `outside` is True where the difference is above
    TOLERANCE and above twice the larger standard deviation, and None without one.

    Args:
        runs: as `product.runs_of` returns them.
        table: the paper's table whose rows join ours, for each data set and ipc that a run has; None where the paper
            has none, or its numbers are not available.
        axes: keys such as "synthesis.rho" that get a column of their own.
    """
    cell = [*CELL, *axes]
    rows = results.accuracies(runs, axes)
    columns = []
    for label in RECIPES:
        group = rows[rows["recipe"] == label].groupby(cell)
        columns.append(group["accuracy"].agg(["mean", "std", "count"]).add_prefix(f"{label} "))
        columns.append(group[list(results.DIVERSITY.values())].mean().add_prefix(f"{label} "))
    frame = pd.concat([*columns, rows.groupby(cell)["teacher"].mean()], axis=1).reset_index()
    paper = results.reported_numbers().assign(variant="")
    shown = set(zip(rows["data set"], rows["ipc"], strict=True))
    belongs = [key in shown for key in zip(paper["data set"], paper["ipc"], strict=True)]
    paper = paper[(paper["table"] == table) & pd.Series(belongs)]
    paper = paper.rename(columns={"top1_mean": "paper mean", "top1_std": "paper std"})
    key = [name for name in CELL if name != "network"]
    frame = frame.merge(paper[[*key, "paper mean", "paper std"]], how="outer", on=key)
    frame["difference"] = (frame["authors mean"] - frame["paper mean"]).round(6)
    spread = 2 * frame[["authors std", "paper std"]].max(axis=1).fillna(0)
    outside = frame["difference"].abs() > spread.clip(lower=TOLERANCE).round(6)
    frame["outside"] = outside.astype(object).where(frame["difference"].notna(), None)
    return frame.sort_values(
        ["data set", "ipc", "student", "network", "method", "variant", *axes], key=sort_key, ignore_index=True
    )


def sort_key(column: pd.Series) -> pd.Series:
    """The key that sorts a column of `accuracy_table`: quoted methods before ours, networks by their number."""
    orders = {"method": list(METHODS), "synthesis.adjustment": list(ARMS)}
    if column.name in orders:
        known = orders[column.name]
        order = sorted(column.unique(), key=lambda name: (known.index(name) if name in known else -1, name))
    elif column.name in ("data set", "student", "network"):
        order = sorted(column.fillna("").unique(), key=results.natural_key)
    else:
        return column
    return column.fillna("").map(order.index)


# ---------------------------------------------------------------------------------------------------- texts


def mean_text(row: pd.Series, label: str = "") -> str:
    """mean ± standard deviation of `row`'s columns of that label, with the number of seeds where it is not three."""
    mean, std, count = (row.get(f"{label} {name}".strip()) for name in ("mean", "std", "count"))
    if pd.isna(mean):
        return ""
    if label != "paper" and count == 1:
        return f"{mean:.1f} (1 seed)"
    return f"{mean:.1f} ± {std:.1f}" + ("" if label == "paper" or count == 3 else f" ({count:.0f} seeds)")


def difference_text(row: pd.Series) -> str:
    """Ours minus the paper with its sign, marked where it is outside the tolerance; empty where one of the two is."""
    return format_number(row["difference"], "+.1f") + (f" {MARK}" if row["outside"] else "")


def method_text(row: pd.Series) -> str:
    """The arm or method, whether it is quoted from the paper, and the variant."""
    if row["method"] == "dwa" and "synthesis.adjustment" in row:
        method = ARMS[row["synthesis.adjustment"]]
    else:
        method = METHODS.get(row["method"], f"{row['method']} (quoted)")
    return ", ".join(filter(None, [method, row["variant"]]))


def teacher_text(row: pd.Series) -> str:
    """The teacher's network and its accuracy, as far as they are known."""
    network = "" if pd.isna(row["network"]) else row["network"]
    return f"{network} {format_number(row['teacher'], '.1f')}".strip()


def long(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts, one cell a row, without empty columns."""
    shown = pd.DataFrame(
        {
            "data set": row["data set"],
            "ipc": row["ipc"],
            "student": row["student"],
            "method": method_text(row),
            "paper": mean_text(row, "paper"),
            "ours, authors' code": mean_text(row, "authors"),
            "difference": difference_text(row),
            "ours, defaults": mean_text(row, "defaults"),
            "ours, best on validation": mean_text(row, "best"),
            "teacher": teacher_text(row),
        }
        for _, row in frame.iterrows()
    )
    # Where the paper has numbers, the columns that are compared with them stay, to show what is not run yet.
    keep = ["paper", "ours, authors' code", "difference"] if shown.get("paper", pd.Series()).any() else []
    return shown.drop(columns=[name for name in shown if name not in keep and not shown[name].astype(bool).any()])


def stack_recipes(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame with a row for each recipe that a cell has runs of: "mean" there is its "best mean"."""
    parts = []
    for label, recipe in RECIPES.items():
        planned = frame[frame[f"{label} count"].notna()].assign(recipe=recipe)
        parts.append(planned.rename(columns={name: name.removeprefix(f"{label} ") for name in frame}))
    return pd.concat(parts, ignore_index=True)


def wide(frame: pd.DataFrame, rows: list[str], columns: list[str]) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts with one row for each of `rows` and one column for each of `columns`.

    Where there are several recipes, the defaults, the authors' code and the best on validation images, each has rows of
    its own. The paper's number, where there is one, follows ours in brackets, with the difference.
    """
    teachers = frame.groupby(["data set", "network"])["teacher"]
    # Their accuracy only where it is one and the same for all rows of a data set and network.
    known = teachers.transform("mean").where(teachers.transform("nunique") == 1)
    stacked = stack_recipes(frame.assign(teacher=known))
    names = rows + ["recipe"] * (stacked["recipe"].nunique() > 1)
    cells = {}
    for _, row in stacked.iterrows():
        text = mean_text(row)
        if row["recipe"] == RECIPES["authors"] and not pd.isna(row["paper mean"]):
            text += f" (paper {mean_text(row, 'paper')}" + (f", {difference_text(row)})" if text else ")")
        row["method"], row["network"] = method_text(row), teacher_text(row)
        top = ", ".join(str(row[name]) if name == "method" else f"{name} {row[name]}" for name in columns)
        cells.setdefault(tuple(row[names]), {})[top] = text
    shown = pd.DataFrame(dict(zip(names, left, strict=True)) | texts for left, texts in cells.items())
    return shown.rename(columns={"network": "teacher"}).fillna("")


def diversity(frame: pd.DataFrame) -> pd.DataFrame:
    """One row as texts for each distilled set whose diversity is known, beside the accuracy of one student.

    The student is one of the teacher's network where there is one.
    """
    axes = [name for name in takewhile(lambda name: not name.endswith(" mean"), frame) if name not in CELL]
    which_set = ["recipe", "data set", "ipc", "network", "method", "variant", *axes]
    measures = list(results.DIVERSITY.values())
    known = stack_recipes(frame).dropna(subset=measures, how="all")
    known = known.assign(other=known["student"] != known["network"]).sort_values("other", kind="stable")
    return pd.DataFrame(
        {
            "data set": row["data set"],
            "ipc": row["ipc"],
            "teacher": row["network"],
            "method": method_text(row),
            **{axis: row[axis] for axis in axes if axis != "synthesis.adjustment"},
            "recipe": row["recipe"],
            **{name: format_number(row[name], ".2f") for name in measures},
            "accuracy": mean_text(row),
            "of student": row["student"],
        }
        for _, row in known.drop_duplicates(which_set).sort_index().iterrows()
    )


def seed_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame over `synthesis.seed` as texts: what students and what distilled sets vary by.

    The first is the root of the mean variance of the students on one set, the second the standard deviation of the
    sets' means, which holds what is left of the first in a mean.
    """
    which_sets = ["recipe", "data set", "ipc", "network", "student", "method", "variant"]
    return pd.DataFrame(
        {
            "data set": row["data set"],
            "ipc": row["ipc"],
            "teacher": row["network"],
            "student": row["student"],
            "method": method_text(row),
            "recipe": row["recipe"],
            **{f"synthesis seed {one['synthesis.seed']}": mean_text(one) for _, one in sets.iterrows()},
            "standard deviation over students": format_number((sets["std"] ** 2).mean() ** 0.5, ".2f"),
            "over sets": format_number(sets["mean"].std(), ".2f"),
        }
        for _, sets in stack_recipes(frame).groupby(which_sets, sort=False)
        for row in [sets.iloc[0]]
    )


def accuracy_blocks(runs: list[Run], frame: pd.DataFrame, shown: pd.DataFrame) -> list:
    """What a table's .md holds: `shown`, the diversity of the sets of `accuracy_table`'s frame, a legend, notes."""
    sets = diversity(frame)
    legend = LEGEND if frame["paper mean"].notna().any() else NOT_REPORTED
    about_sets = ["## Diversity of the distilled sets", DIVERSITY_NOTE, sets] if len(sets) else []
    return [shown if len(shown) else NOTHING, *about_sets, note_list([legend, *results.notes(runs)])]


def note_list(lines: list[str]) -> str:
    """The notes as a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def moves(runs: list[Run]) -> pd.DataFrame:
    """What changes accuracy by how much: one row per change, methods side by side, against the row without changes.

    For each data set, ipc, teacher and student the first row is the recipe under our defaults; the others are sorted by
    what they add to DWA, and where it was not run, to random real images. `<method> mean`, `std` and `count` are over
    student seeds, in percent; `<method> effect` is what the change adds to the mean, in points, and `<method> spread`
    twice the larger standard deviation of the two, and at least TOLERANCE. `synthesis gain` is DWA minus random real
    images under the same change, or, where it is one of the synthesis that real images know nothing of, under the rest.

    Args:
        runs: as `product.runs_of` returns them.
    """
    where = ["data set", "ipc", "network", "student"]
    rows = results.accuracies(runs)
    recipes = rows["recipe"].map(RECIPES | {"defaults": ""})
    for name, variant in {"change": "variant", "change of real": "variant of real"}.items():
        rows[name] = [", ".join(filter(None, texts)) for texts in zip(recipes, rows[variant], strict=True)]
    cells = rows.groupby([*where, "change", "method"])["accuracy"].agg(["mean", "std", "count"]).reset_index()
    unchanged = cells[cells["change"] == ""].drop(columns=["change", "count"])
    cells = cells.merge(unchanged, how="left", on=[*where, "method"], suffixes=("", " unchanged"))
    changed = cells["change"] != ""
    cells["effect"] = (cells["mean"] - cells.pop("mean unchanged")).where(changed)
    spread = cells[["std"]].join(cells.pop("std unchanged")).max(axis=1)
    cells["spread"] = (2 * spread.fillna(0)).clip(lower=TOLERANCE).where(changed)
    frame = cells.set_index([*where, "change", "method"]).unstack("method")
    frame.columns = [f"{method} {name}" for name, method in frame.columns]
    for name in ("random-real mean", "dwa mean", "random-real effect", "dwa effect"):
        frame[name] = frame.get(name, math.nan)
    of_real = rows.groupby([*where, "change"])["change of real"].first().reset_index("change", drop=True)
    compared = pd.MultiIndex.from_frame(of_real.reset_index())
    frame["synthesis gain"] = frame["dwa mean"] - frame["random-real mean"].reindex(compared).to_numpy()
    frame.insert(0, "teacher", rows.groupby([*where, "change"])["teacher"].mean())
    frame = frame.reset_index()
    for method in ("dwa", "random-real"):
        frame[method] = -frame[f"{method} effect"].fillna(-math.inf).where(frame["change"] != "", math.inf)
    return frame.sort_values([*where, "dwa", "random-real"], ignore_index=True).drop(columns=["dwa", "random-real"])


def moves_blocks(runs: list[Run], frame: pd.DataFrame) -> list:
    """What the .md holds of `moves`' frame: the table, without the methods that were not run, and notes."""
    rows = []
    for _, row in frame.iterrows():
        texts = {name: row[name] for name in ("data set", "ipc", "student")}
        texts |= {"change": row["change"] or "none (our defaults)", "teacher": teacher_text(row)}
        for method, shown in METHODS.items():
            if f"{method} count" in frame:
                texts |= {shown: mean_text(row, method), f"{shown}, change": effect_text(row, method)}
        texts["DWA minus random real"] = format_number(row["synthesis gain"], "+.1f")
        rows.append(texts)
    return [pd.DataFrame(rows) if rows else NOTHING, note_list(results.notes(runs))]


def effect_text(row: pd.Series, method: str) -> str:
    """What a change adds; in brackets where the spread over students may be all there is to it."""
    text = format_number(row[f"{method} effect"], "+.1f")
    return f"({text})" if text and abs(row[f"{method} effect"]) <= row[f"{method} spread"] else text


# --------------------------------------------------------------------------------------- hyper-parameters


def hyperparameter_blocks(profile: str) -> list:
    """What the code runs under the presets of a profile, as a frame, and then what each modifier changes in it."""
    names = sorted({setting.preset for setting in files.list_runs(profile)}, key=results.natural_key)
    blocks = [hyperparameters(names)]
    for title, chosen, modifier in (
        ("SRe2L", names, {"method": "sre2l"}),
        ("The authors' code", names, {"authors": True}),
        ("What was best on validation images", [n for n in names if PRESETS[n]["best"]], {"best": True}),
        ("G-VBSM's teacher", [n for n in names if PRESETS[n]["teacher_recipes"]], {"teacher": {"recipe": "gvbsm"}}),
    ):
        if chosen:
            blocks += [f"## {title} changes", hyperparameters(chosen, **modifier)]
    return blocks


def hyperparameters(names: Iterable[str], **modifier) -> pd.DataFrame:
    """What the code runs under each preset of `names`, one row per value; DWA under our defaults.

    Args:
        names: presets.
        modifier: `method="sre2l"`, `authors=True` or `best=True`: only the values which that changes.
    """
    frames = []
    for changes in ({}, modifier):
        columns = {}
        for name in names:
            given = {"profile": "presets", "name": name, "preset": name, **changes}
            setting = schema.resolve(given).model_dump()
            for stage in ("teacher", "relabel"):  # what has no part in the training is left out
                if setting[stage]["optimizer"] != "sgd":
                    setting[stage]["momentum"] = None
                if setting[stage]["crop"] != "padded":
                    setting[stage]["crop_padding"] = None
            if setting["teacher"]["weights"] is not None:
                setting["teacher"] = dict.fromkeys(setting["teacher"]) | {"weights": setting["teacher"]["weights"]}
            columns[name] = {"network": setting["network"], "stem": setting["stem"]} | {
                f"{stage}.{key}": value_text(value)
                for stage in ("images", "teacher", "synthesis", "relabel")
                for key, value in setting[stage].items()
                if key not in ("seed", "test_every")
            }
        frames.append(pd.DataFrame(columns).fillna(""))
    plain, changed = frames
    frame = changed[(changed != plain).any(axis=1)] if modifier else plain[(plain != "").any(axis=1)]
    return frame.rename_axis("value").reset_index()


def value_text(value) -> str:
    """One value of a setting as a table shows it."""
    if isinstance(value, list):
        return ", ".join(value_text(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
