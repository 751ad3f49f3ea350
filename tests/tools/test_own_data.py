"""One's own images, networks and weights."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from dwa_core import batchnorm, devices, models
from dwa_paper.runs import real, sets, sources, store, students, teachers
from dwa_paper.runs.records import find_record
from dwa_paper.settings import files, schema
from dwa_paper.tools import own_data

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """$DWA_DATA with a plain folder called own: two classes of 15 images, 40 x 36 px, dark red and bright."""
    random = np.random.default_rng(0)
    for name, low, high in (("dark", 0, 100), ("bright", 150, 256)):
        (tmp_path / "data" / "own" / name).mkdir(parents=True)
        for index in range(15):
            pixels = random.integers(low, high, (36, 40, 3), dtype=np.uint8)
            pixels[:, :, 1:] //= 2
            Image.fromarray(pixels).save(tmp_path / "data" / "own" / name / f"{index}.png")
    monkeypatch.setenv("DWA_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "own"


# ---------------------------------------------------------------------------------------------------- images


def test_plain_folder_gets_a_test_part_of_every_class_that_is_always_the_same(pictures, cpu, tiny_setting, capsys):
    found = real.load("own", tiny_setting().images, cpu)
    assert found.classes == ["bright", "dark"]
    assert found.train.labels.bincount().tolist() == [12, 12]
    assert found.test.labels.bincount().tolist() == [3, 3]
    assert "6 of the 30 images are kept for testing" in capsys.readouterr().out
    everything = torch.cat([found.train.images_uint8, found.test.images_uint8]).flatten(1)
    assert len(everything.unique(dim=0)) == 30
    assert real.load("own", tiny_setting().images, cpu).fingerprint == found.fingerprint


@pytest.mark.parametrize("name", ["train", "test", "valley", "testudo"])
def test_class_may_be_called_as_a_part_is(name, pictures, cpu, tiny_setting):
    (pictures / "dark").rename(pictures / name)
    assert real.load("own", tiny_setting().images, cpu).classes == ["bright", name]


def test_class_too_small_for_both_parts_is_refused(pictures, cpu, tiny_setting, refused):
    for path in list((pictures / "dark").iterdir())[1:]:
        path.unlink()
    with refused("own", "test part"):
        real.load("own", tiny_setting().images, cpu)


def test_recipe_follows_the_size_and_colours_are_measured(pictures):
    found = own_data.build_settings("own", "convnet-8", 3)
    assert (found["preset"], found["images"]["side"]) == ("cifar10", 32)
    train = [Image.open(image["path"]) for image in sources.open_folder("own", pictures)[0]["train"]["image"]]
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in train])
    assert found["images"]["mean"] == pytest.approx(pixels.reshape(-1, 3).mean(0) / 255, abs=1e-4)
    assert found["images"]["std"] == pytest.approx(pixels.reshape(-1, 3).std(0) / 255, abs=1e-4)
    setting = schema.resolve(found)
    assert (setting.network, setting.student, setting.ipc, setting.dataset) == ("convnet-8", "convnet-8", 3, "own")


@pytest.mark.parametrize(("side", "preset", "expected"), [(100, "tiny-imagenet", 64), (200, "imagenet-1k", 224)])
def test_larger_images_take_a_larger_recipe_with_a_teacher_to_be_trained(side, preset, expected, pictures):
    for path in pictures.rglob("*.png"):
        Image.open(path).resize((side + 9, side)).save(path)
    found = own_data.build_settings("own", "resnet18", 1)
    assert (found["preset"], found["images"]["side"]) == (preset, expected)
    assert schema.resolve(found).teacher.weights is None
    said = {"teacher": {"weights": "IMAGENET1K_V1", "fine_tune": True}, "stem": "torchvision"}
    tuned = own_data.build_settings("own", "resnet18", 1, said)["images"]
    assert (tuned["mean"], tuned["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_what_is_said_wins_and_the_same_call_finds_its_settings(pictures, own_root):
    said = own_data.parse_differences(["teacher.epochs=3", "images.side=16", "synthesis.rho=0.1", "authors=true"])
    found = own_data.build_settings("own", "convnet-8", 1, said)
    path = own_data.write_settings(found)
    assert path == own_root / "settings" / "mine" / "own-convnet-8-dwa-ipc1.yaml"
    assert files.read(path) == found
    setting = schema.resolve(files.read(path))
    assert (setting.teacher.epochs, setting.images.side, setting.synthesis.rho, setting.authors) == (3, 16, 0.1, True)
    written = path.stat().st_mtime_ns
    assert own_data.write_settings(own_data.build_settings("own", "convnet-8", 1, said)) == path
    assert path.stat().st_mtime_ns == written


def test_settings_of_another_call_are_refused_and_a_name_of_its_own_helps(pictures, own_root, refused):
    path = own_data.write_settings(own_data.build_settings("own", "convnet-8", 1, {"teacher": {"epochs": 3}}))
    text = path.read_text()
    with refused(str(path), "teacher.epochs is 3 there and 4 here", "name="):
        own_data.write_settings(own_data.build_settings("own", "convnet-8", 1, {"teacher": {"epochs": 4}}))
    assert path.read_text() == text
    said = own_data.parse_differences(["teacher.epochs=4", "name=longer"])
    longer = own_data.write_settings(own_data.build_settings("own", "convnet-8", 1, said))
    assert (longer.name, files.read(longer)["teacher"]["epochs"]) == ("longer.yaml", 4)
    for picture in pictures.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    with refused(str(path), "images.mean is [0.", "delete it"):
        own_data.write_settings(own_data.build_settings("own", "convnet-8", 1, {"teacher": {"epochs": 3}}))


@pytest.mark.parametrize("differences", [{"device": "cpu"}, {"device": "cpu", "validation": 0.25}])
def test_record_of_other_images_of_the_same_colours_is_refused(differences, pictures, cpu, refused, bare_record):
    parameters = own_data.build_settings("own", "convnet-8", 1, differences)
    setting = schema.resolve(parameters)
    found = real.load("own", setting.images, cpu, validation=setting.validation)
    record = bare_record(setting)
    record["data"] |= {"fingerprint": found.fingerprint, "classes": 2}
    setting.record_path().parent.mkdir(parents=True)
    store.write_json(setting.record_path(), record)
    assert own_data.write_settings(parameters).is_file()
    (pictures / "dark").rename(pictures / "gloomy")  # after bright, as before: another class of the same images
    again = own_data.build_settings("own", "convnet-8", 1, differences)
    assert again == parameters
    with refused(str(setting.record_path()), "fingerprint", f"{found.fingerprint[:10]} there"):
        own_data.write_settings(again)


@pytest.mark.parametrize("text", ["epochs", "=3", "teacher.=3"])
def test_difference_of_another_form_is_refused(text, refused):
    with refused(repr(text), "stage.key=value"):
        own_data.parse_differences([text])


def distill(*arguments: str, root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dwa_paper", "distill", *arguments]
    variables = {"DWA_ROOT": str(root), "PATH": "/usr/bin:/bin", "HOME": str(root), "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = str(REPOSITORY)
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)


def test_one_command_distils_a_folder(pictures, tmp_path):
    pictures = pictures.parent.rename(tmp_path / "my data") / "own"
    short = ["teacher.epochs=2", "synthesis.iterations=3", "relabel.epochs=2", "device=cpu", "seed=1"]
    done = distill(str(pictures), "--network", "convnet-8", "--ipc", "2", "--with", *short, root=tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"DWA_DATA='{pictures.parent}' make results/mine/own-convnet-8-dwa-ipc2.json" in done.stdout
    for stage, images in {"teacher": 24, "relabel": 4}.items():
        assert done.stdout.count(f"{stage}.batch_size 128 is more than the {images} images: each epoch is") == 1
    record = store.read_json(tmp_path / "out" / "results" / "mine" / "own-convnet-8-dwa-ipc2-seed1.json")
    assert (record["setting"]["ipc"], record["data"]["training_images"]) == (2, 24)
    stored = tmp_path / "out" / "artifacts" / "distilled" / record["distilled"]["artifact"]
    assert sets.read_parquet(stored).images_uint8.shape == (4, 32, 32, 3)
    (pictures / "dark" / "more").mkdir()
    shutil.copy(pictures / "dark" / "0.png", pictures / "dark" / "more")
    again = distill(str(pictures), "--network", "convnet-8", "--ipc", "2", "--with", *short, root=tmp_path / "out")
    assert "1 images lie deeper than CLASS/IMAGE" in again.stdout
    assert (again.returncode, again.stdout.splitlines()[-2:]) == (
        0,
        [
            f"{record['setting']['name']} seed 1: recorded already",
            f"the distilled images for other tools: make share SET={record['distilled']['artifact']}",
        ],
    )


def test_name_of_a_folder_that_cannot_be_part_of_file_names_is_refused_and_a_link_helps(pictures, tmp_path):
    pictures = pictures.rename(tmp_path / "my photos")
    refusal = distill(str(pictures), root=tmp_path / "out")
    assert refusal.stderr.startswith("error: DATA: 'my photos' is not allowed; only letters, digits")
    assert refusal.stderr.endswith("ln -s 'my photos' my-photos\n")
    (tmp_path / "my-photos").symlink_to("my photos")
    next((pictures / "dark").iterdir()).write_bytes(b"\xff\xd8\xff")
    damaged = distill(str(tmp_path / "my-photos"), "--network", "convnet-8", root=tmp_path / "out")
    assert f"image {tmp_path}/my-photos/dark/" in damaged.stderr, "the file is named"
    assert (damaged.returncode, damaged.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["/nowhere"], "error: DATA: /nowhere is not a folder"),
        (["--network", "resnet19"], "error: network: 'resnet19' is not a network"),
        (["--with", "teacher.epoch=3"], "error: teacher.epoch: unknown key"),
        ([], "error: the following arguments are required: DATA\n"),
        (["--ipc", "two"], "error: argument --ipc: invalid int value: 'two'"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(arguments, texts, pictures, tmp_path):
    folder = [] if arguments in (["/nowhere"], []) else [str(pictures)]
    done = distill(*folder, *arguments, root=tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(texts)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "settings").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["DATA=/x/my pics", "IPC=2"], "'/x/my pics' --ipc 2"),
        (["DATA=x'y", "NETWORK=resnet34", "WITH=seed=1 a=[1]"], r"'x'\''y' --network resnet34 --with 'seed=1' 'a=[1]'"),
        ([], ""),
    ],
)
def test_make_hands_on_what_it_is_given_and_a_folder_with_its_spaces(given, words):
    command = ["make", "--dry-run", "distill", *given]
    said = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert " ".join(said.replace("\\\n", " ").split()).endswith(f"dwa_paper distill {words}".strip())


# -------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "mobilenetv3_small_050", "resnet10t.c3_in1k"])
def test_network_of_a_library_is_built_by_its_name_and_seed(name):
    models.check_network("network", name, "small", 64)
    network = models.build(name, 7, "torchvision", 64, seed=0)
    assert network.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    again = models.build(name, 7, "torchvision", 64, seed=0).state_dict()
    assert all(
        torch.equal(value, again[key]) for key, value in models.build(name, 7, "small", 64, 0).state_dict().items()
    )


def test_network_without_batchnorm_is_refused_as_teacher(refused):
    for name in ("mobilenet_v3_small", "googlenet", "mobilenetv3_small_050", "densenet121", "regnet_y_400mf"):
        models.check_network("network", name, "torchvision", 64)
        models.check_teacher(name, "torchvision", 64)
    with refused("'alexnet'", "BatchNorm2d"):
        models.check_teacher("alexnet", "torchvision", 224)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "mobilenet_v3_small"])
def test_matched_statistics_and_their_gradient_are_exact_whatever_follows_the_batchnorm(name):
    """timm's BatchNorm layers end with an activation, which the one-formula backward must not swallow."""
    network = models.build(name, 5, "torchvision", 32, seed=0).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
            nn.init.uniform_(layer.running_var, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
    network = devices.copy_frozen(network)
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    images.requires_grad_(True)
    seen = []
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs[0])))
    labels = torch.arange(4)
    loss = F.cross_entropy(plain(images), labels)
    for layer, x in seen:
        loss = loss + 0.1 * torch.linalg.vector_norm(x.var((0, 2, 3), correction=0) - layer.running_var)
        loss = loss + 0.1 * torch.linalg.vector_norm(x.mean((0, 2, 3)) - layer.running_mean)
    (expected,) = torch.autograd.grad(loss, images)
    layers = batchnorm.match_statistics(network)
    assert len(layers) == len(seen)
    found = F.cross_entropy(network(images), labels)
    for matched in layers:
        found = found + 0.1 * torch.linalg.vector_norm(matched.variance - matched.layer.running_var)
        found = found + 0.1 * torch.linalg.vector_norm(matched.mean - matched.layer.running_mean)
    (gradient,) = torch.autograd.grad(found, images)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(gradient, expected)


# --------------------------------------------------------------------------------------------------- weights


def test_own_weights_stand_in_for_the_training(digits, tiny_teacher, tiny_setting, shared_root, tmp_path, compute):
    state = load_file(shared_root / "artifacts" / "teachers" / tiny_teacher.artifact / "model.safetensors")
    path = tmp_path / "own.safetensors"
    save_file({k: v.float() for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    setting = tiny_setting(teacher={"weights": str(path)})
    found = teachers.load_or_train(setting, digits, compute)
    assert found.record["curve"] == []
    assert found.record["accuracy"] == tiny_teacher.record["accuracy"]
    for name, value in tiny_teacher.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found.network.state_dict()[name], value)
    # The name of the artifact follows what is in the file, not what it is called.
    path.rename(tmp_path / "renamed.safetensors")
    renamed = tiny_setting(teacher={"weights": str(tmp_path / "renamed.safetensors")})
    assert teachers.load_or_train(renamed, digits, compute).artifact == found.artifact
    save_file({k: v.float() + 1 for k, v in state.items()}, path)
    assert teachers.load_or_train(setting, digits, compute).artifact != found.artifact


def test_record_counts_for_the_weights_that_are_in_the_file_now(digits, tiny_setting, tmp_path, compute):
    def write(seed: int) -> None:
        save_file(models.build("convnet-16", 10, "small", 16, seed).state_dict(), path)

    def run() -> dict:
        trained = teachers.load_or_train(setting, digits, compute)
        made = sets.load_or_synthesize(setting, digits, trained, compute)
        return students.evaluate(setting, digits, [digits], [trained], [made], compute)

    path = tmp_path / "own.safetensors"
    setting = tiny_setting(teacher={"weights": str(path)}, method="random-real", relabel={"epochs": 1})
    write(1)
    record = run()
    assert find_record(setting) == record
    write(2)
    assert find_record(setting) is None
    other = run()
    assert other["teacher"]["artifact"] != record["teacher"]["artifact"]
    assert find_record(setting) == other
    path.unlink()
    assert find_record(setting) == other, "nothing says that it was another file"


def test_weights_that_do_not_fit_are_refused(digits, tiny_setting, tmp_path, compute, refused):
    path = tmp_path / "own.safetensors"
    setting = tiny_setting(teacher={"weights": str(path)})
    with refused("teacher.weights", "own.safetensors", "cannot be read"):
        teachers.load_or_train(setting, digits, compute)
    path.write_bytes(b"not safetensors")
    with refused("teacher.weights", "own.safetensors", "cannot be read"):
        teachers.load_or_train(setting, digits, compute)
    save_file(models.build("convnet-8", 10, "small", 16, 0).state_dict(), path)
    with refused("teacher.weights", "own.safetensors", "does not fit", "(8, 3, 3, 3)"):
        teachers.load_or_train(setting, digits, compute)
