"""Tables from made-up records, whose means, deviations, differences and marks are worked out by hand."""

import math

import pandas as pd
import pytest

from dwa_paper.report import page, tables
from dwa_paper.report.hyperparameters import hyperparameters
from dwa_paper.report.product import collect_runs


def row_of(frame: pd.DataFrame, **cell) -> pd.Series:
    """The one row of `frame` with these values; underscores stand for spaces."""
    for name, value in cell.items():
        frame = frame[frame[name.replace("_", " ")] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def test_difference_is_marked_only_outside_one_point_and_twice_the_larger_deviation(add):
    # The paper: SRe2L 27.2 ± 0.4 and DWA 32.6 ± 0.4 at ipc 10, SRe2L 47.5 ± 0.5 and DWA 53.1 ± 0.3 at ipc 50.
    add("dwa10", 30.0, 31.0, 32.0, authors=True)  # 31 ± 1: 1.6 below, within 2
    add("sre2l10", 24.0, 24.2, 24.4, authors=True, method="sre2l")  # 24.2 ± 0.2: 3.0 below, outside 1
    add("sre2l50", 48.5, 48.5, 48.5, authors=True, method="sre2l", ipc=50)  # 1.0 above, not more than 1
    add("dwa50", 54.2, authors=True, ipc=50)  # one seed: 1.1 above, outside 1
    frame = tables.accuracy_table(collect_runs("trial", "table-1"), table=1)
    found = {
        (row["method"], row["ipc"]): (round(row["authors mean"], 6), row["difference"], row["outside"])
        for _, row in frame[frame["network"].notna()].iterrows()
    }
    assert found == {
        ("dwa", 10): (31.0, -1.6, False),
        ("sre2l", 10): (24.2, -3.0, True),
        ("sre2l", 50): (48.5, 1.0, False),
        ("dwa", 50): (54.2, 1.1, True),
    }
    assert row_of(frame, method="dwa", ipc=10, student="resnet18")["authors std"] == pytest.approx(1.0)
    shown = tables.to_long(frame)
    texts = row_of(shown, method="SRe2L", ipc=10)
    assert texts["paper"] == "27.2 ± 0.4"
    assert texts["ours, authors' code"] == "24.2 ± 0.2"
    assert texts["difference"] == "-3.0 †"
    assert row_of(shown, method="DWA", ipc=50, student="resnet18")["ours, authors' code"] == "54.2 (1 seed)"
    assert "ours, defaults" not in shown


def test_cells_not_run_are_empty_and_quoted_methods_are_said_to_be(add):
    add("dwa10", authors=True)
    shown = tables.to_long(tables.accuracy_table(collect_runs("trial", "table-1"), table=1))
    ours = row_of(shown, method="DWA", student="resnet18")
    assert (ours["paper"], ours["ours, authors' code"], ours["difference"]) == ("32.6 ± 0.4", "", "")
    assert row_of(shown, method="MTT (quoted)")["paper"] == "65.4 ± 0.7"
    assert list(shown["ipc"].unique()) == [10], "the paper's numbers for another ipc do not belong here"


def test_paper_is_compared_with_the_authors_code_and_with_plain_runs_alone(add):
    add("defaults", 33.0, 33.0, 33.0)
    add("changed", 34.0, 34.0, 34.0, authors=True, relabel={"batch_size": 50})
    frame = tables.accuracy_table(collect_runs("trial", "table-1"), table=1)
    ours = frame[frame["method"] == "dwa"].set_index(["student", "variant"])
    assert ours.loc[("resnet18", ""), "defaults mean"] == 33.0
    assert ours.loc[("resnet18", ""), "paper mean"] == 32.6
    assert ours["difference"].isna().all()
    assert math.isnan(ours.loc[("resnet18", "relabel.batch_size 50"), "paper mean"])


def test_numbers_of_another_table_do_not_join(add):
    add("dwa10", 31.0, authors=True)
    shown = tables.to_long(tables.accuracy_table(collect_runs("trial", "table-1")))
    assert "paper" not in shown
    assert "difference" not in shown


def test_table_without_the_papers_numbers_says_so_and_one_with_them_has_a_legend(add):
    add("dwa10", 31.0, authors=True)
    runs = collect_runs("trial", "table-1")
    for table, note in ((None, tables.NOT_REPORTED), (1, tables.LEGEND)):
        frame = tables.accuracy_table(runs, table)
        *_, notes = tables.accuracy_blocks(runs, frame, tables.to_long(frame))
        assert notes.startswith(f"- {note}\n- cifar10: trained on 50,000")


def test_arms_become_columns_in_their_order_and_recipes_rows(add):
    for arm, accuracy in (("directed", 43.0), ("none", 41.0), ("random", 42.0)):
        add(arm, accuracy, seeds=[0], synthesis={"adjustment": arm})
    add("authors", 44.0, seeds=[0], authors=True)
    frame = tables.accuracy_table(collect_runs("trial", "table-1"), axes=("synthesis.adjustment",))
    shown = tables.to_wide(frame, ["data set", "network", "student"], ["method"])
    assert list(shown.columns) == [
        *("data set", "teacher", "student", "recipe"),
        *("no adjustment", "random direction", "directed (DWA)"),
    ]
    assert shown.to_numpy().tolist() == [
        ["cifar10", "resnet18 95.0", "resnet18", "defaults", "41.0 (1 seed)", "42.0 (1 seed)", "43.0 (1 seed)"],
        ["cifar10", "resnet18 95.0", "resnet18", "authors' code", "", "", "44.0 (1 seed)"],
    ]


def test_wide_table_shows_the_paper_in_brackets_where_it_has_a_number(add):
    add("dwa10", 31.4, 31.6, 31.8, authors=True)
    frame = tables.accuracy_table(collect_runs("trial", "table-1"), table=1)
    shown = tables.to_wide(frame, ["student"], ["ipc", "method"])
    assert shown.to_numpy().tolist() == [["resnet18", "31.6 ± 0.2 (paper 32.6 ± 0.4, -1.0)"]]


def test_rows_of_students_are_sorted_by_number_and_table_says_what_made_the_set(add):
    for student in ("resnet101", "resnet18", "resnet34"):
        add(student, 40.0, student=student)
    frame = tables.accuracy_table(collect_runs("trial", "table-1"))
    assert list(frame["student"]) == ["resnet18", "resnet34", "resnet101"]
    assert list(tables.to_long(frame)["teacher"]) == ["resnet18 95.0"] * 3


def test_accuracy_after_each_task_has_a_column_for_each(add):
    def tasks(*accuracies):
        teacher = {"artifact": "t", "files": {}, "accuracy": {"top1": 90.0, "top5": 99.0}}
        part = {"teacher": teacher, "distilled": {"artifact": "d", "files": {}}, "curve": []}
        part |= {"seconds": {"teacher": 1.0, "synthesis": 2.0, "student": 3.0}}
        return {
            "tasks": [
                {**part, "classes_seen": 2 * place, "accuracy": dict.fromkeys(("last", "best", "reported"), accuracy)}
                for place, accuracy in enumerate(accuracies, 1)
            ]
        }

    add("dwa", 50.0, tasks=5, shown_in=["table-10"], record=tasks(90.0, 80.0, 70.0, 60.0, 50.0), seeds=[0])
    add("sre2l", method="sre2l", tasks=5, shown_in=["table-10"], seeds=[0])
    runs = collect_runs("trial", "table-10")
    frame = tables.accuracy_table(runs, axes=("task",))
    shown = tables.to_wide(frame, ["method"], ["task"])
    assert list(shown.columns) == ["method", *(f"task {number}" for number in range(1, 6))]
    assert shown.to_numpy().tolist() == [
        ["SRe2L", "", "", "", "", ""],
        ["DWA", *(f"{accuracy}.0 (1 seed)" for accuracy in (90, 80, 70, 60, 50))],
    ]
    durations = page.durations(runs)
    assert dict(zip(durations["stage"], durations["runs"], strict=True)) == {"teacher": 1, "synthesis": 1, "student": 5}


def test_spread_over_students_and_over_sets(add):
    # Deviations over students 1, 2 and 0: the root of (1 + 4 + 0) / 3. Means 31, 34 and 34: deviation sqrt(3).
    add("seed0", 30.0, 31.0, 32.0)
    add("seed1", 32.0, 34.0, 36.0, synthesis={"seed": 1})
    add("seed2", 34.0, 34.0, 34.0, synthesis={"seed": 2})
    frame = tables.accuracy_table(collect_runs("trial", "table-1"), axes=("synthesis.seed",))
    (row,) = tables.seed_spread(frame).to_dict("records")
    assert row["synthesis seed 1"] == "34.0 ± 2.0"
    assert row["standard deviation over students"] == f"{math.sqrt(5 / 3):.2f}"
    assert row["over sets"] == f"{math.sqrt(3):.2f}"


def test_diversity_is_beside_the_accuracy_once_for_each_set(add):
    measured = {"diversity": {"feature_distance": 0.834, "feature_distance_by_class": [0.8] * 10, "coverage": 0.216}}
    add("own", 40.0, record=measured, seeds=[0])
    add("other", 41.0, record=measured, seeds=[0], student="resnet34")
    add("older", 42.0, seeds=[0], method="sre2l")
    measured["diversity"]["coverage"] = 0.5
    add("authors", 43.0, record=measured, seeds=[0], authors=True)
    sets = tables.diversity(tables.accuracy_table(collect_runs("trial", "table-1"), table=1))
    assert sets.drop(columns=["data set", "ipc", "method"]).to_numpy().tolist() == [
        ["resnet18", "defaults", "0.83", "0.22", "40.0 (1 seed)", "resnet18"],
        ["resnet18", "authors' code", "0.83", "0.50", "43.0 (1 seed)", "resnet18"],
    ]


def test_what_moves_the_number_compares_each_change_with_the_unchanged_recipe(add):
    shown_in = ("what-moves-the-number",)
    add("dwa", 30.0, 31.0, 32.0, shown_in=shown_in)  # 31 ± 1
    add("real", 40.0, 40.2, 40.4, method="random-real", shown_in=shown_in)  # 40.2 ± 0.2
    add("dwa-jpeg", 32.0, 32.5, 33.0, synthesis={"storage": "jpeg"}, shown_in=shown_in)  # 1.5 more, within 2
    add("dwa-authors", 28.0, 28.1, 28.2, authors=True, shown_in=shown_in)  # 2.9 less
    add("dwa-std", images={"std_after_teacher": [0.2, 0.2, 0.2]}, shown_in=shown_in)  # not run
    add("dwa-short", 41.0, 41.0, 41.0, teacher={"epochs": 50}, shown_in=shown_in)  # 10 more
    add("real-short", 42.0, 42.2, 42.4, method="random-real", teacher={"epochs": 50}, shown_in=shown_in)  # 2 more
    add("real-best", 41.0, 41.1, 41.2, method="random-real", relabel={"reported": "best"}, shown_in=shown_in)  # 0.9
    runs = collect_runs("trial", "what-moves-the-number")
    frame = tables.moves(runs)
    assert frame["change"].tolist() == [
        "",
        "teacher of 50 epochs",
        "synthesis.storage jpeg",
        "authors' code",
        "relabel.reported best",
        "images.std_after_teacher [0.2, 0.2, 0.2]",
    ]
    assert frame["dwa effect"].tolist()[1:4] == pytest.approx([10.0, 1.5, -2.9])
    assert frame["synthesis gain"].tolist()[:2] == pytest.approx([-9.2, -1.2])
    assert frame["synthesis gain"].isna().tolist()[2:] == [True] * 4, "real images stored as JPEG are others"
    texts, _ = tables.moves_blocks(runs, frame)
    assert texts["DWA, change"].tolist() == ["", "+10.0", "(+1.5)", "-2.9", "", ""]
    # 0.9 is no effect, however small the spread.
    assert texts["random real, change"].tolist() == ["", "+2.0", "", "", "(+0.9)", ""]
    assert texts["DWA minus random real"].tolist() == ["-9.2", "-1.2", "", "", "", ""]
    assert "SRe2L" not in texts


def test_a_change_of_the_synthesis_alone_is_compared_with_real_images_under_the_rest_of_it(add):
    shown_in = ("what-moves-the-number",)
    short, small = {"iterations": 100}, {"batch_size": 10}
    add("dwa", 30.0, shown_in=shown_in, seeds=[0])
    add("real", 40.0, method="random-real", shown_in=shown_in, seeds=[0])
    add("real-small", 50.0, method="random-real", relabel=small, shown_in=shown_in, seeds=[0])
    add("dwa-short", 33.0, synthesis=short, shown_in=shown_in, seeds=[0])
    add("dwa-short-small", 48.0, synthesis=short, relabel=small, shown_in=shown_in, seeds=[0])
    frame = tables.moves(collect_runs("trial", "what-moves-the-number")).set_index("change")
    gains = frame["synthesis gain"].dropna().to_dict()
    assert gains == {
        "": -10.0,
        "synthesis.iterations 100, relabel.batch_size 10": -2.0,
        "synthesis.iterations 100": -7.0,
    }


def test_what_moves_the_number_without_a_run_of_random_images(add):
    add("dwa", 30.0, 31.0, 32.0, shown_in=("what-moves-the-number",))
    runs = collect_runs("trial")
    table, _ = tables.moves_blocks(runs, tables.moves(runs))
    (row,) = table.to_dict("records")
    assert row["DWA"] == "31.0 ± 1.0"
    assert "random real" not in row


def test_hyperparameters_are_those_of_the_recorded_runs(add):
    add("dwa", 40.0, 41.0, network="convnet-128", teacher={"epochs": 30})
    add("dwa-short", 42.0, network="convnet-128", teacher={"epochs": 5})
    add("dwa-planned", network="convnet-128", teacher={"epochs": 3})
    add("sre2l", 30.0, network="convnet-128", teacher={"epochs": 30}, method="sre2l")
    add("real", 45.0, network="convnet-128", teacher={"epochs": 30}, method="random-real", relabel={"batch_size": 50})
    add("imagenet", 20.0, preset="imagenet-1k", authors=True)
    table, others = hyperparameters(collect_runs("trial"))
    assert list(table.columns) == ["value", "cifar10", "imagenet-1k"]
    table = table.set_index("value")
    assert table.loc["runs"].tolist() == ["DWA", "DWA, authors' code"]
    assert table.loc["network"].tolist() == ["convnet-128", "resnet18"]
    assert table.loc["teacher.epochs"].tolist() == ["30 or 5", ""], "a published teacher is not trained"
    assert table.loc["teacher.weights"].tolist() == ["none", "IMAGENET1K_V1"]
    assert table.loc["synthesis.steps"].tolist() == ["12", "15"]
    assert others.to_numpy().tolist() == [
        ["random real", "relabel.batch_size", "50", ""],
        ["SRe2L", "synthesis.initial", "noise", ""],
        ["SRe2L", "synthesis.adjustment", "none", ""],
        ["SRe2L", "synthesis.r_var", "1", ""],
    ]


def test_hyperparameters_without_a_record_are_what_the_settings_ask_for(add):
    add("planned", teacher={"epochs": 30})
    table, others = hyperparameters(collect_runs("trial"))
    assert table.set_index("value").loc["teacher.epochs"].tolist() == ["30"]
    assert others.empty
