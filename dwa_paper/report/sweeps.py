"""Sweeps: accuracy or diversity over values of the recipe, one axis at a time or two."""

import random

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dwa_paper.report import charts, results
from dwa_paper.report.charts import BELOW, DARK, LIGHT, RIGHT
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS, TEACHERS


def describe_coupling(setting: dict) -> list[str]:
    """ "decoupled" where r_bn is the preset's, "coupled" where mean and variance weigh the same; or both."""
    kinds = [] if "synthesis.r_bn" in results.differences(setting) else ["decoupled"]
    return kinds + (["coupled"] if setting["synthesis"]["r_var"] == 1 else [])


def sweep(runs: list[Run], axes: tuple[str, ...]) -> pd.DataFrame:
    """The rows of `results.accuracies` that DWA has a record of; "panel" says what else tells one from another."""
    rows = results.accuracies(runs, axes)
    labels = [charts.label_group(run.setting, "student") for run in runs]
    variants = map(charts.describe_variant, rows["variant"])
    rows["panel"] = [f"{label}\n{variant}".strip() for label, variant in zip(labels, variants, strict=True)]
    rows["coupling"] = [describe_coupling(run.setting) for run in runs]
    return rows[rows["method"] == "dwa"].sort_values("variant", kind="stable")


def seed_noise(rows: pd.DataFrame, axes: list[str]) -> str:
    """What a panel of `sweep` says of the spread that students' seeds alone give, as far as it was measured."""
    spread = rows.groupby(axes)["accuracy"].std().dropna()
    if spread.empty:
        return "one student per set: seed noise not measured"
    return f"seed noise: ±{(spread**2).mean() ** 0.5:.1f} (standard deviation over the students of a set)"


def variance_curves(runs: list[Run]) -> Figure:
    """Accuracy over the coefficient of the variance, r_bn * r_var; a panel for each data set, ipc and student."""
    rows = (
        sweep(runs, ("synthesis.r_bn", "synthesis.r_var")).explode("coupling").dropna(subset=["accuracy", "coupling"])
    )
    if rows.empty:
        return charts.empty_figure("no record yet")
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
        noise = seed_noise(chosen, ["synthesis.r_bn", "synthesis.r_var", "coupling"])  # one set may be of both
        axis.set(xlabel=f"coefficient of the variance, λ\n{noise}", ylabel="test accuracy, %")
        charts.set_panel_title(axis, panel)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **BELOW)
    return figure


def distance_bars(runs: list[Run]) -> Figure:
    """Feature distance within class of up to ten classes drawn at random, a bar for each distilled set."""
    import seaborn as sns

    once = {}
    for setting, _, record in sorted(runs, key=lambda run: describe_coupling(run.setting), reverse=True):
        if record is not None and None not in (record.get("diversity") or {}).get("feature_distance_by_class", [None]):
            coefficient = setting["synthesis"]["r_bn"] * setting["synthesis"]["r_var"]
            label = ", ".join([METHODS[setting["method"]], *describe_coupling(setting), f"λ {coefficient:.2g}"])
            once[record["distilled"]["artifact"], record["teacher"]["artifact"]] = record, label
    if not once:
        return charts.empty_figure("no record with the distances of its classes yet")
    records, labels = zip(*once.values(), strict=True)
    panels = {}
    for record, label in zip(records, charts.disambiguate(records, labels), strict=True):
        distances = record["diversity"]["feature_distance_by_class"]
        panels.setdefault(charts.label_group(record["setting"], "network"), {})[label] = distances
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 0.5 + 3.2 * len(panels)), squeeze=False)
    for axis, (panel, sets) in zip(axes[:, 0], panels.items(), strict=True):
        frame = pd.DataFrame(sets)
        classes = sorted(random.Random(0).sample(range(len(frame)), min(10, len(frame))))
        shades = sns.blend_palette(["#d9d9d9", LIGHT, DARK], len(sets)) if len(sets) > 1 else [DARK]
        frame.loc[classes].plot.bar(ax=axis, width=0.8, color=shades, edgecolor="black", rot=0)
        axis.axhline(1, color="black", ls=":", lw=1.5, label="real test images")
        axis.set(xlabel="class", ylabel="feature distance,\nrelative to real")
        charts.set_panel_title(axis, panel)
        axis.grid(axis="x", visible=False)
        axis.legend(**RIGHT)
    return figure


def steps_rho_map(runs: list[Run]) -> Figure:
    """A heat map of mean accuracy over K and rho for each data set, ipc and student; not run stays empty."""
    import seaborn as sns

    panels = sweep(runs, ("synthesis.steps", "synthesis.rho")).groupby("panel", sort=False)
    panels = panels.filter(lambda rows: rows["accuracy"].notna().any()).groupby("panel", sort=False)
    if not len(panels):
        return charts.empty_figure("no record yet")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.2), squeeze=False)
    for axis, (panel, rows) in zip(axes[0], panels, strict=True):
        table = rows.pivot_table("accuracy", "synthesis.steps", "synthesis.rho", dropna=False, observed=False)
        look = {"annot": True, "fmt": ".1f", "linewidths": 1, "cbar_kws": {"label": "test accuracy, %"}}
        colours = sns.blend_palette(["#e0e0e0", DARK], as_cmap=True)  # no white, which is a cell not run
        sns.heatmap(table.sort_index(ascending=False), ax=axis, cmap=colours, **look)
        noise = seed_noise(rows, ["synthesis.steps", "synthesis.rho"])
        axis.set(xlabel=f"weight magnitude $\\rho$\n{noise}", ylabel="steps K")
        axis.grid(False)
        axis.tick_params(axis="y", rotation=0)
        charts.set_panel_title(axis, panel)
    return figure


def teacher_curves(runs: list[Run]) -> Figure:
    """Accuracy over the epochs of the teacher, a row of panels for each data set and ipc, a column for its recipe.

    A line for each method and batch size of the student, and the paper's number for DWA across.
    """
    axes = ("teacher.recipe", "teacher.epochs", "relabel.batch_size")
    rows = results.accuracies(runs, axes)
    rows["panel"] = [charts.label_group(run.setting, "student").replace("\n", ", ") for run in runs]
    rows = rows.dropna(subset="accuracy")
    if rows.empty:
        return charts.empty_figure("no record yet")
    paper = results.reported_numbers().set_index(["data set", "ipc", "student", "method"])["top1_mean"]
    groups, recipes, epochs = (sorted(rows[key].unique()) for key in ("panel", *axes[:2]))
    batches = sorted(rows[axes[2]].unique())
    size = (2 + 3.6 * len(recipes), 0.8 + 3.2 * len(groups))
    figure, grid = plt.subplots(len(groups), len(recipes), figsize=size, sharey="row", squeeze=False)
    markers, handles = dict(zip(METHODS, "sD^ov", strict=True)), {}
    for (group, recipe), chosen in rows.groupby(["panel", "teacher.recipe"]):
        axis = grid[groups.index(group), recipes.index(recipe)]
        for (method, batch), points in chosen.groupby(["method", "relabel.batch_size"]):
            line = points.groupby("teacher.epochs")["accuracy"].agg(["mean", "std"])
            style = ["-", "--", ":"][batches.index(batch) % 3]
            colour = {"dwa": DARK, "sre2l": LIGHT}.get(method, "dimgrey")
            look = {"color": colour, "marker": markers[method], "ls": style, "mfc": colour if style == "-" else "white"}
            label = f"{METHODS[method]}, student's batch size {batch}"
            axis.errorbar([epochs.index(each) for each in line.index], line["mean"], line["std"], label=label, **look)
        cell = (*chosen.iloc[0][["data set", "ipc", "student"]], "dwa")
        if cell in paper.index:
            axis.axhline(paper[cell], color="black", lw=1, ls="-.", label="DWA as reported in the paper")
        accuracy = chosen.groupby("teacher.epochs")["teacher"].mean().reindex(epochs)
        ticks = [f"{each}\n{results.format_number(top, '.1f')}" for each, top in accuracy.items()]
        axis.set_xticks(range(len(epochs)), ticks)
        axis.set(xlim=(-0.3, len(epochs) - 0.7), xlabel="epochs of the teacher, and its test accuracy, %")
        title = f"{group}\nteacher by {TEACHERS[recipe]} recipe"
        axis.set_title(title, loc="left", fontsize="medium")
        handles |= {handle.get_label(): handle for handle in axis.get_legend_handles_labels()[0]}
    for axis in grid[:, 0]:
        axis.set_ylabel("test accuracy, %")
    figure.legend(handles.values(), handles, **BELOW | {"ncols": 2})
    return figure
