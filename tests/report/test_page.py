"""The report page: counts, durations and origins of records."""

from dwa_paper.report import page
from dwa_paper.report.product import runs_of


def test_page_counts_shared_teachers_once(add):
    add("dwa", 40.0, 41.0)
    add("sre2l", 30.0, method="sre2l", record={"tree_clean": False})
    runs = runs_of("trial")
    durations = page.durations(runs).set_index("stage")
    assert durations["runs"].to_dict() == {"teacher": 1, "synthesis": 2, "student": 3}
    assert durations.loc["teacher", "together, h"] == "1.00"
    assert page.origins(runs)["records"].tolist() == [2, 1]
    assert page.origins(runs)["revision"].tolist() == ["0123456789", "0123456789, with changes"]
    assert "of 6 runs that its settings ask for, 3 have records" in page.contents("trial", runs)
