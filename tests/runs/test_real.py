"""Data: the bundled digits, local Parquet and image folders, bad data, what is drawn, and where it is kept."""

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from dwa_core import batches, initialise
from dwa_core.errors import InputError
from dwa_core.recipe import Images
from dwa_paper.runs import real
from dwa_paper.settings.datasets import DATASETS

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def image_settings(side: int) -> Images:
    return Images(side=side, mean=MEAN, std=STD)


def random_pictures(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_parquet(path: Path, pictures, labels, classes, image_column="image", label_column="label", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    label_feature = datasets.ClassLabel(names=classes) if classes else datasets.Value("int64")
    features = {image_column: datasets.Image(), label_column: label_feature}
    features |= {name: datasets.Value("int64") for name in columns}
    rows = {image_column: [Image.fromarray(picture) for picture in pictures], label_column: labels, **columns}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """$DWA_DATA, with a data set called own of two classes in Parquet: 6 training and 4 test images of 8 px."""
    folder = tmp_path / "data"
    monkeypatch.setenv("DWA_DATA", str(folder))
    write_parquet(folder / "own" / "train-00000-of-00001.parquet", random_pictures(6, 8), [0, 1] * 3, ["a", "b"])
    write_parquet(folder / "own" / "test-00000-of-00001.parquet", random_pictures(4, 8, 1), [1, 1, 0, 0], ["a", "b"])
    return folder / "own"


def save_tree(folder: Path, images: dict[str, Image.Image]) -> None:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """$DWA_DATA, with an image folder called own of two classes: 4 training and 2 test images."""
    folder = tmp_path / "data" / "own"
    monkeypatch.setenv("DWA_DATA", str(folder.parent))
    pictures = [Image.fromarray(picture) for picture in random_pictures(6, 8)]
    names = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "test/a/0.png", "test/b/0.png"]
    save_tree(folder, dict(zip(names, pictures, strict=True)))
    return folder


# ---------------------------------------------------------------------------------------------- digits


def test_digits_are_stratified_and_in_three_equal_channels(digits):
    row = DATASETS["digits"]
    assert (len(digits.train), len(digits.test)) == (row.training_images, row.test_images) == (1297, 500)
    assert digits.classes == [str(digit) for digit in range(10)]
    train, test = (torch.bincount(part.labels, minlength=10) for part in (digits.train, digits.test))
    torch.testing.assert_close(test / (train + test), torch.full((10,), 500 / 1797), atol=0.005, rtol=0)
    for part in (digits.train, digits.test):
        assert part.images_uint8.shape[1:] == (16, 16, 3)
        assert part.images_uint8.dtype == torch.uint8
        assert (part.images_uint8 == part.images_uint8[..., :1]).all()
        assert part.images_uint8.max() == 255


def test_digits_come_at_another_side_with_the_same_split(digits, cpu):
    larger = real.load("digits", image_settings(32), cpu)
    assert larger.train.images_uint8.shape == (1297, 32, 32, 3)
    assert torch.equal(larger.train.labels, digits.train.labels)
    assert larger.fingerprint != digits.fingerprint


# -------------------------------------------------------------------------------------------- local data


@pytest.mark.parametrize(
    ("columns", "test_name"),
    [
        ({"image_column": "image", "label_column": "label"}, "test-00000-of-00001"),
        ({"image_column": "img", "label_column": "label"}, "test-00000-of-00001"),
        ({"image_column": "image", "label_column": "label"}, "valid-00000-of-00001"),
        # CIFAR-100's layout: there is a coarse label beside the fine one, which must not be taken.
        ({"image_column": "img", "label_column": "fine_label", "coarse_label": [0, 0, 0, 0]}, "test-00000-of-00001"),
    ],
)
def test_parquet_of_the_hubs_layouts_is_read_to_the_pixel(columns, test_name, tmp_path, monkeypatch, cpu):
    monkeypatch.setenv("DWA_DATA", str(tmp_path))
    train, test = random_pictures(4, 8), random_pictures(4, 8, seed=1)
    write_parquet(tmp_path / "own" / "train-00000-of-00001.parquet", train, [2, 1, 0, 1], ["x", "y", "z"], **columns)
    write_parquet(tmp_path / "own" / f"{test_name}.parquet", test, [0, 1, 2, 2], ["x", "y", "z"], **columns)
    found = real.load("own", image_settings(8), cpu)
    assert found.classes == ["x", "y", "z"]
    assert torch.equal(found.train.images_uint8, torch.from_numpy(train))
    assert torch.equal(found.test.images_uint8, torch.from_numpy(test))
    assert found.train.labels.tolist() == [2, 1, 0, 1]
    assert found.test.labels.tolist() == [0, 1, 2, 2]


def test_validation_part_is_the_test_part_where_both_are_there(local, cpu):
    # ImageNet-1K's own layout: the labels of its test part are all -1.
    write_parquet(local / "validation-00000-of-00001.parquet", random_pictures(3, 8, seed=2), [0, 1, 1], ["a", "b"])
    write_parquet(local / "test-00000-of-00001.parquet", random_pictures(2, 8, seed=3), [-1, -1], ["a", "b"])
    assert real.load("own", image_settings(8), cpu).test.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_image_folder_is_read_as_rgb_and_resized_regardless_of_aspect(test_part, tmp_path, monkeypatch, cpu):
    monkeypatch.setenv("DWA_DATA", str(tmp_path))
    pixels = random_pictures(3, 24)
    images = {
        "train/cat/grey.png": Image.fromarray(pixels[0, :, :, 0]),
        "train/cat/wide.jpg": Image.fromarray(pixels[1, :12]),
        "train/dog/alpha.png": Image.fromarray(np.concatenate([pixels[2], pixels[0, :, :, :1]], axis=2), "RGBA"),
        f"{test_part}/cat/high.png": Image.fromarray(pixels[1, :, :10]),
        f"{test_part}/dog/small.png": Image.fromarray(pixels[2, :4, :4]),
    }
    save_tree(tmp_path / "own", images)
    (tmp_path / "own" / "train" / "cat" / "notes.txt").write_text("no image")
    found = real.load("own", image_settings(8), cpu)
    assert found.classes == ["cat", "dog"]
    assert found.train.labels.tolist() == [0, 0, 1]
    assert found.test.labels.tolist() == [0, 1]
    files = sorted(images)
    expected = []
    for name in [name for name in files if "train" in name] + [name for name in files if "train" not in name]:
        stored = Image.open(tmp_path / "own" / name).convert("RGB")
        expected.append(np.asarray(stored.resize((8, 8), Image.Resampling.BILINEAR)))
    seen = torch.cat([found.train.images_uint8, found.test.images_uint8])
    assert torch.equal(seen, torch.from_numpy(np.stack(expected)))


def test_second_load_decodes_nothing(local, monkeypatch, cpu):
    first = real.load("own", image_settings(8), cpu)
    monkeypatch.setattr(real, "decode", lambda *_: pytest.fail("decoded a second time"))
    second = real.load("own", image_settings(8), cpu)
    assert torch.equal(first.train.images_uint8, second.train.images_uint8)
    assert first.fingerprint == second.fingerprint


def test_fingerprint_tells_one_pixel_but_not_how_files_are_cut(local, cpu):
    before = real.load("own", image_settings(8), cpu).fingerprint
    pictures = random_pictures(6, 8)
    (local / "train-00000-of-00001.parquet").unlink()
    for number in range(2):
        part = slice(3 * number, 3 * number + 3)
        path = local / f"train-0000{number}-of-00002.parquet"
        write_parquet(path, pictures[part], ([0, 1] * 3)[part], ["a", "b"])
    assert real.load("own", image_settings(8), cpu).fingerprint == before
    pictures[5, 7, 7, 2] ^= 1
    write_parquet(local / "train-00001-of-00002.parquet", pictures[3:], [1, 0, 1], ["a", "b"])
    assert real.load("own", image_settings(8), cpu).fingerprint != before


# ---------------------------------------------------------------------------------------------- bad data


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def without_a_class_in_training(folder: Path):
    (folder / "train" / "b" / "0.png").unlink()
    (folder / "train" / "b" / "1.png").unlink()
    return ["'b'", "no training images"]


def without_the_folder_of_a_class(folder: Path):
    remove(folder / "train" / "b")
    (folder / "train" / "b").rmdir()
    return ["'b'", "same classes"]


def with_nothing_in_it(folder: Path):
    remove(folder)
    return ["no train part", "train-*.parquet", "train/CLASS"]


def with_classes_but_no_images(folder: Path):
    for path in folder.rglob("*.png"):
        path.unlink()
    return ["own", "holds no images"]


def without_a_test_part(folder: Path):
    remove(folder / "test")
    (folder / "test").rmdir()
    return ["no test part"]


def with_a_validation_part_alone(folder: Path):
    # Its images must not become training images because there are no others.
    remove(folder / "train")
    (folder / "train").rmdir()
    (folder / "test").rename(folder / "validation")
    return ["no train part"]


def with_an_image_that_is_cut_short(folder: Path):
    path = folder / "train" / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return ["train image", str(path), "cannot be read"]


def with_a_file_that_is_no_parquet(folder: Path):
    (folder / "train-00000-of-00001.parquet").write_bytes(b"not Parquet at all")
    return ["train part", "cannot be read"]


def without_a_label_column(folder: Path):
    datasets.Dataset.from_dict({"image": [1], "kind": [0]}).to_parquet(folder / "train-00000-of-00001.parquet")
    return ["fine_label or label", "kind"]


def without_class_names(folder: Path):
    write_parquet(folder / "train-00000-of-00001.parquet", random_pictures(2, 8), [0, 1], None)
    return ["label", "ClassLabel"]


def with_a_label_that_is_no_class(folder: Path):
    write_parquet(folder / "train-00000-of-00001.parquet", random_pictures(2, 8), [0, -1], ["a", "b"])
    return ["train labels", "-1", "0 to 1"]


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_class_in_training,
        without_the_folder_of_a_class,
        with_nothing_in_it,
        with_classes_but_no_images,
        without_a_test_part,
        with_a_validation_part_alone,
        with_an_image_that_is_cut_short,
    ],
)
def test_spoilt_image_folder_is_refused(spoil, tree, cpu, refused):
    texts = spoil(tree)
    with refused("dataset", *texts):
        real.load("own", image_settings(8), cpu)


@pytest.mark.parametrize(
    "spoil",
    [with_a_file_that_is_no_parquet, without_a_label_column, without_class_names, with_a_label_that_is_no_class],
)
def test_spoilt_parquet_is_refused(spoil, local, cpu, refused):
    texts = spoil(local)
    with refused("dataset", *texts):
        real.load("own", image_settings(8), cpu)


def test_image_that_cannot_be_read_leaves_no_cache_behind(tree, own_root, cpu, refused):
    texts = with_an_image_that_is_cut_short(tree)
    with refused(*texts):
        real.load("own", image_settings(8), cpu)
    assert not list(own_root.rglob("*.safetensors"))
    assert not list(own_root.rglob("record.json"))


def test_unknown_data_set_is_refused(cpu, refused):
    with refused("dataset", "'cifar11'", "DWA_DATA is not set", "cifar10"):
        real.load("cifar11", image_settings(8), cpu)


def test_hub_is_asked_by_its_own_name_and_tested_on_the_validation_part(tmp_path, monkeypatch, cpu):
    path = tmp_path / "hub" / "train.parquet"
    write_parquet(path, random_pictures(4, 8), [0, 1, 0, 1], ["a", "b"])
    whole = datasets.Dataset.from_parquet(str(path))
    parts = {"train": whole, "test": whole.select([0]), "validation": whole.select([3, 2])}
    asked = []

    def hub(name):
        asked.append(name)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = real.load("imagenet-1k", image_settings(8), cpu)
    assert asked == ["ILSVRC/imagenet-1k"]
    assert found.test.labels.tolist() == [1, 0]
    assert len(found.train) == 4


@pytest.mark.parametrize("message", ["no route to host\nand a long story", ""])
def test_hub_that_cannot_be_reached_is_one_line(message, monkeypatch, cpu, refused):
    def unreachable(*_, **__):
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with refused("'cifar10'", "uoft-cs/cifar10", "DWA_DATA is not set", message.partition("\n")[0]):
        real.load("cifar10", image_settings(8), cpu)


def test_refusal_of_a_gated_data_set_says_how_to_get_it(monkeypatch, cpu, refused):
    def gated(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with refused(
        "is a gated dataset", "https://huggingface.co/datasets/ILSVRC/imagenet-1k", "hf auth login", "val/CLASS"
    ):
        real.load("imagenet-1k", image_settings(8), cpu)


def test_tries_at_a_hub_that_cannot_be_reached_are_not_shown():
    # Not whether a logger is enabled: other libraries' set-up of logging may disable those that were there before.
    assert huggingface_hub.logging.get_verbosity() == huggingface_hub.logging.ERROR


def test_fingerprint_of_streamed_parquet_tells_other_images_apart(local, cpu, monkeypatch):
    before = real.load("own", image_settings(72), cpu).fingerprint
    assert real.load("own", image_settings(72), cpu).fingerprint == before
    write_parquet(local / "train-00000-of-00001.parquet", random_pictures(6, 8, 7), [0, 1] * 3, ["a", "b"])
    assert real.load("own", image_settings(72), cpu).fingerprint != before


# ------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("side", [8, 72])
def test_more_images_than_a_class_has_are_refused(side, local, cpu, refused):
    train = real.load("own", image_settings(side), cpu, ipc=3).train
    assert initialise.draw_real(train, 2, 3, seed=0).sort(dim=0).values.tolist() == [[0, 1], [2, 3], [4, 5]]
    with refused("ipc", "4", "'a'", "3 training images"):
        real.load("own", image_settings(side), cpu, ipc=4)


# ------------------------------------------------------------------------------------------- large data sets

GB = 10**9


@pytest.mark.parametrize(
    ("kind", "size", "place"),
    [
        ("cuda", 7 * GB, "device"),
        ("cuda", 9 * GB, "host"),
        ("cuda", 17 * GB, "files"),
        ("cpu", 15 * GB, "device"),
        ("cpu", 17 * GB, "files"),
    ],
)
def test_images_go_where_half_of_the_free_memory_holds_them(kind, size, place, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (16 * GB, 80 * GB))
    memory = real.psutil.virtual_memory()._replace(available=32 * GB)
    monkeypatch.setattr(real.psutil, "virtual_memory", lambda: memory)
    assert real.choose_place(size, 64, torch.device(kind)) == place
    assert real.choose_place(size, 65, torch.device(kind)) == "files"


def test_set_larger_than_memory_streams_whatever_its_side_and_says_so(local, cpu, monkeypatch):
    kept = real.load("own", image_settings(8), cpu)
    assert isinstance(kept.train, batches.Resident)
    assert kept.storage == "0.0 MB decoded at 8 px, on cpu"
    memory = real.psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(real.psutil, "virtual_memory", lambda: memory)
    found = real.load("own", image_settings(8), cpu)
    assert found.storage.endswith("left in their files")
    assert isinstance(found.train, batches.Streamed)
    assert torch.equal(found.train.pictures(torch.arange(6)), kept.train.images_uint8)
    assert found.fingerprint != kept.fingerprint


def test_images_of_a_large_side_stay_in_their_files(local, own_root):
    meta = torch.device("meta")
    found = real.load("own", image_settings(72), meta)
    assert isinstance(found.train, batches.Streamed)
    assert found.train.device == found.test.device == meta
    assert (len(found.train), len(found.test)) == (6, 4)
    assert not list(own_root.rglob("*.safetensors"))


# ---------------------------------------------------------------------------------------------- real data

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("name", "side", "train", "test"), [("cifar10", 32, 49059, 9806), ("tiny-imagenet-20", 64, 10000, 1000)]
)
def test_real_images_are_read_whole(name, side, train, test, monkeypatch, cpu):
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"there is no {name} in shared/data beside the repository")
    monkeypatch.setenv("DWA_DATA", str(REAL_DATA))
    found = real.load(name, image_settings(side), cpu)
    assert found.train.images_uint8.shape == (train, side, side, 3)
    assert found.test.images_uint8.shape == (test, side, side, 3)
    if name == "cifar10":
        assert found.classes == CIFAR10
        assert (found.train.labels == CIFAR10.index("ship")).sum() == 5000 - 905
        assert (found.test.labels == CIFAR10.index("ship")).sum() == 1000 - 188
    else:
        assert (train, test, len(found.classes)) == DATASETS[name][1:4] == (10_000, 1_000, 20)
        assert all(class_name.startswith("n") and class_name[1:].isdigit() for class_name in found.classes)
        assert found.train.labels.bincount().tolist() == [500] * 20
        assert found.test.labels.bincount().tolist() == [50] * 20
    # Natural images: neither black nor noise, so wrong channels or strides would show.
    means = found.train.images_uint8[::50].float().mean((0, 1, 2)) / 255
    assert ((means > 0.3) & (means < 0.6)).all()
    assert means[0] > means[2]  # more red than blue, in both data sets


def test_validation_images_leave_the_training_part_and_replace_the_test_part(cpu):
    """With a share held out, no test image is read, and no image is both trained and tested on."""
    whole = real.load("digits", image_settings(16), cpu)
    chosen = real.load("digits", image_settings(16), cpu, validation=0.1)
    per_class = torch.bincount(whole.train.labels)
    assert torch.bincount(chosen.test.labels).tolist() == [round(0.1 * int(count)) for count in per_class]
    together = torch.cat([chosen.train.images_uint8, chosen.test.images_uint8]).flatten(1)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, whole.train.images_uint8.flatten(1).numpy()))
    assert chosen.fingerprint != whole.fingerprint
    assert real.load("digits", image_settings(16), cpu, validation=0.1).fingerprint == chosen.fingerprint


def test_validation_that_leaves_too_few_training_images_is_refused(cpu):
    with pytest.raises(InputError, match=r"validation: 0\.99 is not allowed; .* 5 are needed for training"):
        real.load("digits", image_settings(16), cpu, ipc=5, validation=0.99)
