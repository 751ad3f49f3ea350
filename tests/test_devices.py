"""How networks run: on which device, in which precision, with which algorithms."""

import os

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from dwa_core import devices, distilled, models, notebook, relabel, synthesize, teacher


@pytest.fixture
def algorithms():
    """The global switches of torch are put back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.mark.usefixtures("algorithms")
def test_deterministic_setting_reaches_torch_and_the_names_of_artifacts(tiny_setting, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    given = {"preset": "digits", "profile": "test", "name": "tiny"}
    plain = notebook.read_setting({**given, "In": []})
    assert not torch.are_deterministic_algorithms_enabled()
    exact = notebook.read_setting({**given, "deterministic": True, "In": []})
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert teacher.describe(plain, "data")[0] != teacher.describe(exact, "data")[0]
    names = [distilled.describe(setting, "data", "teacher")[0] for setting in (plain, exact)]
    assert names[0] != names[1]
    assert "deterministic" not in teacher.describe(plain, "data")[1]


@pytest.mark.usefixtures("algorithms")
def test_whole_chain_runs_with_deterministic_algorithms(tiny_setting, digits, tiny_teacher, cpu):
    devices.use_deterministic_algorithms()
    setting = tiny_setting(synthesis={"resized_crop": True}, relabel={"crop": "resized", "mixing": "cutmix"})
    trained = teacher.train_or_load(tiny_setting(teacher={"epochs": 1}), digits, cpu)
    distilled = synthesize.synthesize_or_load(setting, digits, trained, cpu)
    assert relabel.evaluate(setting, digits, trained, distilled, cpu)["accuracy"]["last"] > 0


def test_auto_takes_bf16_only_where_the_device_computes_in_it(monkeypatch, cpu):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert devices.choose_precision("auto", cpu) is torch.bfloat16
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert devices.choose_precision("auto", cpu) is torch.float32
    assert devices.choose_precision("bf16", cpu) is torch.bfloat16
    assert devices.choose_precision("fp32", cpu) is torch.float32


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_network_computes_in_the_chosen_precision_and_keeps_its_weights(precision, cpu):
    network = models.build("convnet-8", 10, "small", 16, seed=0)
    with devices.autocast(cpu, precision):
        assert network(torch.zeros(1, 3, 16, 16)).dtype is precision
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_frozen_copy_shares_nothing_with_the_network():
    network = models.build("convnet-8", 10, "small", 16, seed=0).train()
    twin = devices.frozen_copy(network)
    assert not any(layer.training for layer in twin.modules())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    before = parameters_to_vector(network.parameters()).detach()
    for parameter in twin.parameters():
        parameter.add_(1)
    assert torch.equal(parameters_to_vector(network.parameters()), before)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert devices.choose_device("auto").type == expected
        assert devices.choose_device("cpu").type == "cpu"
