"""Charts from records, and what all figures share: readable in black and white."""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dwa_paper.report import results
from dwa_paper.report.labels import LABELS, PLACE
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS, RECIPES
from dwa_paper.report.tables import sort_key

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
BELOW = {"loc": "outside lower center", "ncols": 3, "frameon": False}  # a legend of the whole figure


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


def escape(text: str) -> str:
    """A text that may have names of others in it, so that matplotlib takes no dollar in it for a formula."""
    return text.replace("$", r"\$")


def set_panel_title(axis, group: str) -> None:
    """Writes what a panel shows, a label of `label_group`, above it on one line."""
    axis.set_title(group.replace("\n", ", "), loc="left", fontsize="medium")


def show_pictures(axis, pictures_uint8, label: str) -> None:
    """A row of images (N, H, W, 3) on `axis`, a white line between them, with `label` at its left."""
    width = max(1, pictures_uint8.shape[2] // 64)
    separated = np.pad(pictures_uint8, ((0, 0), (0, 0), (width, 0), (0, 0)), constant_values=255)
    axis.imshow(np.concatenate(separated, axis=1), interpolation="antialiased")
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(label, rotation=0, ha="right", va="center")
    axis.grid(False)
    axis.spines[:].set_visible(False)


def disambiguate(records: Sequence[dict], labels: Sequence[str]) -> list[str]:
    """`labels` of the sets in `records`, with the teacher where a group has several, and what tells others apart."""
    frame = pd.DataFrame([results.identify(record) for record in records]).assign(label=labels)
    frame["group"] = [label_group(record["setting"], "network") for record in records]
    whose = frame["recipe of teacher"]
    several = whose.groupby(frame["group"]).transform("nunique") > 1
    frame["label"] += (",\n" + whose).where(several & whose.astype(bool), "")
    return [escape(text) for text in frame["label"] + results.name_differences(frame, ["group", "label"], ",\n")]


def describe_variant(variant: str) -> str:
    """A variant as a figure names it: "relabel.batch_size 50" is "student's batch size 50"; r_bn and r_var stay."""
    whose = {"relabel": "student's ", "teacher": "teacher's "}
    text = re.sub(r"\b(relabel|teacher|synthesis|images)\.", lambda found: whose.get(found[1], ""), variant)
    return escape(re.sub(r"(?<!\br)_", " ", text).replace("student's teacher", "teacher's").replace(" True", ""))


def reported_beside(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's numbers of the cells in `rows` that are of the authors' code and of one network."""
    own = rows[(rows["recipe"] == "authors") & (rows["student"] == rows["network"])]
    cells = own[["data set", "ipc", "student", "network", "recipe", "group"]].drop_duplicates()
    paper = results.reported_numbers().merge(cells)
    return paper[paper["method"].isin(METHODS)].assign(accuracy=paper["top1_mean"], reported=True)


def accuracy_bars(runs: list[Run]) -> Figure:
    """Horizontal bars of mean accuracy by method, a dot per student seed, and hatched ones of what the paper reports.

    The defaults come before other recipes, and the plain recipe before its variants.
    """
    done = results.accuracies(runs)
    done["group"] = [label_group(run.setting, "student").replace("\n", ", ") for run in runs]
    done["reported"] = False
    order = ["data set", "ipc", "student", "network", "recipe", "reported", "variant", "method"]
    done = done[done["accuracy"].notna()]
    if done.empty:
        return empty_figure("no record yet")
    done = pd.concat([done, reported_beside(done)]).sort_values(order, key=sort_key)
    if done["recipe"].nunique() > 1:  # alone, the defaults need no name
        done.loc[done["recipe"] == "defaults", "group"] += f", {RECIPES['defaults']}"
    bars = done.groupby(["group", "reported", "variant", "method"], sort=False)
    figure, axis = plt.subplots(figsize=(10, 1 + 0.3 * (bars.ngroups + 1.5 * done["group"].nunique())))
    place, ticks, heading = -1.5, {}, ""
    for (group, reported, variant, method), chosen in bars:
        place += 1 if group == heading else 2.5
        if group != heading:
            axis.text(0.5, place - 1, heading := group, va="center", fontweight="bold", fontsize="small")
        mean, reach = chosen["accuracy"].mean(), chosen["accuracy"].max()
        if reported:
            reach += (spread := chosen["top1_std"].item())
            look = {"color": "white", "hatch": "///", "xerr": spread, "label": "reported in the paper"}
        else:
            look = {"color": COLOURS[method]}
            dots = {"s": 14, "color": "white", "ec": "black", "zorder": 3, "label": "one student"}
            axis.scatter(chosen["accuracy"], [place] * len(chosen), **dots)
        axis.barh(place, mean, 0.85, edgecolor="black", **look)
        axis.text(reach + 1.2, place, f"{mean:.1f}", va="center", fontsize="small")
        ticks[place] = ", ".join(filter(None, [METHODS[method], describe_variant(variant), "paper" * reported]))
    axis.set_yticks(list(ticks), list(ticks.values()), fontsize="small")
    axis.set(xlim=(0, done["accuracy"].max() + 20), ylim=(place + 0.8, -0.8), xlabel="test accuracy, %")
    axis.grid(axis="y", visible=False)
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, **BELOW)
    return figure


def gain_bars(runs: list[Run]) -> Figure:
    """Points of accuracy that DWA gains over SRe2L, for each data set, ipc and student.

    Beside ours the paper's, for our students and for ResNet-18, which its Figure 1 shows.
    """
    cell = ["data set", "ipc", "student", "variant", "recipe"]
    rows = results.accuracies(runs)
    of_another = rows["student"] + ", teacher " + rows["network"]
    rows["student"] = rows["student"].where(rows["student"] == rows["network"], of_another)
    ours = rows.groupby([*cell, "method"])["accuracy"].agg(["mean", "std"])
    paper = results.reported_numbers().merge(rows[["data set", "ipc"]].drop_duplicates()).assign(recipe="paper")
    paper = paper[paper["student"].isin(["resnet18", *rows["student"]])].set_index([*cell, "method"])
    numbers = pd.concat([ours, paper[["top1_mean", "top1_std"]].set_axis(ours.columns, axis=1)]).unstack("method")
    numbers = numbers.reindex(columns=pd.MultiIndex.from_product([ours.columns, ["sre2l", "dwa"]]))
    spread = np.hypot(numbers["std", "dwa"], numbers["std", "sre2l"]).fillna(0).rename("spread")
    gains = (numbers["mean", "dwa"] - numbers["mean", "sre2l"]).dropna().to_frame("gain").join(spread).reset_index()
    if gains.empty:
        return empty_figure("no pair of SRe2L and DWA yet")
    gains = gains.sort_values(cell, key=sort_key, ignore_index=True)
    labels = [
        "\n".join([name, f"ipc {ipc}", student, describe_variant(variant)])
        for name, ipc, student, variant, *_ in gains[cell].to_numpy()
    ]
    gains["label"] = [label.strip().replace(" (", "\n(") for label in labels]
    gains["x"] = gains.index + 0.8 * (gains["label"] != gains["label"].shift()).cumsum()
    figure, axis = plt.subplots(figsize=(1.5 + 1.3 * gains["x"].max(), 4.2))
    axis.axhline(0, color="black", lw=1)
    looks = {"paper": ("the paper", "white", "///"), "defaults": ("ours, defaults", LIGHT, "")}
    for recipe, (label, colour, hatch) in (looks | {"authors": ("ours, authors' code", DARK, "")}).items():
        chosen = gains[gains["recipe"] == recipe]
        if len(chosen):
            look = {"color": colour, "hatch": hatch, "edgecolor": "black", "ecolor": "black", "capsize": 4}
            bars = axis.bar(chosen["x"], chosen["gain"], 0.9, yerr=chosen["spread"], label=label, **look)
            axis.bar_label(bars, fmt="%+.1f", padding=3, fontsize="small")
    axis.margins(y=0.12)
    middles = gains.groupby("label", sort=False)["x"].mean()
    axis.set_xticks(middles, middles.index)
    axis.set_ylabel("gain in test accuracy, points")
    axis.grid(axis="x", visible=False)
    figure.legend(**BELOW)
    return figure


def label_panels(rows: pd.DataFrame) -> Figure:
    """Bars of mean accuracy by kind of images with its value, a dot per student; a panel for each kind of labels.

    Args:
        rows: as `labels.accuracies` returns them.
    """
    rows = rows[rows["accuracy"].notna()]
    if rows.empty:
        return empty_figure("no record yet")
    shown = [labels for labels in LABELS if (rows["labels"] == labels).any()]
    cells = list(dict.fromkeys(zip(rows["data set"], rows["ipc"], rows["student"], strict=True)))
    kinds = rows.drop_duplicates("images").sort_values(["method", "recipe"], key=sort_key)
    plain = next(recipe for recipe in RECIPES if recipe in set(kinds["recipe"]))  # bars of other recipes are hatched
    found = rows.groupby(["labels", *PLACE, "images"])["accuracy"].agg(list)
    widths = [len(found[labels]) + 1.5 * len(found[labels].groupby(level=PLACE)) for labels in shown]
    size = (1.5 + 0.42 * sum(widths), 4.2)
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False, width_ratios=widths)
    names, handles = [describe_variant(images) for images in kinds["images"]], {}
    for axis, labels in zip(axes[0], shown, strict=True):
        x, ticks = 0, {}
        for cell in cells:
            places = []
            for (_, kind), name in zip(kinds.iterrows(), names, strict=True):
                if (tops := found.get((labels, *cell, kind["images"]))) is None:
                    continue
                hatch, mean = "" if kind["recipe"] == plain else "///", np.mean(tops)
                handles[name] = axis.bar(x, mean, 0.9, color=COLOURS[kind["method"]], edgecolor="black", hatch=hatch)
                axis.scatter([x] * len(tops), tops, s=12, color="white", edgecolor="black", zorder=3)
                above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": "x-small"}
                axis.annotate(f"{mean:.1f}", (x, max(tops)), **above)
                places.append(x)
                x += 1
            if places:
                ticks[np.mean(places)] = "\n".join([cell[0], f"ipc {cell[1]}", cell[2]])
                x += 1.5
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.set_title(LABELS[labels], loc="left", fontsize="medium")
        axis.grid(axis="x", visible=False)
    axes[0, 0].margins(y=0.1)
    axes[0, 0].set_ylabel("test accuracy, %")
    columns = min(3, 1 + int(size[0] // 6))  # no wider than the panels
    figure.legend([handles[name] for name in names], names, **BELOW | {"ncols": columns})
    return figure
