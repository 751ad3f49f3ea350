"""Pictures of distilled sets that are on this machine: losses of their synthesis, images, t-SNE of their logits."""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dwa_core import devices, diversity, initialise
from dwa_core.errors import InputError
from dwa_paper.report import results
from dwa_paper.report.charts import DARK, RIGHT, disambiguate, empty_figure, label_group, set_panel_title, show_pictures
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS
from dwa_paper.runs import real, store, teachers
from dwa_paper.runs.records import as_setting
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
    """Each synthesised set that is on this machine, once, in the order of data set, ipc and method."""
    first = {}
    for setting, _, record in runs:
        if record is not None and "tasks" not in record and setting["method"] in schema.SYNTHESISED:
            first.setdefault(record["distilled"]["artifact"], record)
    found = []
    for name, record in first.items():
        folder = store.find("distilled", name)
        if folder is None:
            print(f"{name} is not on this machine, so it is not drawn")
        else:
            found.append(StoredSet(record, folder, label_group(record["setting"], "network")))
    return sorted(found, key=lambda stored: (stored.group, stored.record["setting"]["method"]))


def loss_curves(runs: list[Run]) -> Figure:
    """Cross-entropy (left) and BatchNorm terms (right) of the first batch over the iterations, a row per group."""
    found = find_sets(runs)
    if not found:
        return empty_figure("no synthesised set to draw yet")
    groups = list(dict.fromkeys(stored.group for stored in found))
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 0.5 + 2.4 * len(groups)), squeeze=False)
    records = [stored.record for stored in found]
    labels = [f"{METHODS[r['setting']['method']]}, r_var {r['setting']['synthesis']['r_var']:g}" for r in records]
    drawn = []
    for (record, folder, group), label in zip(found, disambiguate(records, labels), strict=True):
        method, losses = record["setting"]["method"], read_losses(folder)
        # Broken lines show SRe2L where the two cross, and paler grey the second set of a method.
        drawn.append((group, method))
        shades = ("black", "darkgrey") if method == "dwa" else ("dimgrey", "darkgrey")
        look = {"ls": "-" if method == "dwa" else "--", "color": shades[min(drawn.count(drawn[-1]), 2) - 1]}
        terms = {"cross_entropy": "cross-entropy", "batchnorm_terms": "BatchNorm terms"}
        for axis, (term, name) in zip(axes[groups.index(group)], terms.items(), strict=True):
            axis.plot(range(1, len(losses[term]) + 1), losses[term], lw=1, label=label, **look)
            axis.set(yscale="log", xlabel="iteration", ylabel=name)
    for row, group in zip(axes, groups, strict=True):
        set_panel_title(row[0], group)
        row[1].legend(**RIGHT)
    return figure


def load_real_images(record: dict, device: torch.device) -> real.ImageData | None:
    """The data set of a record; None, and a line that says why, where it cannot be read or is another copy."""
    setting = as_setting(record["setting"])
    try:
        found = real.load(setting.dataset, setting.images, device, validation=setting.validation)
    except InputError as error:
        print(f"no real images: {error}")
        return None
    if found.fingerprint != record["data"]["fingerprint"]:
        print(f"no real images: this copy of {setting.dataset} is not the one that the record was made from")
        return None
    return found


def gallery(runs: list[Run]) -> Figure:
    """Image index 0 of up to ten classes of each distilled set, under the real images that they started from.

    One block for each data set and network, with the real images once, where they can be read and are those of the
    records. Of sets that differ in ipc alone, whose first images start alike, the smallest is drawn.
    """
    found = find_sets(runs)
    if not found:
        return empty_figure("no synthesised set to draw yet")
    records = [stored.record for stored in found]
    labels = disambiguate(records, [METHODS[record["setting"]["method"]] for record in records])
    blocks = {}
    for (record, folder, group), label in zip(found, labels, strict=True):
        setting, distilled = record["setting"], read_parquet(folder)
        rows = blocks.setdefault((results.dataset_label(setting), setting["network"], *distilled.classes[:10]), [])
        drawn, start = [name for name, _ in rows], setting["synthesis"]
        label = ", ".join([label.replace("\n", " "), *group.split("\n")[2:]])
        if label in drawn:
            continue
        wanted = start["initial"] == "real" and "real images" not in drawn
        if wanted and (images := load_real_images(record, torch.device("cpu"))):
            chosen = initialise.draw_real(images.train, len(images.classes), setting["ipc"], start["seed"])
            rows.insert(0, ("real images", images.train.pictures(chosen[0, :10])))
        rows.append((label, distilled.images_uint8[(distilled.ipc_index == 0) & (distilled.labels < 10)]))
    lines = sum(len(rows) + 1 for rows in blocks.values())  # and one for the names of the classes
    figure, axes = plt.subplots(lines, figsize=(7.5, 0.62 * lines), layout="none", gridspec_kw={"hspace": 0.06})
    remaining = iter(axes)
    for (dataset, network, *classes), rows in blocks.items():
        next(remaining).set_axis_off()
        for number, (label, pictures) in enumerate(rows):
            axis, width = next(remaining), pictures.shape[2] + 1
            show_pictures(axis, pictures, label)
            if number == 0:
                axis.set_title(f"{dataset}, {network}", loc="left", fontsize="medium", pad=22)
                names = [name.replace("_", "\n") for name in classes]
                axis.xaxis.tick_top()
                axis.set_xticks([width * (column + 0.5) for column in range(len(names))], names, fontsize=6)
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
        return empty_figure("no teacher with a set of SRe2L and one of DWA on this machine")
    labels = disambiguate([pairs[key]["dwa"].record for key in places], [group for _, group in places])
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
    axes[0, -1].legend(handles=handles, **RIGHT)
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
    setting = as_setting(record["setting"])
    teacher = teachers.load(setting, len(images.classes), device, folder)
    per_class = max(TSNE_PER_CLASS, TSNE_REAL // len(images.classes))
    some = {"real": diversity.first_of_each_class(images.test, per_class)}
    for method, stored in pair.items():
        some[method] = diversity.first_of_each_class(read_parquet(stored.folder).split(device), TSNE_PER_CLASS)
    logits = {
        name: diversity.features_and_logits(teacher, split, setting.images.mean, setting.images.std)[1]
        for name, split in some.items()
    }
    return diversity.tsne(logits)
