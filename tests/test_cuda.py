"""One smoke test of the whole chain on a GPU, and the two things that a GPU computes in a way of its own."""

import pytest
import torch

from dwa_core import augment, data, models, relabel, synthesize, teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")

CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_teacher_dwa_and_student_run_on_the_gpu(precision, tiny_setting, own_root):
    setting = tiny_setting(
        network="resnet18",
        device="cuda",
        precision=precision,
        ipc=2,
        teacher={"epochs": 3, "optimizer": "adamw", "learning_rate": 0.001},
        synthesis={"iterations": 5, "classes_per_batch": 5},
        relabel={"epochs": 2},
    )
    device = models.choose_device(setting.device)
    found = data.load("digits", setting.images, device)
    assert found.train.images_uint8.device.type == "cuda"
    trained = teacher.train_or_load(setting, found, device)
    assert trained.record["accuracy"]["top1"] > 50
    distilled = synthesize.synthesize_or_load(setting, found, trained, device)
    assert distilled.images_uint8.shape == (20, 16, 16, 3)
    assert torch.isfinite(torch.tensor(distilled.record["losses_first_batch"])).all()
    record = relabel.evaluate(setting, found, trained, distilled, device)
    assert record["device"] == torch.cuda.get_device_name(device)
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
    matched = synthesize.MatchedBatchNorm(torch.nn.BatchNorm2d(64).to(CUDA).eval().requires_grad_(False))
    matched(inputs)
    mean, variance = matched.mean, matched.variance
    expected_variance, expected_mean = torch.var_mean(inputs.float(), (0, 2, 3), correction=0)
    assert mean.dtype is variance.dtype is torch.float32
    torch.testing.assert_close(mean, expected_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("full_fp32")
def test_fp32_synthesis_on_the_gpu_is_that_of_the_cpu(digits, tiny_teacher, tiny_setting, cpu):
    stage, images = (setting := tiny_setting(synthesis={"iterations": 5})).synthesis, setting.images
    chosen = data.draw_real(digits.train, 10, 1, seed=0)[0]
    initial = augment.normalise(augment.to_unit_range(digits.train.pictures(chosen)), images.mean, images.std)
    views = augment.draw_views(5, 16, stage.roll, True, 0)
    results = []
    for device in (cpu, CUDA):
        network = models.on_device(models.frozen_copy(tiny_teacher.network), device)
        result = synthesize.optimise_images(
            network,
            initial.to(device),
            torch.arange(10, device=device),
            views,
            stage,
            images.mean,
            images.std,
            torch.float32,
        )
        results.append([tensor.cpu() for tensor in result])
    (cpu_images, cpu_losses), (gpu_images, gpu_losses) = results
    torch.testing.assert_close(gpu_losses, cpu_losses, rtol=1e-3, atol=1e-5)
    assert (gpu_images - cpu_images).norm() < 1e-3 * cpu_images.norm()
