"""Products: which runs and records each shows, its files, and when they are current."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dwa_paper.report import charts, page, product, results, tables
from dwa_paper.report.hyperparameters import hyperparameters
from dwa_paper.report.product import Product, collect_runs
from dwa_paper.settings import files

VARIABLES = {"profile": "trial", "In": []}  # of a notebook


def write_table_1() -> None:
    """Writes Table 1 as its notebook does."""
    written = Product("table-1", VARIABLES)
    frame = tables.accuracy_table(written.runs, table=1)
    written.write_table(frame, tables.accuracy_blocks(written.runs, frame, tables.to_long(frame)))


def is_current(name: str = "table-1") -> bool:
    return product.is_current(name, "trial", files.list_runs("trial"))


def test_runs_without_a_record_or_with_one_of_other_numbers_are_missing(add, tmp_path, capsys):
    add("one", 30.0)
    add("other", 50.0, shown_in=["table-2"])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    runs = Product("table-1", VARIABLES).runs
    assert [run.record is None for run in runs] == [False, True, True]
    printed = capsys.readouterr().out
    assert "table-1: 1 of 3 records are there" in printed
    assert "  make results/trial/one-seed1.json\n" in printed
    assert "seed0" not in printed
    assert "other" not in printed
    record = json.loads(path.read_text())
    record["setting"]["synthesis"]["rho"] = 0.5
    path.write_text(json.dumps(record))
    assert [run.record for run in collect_runs("trial", "table-1")] == [None] * 3
    path.write_text("{")
    assert [run.record for run in collect_runs("trial", "table-1")] == [None] * 3


@pytest.mark.parametrize("lacking", ["accuracy", "curve", "distilled"])
def test_record_that_lacks_a_part_is_missing(lacking, add, tmp_path):
    add("one", 30.0, seeds=[0])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    record = json.loads(path.read_text())
    del record[lacking]
    path.write_text(json.dumps(record))
    (run,) = collect_runs("trial")
    assert run.record is None


def test_record_from_before_a_field_came_still_counts(add, tmp_path):
    add("one", 30.0, seeds=[0])
    path = tmp_path / "results" / "trial" / "one-seed0.json"
    record = json.loads(path.read_text())
    del record["setting"]["tasks"]
    path.write_text(json.dumps(record))
    (run,) = collect_runs("trial")
    assert run.record["setting"] == run.setting


# ---------------------------------------------------------------------------------------- files and currency


def test_table_is_markdown_with_title_caption_and_source_and_csv(add, tmp_path):
    add("dwa10", 31.0, authors=True)
    write_table_1()
    markdown, csv = (tmp_path / "results" / "trial" / f"table-1.{ending}" for ending in ("md", "csv"))
    text = markdown.read_text()
    assert re.match(
        r"# Table 1: students trained on distilled images, profile trial\n\nTest accuracy .+ DWA paper\.\n\n\| data",
        text,
    )
    assert re.search(r"\n\n<!-- drawn from [0-9a-f]{10} -->\n$", text)
    frame = pd.read_csv(csv)
    assert frame["records"].dropna().tolist() == ["dwa10-seed0.json"]
    assert frame["method"].tolist()[-1] not in results.METHODS, "quoted rows come last"
    assert frame[frame["network"].notna()]["difference"].tolist() == [-1.6]
    shown = page.tables("trial")["table-1"]
    assert shown.title == "Table 1: students trained on distilled images"
    assert "drawn from" not in shown.text


def test_title_caption_and_source_are_kept_in_both_files_of_a_figure(add, tmp_path):
    add("dwa10", 31.0, shown_in=["figure-variance"])
    product.use_style()
    path, drawn = tmp_path / "figures" / "trial" / "figure-variance.png", []
    for _ in range(2):
        Product("figure-variance", VARIABLES).write_figure(charts.empty_figure("nothing"))
        drawn.append([path.read_bytes(), path.with_suffix(".svg").read_bytes()])
    assert drawn[0] == drawn[1]
    for content in drawn[0]:
        assert b"notebooks/figure-variance.ipynb, drawn from " in content
        assert b"results/trial/dwa10-seed0.json" in content
    shown = page.figures("trial")["figure-variance"]
    assert (shown.title, shown.path) == ("Coefficient of the variance", path)
    assert "where λ = r_bn r_var and the means keep their weight" in shown.text
    assert shown.text in path.with_suffix(".svg").read_text()
    assert is_current("figure-variance")
    path.with_suffix(".svg").write_text("<svg/>")
    assert not is_current("figure-variance")


@pytest.mark.parametrize("file", ["table-1.md", "table-1.csv"])
def test_product_without_a_file_is_not_current(file, add, tmp_path):
    add("dwa10", 31.0)
    assert not is_current()
    write_table_1()
    assert is_current()
    (tmp_path / "results" / "trial" / file).unlink()
    assert not is_current()


def test_record_that_comes_or_changes_and_a_setting_that_changes_make_a_product_old(add):
    add("one", 30.0, seeds=[0, 1])
    for change in ({"seeds": [0]}, {"ipc": 20}, {"shown_in": ["table-2"]}):
        write_table_1()
        assert is_current()
        add("one", 30.0, 31.0, **{"seeds": [0, 1], **change})
        assert not is_current(), change


def test_record_of_another_product_leaves_a_product_current(add):
    add("one", 30.0)
    write_table_1()
    add("two", 40.0, shown_in=["table-2"])
    assert is_current()


def test_changed_notebook_or_code_makes_a_product_old(add, tmp_path, monkeypatch):
    add("one", 30.0)
    write_table_1()
    notebook = tmp_path / "table-1.ipynb"
    shutil.copy(files.NOTEBOOKS / notebook.name, notebook)
    with monkeypatch.context() as patch:
        patch.setattr(files, "NOTEBOOKS", tmp_path)
        assert is_current()
        notebook.write_text(notebook.read_text().replace("table=1", "table=2"))
        assert not is_current()
    monkeypatch.setattr(product, "SOURCES", product.SOURCES[1:])
    assert not is_current()


def test_profile_shows_what_its_settings_name_and_the_hyperparameters(add):
    add("one", shown_in=["figure-gain", "table-10"])
    assert product.select_products(files.list_runs("trial")) == ["figure-gain", "table-10", "table-6"]


def test_record_that_comes_makes_the_hyperparameters_old(add):
    def draw() -> None:
        table, others = hyperparameters(collect_runs("trial"))
        Product("table-6", VARIABLES).write_table(table, [table, others])

    add("one", shown_in=["table-10"])
    draw()
    assert is_current("table-6")
    add("one", 30.0, shown_in=["table-10"])
    assert not is_current("table-6")
    draw()
    assert is_current("table-6")


def test_what_is_missing_is_known_and_tables_and_charts_are_made_without_torch():
    modules = "from dwa_paper.report import {}; import sys; print([m for m in {} if m in sys.modules])"
    for imported, unwanted in (("product", ["torch", "pandas"]), ("tables, charts, page", ["torch", "datasets"])):
        command = [sys.executable, "-c", modules.format(imported, unwanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=files.NOTEBOOKS.parent)
        assert done.stdout == "[]\n"
