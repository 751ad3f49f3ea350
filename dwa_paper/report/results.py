"""What tables and figures have in common: labels, the paper's numbers, accuracies cell by cell, notes.

Nothing here computes a result: all comes from the records of a product's runs, and from published/.
"""

import re
import statistics
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from dwa_core.errors import InputError
from dwa_core.recipe import SynthesisStage
from dwa_paper.report.product import Run
from dwa_paper.runs.records import is_at_chance, list_named_artifacts, list_students
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
RECIPES = {"defaults": "defaults", "authors": "authors' code", "best": "best setting on validation images"}
# Whose recipe a teacher is trained by.
TEACHERS = {"authors": "the authors'", "sre2l": "SRe2L's", "torchvision": "torchvision's", "gvbsm": "G-VBSM's"}
# What changes nothing in images that are real ones: all of the synthesis except the seed and the storage.
UNREAD_OF_REAL = {f"synthesis.{key}" for key in SynthesisStage.model_fields} - {"synthesis.seed", "synthesis.storage"}
# What `identify` finds of a record.
ORIGINS = ["recipe of teacher", "numbers of teacher", "data", "teachers", "sets"]
# What tells one cell of a table from another.
CELL = ["data set", "ipc", "network", "student", "method", "variant"]


def reported_numbers() -> pd.DataFrame:
    """The paper's numbers, with data sets, networks and methods named as in our settings; accuracy in percent."""
    frame = pd.read_csv(PUBLISHED)
    frame["network"] = frame["network"].str.lower().str.replace("resnet-", "resnet")
    ours = {shown.lower(): name for name, shown in METHODS.items()}
    frame["method"] = [ours.get(method.lower(), method) for method in frame["method"]]
    return frame.rename(columns={"dataset": "data set", "network": "student"}).assign(variant="")


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


def read_numbers(setting: dict) -> dict:
    """The numbers of a setting's recipe: "stage.key" -> value."""
    stages = ("images", "teacher", "synthesis", "relabel")
    return {f"{stage}.{key}": value for stage in stages for key, value in setting[stage].items()}


def differences(setting: dict) -> dict[str, tuple]:
    """What a record's setting changes in its preset and its teacher's recipe: "stage.key" -> (its value, theirs).

    How often a network is tested counts only where the best of the tests is reported.
    """
    keys = ("profile", "name", "preset", "dataset", "method", "distilled", "ipc", "network", "authors", "best")
    given = {key: setting.get(key) for key in keys} | {"teacher": {"recipe": setting["teacher"]["recipe"]}}
    base = read_numbers(schema.resolve(given).model_dump())
    counts_not = {"teacher.test_every"}
    if setting["relabel"]["reported"] != "best":
        counts_not.add("relabel.test_every")
    numbers = read_numbers(setting).items()
    return {key: (value, base[key]) for key, value in numbers if value != base[key] and key not in counts_not}


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


def variant(setting: dict, left_out: Collection[str] = ()) -> str:
    """What sets a run apart from its method's own row, except its teacher and the keys `left_out`."""
    changed = [Path(setting["distilled"]).name] if setting.get("distilled") else []
    for key, (new, _) in differences(setting).items():
        changed += [f"{key} {new}"] if key not in left_out and not belongs_in_notes(key) else []
    if setting["tasks"] > 1 and "task" not in left_out:
        changed.append(f"{setting['tasks']} tasks")
    if setting["precision"] != "auto":
        changed.append(setting["precision"])
    return ", ".join(changed)


def identify(record: dict) -> dict[str, str]:
    """What a record was made from, the clearest first: numbers of the teacher's training, then data and artifacts."""
    setting, hashes = record["setting"], [name.rpartition("-")[2] for name in list_named_artifacts(record)]
    changed = {key: new for key, (new, _) in differences(setting).items() if key.startswith("teacher.")}
    return {
        "recipe of teacher": teacher_variant(setting),
        "numbers of teacher": ", ".join(f"{key} {new}" for key, new in changed.items() if key != "teacher.epochs"),
        "data": f"data {record['data']['fingerprint'][:10]}",
        "teachers": f"teacher {'+'.join(hashes[::2])}",
        "sets": f"set {'+'.join(hashes[1::2])}",
    }


def name_differences(frame: pd.DataFrame, cell: list[str], comma: str) -> pd.Series:
    """What sets each row apart from others of its `cell` by the first difference in what `identify` returns.

    Returns: texts that begin with `comma`; empty where all rows of a cell are of one teacher and one distilled set.
    """
    texts = pd.Series("", frame.index, dtype=object)
    for source in ORIGINS:
        known = frame[source].astype(object)
        several = known.groupby([*(frame[name].astype(str) for name in cell), texts]).transform("nunique") > 1
        texts += (comma + known).where(several & known.fillna("").astype(bool), "")
    return texts


def accuracies(runs: list[Run], axes: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per run: its cell, `recipe`, seed, and from its record accuracies, the set's diversity, its file's name.

    Runs of one cell and recipe are students of one teacher and one distilled set: the variant names what differs.
    What all teachers of a profile have in common, such as fewer epochs than the preset, is left to the notes. The
    accuracy reported and the teacher's (the mean of the teachers of all tasks) are in percent; NaN where there is no
    record, or none in it.

    Args:
        axes: keys such as "synthesis.rho" that become columns of their own, instead of a part of the variant;
            "task" gives one row per run and task, from 1.

    Raises:
        InputError: two records are of the same student.
    """
    epochs, rows = {}, []
    for setting, _, _ in runs:
        if not teacher_recipe(setting):
            epochs.setdefault((setting["preset"], setting["network"]), []).append(setting["teacher"]["epochs"])
    for setting, command, record in runs:
        row = {key: setting[key] for key in ("ipc", "network", "student", "method", "seed", "name")}
        row |= {"data set": dataset_label(setting), "recipe": recipe(setting), "path": command.removeprefix("make ")}
        row["record"] = Path(row["path"]).name if record else ""
        row |= read_numbers(setting) | (identify(record) if record else {})
        usual = statistics.mode(epochs.get((setting["preset"], setting["network"]), [None]))
        row["variant"] = ", ".join(filter(None, [teacher_variant(setting, usual), variant(setting, axes)]))
        parts = list_students(record) if record else [None] * setting["tasks"]
        for task, part in enumerate(parts if "task" in axes else [record], 1):
            rows.append(row | {"task": task} | (measurements(part) if part else {}))
    cell, numbers = [*CELL, *axes, "recipe"], ["accuracy", "teacher", *DIVERSITY.values()]
    columns = [*cell, "seed", *numbers, "record", "name", "path", *ORIGINS]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))
    # A run without a record is of the distilled set that other runs of its setting have.
    frame[ORIGINS] = frame[ORIGINS].fillna(frame.groupby("name")[ORIGINS].transform("first"))
    frame["variant"] = (frame["variant"] + name_differences(frame, cell, ", ")).str.removeprefix(", ")
    done = frame[frame["accuracy"].notna()]
    by_student = done.groupby([done[name].astype(str) for name in [*cell, "seed"]])["path"]
    if repeated := [" and ".join(paths) for _, paths in by_student if len(paths) > 1]:
        raise InputError(
            f"{repeated[0]} are of one student, the same seed on the same distilled set; "
            "take one of the two settings out by its shown_in"
        )
    return frame.drop(columns=["name", "path", *ORIGINS])


def join_records(names: pd.Series) -> str:
    """The "record" of several rows of `accuracies` as one text, each once."""
    return " ".join(dict.fromkeys(filter(None, names)))


def measurements(part: dict) -> dict:
    """What the columns of `accuracies` take from a record, or from one task of it."""
    teachers = [student["teacher"]["accuracy"]["top1"] for student in list_students(part)]
    diversity = {name: (part.get("diversity") or {}).get(key) for key, name in DIVERSITY.items()}
    return {"accuracy": part["accuracy"]["reported"], "teacher": statistics.mean(teachers), **diversity}


def notes(runs: list[Run]) -> list[str]:
    """What a reader must know beside the numbers: data that lack images, and what differs from the presets."""
    lines = set()
    for setting, _, record in runs:
        if record is None:
            continue
        label, official = dataset_label(setting), DATASETS.get(setting["dataset"])
        train, test, classes = (record["data"][key] for key in ("training_images", "test_images", "classes"))
        text = f"{setting['dataset']}: trained on {train:,} and tested on {test:,} images"
        if setting["validation"] > 0:
            text += " that are all of the training part; its test part was not used"
        elif official and (missing := official.training_images + official.test_images - train - test):
            full = f"{official.training_images:,} and {official.test_images:,}"
            text += f"; this copy of the data lacks {missing:,} images of the official {full}"
        lines.add(f"{text}.")
        if setting["preset"].startswith("digits-"):
            lines.add(f"{label}: cut to seconds, to run this recipe's code; its accuracy says nothing.")
        accuracy = record["accuracy"]["reported"]
        if is_at_chance(accuracy, classes, test):
            name = f"{setting['name']}, seed {setting['seed']}"
            lines.add(f"{name}: {accuracy:.1f} % is no better than chance among {classes} classes.")
        whose = f"{TEACHERS[setting['teacher']['recipe']]} teacher"
        if numbers := teacher_recipe(setting):
            listed = ", ".join(f"{key} {value}" for key, value in numbers.items())
            lines.add(f"{label}, {setting['network']}: {whose} is trained with {listed}.")
        for key, (new, old) in differences(setting).items():
            if belongs_in_notes(key):
                source = whose if numbers and key.startswith("teacher.") else "the preset"
                lines.add(f"{label}, {setting['network']}: {key} is {new}; {source} has {old}.")
    return sorted(lines)


def format_number(value: float, form: str) -> str:
    """`value` in that format, empty where there is none."""
    return "" if pd.isna(value) else format(value, form)
