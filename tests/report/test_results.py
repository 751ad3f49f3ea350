"""Labels and notes."""

import pytest

from dwa_core.errors import InputError
from dwa_paper.report import results
from dwa_paper.report.product import Run, collect_runs


def test_notes_name_missing_images_and_teachers(add):
    data = {"fingerprint": "0" * 64, "training_images": 49_000, "test_images": 9_500, "classes": 10}
    add("dwa", 40.0, teacher={"epochs": 30}, record={"data": data})
    notes = results.notes(collect_runs("trial"))
    assert "cifar10, resnet18: teacher.epochs is 30; the preset has 200." in notes
    assert any("lacks 1,500 images of the official 50,000 and 10,000" in note for note in notes)


def test_teacher_of_another_recipe_is_named_by_it_and_described_in_the_notes(add):
    add("usual", 40.0, 40.0)
    add("gvbsm", 50.0, seeds=[0], teacher={"recipe": "gvbsm", "test_every": 5})
    add("shorter", 45.0, seeds=[0], teacher={"recipe": "gvbsm", "epochs": 3})
    add("few-epochs", 42.0, seeds=[0], teacher={"epochs": 5})
    runs = collect_runs("trial")
    frame = results.accuracies(runs).dropna(subset="accuracy").set_index("accuracy")
    assert frame["variant"].to_dict() == {
        40.0: "",
        50.0: "G-VBSM's teacher",
        45.0: "G-VBSM's teacher of 3 epochs",
        42.0: "teacher of 5 epochs",
    }
    assert [line for line in results.notes(runs) if "teacher" in line] == [
        "cifar10, resnet18: G-VBSM's teacher is trained with epochs 5, batch_size 64, learning_rate 0.05, "
        "weight_decay 0.0, schedule constant.",
        "cifar10, resnet18: teacher.epochs is 3; G-VBSM's teacher has 5.",
        "cifar10, resnet18: teacher.epochs is 5; the preset has 200.",
    ]


def test_students_of_other_data_teachers_or_sets_are_cells_of_their_own(add):
    def made_from(teacher: str, distilled: str = "set-a", fingerprint: str = "0123456789ab") -> dict:
        data = {"fingerprint": fingerprint, "training_images": 50_000, "test_images": 10_000, "classes": 10}
        return {
            "teacher": {"artifact": teacher, "accuracy": {"top1": 90.0}},
            "distilled": {"artifact": distilled},
            "data": data,
        }

    add("first", 40.0, 41.0, record=made_from("t-1"))
    add("same", 42.0, seeds=[3], record=made_from("t-1"))
    add("seed", 50.0, seeds=[4, 5], teacher={"seed": 1}, record=made_from("t-2", "set-b"))
    add("data", 60.0, seeds=[6], record=made_from("t-3", "set-c", "ba9876543210"))
    add("teacher", 70.0, seeds=[7], record=made_from("t-4"))
    add("set", 80.0, seeds=[8], record=made_from("t-1", "set-d"))
    add("planned", seeds=[9])
    frame = results.accuracies(collect_runs("trial"))
    assert {variant: rows["accuracy"].dropna().tolist() for variant, rows in frame.groupby("variant")} == {
        "data 0123456789, teacher 1, set a": [40.0, 41.0, 42.0],
        "data 0123456789, teacher 1, set d": [80.0],
        "data 0123456789, teacher 4": [70.0],
        "data ba98765432": [60.0],
        "teacher.seed 1": [50.0],
        "": [],
    }
    assert (frame["variant"] == "teacher.seed 1").sum() == 2, "a student that is not trained yet has its set too"


def test_a_student_that_has_two_records_is_refused(add):
    made = {"distilled": {"artifact": "set-a"}}
    add("one", 40.0, 41.0, seeds=[0, 1], record=made)
    add("other", 42.0, 43.0, seeds=[1, 2], record=made)
    with pytest.raises(InputError) as caught:
        results.accuracies(collect_runs("trial"))
    message = str(caught.value)
    assert "results/trial/one-seed1.json and results/trial/other-seed1.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("accuracy", "classes", "tests", "expected"),
    [
        (10.0, 10, 500, True),
        (13.9, 10, 500, True),
        (14.1, 10, 500, False),
        (1.2, 100, 10_000, True),
        (5, 100, 10_000, False),
    ],
)
def test_chance_is_three_standard_deviations_of_guessing(accuracy, classes, tests, expected):
    assert results.is_at_chance(accuracy, classes, tests) is expected


def test_student_at_chance_is_flagged_under_the_table(tiny_setting):
    setting = tiny_setting().recorded()
    images = {"training_images": 1297, "test_images": 500, "classes": 10}
    for accuracy, flagged in ((11.0, True), (60.0, False)):
        record = {"setting": setting, "data": images, "accuracy": {"reported": accuracy}}
        assert any("chance" in line for line in results.notes([Run(setting, "", record)])) is flagged


def test_record_whose_diversity_was_not_measured_has_an_accuracy(add):
    add("dwa", 40.0, seeds=[0], record={"diversity": None})
    row = results.accuracies(collect_runs("trial")).iloc[0]
    assert row["accuracy"] == 40.0
    assert row[[*results.DIVERSITY.values()]].isna().all()
