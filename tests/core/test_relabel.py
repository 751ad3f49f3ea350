"""Relabel evaluation: the loss, and the teacher as it labels."""

import math

import pytest
import torch
from torch import nn

from dwa_core import devices, relabel

# ---------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_loss_is_the_divergence_of_softened_labels(temperature, squared, tiny_setting):
    stage = tiny_setting(relabel={"temperature": temperature, "loss_times_temperature_squared": squared}).relabel
    random = torch.Generator().manual_seed(0)
    student, labels = torch.randn(3, 4, generator=random) * 5, torch.randn(3, 4, generator=random) * 5
    expected = 0.0
    for student_row, label_row in zip(student.tolist(), labels.tolist(), strict=True):
        q = [math.exp(x / temperature) for x in student_row]
        p = [math.exp(x / temperature) for x in label_row]
        q, p = [x / sum(q) for x in q], [x / sum(p) for x in p]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    found = relabel.soft_label_loss(student, labels, stage).item()
    assert found == pytest.approx(expected * (temperature**2 if squared else 1), rel=1e-4)


def test_loss_is_zero_and_flat_where_the_student_agrees(tiny_setting):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = relabel.soft_label_loss(logits, logits.detach() + 7, tiny_setting().relabel)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


# --------------------------------------------------------------------------------------------------- labels


def test_batch_statistics_label_differently_and_leave_the_running_ones_alone(tiny_teacher):
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labeller = devices.frozen_copy(nn.Sequential(tiny_teacher.network, nn.Dropout(0.9)))
    running = labeller(images)
    relabel.use_batch_statistics(labeller)
    buffers = {name: value.clone() for name, value in labeller.named_buffers() if "running" in name}
    batch = labeller(images)
    assert len(buffers) == 6
    for name, value in labeller.named_buffers():
        assert name not in buffers or torch.equal(value, buffers[name]), name
    plain = devices.frozen_copy(tiny_teacher.network).train()  # it has BatchNorm, and nothing else that trains
    torch.testing.assert_close(batch, plain(images))
    assert not torch.allclose(batch, running, atol=1e-2)
