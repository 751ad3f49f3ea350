"""The settings of the grid: complete, sharing what they can share, and the files that are generated from them."""

import json

import pytest
import yaml

from dwa_core import models
from dwa_paper.runs import sets, teachers
from dwa_paper.settings import files, grid, schema

DATA_SETS = ("cifar10", "cifar100", "tiny-imagenet", "imagenet-1k")
REPORTED_COUNTS = {"tiny-imagenet": (50, 100), "imagenet-1k": (10, 50, 100)}


def resolved(profile: str, product: str | None = None) -> list[schema.Setting]:
    settings = [schema.resolve(parameters) for parameters in files.read_settings(profile).values()]
    return [setting for setting in settings if product is None or product in setting.shown_in]


def test_no_two_settings_are_the_same_run():
    numbers = [
        setting.model_dump_json(exclude={"name", "seeds", "shown_in"})
        for profile in ("demo", "paper")
        for setting in resolved(profile)
    ]
    assert len(set(numbers)) == len(numbers)


def cells(product: str) -> set[tuple]:
    return {
        (setting.dataset, setting.network, setting.student, setting.method, setting.ipc, setting.authors)
        for setting in resolved("paper", product)
    }


def test_table_1_has_every_cell_of_the_design_by_the_defaults_and_the_authors_code():
    ours = {("resnet18", method) for method in ("random-real", "sre2l", "dwa")}
    ours |= {("convnet-128", method) for method in ("random-real", "dwa")}
    assert cells("table-1") == {
        (dataset, network, network, method, ipc, authors)
        for dataset in ("cifar10", "cifar100")
        for network, method in ours
        for ipc in (10, 50)
        for authors in (True, False)
    }


def test_table_2_has_every_reported_cell_of_ours():
    wanted = {
        (dataset, "resnet18", student, method, ipc, True)
        for dataset, counts in REPORTED_COUNTS.items()
        for ipc in counts
        for student in ("resnet18", "resnet50", "resnet101")
        for method in ("sre2l", "dwa")
    }
    assert wanted <= cells("table-2")
    assert all(setting.seeds == [0, 1, 2] for setting in resolved("paper", "table-2"))


def test_table_3_has_three_arms_of_every_student():
    arms = {(s.synthesis.adjustment, s.student, s.ipc) for s in resolved("paper", "table-3")}
    assert len(arms) == 3 * 8 * 2
    assert {setting.dataset for setting in resolved("paper", "table-3")} == {"cifar100"}


def test_tables_9_and_10_and_the_spread():
    assert {(s.network, s.student) for s in resolved("paper", "table-9")} == {
        (network, "vit_tiny_patch16_224") for network in ("resnet18", "resnet50", "resnet101")
    }
    assert {(s.method, s.tasks, s.ipc) for s in resolved("paper", "table-10")} == {("sre2l", 5, 20), ("dwa", 5, 20)}
    spread = [(s.dataset, s.synthesis.seed) for s in resolved("paper", "table-spread")]
    assert sorted(spread) == sorted((name, seed) for name in DATA_SETS for seed in (0, 1, 2))


def test_sweeps_hold_the_values_of_the_design():
    strengths = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15)
    stages = [setting.synthesis for setting in resolved("paper", "figure-variance")]
    decoupled = {round(stage.r_bn * stage.r_var, 6) for stage in stages if stage.r_bn == 0.01}
    coupled = {stage.r_bn for stage in stages if stage.r_var == 1}
    assert decoupled == coupled == set(strengths)
    assert len(stages) == 2 * len(strengths) - 1, "the weakest is one run in both"
    pairs = {(s.synthesis.steps, s.synthesis.rho) for s in resolved("paper", "figure-steps-rho")}
    assert pairs == {(steps, rho) for steps in (1, 4, 8, 12, 16, 20) for rho in (0.005, 0.01, 0.015, 0.02, 0.03)}


@pytest.mark.parametrize("profile", ["demo", "paper"])
def test_every_network_of_the_settings_can_be_built_at_its_side(profile):
    for setting in resolved(profile):
        for key in ("network", "student"):
            models.check_network(key, getattr(setting, key), setting.stem, setting.images.side)


def test_demo_has_every_product_of_the_paper_and_what_the_teacher_does():
    shown = {profile: {name for s in resolved(profile) for name in s.shown_in} for profile in ("demo", "paper")}
    assert shown["demo"] == shown["paper"] | {"figure-teacher"}


def artifacts_of(product: str) -> tuple[set[str], set[str]]:
    """Names of the teachers and distilled sets that the runs of a product of the paper use, the data the same."""
    trained, made = set(), set()
    for setting in resolved("paper", product):
        if setting.method == "external":  # named by its files, which are on the hub
            continue
        teacher, _ = teachers.describe(setting, "data")
        trained.add(teacher)
        made.add(sets.describe(setting, "data", teacher)[0])
    return trained, made


def test_cells_share_teachers_and_distilled_sets():
    trained, made = artifacts_of("table-3")
    assert len(trained) == 1
    assert len(made) == 3 * 2, "one per arm and ipc, whoever the student is"
    trained, made = artifacts_of("table-2")
    assert len(trained) == 2, "one per data set, by the defaults and the authors' code"
    assert len(made) == 2 * 2 * 2 + 3 * 2, "Tiny-ImageNet by the defaults and the authors' code, ImageNet-1K by one"
    assert artifacts_of("table-5")[1] <= made, "the sets of ImageNet-1K are made once"
    assert artifacts_of("figure-gain")[1] <= made | artifacts_of("table-1")[1]


def test_artifacts_of_committed_records_keep_their_names():
    paths = sorted((grid.SETTINGS.parent / "results" / "lite").glob("*-seed*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text())
        setting = schema.Setting.model_validate({**record["setting"], "seeds": [0]})
        name, _ = teachers.describe(setting, record["data"]["fingerprint"])
        assert name == record["teacher"]["artifact"], path.name
        made, _ = sets.describe(setting, record["data"]["fingerprint"], name)
        assert made == record["distilled"]["artifact"], path.name


def test_what_all_runs_of_a_profile_have_in_common_is_written_but_no_part_of_the_name():
    common = {"validation": 0.1, "network": "convnet-128", "teacher.epochs": 5}
    given = {"preset": "cifar10", "method": "dwa", "ipc": 10, "relabel.batch_size": 25}
    run = grid.minimal_settings(given, "{preset}-{method}", "search", common)
    assert run["name"] == "cifar10-dwa-batch_size25"
    assert (run["validation"], run["network"], run["teacher"]) == (0.1, "convnet-128", {"epochs": 5})
    run = grid.minimal_settings({**given, "teacher.epochs": 2}, "{preset}-{method}", "search", common)
    assert run["name"] == "cifar10-dwa-epochs2-batch_size25"
    assert run["teacher"] == {"epochs": 2}


def test_what_is_switched_on_or_a_list_is_named_by_its_key_alone():
    given = {"preset": "cifar10", "network": "resnet18", "method": "dwa", "ipc": 10}
    given |= {"relabel.teacher_batch_statistics": True, "images.std_after_teacher": [0.2, 0.2, 0.2]}
    run = grid.minimal_settings(given, "{preset}-{method}", "paper", {})
    assert run["name"] == "cifar10-dwa-teacher_batch_statistics-std_after_teacher"


def test_what_a_preset_says_anyway_is_neither_written_nor_part_of_the_name():
    given = {"preset": "cifar100", "network": "resnet18", "method": "dwa", "ipc": 10}
    given |= {"synthesis.adjustment": "directed", "synthesis.steps": 4, "student": "resnet18", "authors": True}
    run = grid.minimal_settings(given, "{preset}-{method}", "paper", {})
    assert run["name"] == "cifar100-dwa-steps4-authors"
    assert run["synthesis"] == {"steps": 4}
    assert "student" not in run


@pytest.mark.parametrize(
    "differences",
    [
        ["method: dwa", "method: sre2l"],
        # The preset's own 100 is left out of a run's settings, which are then a part of the other's.
        ["method: dwa", "method: dwa, relabel.epochs: 100"],
    ],
)
def test_two_runs_under_one_name_are_refused(differences, tmp_path, monkeypatch, refused):
    description = tmp_path / "grid.yaml"
    rows = "".join(f"    - {{preset: digits, ipc: 1, network: convnet-64, {each}}}\n" for each in differences)
    common = "  common: {relabel.epochs: 5}\n"
    description.write_text(f"demo:\n  name: same\n  seeds: [0]\n{common}  table-1:\n{rows}")
    monkeypatch.setattr(grid, "GRID", description)
    with refused("same"):
        grid.expand("demo")


# ----------------------------------------------------------------------------------------- generated files

DESCRIPTION = """
demo:
  name: "{preset}-{method}"
  seeds: [0, 1]
  table-1:
    - {preset: digits, method: [dwa, sre2l], ipc: 1, network: convnet-64}
"""


@pytest.fixture
def description(tmp_path, monkeypatch):
    """A grid of two settings, with no files yet."""
    monkeypatch.setattr(grid, "SETTINGS", tmp_path)
    monkeypatch.setattr(grid, "GRID", tmp_path / "grid.yaml")
    monkeypatch.setattr(files, "SETTINGS", tmp_path)
    (tmp_path / "grid.yaml").write_text(DESCRIPTION)
    return tmp_path


def test_generated_files_are_written_where_their_text_changed(description, capsys):
    grid.write()
    paths = [description / "demo" / f"digits-{method}.yaml" for method in ("dwa", "sre2l")]
    assert capsys.readouterr().out.splitlines()[:2] == [f"added: {path}" for path in paths]
    for path in paths:
        assert path.read_bytes().startswith(grid.HEADER)
        assert files.read(path) == grid.expand("demo")[path.stem]
    dates = [path.stat().st_mtime_ns for path in paths]
    grid.write()
    assert capsys.readouterr().out == "2 generated files in settings/ are unchanged\n"
    assert [path.stat().st_mtime_ns for path in paths] == dates
    (description / "grid.yaml").write_text(DESCRIPTION.replace("[dwa, sre2l]", "dwa").replace("[0, 1]", "[2]"))
    grid.write()
    assert capsys.readouterr().out.splitlines()[:2] == [f"changed: {paths[0]}", f"removed: {paths[1]}"]
    assert files.read(paths[0])["seeds"] == [2]
    assert not paths[1].exists()


def test_file_of_ones_own_is_never_touched_and_wins_over_the_grid(description, capsys):
    text = "profile: demo\nname: digits-dwa\npreset: digits\nipc: 7\n"
    own, other = description / "demo" / "digits-dwa.yaml", description / "mine" / "other.yaml"
    for path in (own, other):
        path.parent.mkdir()
        path.write_text(text)
    grid.write()
    assert own.read_text() == other.read_text() == text
    assert f"not generated: {own}; a file of your own has this name\n" in capsys.readouterr().out
    found = files.read_settings("demo")
    assert (found["digits-dwa"]["ipc"], found["digits-sre2l"]["ipc"]) == (7, 1)


def test_generated_file_is_not_read_before_its_first_line_is_deleted(description):
    grid.write()
    path = description / "demo" / "digits-dwa.yaml"
    path.write_text(path.read_text().replace("ipc: 1", "ipc: 3"))
    assert files.read_settings("demo")["digits-dwa"]["ipc"] == 1
    path.write_text(path.read_text().partition("\n")[2])
    assert files.read_settings("demo")["digits-dwa"]["ipc"] == 3


def test_every_product_of_the_grid_has_a_notebook():
    for profile, described in yaml.safe_load(grid.GRID.read_text()).items():
        assert described.keys() - {"name", "seeds", "common"} <= {*files.list_products()}, profile
