"""Figures from runs: readable in black and white, each with its caption in its files' metadata."""

import random
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dwa_core import devices, diversity, initialise
from dwa_core.errors import InputError
from dwa_paper.report import results
from dwa_paper.report.results import CELL, METHODS, Run, dataset_label, published
from dwa_paper.runs import real, store, teachers
from dwa_paper.runs.records import as_setting
from dwa_paper.runs.sets import read_losses, read_parquet
from dwa_paper.settings import schema
from dwa_paper.settings.environment import root

# Shades that stay apart in black and white, from light to dark.
COLOURS = {"random-real": "#d9d9d9", "sre2l": "#74a9cf", "dwa": "#034e7b", "external": "#ffffff"}
# Images in a t-SNE, so that 100 classes take about a minute: real ones in all, and at most of each class.
TSNE_REAL, TSNE_PER_CLASS = 2_000, 20
LIGHT, DARK = COLOURS["sre2l"], COLOURS["dwa"]


def use_style() -> None:
    """One look for all figures: light grid, embedded fonts, text that stays text in SVG."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({"svg.fonttype": "none", "savefig.bbox": "tight", "figure.constrained_layout.use": True})
    # The same figure gives the same file, byte for byte.
    plt.rcParams["svg.hashsalt"] = "dwa"


def save(figure: Figure, profile: str, name: str, title: str, caption: str) -> Path:
    """Writes figures/<profile>/<name>.svg and .png, title and caption as metadata; returns the path of the .svg."""
    folder = root() / "figures" / profile
    folder.mkdir(parents=True, exist_ok=True)
    about = {"Title": title, "Description": caption}
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={**about, "Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={**about, "Date": None})
    return folder / f"{name}.svg"


def nothing_to_draw(text: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axis = plt.subplots(figsize=(6, 1))
    axis.text(0.5, 0.5, text, ha="center", va="center")
    axis.set_axis_off()
    return figure


def show_pictures(axis, pictures_uint8, label: str) -> None:
    """A row of images (N, H, W, 3) on `axis`, a white line between them, with `label` at its left."""
    separated = F.pad(pictures_uint8, (0, 0, 1, 0), value=255)
    count, height, width, _ = separated.shape
    row = separated.permute(1, 0, 2, 3).reshape(height, count * width, 3)
    axis.imshow(row, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(label, rotation=0, ha="right", va="center")
    axis.grid(False)
    sns.despine(ax=axis, left=True, bottom=True)


def group_label(setting: dict, network: str) -> str:
    """What the methods compared in one group have in common; `network` is "student" or "network", the teacher's."""
    names = setting[network]
    if network == "student" and setting["student"] != setting["network"]:
        names += f", teacher {setting['network']}"
    name = f"{dataset_label(setting)}\nipc {setting['ipc']}, {names}"
    switches = results.switches(setting)
    return name if switches == "ours" else f"{name}\n{results.SWITCHES[switches]}"


def accuracy_bars(runs: list[Run]) -> Figure:
    """Horizontal bars of mean accuracy by method, a dot per student seed, a diamond for the number in print."""
    done = results.accuracies(runs)
    done["group"] = [group_label(run.setting, "student") for run in runs]
    done = done[done["accuracy"].notna()].sort_values(["data set", "ipc", "student", "switches"])
    if done.empty:
        return nothing_to_draw("no record yet")
    if done["switches"].nunique() > 1:  # alone, the defaults need no name
        done.loc[done["switches"] == "ours", "group"] += f"\n{results.SWITCHES['ours']}"
    printed = published().assign(variant="").set_index(["dataset", "ipc", "network", "method", "variant"])["top1_mean"]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(done.groupby(["group", "method", "variant"]))))
    place, ticks, printed_drawn = 0.0, {}, False
    for group in dict.fromkeys(done["group"]):
        in_group = done[done["group"] == group]
        rows = sorted(
            set(zip(in_group["method"], in_group["variant"], strict=True)),
            key=lambda r: (list(METHODS).index(r[0]), r[1]),
        )
        ticks[group] = place + (len(rows) - 1) / 2
        for method, changed in rows:
            chosen = in_group[(in_group["method"] == method) & (in_group["variant"] == changed)]
            axis.text(chosen["accuracy"].max() + 1.5, place, changed, va="center", fontsize="small")
            axis.barh(place, chosen["accuracy"].mean(), 0.9, color=COLOURS[method], edgecolor="black")
            axis.scatter(chosen["accuracy"], [place] * len(chosen), s=14, color="white", edgecolor="black", zorder=3)
            key = tuple(chosen.iloc[0][[name for name in CELL if name != "network"]])
            # Print is compared with runs under the authors' switches alone.
            if key in printed.index and chosen.iloc[0]["switches"] == "authors":
                axis.scatter(printed[key], place, marker="D", s=40, color="black", zorder=4)
                printed_drawn = True
            place += 1
        place += 1.2
    axis.set(yticks=list(ticks.values()), yticklabels=list(ticks), xlim=(0, 100), xlabel="test accuracy, %")
    axis.set_ylim(place - 1.2, -1)  # from top to bottom
    axis.grid(axis="y", visible=False)
    drawn = [method for method in METHODS if (done["method"] == method).any()]
    handles = [Patch(facecolor=COLOURS[method], edgecolor="black", label=METHODS[method]) for method in drawn]
    handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="black", label="one student"))
    if printed_drawn:
        handles.append(Line2D([], [], ls="", marker="D", ms=6, color="black", label="in print"))
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def printed_gains() -> pd.DataFrame:
    """What DWA gains over SRe2L in print: `gain` and `spread` by data set, ipc and student, in points of accuracy."""
    frame = published().rename(columns={"dataset": "data set", "network": "student"})
    return gains(frame, ["data set", "ipc", "student"], "top1_mean", "top1_std")


def gains(frame: pd.DataFrame, key: list[str], mean: str, std: str) -> pd.DataFrame:
    """`gain` of method dwa over sre2l for each `key`, and `spread`, the root of the sum of the two variances."""
    means, stds = (frame.pivot_table(index=key, columns="method", values=name, dropna=False) for name in (mean, std))
    for values in (means, stds):
        values[[name for name in ("sre2l", "dwa") if name not in values]] = np.nan
    return pd.DataFrame({"gain": means["dwa"] - means["sre2l"], "spread": np.hypot(stds["dwa"], stds["sre2l"])})


def gain_bars(runs: list[Run]) -> Figure:
    """Points of accuracy that DWA gains over SRe2L, ours beside print, for each data set, ipc and student."""
    rows = results.accuracies(runs)
    key = ["data set", "ipc", "student"]
    done = rows[rows["variant"] == ""].groupby([*key, "switches", "method"])["accuracy"].agg(["mean", "std"])
    done = done.reset_index()
    # Print is compared with runs under the authors' switches; where a profile has none, its defaults stand alone.
    shown = "authors" if (done["switches"] == "authors").any() else "ours"
    ours = gains(done[done["switches"] == shown], key, "mean", "std").add_prefix("ours ")
    frame = ours.join(printed_gains().add_prefix("print ")).dropna(subset=["ours gain", "print gain"], how="all")
    if frame.empty:
        return nothing_to_draw("no pair of SRe2L and DWA yet")
    frame = frame.loc[
        sorted(frame.index, key=lambda cell: (results.natural(cell[0]), cell[1], results.natural(cell[2])))
    ]
    looks = {
        "print": {"color": "white", "hatch": "///", "label": "in print"},
        "ours": {"color": DARK, "label": f"ours, {results.SWITCHES[shown]}"},
    }
    drawn = [label for label in looks if frame[f"{label} gain"].notna().any()]
    figure, axis = plt.subplots(figsize=(2 + 1.8 * len(frame), 4))
    width = 0.8 / len(drawn)
    for place, label in enumerate(drawn):
        at = np.arange(len(frame)) + (place - (len(drawn) - 1) / 2) * width
        height, spread = frame[f"{label} gain"], frame[f"{label} spread"]
        axis.bar(at, height, width, edgecolor="black", **looks[label])
        axis.errorbar(at, height, spread, fmt="none", ecolor="black", elinewidth=1, capsize=4)
        for x, y, reach in zip(at, height, spread.fillna(0), strict=True):
            if not np.isnan(y):
                up = y >= 0
                axis.annotate(
                    f"{y:+.1f}",
                    (x, y + reach if up else y - reach),
                    xytext=(0, 3 if up else -3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if up else "top",
                    fontsize="small",
                )
    axis.axhline(0, color="black", lw=1)
    axis.margins(y=0.12)
    axis.set_xlim(-0.7, len(frame) - 0.3)
    labels = [f"{name}\nipc {ipc}\n{student}".replace(" (", "\n(") for name, ipc, student in frame.index]
    axis.set_xticks(range(len(frame)), labels)
    axis.set_ylabel("gain in test accuracy, points")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def coupling(setting: dict) -> list[str]:
    """ "decoupled" where only the variance is weighed apart, "coupled" where mean and variance are weighed alike.

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
            rows += [
                {
                    "panel": group_label(setting, "student"),
                    "kind": kind,
                    "coefficient": coefficient,
                    "accuracy": record["accuracy"]["reported"],
                }
                for kind in coupling(setting)
            ]
    if not rows:
        return nothing_to_draw("no record yet")
    frame = pd.DataFrame(rows)
    panels = list(dict.fromkeys(frame["panel"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 + 5 * len(panels), 4), squeeze=False)
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
    for axis, panel in zip(axes[0], panels, strict=True):
        for kind, look in looks.items():
            chosen = frame[(frame["panel"] == panel) & (frame["kind"] == kind)]
            points = chosen.groupby("coefficient")["accuracy"].agg(["mean", "std"])
            axis.errorbar(points.index, points["mean"], points["std"], capsize=3, **look)
        axis.set(xlabel=r"coefficient of the variance, $\lambda$", ylabel="test accuracy, %")
        axis.set_title(panel.replace("\n", ", "), loc="left", fontsize="medium")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def distance_bars(runs: list[Run]) -> Figure:
    """Feature distance within class of up to ten classes drawn at random, a bar for each distilled set."""
    once, labels = {}, {}
    for setting, _, record in sorted(runs, key=lambda run: coupling(run.setting), reverse=True):
        if record is not None and None not in record.get("diversity", {}).get("feature_distance_by_class", [None]):
            coefficient = setting["synthesis"]["r_bn"] * setting["synthesis"]["r_var"]
            names = (record["distilled"]["artifact"], record["teacher"]["artifact"])
            once[names] = record
            labels[names] = ", ".join([METHODS[setting["method"]], *coupling(setting), f"$\\lambda$ {coefficient:.2g}"])
    if not once:
        return nothing_to_draw("no record with the distances of its classes yet")
    sets = {
        (group_label(record["setting"], "network"), label): record["diversity"]["feature_distance_by_class"]
        for record, label in zip(once.values(), told_apart(list(once.values()), list(labels.values())), strict=True)
    }
    panels = list(dict.fromkeys(panel for panel, _ in sets))
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 0.5 + 3.2 * len(panels)), squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        chosen = {label: distances for (group, label), distances in sets.items() if group == panel}
        count = len(next(iter(chosen.values())))
        classes = sorted(random.Random(0).sample(range(count), min(10, count)))
        width = 0.8 / len(chosen)
        for place, (label, distances) in enumerate(chosen.items()):
            at = np.arange(len(classes)) + (place - (len(chosen) - 1) / 2) * width
            shade = sns.blend_palette(["#d9d9d9", LIGHT, DARK], len(chosen))[place] if len(chosen) > 1 else DARK
            heights = [distances[index] for index in classes]
            axis.bar(at, heights, width, color=shade, edgecolor="black", label=label)
        axis.axhline(1, color="black", ls=":", lw=1.5, label="real test images")
        axis.set_xticks(range(len(classes)), classes)
        axis.set(xlabel="class", ylabel="feature distance,\nrelative to real")
        axis.set_title(panel.replace("\n", ", "), loc="left", fontsize="medium")
        axis.grid(axis="x", visible=False)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def told_apart(records: list[dict], labels: list[str]) -> list[str]:
    """`labels` of the sets of `records`; those of one group that are alike go on with what differs first.

    That is their teachers' epochs, else the hash of their teachers' names, else that of their own.
    """
    groups = [group_label(record["setting"], "network") for record in records]
    ways = (
        [f"teacher of {record['setting']['teacher']['epochs']} epochs" for record in records],
        [f"teacher {record['teacher']['artifact'].rpartition('-')[2]}" for record in records],
        [f"set {record['distilled']['artifact'].rpartition('-')[2]}" for record in records],
    )
    for way in ways:
        shown = list(zip(groups, labels, strict=True))
        alike = {key: {other for k, other in zip(shown, way, strict=True) if k == key} for key in shown}
        labels = [f"{key[1]},\n{own}" if len(alike[key]) > 1 else key[1] for key, own in zip(shown, way, strict=True)]
    return labels


def steps_rho_map(runs: list[Run]) -> Figure:
    """A heat map of mean accuracy over K and rho for each data set, ipc and student; not run stays empty."""
    rows = results.accuracies(runs, axes=("synthesis.steps", "synthesis.rho"))
    rows["panel"] = [group_label(run.setting, "student") for run in runs]
    rows = rows[(rows["variant"] == "") & (rows["method"] == "dwa")]
    if rows["accuracy"].isna().all():
        return nothing_to_draw("no record yet")
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
        axis.set_title(panel.replace("\n", ", "), loc="left", fontsize="medium")
    return figure


def distilled_once(runs: list[Run]) -> list[dict]:
    """The first record of each synthesised set that is on this machine, in the order of data set, ipc and method."""
    plain = [record for record in results.records(runs) if "tasks" not in record]
    once = {record["distilled"]["artifact"]: record for record in reversed(plain)}
    chosen = []
    for name, record in once.items():
        if record["setting"]["method"] not in schema.SYNTHESISED:
            continue
        if store.find("distilled", name) is None:
            print(f"{name} is not on this machine, so it is not drawn")
        else:
            chosen.append(record)
    return sorted(chosen, key=lambda record: (group_label(record["setting"], "network"), record["setting"]["method"]))


def loss_curves(runs: list[Run]) -> Figure:
    """Cross-entropy (left) and BatchNorm terms (right) of the first batch over the iterations, a row per group."""
    chosen = distilled_once(runs)
    if not chosen:
        return nothing_to_draw("no synthesised set to draw yet")
    groups = list(dict.fromkeys(group_label(record["setting"], "network") for record in chosen))
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 0.5 + 2.4 * len(groups)), squeeze=False)
    drawn = []
    labels = [f"{METHODS[r['setting']['method']]}, r_var {r['setting']['synthesis']['r_var']:g}" for r in chosen]
    for record, label in zip(chosen, told_apart(chosen, labels), strict=True):
        setting = record["setting"]
        losses = read_losses(store.find("distilled", record["distilled"]["artifact"]))
        row = axes[groups.index(group_label(setting, "network"))]
        # Broken lines keep SRe2L apart where the two cross, and paler grey the second set of a method.
        drawn.append((group_label(setting, "network"), setting["method"]))
        shades = ("black", "darkgrey") if setting["method"] == "dwa" else ("dimgrey", "darkgrey")
        look = {"ls": "-" if setting["method"] == "dwa" else "--", "color": shades[min(drawn.count(drawn[-1]), 2) - 1]}
        for axis, term, name in (
            (row[0], "cross_entropy", "cross-entropy"),
            (row[1], "batchnorm_terms", "BatchNorm terms"),
        ):
            axis.plot(range(1, len(losses[term]) + 1), losses[term], lw=1, label=label, **look)
            axis.set(yscale="log", xlabel="iteration", ylabel=name)
    for row, group in zip(axes, groups, strict=True):
        row[0].set_title(group.replace("\n", ", "), loc="left", fontsize="medium")
        row[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def real_images(setting: schema.Setting, fingerprint: str, device: torch.device) -> real.ImageData | None:
    """The data set of a record; None, and a line that says why, where it cannot be had or is another copy."""
    try:
        found = real.load(setting.dataset, setting.images, device, validation=setting.validation)
    except InputError as error:
        print(f"no real images: {error}")
        return None
    if found.fingerprint != fingerprint:
        print(f"no real images: this copy of {setting.dataset} is not the one that the record stands on")
        return None
    return found


def initial_pictures(setting: schema.Setting, fingerprint: str) -> torch.Tensor | None:
    """The real images of ipc index 0, at most ten; None where they cannot be had."""
    found = real_images(setting, fingerprint, torch.device("cpu"))
    if found is None:
        return None
    indices = initialise.draw_real(found.train, len(found.classes), setting.ipc, setting.synthesis.seed)
    return found.train.pictures(indices[0, :10])


def gallery(runs: list[Run]) -> Figure:
    """Image index 0 of up to ten classes of each distilled set, under the real images that it started from.

    The real images are left out where they are not at hand, or are not the ones that the set was made from.
    """
    chosen = distilled_once(runs)
    if not chosen:
        return nothing_to_draw("no synthesised set to draw yet")
    rows = []
    labels = [METHODS[record["setting"]["method"]] for record in chosen]
    for record, label in zip(chosen, told_apart(chosen, labels), strict=True):
        setting = as_setting(record["setting"])
        folder = store.find("distilled", record["distilled"]["artifact"])
        distilled = read_parquet(folder)
        first = (distilled.ipc_index == 0) & (distilled.labels < 10)
        if setting.synthesis.initial == "real":
            initial = initial_pictures(setting, record["data"]["fingerprint"])
            if initial is not None:
                rows.append((record, "initial", initial))
        rows.append((record, label, distilled.images_uint8[first]))
    figure, axes = plt.subplots(len(rows), figsize=(8, 1.0 * len(rows)), squeeze=False)
    titled = None
    for axis, (record, label, pictures) in zip(axes[:, 0], rows, strict=True):
        show_pictures(axis, pictures, label)
        group = group_label(record["setting"], "network")
        if group != titled:
            axis.set_title(group.replace("\n", ", "), loc="left", fontsize="medium")
            titled = group
    return figure


def embedding(runs: list[Run]) -> Figure:
    """One t-SNE of logits for each teacher and ipc that has both methods: SRe2L left, DWA right, over real images.

    Contours are the density of real test images, points are distilled images.
    """
    pairs = {}
    for record in distilled_once(runs):
        setting = record["setting"]
        if results.variant(setting, setting["teacher"]["epochs"]) == "":
            key = (record["teacher"]["artifact"], group_label(setting, "network"))
            pairs.setdefault(key, {})[setting["method"]] = record
    places = {key: tsne_places(pair) for key, pair in pairs.items() if {"sre2l", "dwa"} <= set(pair)}
    places = {key: found for key, found in places.items() if found is not None}
    if not places:
        return nothing_to_draw("no teacher with a set of SRe2L and one of DWA on this machine")
    labels = told_apart([pairs[key]["dwa"] for key in places], [group for _, group in places])
    figure, axes = plt.subplots(
        len(places), 2, figsize=(9, 0.6 + 4.2 * len(places)), squeeze=False, sharex="row", sharey="row"
    )
    for row, label, found in zip(axes, labels, places.values(), strict=True):
        for axis, method, marker in zip(row, ("sre2l", "dwa"), ("x", "o"), strict=True):
            x, y = found["real"].T
            sns.kdeplot(x=x, y=y, ax=axis, levels=8, bw_adjust=0.5, cmap="Greys", linewidths=1)
            axis.scatter(*found[method].T, marker=marker, s=18, lw=1, color=DARK, zorder=3)
            axis.set(xticks=[], yticks=[], xlabel="", ylabel="")
            axis.set_title(METHODS[method])
        row[0].set_ylabel(label)
    contour = Line2D([], [], color="grey", label="density of real images")
    points = Line2D([], [], ls="", marker="x", color=DARK, label="SRe2L"), Line2D([], [], ls="", marker="o", color=DARK)
    points[1].set_label("DWA")
    axes[0, -1].legend(handles=[contour, *points], loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def tsne_places(pair: dict[str, dict]) -> dict[str, np.ndarray] | None:
    """Places in the plane of "real", "sre2l" and "dwa", (N, 2) each; `pair` holds a record for each of the methods.

    None, and a line that says why, where the real images or the teacher are not at hand.
    """
    record = pair["dwa"]
    setting = as_setting(record["setting"])
    folder = store.find("teachers", record["teacher"]["artifact"])
    if folder is None:
        print(f"{record['teacher']['artifact']} is not on this machine, so it is not drawn")
        return None
    device = devices.choose().device
    images = real_images(setting, record["data"]["fingerprint"], device)
    if images is None:
        return None
    teacher = teachers.load(setting, len(images.classes), device, folder)
    splits = {"real": images.test}
    for method, made in pair.items():
        distilled = read_parquet(store.find("distilled", made["distilled"]["artifact"]))
        splits[method] = distilled.split(device)
    logits = {}
    for name, split in splits.items():
        per_class = max(TSNE_PER_CLASS, TSNE_REAL // len(images.classes)) if name == "real" else TSNE_PER_CLASS
        some = diversity.first_of_each_class(split, per_class)
        _, logits[name] = diversity.features_and_logits(teacher, some, setting.images.mean, setting.images.std)
    return diversity.tsne(logits)
