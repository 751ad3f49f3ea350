"""Students: what of the recipe reaches them, what they may see, and the record of a run."""

import dataclasses
import itertools

import pytest
import torch

from dwa_core import relabel, training
from dwa_core.batches import Resident
from dwa_paper.runs import sets, store, students
from dwa_paper.settings import schema
from dwa_paper.settings.presets import merge


@pytest.fixture(scope="session")
def real_set(shared_root, digits, tiny_teacher, tiny_setting, compute):
    """Two real training images per digit: a distilled set that costs nothing to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DWA_ROOT", str(shared_root))
        return sets.load_or_synthesize(tiny_setting(method="random-real", ipc=2), digits, tiny_teacher, compute)


@pytest.fixture
def evaluated(digits, tiny_teacher, tiny_setting, real_set, compute):
    """A function that trains a student of the tiny setting with what differs, and returns its record."""

    def evaluate(data=digits, **differences):
        setting = tiny_setting(**merge({"method": "random-real", "ipc": 2}, differences))
        return students.evaluate(setting, data, [data], [tiny_teacher], [real_set], compute)

    return evaluate


# -------------------------------------------------------------------------------------------------- recipe


def test_batch_statistics_of_the_teacher_reach_the_student(evaluated, tiny_teacher):
    before = {name: value.clone() for name, value in tiny_teacher.network.state_dict().items()}
    losses = {}
    for used in (False, True):
        curve = evaluated(relabel={"teacher_batch_statistics": used})["curve"]
        losses[used] = [entry["loss"] for entry in curve]
    assert losses[True] != losses[False]
    after = tiny_teacher.network.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(
    "stage",
    [
        {"mixing": "cutmix"},
        {"mixing_alpha": 5.0},
        {"labels": "fixed"},
        {"labels": "hard"},
        {"temperature": 2.0},
        {"crop": "resized"},
        {"optimizer": "sgd"},
    ],
)
def test_every_part_of_the_recipe_changes_the_training(stage, evaluated):
    losses = [[entry["loss"] for entry in evaluated(relabel=one)["curve"]] for one in (stage, {})]
    assert losses[0] != losses[1]


# --------------------------------------------------------------------------------------------------- record

# Settings in full, seeds, accuracies, curve, wall time per stage, device, library versions, git revision, fingerprints
# of the data and of the artifacts.
FIELDS = {
    "setting": [
        "preset",
        "method",
        "ipc",
        "seed",
        "teacher.seed",
        "synthesis.seed",
        "synthesis.rho",
        "relabel.temperature",
        "images.mean",
        "student",
    ],
    "accuracy": ["reported", "last", "best", "top5"],
    "curve": [],
    "seconds": ["teacher", "synthesis", "student"],
    "device": [],
    "precision": [],
    "versions": ["torch", "torchvision", "datasets", "python"],
    "revision": [],
    "finished": [],
    "data": ["fingerprint", "training_images", "test_images"],
    "teacher": ["artifact", "files", "accuracy"],
    "distilled": ["artifact", "files"],
    "diversity": ["feature_distance", "feature_distance_by_class", "coverage", "k", "classes", "real_images"],
}


def test_record_has_every_field_and_lies_under_its_name(evaluated, own_root, digits, tiny_teacher, real_set):
    record = evaluated(seed=3)
    assert record == store.read_json(own_root / "results" / "test" / "tiny-seed3.json")
    for group, keys in FIELDS.items():
        assert record[group] not in ("", [], {}), group  # the revision is None outside a git checkout
        for dotted in keys:
            value = record[group]
            for key in dotted.split("."):
                assert key in value, f"{group}.{dotted}"
                value = value[key]
    assert record["data"]["fingerprint"] == digits.fingerprint
    assert (record["data"]["training_images"], record["data"]["test_images"]) == (1297, 500)
    assert record["teacher"]["artifact"] == tiny_teacher.artifact
    assert record["distilled"]["artifact"] == real_set.artifact
    assert [entry["epoch"] for entry in record["curve"]] == [1, 2, 3]
    for entry in record["curve"]:
        assert 0 <= entry["top1"] <= entry["top5"] <= 100
        assert entry["loss"] > 0
    # Nothing else is left but the lock: no checkpoint of a student that is done.
    left = {path.name for path in own_root.rglob("*") if path.is_file()}
    assert left == {"tiny-seed3.json", ".test-tiny-seed3.lock"}


def test_setting_can_be_run_again_from_its_record(evaluated, tiny_setting):
    record = evaluated(authors=True, seed=2)
    again = schema.resolve(record["setting"])
    assert again == tiny_setting(method="random-real", ipc=2, authors=True, seed=2)


def without_times(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("seconds", "finished", "tree_clean", "revision")}


def test_same_seed_gives_the_same_record_and_another_seed_another_student(evaluated):
    first = evaluated(seed=0)
    assert without_times(evaluated(seed=0)) == without_times(first)
    other = evaluated(seed=1)
    assert [entry["loss"] for entry in other["curve"]] != [entry["loss"] for entry in first["curve"]]


def test_first_weights_of_the_student_come_from_its_seed(evaluated, tiny_teacher, monkeypatch):
    started = []

    def fit(network, *_, **__):
        started.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
        return [{"epoch": 1, "learning_rate": 0.1, "loss": 1.0, "top1": 50.0, "top5": 90.0}]

    monkeypatch.setattr(relabel, "fit", fit)
    for seed in (0, 0, 1):
        evaluated(seed=seed)
    assert torch.equal(started[0], started[1])
    assert not torch.equal(started[0], started[2])
    learned = torch.cat([parameter.flatten() for parameter in tiny_teacher.network.parameters()])
    assert not torch.equal(started[0], learned)


@pytest.mark.parametrize(("reported", "expected"), [("last", 60.0), ("best", 70.0)])
def test_reported_accuracy_is_the_last_or_the_best(reported, expected, evaluated, monkeypatch):
    answers = iter([(50.0, 90.0), (70.0, 95.0), (60.0, 99.0)])
    monkeypatch.setattr(training, "accuracy", lambda *_: next(answers))
    record = evaluated(relabel={"reported": reported})
    assert record["accuracy"] == {"reported": expected, "last": 60.0, "best": 70.0, "top5": 99.0}


def test_student_is_tested_every_so_often_and_after_the_last_epoch(evaluated):
    curve = evaluated(relabel={"epochs": 5, "test_every": 2})["curve"]
    assert [entry["epoch"] for entry in curve if "top1" in entry] == [2, 4, 5]


# --------------------------------------------------------------------------------- what a student may see


class LengthOnly:
    """A part of a data set that can be counted, and nothing else."""

    def __len__(self):
        return 1297


def test_student_sees_no_real_training_image(evaluated, digits):
    losses = [
        [entry["loss"] for entry in evaluated(data=data)["curve"]]
        for data in (digits, dataclasses.replace(digits, train=LengthOnly()))
    ]
    assert losses[0] == losses[1]


def test_test_labels_change_the_accuracy_and_nothing_of_the_training(evaluated, digits, cpu):
    poisoned = Resident(digits.test.images_uint8, (digits.test.labels + 1) % 10, cpu)
    honest = evaluated(relabel={"epochs": 150, "test_every": 150})
    cheated = evaluated(data=dataclasses.replace(digits, test=poisoned), relabel={"epochs": 150, "test_every": 150})
    assert [entry["loss"] for entry in cheated["curve"]] == [entry["loss"] for entry in honest["curve"]]
    assert cheated["accuracy"]["last"] != honest["accuracy"]["last"]
    # The student learns: 20 images and 150 steps are better than chance by far.
    assert honest["accuracy"]["last"] > 20


def test_checkpoint_of_a_student_is_of_its_teacher(tiny_setting, digits, tiny_teacher, real_set):
    """A set of real images has the same name under every teacher."""
    setting, other = tiny_setting(method="random-real"), dataclasses.replace(tiny_teacher, artifact="another")
    names = {students.name_checkpoint(setting, digits, [one], [real_set]) for one in (tiny_teacher, other)}
    assert len(names) == 2


def test_interrupted_student_continues_to_the_same_bits(evaluated, monkeypatch, tmp_path):
    differences = {"relabel": {"epochs": 4, "batch_size": 8}}  # three batches an epoch
    unbroken = evaluated(**differences)

    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    original, epochs = Resident.train_batches, []

    def breaking(self, *arguments):
        epochs.append(arguments[-1])
        yield from itertools.islice(original(self, *arguments), 2 if len(epochs) == 3 else None)
        if len(epochs) == 3:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Resident, "train_batches", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluated(**differences)
    assert not list((tmp_path / "broken").rglob("*.json"))
    resumed = evaluated(**differences)
    assert epochs == [0, 1, 2, 2, 3]
    assert without_times(resumed) == without_times(unbroken)


def test_record_of_another_setting_is_set_aside_not_overwritten(evaluated, own_root, capsys):
    first = evaluated()
    second = evaluated(relabel={"temperature": 2.0})
    (aside,) = (own_root / "artifacts" / "set-aside").iterdir()
    assert store.read_json(aside) == first
    (there,) = (own_root / "results").rglob("*.json")
    assert store.read_json(there) == second
    assert f"it is the record of another setting, or damaged; set aside as {aside}" in capsys.readouterr().out
