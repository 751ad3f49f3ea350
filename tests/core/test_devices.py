"""How networks run: on which device, in which precision, with which algorithms."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from dwa_core import devices, models
from dwa_paper.runs import sets, students, teachers


@pytest.mark.usefixtures("algorithms")
def test_whole_chain_runs_with_deterministic_algorithms(tiny_setting, digits, compute):
    devices.use_deterministic_algorithms()
    setting = tiny_setting(synthesis={"resized_crop": True}, relabel={"crop": "resized", "mixing": "cutmix"})
    trained = teachers.load_or_train(tiny_setting(teacher={"epochs": 1}), digits, compute)
    distilled = sets.load_or_synthesize(setting, digits, trained, compute)
    record = students.evaluate(setting, digits, [digits], [trained], [distilled], compute)
    assert record["accuracy"]["last"] > 0


@pytest.mark.parametrize(
    ("capability", "seconds", "expected"),
    [
        ("avx512_bf16", {torch.bfloat16: 1.0, torch.float32: 1.7}, torch.bfloat16),
        ("avx512_bf16", {torch.bfloat16: 1.7, torch.float32: 1.0}, torch.float32),
        ("avx2", {torch.bfloat16: 1.0, torch.float32: 1.7}, torch.float32),
    ],
)
def test_auto_takes_the_type_that_a_cpu_is_faster_in(capability, seconds, expected, monkeypatch):
    def repeat(call, **_):
        return [9.0, seconds[call().dtype], seconds[call().dtype] + 1]

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: True})
    monkeypatch.setattr("timeit.repeat", repeat)
    devices.bf16_is_faster_on_cpu.cache_clear()
    before = torch.get_rng_state()
    assert devices.choose("cpu", "auto").precision is expected
    assert torch.equal(torch.get_rng_state(), before), "no random number is drawn"
    assert devices.choose("cpu", "bf16").precision is torch.bfloat16
    assert devices.choose("cpu", "fp32").precision is torch.float32
    devices.bf16_is_faster_on_cpu.cache_clear()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_network_computes_in_the_chosen_precision_and_keeps_its_weights(precision, cpu):
    network = models.build("convnet-8", 10, "small", 16, seed=0)
    with devices.Compute(cpu, precision).autocast():
        assert network(torch.zeros(1, 3, 16, 16)).dtype is precision
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_frozen_copy_shares_nothing_with_the_network():
    network = models.build("convnet-8", 10, "small", 16, seed=0).train()
    twin = devices.copy_frozen(network)
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
        assert devices.choose("auto", "fp32").device.type == expected
        assert devices.choose("cpu", "fp32").device.type == "cpu"


@pytest.mark.parametrize(("driver", "warned"), [("version", True), ("none", False)])
def test_driver_without_a_gpu_for_torch_is_a_warning(driver, warned, monkeypatch, tmp_path, capsys):
    (tmp_path / "version").touch()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", str(tmp_path / driver))
    assert devices.choose("auto", "fp32").device.type == "cpu"
    assert capsys.readouterr().out.startswith("warning: there is an NVIDIA driver") == warned
    devices.choose("cpu", "fp32")
    assert capsys.readouterr().out == "", "who asks for the CPU gets it"


def test_cuda_where_there_is_none_is_refused(monkeypatch, refused):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with refused("device", "'cuda'", "cpu"):
        devices.choose("cuda")
