"""What tables and figures have in common: which runs a product shows, numbers in print, labels, notes.

A product is one table or figure, named as its make target is ("table-3", "figure-gain"). It shows the runs of the
settings files that name it; a run without a record is an empty cell. Nothing here computes a result.
"""

import re
import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dwa_core import guard
from dwa_paper.runs import notebook
from dwa_paper.runs.records import find_record, students
from dwa_paper.settings import files, presets, schema

PUBLISHED = Path(__file__).parent / "published" / "published_results.csv"
METHODS = {"random-real": "random real", "sre2l": "SRe2L", "dwa": "DWA", "external": "made elsewhere"}
# Training and test images of each data set in full, to tell when a copy lacks some.
IMAGES_IN_FULL = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tiny-imagenet": (100_000, 10_000),
    "imagenet-1k": (1_281_167, 50_000),
}
# Of the distilled set of a record: spread within class relative to real images, and how much of them is covered.
DIVERSITY = {"feature_distance": "feature distance", "coverage": "coverage"}
# What a run does where our defaults, the authors' code and the best that was found on validation images differ.
SWITCHES = {"ours": "defaults", "authors": "authors' switches", "best": "best on validation"}
# What tells one cell of a table from another.
CELL = ["data set", "ipc", "network", "student", "method", "variant"]


class Run(NamedTuple):
    """One student: its setting as a record holds it, the command that makes its record, and that record or None."""

    setting: dict
    command: str
    record: dict | None


def runs_of(profile: str, product: str | None = None) -> list[Run]:
    """Every run that the settings of `profile` ask for in `product`, or in all products, file by file, seed by seed.

    A record of other numbers than its settings file now holds counts as missing, as it does for make.
    """
    runs = []
    for _, parameters in files.runs(files.files(profile, product)):
        setting = schema.resolve(parameters)
        command = f"make results/{profile}/{setting.record_path().name}"
        runs.append(Run(setting.recorded(), command, find_record(setting)))
    return runs


def runs_for_notebook(variables: dict, product: str) -> list[Run]:
    """The runs of `product` in a notebook's one parameter, the profile; prints how many are there and which are not.

    Args:
        variables: the notebook's `globals()`.

    Raises:
        InputError: an unknown parameter, or a profile without settings.
    """
    profile = notebook.read_profile(variables)
    runs = runs_of(profile, product)
    missing = [run.command for run in runs if run.record is None]
    print(f"{product}: {len(runs) - len(missing)} of {len(runs)} records are there")
    if missing:
        print("Not run yet:", *missing, sep="\n  ")
    return runs


def records(runs: list[Run]) -> list[dict]:
    """The records among `runs`."""
    return [run.record for run in runs if run.record is not None]


def published() -> pd.DataFrame:
    """Numbers in print, with data sets, networks and methods named as in our settings; accuracy in percent."""
    frame = pd.read_csv(PUBLISHED)
    frame["network"] = frame["network"].str.lower().str.replace("resnet-", "resnet")
    ours = {shown.lower(): name for name, shown in METHODS.items()}
    frame["method"] = [ours.get(method.lower(), method) for method in frame["method"]]
    return frame


# --------------------------------------------------------------------------------------------------- labels


def dataset_label(setting: dict) -> str:
    """The data set, and the recipe where it is another's."""
    dataset, preset = setting["dataset"], setting["preset"]
    return dataset if dataset == preset else f"{dataset} ({preset.removeprefix(dataset + '-')})"


def natural(name: str) -> tuple:
    """A key that sorts resnet18 before resnet101, and data sets in the order of the presets."""
    place = list(presets.PRESETS).index(name) if name in presets.PRESETS else len(presets.PRESETS)
    return place, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def switches(setting: dict) -> str:
    """The key of SWITCHES that a setting stands under."""
    return "authors" if setting["authors"] else "best" if setting["best"] else "ours"


def differences(setting: dict) -> dict[str, tuple]:
    """What a record's setting changes in its preset: "stage.key" -> (its value, the preset's).

    How often a network is tested counts only where the best of the tests is reported.
    """
    keys = ("profile", "name", "preset", "dataset", "method", "distilled", "ipc", "network", "authors", "best")
    base = schema.resolve({key: setting.get(key) for key in keys}).model_dump()
    return {
        f"{stage}.{key}": (value, base[stage][key])
        for stage in ("images", "teacher", "synthesis", "relabel")
        for key, value in setting[stage].items()
        if value != base[stage][key]
        and (key != "test_every" or (stage == "relabel" and setting["relabel"]["reported"] == "best"))
    }


def told_in_notes(key: str) -> bool:
    """Whether a difference of this key stands in the notes of a table; the others are part of the variant."""
    return key == "relabel.test_every" or (
        key.startswith(("teacher.", "images.")) and key != "images.std_after_teacher"  # a switch of the authors'
    )


def variant(setting: dict, usual_epochs: int, axes: tuple[str, ...] = (), of_real_images: bool = False) -> str:
    """What sets a run apart from its method's own row; `usual_epochs` are those of most teachers of its kind.

    What all teachers of a profile have in common, such as fewer epochs than the preset, is told in the notes.

    Args:
        axes: keys that stand elsewhere and so are left out.
        of_real_images: leaves out what changes nothing where the images are random real ones, all of the synthesis
            but its seed and storage.
    """
    changed = [Path(setting["distilled"]).name] if setting.get("distilled") else []
    if setting["teacher"]["epochs"] != usual_epochs:
        changed.append(f"teacher of {setting['teacher']['epochs']} epochs")
    left_out = set(axes)
    if of_real_images:
        left_out |= {f"synthesis.{key}" for key in setting["synthesis"] if key not in ("seed", "storage")}
    stages = differences(setting).items()
    changed += [f"{key} {new}" for key, (new, _) in stages if not told_in_notes(key) and key not in left_out]
    if setting["tasks"] > 1 and "task" not in axes:
        changed.append(f"{setting['tasks']} tasks")
    if setting["precision"] != "auto":
        changed.append(setting["precision"])
    return ", ".join(changed)


def accuracies(runs: list[Run], axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per run: its cell, `switches`, seed, and from its record accuracies and the set's diversity.

    `variant of real` is that of the random real images that a run compares with. The accuracy reported and the
    teacher's (the mean of the teachers of all tasks) are in percent; NaN where there is no record, or none in it.

    Args:
        axes: keys such as "synthesis.rho" that become columns of their own, instead of a part of the variant;
            "task" gives one row per run and task, from 1.
    """
    epochs = {}
    for setting, _, _ in runs:
        epochs.setdefault((setting["preset"], setting["network"]), []).append(setting["teacher"]["epochs"])
    rows = []
    for setting, _, record in runs:
        row = {key: setting[key] for key in ("ipc", "network", "student", "method", "seed")}
        row["switches"] = switches(setting)
        row["data set"] = dataset_label(setting)
        usual_epochs = statistics.mode(epochs[setting["preset"], setting["network"]])
        row["variant"] = variant(setting, usual_epochs, axes)
        row["variant of real"] = variant(setting, usual_epochs, axes, of_real_images=True)
        for axis in axes:
            if axis != "task":
                stage, key = axis.split(".")
                row[axis] = setting[stage][key]
        if "task" not in axes:
            rows.append(row | measured(record))
            continue
        for task in range(setting["tasks"]):
            rows.append(row | {"task": task + 1} | measured(record and students(record)[task]))
    columns = [*CELL, "variant of real", *axes, "switches", "seed", "accuracy", "teacher", *DIVERSITY.values()]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[-2 - len(DIVERSITY) :], float))


def measured(record: dict | None) -> dict:
    """What the columns of `accuracies` take from a record, or from one task of it."""
    if record is None:
        return {}
    teachers = [student["teacher"]["accuracy"]["top1"] for student in students(record)]
    diversity = record.get("diversity", {})
    return {
        "accuracy": record["accuracy"]["reported"],
        "teacher": statistics.mean(teachers),
        **{name: diversity.get(key) for key, name in DIVERSITY.items()},
    }


def notes(runs: list[Run]) -> list[str]:
    """What a reader must know beside the numbers: data that lack images, and what differs from the presets."""
    lines = set()
    for setting, _, record in runs:
        if record is None:
            continue
        used = record["data"]["training_images"], record["data"]["test_images"]
        full = IMAGES_IN_FULL.get(setting["dataset"], used)
        text = f"{setting['dataset']}: trained on {used[0]:,} and tested on {used[1]:,} images"
        if setting["validation"] > 0:
            text += " that are all of the training part; its test part was not used"
        elif used != full:
            missing = sum(full) - sum(used)
            text += f"; this copy of the data lacks {missing:,} images of the official {full[0]:,} and {full[1]:,}"
        lines.add(text + ".")
        if setting["preset"] in presets.DEMO_SIZES and setting["preset"] != setting["dataset"]:
            lines.add(
                f"{dataset_label(setting)}: cut to seconds, to run this recipe's code; its accuracy says nothing."
            )
        reported = record["accuracy"]["reported"]
        if guard.at_chance(reported, record["data"]["classes"], used[1]):
            name = f"{setting['name']}, seed {setting['seed']}"
            lines.add(f"{name}: {reported:.1f} % is no better than chance among {record['data']['classes']} classes.")
        for key, (new, old) in differences(setting).items():
            if told_in_notes(key):
                lines.add(f"{dataset_label(setting)}, {setting['network']}: {key} is {new}; the preset has {old}.")
    return sorted(lines)
