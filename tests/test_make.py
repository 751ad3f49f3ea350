"""The Makefile by dry runs: which records, tables and figures each target asks for."""

import re
import subprocess
from pathlib import Path

import pytest

from dwa_core import settings

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILES = ("demo", "lite", "paper")
NOTEBOOKS = sorted(
    path.stem for kind in ("table", "what", "figure") for path in (REPOSITORY / "notebooks").glob(f"{kind}_*.ipynb")
)


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
        for path in settings.files(profile, product)
        for seed in settings.resolve(settings.read(path)).seeds
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_target_of_a_setting_runs_its_seeds(profile):
    for path in (settings.files(profile)[0], settings.files(profile)[-1]):
        expected = {(str(path.relative_to(REPOSITORY)), seed) for seed in settings.resolve(settings.read(path)).seeds}
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
    shown = {name for path in settings.files(profile) for name in settings.resolve(settings.read(path)).shown_in}
    hyper_parameters = {"table_06"}  # which need no settings
    assert made == {name for name in NOTEBOOKS if product_of(name) in shown} | hyper_parameters


def test_every_product_that_a_setting_names_has_a_notebook():
    shown = {
        name
        for profile in PROFILES
        for path in settings.files(profile)
        for name in settings.resolve(settings.read(path)).shown_in
    }
    assert shown <= {product_of(name) for name in NOTEBOOKS}


def test_make_alone_lists_the_targets():
    listed = subprocess.run(["make"], capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    for target in ("reproduce", "plan", "settings", "test", "lab", "clean", "distclean"):
        assert re.search(rf"make {target} +\w", listed)
    for name in NOTEBOOKS:
        assert product_of(name) in listed


def test_make_reads_the_lines_of_a_users_own_settings(tmp_path):
    """In a copy of the Makefile's surroundings: seeds, products, and what holds where neither is said."""
    (tmp_path / "Makefile").write_text((REPOSITORY / "Makefile").read_text())
    for name in NOTEBOOKS:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    folder = tmp_path / "settings" / "mine"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("profile: mine\nname: a\npreset: digits\n")
    (folder / "b.yaml").write_text("seeds:  [3, 4]\nprofile: mine\nname: b\nshown_in: [figure-variance]\n")
    (tmp_path / ".venv").mkdir()
    for path in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / path).touch()

    def asked(*targets: str) -> set[tuple[str, int]]:
        command = ["make", "--dry-run", "PROFILE=mine", *targets]
        return runs_in(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout)

    assert asked("table-1") == {("settings/mine/a.yaml", 0)}
    assert asked("figure-variance") == {("settings/mine/b.yaml", 3), ("settings/mine/b.yaml", 4)}
    assert asked("reproduce") == asked("table-1") | asked("figure-variance")
