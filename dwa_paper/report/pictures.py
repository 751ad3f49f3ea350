"""Pictures of distilled sets that are on this machine: losses of their synthesis, images, t-SNE of their logits."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dwa_core import devices, diversity, initialise
from dwa_core.errors import InputError
from dwa_paper.report import charts, results
from dwa_paper.report.charts import BELOW, DARK, LIGHT, RIGHT, label_group
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS, RECIPES
from dwa_paper.runs import real, store, teachers
from dwa_paper.runs.records import parse_setting
from dwa_paper.runs.sets import read_losses, read_parquet
from dwa_paper.settings import schema

# Images in a t-SNE, so that 100 classes take about a minute: real ones in all, and at most of each class.
TSNE_REAL, TSNE_PER_CLASS = 2_000, 20


class StoredSet(NamedTuple):
    """A distilled set to draw: the first record that names it, its folder, and what it is compared with."""

    record: dict
    folder: Path
    group: str


def find_sets(runs: list[Run]) -> list[StoredSet]:
    """Each synthesised set that is on this machine, once, in the order of data set, ipc and method.

    Sets of a teacher that is no better than chance show nothing, and are left out; a printed line says so.
    """
    first = {}
    for setting, _, record in runs:
        if record is not None and "tasks" not in record and setting["method"] in schema.SYNTHESISED:
            first.setdefault(record["distilled"]["artifact"], record)
    found = []
    for name, record in first.items():
        folder, data = store.find("distilled", name), record["data"]
        if folder is None:
            print(f"{name} is not on this machine, so it is not drawn")
        elif results.is_at_chance(record["teacher"]["accuracy"]["top1"], data["classes"], data["test_images"]):
            print(f"{name}: its teacher is no better than chance, so it is not drawn")
        else:
            found.append(StoredSet(record, folder, label_group(record["setting"], "network")))
    return sorted(found, key=lambda stored: (stored.group, stored.record["setting"]["method"]))


def loss_curves(runs: list[Run]) -> Figure:
    """Cross-entropy (left) and BatchNorm terms (right) of the first batch over its iterations, a row per group.

    Pale: each iteration; strong: the median over a twentieth of them. Methods differ in their number of iterations,
    so the axis is the part of them that is done, and the legend has the number.
    """
    found = find_sets(runs)
    if not found:
        return charts.empty_figure("no synthesised set to draw yet")
    groups = list(dict.fromkeys(stored.group for stored in found))
    figure, axes = plt.subplots(len(groups), 2, figsize=(11, 0.5 + 2.6 * len(groups)), sharex=True, squeeze=False)
    records, labels = [stored.record for stored in found], []
    for method, stage in ((record["setting"]["method"], record["setting"]["synthesis"]) for record in records):
        labels.append(f"{METHODS[method]}, r_var {stage['r_var']:g},\n{stage['iterations']:,} iterations")
    looks = {"sre2l": [("--", "black"), ("--", "grey")], "dwa": [("-", DARK), ("-", LIGHT), (":", DARK)]}
    terms = {"cross_entropy": "cross-entropy", "batchnorm_terms": "BatchNorm terms"}
    drawn = []
    for (record, folder, group), label in zip(found, charts.disambiguate(records, labels), strict=True):
        method, losses = record["setting"]["method"], read_losses(folder)
        style, colour = looks[method][drawn.count((group, method)) % len(looks[method])]
        drawn.append((group, method))
        for axis, (term, name) in zip(axes[groups.index(group)], terms.items(), strict=True):
            count = len(losses[term])
            line = pd.Series(losses[term], index=np.arange(1, count + 1) / count * 100)
            axis.plot(line, color=colour, lw=0.5, alpha=0.25, rasterized=True)
            smooth = line.rolling(max(count // 20, 1), center=True, min_periods=1).median()
            axis.plot(smooth, ls=style, color=colour, lw=1.8, label=label)
            axis.set(yscale="log", ylabel=name)
    for row, group in zip(axes, groups, strict=True):
        charts.set_panel_title(row[0], group)
        row[1].legend(**RIGHT, fontsize="small")
    for axis in axes[-1]:
        axis.set_xlabel("iterations done, %")
    return figure


def load_real_images(record: dict, device: torch.device) -> real.ImageData | None:
    """The data set of a record; None, and a line that says why, where it cannot be read or is another copy."""
    setting = parse_setting(record["setting"])
    try:
        found = real.load(setting.dataset, setting.images, device, validation=setting.validation)
    except InputError as error:
        print(f"no real images: {error}")
        return None
    if found.fingerprint != record["data"]["fingerprint"]:
        print(f"no real images: this copy of {setting.dataset} is not the one that the record was made from")
        return None
    return found


def choose_sets(found: list[StoredSet]) -> dict[str, StoredSet]:
    """A set of each method, all of one teacher and recipe: of those with most methods, the one nearest the defaults.

    Of a method's sets the plain one, with the smallest ipc, whose first images are those of the others.
    """

    def plainness(stored: StoredSet) -> tuple:
        setting = stored.record["setting"]
        return [*RECIPES].index(results.recipe(setting)), len(results.variant(setting)), setting["ipc"]

    candidates = {}
    for stored in sorted(found, key=plainness):
        setting = stored.record["setting"]
        key = stored.record["teacher"]["artifact"], results.recipe(setting)
        candidates.setdefault(key, {}).setdefault(setting["method"], stored)
    chosen = max(candidates.values(), key=len)
    return {method: chosen[method] for method in METHODS if method in chosen}


def gallery(runs: list[Run]) -> Figure:
    """Image index 0 of up to ten classes: the initial images, where they can be read, and what each method makes.

    A block for each data set, with the sets of `choose_sets`.
    """
    by_dataset, blocks = {}, {}
    for stored in find_sets(runs):
        by_dataset.setdefault(results.dataset_label(stored.record["setting"]), []).append(stored)
    if not by_dataset:
        return charts.empty_figure("no synthesised set to draw yet")
    for dataset in sorted(by_dataset, key=results.natural_key):
        rows = {}
        for method, (record, folder, _) in choose_sets(by_dataset[dataset]).items():
            setting, distilled = record["setting"], read_parquet(folder)
            stage = setting["synthesis"]
            if stage["initial"] == "real" and (images := load_real_images(record, torch.device("cpu"))):
                chosen = initialise.draw_real(images.train, len(images.classes), setting["ipc"], stage["seed"])
                rows = {"initial": images.train.pictures(chosen[0, :10])} | rows
            rows[METHODS[method]] = distilled.images_uint8[(distilled.ipc_index == 0) & (distilled.labels < 10)]
        recipe = results.recipe(setting)
        title = f"{dataset}, {setting['network']}, teacher {record['teacher']['accuracy']['top1']:.1f} %"
        blocks[title if recipe == "defaults" else f"{title}, {RECIPES[recipe]}"] = distilled.classes[:10], rows
    heights = [height for _, rows in blocks.values() for height in (0.75, *[1] * len(rows))]
    grid = {"height_ratios": heights, "hspace": 0.02, "left": 0.11, "right": 1, "bottom": 0, "top": 1}
    figure, axes = plt.subplots(len(heights), figsize=(8.2, 0.74 * sum(heights)), layout="none", gridspec_kw=grid)
    remaining = iter(axes)
    for title, (classes, rows) in blocks.items():
        next(remaining).set_visible(False)
        for number, (label, pictures) in enumerate(rows.items()):
            axis, scale = next(remaining), max(1, 256 // pictures.shape[2])  # large, so that pixels keep their edges
            charts.show_pictures(axis, pictures.repeat_interleave(scale, 1).repeat_interleave(scale, 2), label)
            if number == 0:
                plain = [name.split(",")[0].replace("_", " ") for name in classes]  # without synonyms
                names = [textwrap.fill(name, 11, max_lines=2, placeholder="\u2026") for name in plain]
                axis.set_title(title, loc="left", fontsize="medium", pad=26 if "\n" in "".join(names) else 17)
                axis.xaxis.tick_top()
                middles = (np.arange(len(names)) + 0.5) * axis.get_xlim()[1] / len(names)
                axis.set_xticks(middles, names, fontsize=9, parse_math=False)
                axis.tick_params(length=0, pad=1)
    return figure


def embedding(runs: list[Run]) -> Figure:
    """One t-SNE of logits for each teacher and ipc that has both methods: SRe2L left, DWA right, over real images.

    Contours are the density of real test images, points are distilled images.
    """
    pairs = {}
    for stored in find_sets(runs):
        setting = stored.record["setting"]
        if results.variant(setting) == "":
            key = (stored.record["teacher"]["artifact"], stored.group)
            pairs.setdefault(key, {})[setting["method"]] = stored
    places = {key: compute_tsne(pair) for key, pair in pairs.items() if {"sre2l", "dwa"} <= set(pair)}
    places = {key: found for key, found in places.items() if found is not None}
    if not places:
        return charts.empty_figure("no teacher with a set of SRe2L and one of DWA on this machine")
    labels = charts.disambiguate([pairs[key]["dwa"].record for key in places], [group for _, group in places])
    figure, axes = plt.subplots(
        len(places), 2, figsize=(9, 0.6 + 4.2 * len(places)), squeeze=False, sharex="row", sharey="row"
    )
    markers = {"sre2l": "x", "dwa": "o"}
    for row, label, found in zip(axes, labels, places.values(), strict=True):
        for axis, (method, marker) in zip(row, markers.items(), strict=True):
            x, y = found["real"].T
            sns.kdeplot(x=x, y=y, ax=axis, levels=8, bw_adjust=0.5, cmap="Greys", linewidths=1)
            axis.scatter(*found[method].T, marker=marker, s=18, lw=1, color=DARK, zorder=3)
            axis.set(xticks=[], yticks=[], xlabel="", ylabel="")
            axis.set_title(METHODS[method])
        row[0].set_ylabel(label)
    handles = [Line2D([], [], color="grey", label="density of real images")]
    handles += [Line2D([], [], ls="", marker=markers[name], color=DARK, label=METHODS[name]) for name in markers]
    figure.legend(handles=handles, **BELOW)
    return figure


def compute_tsne(pair: dict[str, StoredSet]) -> dict[str, np.ndarray] | None:
    """Places in the plane of "real", "sre2l" and "dwa", (N, 2) each; `pair` holds a set for each of the methods.

    None, and a line that says why, where the real images or the teacher are not on this machine.
    """
    record = pair["dwa"].record
    folder = store.find("teachers", record["teacher"]["artifact"])
    if folder is None:
        print(f"{record['teacher']['artifact']} is not on this machine, so it is not drawn")
        return None
    device = devices.choose().device
    images = load_real_images(record, device)
    if images is None:
        return None
    setting = parse_setting(record["setting"])
    teacher = teachers.load(setting, len(images.classes), device, folder)
    per_class = max(TSNE_PER_CLASS, TSNE_REAL // len(images.classes))
    some = {"real": diversity.select_first_of_each_class(images.test, per_class)}
    for method, stored in pair.items():
        some[method] = diversity.select_first_of_each_class(read_parquet(stored.folder).split(device), TSNE_PER_CLASS)
    logits = {
        name: diversity.compute_features(teacher, split, setting.images.mean, setting.images.std)[1]
        for name, split in some.items()
    }
    return diversity.compute_tsne(logits)
