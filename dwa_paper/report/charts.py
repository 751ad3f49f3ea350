"""Charts from records, and what all figures share: readable in black and white."""

import random
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dwa_paper.report import results
from dwa_paper.report.product import Run
from dwa_paper.report.results import CELL, METHODS, RECIPES

# Shades that differ in black and white too, from light to dark.
COLOURS = {
    "random-real": "#d9d9d9",
    "herded-real": "#969696",
    "sre2l": "#74a9cf",
    "dwa": "#034e7b",
    "external": "#ffffff",
}
LIGHT, DARK = COLOURS["sre2l"], COLOURS["dwa"]
RIGHT = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # a legend beside its axis


def use_style() -> None:
    """One look for all figures: light grid, embedded fonts, text that stays text in SVG."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({"svg.fonttype": "none", "savefig.bbox": "tight", "figure.constrained_layout.use": True})
    plt.rcParams["svg.hashsalt"] = "dwa"  # the same figure gives the same file, byte for byte


def empty_figure(text: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axis = plt.subplots(figsize=(6, 1))
    axis.text(0.5, 0.5, text, ha="center", va="center")
    axis.set_axis_off()
    return figure


def label_group(setting: dict, network: str) -> str:
    """What the methods compared in one group have in common; `network` is "student" or "network", the teacher's."""
    names = setting[network]
    if network == "student" and setting["student"] != setting["network"]:
        names += f", teacher {setting['network']}"
    name = f"{results.dataset_label(setting)}\nipc {setting['ipc']}, {names}"
    recipe = results.recipe(setting)
    return name if recipe == "defaults" else f"{name}\n{RECIPES[recipe]}"


def set_panel_title(axis, group: str) -> None:
    """Writes what a panel shows, a label of `label_group`, above it on one line."""
    axis.set_title(group.replace("\n", ", "), loc="left", fontsize="medium")


def show_pictures(axis, pictures_uint8, label: str) -> None:
    """A row of images (N, H, W, 3) on `axis`, a white line between them, with `label` at its left."""
    separated = np.pad(pictures_uint8, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=255)
    axis.imshow(np.concatenate(separated, axis=1), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(label, rotation=0, ha="right", va="center")
    axis.grid(False)
    sns.despine(ax=axis, left=True, bottom=True)


def disambiguate(records: Sequence[dict], labels: Sequence[str]) -> list[str]:
    """`labels` of the sets of `records`, where those that are alike within a group name what differs first.

    That is the teacher's recipe or epochs, else the hash of its name, else that of the set's name.
    """
    groups = [label_group(record["setting"], "network") for record in records]
    ways = (
        [results.teacher_variant(record["setting"]) for record in records],
        [f"teacher {record['teacher']['artifact'].rpartition('-')[2]}" for record in records],
        [f"set {record['distilled']['artifact'].rpartition('-')[2]}" for record in records],
    )
    for way in ways:
        shown = list(zip(groups, labels, strict=True))
        alike = {key: {other for k, other in zip(shown, way, strict=True) if k == key} for key in shown}
        labels = [f"{key[1]},\n{own}" if len(alike[key]) > 1 else key[1] for key, own in zip(shown, way, strict=True)]
    return labels


def accuracy_bars(runs: list[Run]) -> Figure:
    """Horizontal bars of mean accuracy by method, a dot per student seed, a diamond for the paper's number."""
    cell = [name for name in CELL if name != "network"]
    done = results.accuracies(runs)
    done["group"] = [label_group(run.setting, "student") for run in runs]
    done["order"] = done["method"].map(list(METHODS).index)
    done = done[done["accuracy"].notna()].sort_values(["data set", "ipc", "student", "recipe"])
    if done.empty:
        return empty_figure("no record yet")
    if done["recipe"].nunique() > 1:  # alone, the defaults need no name
        done.loc[done["recipe"] == "defaults", "group"] += f"\n{RECIPES['defaults']}"
    paper = results.reported_numbers().assign(variant="").set_index(cell)["top1_mean"]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(done.groupby(["group", "method", "variant"]))))
    place, ticks, paper_drawn = 0.0, {}, False
    for group, in_group in done.groupby("group", sort=False):
        first = place
        for (_, variant), chosen in in_group.groupby(["order", "variant"]):
            colour, key = COLOURS[chosen.iloc[0]["method"]], tuple(chosen.iloc[0][cell])
            axis.text(chosen["accuracy"].max() + 1.5, place, variant, va="center", fontsize="small")
            axis.barh(place, chosen["accuracy"].mean(), 0.9, color=colour, edgecolor="black")
            axis.scatter(chosen["accuracy"], [place] * len(chosen), s=14, color="white", edgecolor="black", zorder=3)
            # The paper is compared with runs of the authors' code alone.
            if key in paper.index and chosen.iloc[0]["recipe"] == "authors":
                axis.scatter(paper[key], place, marker="D", s=40, color="black", zorder=4)
                paper_drawn = True
            place += 1
        ticks[group] = (first + place - 1) / 2
        place += 1.2
    axis.set(yticks=list(ticks.values()), yticklabels=list(ticks), xlim=(0, 100), xlabel="test accuracy, %")
    axis.set_ylim(place - 1.2, -1)  # from top to bottom
    axis.grid(axis="y", visible=False)
    drawn = [method for method in METHODS if (done["method"] == method).any()]
    handles = [Patch(facecolor=COLOURS[method], edgecolor="black", label=METHODS[method]) for method in drawn]
    handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="black", label="one student"))
    if paper_drawn:
        handles.append(Line2D([], [], ls="", marker="D", ms=6, color="black", label="reported in the paper"))
    axis.legend(handles=handles, **RIGHT)
    return figure


def gains(frame: pd.DataFrame, key: list[str], mean: str, std: str) -> pd.DataFrame:
    """`gain` of method dwa over sre2l for each `key`, and `spread`, the root of the sum of the two variances."""
    means, stds = (frame.pivot_table(index=key, columns="method", values=name, dropna=False) for name in (mean, std))
    for values in (means, stds):
        values[[name for name in ("sre2l", "dwa") if name not in values]] = np.nan
    return pd.DataFrame({"gain": means["dwa"] - means["sre2l"], "spread": np.hypot(stds["dwa"], stds["sre2l"])})


def gain_bars(runs: list[Run]) -> Figure:
    """Points of accuracy that DWA gains over SRe2L, ours beside the paper's, for each data set, ipc and student."""
    rows = results.accuracies(runs)
    key = ["data set", "ipc", "student"]
    done = rows[rows["variant"] == ""].groupby([*key, "recipe", "method"])["accuracy"].agg(["mean", "std"])
    done = done.reset_index()
    # The paper is compared with runs of the authors' code, or with the defaults where a profile has none of it.
    shown = "authors" if (done["recipe"] == "authors").any() else "defaults"
    ours = gains(done[done["recipe"] == shown], key, "mean", "std")
    paper = gains(results.reported_numbers(), key, "top1_mean", "top1_std").reindex(ours.index)
    gain, spread = (
        pd.DataFrame({"the paper": paper[name], f"ours, {RECIPES[shown]}": ours[name]}) for name in ("gain", "spread")
    )
    gain = gain.dropna(how="all").dropna(axis=1, how="all")
    if gain.empty:
        return empty_figure("no pair of SRe2L and DWA yet")
    gain = gain.loc[
        sorted(gain.index, key=lambda cell: (results.natural_key(cell[0]), cell[1], results.natural_key(cell[2])))
    ]
    figure, axis = plt.subplots(figsize=(2 + 1.8 * len(gain), 4))
    axis.axhline(0, color="black", lw=1)
    gain.plot.bar(
        ax=axis,
        width=0.8,
        color=["white" if label == "the paper" else DARK for label in gain],
        edgecolor="black",
        yerr=spread.loc[gain.index, gain.columns].fillna(0),
        capsize=4,
        error_kw={"ecolor": "black", "elinewidth": 1},
    )
    for bars in axis.containers[1::2]:  # each follows its error bars
        plt.setp(bars.patches, hatch="///" if bars.get_label() == "the paper" else "")
        heights = gain[bars.get_label()]
        axis.bar_label(bars, [results.format_number(value, "+.1f") for value in heights], padding=3, fontsize="small")
    axis.margins(y=0.12)
    axis.set(xlim=(-0.7, len(gain) - 0.3), xlabel="", ylabel="gain in test accuracy, points")
    labels = [f"{name}\nipc {ipc}\n{student}".replace(" (", "\n(") for name, ipc, student in gain.index]
    axis.set_xticks(range(len(gain)), labels, rotation=0)
    axis.grid(axis="x", visible=False)
    axis.legend(**RIGHT)
    return figure


def coupling(setting: dict) -> list[str]:
    """ "decoupled" where the variance has a weight of its own, "coupled" where mean and variance have the same.

    Both where r_bn is the preset's and r_var is 1.
    """
    changed = results.differences(setting)
    kinds = ["decoupled"] if "synthesis.r_bn" not in changed else []
    return kinds + (["coupled"] if setting["synthesis"]["r_var"] == 1 else [])


def variance_curves(runs: list[Run]) -> Figure:
    """Accuracy over the coefficient of the variance, r_bn * r_var; a panel for each data set, ipc and student."""
    rows = []
    for setting, _, record in runs:
        if record is not None and setting["method"] == "dwa":
            coefficient = round(setting["synthesis"]["r_bn"] * setting["synthesis"]["r_var"], 6)
            point = label_group(setting, "student"), coefficient, record["accuracy"]["reported"]
            rows += [(kind, *point) for kind in coupling(setting)]
    if not rows:
        return empty_figure("no record yet")
    frame = pd.DataFrame(rows, columns=["kind", "panel", "coefficient", "accuracy"])
    looks = {
        "decoupled": {"color": DARK, "marker": "o", "ls": "-", "label": "decoupled: variance alone"},
        "coupled": {
            "color": "dimgrey",
            "marker": "s",
            "mfc": "white",
            "ls": "--",
            "label": "coupled: mean and variance",
        },
    }
    panels = list(dict.fromkeys(frame["panel"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 + 5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for kind, look in looks.items():
            chosen = frame[(frame["panel"] == panel) & (frame["kind"] == kind)]
            points = chosen.groupby("coefficient")["accuracy"].agg(["mean", "std"])
            axis.errorbar(points.index, points["mean"], points["std"], capsize=3, **look)
        axis.set(xlabel=r"coefficient of the variance, $\lambda$", ylabel="test accuracy, %")
        set_panel_title(axis, panel)
    axes[0, -1].legend(**RIGHT)
    return figure


def distance_bars(runs: list[Run]) -> Figure:
    """Feature distance within class of up to ten classes drawn at random, a bar for each distilled set."""
    once = {}
    for setting, _, record in sorted(runs, key=lambda run: coupling(run.setting), reverse=True):
        if record is not None and None not in record.get("diversity", {}).get("feature_distance_by_class", [None]):
            coefficient = setting["synthesis"]["r_bn"] * setting["synthesis"]["r_var"]
            label = ", ".join([METHODS[setting["method"]], *coupling(setting), f"$\\lambda$ {coefficient:.2g}"])
            once[record["distilled"]["artifact"], record["teacher"]["artifact"]] = record, label
    if not once:
        return empty_figure("no record with the distances of its classes yet")
    records, labels = zip(*once.values(), strict=True)
    panels = {}
    for record, label in zip(records, disambiguate(records, labels), strict=True):
        distances = record["diversity"]["feature_distance_by_class"]
        panels.setdefault(label_group(record["setting"], "network"), {})[label] = distances
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 0.5 + 3.2 * len(panels)), squeeze=False)
    for axis, (panel, sets) in zip(axes[:, 0], panels.items(), strict=True):
        frame = pd.DataFrame(sets)
        classes = sorted(random.Random(0).sample(range(len(frame)), min(10, len(frame))))
        shades = sns.blend_palette(["#d9d9d9", LIGHT, DARK], len(sets)) if len(sets) > 1 else [DARK]
        frame.loc[classes].plot.bar(ax=axis, width=0.8, color=shades, edgecolor="black", rot=0)
        axis.axhline(1, color="black", ls=":", lw=1.5, label="real test images")
        axis.set(xlabel="class", ylabel="feature distance,\nrelative to real")
        set_panel_title(axis, panel)
        axis.grid(axis="x", visible=False)
        axis.legend(**RIGHT)
    return figure


def steps_rho_map(runs: list[Run]) -> Figure:
    """A heat map of mean accuracy over K and rho for each data set, ipc and student; not run stays empty."""
    rows = results.accuracies(runs, axes=("synthesis.steps", "synthesis.rho"))
    rows["panel"] = [label_group(run.setting, "student") for run in runs]
    rows = rows[(rows["variant"] == "") & (rows["method"] == "dwa")]
    if rows["accuracy"].isna().all():
        return empty_figure("no record yet")
    panels = list(dict.fromkeys(rows["panel"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.2), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        table = rows[rows["panel"] == panel].pivot_table(
            index="synthesis.steps", columns="synthesis.rho", values="accuracy", dropna=False, observed=False
        )
        sns.heatmap(
            table.sort_index(ascending=False),
            ax=axis,
            cmap=sns.blend_palette(["#e0e0e0", DARK], as_cmap=True),  # no white, which is a cell not run
            annot=True,
            fmt=".1f",
            linewidths=1,
            cbar_kws={"label": "test accuracy, %"},
        )
        axis.set(xlabel=r"weight magnitude $\rho$", ylabel="steps K")
        axis.grid(False)
        axis.tick_params(axis="y", rotation=0)
        set_panel_title(axis, panel)
    return figure
