"""Teachers: what is stored, reuse, and training that continues where it broke off."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dwa_core import models
from dwa_core.batches import Resident
from dwa_core.errors import DivergedError
from dwa_core.training import accuracy, learning_rate
from dwa_paper.runs import teachers
from dwa_paper.settings.presets import merge

# -------------------------------------------------------------------------------------- trained on digits


def test_training_improves_the_accuracy(tiny_teacher, tiny_setting, digits, compute):
    setting = tiny_setting()
    untrained = models.build(setting.network, 10, setting.stem, setting.images.side, setting.teacher.seed)
    tests = digits.test.test_batches(setting.images.mean, setting.images.std)
    before, _ = accuracy(untrained, tests, compute)
    assert before < 30
    assert tiny_teacher.record["accuracy"]["top1"] > 80
    curve = tiny_teacher.record["curve"]
    assert [entry["epoch"] for entry in curve] == [1, 2, 3, 4]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert [entry["learning_rate"] for entry in curve] == [learning_rate(setting.teacher, e) for e in range(4)]


def test_recorded_accuracy_is_that_of_the_stored_weights(tiny_teacher, tiny_setting, digits, shared_root, compute):
    setting = tiny_setting()
    stored = load_file(shared_root / "artifacts" / "teachers" / tiny_teacher.artifact / "model.safetensors")
    network = models.build(setting.network, 10, setting.stem, setting.images.side, seed=5)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    tests = digits.test.test_batches(setting.images.mean, setting.images.std)
    top1, top5 = accuracy(network, tests, compute)
    assert {"top1": top1, "top5": top5} == tiny_teacher.record["accuracy"]
    for name, value in tiny_teacher.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_weights_are_stored_in_fp16_and_batchnorm_in_fp32(tiny_teacher, shared_root):
    stored = load_file(shared_root / "artifacts" / "teachers" / tiny_teacher.artifact / "model.safetensors")
    layers = dict(tiny_teacher.network.named_modules())
    for name, value in stored.items():
        if value.is_floating_point():
            batchnorm = isinstance(layers[name.rpartition(".")[0]], nn.BatchNorm2d)
            assert value.dtype is (torch.float32 if batchnorm else torch.float16), name


def test_teacher_is_frozen_in_eval_mode(tiny_teacher):
    assert not any(layer.training for layer in tiny_teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in tiny_teacher.network.parameters())


def test_stored_teacher_is_used_again(tiny_teacher, tiny_setting, digits, shared_root, monkeypatch, compute):
    monkeypatch.setenv("DWA_ROOT", str(shared_root))
    monkeypatch.setattr(teachers, "fit", lambda *_, **__: pytest.fail("trained a second time"))
    again = teachers.load_or_train(tiny_setting(), digits, compute)
    assert again.record == tiny_teacher.record
    for name, value in tiny_teacher.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    # What comes after the teacher does not call for another one.
    later = tiny_setting(
        method="sre2l", ipc=3, seed=4, synthesis={"rho": 0.5}, relabel={"epochs": 9}, student="resnet18"
    )
    assert teachers.load_or_train(later, digits, compute).record == tiny_teacher.record


@pytest.mark.parametrize("differences", [{"teacher": {"seed": 1}}, {"network": "convnet-8"}, {"precision": "bf16"}])
def test_another_setting_is_another_teacher(differences, tiny_teacher, tiny_setting, digits, compute):
    setting = tiny_setting(**merge({"teacher": {"epochs": 1}}, differences))
    other = teachers.load_or_train(setting, digits, compute)
    same = teachers.load_or_train(tiny_setting(teacher={"epochs": 1}), digits, compute)
    assert len({other.artifact, same.artifact, tiny_teacher.artifact}) == 3


def test_runs_side_by_side_train_one_teacher(tiny_setting, digits, monkeypatch, compute):
    original, made = teachers.train_and_store, []

    def make(*arguments):
        made.append(arguments)
        time.sleep(0.2)  # long enough for the other run to look for the teacher meanwhile
        original(*arguments)

    monkeypatch.setattr(teachers, "train_and_store", make)
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 1})
    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(lambda _: teachers.load_or_train(setting, digits, compute), range(2))
    assert len(made) == 1
    assert first.record == second.record


def test_teacher_is_trained_on_the_training_part_alone(tiny_teacher, tiny_setting, digits, cpu, compute):
    poisoned = Resident(digits.test.images_uint8, (digits.test.labels + 1) % 10, cpu)
    data = type(digits)(digits.name, digits.classes, digits.train, poisoned, digits.fingerprint)
    other = teachers.load_or_train(tiny_setting(), data, compute)
    assert other.record["accuracy"]["top1"] < 20 < tiny_teacher.record["accuracy"]["top1"]
    for name, value in tiny_teacher.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])


# ------------------------------------------------------------------------------- diverged and interrupted


def test_teacher_that_diverges_is_not_stored(tiny_setting, digits, compute, own_root):
    setting = tiny_setting(network="convnet-8", teacher={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match="teacher: the loss is nan"):
        teachers.load_or_train(setting, digits, compute)
    assert not list(own_root.rglob("model.safetensors"))


@pytest.mark.parametrize(("optimizer", "dropout"), [("sgd", 0.0), ("adamw", 0.0), ("sgd", 0.5)])
def test_interrupted_training_continues_to_the_same_bits(
    optimizer, dropout, tiny_setting, digits, own_root, tmp_path, monkeypatch, compute
):
    rate = 0.1 if optimizer == "sgd" else 0.001
    build = models.build

    def with_dropout(*arguments, **given):
        *layers, last = build(*arguments, **given)
        return nn.Sequential(*layers, nn.Dropout(dropout), last)

    monkeypatch.setattr(models, "build", with_dropout)
    setting = tiny_setting(network="convnet-8", teacher={"optimizer": optimizer, "learning_rate": rate})
    unbroken = teachers.load_or_train(setting, digits, compute)

    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    original, epochs = Resident.train_batches, []

    def breaking(self, *arguments):
        epochs.append(arguments[-1])
        yield from itertools.islice(original(self, *arguments), 3 if len(epochs) == 3 else None)
        if len(epochs) == 3:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Resident, "train_batches", breaking)
    torch.rand(7)  # what the process has drawn otherwise must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        teachers.load_or_train(setting, digits, compute)
    assert not list((tmp_path / "broken").rglob("model.safetensors"))
    torch.manual_seed(99)  # another process draws from another state
    resumed = teachers.load_or_train(setting, digits, compute)

    assert epochs == [0, 1, 2, 2, 3]
    assert resumed.record["curve"] == unbroken.record["curve"]
    assert resumed.record["accuracy"] == unbroken.record["accuracy"]
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert not list((tmp_path / "broken" / "artifacts" / "checkpoints").iterdir())
