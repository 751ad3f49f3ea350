"""From records to tables and figures: nothing here computes a result, and a cell that was never run stays empty."""

import statistics
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

from dwa_core import data, presets, settings, store, synthesize

PUBLISHED = Path(__file__).parent / "published" / "published_results.csv"
METHODS = {"random-real": "random real", "sre2l": "SRe2L", "dwa": "DWA", "external": "made elsewhere"}
# Shades that stay apart in black and white, from light to dark.
COLOURS = {"random-real": "#d9d9d9", "sre2l": "#74a9cf", "dwa": "#034e7b", "external": "#ffffff"}
# Training and test images of each data set in full, to tell when a copy lacks some.
IMAGES_IN_FULL = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tiny-imagenet": (100_000, 10_000),
    "imagenet-1k": (1_281_167, 50_000),
}
CELL = ["data set", "ipc", "student", "method", "variant"]


def published() -> pd.DataFrame:
    """Numbers in print, with data sets, networks and methods named as in our settings; accuracy in percent."""
    frame = pd.read_csv(PUBLISHED)
    frame["network"] = frame["network"].str.lower().str.replace("resnet-", "resnet")
    ours = {shown.lower(): name for name, shown in METHODS.items()}
    frame["method"] = [ours.get(method.lower(), method) for method in frame["method"]]
    return frame


def read_records(profile: str) -> list[dict]:
    """Every record of `profile`, in the order of their names."""
    return [store.read_json(path) for path in sorted((settings.root() / "results" / profile).glob("*-seed*.json"))]


def dataset_label(setting: dict) -> str:
    """The data set, and the recipe where it is another's."""
    dataset, preset = setting["dataset"], setting["preset"]
    return dataset if dataset == preset else f"{dataset} ({preset.removeprefix(dataset + '-')})"


def differences(setting: dict) -> dict[str, tuple]:
    """What a record's setting changes in its preset: "stage.key" -> (its value, the preset's).

    How often a network is tested counts only where the best of the tests is reported.
    """
    keys = ("profile", "name", "preset", "dataset", "method", "distilled", "ipc", "network", "authors")
    base = settings.resolve({key: setting.get(key) for key in keys}).model_dump()
    return {
        f"{stage}.{key}": (value, base[stage][key])
        for stage in ("images", "teacher", "synthesis", "relabel")
        for key, value in setting[stage].items()
        if value != base[stage][key]
        and (key != "test_every" or (stage == "relabel" and setting["relabel"]["reported"] == "best"))
    }


def variant(setting: dict, usual_epochs: int) -> str:
    """What sets a run apart from its method's own row; `usual_epochs` are those of most teachers of its kind.

    What all teachers of a profile have in common, such as fewer epochs than the preset, is told in the notes.
    """
    parts = [Path(setting["distilled"]).name] if setting.get("distilled") else []
    if setting["network"] != setting["student"]:
        parts.append(f"teacher {setting['network']}")
    if setting["teacher"]["epochs"] != usual_epochs:
        parts.append(f"teacher of {setting['teacher']['epochs']} epochs")
    parts += [
        f"{key} {new}"
        for key, (new, _) in differences(setting).items()
        if not key.startswith(("teacher.", "images.")) and key != "relabel.test_every"
    ]
    if setting["precision"] != "auto":
        parts.append(setting["precision"])
    return ", ".join(parts)


def accuracies(records: list[dict]) -> pd.DataFrame:
    """One row per record: the table's cell, `authors`, seed, reported accuracy and the teacher's, in percent."""
    rows, epochs = [], {}
    for record in records:
        setting = record["setting"]
        epochs.setdefault((setting["preset"], setting["network"]), []).append(setting["teacher"]["epochs"])
    for record in records:
        setting = record["setting"]
        usual_epochs = statistics.mode(epochs[setting["preset"], setting["network"]])
        rows.append(
            {
                "data set": dataset_label(setting),
                "ipc": setting["ipc"],
                "student": setting["student"],
                "method": setting["method"],
                "variant": variant(setting, usual_epochs),
                "authors": setting["authors"],
                "seed": setting["seed"],
                "accuracy": record["accuracy"]["reported"],
                "teacher": record["teacher"]["accuracy"]["top1"],
            }
        )
    return pd.DataFrame(rows, columns=[*CELL, "authors", "seed", "accuracy", "teacher"])


def accuracy_table(records: list[dict], table: int | None = None) -> pd.DataFrame:
    """One row per cell, with print beside ours; mean and standard deviation (n - 1) over student seeds, in percent.

    Print is compared with runs under the authors' switches; the defaults have columns of their own.

    Args:
        records: as `read_records` returns them.
        table: the printed table whose rows join ours; None joins every printed row of a data set, ipc and
            student that a record has.
    """
    runs = accuracies(records)
    columns = []
    for authors, label in ((True, "authors"), (False, "ours")):
        group = runs[runs["authors"] == authors].groupby(CELL)["accuracy"]
        columns.append(group.agg(["mean", "std", "count"]).add_prefix(f"{label} "))
    frame = pd.concat([*columns, runs.groupby(CELL)["teacher"].mean()], axis=1)
    printed = published().rename(columns={"dataset": "data set", "network": "student"})
    if table is None:
        keys = set(zip(runs["data set"], runs["ipc"], runs["student"], strict=True))
        inside = [key in keys for key in zip(printed["data set"], printed["ipc"], printed["student"], strict=True)]
        printed = printed[inside]
    else:
        printed = printed[printed["table"] == table]
    printed = (
        printed.assign(variant="")
        .set_index(CELL)[["top1_mean", "top1_std"]]
        .set_axis(["print mean", "print std"], axis=1)
    )
    frame = printed.join(frame, how="outer").reset_index()
    frame["difference"] = (frame["authors mean"] - frame["print mean"]).round(2)
    frame["of ours"] = frame["method"].isin(METHODS)
    frame["rank"] = frame["method"].map({name: rank for rank, name in enumerate(METHODS)})
    order = ["data set", "ipc", "student", "of ours", "rank", "method", "variant"]
    return frame.sort_values(order).drop(columns=["of ours", "rank"])


def markdown(frame: pd.DataFrame) -> str:
    """`accuracy_table`'s frame as Markdown: mean ± standard deviation, empty where nothing was run."""

    def cell(row, label):
        mean, std = row[f"{label} mean"], row[f"{label} std"]
        if pd.isna(mean):
            return ""
        if label != "print" and row[f"{label} count"] == 1:
            return f"{mean:.1f} (1 seed)"
        seeds = "" if label == "print" or row[f"{label} count"] == 3 else f" ({row[f'{label} count']:.0f} seeds)"
        return f"{mean:.1f} ± {std:.1f}{seeds}"

    shown = pd.DataFrame(
        [
            {
                "data set": row["data set"],
                "ipc": row["ipc"],
                "student": row["student"],
                "method": ", ".join(
                    filter(None, [METHODS.get(row["method"], f"{row['method']} (quoted)"), row["variant"]])
                ),
                "print": cell(row, "print"),
                "ours, authors' switches": cell(row, "authors"),
                "difference": "" if pd.isna(row["difference"]) else f"{row['difference']:+.1f}",
                "ours, defaults": cell(row, "ours"),
                "teacher": "" if pd.isna(row["teacher"]) else f"{row['teacher']:.1f}",
            }
            for _, row in frame.iterrows()
        ]
    )
    return shown.to_markdown(index=False, disable_numparse=True)


def notes(records: list[dict]) -> list[str]:
    """What a reader must know beside the numbers: data that lack images, and what differs from the presets."""
    lines = set()
    for record in records:
        setting, images = record["setting"], record["data"]
        used = images["training_images"], images["test_images"]
        full = IMAGES_IN_FULL.get(setting["dataset"], used)
        text = f"{setting['dataset']}: trained on {used[0]:,} and tested on {used[1]:,} images"
        if used != full:
            missing = sum(full) - sum(used)
            text += f"; this copy of the data lacks {missing:,} images of the official {full[0]:,} and {full[1]:,}"
        lines.add(text + ".")
        if setting["preset"] in presets.DEMO_SIZES and setting["preset"] != setting["dataset"]:
            lines.add(
                f"{dataset_label(setting)}: cut to seconds, to run this recipe's code; its accuracy says nothing."
            )
        for key, (new, old) in differences(setting).items():
            lines.add(f"{dataset_label(setting)}, {setting['network']}: {key} is {new}; the preset has {old}.")
    return sorted(lines)


def missing(profile: str) -> list[str]:
    """The commands that make the records which the settings of `profile` ask for and which are not there yet."""
    commands = []
    for path in sorted((settings.SETTINGS / profile).glob("*.yaml")):
        parameters = settings.read(path)
        for seed in parameters.get("seeds", [0]):
            record = settings.resolve({**parameters, "seed": seed}).record_path()
            if not record.is_file():
                commands.append(f"make results/{profile}/{record.name}")
    return commands


def write_table(frame: pd.DataFrame, title: str, caption: str, records: list[dict], profile: str, name: str) -> Path:
    """Writes results/<profile>/<name>.csv and .md (title, caption, table, notes); returns the path of the .md."""
    folder = settings.root() / "results" / profile
    folder.mkdir(parents=True, exist_ok=True)
    frame.round(4).to_csv(folder / f"{name}.csv", index=False)
    text = [f"# {title}", "", caption, "", markdown(frame), "", *[f"- {line}" for line in notes(records)]]
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")
    return folder / f"{name}.md"


# ------------------------------------------------------------------------------------------------- figures


def use_style() -> None:
    """One look for all figures: light grid, embedded fonts, text that stays text in SVG."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({"svg.fonttype": "none", "savefig.bbox": "tight", "figure.constrained_layout.use": True})
    # The same figure gives the same file, byte for byte.
    plt.rcParams["svg.hashsalt"] = "dwa"


def save_figure(figure: Figure, profile: str, name: str) -> Path:
    """Writes figures/<profile>/<name>.svg and .png; returns the path of the .svg."""
    folder = settings.root() / "figures" / profile
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return folder / f"{name}.svg"


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
    switches = "\nauthors' switches" if setting["authors"] else ""
    return f"{dataset_label(setting)}\nipc {setting['ipc']}, {setting[network]}{switches}"


def accuracy_bars(records: list[dict]) -> Figure:
    """Horizontal bars of mean accuracy by method, a dot per student seed, a diamond for the number in print."""
    runs = accuracies(records)
    runs["group"] = [group_label(record["setting"], "student") for record in records]
    runs = runs.sort_values(["data set", "ipc", "student", "authors"])
    printed = published().assign(variant="").set_index(["dataset", "ipc", "network", "method", "variant"])["top1_mean"]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(runs.groupby(["group", "method", "variant"]))))
    place, ticks = 0.0, {}
    for group in dict.fromkeys(runs["group"]):
        in_group = runs[runs["group"] == group]
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
            key = tuple(chosen.iloc[0][CELL])
            # Print is compared with runs under the authors' switches alone.
            if key in printed.index and chosen.iloc[0]["authors"]:
                axis.scatter(printed[key], place, marker="D", s=40, color="black", zorder=4)
            place += 1
        place += 1.2
    axis.set(yticks=list(ticks.values()), yticklabels=list(ticks), xlim=(0, 100), xlabel="test accuracy, %")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    drawn = [method for method in METHODS if (runs["method"] == method).any()]
    handles = [Patch(facecolor=COLOURS[method], edgecolor="black", label=METHODS[method]) for method in drawn]
    handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="black", label="one student"))
    handles.append(Line2D([], [], ls="", marker="D", ms=6, color="black", label="in print"))
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def distilled_once(records: list[dict]) -> list[dict]:
    """The first record of each synthesised set that is on this machine, in the order of data set, ipc and method."""
    once = {record["distilled"]["artifact"]: record for record in reversed(records)}
    chosen = []
    for name, record in once.items():
        if record["setting"]["method"] in ("random-real", "external"):
            continue
        if store.find("distilled", name) is None:
            print(f"{name} is not on this machine, so it is not drawn")
        else:
            chosen.append(record)
    return sorted(chosen, key=lambda record: (group_label(record["setting"], "network"), record["setting"]["method"]))


def loss_curves(records: list[dict]) -> Figure:
    """Cross-entropy (left) and BatchNorm terms (right) of the first batch over the iterations, a row per group."""
    chosen = distilled_once(records)
    if not chosen:
        return nothing_to_draw()
    groups = list(dict.fromkeys(group_label(record["setting"], "network") for record in chosen))
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 0.5 + 2.4 * len(groups)), squeeze=False)
    for record in chosen:
        setting = record["setting"]
        losses = store.read_json(store.find("distilled", record["distilled"]["artifact"]) / "record.json")
        curves = np.array(losses["losses_first_batch"])
        row = axes[groups.index(group_label(setting, "network"))]
        # Broken lines and a paler grey keep SRe2L apart where the two cross.
        look = {"ls": "-", "color": "black"} if setting["method"] == "dwa" else {"ls": "--", "color": "dimgrey"}
        label = f"{METHODS[setting['method']]}, r_var {setting['synthesis']['r_var']:g}"
        for axis, column, name in ((row[0], 0, "cross-entropy"), (row[1], 1, "BatchNorm terms")):
            axis.plot(np.arange(1, len(curves) + 1), curves[:, column], lw=1, label=label, **look)
            axis.set(yscale="log", xlabel="iteration", ylabel=name)
    for row, group in zip(axes, groups, strict=True):
        row[0].set_title(group.replace("\n", ", "), loc="left", fontsize="medium")
        row[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def nothing_to_draw() -> Figure:
    figure, axis = plt.subplots(figsize=(6, 1))
    axis.text(0.5, 0.5, "no synthesised set to draw yet", ha="center", va="center")
    axis.set_axis_off()
    return figure


def initial_pictures(setting: settings.Setting, fingerprint: str) -> torch.Tensor | None:
    """The real images of ipc index 0, at most ten; None, and a line that says why, where they cannot be had."""
    try:
        real = data.load(setting.dataset, setting.images, torch.device("cpu"))
    except settings.InputError as error:
        print(f"no initial images: {error}")
        return None
    if real.fingerprint != fingerprint:
        print(f"no initial images: this copy of {setting.dataset} is not the one that the set was made from")
        return None
    indices = data.draw_real(real.train, len(real.classes), setting.ipc, setting.synthesis.seed)
    return real.train.pictures(indices[0, :10])


def gallery(records: list[dict]) -> Figure:
    """Image index 0 of up to ten classes of each distilled set, under the real images that it started from.

    The real images are left out where they are not at hand, or are not the ones that the set was made from.
    """
    chosen = distilled_once(records)
    if not chosen:
        return nothing_to_draw()
    rows = []
    for record in chosen:
        setting = settings.Setting.model_validate({**record["setting"], "seeds": [record["setting"]["seed"]]})
        folder = store.find("distilled", record["distilled"]["artifact"])
        distilled = synthesize.read_parquet(folder)
        first = (distilled.ipc_index == 0) & (distilled.labels < 10)
        if setting.synthesis.initial == "real":
            initial = initial_pictures(setting, record["data"]["fingerprint"])
            if initial is not None:
                rows.append((record, "initial", initial))
        rows.append((record, METHODS[setting.method], distilled.images_uint8[first]))
    figure, axes = plt.subplots(len(rows), figsize=(8, 1.0 * len(rows)), squeeze=False)
    titled = None
    for axis, (record, label, pictures) in zip(axes[:, 0], rows, strict=True):
        show_pictures(axis, pictures, label)
        group = group_label(record["setting"], "network")
        if group != titled:
            axis.set_title(group.replace("\n", ", "), loc="left", fontsize="medium")
            titled = group
    return figure
