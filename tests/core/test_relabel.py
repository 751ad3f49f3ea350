"""Relabel evaluation: the loss, and the teacher as it labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dwa_core import devices, relabel
from dwa_core.batches import Resident
from dwa_core.devices import Compute

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


def test_loss_of_fixed_labels_is_that_of_the_teachers_logits(tiny_setting):
    stage = tiny_setting(relabel={"labels": "fixed", "temperature": 4.0}).relabel
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    found = relabel.stored_label_loss(student, F.softmax(teacher / 4, dim=1), stage)
    torch.testing.assert_close(found, relabel.soft_label_loss(student, teacher, stage))


def test_loss_of_hard_labels_is_the_cross_entropy_of_both_classes_at_temperature_1(tiny_setting):
    stage = tiny_setting(relabel={"labels": "hard", "temperature": 20.0}).relabel
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 2])
    mixed = 0.7 * F.one_hot(first, 4) + 0.3 * F.one_hot(second, 4)
    expected = 0.7 * F.cross_entropy(student, first) + 0.3 * F.cross_entropy(student, second)
    torch.testing.assert_close(relabel.stored_label_loss(student, mixed, stage), expected)


# --------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("labels", ["fixed", "hard"])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_stored_labels_are_mixed_as_the_images_are(labels, mixing, tiny_setting):
    """Of images of one colour a class, the mean colour of a mixed image says how much of it is of each class."""
    images = torch.zeros(12, 16, 16, 3, dtype=torch.uint8)
    classes = torch.arange(12) % 3
    images[torch.arange(12), :, :, classes] = 255
    setting = tiny_setting(relabel={"labels": labels, "mixing": mixing, "batch_size": 12, "crop_padding": 0})
    colours = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # a teacher whose logits are the mean colours
    training = Resident(images, classes, torch.device("cpu"))
    compute = Compute(torch.device("cpu"), torch.float32)
    training = relabel.store_labels(setting, training, 3, colours, compute)
    white = torch.tensor([1.0, 1, 1]) / torch.tensor(setting.images.distilled_std)
    dark = -torch.tensor(setting.images.mean) / torch.tensor(setting.images.distilled_std)
    of_class = torch.eye(3)
    if labels == "fixed":
        of_class = F.softmax((dark + torch.eye(3) * white) / setting.relabel.temperature, dim=1)
    mixed_ones = 0
    for inputs, found in relabel.draw_mixed_batches(setting, training, 0):
        shares = (inputs.mean((2, 3)) - dark) / white
        torch.testing.assert_close(shares.sum(1), torch.ones(12))
        torch.testing.assert_close(found, shares @ of_class, atol=1e-4, rtol=0)
        mixed_ones += int((shares.amax(1) < 0.99).sum())
    assert mixed_ones > 2


def test_batch_statistics_label_differently_and_leave_the_running_ones_alone(tiny_teacher, tiny_setting):
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    teacher = devices.copy_frozen(nn.Sequential(tiny_teacher.network, nn.Dropout(0.9)))
    running, stage = teacher(images), tiny_setting(relabel={"teacher_batch_statistics": True}).relabel
    labeller = relabel.make_labeller(teacher, stage, torch.float32)
    buffers = {name: value.clone() for name, value in labeller.named_buffers() if "running" in name}
    batch = labeller(images)
    assert len(buffers) == 6
    for name, value in labeller.named_buffers():
        assert name not in buffers or torch.equal(value, buffers[name]), name
    plain = devices.copy_frozen(tiny_teacher.network).train()  # it has BatchNorm, and nothing else that trains
    torch.testing.assert_close(batch, plain(images))
    assert not torch.allclose(batch, running, atol=1e-2)
