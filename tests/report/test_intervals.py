"""Intervals of differences between methods: by hand, and as often right as they say."""

import numpy as np
import pytest

from dwa_paper.report import intervals
from dwa_paper.report.product import collect_runs


def test_interval_of_students_without_spread_is_a_point():
    pairs = [(np.array([3.0, 3.0]), np.array([1.0, 1.0])), (np.array([8.0, 8.0]), np.array([4.0, 4.0]))]
    assert intervals.difference_interval(pairs) == (3.0, 3.0, 3.0)


def test_interval_of_two_groups_is_welchs():
    first, second = np.array([20.0, 22.0, 25.0]), np.array([10.0, 11.0, 12.0, 19.0])
    expected = intervals.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    mean, low, high = intervals.difference_interval([(first, second)])
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(first.mean() - second.mean())


@pytest.mark.parametrize("cells", [1, 7])
def test_interval_holds_the_true_difference_as_often_as_it_says(cells):
    """Of three students in each group, as most are here."""
    random, held = np.random.default_rng(1), 0
    for _ in range(1000):
        pairs = [(random.normal(5, 1, 3), random.normal(3, 2, 3)) for _ in range(cells)]
        _, low, high = intervals.difference_interval(pairs)
        held += low < 2 < high
    assert 935 <= held <= 985


def test_recipes_are_compared_apart_and_cells_of_one_student_left_out(add):
    for method, first in (("random-real", 60.0), ("dwa", 50.0)):
        add(f"{method}-defaults", first, first + 1, method=method)
        add(f"{method}-authors", first - 10 * (method == "dwa"), first + 1, method=method, authors=True)
    add("sre2l", 20.0, method="sre2l")
    lines = intervals.compare_recipes(collect_runs("trial", "table-1")).splitlines()
    assert lines[0] == intervals.LEGEND
    assert [line.partition(" points")[0] for line in lines[2:]] == [
        "- defaults: DWA minus random real, one cell: -10.0",
        "- authors' code: DWA minus random real, one cell: -15.0",
    ]
