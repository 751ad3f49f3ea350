"""Accuracies by kind of labels and DD-Ranking's scores, from numbers that can be worked out by hand."""

import math

import pytest

from dwa_paper.report import charts, labels
from dwa_paper.report.product import collect_runs

SEEN = ("table-labels",)


@pytest.fixture
def table(add):
    """Two students of random real images and of DWA's under each kind of labels; the teacher has 95 %."""
    for method, hard, fixed, teacher in (("random-real", 40, 50, 60), ("dwa", 30, 45, 55)):
        for kind, accuracy in {"hard": hard, "fixed": fixed, "teacher": teacher}.items():
            add(
                f"{method}-{kind}",
                accuracy - 1.0,
                accuracy + 1.0,
                shown_in=SEEN,
                method=method,
                relabel={"labels": kind},
            )
    add("sre2l", 20.0, shown_in=SEEN, method="sre2l")
    return collect_runs("trial", "table-labels")


def test_scores_are_those_of_ddranking_from_means(table):
    frame = labels.scores(table).set_index("images")
    assert list(frame.index) == ["random real", "SRe2L", "DWA"]
    assert frame.loc["DWA", ["hard mean", "fixed mean", "teacher mean"]].tolist() == [30, 45, 55]
    assert frame.loc["DWA", ["HLR", "IOR"]].tolist() == [65, -5]
    assert frame.loc["DWA", "LRS"] == pytest.approx((math.exp(-0.35) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert frame.loc["random real", "IOR"] == 0
    assert frame.loc["SRe2L", "IOR"] == -40
    assert math.isnan(frame.loc["SRe2L", "HLR"])


def test_figure_has_a_panel_for_each_kind_of_labels_and_the_value_at_each_bar(table):
    figure = charts.label_panels(labels.accuracies(table))
    values = {axis.get_title(loc="left"): [text.get_text() for text in axis.texts] for axis in figure.axes}
    expected = {"hard": ["40.0", "30.0"], "fixed": ["50.0", "45.0"], "teacher": ["60.0", "20.0", "55.0"]}
    assert values == {labels.LABELS[kind]: texts for kind, texts in expected.items()}
    assert [text.get_text() for text in figure.legends[0].texts] == ["random real", "SRe2L", "DWA"]


def test_score_is_0_at_the_worst_and_1_at_the_best():
    assert labels.label_robust_score(recovery=1.0, improvement=-1.0) == 0
    assert labels.label_robust_score(recovery=-1.0, improvement=1.0) == 1


def test_scores_are_those_of_the_package_where_it_gets_fractions(monkeypatch, tmp_path):
    """Version 0.2.0 puts percentages into a formula for fractions; here its own code computes with fractions."""
    package = pytest.importorskip("ddranking.metrics.soft_label", reason="DD-Ranking is not installed")
    scorer = object.__new__(package.LabelRobustScoreSoft)
    for name, setting in {"soft_label_mode": "M", "ipc": 1, "num_classes": 10, "num_eval": 1, "rank": 0}.items():
        setattr(scorer, name, setting)
    scorer.eval_full_data, scorer.use_dist, scorer.save_path = True, False, None
    hard, soft = {"syn": 0.30, "real": 0.95}, iter([0.55, 0.60])
    scorer._compute_hard_label_metrics_helper = lambda mode, **_: (hard[mode], 0.1)
    scorer._compute_soft_label_metrics_helper = lambda **_: (next(soft), 0.1)
    scorer._get_random_data_helper = lambda eval_iter: (None, None, None)
    monkeypatch.setattr(package, "save_results", lambda *_: None)
    found = scorer.compute_metrics(image_path=str(tmp_path))
    assert found["hard_label_recovery_mean"] == pytest.approx(0.65)
    assert found["improvement_over_random_mean"] == pytest.approx(-0.05)
    assert labels.label_robust_score(0.65, -0.05) == pytest.approx(found["label_robust_score_mean"])


def test_table_shows_texts_intervals_and_leaves_out_what_was_not_run(table):
    frame, (shown, compared, notes) = labels.label_blocks(table)
    assert len(frame) == len(shown) == 3
    row = shown.set_index("images").loc["DWA"]
    assert row["hard labels"] == "30.0 ± 1.4 (2 seeds)"
    assert (row["HLR"], row["IOR"], row["LRS"]) == ("65.0", "-5.0", "0.143")
    assert shown.set_index("images").loc["SRe2L", "hard labels"] == ""
    # Student's t of two degrees of freedom, 4.30, times the square root of 2 variances of 2 over 2 students.
    assert "hard labels: DWA minus random real, one cell: -10.0 points, 95 % interval -16.1 to -3.9." in compared
    assert notes
