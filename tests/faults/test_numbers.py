"""Numbers that go wrong: each message names what is the cause, and what had no part in it is not blamed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwa_core import guard, models
from dwa_core.errors import DivergedError
from dwa_paper.runs import store, teachers

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def spoil(path, layer: str, value: float) -> None:
    """Puts `value` into the stored weights of `layer`."""
    state = load_file(path)
    state[layer].view(-1)[0] = value
    save_file(state, path)


@pytest.fixture
def weights(tiny_setting, tmp_path):
    """A file of weights of the user's own for the tiny setting's teacher."""
    setting, path = tiny_setting(), tmp_path / "own.safetensors"
    save_file(models.build(setting.network, 10, setting.stem, setting.images.side, 0).state_dict(), path)
    return path


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("layer", ["0.weight", "1.running_var", "1.bias"])
def test_own_weights_that_are_not_finite_are_refused_by_their_layer(
    layer, value, weights, digits, tiny_setting, compute, own_root, refused
):
    spoil(weights, layer, value)
    setting = tiny_setting(teacher={"weights": str(weights)})
    with refused("teacher.weights: ", str(weights), f"{layer} has numbers that are not finite"):
        teachers.load_or_train(setting, digits, compute)
    assert not list(own_root.rglob("model.safetensors"))


@pytest.mark.parametrize("name", ["none", "x" * 300, "nul\0"])
def test_own_weights_that_can_be_no_file_are_refused(name, digits, tiny_setting, compute, refused):
    setting = tiny_setting(teacher={"weights": f"{name}.safetensors"})
    with refused("teacher.weights: ", "cannot be read"):
        teachers.load_or_train(setting, digits, compute)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_stored_teacher_that_is_not_finite_is_named_before_it_is_used(
    value, digits, tiny_setting, tiny_teacher, compute, shared_root, own_root
):
    folder = own_root / "artifacts" / "teachers" / tiny_teacher.artifact
    folder.mkdir(parents=True)
    for path in (shared_root / "artifacts" / "teachers" / tiny_teacher.artifact).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoil(folder / "model.safetensors", "0.weight", value)
    record = store.read_json(folder / "record.json")
    kept = {key: value for key, value in record.items() if key not in ("settings", "files")}
    (folder / store.SUMS).unlink()
    (folder / "record.json").unlink()
    store.seal(folder, record["settings"], **kept)  # as one who wants to be believed would
    with pytest.raises(DivergedError, match=f"{folder}: 0.weight has numbers that are not finite; delete it"):
        teachers.load_or_train(tiny_setting(), digits, compute)


def test_teacher_too_large_for_fp16_is_not_stored(digits, tiny_setting, compute, own_root, monkeypatch):
    def fit(network, *_):
        with torch.no_grad():
            network[0].weight.fill_(1e5)
        return []

    monkeypatch.setattr(teachers, "fit", fit)
    with pytest.raises(DivergedError, match=r"teacher: 0.weight has numbers .*; try a teacher.learning_rate below 0"):
        teachers.load_or_train(tiny_setting(), digits, compute)
    assert not list(own_root.rglob("model.safetensors"))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_loss_before_anything_was_learned_does_not_blame_the_learning_rate(value, tiny_setting):
    losses = torch.tensor([value, 1.0])
    for stage in (tiny_setting().teacher, tiny_setting().relabel):
        with pytest.raises(DivergedError) as caught:
            guard.check_training("student 0", stage, 0, losses)
        assert "in epoch 1, batch 1; nothing was learned yet" in str(caught.value)
        assert "learning_rate" not in str(caught.value)
        with pytest.raises(DivergedError, match="in epoch 2, batch 1; try a learning_rate below "):
            guard.check_training("student 0", stage, 1, losses)
        with pytest.raises(DivergedError, match="in epoch 1, batch 2; try a learning_rate below "):
            guard.check_training("student 0", stage, 0, losses.flip(0))


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    ("row", "reference", "adjustment", "expected", "innocent"),
    [
        (0, float("nan"), "directed", "the teacher gives no finite numbers for the initial images", "rho"),
        (3, float("inf"), "directed", "the teacher gives no finite numbers for the initial images", "learning_rate"),
        (0, 1.0, "directed", "try a synthesis.rho below ", "learning_rate"),
        (0, 1.0, "random", "try a synthesis.rho below ", "learning_rate"),
        (3, 1.0, "directed", "try a synthesis.learning_rate below ", "teacher"),
    ],
)
def test_synthesis_names_what_can_be_the_cause(row, reference, adjustment, expected, innocent, value, tiny_setting):
    stage = tiny_setting(synthesis={"adjustment": adjustment}).synthesis
    total = torch.ones(5)
    total[row] = value
    with pytest.raises(DivergedError) as caught:
        guard.check_synthesis(stage, {"total": total}, torch.ones(2), torch.tensor([1.0, reference]), torch.tensor(0.1))
    assert f"in iteration {row + 1}; " in str(caught.value)
    assert expected in str(caught.value)
    assert innocent not in str(caught.value)


@pytest.mark.parametrize(
    "synthesis",
    [{"r_var": 1e6}, {"r_bn": 1e6}, {"r_var": 1e6, "r_bn": 1e6}, {"r_var": 0.0, "r_bn": 0.0}],
)
def test_largest_and_smallest_coefficients_give_finite_losses(synthesis, tiny_setting, digits, tiny_teacher, compute):
    from dwa_core.synthesis import synthesize
    from dwa_core.training import Progress

    setting = tiny_setting(synthesis={"learning_rate": 1e-3, "rho": 0.0, **synthesis})
    _, losses = synthesize(setting, digits.train, 10, tiny_teacher.network, compute, Progress("synthesis"))
    assert all(torch.tensor(values).isfinite().all() for values in losses.values())


@pytest.mark.parametrize("relabel", [{"temperature": 1e-2}, {"temperature": 1e4}, {"mixing_alpha": 1e-3}])
def test_bounds_of_the_relabel_stage_give_finite_losses(relabel, tiny_setting, digits, tiny_teacher, compute):
    from dwa_core import relabel as stage
    from dwa_core.training import Progress

    setting = tiny_setting(relabel={"epochs": 1, "test_every": 1, **relabel})
    labeller = stage.make_labeller(tiny_teacher.network, setting.relabel, compute.precision)
    training = digits.train.relabel(torch.where(torch.arange(len(digits.train)) < 20, digits.train.labels, -1))
    loss = stage.make_loss(labeller, setting.relabel)
    curve = stage.train_student(setting, 10, training, digits.test, loss, compute, Progress("student"))
    assert torch.tensor(curve[0]["loss"]).isfinite()
