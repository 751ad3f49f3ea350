"""Real images are known by their content, read from inside the data alone, and decoded from listed formats alone."""

import io
import os
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fault_tools import parquet, picture, tree
from PIL import EpsImagePlugin, Image

from dwa_core import batches
from dwa_core.recipe import Images
from dwa_core.seeds import TEACHER
from dwa_paper.runs import real, sets, sources, store

SIDES = [16, 72]  # decoded into memory, and left in its files


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder whose data/ is $DWA_DATA."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("DWA_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture(params=[10**9, 0], ids=["small", "large"])
def size(request, monkeypatch):
    """Data are above the size from which they are known by what the file system says, or below it."""
    monkeypatch.setattr(sources, "LARGE", request.param)
    return request.param


def load(side: int = 16):
    data = real.load("own", Images(side=side, mean=[0.5] * 3, std=[0.2] * 3), torch.device("cpu"))
    data.train.workers = data.test.workers = 0  # to start processes would take all the time
    return data


def pixels(data) -> torch.Tensor:
    return data.train.pictures(torch.arange(len(data.train)))


def encoded(seed: int, format: str = "BMP") -> bytes:
    """The bytes of a picture; all BMPs are of one size."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, format)
    return buffer.getvalue()


def bmp_parquet(path: Path, seed: int) -> None:
    """Four uncompressed images; files of other seeds differ in their pixels alone."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": [{"bytes": encoded(seed + n), "path": None} for n in range(4)], "label": [0, 1] * 2}
    table = datasets.Dataset.from_dict(rows, features=features).data.table
    pq.write_table(table, path, compression="NONE", use_dictionary=False)


def replaced_unseen(path: Path, write) -> None:
    """Calls `write(path)`, after which the file has the size and the times that it had."""
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# ----------------------------------------------------------------------------------- known by their content


@pytest.mark.parametrize("fresh_root", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_parquet_replaced_under_the_same_time_and_size_is_read_anew(side, fresh_root, size, place, monkeypatch):
    (place / "data" / "own").mkdir()
    for part in ("train", "test"):
        bmp_parquet(place / "data" / "own" / f"{part}-0.parquet", seed=0)
    first = load(side)
    before = pixels(first)
    replaced_unseen(place / "data" / "own" / "train-0.parquet", lambda path: bmp_parquet(path, seed=10))
    if fresh_root:
        monkeypatch.setenv("DWA_ROOT", str(place / "another"))
    second = load(side)
    assert second.fingerprint != first.fingerprint
    assert not torch.equal(pixels(second), before)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_images_of_a_tree_replaced_under_the_same_time_and_size_are_read_anew(side, plain, size, place):
    parts = [""] if plain else ["train", "test"]
    files = [place / "data" / "own" / part / label / f"{n}.bmp" for part in parts for label in "ab" for n in range(9)]
    for seed, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed))
    first = load(side)
    before = pixels(load(side))
    assert load(side).fingerprint == first.fingerprint
    for path in files[:9]:
        replaced_unseen(path, lambda path: path.write_bytes(encoded(100)))
    second = load(side)
    assert second.fingerprint != first.fingerprint
    assert not torch.equal(pixels(second), before)


def test_large_data_are_read_once_to_identify_them(place, monkeypatch, capsys):
    monkeypatch.setattr(sources, "LARGE", 0)
    tree(place)
    first = load(72).fingerprint
    assert "reading 4 files whole, once" in capsys.readouterr().out
    monkeypatch.setattr(store, "checksum", lambda _: pytest.fail("read again"))
    assert load(72).fingerprint == first


def test_size_does_not_change_the_fingerprint(place, monkeypatch):
    parquet(place)
    fingerprints = set()
    for limit in (10**9, 0):
        monkeypatch.setattr(sources, "LARGE", limit)
        fingerprints.add(load(72).fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize("text", ["", "{", "["])
def test_damaged_memory_of_a_checksum_is_made_again(text, place, own_root, monkeypatch):
    monkeypatch.setattr(sources, "LARGE", 0)
    tree(place)
    first = load(72).fingerprint
    for path in (own_root / "artifacts" / "data").glob(".identity-*"):
        path.write_text(text)
    assert load(72).fingerprint == first


def test_set_of_others_replaced_under_the_same_time_and_size_is_read_anew(place):
    path = place / "train-0.parquet"
    bmp_parquet(path, seed=0)
    first = sets.read_external(place, "own", ["a", "b"], 2, 16)
    replaced_unseen(path, lambda path: bmp_parquet(path, seed=10))
    assert not torch.equal(sets.read_external(place, "own", ["a", "b"], 2, 16), first)


def test_stored_set_replaced_under_the_same_time_is_read_anew(place):
    store.write_json(place / "record.json", {})
    images = [torch.full((2, 16, 16, 3), value, dtype=torch.uint8) for value in (3, 7)]
    for each in images:
        sets.write_parquet(each, ["a", "b"], place / sets.PARQUET, "png")
        os.utime(place / sets.PARQUET, ns=(0, 0))
        assert torch.equal(sets.read_parquet(place).images_uint8, each)


# ------------------------------------------------------------------------------ from inside the data alone


def write_rows(place: Path, images, labels=(0, 1, 0, 1), part: str = "train") -> None:
    """Replaces a part of a good Parquet folder by these values, whatever they are."""
    path = place / "data" / "own" / f"{part}-0.parquet"
    if not path.exists():
        parquet(place)
    kept = pq.read_table(path).schema
    if not isinstance(images, pa.Array):
        images = pa.array(images, kept.field("image").type)
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(
        table.replace_schema_metadata(kept.metadata if images.type == kept.field("image").type else None), path
    )


def row(seed: int = 0, path: str | None = None, format: str = "PNG") -> dict:
    return {"bytes": encoded(seed, format), "path": path}


@pytest.mark.parametrize("side", SIDES)
def test_path_in_place_of_an_image_is_not_followed(side, place, refused):
    picture(3).save(place / "private.png")
    outside = {"bytes": None, "path": str(place / "private.png")}
    write_rows(place, [row(), outside, row(), row()])
    with refused("the train part of ", "row 1, counted from 0, has no image, but a path, ", "expected its bytes"):
        load(side)


def test_column_of_paths_in_place_of_images_is_not_followed(place, refused):
    picture(3).save(place / "private.png")
    write_rows(place, pa.array([str(place / "private.png")] * 4))
    with refused("row 0, counted from 0, has no image, but a path, "):
        load()


def test_path_in_a_distilled_set_of_others_is_not_followed(place, refused):
    picture(3).save(place / "private.png")
    write_rows(place, [row(), {"bytes": None, "path": str(place / "private.png")}, row(), row()])
    with refused("distilled: ", "row 1, counted from 0, has no image, but a path, "):
        sets.read_external(place / "data" / "own", "own", ["a", "b"], 2, 16)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        ([row(), row(), None, row()], (0, 1, 0, 1), "row 2, counted from 0, has no image"),
        ([row(), row(), row(), {"bytes": None, "path": None}], (0, 1, 0, 1), "row 3, counted from 0, has no image"),
        ([row()] * 4, (0, None, 0, 1), "row 1, counted from 0, has no label"),
    ],
    ids=["no image", "an empty image", "no label"],
)
@pytest.mark.parametrize("side", SIDES)
def test_row_without_image_or_label_is_named(side, images, labels, text, part, place, refused):
    write_rows(place, images, labels, part)
    with refused(f"the {part} part of ", text):
        load(side)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (pa.array([1, 2, 3, 4]), "its column of images holds something else"),
        (pa.array([b"no image"] * 4), "image number 0 cannot be read; it is damaged, or none of JPEG, PNG,"),
    ],
)
def test_column_of_something_else_is_refused(images, text, place, refused):
    write_rows(place, images)
    # As the part has no names of its classes without the schema, the set of others is asked.
    with refused(text):
        sets.read_external(place / "data" / "own", "own", ["a", "b"], 2, 16)


def test_labels_that_are_text_are_refused(place, refused):
    parquet(place)
    table = pa.table({"image": pa.array([encoded(0, "PNG")] * 4), "label": pa.array(["a", "b"] * 2)})
    pq.write_table(table, place / "data" / "own" / "train-0.parquet")
    with refused("the train part of ", "its labels are string; expected whole numbers"):
        load()


# ------------------------------------------------------------------------------- from listed formats alone


@pytest.mark.parametrize("format", batches.FORMATS)
def test_listed_formats_are_decoded(format, place):
    folder = tree(place)
    (folder / "train" / "a" / "0.png").write_bytes(encoded(7, format))
    expected = np.asarray(Image.open(folder / "train" / "a" / "0.png").convert("RGB"))
    assert np.array_equal(pixels(load())[0], expected)


def test_first_frame_of_a_film_is_taken(place):
    folder = tree(place)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "train" / "a" / "0.png", "GIF", save_all=True, append_images=frames[1:])
    assert pixels(load())[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("format", ["EPS", "PPM", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_refused_whatever_the_name_says(format, side, place, monkeypatch, refused):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tree(place) / "train" / "a" / "0.png"
    path.write_bytes(encoded(7, format))
    with refused(
        "dataset: ", f"image {path} cannot be read; it is damaged, or none of JPEG, PNG, WEBP, BMP, GIF, TIFF"
    ):
        read_all(load(side))


def read_all(data) -> None:
    """Reads every image as the training and the tests do."""
    pixels(data)
    for _ in data.test.test_batches([0.5] * 3, [0.2] * 3):
        pass


def bomb() -> bytes:
    """A PNG that says it has 900 million pixels."""
    content = bytearray(encoded(0, "PNG"))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (bomb(), "could be decompression bomb"),
        (encoded(1, "PNG")[:90], "cannot be read; "),
        (encoded(1, "JPEG")[:200], "cannot be read; "),
        (b"", "it is damaged, or none of"),
    ],
    ids=["bomb", "cut PNG", "cut JPEG", "empty"],
)
def test_image_that_cannot_be_read_is_named_by_its_file(content, text, side, place, refused):
    path = tree(place) / "test" / "b" / "1.png"
    path.write_bytes(content)
    with refused(f"image {path} cannot be read; ", text):
        read_all(load(side))


@pytest.mark.parametrize("side", SIDES)
def test_image_that_cannot_be_read_is_named_by_its_row(side, place, refused):
    write_rows(place, [row(), row(), {"bytes": bomb(), "path": "b\nomb" * 50}, row()])
    with refused(r"image number 2 ('b\nombb\nomb", "...) cannot be read; ", "could be decompression bomb"):
        read_all(load(side))


def test_row_keeps_its_number_where_others_are_left_out(place, refused):
    write_rows(place, [row(), row(), row(), {"bytes": b"", "path": None}])
    train = load(72).train.relabel(torch.tensor([-1, 0, -1, 1]))
    train.workers = 0
    with refused("dataset: training image number 3 cannot be read"):
        train.pictures(torch.tensor([1]))
    with refused("dataset: image number 3 cannot be read"):
        list(train.test_batches([0.5] * 3, [0.2] * 3))


def test_damaged_image_ends_the_training_with_its_name(place, tiny_setting, refused):
    path = tree(place) / "train" / "b" / "0.png"
    path.write_bytes(b"")
    stage = tiny_setting(teacher={"batch_size": 2}).teacher
    train = load(72).train
    train.workers = 1  # whose traceback is no part of the message
    with refused(f"dataset: image {path} cannot be read; "):
        list(train.train_batches(stage, [0.5] * 3, [0.2] * 3, TEACHER, 0))


@pytest.mark.parametrize("name", ["b\udcff/0.png", "b/\udcff.png"])
def test_name_that_is_not_utf_8_is_refused(name, place, refused):
    path = tree(place) / "train" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(0, "PNG"))
    with refused("dataset: ", r"\udcff", "is not UTF-8; rename it"):
        load()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_called_an_image_and_is_none_is_refused(make, place, refused):
    path = tree(place) / "train" / "b" / "2.png"
    make(path)
    with refused(f"dataset: {path} is no file"):
        load()
