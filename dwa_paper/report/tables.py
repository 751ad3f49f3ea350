"""Tables from runs: the paper's numbers beside ours, as frames of numbers and as texts.

A cell that was never run stays empty: nothing is filled in from the paper.
"""

from itertools import takewhile

import numpy as np
import pandas as pd

from dwa_paper.report import results
from dwa_paper.report.product import Run, escape_markdown
from dwa_paper.report.results import CELL, METHODS, RECIPES, format_number

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
MEASURES = list(results.DIVERSITY.values())


def accuracy_table(runs: list[Run], table: int | None = None, axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per cell, with the paper beside ours; mean and standard deviation (n - 1) over student seeds, in percent.

    The paper is compared with runs of the authors' code; the defaults and the best on validation images have columns of
    their own, "defaults mean" and "best mean" beside "authors mean". `outside` is True where the difference is above
    TOLERANCE and above twice the larger standard deviation, and None without one.

    Args:
        table: the paper's table whose rows join ours, for each data set and ipc that a run has; None where the paper
            has none, or its numbers are not available.
        axes: keys such as "synthesis.rho" that get a column of their own.
    """
    cell, rows = [*CELL, *axes], results.accuracies(runs, axes)
    columns = []
    for label in RECIPES:
        group = rows[rows["recipe"] == label].groupby(cell)
        numbers = group["accuracy"].agg(["mean", "std", "count"]).join(group[MEASURES].mean())
        columns.append(numbers.add_prefix(f"{label} "))
    of_cell = rows.groupby(cell)
    records = of_cell["record"].agg(results.join_records).rename("records")
    frame = pd.concat([*columns, of_cell["teacher"].mean(), records], axis=1).reset_index()
    paper = results.reported_numbers().merge(rows[["data set", "ipc"]].drop_duplicates())
    key = [name for name in CELL if name != "network"]
    paper = paper.rename(columns={"top1_mean": "paper mean", "top1_std": "paper std"})
    paper = paper.loc[paper["table"] == table, [*key, "paper mean", "paper std"]]
    frame = frame.merge(paper, how="outer", on=key)
    frame["difference"] = (frame["authors mean"] - frame["paper mean"]).round(6)
    spread = 2 * frame[["authors std", "paper std"]].max(axis=1).fillna(0)
    outside = frame["difference"].abs() > spread.clip(lower=TOLERANCE).round(6)
    frame["outside"] = outside.astype(object).where(frame["difference"].notna(), None)
    frame["quoted"] = ~frame["method"].isin([*METHODS])
    order = ["quoted", "data set", "ipc", "student", "network", "method", "variant", *axes]
    return frame.sort_values(order, key=sort_key, ignore_index=True).drop(columns="quoted")


def sort_key(column: pd.Series) -> pd.Series:
    """The key that sorts a column of `accuracy_table`: methods in our order, networks by their number."""
    keys = dict.fromkeys(("data set", "student", "network"), results.natural_key)
    for name, known in {"method": [*METHODS], "recipe": [*RECIPES], "synthesis.adjustment": [*ARMS]}.items():
        keys[name] = lambda value, known=known: (known.index(value) if value in known else -1, value)
    if column.name not in keys:
        return column
    names = column.fillna("")
    return names.map(sorted(names.unique(), key=keys[column.name]).index)


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
    return format_number(row["difference"], "+z.1f") + (f" {MARK}" if row["outside"] else "")


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


def to_long(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts, one cell a row, without empty columns."""
    shown = frame[["data set", "ipc", "student"]].copy()
    for name, text in {
        "method": method_text,
        "paper": lambda row: mean_text(row, "paper"),
        "ours, authors' code": lambda row: mean_text(row, "authors"),
        "difference": difference_text,
        "ours, defaults": lambda row: mean_text(row, "defaults"),
        f"ours, {RECIPES['best']}": lambda row: mean_text(row, "best"),
        "teacher": teacher_text,
    }.items():
        shown[name] = [text(row) for _, row in frame.iterrows()]
    # Where the paper has numbers, the columns that are compared with them stay, to show what is not run yet.
    keep = ["paper", "ours, authors' code", "difference"] if shown["paper"].any() else []
    return shown[[name for name in shown if name in keep or shown[name].astype(bool).any()]]


def stack_recipes(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame with a row for each recipe that a cell has runs of: "mean" there is its "best mean"."""
    parts = []
    for label, recipe in RECIPES.items():
        planned = frame[frame[f"{label} count"].notna()].assign(recipe=recipe)
        parts.append(planned.rename(columns=lambda name, label=label: name.removeprefix(f"{label} ")))
    return pd.concat(parts, ignore_index=True)


def to_wide(frame: pd.DataFrame, rows: list[str], columns: list[str]) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts with one row for each of `rows` and one column for each of `columns`.

    Where there are several recipes, each has rows of its own. The paper's number, where there is one, follows ours in
    brackets, with the difference.
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
    known = stack_recipes(frame).dropna(subset=MEASURES, how="all")
    known = known.assign(other=known["student"] != known["network"]).sort_values("other", kind="stable")
    known = known.drop_duplicates(["recipe", "data set", "ipc", "network", "method", "variant", *axes]).sort_index()
    rows = [row for _, row in known.iterrows()]
    shown = known[["data set", "ipc"]].assign(teacher=known["network"], method=[method_text(row) for row in rows])
    shown = shown.join(known[[*(axis for axis in axes if axis != "synthesis.adjustment"), "recipe"]])
    for name in MEASURES:
        shown[name] = [format_number(value, ".2f") for value in known[name]]
    return shown.assign(accuracy=[mean_text(row) for row in rows], **{"of student": known["student"]})


def seed_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame over `synthesis.seed` as texts: what students and what distilled sets vary by.

    The first is the root of the mean variance of the students on one set, the second the standard deviation of the
    sets' means, which holds what is left of the first in a mean.
    """
    which_sets, shown = ["data set", "ipc", "network", "student", "method", "variant", "recipe"], []
    for _, sets in stack_recipes(frame).groupby(which_sets, sort=False):
        row = {**sets.iloc[0][which_sets], "method": method_text(sets.iloc[0])}
        row |= {f"synthesis seed {one['synthesis.seed']}": mean_text(one) for _, one in sets.iterrows()}
        row["standard deviation over students"] = format_number((sets["std"] ** 2).mean() ** 0.5, ".2f")
        shown.append(row | {"over sets": format_number(sets["mean"].std(), ".2f")})
    return pd.DataFrame(shown).drop(columns="variant", errors="ignore").rename(columns={"network": "teacher"})


def accuracy_blocks(runs: list[Run], frame: pd.DataFrame, shown: pd.DataFrame) -> list:
    """What a table's .md holds: `shown`, the diversity of the sets of `accuracy_table`'s frame, a legend, notes."""
    sets = diversity(frame)
    legend = LEGEND if frame["paper mean"].notna().any() else NOT_REPORTED
    about_sets = ["## Diversity of the distilled sets", DIVERSITY_NOTE, sets] if len(sets) else []
    return [shown if len(shown) else NOTHING, *about_sets, note_list([legend, *results.notes(runs)])]


def note_list(lines: list[str]) -> str:
    """The notes as a Markdown list."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def moves(runs: list[Run]) -> pd.DataFrame:
    """What changes accuracy by how much: one row per change, methods side by side, against the row without changes.

    For each data set, ipc, teacher and student the first row is the recipe under our defaults; the others are sorted by
    what they add to DWA, and where it was not run, to random real images. `<method> mean`, `std` and `count` are over
    student seeds, in percent; `<method> effect` is what the change adds to the mean, in points, and `<method> spread`
    twice the larger standard deviation of the two, and at least TOLERANCE. `synthesis gain` is DWA minus random real
    images under the same change, or, where it is one of the synthesis that real images know nothing of, under the rest.
    """
    where = ["data set", "ipc", "network", "student"]
    rows = results.accuracies(runs)
    recipes = rows["recipe"].map(RECIPES | {"defaults": ""})
    rows["change"] = (recipes + ", " + rows["variant"]).str.strip(", ")
    of_real = results.accuracies(runs, tuple(results.UNREAD_OF_REAL))
    rows["change of real"] = (recipes + ", " + of_real["variant"]).str.strip(", ")
    cells = rows.groupby([*where, "change", "method"])["accuracy"].agg(["mean", "std", "count"])
    changed = cells.index.get_level_values("change") != ""
    unchanged = cells[~changed].droplevel("change").reindex(cells.index.droplevel("change"))
    cells["effect"] = (cells["mean"] - unchanged["mean"].to_numpy()).where(changed)
    spread = 2 * np.fmax(cells["std"], unchanged["std"].to_numpy())
    cells["spread"] = spread.fillna(0).clip(lower=TOLERANCE).where(changed)
    frame = cells.unstack("method")
    frame.columns = [f"{method} {name}" for name, method in frame.columns]
    for name in ("random-real mean", "dwa mean", "random-real effect", "dwa effect"):
        frame[name] = frame.get(name, np.nan)
    first = rows.groupby([*where, "change"])
    compared = first["change of real"].first().droplevel("change").to_frame().set_index("change of real", append=True)
    frame["synthesis gain"] = frame["dwa mean"] - frame["random-real mean"].reindex(compared.index).to_numpy()
    frame.insert(0, "teacher", first["teacher"].mean())
    frame["records"] = first["record"].agg(results.join_records)
    frame = frame.reset_index().assign(changed=lambda frame: frame["change"] != "")
    order = {**dict.fromkeys([*where, "changed"], True), "dwa effect": False, "random-real effect": False}
    frame = frame.sort_values(list(order), ascending=list(order.values()), ignore_index=True)
    return frame.drop(columns="changed")


def moves_blocks(runs: list[Run], frame: pd.DataFrame) -> list:
    """What the .md holds of `moves`' frame: the table, without the methods that were not run, and notes."""
    rows = []
    for _, row in frame.iterrows():
        texts = {name: row[name] for name in ("data set", "ipc", "student")}
        texts |= {"change": row["change"] or "none (our defaults)", "teacher": teacher_text(row)}
        for method, shown in METHODS.items():
            if f"{method} count" in frame:
                texts |= {shown: mean_text(row, method), f"{shown}, change": effect_text(row, method)}
        rows.append(texts | {"DWA minus random real": format_number(row["synthesis gain"], "+z.1f")})
    return [pd.DataFrame(rows) if rows else NOTHING, note_list(results.notes(runs))]


def effect_text(row: pd.Series, method: str) -> str:
    """What a change adds; in brackets where the spread over students may be all there is to it."""
    text = format_number(row[f"{method} effect"], "+z.1f")
    return f"({text})" if text and abs(row[f"{method} effect"]) <= row[f"{method} spread"] else text
