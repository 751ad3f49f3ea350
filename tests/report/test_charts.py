"""Charts and pictures from made-up records: what is drawn, read back from the figure."""

import math

import pytest

from dwa_paper.report import charts, pictures, sweeps
from dwa_paper.report.product import collect_runs
from dwa_paper.settings import files, grid, schema


def test_gain_of_the_paper_and_ours(add):
    add("dwa", 40.0, 41.0, 42.0, authors=True, ipc=50)
    add("sre2l", 30.0, 33.0, 36.0, authors=True, ipc=50, method="sre2l")
    axis = charts.gain_bars(collect_runs("trial", "table-1")).axes[0]
    # The paper: 53.1 ± 0.3 and 47.5 ± 0.5; ours 41 ± 1 and 33 ± 3.
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([5.6, 8.0])
    reach = [collection.get_segments()[0] for collection in axis.collections]
    assert [(high[1] - low[1]) / 2 for low, high in reach] == pytest.approx([math.sqrt(0.34), math.sqrt(10)])
    assert [text.get_text() for text in axis.texts] == ["+5.6", "+8.0"]


def bars_of(axis) -> dict[str, dict[str, float]]:
    """The heights of the bars, by series and by the label under them."""
    names = dict(zip(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()], strict=True))
    found = {}
    for bars in axis.containers[1::2]:
        for bar in bars:
            nearest = min(names, key=lambda x, bar=bar: abs(x - bar.get_x() - bar.get_width() / 2))
            heights = found.setdefault(bars.get_label(), {})
            heights[names[nearest].replace("\n", ", ")] = pytest.approx(bar.get_height())
    return found


def test_gain_shows_every_pair_whatever_its_recipe_and_the_paper_beside(add):
    for preset, network, dwa, sre2l, given in (
        ("cifar10", "convnet-128", 33.5, 28.0, {}),
        ("cifar10", "convnet-128", 45.0, 37.5, {"authors": True, "teacher": {"recipe": "gvbsm"}}),
        ("cifar100", "convnet-128", 39.5, 40.5, {"authors": True}),
    ):
        for method, accuracy in (("dwa", dwa), ("sre2l", sre2l)):
            name = f"{preset}-{method}-{len(given)}"
            add(name, accuracy, accuracy, preset=preset, network=network, method=method, **given)
    found = bars_of(charts.gain_bars(collect_runs("trial")).axes[0])
    assert found == {
        "the paper": {"cifar10, ipc 10, resnet18": 5.4, "cifar100, ipc 10, resnet18": 8.0},
        "ours, authors' code": {
            "cifar10, ipc 10, convnet-128, G-VBSM's teacher": 7.5,
            "cifar100, ipc 10, convnet-128": -1.0,
        },
        "ours, defaults": {"cifar10, ipc 10, convnet-128": 5.5},
    }


def test_gain_of_lite_is_of_every_data_set_with_a_recorded_pair(monkeypatch):
    monkeypatch.setattr(files, "SETTINGS", grid.SETTINGS)
    monkeypatch.setenv("DWA_ROOT", str(grid.SETTINGS.parent))
    runs = [
        run for run in collect_runs("lite") if run.record is not None and run.setting["relabel"]["labels"] == "teacher"
    ]
    pairs = {}
    for setting, _, _ in runs:
        key = setting["dataset"], setting["ipc"], setting["network"], setting["authors"], setting["teacher"]["recipe"]
        pairs.setdefault(key, set()).add(setting["method"])
    recorded = {dataset for (dataset, *_), methods in pairs.items() if {"sre2l", "dwa"} <= methods}
    axis = charts.gain_bars(collect_runs("lite", "figure-gain")).axes[0]
    ours = [heights for series, heights in bars_of(axis).items() if series != "the paper"]
    assert {label.split(",")[0] for heights in ours for label in heights} == recorded
    assert {"cifar10", "cifar100"} <= recorded


def test_accuracy_has_the_value_at_each_bar_the_defaults_first_and_then_variants(add):
    add("authors", 31.0, 33.0, authors=True, seeds=[0, 1])
    add("batch", 35.0, relabel={"batch_size": 50}, seeds=[0])
    add("plain", 30.0, seeds=[0])
    add("real", 40.0, method="random-real", seeds=[0])
    add("later", 20.0, preset="cifar100", seeds=[0])
    axis = charts.accuracy_bars(collect_runs("trial")).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    defaults, authors = ["random real", "DWA", "DWA, student's batch size 50"], ["DWA", "SRe2L, paper", "DWA, paper"]
    assert labels == [*defaults, *authors, "DWA"]
    assert [text.get_text() for text in axis.texts] == [
        *("cifar10, ipc 10, resnet18, defaults", "40.0", "30.0", "35.0"),
        *("cifar10, ipc 10, resnet18, authors' code", "32.0", "27.2", "32.6"),
        *("cifar100, ipc 10, resnet18, defaults", "20.0"),
    ]


def test_variants_are_readable():
    variant = "relabel.teacher_batch_statistics True, synthesis.r_bn 0.03, teacher.seed 1, images.side 16"
    assert charts.describe_variant(variant) == "teacher's batch statistics, r_bn 0.03, teacher's seed 1, side 16"


def test_sweeps_say_the_spread_over_students_or_that_there_is_one(add):
    add("one", 40.0, seeds=[0])
    add("both", 40.0, seeds=[0], synthesis={"r_var": 1.0})  # one set, decoupled and coupled
    for draw in (sweeps.variance_curves, sweeps.steps_rho_map):
        assert "seed noise not measured" in draw(collect_runs("trial", "table-1")).axes[0].get_xlabel()
    add("three", 40.0, 41.0, 42.0, synthesis={"rho": 0.03})
    assert "seed noise: ±1.0 " in sweeps.steps_rho_map(collect_runs("trial", "table-1")).axes[0].get_xlabel()


def test_gain_not_run_yet_shows_the_paper_alone(add):
    add("dwa", authors=True, ipc=50)
    add("sre2l", authors=True, ipc=50, method="sre2l")
    axis = charts.gain_bars(collect_runs("trial", "table-1")).axes[0]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([5.6])


def test_variance_curves_are_decoupled_and_coupled(add):
    for r_var, accuracy in ((1.0, 40.0), (3.0, 44.0), (11.0, 48.0)):
        add(f"r_var{r_var}", accuracy - 1, accuracy, accuracy + 1, synthesis={"r_var": r_var})
    add("coupled", 41.0, seeds=[0], synthesis={"r_bn": 0.11, "r_var": 1.0})
    axis = sweeps.variance_curves(collect_runs("trial", "table-1")).axes[0]
    decoupled, coupled = (container.lines[0] for container in axis.containers)
    assert decoupled.get_xdata() == pytest.approx([0.01, 0.03, 0.11])
    assert decoupled.get_ydata() == pytest.approx([40.0, 44.0, 48.0])
    assert coupled.get_xdata() == pytest.approx([0.01, 0.11])
    assert coupled.get_ydata() == pytest.approx([40.0, 41.0])


def test_sweeps_of_another_teacher_have_a_panel_of_their_own(add):
    add("usual", 40.0, 41.0)
    add("other", 60.0, seeds=[0], teacher={"recipe": "gvbsm"})
    for draw in (sweeps.variance_curves, sweeps.steps_rho_map):
        titles = [axis.get_title(loc="left") for axis in draw(collect_runs("trial", "table-1")).axes]
        assert [title for title in titles if title] == [
            "cifar10, ipc 10, resnet18",
            "cifar10, ipc 10, resnet18, G-VBSM's teacher",
        ]


def test_heat_map_over_steps_and_rho_leaves_cells_not_run_empty(add):
    add("middle", 52.0, seeds=[0])
    add("steps", 51.0, seeds=[0], synthesis={"steps": 4})
    add("rho", 50.0, seeds=[0], synthesis={"rho": 0.005})
    add("both", seeds=[0], synthesis={"steps": 4, "rho": 0.005})
    add("another", 99.0, seeds=[0], synthesis={"r_var": 1.0})
    axis = sweeps.steps_rho_map(collect_runs("trial", "table-1")).axes[0]
    assert [text.get_text() for text in axis.texts] == ["50.0", "52.0", "51.0"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["12", "4"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.005", "0.015"]


def test_teacher_curves_have_a_panel_for_each_recipe_and_a_line_for_each_batch_size(add):
    for recipe, epochs, batch_size, accuracy in (
        ("authors", 5, 128, 50.0),
        ("authors", 30, 128, 38.0),
        ("authors", 30, 50, 41.0),
        ("gvbsm", 5, 50, 46.0),
    ):
        given = {"teacher": {"recipe": recipe, "epochs": epochs}, "relabel": {"batch_size": batch_size}}
        name = f"{recipe}-{epochs}-{batch_size}"
        add(name, accuracy, accuracy + 2, network="convnet-128", authors=True, shown_in=["figure-teacher"], **given)
    authors, gvbsm = sweeps.teacher_curves(collect_runs("trial", "figure-teacher")).axes
    assert gvbsm.get_title(loc="left") == "cifar10, ipc 10, convnet-128, authors' code\nteacher by G-VBSM's recipe"
    small, large = (container.lines[0] for container in authors.containers)
    assert (list(small.get_xdata()), list(small.get_ydata())) == ([1], [42.0])
    assert (list(large.get_xdata()), list(large.get_ydata())) == ([0, 1], [51.0, 39.0])
    assert [label.get_text() for label in authors.get_xticklabels()] == ["5\n95.0", "30\n95.0"]
    assert [label.get_text() for label in gvbsm.get_xticklabels()] == ["5\n95.0", "30\n"]
    for axis in (authors, gvbsm):
        assert list(axis.lines[-1].get_ydata()) == [45.0, 45.0], "the paper's number"


def test_distance_bars_show_the_same_classes_of_both_sets(add):
    for name, shift, synthesis in (("decoupled", 0.5, {}), ("coupled", 0.1, {"r_bn": 0.11, "r_var": 1.0})):
        by_class = [shift + label / 100 for label in range(20)]
        add(name, 40.0, seeds=[0], synthesis=synthesis, record={"diversity": {"feature_distance_by_class": by_class}})
    axis = sweeps.distance_bars(collect_runs("trial", "table-1")).axes[0]
    classes = [int(label.get_text()) for label in axis.get_xticklabels()]
    assert len(set(classes)) == 10
    decoupled, coupled = ([bar.get_height() for bar in container] for container in axis.containers)
    assert decoupled == pytest.approx([0.5 + label / 100 for label in classes])
    assert coupled == pytest.approx([0.1 + label / 100 for label in classes])


def test_distance_bars_of_sets_that_differ_otherwise_are_all_drawn_with_labels_of_their_own(add):
    for name, teacher in (("longer", {"epochs": 20}), ("shorter", {"epochs": 10})):
        by_class = {"diversity": {"feature_distance_by_class": [0.5] * 10}}
        add(name, 40.0, 41.0, seeds=[0, 1], teacher=teacher, record=by_class)
    (axis,) = sweeps.distance_bars(collect_runs("trial", "table-1")).axes
    labels = [container.get_label() for container in axis.containers]
    assert len(labels) == 2
    assert sorted(label.split(",\n")[-1] for label in labels) == ["teacher of 10 epochs", "teacher of 20 epochs"]


def test_alike_labels_name_the_first_thing_that_differs(bare_record):
    def record_of(teacher, distilled, epochs=30, ipc=10):
        setting = schema.resolve(
            {"preset": "cifar10", "profile": "trial", "name": "a", "ipc": ipc, "teacher": {"epochs": epochs}}
        )
        made = {"data": {"fingerprint": "0123456789"}, "teacher": {"artifact": teacher}}
        return bare_record(setting, **made, distilled={"artifact": distilled})

    records = [
        record_of("cifar10-a", "x-1"),
        record_of("cifar10-a", "x-2"),
        record_of("cifar10-b", "x-3"),
        record_of("cifar10-c", "x-4", epochs=40),
        record_of("cifar10-a", "x-5", ipc=50),
    ]
    assert charts.disambiguate(records, ["DWA", "DWA", "DWA", "DWA", "DWA"]) == [
        "DWA,\nteacher of 30 epochs,\nteacher a,\nset 1",
        "DWA,\nteacher of 30 epochs,\nteacher a,\nset 2",
        "DWA,\nteacher of 30 epochs,\nteacher b",
        "DWA,\nteacher of 40 epochs",
        "DWA",
    ]
    assert charts.disambiguate(records[:2], ["SRe2L", "DWA"]) == ["SRe2L", "DWA"]
    assert charts.disambiguate(records[2:4], ["SRe2L", "DWA"]) == [
        "SRe2L,\nteacher of 30 epochs",
        "DWA,\nteacher of 40 epochs",
    ]


@pytest.mark.parametrize(
    "draw",
    [
        charts.accuracy_bars,
        charts.gain_bars,
        sweeps.variance_curves,
        sweeps.distance_bars,
        sweeps.steps_rho_map,
        sweeps.teacher_curves,
        pictures.loss_curves,
        pictures.gallery,
        pictures.embedding,
    ],
)
def test_figure_of_nothing_says_so(draw, add):
    add("dwa", ipc=3)
    (text,) = draw(collect_runs("trial", "table-1")).axes[0].texts
    assert "yet" in text.get_text() or "on this machine" in text.get_text()


def test_gallery_shows_sets_of_one_teacher_and_recipe_that_most_methods_have(add):
    for name, teacher, given in (
        ("dwa-plain", "t-1", {}),
        ("dwa-authors", "t-2", {"authors": True}),
        ("dwa-authors-50", "t-2", {"authors": True, "ipc": 50}),
        ("sre2l-authors", "t-2", {"authors": True, "method": "sre2l"}),
    ):
        made = {"teacher": {"artifact": teacher, "accuracy": {"top1": 90.0}}}
        add(name, 40.0, seeds=[0], record=made, **given)
    chosen = pictures.choose_sets([pictures.StoredSet(run.record, None, "") for run in collect_runs("trial")])
    names = [(method, stored.record["setting"]["name"]) for method, stored in chosen.items()]
    assert names == [("sre2l", "sre2l-authors"), ("dwa", "dwa-authors")]


def test_sets_of_a_teacher_at_chance_are_not_drawn(add, monkeypatch, tmp_path, capsys):
    for name, top1 in (("learnt", 90.0), ("chance", 10.1)):
        made = {"distilled": {"artifact": f"set-{name}"}, "teacher": {"artifact": "t", "accuracy": {"top1": top1}}}
        add(name, 40.0, seeds=[0], record=made, synthesis={"rho": top1})
    monkeypatch.setattr(pictures.store, "find", lambda kind, name: tmp_path)
    assert [stored.record["setting"]["name"] for stored in pictures.find_sets(collect_runs("trial"))] == ["learnt"]
    assert capsys.readouterr().out == "set-chance: its teacher is no better than chance, so it is not drawn\n"
