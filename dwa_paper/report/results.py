"""What tables and figures have in common: labels, the paper's numbers, accuracies cell by cell, notes.

Nothing here computes a result: all comes from the records of a product's runs, and from published/.
"""

import re
import statistics
from pathlib import Path

import pandas as pd

from dwa_paper.report.product import Run
from dwa_paper.runs.records import students
from dwa_paper.settings import presets, schema
from dwa_paper.settings.datasets import DATASETS

PUBLISHED = Path(__file__).parent / "published" / "published_results.csv"
METHODS = {
    "random-real": "random real",
    "herded-real": "herded real",
    "sre2l": "SRe2L",
    "dwa": "DWA",
    "external": "external",
}
# Of the distilled set of a record: spread within class relative to real images, and how much of them is covered.
DIVERSITY = {"feature_distance": "feature distance", "coverage": "coverage"}
# Where our defaults, the authors' code and the best that was found on validation images differ, a run follows one.
RECIPES = {"defaults": "defaults", "authors": "authors' code", "best": "best on validation"}
# Whose recipe a teacher is trained by.
TEACHERS = {"authors": "the authors'", "sre2l": "SRe2L's", "torchvision": "torchvision's", "gvbsm": "G-VBSM's"}
# What tells one cell of a table from another.
CELL = ["data set", "ipc", "network", "student", "method", "variant"]


def reported_numbers() -> pd.DataFrame:
    """The paper's numbers, with data sets, networks and methods named as in our settings; accuracy in percent."""
    frame = pd.read_csv(PUBLISHED)
    frame["network"] = frame["network"].str.lower().str.replace("resnet-", "resnet")
    ours = {shown.lower(): name for name, shown in METHODS.items()}
    frame["method"] = [ours.get(method.lower(), method) for method in frame["method"]]
    return frame.rename(columns={"dataset": "data set", "network": "student"})


# --------------------------------------------------------------------------------------------------- labels


def dataset_label(setting: dict) -> str:
    """The data set, and the recipe where it is another's."""
    dataset, preset = setting["dataset"], setting["preset"]
    return dataset if dataset == preset else f"{dataset} ({preset.removeprefix(dataset + '-')})"


def natural_key(name: str) -> tuple:
    """A key that sorts resnet18 before resnet101, and data sets in the order of the presets."""
    place = list(presets.PRESETS).index(name) if name in presets.PRESETS else len(presets.PRESETS)
    return place, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def recipe(setting: dict) -> str:
    """The key of RECIPES that a setting follows."""
    return "authors" if setting["authors"] else "best" if setting["best"] else "defaults"


def differences(setting: dict) -> dict[str, tuple]:
    """What a record's setting changes in its preset and its teacher's recipe: "stage.key" -> (its value, theirs).

    How often a network is tested counts only where the best of the tests is reported.
    """
    keys = ("profile", "name", "preset", "dataset", "method", "distilled", "ipc", "network", "authors", "best")
    given = {key: setting.get(key) for key in keys} | {"teacher": {"recipe": setting["teacher"]["recipe"]}}
    base = schema.resolve(given).model_dump()
    return {
        f"{stage}.{key}": (value, base[stage][key])
        for stage in ("images", "teacher", "synthesis", "relabel")
        for key, value in setting[stage].items()
        if value != base[stage][key]
        and (key != "test_every" or (stage == "relabel" and setting["relabel"]["reported"] == "best"))
    }


def belongs_in_notes(key: str) -> bool:
    """Whether the notes of a table list a difference of this key; the others are part of the variant."""
    return key == "relabel.test_every" or (
        key.startswith(("teacher.", "images.")) and key != "images.std_after_teacher"  # a part of the authors' code
    )


def teacher_recipe(setting: dict) -> dict:
    """The numbers of the teacher's recipe, where it is not the preset's own; else none."""
    return presets.PRESETS[setting["preset"]]["teacher_recipes"].get(setting["teacher"]["recipe"], {})


def teacher_variant(setting: dict, usual_epochs: int | None = None) -> str:
    """What sets a run's teacher apart: its recipe, where it is not the preset's own, and unusual epochs."""
    numbers, epochs = teacher_recipe(setting), setting["teacher"]["epochs"]
    text = f"{TEACHERS[setting['teacher']['recipe']]} teacher" if numbers else "teacher"
    if epochs != numbers.get("epochs", usual_epochs):
        return f"{text} of {epochs} epochs"
    return text if numbers else ""


def variant(setting: dict, axes: tuple[str, ...] = (), of_real_images: bool = False) -> str:
    """What sets a run apart from its method's own row, except its teacher.

    Args:
        axes: keys that have a place of their own and so are left out.
        of_real_images: leaves out what changes nothing where the images are random real ones, all of the synthesis
            except its seed and storage.
    """
    changed = [Path(setting["distilled"]).name] if setting.get("distilled") else []
    left_out = set(axes)
    if of_real_images:
        left_out |= {f"synthesis.{key}" for key in setting["synthesis"] if key not in ("seed", "storage")}
    stages = differences(setting).items()
    changed += [f"{key} {new}" for key, (new, _) in stages if not belongs_in_notes(key) and key not in left_out]
    if setting["tasks"] > 1 and "task" not in axes:
        changed.append(f"{setting['tasks']} tasks")
    if setting["precision"] != "auto":
        changed.append(setting["precision"])
    return ", ".join(changed)


def accuracies(runs: list[Run], axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per run: its cell, `recipe`, seed, and from its record accuracies and the set's diversity.

    `variant of real` is that of the random real images that a run compares with. The accuracy reported and the
    teacher's (the mean of the teachers of all tasks) are in percent; NaN where there is no record, or none in it.
    What all teachers of a profile have in common, such as fewer epochs than the preset, is left to the notes.

    Args:
        axes: keys such as "synthesis.rho" that become columns of their own, instead of a part of the variant;
            "task" gives one row per run and task, from 1.
    """
    epochs = {}
    for setting, _, _ in runs:
        if not teacher_recipe(setting):
            epochs.setdefault((setting["preset"], setting["network"]), []).append(setting["teacher"]["epochs"])
    usual = {key: statistics.mode(values) for key, values in epochs.items()}
    rows = []
    for setting, _, record in runs:
        row = {key: setting[key] for key in ("ipc", "network", "student", "method", "seed")}
        row |= {"recipe": recipe(setting), "data set": dataset_label(setting)}
        teacher = teacher_variant(setting, usual.get((setting["preset"], setting["network"])))
        for name, of_real_images in {"variant": False, "variant of real": True}.items():
            row[name] = ", ".join(filter(None, [teacher, variant(setting, axes, of_real_images)]))
        for stage, key in (axis.split(".") for axis in axes if axis != "task"):
            row[f"{stage}.{key}"] = setting[stage][key]
        if "task" not in axes:
            rows.append(row | measurements(record))
            continue
        for task in range(setting["tasks"]):
            rows.append(row | {"task": task + 1} | measurements(record and students(record)[task]))
    numbers = ["accuracy", "teacher", *DIVERSITY.values()]
    columns = [*CELL, "variant of real", *axes, "recipe", "seed", *numbers]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def measurements(record: dict | None) -> dict:
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
        text = f"{setting['dataset']}: trained on {used[0]:,} and tested on {used[1]:,} images"
        data = DATASETS.get(setting["dataset"])
        if setting["validation"] > 0:
            text += " that are all of the training part; its test part was not used"
        elif data and (missing := data.training_images + data.test_images - sum(used)):
            full = f"{data.training_images:,} and {data.test_images:,}"
            text += f"; this copy of the data lacks {missing:,} images of the official {full}"
        lines.add(text + ".")
        if setting["preset"].startswith("digits-"):
            lines.add(
                f"{dataset_label(setting)}: cut to seconds, to run this recipe's code; its accuracy says nothing."
            )
        accuracy, classes = record["accuracy"]["reported"], record["data"]["classes"]
        if is_at_chance(accuracy, classes, used[1]):
            name = f"{setting['name']}, seed {setting['seed']}"
            lines.add(f"{name}: {accuracy:.1f} % is no better than chance among {classes} classes.")
        place = f"{dataset_label(setting)}, {setting['network']}"
        whose = f"{TEACHERS[setting['teacher']['recipe']]} teacher"
        if numbers := teacher_recipe(setting):
            listed = ", ".join(f"{key} {value}" for key, value in numbers.items())
            lines.add(f"{place}: {whose} is trained with {listed}.")
        for key, (new, old) in differences(setting).items():
            if belongs_in_notes(key):
                source = whose if numbers and key.startswith("teacher.") else "the preset"
                lines.add(f"{place}: {key} is {new}; {source} has {old}.")
    return sorted(lines)


def is_at_chance(accuracy: float, classes: int, tests: int) -> bool:
    """Whether an accuracy in percent is within three standard deviations of guessing among `classes`, or below."""
    chance = 1 / classes
    return accuracy <= 100 * (chance + 3 * (chance * (1 - chance) / tests) ** 0.5)


def format_number(value: float, form: str) -> str:
    """`value` in that format, empty where there is none."""
    return "" if pd.isna(value) else format(value, form)
