"""One smoke test of the whole chain on a GPU, and what a GPU computes in a way of its own: statistics and graphs."""

import sys
from pathlib import Path

import pytest
import torch

from dwa_core import augment, batches, batchnorm, devices, initialise, models, synthesis
from dwa_core.devices import Compute
from dwa_core.synthesis import ClassBatch, ImageOptimisation, optimise, prepare_batches, synthesize
from dwa_core.training import Batches, Progress, fit
from dwa_paper.runs import real, sets, students, teachers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")

CUDA = torch.device("cuda")
NOTHING_DONE = torch.empty(0)


@pytest.mark.parametrize(("precision", "labels"), [("auto", "teacher"), ("fp32", "fixed")])
def test_teacher_dwa_and_student_run_on_the_gpu(precision, labels, tiny_setting, own_root):
    setting = tiny_setting(
        network="resnet18",
        device="cuda",
        precision=precision,
        ipc=2,
        images={"side": 8},  # digits are 8x8 anyway
        teacher={"epochs": 3, "optimizer": "adamw", "learning_rate": 0.001},
        synthesis={"iterations": 5, "classes_per_batch": 5},
        relabel={"epochs": 2, "labels": labels},
    )
    compute = devices.choose(setting.device, setting.precision)
    found = real.load("digits", setting.images, compute.device)
    assert found.train.images_uint8.device.type == "cuda"
    trained = teachers.load_or_train(setting, found, compute)
    assert trained.record["accuracy"]["top1"] > 50
    distilled = sets.load_or_synthesize(setting, found, trained, compute)
    assert distilled.images_uint8.shape == (20, 8, 8, 3)
    losses = distilled.record["losses_first_batch"]
    assert torch.isfinite(torch.tensor(list(losses.values()))).all()
    record = students.evaluate(setting, found, [found], [trained], [distilled], compute)
    assert record["device"] == torch.cuda.get_device_name(compute.device)
    assert torch.isfinite(torch.tensor([entry["loss"] for entry in record["curve"]])).all()
    assert setting.record_path().is_file()


@pytest.fixture
def full_fp32():
    """Convolutions in true fp32: TF32, their default on a GPU, keeps 10 bits of each factor."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_statistics_on_the_gpu_are_mean_and_biased_variance(dtype, memory_format):
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 64, 9, 7, generator=random) * 3 + 2
    inputs = inputs.to(CUDA, dtype).contiguous(memory_format=memory_format)
    matched = batchnorm.MatchedBatchNorm(torch.nn.BatchNorm2d(64).to(CUDA).eval().requires_grad_(False))
    matched(inputs)
    mean, variance = matched.mean, matched.variance
    expected_variance, expected_mean = torch.var_mean(inputs.float(), (0, 2, 3), correction=0)
    assert mean.dtype is variance.dtype is torch.float32
    torch.testing.assert_close(mean, expected_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("full_fp32")
def test_fp32_synthesis_on_the_gpu_is_that_of_the_cpu(digits, tiny_teacher, tiny_setting, cpu):
    stage, images = (setting := tiny_setting(synthesis={"iterations": 10})).synthesis, setting.images
    chosen = initialise.draw_real(digits.train, 10, 1, seed=0)[0]
    initial = augment.normalise(augment.to_unit_range(digits.train.pictures(chosen)), images.mean, images.std)
    views = augment.draw_views(10, 16, stage.roll, True, 0)
    results = []
    for device in (cpu, CUDA):
        network = devices.move_to_device(devices.copy_frozen(tiny_teacher.network), device)
        class_batch = ClassBatch(initial.to(device), torch.arange(10, device=device), views)
        batch = ImageOptimisation(network, class_batch, stage, images, Compute(device, torch.float32))
        optimise([batch], Progress("test"), NOTHING_DONE, {})
        results.append((batch.images.detach().cpu(), batch.losses.cpu()))
    (cpu_images, cpu_losses), (gpu_images, gpu_losses) = results
    torch.testing.assert_close(gpu_losses, cpu_losses, rtol=1e-3, atol=1e-5)
    assert (gpu_images - cpu_images).norm() < 1e-3 * cpu_images.norm()


@pytest.mark.usefixtures("full_fp32")
def test_fast_and_plain_synthesis_agree_on_the_gpu(tiny_teacher, tiny_setting):
    """Ten iterations in fp32, replayed from a CUDA graph after the first three, against benchmarks/plain.py."""
    stage, images = (setting := tiny_setting()).synthesis, setting.images
    network = devices.move_to_device(devices.copy_frozen(tiny_teacher.network), CUDA)
    random = torch.Generator().manual_seed(0)
    initial = augment.normalise(torch.rand(10, 3, 16, 16, generator=random), images.mean, images.std).to(CUDA)
    views, labels = augment.draw_views(10, 16, [0, 2], False, 0), torch.arange(10, device=CUDA)
    twin = devices.copy_frozen(network)
    slow = plain.synthesize(twin, initial, labels, views, images.mean, images.std)
    compute = Compute(CUDA, torch.float32)
    batch = ImageOptimisation(network, ClassBatch(initial, labels, views), stage, images, compute)
    optimise([batch], Progress("test"), NOTHING_DONE, {})
    assert (batch.images - slow).norm() < 1e-3 * slow.norm()


@pytest.mark.usefixtures("full_fp32")
def test_batches_side_by_side_on_the_gpu_end_as_they_do_one_after_the_other(tiny_teacher, tiny_setting):
    setting = tiny_setting(ipc=3, synthesis={"iterations": 10})
    digits_there = real.load("digits", setting.images, CUDA)
    teacher_there = devices.move_to_device(devices.copy_frozen(tiny_teacher.network), CUDA)

    def prepared():
        compute = Compute(CUDA, torch.float32)
        return list(prepare_batches(setting, digits_there.train, 10, teacher_there, compute, range(3), skip=0))

    together, apart = prepared(), prepared()
    optimise(together, Progress("together"), NOTHING_DONE, {})
    for one, other in zip(apart, together, strict=True):
        for _ in range(setting.synthesis.iterations):
            one.step()
        assert (one.images - other.images).norm() < 1e-3 * one.images.norm()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")],
    ids=["allocation", "graph"],
)
def test_of_batches_side_by_side_half_as_many_are_tried_where_memory_runs_out(
    error, tiny_teacher, tiny_setting, monkeypatch
):
    setting = tiny_setting(ipc=4)
    train = real.load("digits", setting.images, CUDA).train
    teacher_there = devices.move_to_device(devices.copy_frozen(tiny_teacher.network), CUDA)
    tried = []

    def optimise_where_there_is_room(batches, *rest):
        tried.append(len(batches))
        if len(batches) > 2:
            devices.Graphed(batches[0].step, CUDA)()  # in a stream of its own, which may still be busy
            raise error
        optimise(batches, *rest)

    monkeypatch.setattr(synthesis, "optimise", optimise_where_there_is_room)
    monkeypatch.setattr(synthesis, "GPU_IMAGES", 40)
    images, _ = synthesize(setting, train, 10, teacher_there, Compute(CUDA, torch.float32), Progress("test"))
    assert tried == [4, 2, 2]
    assert images.shape == (40, 16, 16, 3)


@pytest.mark.usefixtures("full_fp32")
def test_compiled_batches_side_by_side_on_the_gpu_end_as_they_do_without_the_compiler(tiny_teacher, tiny_setting):
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # Triton raises many kinds
        pytest.skip(f"Triton cannot compile here: {str(error).splitlines()[0]}")
    setting = tiny_setting(ipc=3, synthesis={"iterations": 10})
    train = real.load("digits", setting.images, CUDA).train
    teacher_there = devices.move_to_device(devices.copy_frozen(tiny_teacher.network), CUDA)
    made = []
    for compile in (False, True):
        compute = Compute(CUDA, torch.float32, compile)
        made.append(list(prepare_batches(setting, train, 10, teacher_there, compute, range(3), skip=0)))
        optimise(made[-1], Progress("test"), NOTHING_DONE, {})
    for one, other in zip(*made, strict=True):
        assert (one.images - other.images).norm() < 1e-3 * one.images.norm()


def test_images_kept_on_the_host_are_those_on_the_gpu_and_the_host_does_not_wait_for_them(digits, tiny_setting, cpu):
    stage, given = tiny_setting().teacher, (digits.train.images_uint8[:200], digits.train.labels[:200], CUDA)
    key = ([0.3] * 3, [0.4] * 3, 0)
    there, here = batches.Resident(*given), batches.Resident(*given, place=cpu)
    expected, made = list(there.train_batches(stage, *key)), here.train_batches(stage, *key)
    found = [next(made)]  # for which the order of the epoch was read
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += made
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (images_there, labels_there) in zip(found, expected, strict=True):
        assert torch.equal(images, images_there)
        assert torch.equal(labels, labels_there)
    for (images, _), (images_there, _) in zip(here.test_batches(*key[:2]), there.test_batches(*key[:2]), strict=True):
        assert torch.equal(images, images_there)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_by_a_graph_is_training_step_by_step(optimizer, digits, tiny_setting, monkeypatch):
    """Two epochs with a smaller last batch: graphs, and the same function called as it is."""
    # 1,297 images are 25 batches of 50 and one of 47.
    training = {"optimizer": optimizer, "learning_rate": 0.01, "epochs": 2, "batch_size": 50}
    stage = tiny_setting(teacher=training).teacher
    split = batches.Resident(digits.train.images_uint8, digits.train.labels, CUDA)
    losses = []
    for warm_up in (devices.Graphed.WARM_UP, 10**9):
        monkeypatch.setattr(devices.Graphed, "WARM_UP", warm_up)
        network = devices.move_to_device(models.build("convnet-16", 10, "small", 16, seed=0), CUDA)
        images_and_labels = Batches(
            train=lambda epoch: split.train_batches(stage, [0.3] * 3, [0.4] * 3, epoch),
            test=lambda: split.test_batches([0.3] * 3, [0.4] * 3),
            key=(0,),
        )

        def batch_loss(inputs, labels, network=network):
            return torch.nn.functional.cross_entropy(network(inputs), labels)

        curve = fit(network, stage, images_and_labels, batch_loss, Compute(CUDA, torch.float32), Progress("test"))
        losses.append([entry["loss"] for entry in curve])
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)


def test_bf16_ends_within_the_spread_of_three_seeds_in_fp32(tiny_setting, own_root):
    """Cross-entropy and BatchNorm terms over the last 100 of 1000 iterations, and the accuracy of students.

    All share the teacher of the first seed, because losses depend on the teacher.
    """
    shared = []

    def run(seed: int, precision: str) -> tuple[float, float, float]:
        setting = tiny_setting(
            network="convnet-64",
            device="cuda",
            precision=precision,
            ipc=10,
            name=f"{precision}-{seed}",
            teacher={"epochs": 20},
            synthesis={"iterations": 1000, "seed": seed},
            relabel={"epochs": 100},
        )
        compute = devices.choose("cuda", precision)
        digits = real.load("digits", setting.images, compute.device)
        trained = shared[0] if shared else teachers.load_or_train(setting, digits, compute)
        shared.append(trained)
        distilled = sets.load_or_synthesize(setting, digits, trained, compute)
        record = students.evaluate(setting, digits, [digits], [trained], [distilled], compute)
        losses = distilled.record["losses_first_batch"]
        last = [sum(losses[name][-100:]) / 100 for name in ("cross_entropy", "batchnorm_terms")]
        return *last, record["accuracy"]["last"]

    exact = torch.tensor([run(seed, "fp32") for seed in range(3)])
    rough = torch.tensor(run(0, "bf16"))
    # Three seeds may agree by chance: of two in fp32 on a CPU, the BatchNorm terms of one were 6 % above the other's.
    # On an H200 the three lay within 2 %, and bf16 4.5 % above their mean.
    spread = torch.maximum(exact.max(0).values - exact.min(0).values, 0.06 * exact.mean(0))
    assert ((rough - exact.mean(0)).abs() <= spread).all(), (rough, exact)
