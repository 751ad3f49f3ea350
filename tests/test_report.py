"""Tables and figures from made-up records, whose means, deviations, differences and marks are worked out by hand."""

import json
import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from dwa_core import figures, page, report, settings, settings_files, tables

PAPER = {"preset": "cifar10", "network": "resnet18", "ipc": 10, "method": "dwa"}


@pytest.fixture(autouse=True)
def _own_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(settings_files, "SETTINGS", tmp_path / "settings")
    monkeypatch.setenv("DWA_ROOT", str(tmp_path))
    yield
    plt.close("all")


@pytest.fixture
def add(tmp_path):
    """A function that writes a settings file, and one record for each accuracy; fewer accuracies leave seeds unrun."""

    def write(name: str, *accuracies: float, seeds=(0, 1, 2), shown_in=("table-1",), record=(), **differences):
        parameters = {**PAPER, **differences, "profile": "trial", "name": name}
        parameters |= {"seeds": list(seeds), "shown_in": list(shown_in)}
        path = tmp_path / "settings" / "trial" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}: [{', '.join(map(str, parameters.pop(key)))}]" for key in ("seeds", "shown_in")]
        path.write_text("\n".join([*lines, yaml.safe_dump(parameters)]))
        for seed, accuracy in zip(seeds, accuracies, strict=False):
            setting = settings.resolve({**settings_files.read(path), "seed": seed})
            made = {
                "setting": setting.recorded(),
                "accuracy": {"reported": accuracy, "last": accuracy, "best": accuracy, "top5": 99.0},
                "teacher": {"artifact": f"teacher-{setting.network}", "accuracy": {"top1": 95.0, "top5": 99.9}},
                "distilled": {"artifact": f"set-{name}"},
                "curve": [],
                "data": {
                    "fingerprint": "0123456789abcdef",
                    "training_images": 50_000,
                    "test_images": 10_000,
                    "classes": 10,
                },
                "seconds": {"teacher": 3600.0, "synthesis": 60.0, "student": 30.0},
                "device": "a device",
                "precision": "bfloat16",
                "versions": {"torch": "2.0"},
                "revision": "0123456789abcdef",
                "tree_clean": True,
                "finished": "2026-01-01T00:00:00+00:00",
                **dict(record),
            }
            setting.record_path().parent.mkdir(parents=True, exist_ok=True)
            setting.record_path().write_text(json.dumps(made))

    return write


def row_of(frame: pd.DataFrame, **cell) -> pd.Series:
    """The one row of `frame` with these values; underscores stand for spaces."""
    for name, value in cell.items():
        frame = frame[frame[name.replace("_", " ")] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


# --------------------------------------------------------------------------------------------------- tables


def test_difference_is_marked_only_outside_one_point_and_twice_the_larger_deviation(add):
    # In print: SRe2L 27.2 ± 0.4 and DWA 32.6 ± 0.4 at ipc 10, SRe2L 47.5 ± 0.5 and DWA 53.1 ± 0.3 at ipc 50.
    add("dwa10", 30.0, 31.0, 32.0, authors=True)  # 31 ± 1: 1.6 below, within 2
    add("sre2l10", 24.0, 24.2, 24.4, authors=True, method="sre2l")  # 24.2 ± 0.2: 3.0 below, outside 1
    add("sre2l50", 48.5, 48.5, 48.5, authors=True, method="sre2l", ipc=50)  # 1.0 above, not more than 1
    add("dwa50", 54.2, authors=True, ipc=50)  # one seed: 1.1 above, outside 1
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"), table=1)
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
    shown = tables.long(frame)
    texts = row_of(shown, method="SRe2L", ipc=10)
    assert texts["print"] == "27.2 ± 0.4"
    assert texts["ours, authors' switches"] == "24.2 ± 0.2"
    assert texts["difference"] == "-3.0 †"
    assert row_of(shown, method="DWA", ipc=50, student="resnet18")["ours, authors' switches"] == "54.2 (1 seed)"
    assert "ours, defaults" not in shown


def test_cells_not_run_are_empty_and_quoted_methods_are_said_to_be(add):
    add("dwa10", authors=True)
    shown = tables.long(tables.accuracy_table(report.runs_of("trial", "table-1"), table=1))
    ours = row_of(shown, method="DWA", student="resnet18")
    assert (ours["print"], ours["ours, authors' switches"], ours["difference"]) == ("32.6 ± 0.4", "", "")
    assert row_of(shown, method="MTT (quoted)")["print"] == "65.4 ± 0.7"
    assert list(shown["ipc"].unique()) == [10], "print of another ipc has no place here"


def test_print_is_compared_with_the_authors_switches_and_with_plain_runs_alone(add):
    add("defaults", 33.0, 33.0, 33.0)
    add("changed", 34.0, 34.0, 34.0, authors=True, relabel={"batch_size": 50})
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"), table=1)
    ours = frame[frame["method"] == "dwa"].set_index(["student", "variant"])
    assert ours.loc[("resnet18", ""), "ours mean"] == 33.0
    assert ours.loc[("resnet18", ""), "print mean"] == 32.6
    assert ours["difference"].isna().all()
    assert math.isnan(ours.loc[("resnet18", "relabel.batch_size 50"), "print mean"])


def test_print_of_another_table_does_not_join(add):
    add("dwa10", 31.0, authors=True)
    shown = tables.long(tables.accuracy_table(report.runs_of("trial", "table-1")))
    assert "print" not in shown
    assert "difference" not in shown


def test_table_without_print_says_so_and_one_with_print_has_a_legend(add, tmp_path):
    add("dwa10", 31.0, authors=True)
    runs = report.runs_of("trial", "table-1")
    for table, note in ((None, tables.NO_PRINT), (1, tables.LEGEND)):
        frame = tables.accuracy_table(runs, table)
        path = tables.write_accuracies("trial", "table_01", "Title", "Caption.", runs, frame, tables.long(frame))
        text = path.read_text()
        assert path == tmp_path / "results" / "trial" / "table_01.md"
        assert text.startswith("# Title, profile trial\n\nCaption.\n\n| data set")
        assert (tables.NO_PRINT in text, tables.LEGEND in text) == (note == tables.NO_PRINT, note == tables.LEGEND)
    written = pd.read_csv(path.with_suffix(".csv"))
    assert row_of(written, method="dwa", student="resnet18")["difference"] == -1.6


def test_arms_become_columns_in_their_order_and_switches_rows(add):
    for arm, accuracy in (("directed", 43.0), ("none", 41.0), ("random", 42.0)):
        add(arm, accuracy, seeds=[0], synthesis={"adjustment": arm})
    add("authors", 44.0, seeds=[0], authors=True)
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"), axes=("synthesis.adjustment",))
    shown = tables.wide(frame, ["data set", "network", "student"], ["method"])
    assert list(shown.columns) == [
        *("data set", "teacher", "student", "switches"),
        *("no adjustment", "random direction", "directed (DWA)"),
    ]
    assert shown.to_numpy().tolist() == [
        ["cifar10", "resnet18 95.0", "resnet18", "defaults", "41.0 (1 seed)", "42.0 (1 seed)", "43.0 (1 seed)"],
        ["cifar10", "resnet18 95.0", "resnet18", "authors' switches", "", "", "44.0 (1 seed)"],
    ]


def test_wide_table_shows_print_in_brackets_where_it_is_at_hand(add):
    add("dwa10", 31.4, 31.6, 31.8, authors=True)
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"), table=1)
    shown = tables.wide(frame, ["student"], ["ipc", "method"])
    assert shown.to_numpy().tolist() == [["resnet18", "31.6 ± 0.2 (print 32.6 ± 0.4, -1.0)"]]


def test_rows_of_students_are_sorted_by_number_and_table_says_what_made_the_set(add):
    for student in ("resnet101", "resnet18", "resnet34"):
        add(student, 40.0, student=student)
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"))
    assert list(frame["student"]) == ["resnet18", "resnet34", "resnet101"]
    assert list(tables.long(frame)["teacher"]) == ["resnet18 95.0"] * 3


def test_accuracy_after_each_task_has_a_column_for_each(add):
    def tasks(*accuracies):
        part = {"teacher": {"artifact": "t", "accuracy": {"top1": 90.0}}, "distilled": {"artifact": "d"}, "curve": []}
        part |= {"seconds": {"teacher": 1.0, "synthesis": 2.0, "student": 3.0}}
        return {
            "tasks": [
                {**part, "classes_seen": 2 * place, "accuracy": {"reported": accuracy}}
                for place, accuracy in enumerate(accuracies, 1)
            ]
        }

    add("dwa", 50.0, tasks=5, shown_in=["table-10"], record=tasks(90.0, 80.0, 70.0, 60.0, 50.0), seeds=[0])
    add("sre2l", method="sre2l", tasks=5, shown_in=["table-10"], seeds=[0])
    runs = report.runs_of("trial", "table-10")
    frame = tables.accuracy_table(runs, axes=("task",))
    shown = tables.wide(frame, ["method"], ["task"])
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
    frame = tables.accuracy_table(report.runs_of("trial", "table-1"), axes=("synthesis.seed",))
    (row,) = tables.seed_spread(frame).to_dict("records")
    assert row["synthesis seed 1"] == "34.0 ± 2.0"
    assert row["standard deviation over students"] == f"{math.sqrt(5 / 3):.2f}"
    assert row["over sets"] == f"{math.sqrt(3):.2f}"


def test_diversity_stands_beside_the_accuracy_once_for_each_set(add):
    measured = {"diversity": {"feature_distance": 0.834, "feature_distance_by_class": [0.8] * 10, "coverage": 0.216}}
    add("own", 40.0, record=measured, seeds=[0])
    add("other", 41.0, record=measured, seeds=[0], student="resnet34")
    add("older", 42.0, seeds=[0], method="sre2l")
    measured["diversity"]["coverage"] = 0.5
    add("authors", 43.0, record=measured, seeds=[0], authors=True)
    sets = tables.diversity(tables.accuracy_table(report.runs_of("trial", "table-1"), table=1))
    assert sets.drop(columns=["data set", "ipc", "method"]).to_numpy().tolist() == [
        ["resnet18", "defaults", "0.83", "0.22", "40.0 (1 seed)", "resnet18"],
        ["resnet18", "authors' switches", "0.83", "0.50", "43.0 (1 seed)", "resnet18"],
    ]


def test_what_moves_the_number_sets_each_change_against_the_unchanged_recipe(add):
    shown_in = ("what-moves-the-number",)
    add("dwa", 30.0, 31.0, 32.0, shown_in=shown_in)  # 31 ± 1
    add("real", 40.0, 40.2, 40.4, method="random-real", shown_in=shown_in)  # 40.2 ± 0.2
    add("dwa-jpeg", 32.0, 32.5, 33.0, synthesis={"storage": "jpeg"}, shown_in=shown_in)  # 1.5 more, within 2
    add("dwa-authors", 28.0, 28.1, 28.2, authors=True, shown_in=shown_in)  # 2.9 less
    add("dwa-std", images={"std_after_teacher": [0.2, 0.2, 0.2]}, shown_in=shown_in)  # not run
    add("dwa-short", 41.0, 41.0, 41.0, teacher={"epochs": 50}, shown_in=shown_in)  # 10 more
    add("real-short", 42.0, 42.2, 42.4, method="random-real", teacher={"epochs": 50}, shown_in=shown_in)  # 2 more
    add("real-best", 41.0, 41.1, 41.2, method="random-real", relabel={"reported": "best"}, shown_in=shown_in)  # 0.9
    frame = tables.moves(report.runs_of("trial", "what-moves-the-number"))
    assert frame["change"].tolist() == [
        "",
        "teacher of 50 epochs",
        "synthesis.storage jpeg",
        "authors' switches",
        "relabel.reported best",
        "images.std_after_teacher [0.2, 0.2, 0.2]",
    ]
    assert frame["dwa effect"].tolist()[1:4] == pytest.approx([10.0, 1.5, -2.9])
    assert frame["synthesis gain"].tolist()[:2] == pytest.approx([-9.2, -1.2])
    assert frame["synthesis gain"].isna().tolist()[2:] == [True] * 4, "real images stored as JPEG are others"
    texts = tables.moves_text(frame)
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
    frame = tables.moves(report.runs_of("trial", "what-moves-the-number")).set_index("change")
    gains = frame["synthesis gain"].dropna().to_dict()
    assert gains == {
        "": -10.0,
        "synthesis.iterations 100, relabel.batch_size 10": -2.0,
        "synthesis.iterations 100": -7.0,
    }


def test_what_moves_the_number_without_a_run_of_random_images(add):
    add("dwa", 30.0, 31.0, 32.0, shown_in=("what-moves-the-number",))
    (row,) = tables.moves_text(tables.moves(report.runs_of("trial"))).to_dict("records")
    assert row["DWA"] == "31.0 ± 1.0"
    assert "random real" not in row


def test_hyperparameters_are_those_of_the_presets():
    frame = tables.hyperparameters(["cifar10", "imagenet-1k"]).set_index("value")
    assert frame.loc["relabel.epochs"].tolist() == ["400", "300"]
    assert frame.loc["synthesis.steps"].tolist() == ["12", "15"]
    assert frame.loc["teacher.weights"].tolist() == ["", "IMAGENET1K_V1"]
    assert frame.loc["teacher.epochs"].tolist() == ["200", ""], "a published teacher is not trained"
    changed = tables.hyperparameters(["cifar10", "imagenet-1k"], method="sre2l").set_index("value")
    assert changed.loc["synthesis.iterations"].tolist() == ["1000", "4000"]
    assert "relabel.epochs" not in changed.index


# ------------------------------------------------------------------------------------------ runs and records


def test_runs_without_a_record_or_with_one_of_other_numbers_are_missing(add, tmp_path, capsys):
    add("one", 30.0)
    add("other", 50.0, shown_in=["table-2"])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    runs = report.runs_for_notebook({"profile": "trial", "In": []}, "table-1")
    assert [run.record is None for run in runs] == [False, True, True]
    printed = capsys.readouterr().out
    assert "table-1: 1 of 3 records are there" in printed
    assert "  make results/trial/one-seed1.json\n" in printed
    assert "seed0" not in printed
    assert "other" not in printed
    record = json.loads(path.read_text())
    record["setting"]["synthesis"]["rho"] = 0.5
    path.write_text(json.dumps(record))
    assert [run.record for run in report.runs_of("trial", "table-1")] == [None] * 3
    path.write_text("{")
    assert [run.record for run in report.runs_of("trial", "table-1")] == [None] * 3


@pytest.mark.parametrize("lacking", ["accuracy", "curve", "distilled"])
def test_record_that_lacks_a_part_is_missing(lacking, add, tmp_path):
    add("one", 30.0, seeds=[0])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    record = json.loads(path.read_text())
    del record[lacking]
    path.write_text(json.dumps(record))
    (run,) = report.runs_of("trial")
    assert run.record is None


def test_record_from_before_a_field_came_still_counts(add, tmp_path):
    add("one", 30.0, seeds=[0])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    record = json.loads(path.read_text())
    del record["setting"]["tasks"]
    path.write_text(json.dumps(record))
    (run,) = report.runs_of("trial")
    assert run.record["setting"] == run.setting


def test_notes_tell_of_lacking_images_and_of_teachers(add):
    data = {"fingerprint": "0" * 64, "training_images": 49_000, "test_images": 9_500, "classes": 10}
    add("dwa", 40.0, teacher={"epochs": 30}, record={"data": data})
    notes = report.notes(report.runs_of("trial"))
    assert "cifar10, resnet18: teacher.epochs is 30; the preset has 200." in notes
    assert any("lacks 1,500 images of the official 50,000 and 10,000" in note for note in notes)


# --------------------------------------------------------------------------------------------------- figures


def test_gain_in_print_and_ours(add):
    add("dwa", 40.0, 41.0, 42.0, authors=True, ipc=50)
    add("sre2l", 30.0, 33.0, 36.0, authors=True, ipc=50, method="sre2l")
    axis = figures.gain_bars(report.runs_of("trial", "table-1")).axes[0]
    # In print 53.1 ± 0.3 and 47.5 ± 0.5; ours 41 ± 1 and 33 ± 3.
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([5.6, 8.0])
    reach = [collection.get_segments()[0] for collection in axis.collections]
    assert [(high[1] - low[1]) / 2 for low, high in reach] == pytest.approx([math.sqrt(0.34), math.sqrt(10)])
    assert [text.get_text() for text in axis.texts] == ["+5.6", "+8.0"]


def test_gain_not_run_yet_shows_print_alone(add):
    add("dwa", authors=True, ipc=50)
    add("sre2l", authors=True, ipc=50, method="sre2l")
    axis = figures.gain_bars(report.runs_of("trial", "table-1")).axes[0]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([5.6])


def test_variance_curves_are_decoupled_and_coupled(add):
    for r_var, accuracy in ((1.0, 40.0), (3.0, 44.0), (11.0, 48.0)):
        add(f"r_var{r_var}", accuracy - 1, accuracy, accuracy + 1, synthesis={"r_var": r_var})
    add("coupled", 41.0, seeds=[0], synthesis={"r_bn": 0.11, "r_var": 1.0})
    axis = figures.variance_curves(report.runs_of("trial", "table-1")).axes[0]
    decoupled, coupled = (container.lines[0] for container in axis.containers)
    assert decoupled.get_xdata() == pytest.approx([0.01, 0.03, 0.11])
    assert decoupled.get_ydata() == pytest.approx([40.0, 44.0, 48.0])
    assert coupled.get_xdata() == pytest.approx([0.01, 0.11])
    assert coupled.get_ydata() == pytest.approx([40.0, 41.0])


def test_heat_map_over_steps_and_rho_leaves_cells_not_run_empty(add):
    add("middle", 52.0, seeds=[0])
    add("steps", 51.0, seeds=[0], synthesis={"steps": 4})
    add("rho", 50.0, seeds=[0], synthesis={"rho": 0.005})
    add("both", seeds=[0], synthesis={"steps": 4, "rho": 0.005})
    add("another", 99.0, seeds=[0], synthesis={"r_var": 1.0})
    axis = figures.steps_rho_map(report.runs_of("trial", "table-1")).axes[0]
    assert [text.get_text() for text in axis.texts] == ["50.0", "52.0", "51.0"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["12", "4"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.005", "0.015"]


def test_distance_bars_show_the_same_classes_of_both_sets(add):
    for name, shift, synthesis in (("decoupled", 0.5, {}), ("coupled", 0.1, {"r_bn": 0.11, "r_var": 1.0})):
        by_class = [shift + label / 100 for label in range(20)]
        add(name, 40.0, seeds=[0], synthesis=synthesis, record={"diversity": {"feature_distance_by_class": by_class}})
    axis = figures.distance_bars(report.runs_of("trial", "table-1")).axes[0]
    classes = [int(label.get_text()) for label in axis.get_xticklabels()]
    assert len(set(classes)) == 10
    decoupled, coupled = ([bar.get_height() for bar in container] for container in axis.containers)
    assert decoupled == pytest.approx([0.5 + label / 100 for label in classes])
    assert coupled == pytest.approx([0.1 + label / 100 for label in classes])


def test_distance_bars_of_sets_that_differ_otherwise_are_all_drawn_and_told_apart(add):
    for name, teacher in (("longer", {"epochs": 20}), ("shorter", {"epochs": 10})):
        by_class = {"diversity": {"feature_distance_by_class": [0.5] * 10}}
        add(name, 40.0, 41.0, seeds=[0, 1], teacher=teacher, record=by_class)
    (axis,) = figures.distance_bars(report.runs_of("trial", "table-1")).axes
    labels = [container.get_label() for container in axis.containers]
    assert len(labels) == 2
    assert sorted(label.split(",\n")[-1] for label in labels) == ["teacher of 10 epochs", "teacher of 20 epochs"]


def test_alike_labels_go_on_with_the_first_that_differs(bare_record):
    def record_of(teacher, distilled, epochs=30, ipc=10):
        setting = settings.resolve(
            {"preset": "cifar10", "profile": "trial", "name": "a", "ipc": ipc, "teacher": {"epochs": epochs}}
        )
        return bare_record(setting, teacher={"artifact": teacher}, distilled={"artifact": distilled})

    records = [
        record_of("cifar10-a", "x-1"),
        record_of("cifar10-a", "x-2"),
        record_of("cifar10-b", "x-3"),
        record_of("cifar10-c", "x-4", epochs=40),
        record_of("cifar10-a", "x-5", ipc=50),
    ]
    assert figures.told_apart(records, ["DWA", "DWA", "DWA", "DWA", "DWA"]) == [
        "DWA,\nteacher of 30 epochs,\nteacher a,\nset 1",
        "DWA,\nteacher of 30 epochs,\nteacher a,\nset 2",
        "DWA,\nteacher of 30 epochs,\nteacher b",
        "DWA,\nteacher of 40 epochs",
        "DWA",
    ]
    assert figures.told_apart(records[:2], ["SRe2L", "DWA"]) == ["SRe2L", "DWA"]


@pytest.mark.parametrize(
    "draw",
    ["accuracy_bars", "gain_bars", "variance_curves", "distance_bars", "steps_rho_map", "loss_curves", "gallery"],
)
def test_figure_of_nothing_says_so(draw, add):
    add("dwa", ipc=3)
    (text,) = getattr(figures, draw)(report.runs_of("trial", "table-1")).axes[0].texts
    assert "yet" in text.get_text()


def test_title_and_caption_are_kept_in_both_files(tmp_path):
    path = figures.save(figures.nothing_to_draw("nothing"), "trial", "name", "Coefficient", "What is λ?")
    assert path == tmp_path / "figures" / "trial" / "name.svg"
    assert "What is λ?" in path.read_text()
    assert page.figures("trial") == {"figure_name": ("Coefficient", "What is λ?", path.with_suffix(".png"))}


# ---------------------------------------------------------------------------------------------- report page


def test_page_counts_shared_teachers_once(add):
    add("dwa", 40.0, 41.0)
    add("sre2l", 30.0, method="sre2l", record={"tree_clean": False})
    runs = report.runs_of("trial")
    durations = page.durations(runs).set_index("stage")
    assert durations["runs"].to_dict() == {"teacher": 1, "synthesis": 2, "student": 3}
    assert durations.loc["teacher", "together, h"] == "1.00"
    assert page.origins(runs)["records"].tolist() == [2, 1]
    assert page.origins(runs)["revision"].tolist() == ["0123456789", "0123456789, with changes"]
    assert "of 6 runs that its settings ask for, 3 have records" in page.contents("trial", runs)
