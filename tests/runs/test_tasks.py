"""Class-incremental learning: tasks, soft labels over several teachers, the record, and continuing after a stop."""

import pytest
import torch

from dwa_core import batches, relabel
from dwa_core.batches import Resident
from dwa_core.errors import StoppedError
from dwa_paper.runs import real, records, sets, stop, store, students, tasks, teachers
from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.settings.environment import root
from dwa_paper.tools import verify


@pytest.fixture
def setting_of(tiny_setting):
    """A function that returns the tiny setting with five tasks of two digits each, and what differs."""

    def setting_of(**differences):
        return tiny_setting(**{"tasks": 5, "method": "random-real", "ipc": 2, **differences})

    return setting_of


def made_for_tasks(setting, whole, compute) -> tuple[list, list, list]:
    """The data, teachers and distilled sets of all tasks."""
    parts = tasks.split_into_tasks(setting, whole)
    trained = [teachers.load_or_train(setting, part, compute) for part in parts]
    pairs = zip(parts, trained, strict=True)
    return parts, trained, [sets.load_or_synthesize(setting, part, one, compute) for part, one in pairs]


def evaluated(setting, whole, compute) -> dict:
    return students.evaluate(setting, whole, *made_for_tasks(setting, whole, compute), compute)


# ----------------------------------------------------------------------------------------------- tasks


def test_every_class_is_in_one_task_under_a_label_of_its_own(setting_of, digits):
    parts = tasks.split_into_tasks(setting_of(), digits)
    order = tasks.draw_class_order(10, 0)
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
        return [part.classes for part in tasks.split_into_tasks(setting_of(**differences), digits)]

    assert classes(seed=1, method="dwa") == classes()
    assert classes(teacher={"seed": 1}) != classes()


def test_one_task_is_the_data_as_they_are(setting_of, digits):
    (only,) = tasks.split_into_tasks(setting_of(tasks=1), digits)
    assert only is digits


@pytest.mark.parametrize("count", [3, 10, 20])
def test_tasks_that_do_not_cut_the_classes_are_refused(count, setting_of, digits, refused):
    with refused("tasks", str(count), "10 classes", "1, 2, 5"):
        tasks.split_into_tasks(setting_of(tasks=count), digits)


def test_streamed_images_are_cut_by_class_too(setting_of, cpu, monkeypatch):
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)
    setting = setting_of(images={"side": 72}, stem="torchvision")
    whole = real.load("digits", setting.images, cpu)
    part = tasks.select_classes(whole, [7, 2])
    assert part.classes == ["7", "2"]
    labels = torch.cat([labels for _, labels in part.test.test_batches([0.0] * 3, [1.0] * 3)])
    expected = [{7: 0, 2: 1}[label] for label in whole.test.labels.tolist() if label in (7, 2)]
    assert labels.tolist() == part.test.labels.tolist() == expected
    first = (whole.train.labels == 2).nonzero()[0]
    assert torch.equal(part.train.pictures((part.train.labels == 1).nonzero()[0]), whole.train.pictures(first))


# ----------------------------------------------------------------------------------------- soft labels


class Constant(torch.nn.Module):
    """A network that returns the same logits for every image."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_soft_label_is_weighted_by_share_and_gives_other_tasks_the_least_of_its_own():
    first, second = Constant(2.0, 0.0), Constant(1.0, 4.0)
    shares = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    images, temperature = torch.zeros(2, 3, 8, 8), 2.0
    labels = (tasks.mix_labels(images, shares, [first, second], temperature) / temperature).softmax(1)
    of_first = torch.tensor([1.0, 0.0, 0.0, 0.0]).softmax(0)
    of_second = torch.tensor([0.5, 0.5, 0.5, 2.0]).softmax(0)
    torch.testing.assert_close(labels[0], of_first)
    torch.testing.assert_close(labels[1], 0.25 * of_first + 0.75 * of_second)


def test_soft_label_of_a_single_task_is_the_usual_one(tiny_teacher, digits):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = tasks.mix_labels(images, torch.ones(4, 1), [tiny_teacher.network], 20.0)
    torch.testing.assert_close((logits / 20).softmax(1), (tiny_teacher.network(images) / 20).softmax(1))


def test_teacher_without_a_share_of_an_image_does_not_label_it():
    absent = Constant(0.0, 1.0)
    logits = tasks.mix_labels(torch.zeros(1, 3, 8, 8), torch.tensor([[0.0, 1.0]]), [absent, Constant(1.0, 9.0)], 1.0)
    torch.testing.assert_close(logits.softmax(1), torch.tensor([[1.0, 1.0, 1.0, 9.0]]).softmax(1))


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_shares_are_those_of_the_pixels(mixing, setting_of, digits, compute, monkeypatch):
    """Images of task 0 are made black and those of task 1 white, so that the mean of a mixed image is its share."""
    setting = setting_of(tasks=2, relabel={"mixing": mixing, "epochs": 2, "batch_size": 20, "crop_padding": 0})
    parts, trained, distilled = made_for_tasks(setting, digits, compute)
    for made, value in zip(distilled, (0, 255), strict=True):
        made.images_uint8.fill_(value)
    original, seen = tasks.mix_labels, []

    def watched(images, shares, *rest):
        unit = images.mean((1, 2, 3)) * setting.images.std[0] + setting.images.mean[0]
        torch.testing.assert_close(shares, torch.stack([1 - unit, unit], dim=1), atol=1e-4, rtol=0)
        assert images.is_contiguous(memory_format=torch.channels_last)
        seen.append(shares)
        return original(images, shares, *rest)

    monkeypatch.setattr(tasks, "mix_labels", watched)
    students.train_after_task(setting, digits, parts[-1], trained, distilled, compute)
    shares = torch.cat(seen)
    assert len(seen) == 2
    assert ((shares > 0.01).all(1)).any(), "no image of both tasks"
    assert not ((shares > 0.01).all(1)).all()


# ------------------------------------------------------------------------------------------------- runs


def test_last_student_beats_chance_on_all_classes_and_the_record_names_its_artifacts(
    setting_of, digits, compute, own_root
):
    setting = setting_of(ipc=10, teacher={"epochs": 10}, relabel={"epochs": 60, "test_every": 60})
    record = evaluated(setting, digits, compute)
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
    path = setting.record_path()
    assert [*verify.check_record(path, records.read_record(path))] == []
    store.write_json(path, {**record, "accuracy": {**last, "reported": 77.0}})
    (problem,) = [*verify.check_record(path, records.read_record(path))]
    assert problem.startswith("its accuracy is not that after its last task")
    entries[2]["teacher"]["artifact"] = "another"
    store.write_json(setting.record_path(), record)
    (problem,) = [*verify.check_record(path, records.read_record(path))]
    assert problem.endswith("it names another")
    assert not list((own_root / "artifacts" / "checkpoints").glob("*"))


def test_student_is_tested_over_the_classes_seen_and_sees_their_images_alone(setting_of, digits, compute, monkeypatch):
    tested, trained = [], []
    original = relabel.train_student

    def watched(recipe, classes, training, test, *rest):
        tested.append((classes, len(test)))
        trained.append(torch.bincount(training.labels).tolist())
        return original(recipe, classes, training, test, *rest)

    monkeypatch.setattr(relabel, "train_student", watched)
    evaluated(setting_of(), digits, compute)
    order = [str(label) for label in tasks.draw_class_order(10, 0)]
    counts = torch.bincount(digits.test.labels)
    for number, (classes, images) in enumerate(tested, 1):
        assert classes == 2 * number
        assert images == sum(counts[int(name)] for name in order[:classes])
        assert trained[number - 1] == [2] * 2 * number


def without_times(value):
    if isinstance(value, dict):
        times = ("seconds", "finished", "tree_clean", "revision")
        return {key: without_times(item) for key, item in value.items() if key not in times}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_stopped_run_continues_where_it_was(setting_of, digits, compute, monkeypatch, tmp_path):
    setting = setting_of()
    unbroken = evaluated(setting, digits, compute)

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
        evaluated(setting, digits, compute)
    students = []
    monkeypatch.setattr(
        relabel, "train_student", lambda *rest, train=relabel.train_student: students.append(1) or train(*rest)
    )
    resumed = evaluated(setting, digits, compute)
    assert len(students) == 3  # those of tasks 1 and 2 are done
    assert epochs == [0, 1, 0, 1, 2]  # the first is drawn again, but not trained on
    assert without_times(resumed) == without_times(unbroken)


def test_run_stopped_between_two_students_leaves_no_checkpoint_of_the_first(setting_of, digits, compute, monkeypatch):
    setting, save = setting_of(), Checkpoint.save

    def stopping(self, tensors, state):
        save(self, tensors, state)
        if self.path.name.startswith("tasks-"):
            raise StoppedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stopping)
        with pytest.raises(StoppedError):
            evaluated(setting, digits, compute)
        (left,) = (root() / "artifacts" / "checkpoints").iterdir()
        assert left.name.startswith("tasks-")
    assert [entry["classes_seen"] for entry in evaluated(setting, digits, compute)["tasks"]] == [2, 4, 6, 8, 10]


def test_run_waits_for_another_of_the_same_setting(setting_of, digits, compute):
    setting = setting_of()
    stop.start_budget(0.1 / 60)
    waited = pytest.raises(StoppedError, match="max_minutes")
    try:
        with store.lock("students", "test-tiny-seed0"), waited:
            students.evaluate(setting, digits, [], [], [], compute)
    finally:
        stop.start_budget(None)
