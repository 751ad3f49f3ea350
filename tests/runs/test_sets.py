"""Distilled sets: what they are made of, stored, used again, and opened by `datasets`."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dwa_core import initialise
from dwa_core.errors import DivergedError
from dwa_core.synthesis import LOSSES, ImageOptimisation
from dwa_paper.runs import sets, store

# -------------------------------------------------------------------------------------------------- made


def test_images_are_made_without_the_test_part(digits, tiny_teacher, tiny_setting, compute):
    blind = dataclasses.replace(digits, test=None)
    for method in ("random-real", "sre2l", "dwa"):
        made = sets.load_or_synthesize(tiny_setting(method=method), blind, tiny_teacher, compute)
        assert len(made.labels) == 10


def test_random_real_is_where_dwa_would_start(digits, tiny_teacher, tiny_setting, compute):
    setting = tiny_setting(method="random-real", ipc=3, synthesis={"seed": 5})
    found = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    drawn = initialise.draw_real(digits.train, 10, 3, seed=5).flatten()
    assert torch.equal(found.images_uint8, digits.train.images_uint8[drawn])
    assert torch.equal(found.labels, digits.train.labels[drawn])
    training_images = {image.numpy().tobytes() for image in digits.train.images_uint8}
    assert {image.numpy().tobytes() for image in found.images_uint8} <= training_images


def test_labels_and_ipc_indices_are_in_order(digits, tiny_teacher, tiny_setting, compute):
    found = sets.load_or_synthesize(tiny_setting(ipc=2), digits, tiny_teacher, compute)
    assert found.labels.tolist() == [*range(10), *range(10)]
    assert found.ipc_index.tolist() == [0] * 10 + [1] * 10
    assert found.classes == digits.classes


def test_stored_set_is_used_again_whatever_student_learns_from_it(
    digits, tiny_teacher, tiny_setting, monkeypatch, own_root, compute
):
    first = sets.load_or_synthesize(tiny_setting(), digits, tiny_teacher, compute)
    folder = own_root / "artifacts" / "distilled" / first.artifact
    assert first.record["files"] == store.compute_checksums(folder)
    monkeypatch.setattr(sets, "synthesize", lambda *_: pytest.fail("made a second time"))
    later = tiny_setting(seed=3, student="resnet18", relabel={"epochs": 9}, name="other")
    again = sets.load_or_synthesize(later, digits, tiny_teacher, compute)
    assert again.record == first.record
    assert torch.equal(again.images_uint8, first.images_uint8)


@pytest.mark.parametrize("differences", [{"ipc": 2}, {"method": "sre2l"}, {"synthesis": {"rho": 0.5}}])
def test_another_setting_is_another_set(differences, digits, tiny_teacher, tiny_setting, compute):
    first = sets.load_or_synthesize(tiny_setting(), digits, tiny_teacher, compute)
    other = sets.load_or_synthesize(tiny_setting(**differences), digits, tiny_teacher, compute)
    assert other.artifact != first.artifact
    assert not torch.equal(other.images_uint8, first.images_uint8)


@pytest.mark.parametrize("between_class_batches", ["restored", "kept"])
@pytest.mark.parametrize("breaks_after", [3, 8, 11, 22])
def test_interrupted_synthesis_continues_to_the_same_bits(
    breaks_after, between_class_batches, digits, tiny_teacher, tiny_setting, tmp_path, monkeypatch, compute
):
    """Two ipc indices of two class batches of six iterations: broken within and between them."""
    stage = {"iterations": 6, "classes_per_batch": 5, "weights_between_class_batches": between_class_batches}
    setting = tiny_setting(ipc=2, authors=True, synthesis={**stage, "rho": 0.5, "storage": "png"})
    unbroken = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)

    monkeypatch.setenv("DWA_ROOT", str(tmp_path / "broken"))
    monkeypatch.setenv("DWA_CHECKPOINT_SECONDS", "0")
    original, steps = ImageOptimisation.step, []

    def breaking(batch):
        steps.append(batch)
        if len(steps) == breaks_after + 1:
            raise RuntimeError("power cut")
        original(batch)

    monkeypatch.setattr(ImageOptimisation, "step", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    resumed = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    assert len(steps) == 24 + 1  # only the broken step was taken twice
    assert torch.equal(resumed.images_uint8, unbroken.images_uint8)
    assert resumed.record["losses_first_batch"] == unbroken.record["losses_first_batch"]
    assert resumed.record["files"] == unbroken.record["files"]
    assert not list((tmp_path / "broken" / "artifacts" / "checkpoints").iterdir())


def test_set_that_diverges_is_not_stored(digits, tiny_teacher, tiny_setting, compute, own_root):
    with pytest.raises(DivergedError, match=r"synthesis.rho below 100"):
        sets.load_or_synthesize(tiny_setting(synthesis={"rho": 100.0}), digits, tiny_teacher, compute)
    assert not list(own_root.rglob("*.parquet"))


def test_losses_have_names_also_in_records_that_hold_them_as_rows(
    digits, tiny_teacher, tiny_setting, compute, own_root
):
    made = sets.load_or_synthesize(tiny_setting(), digits, tiny_teacher, compute)
    folder = own_root / "artifacts" / "distilled" / made.artifact
    losses = sets.read_losses(folder)
    assert losses == made.record["losses_first_batch"]
    assert losses.keys() == set(LOSSES)
    assert {len(values) for values in losses.values()} == {4}  # iterations
    rows = [list(row) for row in zip(*(losses[name] for name in LOSSES), strict=True)]
    store.write_json(folder / "record.json", {**made.record, "losses_first_batch": rows})
    assert sets.read_losses(folder) == losses
    real_images = sets.load_or_synthesize(tiny_setting(method="random-real"), digits, tiny_teacher, compute)
    assert sets.read_losses(own_root / "artifacts" / "distilled" / real_images.artifact) == {}


# ------------------------------------------------------------------------------------------------ stored


@pytest.mark.parametrize("storage", ["png", "jpeg"])
def test_stored_set_opens_with_load_dataset(storage, digits, tiny_teacher, tiny_setting, own_root, compute):
    setting = tiny_setting(method="random-real", ipc=2, synthesis={"storage": storage})
    found = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
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


def test_set_of_more_than_a_table_holds_is_stored_and_read_in_pieces(own_root, monkeypatch):
    """Of ImageNet-1K at ipc 50 and more, which pyarrow refuses as one piece."""
    monkeypatch.setattr(sets, "ROWS_AT_ONCE", 7)
    original, sizes = datasets.Dataset.from_dict, []

    def counting(columns, **options):
        sizes.append(len(columns["image"]))
        return original(columns, **options)

    monkeypatch.setattr(datasets.Dataset, "from_dict", counting)
    pictures = torch.randint(0, 256, (20, 4, 4, 3), dtype=torch.uint8)
    sets.write_parquet(pictures, list("abcde"), own_root / sets.PARQUET, "png")
    (own_root / "record.json").write_text("{}")
    found = sets.read_parquet(own_root)
    assert sizes == [7, 7, 6]
    assert torch.equal(found.images_uint8, pictures)
    assert found.labels.tolist() == [*range(5)] * 4
    assert found.ipc_index.tolist() == [index for index in range(4) for _ in range(5)]
    assert found.classes == list("abcde")


def test_jpeg_is_of_the_authors_quality(tmp_path, digits, tiny_teacher, tiny_setting, own_root, compute):
    setting = tiny_setting(method="random-real", synthesis={"storage": "jpeg"})
    found = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    path = own_root / "artifacts" / "distilled" / found.artifact / sets.PARQUET
    stored = datasets.Dataset.from_parquet(str(path))[0]["image"]
    Image.new("RGB", (16, 16)).save(tmp_path / "reference.jpg", quality=75)
    assert stored.quantization == Image.open(tmp_path / "reference.jpg").quantization


def test_herded_real_images_are_those_that_synthesis_would_start_from(
    digits, tiny_teacher, tiny_setting, compute, own_root
):
    setting = tiny_setting(method="herded-real", ipc=2)
    found = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    start = tiny_setting(synthesis={"initial": "herded"}, ipc=2)
    chosen = initialise.choose_initial_indices(start, digits.train, 10, tiny_teacher.network)
    assert torch.equal(found.images_uint8, digits.train.images_uint8[chosen.flatten()])
    assert found.labels.tolist() == list(range(10)) * 2
    other = dataclasses.replace(tiny_teacher, artifact="another")
    assert sets.load_or_synthesize(setting, digits, other, compute).artifact != found.artifact
