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
from dwa_paper.report.labels import LABELS, PLACE
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
    """`labels` of the sets of `records`, where those that are alike within a group name what differs first."""
    frame = pd.DataFrame([results.identify(record) for record in records]).assign(label=labels)
    frame["group"] = [label_group(record["setting"], "network") for record in records]
    return list(frame["label"] + results.name_differences(frame, ["group", "label"], ",\n"))


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
    paper = results.reported_numbers().set_index(cell)["top1_mean"]
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


def gain_bars(runs: list[Run]) -> Figure:
    """Points of accuracy that DWA gains over SRe2L, for each data set, ipc and student.

    Beside ours the paper's, for our students and for ResNet-18, which its Figure 1 shows.
    """
    cell = ["data set", "ipc", "student", "variant", "recipe"]
    rows = results.accuracies(runs)
    rows["recipe"] = "ours, " + rows["recipe"].map(RECIPES)
    of_another = rows["student"] + ", teacher " + rows["network"]
    rows["student"] = rows["student"].where(rows["student"] == rows["network"], of_another)
    ours = rows.groupby([*cell, "method"])["accuracy"].agg(["mean", "std"])
    paper = results.reported_numbers().merge(rows[["data set", "ipc"]].drop_duplicates()).assign(recipe="the paper")
    paper = paper[paper["student"].isin(["resnet18", *rows["student"]])].set_index([*cell, "method"])
    numbers = pd.concat([ours, paper[["top1_mean", "top1_std"]].set_axis(ours.columns, axis=1)]).unstack("method")
    numbers = numbers.reindex(columns=pd.MultiIndex.from_product([ours.columns, ["sre2l", "dwa"]]))
    gain = (numbers["mean", "dwa"] - numbers["mean", "sre2l"]).dropna().unstack("recipe")
    if gain.empty:
        return empty_figure("no pair of SRe2L and DWA yet")
    colours = {"the paper": "white", "ours, authors' code": DARK, "ours, defaults": LIGHT}
    order = sorted(gain.index, key=lambda key: [results.natural_key(str(name)) for name in key])
    gain = gain.loc[order, [recipe for recipe in colours if recipe in gain]]
    spread = np.hypot(numbers["std", "dwa"], numbers["std", "sre2l"]).unstack("recipe").loc[order, gain.columns]
    figure, axis = plt.subplots(figsize=(2 + 1.8 * len(gain), 4))
    axis.axhline(0, color="black", lw=1)
    look = {"width": 0.8, "edgecolor": "black", "capsize": 4, "error_kw": {"ecolor": "black", "elinewidth": 1}}
    gain.plot.bar(ax=axis, color=colours, yerr=spread.fillna(0), **look)
    for bars in axis.containers[1::2]:  # each follows its error bars
        plt.setp(bars.patches, hatch="///" if bars.get_label() == "the paper" else "")
        heights = [results.format_number(value, "+.1f") for value in gain[bars.get_label()]]
        axis.bar_label(bars, heights, padding=3, fontsize="small")
    axis.margins(y=0.12)
    axis.set(xlim=(-0.7, len(gain) - 0.3), xlabel="", ylabel="gain in test accuracy, points")
    labels = [
        "\n".join(filter(None, [name, f"ipc {ipc}", *others])).replace(" (", "\n(") for name, ipc, *others in order
    ]
    axis.set_xticks(range(len(gain)), labels, rotation=0)
    axis.grid(axis="x", visible=False)
    axis.legend(**RIGHT)
    return figure


def coupling(setting: dict) -> list[str]:
    """ "decoupled" where r_bn is the preset's, "coupled" where mean and variance weigh the same; or both."""
    kinds = [] if "synthesis.r_bn" in results.differences(setting) else ["decoupled"]
    return kinds + (["coupled"] if setting["synthesis"]["r_var"] == 1 else [])


def sweep(runs: list[Run], axes: tuple[str, ...]) -> pd.DataFrame:
    """The rows of `results.accuracies` that DWA has a record of; "panel" says what else tells one from another."""
    rows = results.accuracies(runs, axes)
    labels = [label_group(run.setting, "student") for run in runs]
    rows["panel"] = [f"{label}\n{variant}".strip() for label, variant in zip(labels, rows["variant"], strict=True)]
    rows["coupling"] = [coupling(run.setting) for run in runs]
    return rows[rows["method"] == "dwa"].sort_values("variant", kind="stable")


def variance_curves(runs: list[Run]) -> Figure:
    """Accuracy over the coefficient of the variance, r_bn * r_var; a panel for each data set, ipc and student."""
    rows = (
        sweep(runs, ("synthesis.r_bn", "synthesis.r_var")).explode("coupling").dropna(subset=["accuracy", "coupling"])
    )
    if rows.empty:
        return empty_figure("no record yet")
    rows["coefficient"] = (rows["synthesis.r_bn"] * rows["synthesis.r_var"]).round(6)
    looks = {
        "decoupled": {"color": DARK, "marker": "o", "ls": "-", "label": "decoupled: variance alone"},
        "coupled": {"color": "dimgrey", "marker": "s", "mfc": "white", "ls": "--"}
        | {"label": "coupled: mean and variance"},
    }
    panels = rows.groupby("panel", sort=False)
    figure, axes = plt.subplots(1, len(panels), figsize=(3 + 5 * len(panels), 4), squeeze=False)
    for axis, (panel, chosen) in zip(axes[0], panels, strict=True):
        for kind, look in looks.items():
            points = chosen[chosen["coupling"] == kind].groupby("coefficient")["accuracy"].agg(["mean", "std"])
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
    panels = sweep(runs, ("synthesis.steps", "synthesis.rho")).groupby("panel", sort=False)
    panels = panels.filter(lambda rows: rows["accuracy"].notna().any()).groupby("panel", sort=False)
    if not len(panels):
        return empty_figure("no record yet")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.2), squeeze=False)
    for axis, (panel, rows) in zip(axes[0], panels, strict=True):
        table = rows.pivot_table(
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


def label_panels(rows: pd.DataFrame) -> Figure:
    """Bars of mean accuracy by kind of images, a dot per student; a panel for each kind of labels.

    Args:
        rows: as `labels.accuracies` returns them.
    """
    rows = rows[rows["accuracy"].notna()]
    if rows.empty:
        return empty_figure("no record yet")
    cells = list(dict.fromkeys(zip(rows["data set"], rows["ipc"], rows["student"], strict=True)))
    kinds = rows.drop_duplicates("images").sort_values(
        ["method", "recipe"],
        key=lambda column: column.map({name: place for place, name in enumerate([*METHODS, *RECIPES])}),
    )
    figure, axes = plt.subplots(1, len(LABELS), figsize=(4.2 * len(LABELS), 4), sharey=True)
    width = 0.85 / len(kinds)
    for axis, (labels, title) in zip(axes, LABELS.items(), strict=True):
        for place, (_, kind) in enumerate(kinds.iterrows()):
            chosen = rows[(rows["labels"] == labels) & (rows["images"] == kind["images"])]
            for number, cell in enumerate(cells):
                tops = chosen.loc[(chosen[PLACE] == list(cell)).all(axis=1), "accuracy"]
                x = number + (place - (len(kinds) - 1) / 2) * width
                hatch = "" if kind["recipe"] == "defaults" else "///"
                axis.bar(x, tops.mean(), width, color=COLOURS[kind["method"]], edgecolor="black", hatch=hatch)
                axis.scatter([x] * len(tops), tops, s=12, color="white", edgecolor="black", zorder=3)
        axis.set_xticks(range(len(cells)), [f"{name}\nipc {ipc}\n{student}" for name, ipc, student in cells])
        axis.set_xlim(-0.5, len(cells) - 0.5)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("test accuracy, %")
    handles = [
        Patch(
            facecolor=COLOURS[kind["method"]],
            edgecolor="black",
            label=kind["images"],
            hatch="" if kind["recipe"] == "defaults" else "///",
        )
        for _, kind in kinds.iterrows()
    ]
    axes[-1].legend(handles=handles, **RIGHT)
    return figure
