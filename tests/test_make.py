"""The Makefile by dry runs: which records, tables and figures each target asks for."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dwa_core import settings, settings_files

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILES = ("demo", "lite", "paper", "search")
NOTEBOOKS = sorted(
    path.stem for kind in ("table", "what", "figure") for path in (REPOSITORY / "notebooks").glob(f"{kind}_*.ipynb")
)


def settings_of(profile: str) -> list[settings.Setting]:
    return [settings.resolve(settings_files.read(path)) for path in settings_files.files(profile)]


def product_of(notebook: str) -> str:
    return re.sub(r"^table-0", "table-", notebook.replace("_", "-"))


def dry_run(*targets: str) -> str:
    """What make would run for `targets` if nothing were there yet."""
    command = ["make", "--dry-run", "--always-make", *targets]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout


def runs_in(plan: str) -> set[tuple[str, int]]:
    """Settings files and seeds that a dry run asks for, each once."""
    found = [(path, int(seed)) for path, seed in re.findall(r"run\.py (settings/\S+\.yaml) --seed (\d+)", plan)]
    assert len(set(found)) == len(found)
    return set(found)


def runs_of(profile: str, product: str | None = None) -> set[tuple[str, int]]:
    return {
        (str(path.relative_to(REPOSITORY)), seed)
        for path in settings_files.files(profile, product)
        for seed in settings.resolve(settings_files.read(path)).seeds
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_target_of_a_setting_runs_its_seeds(profile):
    for path in (settings_files.files(profile)[0], settings_files.files(profile)[-1]):
        expected = {
            (str(path.relative_to(REPOSITORY)), seed) for seed in settings.resolve(settings_files.read(path)).seeds
        }
        assert runs_in(dry_run(f"results/{profile}/{path.stem}.json")) == expected


def test_target_of_a_record_runs_its_seed_alone():
    plan = dry_run("results/paper/cifar10-resnet18-dwa-ipc10-seed2.json")
    assert runs_in(plan) == {("settings/paper/cifar10-resnet18-dwa-ipc10.yaml", 2)}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_target_of_a_table_or_figure_needs_the_records_that_are_shown_in_it(notebook, profile):
    product = product_of(notebook)
    plan = dry_run(product, f"PROFILE={profile}")
    assert runs_in(plan) == runs_of(profile, product)
    assert f"run.py notebooks/{notebook}.ipynb --profile {profile}" in plan


@pytest.mark.parametrize("profile", PROFILES)
def test_reproduce_makes_every_record_and_every_product_of_the_profile(profile):
    plan = dry_run("reproduce", f"PROFILE={profile}")
    assert runs_in(plan) == runs_of(profile)
    made = set(re.findall(r"run\.py notebooks/(\w+)\.ipynb", plan))
    shown = {name for setting in settings_of(profile) for name in setting.shown_in}
    hyper_parameters = {"table_06"}  # which need no settings
    assert made == {name for name in NOTEBOOKS if product_of(name) in shown} | hyper_parameters


def test_every_product_that_a_setting_names_has_a_notebook():
    shown = {name for profile in PROFILES for setting in settings_of(profile) for name in setting.shown_in}
    assert shown <= {product_of(name) for name in NOTEBOOKS}


def test_make_alone_lists_the_targets():
    listed = subprocess.run(["make"], capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    for target in ("reproduce", "plan", "settings", "test", "lab", "clean", "distclean"):
        assert re.search(rf"make {target} +\w", listed)
    for name in NOTEBOOKS:
        assert product_of(name) in listed


@pytest.fixture
def of_ones_own(tmp_path):
    """A copy of the Makefile's surroundings, and a function that writes settings/mine/NAME.yaml with further lines."""
    (tmp_path / "Makefile").write_text((REPOSITORY / "Makefile").read_text())
    for folder in ("notebooks", "settings/mine", "results/mine", ".venv"):
        (tmp_path / folder).mkdir(parents=True)
    for name in NOTEBOOKS:
        text = (REPOSITORY / "notebooks" / f"{name}.ipynb").read_text()
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(text)
    for path in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / path).touch()

    def write(name: str, lines: str = "") -> settings.Setting:
        text = f"profile: mine\nname: {name}\npreset: digits\n{lines}"
        (tmp_path / "settings" / "mine" / f"{name}.yaml").write_text(text)
        return settings.resolve(yaml.safe_load(text))

    return tmp_path, write


def planned(folder: Path, *targets: str, profile: str = "mine") -> tuple[set[tuple[str, int]], set[str]]:
    """The runs and the products that make in `folder` would make for `targets`, as far as they are not there."""
    command = ["make", "--dry-run", f"PROFILE={profile}", *targets]
    plan = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout
    return runs_in(plan), {product_of(name) for name in re.findall(r"run\.py notebooks/(\w+)\.ipynb", plan)}


def test_make_reads_the_lines_of_a_users_own_settings(of_ones_own):
    folder, write = of_ones_own
    write("a")
    write("b", "seeds:  [3, 4]\nshown_in: [figure-variance]\n")
    table, figure = planned(folder, "table-1"), planned(folder, "figure-variance")
    assert table == ({("settings/mine/a.yaml", 0)}, {"table-1"})
    assert figure == ({("settings/mine/b.yaml", 3), ("settings/mine/b.yaml", 4)}, {"figure-variance"})
    assert planned(folder, "reproduce")[0] == table[0] | figure[0]


def test_make_takes_settings_without_these_lines_as_python_does(of_ones_own):
    folder, write = of_ones_own
    setting = write("a")
    runs, products = planned(folder, "reproduce")
    assert runs == {("settings/mine/a.yaml", seed) for seed in setting.seeds}
    assert products - {"table-6"} == set(setting.shown_in)


def test_hyper_parameters_are_written_whoever_names_their_table(of_ones_own):
    folder, write = of_ones_own
    write("a", "shown_in: [table-6]\n")
    assert planned(folder, "reproduce")[1] == {"table-6"}
    assert planned(folder, "reproduce", profile="another")[1] == {"table-6"}


@pytest.mark.parametrize("source", ["presets.py", "published/published_results.csv"])
def test_table_is_made_anew_when_what_it_shows_has_changed(source, of_ones_own):
    folder, write = of_ones_own
    write("a", "shown_in: [table-6]\n")
    for name in ("results/mine/a-seed0.json", "results/mine/table_06.md", "results/mine/table_06.csv"):
        (folder / name).touch()
    (folder / "dwa_core" / "published").mkdir(parents=True)
    assert planned(folder, "table-6") == (set(), set())
    changed = folder / "dwa_core" / source
    changed.touch()
    later = (folder / "results/mine/table_06.md").stat().st_mtime + 2
    os.utime(changed, (later, later))
    assert planned(folder, "table-6") == (set(), {"table-6"})


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        ("distilled: theirs\nmethod: external\n", True),
        ("teacher: {weights: own.safetensors}\n", True),
        ("teacher:\n  weights: own.safetensors\n", True),
        ("teacher: {epochs: 3}  # no own.safetensors\n", False),
    ],
)
def test_runner_is_asked_whether_a_users_own_files_have_changed(lines, asked, of_ones_own):
    folder, write = of_ones_own
    write("a", lines)
    (folder / "results" / "mine" / "a-seed0.json").touch()
    assert planned(folder, "results/mine/a.json")[0] == ({("settings/mine/a.yaml", 0)} if asked else set())
