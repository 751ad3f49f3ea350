"""Settings files, profiles, and what a target names."""

import pytest

from dwa_paper.settings import files, grid, schema


@pytest.fixture
def settings_file(tmp_path, monkeypatch):
    """A function that writes a settings file to lite/NAME.yaml, in place of those of the repository."""
    monkeypatch.setattr(files, "SETTINGS", tmp_path)

    def write(content: str | bytes, name: str = "setting"):
        path = tmp_path / "lite" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_settings_file_is_read_as_it_is(settings_file):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nsynthesis: {rho: 1.0e-3}\n")
    parameters = files.read(path)
    assert parameters == {"profile": "lite", "name": "setting", "preset": "cifar10", "synthesis": {"rho": 0.001}}
    assert schema.resolve(parameters).synthesis.rho == 0.001


def test_exponent_that_yaml_reads_as_text_is_refused_with_a_hint(settings_file, refused):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nsynthesis: {rho: 1e-3}\n")
    with refused("synthesis.rho", "'1e-3'", "1.0e-3"):
        schema.resolve(files.read(path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- profile\n- name\n", "mapping"),
        ("", "mapping"),
        ("profile: [lite\nname: setting\n", "not YAML"),
        ("profile: lite\n\tname: setting\n", "not YAML"),
        (b"profile: lite\nname: setting\npreset: \xe9\n", "not UTF-8"),
        ("name: setting\npreset: cifar10\n", "profile"),
        ("profile: lite\nname: setting\nshown_in: [table-1, table-77]\n", "'table-77'"),
        ("profile: lite\nname: setting\nshown_in: [1]\n", "allowed: figure-accuracy, "),
        ("profile: paper\nname: setting\npreset: cifar10\n", "'paper'"),
        ("profile: lite\nname: other\npreset: cifar10\n", "'other'"),
    ],
)
def test_bad_settings_file_is_refused_in_one_line_that_names_it(content, text, settings_file, refused):
    path = settings_file(content)
    with refused(str(path), text):
        files.read(path)


@pytest.mark.parametrize(
    ("lines", "text"),
    [("seeds: 3", "seeds: 3"), ("seeds: []", "seeds: []"), ("shown_in: table-1", "shown_in: 'table-1'")],
)
def test_lists_that_are_none_are_refused(lines, text, settings_file, refused):
    path = settings_file(f"profile: lite\nname: setting\npreset: cifar10\n{lines}\n")
    with refused(text):
        files.find_settings(str(path))
    with refused(text):
        files.list_runs("lite")


def test_lists_may_be_written_over_several_lines(settings_file):
    settings_file("profile: lite\nname: setting\npreset: cifar10\nseeds:\n- 3\n- 4\nshown_in:\n- table-3\n")
    assert [setting.seed for setting in files.list_runs("lite", "table-3")] == [3, 4]
    assert files.list_runs("lite", "table-1") == []


def test_missing_settings_file_is_refused(tmp_path, refused):
    with refused(str(tmp_path / "lite" / "none.yaml"), "cannot be read"):
        files.read(tmp_path / "lite" / "none.yaml")


def test_settings_can_be_shown_wherever_there_is_a_notebook_and_nowhere_else(settings_file):
    products = files.list_products()
    assert {"table-1", "table-6", "table-10", "table-spread", "figure-steps-rho", "what-moves-the-number"} < {*products}
    assert not {"table-7", "table-8", "report", "setting"} & {*products}
    path = settings_file(f"profile: lite\nname: setting\nshown_in: [{', '.join(products)}]\n")
    assert files.read(path)["shown_in"] == products


def test_settings_of_a_product_are_those_that_name_it_or_say_nothing(settings_file):
    settings_file("profile: lite\nname: setting\npreset: cifar10\n")
    settings_file("profile: lite\nname: other\npreset: cifar10\nshown_in: [table-3, figure-variance]\n", "other")
    assert list(files.read_settings("lite")) == ["other", "setting"]
    for product, name in {"table-3": "other", "table-1": "setting", "figure-gallery": "setting"}.items():
        assert [setting.name for setting in files.list_runs("lite", product)] == [name]


def test_profiles_are_those_of_the_grid_and_the_folders(settings_file, refused):
    settings_file("profile: lite\nname: setting\npreset: cifar10\n")
    assert files.list_profiles() == sorted({"lite", *grid.load_yaml(grid.GRID)})
    with refused("profile: 'papre' is not known; did you mean paper?"):
        files.check_profile("papre")
    with refused("profile: 'x' is not known; allowed: demo, lite, paper"):
        files.check_profile("x")


def test_slip_in_a_key_is_answered_with_the_key_and_the_file(settings_file, refused):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nteacher: {epoch: 3}\n")
    for read in (lambda: files.find_settings(str(path)), lambda: files.list_runs("lite")):
        with refused("settings/lite/setting.yaml: teacher.epoch: unknown key; did you mean epochs?"):
            read()


# ------------------------------------------------------------------------------------------------- targets


def found(target) -> list[tuple[str, int]]:
    return [(each["name"], seed) for each in files.find_settings(str(target)) for seed in each["seeds"]]


def test_target_names_a_setting_or_one_of_its_seeds(settings_file):
    path = settings_file("profile: lite\nname: setting\npreset: cifar10\nseeds: [0, 2]\n")
    settings_file("profile: lite\nname: other\npreset: cifar10\n", "other")
    assert found(path) == found("results/lite/setting.json") == [("setting", 0), ("setting", 2)]
    assert found("results/lite/setting-seed2.json") == [("setting", 2)]
    assert found("lite") == [("other", 0), ("setting", 0), ("setting", 2)]


def test_setting_of_the_grid_needs_no_file():
    for target in ("settings/demo/digits-dwa-ipc10.yaml", "results/demo/digits-dwa-ipc10.json"):
        assert found(target) == [("digits-dwa-ipc10", seed) for seed in (0, 1, 2)]


def test_setting_whose_name_ends_as_a_record_does(settings_file):
    settings_file("profile: lite\nname: a-seed1\npreset: cifar10\n", "a-seed1")
    assert found("results/lite/a-seed1.json") == [("a-seed1", 0)]
    settings_file("profile: lite\nname: a\npreset: cifar10\nseeds: [0, 1]\n", "a")
    assert found("results/lite/a-seed1.json") == [("a-seed1", 0)], "make calls a setting by its name"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            "results/lite/none.json",
            "results/lite/none.json: no setting of this name; make plan PROFILE=lite lists them",
        ),
        ("results/lite/setting-seed01.json", "no setting of this name; did you mean setting?"),
        ("results/lite/setting-seed1.json", "seed: 1 is not one of the seeds of settings/lite/setting.yaml, [0]"),
        ("results/papre/setting.json", "profile: 'papre' is not known"),
        ("settings/lite/none.yaml", "cannot be read"),
        ("papre", "profile: 'papre' is not known"),
    ],
)
def test_target_that_names_nothing_is_refused(target, text, settings_file, refused):
    settings_file("profile: lite\nname: setting\npreset: cifar10\n")
    with refused(text):
        files.find_settings(target)
