"""Tables 6 to 8: the hyper-parameters that the runs of a profile used."""

from collections import Counter

import pandas as pd

from dwa_paper.report import results
from dwa_paper.report.product import Run
from dwa_paper.report.results import METHODS, RECIPES
from dwa_paper.settings.schema import SYNTHESISED


def hyperparameters(runs: list[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the runs with records used, or all runs where there is no record yet, with a column for each data set.

    Returns: the numbers of one kind of run, DWA under our defaults where there is one; and those of every other method,
        recipe and teacher's recipe where they are others. Of several values, the most frequent comes first.
    """
    settings = [run.setting for run in runs if run.record] or [run.setting for run in runs]
    rows = []
    for (*_, kind), setting in sorted(((classify_run(each), each) for each in settings), key=lambda pair: pair[0]):
        numbers = {"runs": kind} | select_numbers(setting)
        rows += [(kind, results.dataset_label(setting), *number) for number in numbers.items()]
    used = pd.DataFrame(rows, columns=["runs", "data set", "value", "text"])
    cells = used.groupby(["runs", "value", "data set"], sort=False)["text"]
    cells = cells.agg(lambda texts: " or ".join(text for text, _ in Counter(texts).most_common() if text))
    cells = cells.unstack(sort=False)[sorted(used["data set"].unique(), key=results.natural_key)]
    first = cells.groupby("value", sort=False).first()
    others = cells.drop("runs", level="value").fillna("")
    of_first = first.loc[others.index.get_level_values("value")]
    differ = [any(map(is_other, *pair)) for pair in zip(others.to_numpy(), of_first.to_numpy(), strict=True)]
    return first[~first.isin(["", "none"]).all(axis=1)].reset_index(), others[differ].reset_index()


def is_other(text: str, usual: str) -> bool:
    """Whether a cell of `hyperparameters` has another first value than `usual`, or one that is not there."""
    own, known = text.split(" or "), usual.split(" or ")
    return text != "" and (own[0] != known[0] or not {*own} <= {*known})


def classify_run(setting: dict) -> tuple:
    """A key that sorts DWA under our defaults first; its last entry names method, recipe and the teacher's recipe."""
    method, recipe, numbers = setting["method"], results.recipe(setting), results.teacher_recipe(setting)
    texts = [METHODS[method], RECIPES[recipe] if recipe != "defaults" else ""]
    texts += [f"{results.TEACHERS[setting['teacher']['recipe']]} teacher"] if numbers else []
    return ["dwa", *METHODS].index(method), list(RECIPES).index(recipe), bool(numbers), ", ".join(filter(None, texts))


def select_numbers(setting: dict) -> dict[str, str]:
    """The numbers of a setting, "stage.key" -> text; empty where one has no part in the run, or is a seed."""
    numbers = {"network": setting["network"], "stem": setting["stem"]} | results.read_numbers(setting)
    unused = {key for key in numbers if key.endswith((".seed", ".test_every"))}
    for stage in ("teacher", "relabel"):
        unused |= {f"{stage}.momentum"} if numbers[f"{stage}.optimizer"] != "sgd" else set()
        unused |= {f"{stage}.crop_padding"} if numbers[f"{stage}.crop"] != "padded" else set()
    if numbers["teacher.weights"] is None:
        unused.add("teacher.fine_tune")
    elif not numbers["teacher.fine_tune"]:
        unused |= {key for key in numbers if key.startswith("teacher.")} - {"teacher.weights"}
    if setting["method"] not in SYNTHESISED:
        unused |= results.UNREAD_OF_REAL
    return {key: "" if key in unused else value_text(value) for key, value in numbers.items()}


def value_text(value) -> str:
    """One value of a setting as a table shows it."""
    if isinstance(value, list):
        return ", ".join(value_text(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
