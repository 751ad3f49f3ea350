"""The report page: counts, durations and origins of records."""

from dwa_paper.report import page
from dwa_paper.report.product import collect_runs


def test_page_counts_shared_teachers_once(add):
    add("dwa", 40.0, 41.0)
    add("sre2l", 30.0, method="sre2l", record={"tree_clean": False})
    runs = collect_runs("trial")
    durations = page.durations(runs).set_index("stage")
    assert durations["runs"].to_dict() == {"teacher": 1, "synthesis": 2, "student": 3}
    assert durations.loc["teacher", "together, h"] == "1.00"
    assert page.origins(runs)["records"].tolist() == [2, 1]
    assert page.origins(runs)["revision"].tolist() == ["0123456789", "0123456789, with changes"]
    assert "of 6 runs that its settings ask for, 3 have records" in page.contents("trial", runs)


def test_rows_that_begin_alike_have_one_bold_row_over_them():
    table = """| data set | ipc | method | ours |
|:--|:--|:--|:--|
| cifar10 | 10 | DWA | 1 |
| cifar10 | 10 | a \\| b | 2 |
| cifar10 | 50 | DWA | 3 |
| cifar10 | 50 | SRe2L | 4 |
"""
    assert page.group_rows(table).splitlines() == [
        *("| method | ours |", "| :-- | :-- |"),
        *("| **cifar10, ipc 10** |  |", "| DWA | 1 |", "| a \\| b | 2 |"),
        *("| **cifar10, ipc 50** |  |", "| DWA | 3 |", "| SRe2L | 4 |"),
    ]
    alone = "| value | cifar10 |\n| :-- | :-- |\n| network | resnet18 |\n"
    assert page.group_rows(alone) == alone


def test_versions_are_given_once(add):
    add("one", 40.0, seeds=[0], record={"versions": {"torch": "2.0", "numpy": "2.1"}})
    add("two", 41.0, seeds=[0], record={"versions": {"torch": "2.0", "numpy": "2.2"}}, method="sre2l")
    runs = collect_runs("trial")
    assert page.versions(runs) == "numpy 2.1 or 2.2, torch 2.0"


def test_headline_compares_dwa_with_what_has_several_students(add):
    add("dwa", 40.0, 41.0, authors=True)
    add("real", 50.0, 51.0, authors=True, method="random-real")
    assert "- authors' code: DWA minus random real, one cell: -10.0 points" in page.headline("trial")


def test_each_product_links_to_its_notebook_settings_and_records(add):
    add("dwa", 40.0, 41.0)
    text = page.sources("trial")["table-1"]
    assert "Notebook, settings and 2 records" in text
    assert "table-1.ipynb), [trial](../../settings/trial), [dwa-seed0.json](dwa-seed0.json), [dwa-seed1" in text
