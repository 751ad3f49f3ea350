"""Differences between methods over all cells of a table, with intervals that hold for a handful of students.

A bootstrap that draws three normal students of each group again holds the true difference in 79 % of trials with one
cell, and in 88 % with seven, where it says 95: three values say too little of their spread. Welch's interval does hold
it as often (B. L. Welch, "The Significance of the Difference between Two Means when the Population Variances are
Unequal", Biometrika 29, 1938), with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).
"""

import numpy as np
import pandas as pd
from scipy import stats

from dwa_paper.report import results
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS

LEGEND = "Over student seeds alone, with the sets and the draw of real images as they are (Welch's interval):"


def difference_interval(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """The mean over cells of the difference of two groups' mean accuracies, and the ends of its 95 % interval.

    Args:
        pairs: for each cell the accuracies of the one group and those of the other, at least two of each.
    """
    groups = [group for pair in pairs for group in pair]
    variances = np.array([group.var(ddof=1) / len(group) for group in groups]) / len(pairs) ** 2  # of their means
    observed = float(np.mean([first.mean() - second.mean() for first, second in pairs]))
    if not variances.any():
        return observed, observed, observed
    freedom = variances.sum() ** 2 / (variances**2 / [len(group) - 1 for group in groups]).sum()
    half = float(stats.t.ppf(0.975, freedom) * variances.sum() ** 0.5)
    return observed, observed - half, observed + half


def compare(rows: pd.DataFrame, cell: list[str], method: str, baseline: str = "random-real") -> str:
    """One line: `method` minus `baseline` over the cells of `rows` where both have two students or more; else empty."""
    rows, pairs = rows[rows["accuracy"].notna()], []
    for _, chosen in rows.groupby(cell):
        pair = [chosen.loc[chosen["method"] == name, "accuracy"].to_numpy() for name in (method, baseline)]
        if min(map(len, pair)) > 1:
            pairs.append(pair)
    if not pairs:
        return ""
    mean, low, high = difference_interval(pairs)
    cells = "one cell" if len(pairs) == 1 else f"{len(pairs)} cells"
    compared = f"{METHODS[method]} minus {METHODS[baseline]}, {cells}"
    return f"{compared}: {mean:+z.1f} points, 95 % interval {low:+z.1f} to {high:+z.1f}."


def compare_recipes(runs: list[Run]) -> str:
    """DWA against each other method over the cells of Table 1, for each recipe, as a Markdown list; else empty."""
    rows, lines = results.accuracies(runs), []
    for recipe, name in results.RECIPES.items():
        for other in ("random-real", "sre2l"):
            chosen, cell = rows[rows["recipe"] == recipe], [key for key in results.CELL if key != "method"]
            if text := compare(chosen, cell, "dwa", other):
                lines.append(f"- {name}: {text}")
    return "\n".join([f"{LEGEND}\n", *lines]) if lines else ""
