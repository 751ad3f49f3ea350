"""Damaged, foreign and outdated files: each is named, set aside and made again, and never used."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwa_paper.runs import real, sets, store, teachers
from dwa_paper.runs.checkpoint import Checkpoint

FILES = {
    "data": ("images.safetensors", "record.json", store.SUMS),
    "teachers": ("model.safetensors", "record.json", store.SUMS),
    "distilled": (sets.PARQUET, "README.md", "record.json", store.SUMS),
}
PLACES = [(kind, name) for kind, names in FILES.items() for name in names]


def small(tiny_setting, **differences):
    return tiny_setting(network="convnet-8", teacher={"epochs": 1}, synthesis={"iterations": 2}, **differences)


def make_all(setting, compute):
    """All three kinds of artifacts, made or loaded: teacher and distilled set."""
    digits = real.load("digits", setting.images, compute.device)
    trained = teachers.load_or_train(setting, digits, compute)
    return trained, sets.load_or_synthesize(setting, digits, trained, compute)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_setting, compute):
    """A root with one artifact of each kind, and the folders of them by kind."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DWA_ROOT", str(root))
        make_all(small(tiny_setting), compute)
    return root


@pytest.fixture
def copied(made, own_root):
    """A copy of `made` as the root of this test: kind -> folder."""
    shutil.copytree(made, own_root)
    return {kind: next((own_root / "artifacts" / kind).glob("[!.]*")) for kind in FILES}


def truncate(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as stream:
        stream.truncate(chance.randrange(path.stat().st_size))


def flip_a_bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def caught(folder: Path, capsys) -> bool:
    """Whether the store names the artifact, sets it aside and does not find it."""
    found = store.find(folder.parent.name, folder.name)
    printed = capsys.readouterr().out
    return found is None and not folder.exists() and str(folder) in printed and "set aside as" in printed


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit])
@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_damaged_file_is_caught(kind, name, spoil, copied, capsys):
    spoil(copied[kind] / name, random.Random(f"{kind} {name}"))
    assert caught(copied[kind], capsys)
    # What was set aside is kept for a look at it.
    assert len(list((copied[kind].parents[1] / "set-aside").glob(f"{kind}-*/{name}"))) == 1


@pytest.mark.whole
def test_random_damage_is_caught(copied, capsys):
    chance, planted, caught_in_all = random.Random(5), 0, 0
    for spoil, kind, name in [(s, *place) for s in (truncate, flip_a_bit) for place in PLACES for _ in range(25)]:
        folder = copied[kind]
        good = folder.with_name(f".{folder.name}.good")
        shutil.copytree(folder, good)
        spoil(folder / name, chance)
        planted += 1
        caught_in_all += caught(folder, capsys)
        shutil.rmtree(folder, ignore_errors=True)
        good.rename(folder)
    with capsys.disabled():
        print(f"\ncorruptions caught: {caught_in_all} of {planted}")
    assert caught_in_all == planted


def test_sums_that_lack_their_last_byte_are_caught(copied, capsys):
    path = copied["teachers"] / store.SUMS
    path.write_bytes(path.read_bytes()[:-1])
    assert caught(copied["teachers"], capsys)


@pytest.mark.parametrize("kind", FILES)
def test_file_of_something_else_is_caught(kind, copied, capsys):
    (copied[kind] / "model.bin").write_bytes(b"whatever")
    assert caught(copied[kind], capsys)


@pytest.mark.parametrize(("kind", "name"), [place for place in PLACES if place[1] != store.SUMS])
def test_missing_file_is_caught(kind, name, copied, capsys):
    (copied[kind] / name).unlink()
    assert caught(copied[kind], capsys)


@pytest.mark.parametrize("kind", ["teachers", "distilled"])
def test_artifacts_swapped_between_settings_are_caught(kind, copied, tiny_setting, compute, capsys):
    make_all(small(tiny_setting, seed=1, precision="bf16"), compute._replace(precision=torch.bfloat16))
    first, second = sorted(path for path in copied[kind].parent.iterdir() if path.is_dir())
    first.rename(first.with_name("between"))
    second.rename(first)
    first.with_name("between").rename(second)
    for folder in (first, second):
        assert caught(folder, capsys)


@pytest.mark.parametrize("kind", FILES)
def test_artifact_of_an_older_form_is_caught(kind, copied, capsys):
    (copied[kind] / store.SUMS).unlink()
    record = json.loads((copied[kind] / "record.json").read_text())
    del record["files"]
    store.write_json(copied[kind] / "record.json", record)
    assert caught(copied[kind], capsys)


def test_artifact_without_sums_of_its_own_is_held_to_its_record(copied, capsys):
    for folder in copied.values():
        (folder / store.SUMS).unlink()
        assert store.find(folder.parent.name, folder.name) == folder
        flip_a_bit(folder / FILES[folder.parent.name][0], random.Random(0))
        assert caught(folder, capsys)


def test_damaged_published_artifact_is_named_and_left_where_it_is(copied, own_root, capsys):
    published = own_root / "results" / "artifacts" / "teachers" / copied["teachers"].name
    shutil.copytree(copied["teachers"], published)
    shutil.rmtree(copied["teachers"])
    assert store.find("teachers", published.name) == published
    flip_a_bit(published / "model.safetensors", random.Random(0))
    assert store.find("teachers", published.name) is None
    assert f"{published}: model.safetensors is damaged; it is not used" in capsys.readouterr().out
    assert published.is_dir()


def test_what_was_set_aside_is_made_again_to_the_same_bytes(copied, tiny_setting, compute, capsys):
    sums = {kind: store.compute_checksums(folder) for kind, folder in copied.items()}
    for kind, folder in copied.items():
        flip_a_bit(folder / FILES[kind][0], random.Random(1))
    make_all(small(tiny_setting), compute)
    printed = capsys.readouterr().out
    for kind, folder in copied.items():
        assert f"{folder}: {FILES[kind][0]} is damaged; set aside" in printed
        assert store.compute_checksums(folder) == sums[kind]


# ------------------------------------------------------------------------------------------ checkpoints


def saved(own_root) -> Path:
    Checkpoint("stage").save({"weights": torch.arange(1000.0)}, {"curve": [1, 2]})
    return own_root / "artifacts" / "checkpoints" / "stage.safetensors"


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit])
def test_damaged_checkpoint_is_caught(spoil, own_root, cpu, capsys):
    chance = random.Random(2)
    for _ in range(40):
        path = saved(own_root)
        spoil(path, chance)
        checkpoint = Checkpoint("stage")
        assert checkpoint.load(cpu) is None
        checkpoint.remove()
        assert f"{path}: the checkpoint is damaged" in capsys.readouterr().out


def test_checkpoint_of_another_stage_is_caught(own_root, cpu, capsys):
    path = saved(own_root)
    path.rename(path.with_name("other.safetensors"))
    assert Checkpoint("other").load(cpu) is None
    assert "of another run" in capsys.readouterr().out


def test_checkpoint_of_an_older_form_is_caught(own_root, cpu, capsys):
    path = saved(own_root)
    tensors = load_file(path)
    text = json.dumps({"curve": [1, 2], "seconds": 3.0})
    save_file({**tensors, "state": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}, path)
    assert Checkpoint("stage").load(cpu) is None
    assert "set aside" in capsys.readouterr().out
