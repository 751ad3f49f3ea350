"""Products: tables and figures by name, the runs that each shows, its files, and whether they are current.

A product has one name: `table-1` is notebooks/table-1.ipynb, `make table-1`, `shown_in: [table-1]`, and
results/PROFILE/table-1.md and .csv; `figure-gain` is likewise figures/PROFILE/figure-gain.svg and .png. Neither torch
nor pandas is imported here, so that a command knows at once what is missing.
"""

import hashlib
import html
import json
import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dwa_core import recipe
from dwa_paper.runs import notebook
from dwa_paper.runs.records import find_record
from dwa_paper.settings import files, presets
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting

HERE = Path(__file__).parent
# What a product shows and how, beside its notebook and the records.
SOURCES = [*sorted(HERE.glob("*.py")), *sorted(HERE.glob("published/*.csv")), presets.PATH, Path(recipe.__file__)]


class Run(NamedTuple):
    """One student: its setting as a record holds it, the command that makes its record, and that record or None."""

    setting: dict
    command: str
    record: dict | None


def collect_runs(profile: str, product: str | None = None) -> list[Run]:
    """Every run that the settings of `profile` ask for, in all or in `product`: setting by setting, seed by seed.

    A record of other numbers than its setting now has counts as missing.
    """
    return [
        Run(setting.recorded(), f"make results/{profile}/{setting.record_path().name}", find_record(setting))
        for setting in files.list_runs(profile, product)
    ]


class Product:
    """One table or figure in its notebook, whose heading is the title and whose last Markdown cell is the caption.

    Making that of a figure sets matplotlib's style.

    Args:
        variables: the notebook's `globals()`, with its one parameter, the profile.

    Raises:
        InputError: an unknown parameter, or a profile without settings.
    """

    def __init__(self, name: str, variables: dict):
        self.name, self.profile = name, notebook.read_profile(variables)
        texts = read_cells(name, "markdown")
        self.title = texts[0].partition("\n")[0].removeprefix("# ")
        self.caption = " ".join(texts[-1].split())
        # Before the records are read: one that comes later must not count as shown.
        self.digest = digest(name, files.list_runs(self.profile))
        if name.startswith("figure-"):
            use_style()

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that it shows; the first look prints how many have records and how to make the others."""
        runs = collect_runs(self.profile, self.name)
        missing = [run.command for run in runs if run.record is None]
        print(f"{self.name}: {len(runs) - len(missing)} of {len(runs)} records are there")
        if missing:
            print("Not run yet:", *missing, sep="\n  ")
        return runs

    def write_table(self, frame, blocks: list):
        """Writes the .csv from `frame`, and the .md from `blocks`, texts or frames of texts; returns it to be shown."""
        from IPython.display import Markdown

        markdown, csv = self._new_files()
        records = frame.get("records", f"results/{self.profile}/*-seed*.json")  # of each row, or all there are
        frame = frame.drop(columns="records", errors="ignore").assign(records=records)
        frame.round(4).map(escape_csv).to_csv(csv, index=False)
        tables = [block if isinstance(block, str) else to_markdown(block) for block in blocks]
        texts = [f"# {self.title}, profile {self.profile}", self.caption, *tables]
        markdown.write_text("\n\n".join([*filter(None, texts), f"<!-- drawn from {self.digest} -->"]) + "\n")
        return Markdown(markdown.read_text())

    def write_figure(self, figure) -> None:
        """Writes the figure as .svg and .png; title, caption, notebook, digest and records are in their metadata."""
        records = " ".join(run.command.removeprefix("make ") for run in self.runs if run.record)
        about = {"Title": self.title, "Description": self.caption, "Relation": records}
        source = f"notebooks/{self.name}.ipynb, drawn from {self.digest}"
        save_figure(figure, self._new_files()[0], **about, Source=source)

    def _new_files(self) -> list[Path]:
        paths = locate_files(self.name, self.profile)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        print(*(path.relative_to(root()) for path in paths), sep="\n")
        return paths


def use_style() -> None:
    """One look for all figures: light grid, embedded fonts, text that stays text in SVG."""
    import matplotlib.pyplot as plt
    import seaborn as sns  # here because it takes a second, which no table and no run of a setting must wait

    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({"svg.fonttype": "none", "savefig.bbox": "tight", "figure.constrained_layout.use": True})
    plt.rcParams["svg.hashsalt"] = "dwa"  # the same figure gives the same file, byte for byte


def save_figure(figure, path: Path, **about: str) -> None:
    """Writes the figure to `path`, which ends in .svg, and as .png; the same figure gives the same bytes."""
    figure.savefig(path.with_suffix(".png"), dpi=150, metadata={**about, "Software": None})
    figure.savefig(path, metadata={**about, "Date": None})


def to_markdown(frame) -> str:
    """A frame of texts as a Markdown table, in which no text is markup."""
    shown = frame.fillna("").map(escape_markdown).rename(columns=escape_markdown)
    return shown.to_markdown(index=False, disable_numparse=True)


def escape_markdown(value):
    """A text as it is written in Markdown and in HTML made of it, on one line; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[\\`*|$]|(?<=\])(?=\()", r"\\\g<0>", html.escape(" ".join(value.split()), quote=False))


def escape_csv(value):
    """A text as it is written in CSV, so that no spreadsheet takes it for a formula."""
    return f"'{value}" if isinstance(value, str) and re.match(r"[=+\-@\t\r](?![\d.]+$)", value) else value


def locate_files(name: str, profile: str) -> list[Path]:
    """The files of a product: .md and .csv of a table, .svg and .png of a figure."""
    folder, endings = ("figures", ("svg", "png")) if name.startswith("figure-") else ("results", ("md", "csv"))
    return [root() / folder / profile / f"{name}.{ending}" for ending in endings]


def select_products(runs: list[Setting]) -> list[str]:
    """The products that a profile of these runs shows: those that they name, and those that show all runs."""
    named = {name for setting in runs for name in setting.shown_in}
    return [name for name in files.list_products() if name in named or shows_all_runs(name)]


def shows_all_runs(product: str) -> bool:
    """Whether a product shows every run of a profile, and without records what the settings ask for."""
    return any("collect_runs(" in text for text in read_cells(product, "code"))


def is_current(product: str, profile: str, runs: list[Setting]) -> bool:
    """Whether the files of a product are there, and drawn from what is there now: records, notebook and code.

    Args:
        runs: all that the settings of `profile` ask for, as `files.list_runs` returns them.
    """
    drawn_from = digest(product, runs).encode()
    return all(
        path.is_file() and (path.suffix == ".csv" or drawn_from in path.read_bytes())
        for path in locate_files(product, profile)
    )


def digest(product: str, runs: list[Setting]) -> str:
    """What a product is drawn from, as 10 hexadecimal digits: settings and records of its runs, its notebook, code."""
    chosen = runs if shows_all_runs(product) else [setting for setting in runs if product in setting.shown_in]
    shown = [[setting.recorded(), checksum(setting.record_path())] for setting in chosen]
    parts = [product, shown, read_cells(product), [checksum(path) for path in SOURCES]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def checksum(path: Path) -> str:
    """SHA-256 of a file, or "missing"."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def read_cells(product: str, kind: str = "") -> list[str]:
    """The texts of the cells of a product's notebook, or of those of one kind: "markdown" or "code"."""
    notebook_cells = json.loads((files.NOTEBOOKS / f"{product}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in notebook_cells if kind in cell["cell_type"]]
