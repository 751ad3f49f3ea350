"""torch.compile in synthesis and training: equal to eager, compiled once, and what happens where it fails."""

import os
import shutil

import pytest
import torch
from torch import nn

from dwa_core import devices, synthesis
from dwa_core.batches import Resident
from dwa_core.devices import Compute
from dwa_core.training import Batches, Progress, fit
from dwa_paper.runs import sets, store, teachers
from dwa_paper.settings.reading import parse_yaml


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that has compiled nothing yet, and makes code without vectors, which takes less time."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler here")
    monkeypatch.setattr(devices, "compiler_failures", [])
    with torch._inductor.config.patch({"cpp.simdlen": 1, "compile_threads": 1}):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        devices.get_compiled_call.cache_clear()
        yield
    torch._dynamo.reset()


def build_network() -> nn.Module:
    """The smallest that has all that matters: one layer each of convolution, BatchNorm and linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution, linear = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 7 * 7, 10)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), linear)


@pytest.mark.usefixtures("compiler")
def test_compiled_synthesis_and_training_are_those_of_eager_and_compiled_once(digits, tiny_setting, cpu):
    """Two class batches of synthesis, each under a network of its own, and an epoch of a teacher, in fp32."""
    setting = tiny_setting(synthesis={"classes_per_batch": 5, "learning_rate": 0.02}, teacher={"epochs": 1})
    train, images = Resident(digits.train.images_uint8[:96], digits.train.labels[:96], cpu), setting.images
    results, graphs = [], []
    for compile in (False, True):
        compute, network = Compute(cpu, torch.float32, compile), build_network()
        batches = Batches(
            train=lambda epoch: train.train_batches(setting.teacher, images.mean, images.std, epoch),
            test=lambda: train.test_batches(images.mean, images.std),
            key=(0,),
        )

        def batch_loss(inputs, labels, network=network):
            return nn.functional.cross_entropy(network(inputs), labels)

        [entry] = fit(network, setting.teacher, batches, batch_loss, compute, Progress("teacher"))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        teacher = devices.copy_frozen(network)
        made, losses = synthesis.synthesize(setting, train, 10, teacher, compute, Progress("synthesis"))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        results.append((entry["loss"], network.state_dict(), made.float(), torch.tensor(losses["total"])))
        assert compute.compiles() == compile
    assert graphs == [0, 0, 1, 2]
    eager, compiled = results
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    torch.testing.assert_close(compiled[1], eager[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled[3], eager[3], rtol=1e-4, atol=0)
    # Where a gradient is all but zero, Adam's first step may go the other way.
    assert ((compiled[2] - eager[2]).abs() > 1).float().mean() < 0.001


@pytest.fixture
def broken_compiler(compiler):
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield


@pytest.mark.usefixtures("broken_compiler")
def test_where_the_compiler_fails_auto_goes_on_without_it_and_says_so(cpu, capsys):
    network, images = build_network().eval(), torch.zeros(2, 3, 16, 16)
    compute = Compute(cpu, torch.float32, "auto")
    assert store.collect_provenance(compute)["compiled"] is True
    for _ in range(2):
        assert torch.equal(devices.run(compute, network, images), network(images))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: torch.compile failed; InvalidCxxCompiler: ")
    assert store.collect_provenance(compute)["compiled"] is False


@pytest.mark.usefixtures("broken_compiler")
def test_where_the_compiler_fails_and_is_asked_for_the_run_is_refused(cpu, refused):
    with refused("compile", "InvalidCxxCompiler", "auto or off"):
        devices.run(Compute(cpu, torch.float32, True), build_network(), torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("given", "available", "side", "expected"),
    [
        ("auto", True, 128, "auto"),
        ("auto", True, 64, False),
        ("auto", False, 224, False),
        (True, False, 32, True),
        (False, True, 224, False),
    ],
)
def test_auto_compiles_on_cuda_from_128_px(given, available, side, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    assert devices.choose("auto", "fp32", given, side).compile == expected


def test_names_of_artifacts_have_it_only_where_a_setting_does(tiny_setting):
    on, off = (tiny_setting(**parse_yaml(f"compile: {word}", "here")) for word in ("on", "off"))
    for describe in (lambda setting: teachers.describe(setting, "f"), lambda setting: sets.describe(setting, "f", "t")):
        names = [describe(setting)[0] for setting in (tiny_setting(), on, off)]
        assert len({*names}) == 3
        assert "compile" not in describe(tiny_setting())[1]
