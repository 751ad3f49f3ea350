"""Class-incremental learning: tasks, soft labels over several teachers, the record, and going on after a stop."""

import pytest
import torch

from dwa_core import batches, continual, data, relabel, settings, stop, store, synthesize, teacher, verify
from dwa_core.batches import Resident


@pytest.fixture
def setting_of(tiny_setting):
    """A function that returns the tiny setting with five tasks of two digits each, and what differs."""

    def setting_of(**differences):
        return tiny_setting(**{"tasks": 5, "method": "random-real", "ipc": 2, **differences})

    return setting_of


def evaluated(setting, whole, device) -> dict:
    parts = continual.split_into_tasks(setting, whole)
    teachers = [teacher.train_or_load(setting, part, device) for part in parts]
    distilled = [
        synthesize.synthesize_or_load(setting, part, one, device) for part, one in zip(parts, teachers, strict=True)
    ]
    return continual.evaluate(setting, whole, parts, teachers, distilled, device)


# ----------------------------------------------------------------------------------------------- tasks


def test_every_class_is_in_one_task_under_a_label_of_its_own(setting_of, digits):
    parts = continual.split_into_tasks(setting_of(), digits)
    order = data.class_order(10, 0)
    assert [name for part in parts for name in part.classes] == [str(label) for label in order]
    assert sorted(order) == list(range(10)) != order
    assert len({part.fingerprint for part in parts} | {digits.fingerprint}) == 6
    for which in ("train", "test"):
        assert sum(len(getattr(part, which)) for part in parts) == len(getattr(digits, which))
        whole, part = getattr(digits, which), getattr(parts[3], which)
        for label in (0, 1):
            of_whole = whole.images_uint8[whole.labels == order[6 + label]]
            assert torch.equal(part.images_uint8[part.labels == label], of_whole)


def test_order_is_the_teachers_seed_and_nothing_of_the_student(setting_of, digits):
    def classes(**differences):
        return [part.classes for part in continual.split_into_tasks(setting_of(**differences), digits)]

    assert classes(seed=1, method="dwa") == classes()
    assert classes(teacher={"seed": 1}) != classes()


def test_one_task_is_the_data_as_they_are(setting_of, digits):
    (only,) = continual.split_into_tasks(setting_of(tasks=1), digits)
    assert only is digits


@pytest.mark.parametrize("tasks", [3, 10, 20])
def test_tasks_that_do_not_cut_the_classes_are_refused(tasks, setting_of, digits, refused):
    with refused("tasks", str(tasks), "10 classes", "1, 2, 5"):
        continual.split_into_tasks(setting_of(tasks=tasks), digits)


def test_streamed_images_are_cut_by_class_too(setting_of, cpu, monkeypatch):
    monkeypatch.setattr(batches.os, "cpu_count", lambda: 1)
    setting = setting_of(images={"side": 72}, stem="torchvision")
    whole = data.load("digits", setting.images, cpu)
    part = data.of_classes(whole, [7, 2])
    assert part.classes == ["7", "2"]
    labels = torch.cat([labels for _, labels in part.test.test_batches([0.0] * 3, [1.0] * 3)])
    expected = [{7: 0, 2: 1}[label] for label in whole.test.labels.tolist() if label in (7, 2)]
    assert labels.tolist() == part.test.labels.tolist() == expected
    first = (whole.train.labels == 2).nonzero()[0]
    assert torch.equal(part.train.pictures((part.train.labels == 1).nonzero()[0]), whole.train.pictures(first))


# ----------------------------------------------------------------------------------------- soft labels


class Saying(torch.nn.Module):
    """A network that says the same of every image."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_soft_label_is_weighted_by_share_and_gives_other_tasks_the_least_of_its_own():
    first, second = Saying(2.0, 0.0), Saying(1.0, 4.0)
    shares = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    images, temperature = torch.zeros(2, 3, 8, 8), 2.0
    labels = (continual.soft_labels(images, shares, [first, second], temperature) / temperature).softmax(1)
    of_first = torch.tensor([1.0, 0.0, 0.0, 0.0]).softmax(0)
    of_second = torch.tensor([0.5, 0.5, 0.5, 2.0]).softmax(0)
    torch.testing.assert_close(labels[0], of_first)
    torch.testing.assert_close(labels[1], 0.25 * of_first + 0.75 * of_second)


def test_soft_label_of_a_single_task_is_the_usual_one(tiny_teacher, digits):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = continual.soft_labels(images, torch.ones(4, 1), [tiny_teacher.network], 20.0)
    torch.testing.assert_close((logits / 20).softmax(1), (tiny_teacher.network(images) / 20).softmax(1))


def test_teacher_without_an_image_says_nothing_of_it():
    absent = Saying(0.0, 1.0)
    logits = continual.soft_labels(torch.zeros(1, 3, 8, 8), torch.tensor([[0.0, 1.0]]), [absent, Saying(1.0, 9.0)], 1.0)
    torch.testing.assert_close(logits.softmax(1), torch.tensor([[1.0, 1.0, 1.0, 9.0]]).softmax(1))


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_shares_are_those_of_the_pixels(mixing, setting_of, digits, cpu, monkeypatch):
    """Images of task 0 are made black and those of task 1 white, so that the mean of a mixed image is its share."""
    setting = setting_of(tasks=2, relabel={"mixing": mixing, "epochs": 2, "batch_size": 20, "crop_padding": 0})
    parts = continual.split_into_tasks(setting, digits)
    teachers = [teacher.train_or_load(setting, part, cpu) for part in parts]
    distilled = [
        synthesize.synthesize_or_load(setting, part, one, cpu) for part, one in zip(parts, teachers, strict=True)
    ]
    for made, value in zip(distilled, (0, 255), strict=True):
        made.images_uint8.fill_(value)
    original, seen = continual.soft_labels, []

    def watched(images, shares, *rest):
        unit = images.mean((1, 2, 3)) * setting.images.std[0] + setting.images.mean[0]
        torch.testing.assert_close(shares, torch.stack([1 - unit, unit], dim=1), atol=1e-4, rtol=0)
        assert images.is_contiguous(memory_format=torch.channels_last)
        seen.append(shares)
        return original(images, shares, *rest)

    monkeypatch.setattr(continual, "soft_labels", watched)
    continual.after_task(setting, digits, parts, teachers, distilled, cpu)
    shares = torch.cat(seen)
    assert len(seen) == 2
    assert ((shares > 0.01).all(1)).any(), "no image of both tasks"
    assert not ((shares > 0.01).all(1)).all()


# ------------------------------------------------------------------------------------------------- runs


def test_last_student_beats_chance_on_all_classes_and_the_record_says_whence(setting_of, digits, cpu, own_root):
    setting = setting_of(ipc=10, teacher={"epochs": 10}, relabel={"epochs": 60, "test_every": 60})
    record = evaluated(setting, digits, cpu)
    assert record == store.read_json(own_root / "results/test/tiny-seed0.json")
    entries = record["tasks"]
    assert [entry["classes_seen"] for entry in entries] == [2, 4, 6, 8, 10]
    assert sorted(name for entry in entries for name in entry["classes"]) == digits.classes
    last = entries[-1]["accuracy"]
    assert record["accuracy"] == last
    assert last["last"] > 25  # chance is 10; a student that knew the last task alone would have 20
    assert entries[0]["accuracy"]["last"] > 80
    for field, kind in (("teacher", "teachers"), ("distilled", "distilled")):
        names = {entry[field]["artifact"] for entry in entries}
        assert len(names) == 5
        assert all(store.find(kind, name) for name in names)
    assert all(entry["diversity"]["classes"] == 2 for entry in entries)
    for stage, seconds in record["seconds"].items():
        assert seconds == pytest.approx(sum(entry["seconds"][stage] for entry in entries), abs=0.11)
    assert record["data"]["fingerprint"] == digits.fingerprint
    assert record["setting"]["tasks"] == 5
    assert verify.record_problems(setting.record_path()) == []
    entries[2]["teacher"]["artifact"] = "another"
    store.write_json(setting.record_path(), record)
    (problem,) = verify.record_problems(setting.record_path())
    assert problem.endswith("it names another")
    assert not list((own_root / "artifacts" / "checkpoints").glob("*"))


def test_student_is_tested_over_the_classes_seen_and_sees_their_images_alone(setting_of, digits, cpu, monkeypatch):
    tested, trained = [], []
    original = relabel.train_student

    def watched(setting, seen, training, *rest):
        tested.append((seen.classes, len(seen.test)))
        trained.append(torch.bincount(training.labels).tolist())
        return original(setting, seen, training, *rest)

    monkeypatch.setattr(relabel, "train_student", watched)
    evaluated(setting_of(), digits, cpu)
    order = [str(label) for label in data.class_order(10, 0)]
    counts = torch.bincount(digits.test.labels)
    for number, (classes, images) in enumerate(tested, 1):
        assert classes == order[: 2 * number]
        assert images == sum(counts[int(name)] for name in classes)
        assert trained[number - 1] == [2] * 2 * number


def without_times(value):
    if isinstance(value, dict):
        times = ("seconds", "finished", "tree_clean", "revision")
        return {key: without_times(item) for key, item in value.items() if key not in times}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_stopped_run_goes_on_where_it_was(setting_of, digits, cpu, monkeypatch, tmp_path):
    setting = setting_of()
    unbroken = evaluated(setting, digits, cpu)

    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    original, epochs = Resident.train_batches, []

    def breaking(self, *arguments):
        if self.labels.max() == 5:  # the student of task 3
            epochs.append(arguments[-1])
            if len(epochs) == 2:
                raise RuntimeError("power cut")
        yield from original(self, *arguments)

    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(Resident, "train_batches", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluated(setting, digits, cpu)
    students = []
    monkeypatch.setattr(
        relabel, "train_student", lambda *rest, train=relabel.train_student: students.append(1) or train(*rest)
    )
    resumed = evaluated(setting, digits, cpu)
    assert len(students) == 3  # those of tasks 1 and 2 are done
    assert epochs == [0, 1, 0, 1, 2]  # the first is drawn again, but not trained on
    assert without_times(resumed) == without_times(unbroken)


def test_run_stopped_between_two_students_leaves_no_checkpoint_of_the_first(setting_of, digits, cpu, monkeypatch):
    setting, save = setting_of(), store.Checkpoint.save

    def stopping(self, tensors, state):
        save(self, tensors, state)
        if self.path.name.startswith("tasks-"):
            raise stop.StoppedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(store.Checkpoint, "save", stopping)
        with pytest.raises(stop.StoppedError):
            evaluated(setting, digits, cpu)
        (left,) = (settings.root() / "artifacts" / "checkpoints").iterdir()
        assert left.name.startswith("tasks-")
    assert [entry["classes_seen"] for entry in evaluated(setting, digits, cpu)["tasks"]] == [2, 4, 6, 8, 10]


def test_run_waits_for_another_of_the_same_setting(setting_of, digits, cpu):
    setting = setting_of()
    stop.start_budget(0.1 / 60)
    waited = pytest.raises(stop.StoppedError, match="max_minutes")
    try:
        with store.lock("students", "test-tiny-seed0"), waited:
            continual.evaluate(setting, digits, [], [], [], cpu)
    finally:
        stop.start_budget(None)
