"""Distilled sets as they are stored: columns, encodings, and that `datasets` opens them."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dwa_core import distilled, initialise, synthesize


@pytest.mark.parametrize("storage", ["png", "jpeg"])
def test_stored_set_opens_with_load_dataset(storage, digits, tiny_teacher, tiny_setting, own_root, cpu):
    setting = tiny_setting(method="random-real", ipc=2, synthesis={"storage": storage})
    found = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    opened = datasets.load_dataset(str(own_root / "artifacts" / "distilled" / found.artifact))
    assert list(opened) == ["train"]
    table = opened["train"]
    assert table.column_names == ["image", "label", "ipc_index"]
    assert isinstance(table.features["image"], datasets.Image)
    assert table.features["label"].names == digits.classes
    assert table["label"][:] == found.labels.tolist()
    assert table["ipc_index"][:] == found.ipc_index.tolist()
    pictures = table["image"][:]
    assert {picture.format for picture in pictures} == {storage.upper()}
    seen = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    assert torch.equal(seen, found.images_uint8)
    drawn = digits.train.images_uint8[initialise.draw_real(digits.train, 10, 2, seed=0).flatten()]
    assert torch.equal(seen, drawn) == (storage == "png")
    assert (seen.float() - drawn.float()).abs().mean() < 20


def test_jpeg_is_of_the_authors_quality(tmp_path, digits, tiny_teacher, tiny_setting, own_root, cpu):
    setting = tiny_setting(method="random-real", synthesis={"storage": "jpeg"})
    found = synthesize.synthesize_or_load(setting, digits, tiny_teacher, cpu)
    path = own_root / "artifacts" / "distilled" / found.artifact / distilled.PARQUET
    stored = datasets.Dataset.from_parquet(str(path))[0]["image"]
    Image.new("RGB", (16, 16)).save(tmp_path / "reference.jpg", quality=75)
    assert stored.quantization == Image.open(tmp_path / "reference.jpg").quantization
