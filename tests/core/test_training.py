"""Training: the schedule, the optimiser, accuracy."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from dwa_core import models
from dwa_core.recipe import Training
from dwa_core.training import accuracy, learning_rate, make_optimizer


def training(**differences) -> Training:
    values = {
        "epochs": 20,
        "batch_size": 8,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 0.1,
        "crop": "padded",
    }
    return Training(**{**values, **differences})


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
        assert learning_rate(stage, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
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
    optimizer = make_optimizer(network, stage)
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
    optimizer = make_optimizer(network, training(momentum=0.5, weight_decay=0.0, learning_rate=1.0))
    for _ in range(2):
        network.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert network.weight.item() == pytest.approx(-(1 + 1.5))


# ------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_counts_hits_among_the_first_and_the_first_five(compute):
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(103, 10, generator=random), torch.randint(0, 10, (103,), generator=random)
    top1 = top5 = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(10), key=lambda index, row=row: -row[index])
        top1 += label == ranking[0]
        top5 += label in ranking[:5]
    batches = zip(logits.split(25), labels.split(25), strict=True)
    found = accuracy(nn.Identity(), batches, compute)
    assert found == pytest.approx((100 * top1 / 103, 100 * top5 / 103), abs=1e-3)
    assert 0 < top1 < top5 < 103


def test_accuracy_of_fewer_than_five_classes_has_all_of_them_in_its_top5(compute):
    batches = [(torch.eye(3), torch.tensor([0, 1, 0]))]
    assert accuracy(nn.Identity(), batches, compute) == pytest.approx((200 / 3, 100), abs=1e-3)


def test_accuracy_tests_in_eval_mode(compute):
    network = nn.Sequential(nn.Dropout(0.99)).train()
    batches = [(torch.eye(10), torch.arange(10))]
    assert accuracy(network, batches, compute) == (100.0, 100.0)
