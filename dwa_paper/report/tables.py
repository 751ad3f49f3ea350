"""Tables from runs, as Markdown and CSV: print beside ours, and a cell that was never run stays empty."""

import math
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pandas as pd

from dwa_paper.report import results
from dwa_paper.report.results import CELL, METHODS, SWITCHES, Run
from dwa_paper.settings import schema
from dwa_paper.settings.environment import root

TOLERANCE = 1.0  # points of accuracy that no difference is taken seriously within
MARK = "†"
LEGEND = (
    f"{MARK} ours differs from print by more than {TOLERANCE} point and by more than twice the larger of the two "
    "standard deviations."
)
NO_PRINT = "Numbers in print are not at hand for what this table shows, so it has no column of them."
DIVERSITY_NOTE = (
    "Feature distance: how far apart the distilled images of a class lie at the teacher's last convolution, relative "
    "to real test images of the class (1: as far). Coverage: the share of real test images that have a distilled image "
    "nearer than their k-th nearest real one, from 0 to 1 (k is in the record, 5 as a rule); it grows with ipc."
)
# The arms of Table 3 in its order.
ARMS = {"none": "no adjustment", "random": "random direction", "directed": "directed (DWA)"}


def accuracy_table(runs: list[Run], table: int | None = None, axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per cell, with print beside ours; mean and standard deviation (n - 1) over student seeds, in percent.

    Print is compared with runs under the authors' switches; the defaults and the best on validation images have
    columns of their own, "ours mean" and "best mean" beside "authors mean". `outside` is True where the difference is
    above 1.0 point and above twice the larger standard deviation, and None without one.

    Args:
        runs: as `results.runs_of` returns them.
        table: the printed table whose rows join ours, for each data set and ipc that a run has; None for a table
            that has no counterpart in print.
        axes: keys such as "synthesis.rho" that get a column of their own.
    """
    cell = [*CELL, *axes]
    rows = results.accuracies(runs, axes)
    columns = []
    for label in SWITCHES:
        group = rows[rows["switches"] == label].groupby(cell)
        columns.append(group["accuracy"].agg(["mean", "std", "count"]).add_prefix(f"{label} "))
        columns.append(group[list(results.DIVERSITY.values())].mean().add_prefix(f"{label} "))
    frame = pd.concat([*columns, rows.groupby(cell)["teacher"].mean()], axis=1).reset_index()
    printed = results.published().rename(columns={"dataset": "data set", "network": "student"})
    shown = set(zip(rows["data set"], rows["ipc"], strict=True))
    belongs = [key in shown for key in zip(printed["data set"], printed["ipc"], strict=True)]
    printed = printed[(printed["table"] == table) & pd.Series(belongs)].assign(variant="")
    printed = printed.rename(columns={"top1_mean": "print mean", "top1_std": "print std"})
    key = [name for name in CELL if name != "network"]
    frame = frame.merge(printed[[*key, "print mean", "print std"]], how="outer", on=key)
    frame["difference"] = (frame["authors mean"] - frame["print mean"]).round(6)
    spread = 2 * frame[["authors std", "print std"]].max(axis=1).fillna(0)
    outside = frame["difference"].abs() > spread.clip(lower=TOLERANCE).round(6)
    frame["outside"] = outside.astype(object).where(frame["difference"].notna(), None)
    return frame.sort_values(
        ["data set", "ipc", "student", "network", "method", "variant", *axes], key=place, ignore_index=True
    )


def place(column: pd.Series) -> pd.Series:
    """The key that sorts a column of `accuracy_table`: quoted methods before ours, networks by their number."""
    orders = {"method": list(METHODS), "synthesis.adjustment": list(ARMS)}
    if column.name in orders:
        known = orders[column.name]
        order = sorted(column.unique(), key=lambda name: (known.index(name) if name in known else -1, name))
    elif column.name in ("data set", "student", "network"):
        order = sorted(column.fillna("").unique(), key=results.natural)
    else:
        return column
    return column.fillna("").map(order.index)


# ---------------------------------------------------------------------------------------------------- texts


def number(value: float, digits: int) -> str:
    """`value` with that many digits after the point, empty where there is none."""
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def mean_text(row: pd.Series, label: str) -> str:
    """mean ± standard deviation of `row`'s columns of that label, with the number of seeds where it is not three."""
    mean, std, count = (row.get(f"{label} {name}") for name in ("mean", "std", "count"))
    if pd.isna(mean):
        return ""
    if label != "print" and count == 1:
        return f"{mean:.1f} (1 seed)"
    seeds = "" if label == "print" or count == 3 else f" ({count:.0f} seeds)"
    return f"{mean:.1f} ± {std:.1f}{seeds}"


def difference_text(row: pd.Series) -> str:
    """Ours minus print with its sign, marked where it is outside the tolerance; empty where one of the two is."""
    return "" if pd.isna(row["difference"]) else f"{row['difference']:+.1f}{' ' + MARK if row['outside'] else ''}"


def method_text(row: pd.Series) -> str:
    """The arm or method, whether it is quoted from print, and the variant."""
    if row["method"] == "dwa" and "synthesis.adjustment" in row:
        method = ARMS[row["synthesis.adjustment"]]
    else:
        method = METHODS.get(row["method"], f"{row['method']} (quoted)")
    return ", ".join(filter(None, [method, row["variant"]]))


def long(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts, one cell a row, without the columns that nothing stands in."""
    rows = []
    for _, row in frame.iterrows():
        network = "" if pd.isna(row["network"]) else row["network"]
        rows.append(
            {
                "data set": row["data set"],
                "ipc": row["ipc"],
                "student": row["student"],
                "method": method_text(row),
                "print": mean_text(row, "print"),
                "ours, authors' switches": mean_text(row, "authors"),
                "difference": difference_text(row),
                "ours, defaults": mean_text(row, "ours"),
                "ours, best on validation": mean_text(row, "best"),
                "teacher": " ".join([network, number(row["teacher"], 1)]).strip(),
            }
        )
    shown = pd.DataFrame(rows)
    # With print at hand the columns that are compared with it stay, to show what is not run yet.
    keep = {"print", "ours, authors' switches", "difference"} if shown.get("print", pd.Series()).any() else set()
    return shown.drop(columns=[name for name in shown if name not in keep and not shown[name].astype(bool).any()])


def wide(frame: pd.DataFrame, rows: list[str], columns: list[str]) -> pd.DataFrame:
    """`accuracy_table`'s frame as texts with one row for each of `rows` and one column for each of `columns`.

    Runs under the authors' switches, the defaults and the best on validation images have rows of their own where there
    are several of them. Print, where it is at hand, stands in brackets behind ours, with the difference.
    """
    frame = frame.assign(method=frame.apply(method_text, axis=1))
    planned = {label: frame[f"{label} count"].notna() for label in SWITCHES}
    several = sum(chosen.any() for chosen in planned.values()) > 1
    teachers = frame.groupby(["data set", "network"])["teacher"]
    # Their accuracy only where it is one and the same for all rows of a data set and network.
    known = teachers.transform("mean").where(teachers.transform("nunique") == 1)
    frame["network"] = [f"{name} {number(top1, 1)}".strip() for name, top1 in zip(frame["network"], known, strict=True)]
    cells = {}
    for label, chosen in planned.items():
        for _, row in frame[chosen].iterrows():
            text = mean_text(row, label)
            if label == "authors" and not pd.isna(row["print mean"]):
                text += f" (print {mean_text(row, 'print')}" + (f", {difference_text(row)})" if text else ")")
            left = (*[row[name] for name in rows], *([SWITCHES[label]] if several else []))
            top = ", ".join(str(row[name]) if name == "method" else f"{name} {row[name]}" for name in columns)
            cells.setdefault(left, {})[top] = text
    tops = list(dict.fromkeys(top for texts in cells.values() for top in texts))
    names = [*rows, *(["switches"] if several else [])]
    named = {"network": "teacher"}
    return pd.DataFrame(
        [
            {named.get(name, name): value for name, value in zip(names, left, strict=True)}
            | {top: texts.get(top, "") for top in tops}
            for left, texts in cells.items()
        ]
    )


def diversity(frame: pd.DataFrame) -> pd.DataFrame:
    """One row as texts for each distilled set whose diversity is known, beside the accuracy of one student.

    The student is one of the teacher's network where there is one.
    """
    axes = [name for name in takewhile(lambda name: not name.endswith(" mean"), frame) if name not in CELL]
    which_set = ["data set", "ipc", "network", "method", "variant", *axes]
    frame = frame.assign(other=frame["student"] != frame["network"]).sort_values("other", kind="stable")
    rows = []
    for label, switches in SWITCHES.items():
        names = {f"{label} {name}": name for name in results.DIVERSITY.values()}
        known = frame[frame[list(names)].notna().any(axis=1)].drop_duplicates(which_set).sort_index()
        for _, row in known.iterrows():
            rows.append(
                {
                    "data set": row["data set"],
                    "ipc": row["ipc"],
                    "teacher": row["network"],
                    "method": method_text(row),
                    **{axis: row[axis] for axis in axes if axis != "synthesis.adjustment"},
                    "switches": switches,
                    **{shown: number(row[name], 2) for name, shown in names.items()},
                    "accuracy": mean_text(row, label),
                    "of student": row["student"],
                }
            )
    return pd.DataFrame(rows)


def seed_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table`'s frame over `synthesis.seed` as texts: what students and what distilled sets vary by.

    The first is the root of the mean variance of the students on one set, the second the standard deviation of the
    sets' means, which holds what is left of the first in a mean.
    """
    rows = []
    for label, switches in SWITCHES.items():
        planned = frame[frame[f"{label} count"].notna()]
        for cell, sets in planned.groupby(["data set", "ipc", "network", "student", "method", "variant"], sort=False):
            texts = {f"synthesis seed {row['synthesis.seed']}": mean_text(row, label) for _, row in sets.iterrows()}
            students = (sets[f"{label} std"] ** 2).mean() ** 0.5
            rows.append(
                dict(zip(["data set", "ipc", "teacher", "student"], cell, strict=False))
                | {"method": method_text(sets.iloc[0]), "switches": switches}
                | texts
                | {
                    "standard deviation over students": number(students, 2),
                    "over sets": number(sets[f"{label} mean"].std(), 2),
                }
            )
    return pd.DataFrame(rows)


def moves(runs: list[Run]) -> pd.DataFrame:
    """What changes accuracy by how much: one row per change, methods side by side, against the row without changes.

    For each data set, ipc, teacher and student the first row is the recipe under our defaults; the others are sorted by
    what they add to DWA, and where it was not run, to random real images. `<method> mean`, `std` and `count` are over
    student seeds, in percent; `<method> effect` is what the change adds to the mean, in points, and `<method> spread`
    twice the larger standard deviation of the two, and at least TOLERANCE. `synthesis gain` is DWA minus random real
    images under the same change, or, where it is one of the synthesis that real images know nothing of, under the rest.

    Args:
        runs: as `results.runs_of` returns them.
    """
    where = ["data set", "ipc", "network", "student"]
    rows = results.accuracies(runs)
    switched = rows["switches"].map(SWITCHES | {"ours": ""})
    for name, variant in {"change": "variant", "change of real": "variant of real"}.items():
        rows[name] = [", ".join(filter(None, texts)) for texts in zip(switched, rows[variant], strict=True)]
    cells = rows.groupby([*where, "change", "method"])["accuracy"].agg(["mean", "std", "count"]).reset_index()
    unchanged = cells[cells["change"] == ""].drop(columns=["change", "count"])
    cells = cells.merge(unchanged, how="left", on=[*where, "method"], suffixes=("", " unchanged"))
    changed = cells["change"] != ""
    cells["effect"] = (cells["mean"] - cells.pop("mean unchanged")).where(changed)
    spread = cells[["std"]].join(cells.pop("std unchanged")).max(axis=1)
    cells["spread"] = (2 * spread.fillna(0)).clip(lower=TOLERANCE).where(changed)
    frame = cells.set_index([*where, "change", "method"]).unstack("method")
    frame.columns = [f"{method} {name}" for name, method in frame.columns]
    for name in ("mean", "effect"):
        for method in ("random-real", "dwa"):
            if f"{method} {name}" not in frame:
                frame[f"{method} {name}"] = float("nan")
    of_real = rows.groupby([*where, "change"])["change of real"].first().reset_index("change", drop=True)
    compared = pd.MultiIndex.from_frame(of_real.reset_index())
    frame["synthesis gain"] = frame["dwa mean"] - frame["random-real mean"].reindex(compared).to_numpy()
    frame.insert(0, "teacher", rows.groupby([*where, "change"])["teacher"].mean())
    frame = frame.reset_index()
    for name, method in {"order": "dwa", "then": "random-real"}.items():
        frame[name] = -frame[f"{method} effect"].fillna(-math.inf).where(frame["change"] != "", math.inf)
    return frame.sort_values([*where, "order", "then"], ignore_index=True).drop(columns=["order", "then"])


def moves_text(frame: pd.DataFrame) -> pd.DataFrame:
    """`moves`' frame as texts, without the methods that were not run."""
    rows = []
    for _, row in frame.iterrows():
        texts = {name: row[name] for name in ("data set", "ipc", "student")}
        texts["change"] = row["change"] or "none (our defaults)"
        texts["teacher"] = f"{row['network']} {number(row['teacher'], 1)}".strip()
        for method, shown in METHODS.items():
            if f"{method} count" in frame:
                texts |= {shown: mean_text(row, method), f"{shown}, change": effect_text(row, method)}
        texts["DWA minus random real"] = signed(row["synthesis gain"])
        rows.append(texts)
    return pd.DataFrame(rows)


def signed(value: float) -> str:
    """Points with their sign, empty where there are none."""
    return "" if pd.isna(value) else f"{value:+.1f}"


def effect_text(row: pd.Series, method: str) -> str:
    """What a change adds; in brackets where the spread over students may be all there is to it."""
    text = signed(row[f"{method} effect"])
    return f"({text})" if text and abs(row[f"{method} effect"]) <= row[f"{method} spread"] else text


# --------------------------------------------------------------------------------------- hyper-parameters


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


# --------------------------------------------------------------------------------------------------- files


def write(
    profile: str, name: str, title: str, caption: str, frame: pd.DataFrame, blocks: list, notes: list[str]
) -> Path:
    """Writes results/<profile>/<name>.csv from `frame`, and .md; returns the path of the .md.

    The .md holds title, caption, `blocks` (text, or frames of texts that become tables) and `notes`.
    """
    folder = root() / "results" / profile
    folder.mkdir(parents=True, exist_ok=True)
    frame.round(4).to_csv(folder / f"{name}.csv", index=False)
    texts = [f"# {title}, profile {profile}", caption]
    for block in blocks:
        if isinstance(block, pd.DataFrame):
            block = block.fillna("").to_markdown(index=False, disable_numparse=True)
        texts.append(block)
    texts.append("\n".join(f"- {line}" for line in notes))
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(filter(None, texts)) + "\n")
    return path


def write_accuracies(
    profile: str, name: str, title: str, caption: str, runs: list[Run], frame: pd.DataFrame, shown: pd.DataFrame
) -> Path:
    """Writes `accuracy_table`'s frame, `shown` as texts, with its legend and the notes of its runs; see `write`."""
    about_print = LEGEND if frame["print mean"].notna().any() else NO_PRINT
    blocks = [shown if len(shown) else "No setting of this profile belongs here."]
    sets = diversity(frame)
    if len(sets):
        blocks += ["## Diversity of the distilled sets", DIVERSITY_NOTE, sets]
    return write(profile, name, title, caption, frame, blocks, [about_print, *results.notes(runs)])
