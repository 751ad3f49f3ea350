"""Teacher: the schedule, the optimiser, what is stored, reuse, and training that goes on where it broke off."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from dwa_core import models, settings, teacher
from dwa_core.batches import Resident


def training(**differences) -> settings.Training:
    values = {
        "epochs": 20,
        "batch_size": 8,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 0.1,
        "crop": "padded",
    }
    return settings.Training(**{**values, **differences})


# ----------------------------------------------------------------------------------- schedule and optimiser


@pytest.mark.parametrize(("warmup", "stretch"), [(0, 1), (1, 1), (5, 1), (0, 2), (5, 1.5)])
def test_learning_rate_is_torchs_own_warmup_and_cosine(warmup, stretch):
    stage = training(warmup_epochs=warmup, cosine_stretch=stretch)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=stage.learning_rate)
    if warmup:
        linear = LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        cosine = CosineAnnealingLR(optimizer, T_max=(stage.epochs - warmup) * stretch)
        schedule = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    else:
        schedule = CosineAnnealingLR(optimizer, T_max=stage.epochs * stretch)
    for epoch in range(stage.epochs):
        assert teacher.learning_rate(stage, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("matrices_only", [False, True])
def test_weight_decay_reaches_biases_and_batchnorm_unless_kept_to_matrices(optimizer_name, matrices_only):
    network = models.build("convnet-8", 10, "small", 16, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    stage = training(optimizer=optimizer_name, decay_matrices_only=matrices_only)
    optimizer = teacher.make_optimizer(network, stage)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        decayed = parameter.ndim > 1 or not matrices_only
        expected = torch.full_like(parameter, 1 - 0.2 * 0.1 if decayed else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_sgd_has_the_momentum_of_the_setting():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = teacher.make_optimizer(network, training(momentum=0.5, weight_decay=0.0, learning_rate=1.0))
    for _ in range(2):
        network.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert network.weight.item() == pytest.approx(-(1 + 1.5))


# ------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_counts_hits_among_the_first_and_the_first_five(cpu):
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(103, 10, generator=random), torch.randint(0, 10, (103,), generator=random)
    top1 = top5 = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(10), key=lambda index, row=row: -row[index])
        top1 += label == ranking[0]
        top5 += label in ranking[:5]
    batches = zip(logits.split(25), labels.split(25), strict=True)
    found = teacher.accuracy(nn.Identity(), batches, cpu, torch.float32)
    assert found == pytest.approx((100 * top1 / 103, 100 * top5 / 103), abs=1e-3)
    assert 0 < top1 < top5 < 103


def test_accuracy_of_fewer_than_five_classes_has_all_of_them_in_its_top5(cpu):
    batches = [(torch.eye(3), torch.tensor([0, 1, 0]))]
    assert teacher.accuracy(nn.Identity(), batches, cpu, torch.float32) == pytest.approx((200 / 3, 100), abs=1e-3)


def test_accuracy_tests_in_eval_mode(cpu):
    network = nn.Sequential(nn.Dropout(0.99)).train()
    batches = [(torch.eye(10), torch.arange(10))]
    assert teacher.accuracy(network, batches, cpu, torch.float32) == (100.0, 100.0)


# -------------------------------------------------------------------------------------- trained on digits


def test_training_improves_the_accuracy(tiny_teacher, tiny_setting, digits, cpu):
    setting = tiny_setting()
    untrained = models.build(setting.network, 10, setting.stem, setting.images.side, setting.teacher.seed)
    tests = digits.test.test_batches(setting.images.mean, setting.images.std)
    before, _ = teacher.accuracy(untrained, tests, cpu, torch.float32)
    assert before < 30
    assert tiny_teacher.record["accuracy"]["top1"] > 80
    curve = tiny_teacher.record["curve"]
    assert [entry["epoch"] for entry in curve] == [1, 2, 3, 4]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert [entry["learning_rate"] for entry in curve] == [teacher.learning_rate(setting.teacher, e) for e in range(4)]


def test_recorded_accuracy_is_that_of_the_stored_weights(tiny_teacher, tiny_setting, digits, shared_root, cpu):
    setting = tiny_setting()
    stored = load_file(shared_root / "artifacts" / "teachers" / tiny_teacher.artifact / "model.safetensors")
    network = models.build(setting.network, 10, setting.stem, setting.images.side, seed=5)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    tests = digits.test.test_batches(setting.images.mean, setting.images.std)
    top1, top5 = teacher.accuracy(network, tests, cpu, torch.float32)
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


def test_stored_teacher_is_used_again(tiny_teacher, tiny_setting, digits, shared_root, monkeypatch, cpu):
    monkeypatch.setenv("DWA_ROOT", str(shared_root))
    monkeypatch.setattr(teacher, "fit", lambda *_, **__: pytest.fail("trained a second time"))
    again = teacher.train_or_load(tiny_setting(), digits, cpu)
    assert again.record == tiny_teacher.record
    for name, value in tiny_teacher.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    # What comes after the teacher does not call for another one.
    later = tiny_setting(
        method="sre2l", ipc=3, seed=4, synthesis={"rho": 0.5}, relabel={"epochs": 9}, student="resnet18"
    )
    assert teacher.train_or_load(later, digits, cpu).record == tiny_teacher.record


@pytest.mark.parametrize("differences", [{"teacher": {"seed": 1}}, {"network": "convnet-8"}, {"precision": "bf16"}])
def test_another_setting_is_another_teacher(differences, tiny_teacher, tiny_setting, digits, cpu):
    setting = tiny_setting(**settings.merged({"teacher": {"epochs": 1}}, differences))
    other = teacher.train_or_load(setting, digits, cpu)
    same = teacher.train_or_load(tiny_setting(teacher={"epochs": 1}), digits, cpu)
    assert len({other.artifact, same.artifact, tiny_teacher.artifact}) == 3


def test_runs_side_by_side_train_one_teacher(tiny_setting, digits, monkeypatch, cpu):
    original, made = teacher.train_and_store, []

    def make(*arguments):
        made.append(arguments)
        time.sleep(0.2)  # long enough for the other run to look for the teacher meanwhile
        original(*arguments)

    monkeypatch.setattr(teacher, "train_and_store", make)
    setting = tiny_setting(network="convnet-8", teacher={"epochs": 1})
    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(lambda _: teacher.train_or_load(setting, digits, cpu), range(2))
    assert len(made) == 1
    assert first.record == second.record


def test_teacher_is_trained_on_the_training_part_alone(tiny_teacher, tiny_setting, digits, cpu):
    poisoned = Resident(digits.test.images_uint8, (digits.test.labels + 1) % 10, cpu)
    data = type(digits)(digits.name, digits.classes, digits.train, poisoned, digits.fingerprint)
    other = teacher.train_or_load(tiny_setting(), data, cpu)
    assert other.record["accuracy"]["top1"] < 20 < tiny_teacher.record["accuracy"]["top1"]
    for name, value in tiny_teacher.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])


# ------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize(("optimizer", "dropout"), [("sgd", 0.0), ("adamw", 0.0), ("sgd", 0.5)])
def test_interrupted_training_goes_on_to_the_same_bits(
    optimizer, dropout, tiny_setting, digits, own_root, tmp_path, monkeypatch, cpu
):
    rate = 0.1 if optimizer == "sgd" else 0.001
    build = models.build

    def with_dropout(*arguments, **given):
        *layers, last = build(*arguments, **given)
        return nn.Sequential(*layers, nn.Dropout(dropout), last)

    monkeypatch.setattr(models, "build", with_dropout)
    setting = tiny_setting(network="convnet-8", teacher={"optimizer": optimizer, "learning_rate": rate})
    unbroken = teacher.train_or_load(setting, digits, cpu)

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
        teacher.train_or_load(setting, digits, cpu)
    assert not list((tmp_path / "broken").rglob("model.safetensors"))
    resumed = teacher.train_or_load(setting, digits, cpu)

    assert epochs == [0, 1, 2, 2, 3]
    assert resumed.record["curve"] == unbroken.record["curve"]
    assert resumed.record["accuracy"] == unbroken.record["accuracy"]
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert not list((tmp_path / "broken" / "artifacts" / "checkpoints").iterdir())
