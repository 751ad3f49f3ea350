"""Names that are markup, a formula or a row of a table somewhere: every product shows them as text."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from nbconvert.filters import markdown2html

from dwa_core.errors import InputError
from dwa_paper.report import page, pictures, product
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.settings import files, schema
from dwa_paper.tools import export

PRODUCTS = files.list_products()
NAMES = [
    "<img src=x onerror=alert(1)>",
    '=HYPERLINK("http:x")',
    "+1+cmd|' C'!A0",
    "a|b",
    "two\nlines\n```\n<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "`code` $\\frac$ *x*",
]


def assert_harmless(markdown: str) -> None:
    html = markdown2html(markdown)
    assert not re.search(r"<(img|script)|<[^>]+javascript:", html)
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        columns, *rows = (len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL))
        assert {*rows} <= {columns}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_shows_foreign_names_as_text(name, add):
    measured = {"feature_distance": 0.5, "feature_distance_by_class": [0.5] * 10, "coverage": 0.1}
    for number, text in enumerate(NAMES):
        about = {"device": text, "versions": {text: text}, "distilled": {"artifact": f"set-{number}"}}
        about |= {"diversity": measured}
        add(f"one-{number}", 50.0, method="external", distilled=f"x/{text}", record=about, shown_in=PRODUCTS, seeds=[0])
    variables = {"profile": "trial", "In": []}
    for code in product.read_cells(name, "code")[1:]:
        exec(code, variables)
    first, second = product.locate_files(name, "trial")
    if name.startswith("figure-"):
        assert {node.tag.rpartition("}")[2] for node in ElementTree.parse(first).iter()}.isdisjoint({"img", "script"})
        assert "results/trial/one-0-seed0.json" in first.read_text()
        assert b"results/trial/one-0-seed0.json" in second.read_bytes()
        return
    assert_harmless(first.read_text())
    assert_harmless(page.tables("trial")[name].text)
    head, *rows = csv.reader(second.open(newline=""))
    assert head[-1] == "records"
    assert rows
    assert {len(row) for row in rows} == {len(head)}
    assert not [cell for row in rows for cell in row if re.match(r"[=+@-](?![\d.]+$)", cell)]
    assert any("one-0-seed0.json" in row[-1] or row[-1] == "results/trial/*-seed*.json" for row in rows)


def test_where_records_come_from_and_links_show_foreign_names_as_text(add):
    for number, text in enumerate(NAMES):
        add(f"one-{number}", 50.0, record={"device": text, "versions": {text: text}}, seeds=[0])
    runs = product.collect_runs("trial")
    assert_harmless(page.group_rows(product.to_markdown(page.origins(runs))))
    assert "(one-0-seed0.json)" in page.sources("trial")["table-1"]


def test_gallery_shows_classes_of_any_name(monkeypatch, tmp_path):
    setting = {"preset": "cifar10", "profile": "trial", "name": "a", "network": "convnet-64"}
    record = {"setting": schema.resolve(setting).recorded(), "teacher": {"artifact": "t", "accuracy": {"top1": 90.0}}}
    count = len(NAMES)
    made = SimpleNamespace(
        classes=NAMES,
        images_uint8=torch.zeros(count, 32, 32, 3, dtype=torch.uint8),
        labels=torch.arange(count),
        ipc_index=torch.zeros(count),
    )
    monkeypatch.setattr(pictures, "find_sets", lambda runs: [pictures.StoredSet(record, Path(), "")])
    monkeypatch.setattr(pictures, "read_parquet", lambda folder: made)
    monkeypatch.setattr(pictures, "load_real_images", lambda record, device: None)
    product.use_style()
    product.save_figure(pictures.gallery([]), tmp_path / "gallery.svg", Title="gallery")
    assert ElementTree.parse(tmp_path / "gallery.svg")


def test_card_shows_foreign_names_as_text_and_a_data_set_cannot_have_one(add):
    made = {"method": "dwa", "ipc": 1, "side": 32, "teacher": "t"}
    about = {"finished": "now", "device": "a device", "versions": {}, "revision": "0", "seconds": 1.0}
    for text in NAMES:
        add("one", 50.0, method="external", distilled=f"x/{text}", seeds=[0])
        (run,) = product.collect_runs("trial")
        images = torch.zeros(len(NAMES), 32, 32, 3, dtype=torch.uint8)
        numbers = torch.arange(len(NAMES))
        distilled = DistilledSet(images, numbers, numbers, NAMES, "cifar10-dwa-ipc1-0", {"settings": made, **about})
        assert_harmless(export.write_card(distilled, [run.record], "parquet").partition("\n---\n")[2])
        with pytest.raises(InputError):
            schema.resolve({"preset": "cifar10", "profile": "trial", "name": "a", "dataset": text})
