"""What a notebook is given: its parameters become a setting or a profile, checked before any work."""

import os

import pytest
import torch
import yaml

from dwa_paper.runs import notebook, sets, teachers
from dwa_paper.settings import schema

# What a kernel holds when a notebook makes its first call; `In` is Jupyter's list of the cells that were run.
NOTEBOOK = {"profile": "test", "name": "name", "preset": "digits", "ipc": 10, "student": None}
NOTEBOOK |= {"np": object(), "In": ["", "ipc = 10"]}


def test_notebook_parameters_become_a_setting():
    cells = [*NOTEBOOK["In"], "# Parameters\nipc = 3\n"]
    setting = notebook.read_setting({**NOTEBOOK, "ipc": 3, "synthesis": {"rho": 0.5}, "In": cells})
    assert (setting.ipc, setting.synthesis.rho, setting.student) == (3, 0.5, "convnet-64")


def test_parameter_that_papermill_does_not_know_is_refused(refused):
    cells = [*NOTEBOOK["In"], "# Parameters\nipc = 3\nipcs = 5\n"]
    with refused("ipcs: ", "ipc,"):
        notebook.read_setting({**NOTEBOOK, "ipc": 3, "ipcs": 5, "In": cells})


@pytest.mark.parametrize("key", ["network", "student"])
def test_unknown_network_is_refused_before_any_work(key, refused):
    with refused(key, "'resnet19'", "resnet18", "convnet-N"):
        notebook.read_setting({**NOTEBOOK, key: "resnet19"})


def test_network_that_cannot_be_a_teacher_is_refused_before_any_work(refused):
    transformer = {"network": "vit_tiny_patch16_224", "stem": "torchvision", "images": {"side": 32}}
    with refused("network", "BatchNorm2d"):
        notebook.read_setting({**NOTEBOOK, **transformer})
    with refused("stem", "student", "small"):
        notebook.read_setting({**NOTEBOOK, "student": "vit_tiny_patch16_224"})


def test_notebook_of_a_profile_knows_profiles_and_no_other_parameter(refused):
    notebook.read_profile({"profile": "demo", "In": ["", "# Parameters\nprofile = 'demo'\n"]})
    with refused("profile", "'huge'", "demo", "lite", "paper", "search"):
        notebook.read_profile({"profile": "huge", "In": [""]})
    with refused("ipc: ", "profile"):
        notebook.read_profile({"profile": "demo", "ipc": 3, "In": ["", "# Parameters\nipc = 3\n"]})


@pytest.mark.usefixtures("algorithms")
def test_deterministic_setting_reaches_torch_and_the_names_of_artifacts(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    plain = notebook.read_setting(NOTEBOOK)
    assert not torch.are_deterministic_algorithms_enabled()
    exact = notebook.read_setting({**NOTEBOOK, "deterministic": True})
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert teachers.describe(plain, "data")[0] != teachers.describe(exact, "data")[0]
    names = [sets.describe(setting, "data", "teacher")[0] for setting in (plain, exact)]
    assert names[0] != names[1]
    assert "deterministic" not in teachers.describe(plain, "data")[1]


def test_settings_file_of_a_notebook_gives_its_setting(own_root):
    given = {**NOTEBOOK, "profile": "mine", "name": "one", "seed": 3, "synthesis": {"rho": 0.5}, "relabel": {}}
    text = notebook.format_settings(given)
    assert yaml.safe_load(text).keys() == {"profile", "name", "preset", "ipc", "seeds", "synthesis"}
    again = schema.resolve(yaml.safe_load(text)).split_seeds()
    assert again == notebook.read_setting(given).split_seeds()
    assert notebook.format_settings({**NOTEBOOK, "profile": "demo", "name": "digits-dwa-ipc10"}) == "", "it is there"
