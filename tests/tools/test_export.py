"""Distilled sets in the formats of other tools: folders, tensors, card, soft labels, and the way back in."""

import dataclasses
import math
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dwa_core import augment, models, relabel
from dwa_paper.__main__ import main
from dwa_paper.runs import real, sets, sources, store, students, teachers
from dwa_paper.runs.records import find_record
from dwa_paper.runs.sets import DistilledSet
from dwa_paper.tools import export


@pytest.fixture
def shared_set(shared_root, digits, tiny_teacher, tiny_setting, monkeypatch, compute):
    """Two real images per digit, stored beside the tiny teacher, and the record of a student that learned from them."""
    monkeypatch.setenv("DWA_ROOT", str(shared_root))
    setting = tiny_setting(method="random-real", ipc=2, name="shared")
    distilled = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    if not setting.record_path().is_file():
        students.evaluate(setting, digits, [digits], [tiny_teacher], [distilled], compute)
    return setting, distilled, store.read_json(setting.record_path())


# ------------------------------------------------------------------------------------------ images and card


def test_image_folder_has_every_image_with_its_label(shared_set, tmp_path):
    _, distilled, _ = shared_set
    export.write_image_folder(distilled, tmp_path / "tree")
    tree = ImageFolder(str(tmp_path / "tree"))
    assert tree.classes == distilled.classes
    assert len(tree) == 20
    for position, (picture, label) in enumerate(tree):
        index = position % 2
        assert label == position // 2
        assert np.array_equal(np.asarray(picture), distilled.images_uint8[index * 10 + label].numpy())


@pytest.mark.parametrize("classes", [["zebra", "ant"], ["a/b", "c"], ["tench, Tinca tinca", "goldfish"], ["a", "a."]])
def test_folders_sort_as_the_labels_do_whatever_the_names(classes, tmp_path):
    pictures = torch.arange(2, dtype=torch.uint8)[:, None, None, None].expand(2, 8, 8, 3) * 200
    distilled = DistilledSet(pictures, torch.arange(2), torch.zeros(2).int(), classes, "x", {})
    export.write_image_folder(distilled, tmp_path)
    tree = ImageFolder(str(tmp_path))
    assert [(np.asarray(picture).max(), label) for picture, label in tree] == [(0, 0), (200, 1)]


def test_exported_folder_can_be_distilled_from_as_ones_own_images(shared_set, tiny_setting, tmp_path, monkeypatch, cpu):
    _, distilled, _ = shared_set
    for part in ("train", "test"):
        export.write_image_folder(distilled, tmp_path / "data" / "own" / part)
    monkeypatch.setenv("DWA_DATA", str(tmp_path / "data"))
    loaded = real.load("own", tiny_setting().images, cpu)
    by_class = distilled.labels.argsort(stable=True)
    assert torch.equal(loaded.train.images_uint8, distilled.images_uint8[by_class])
    assert torch.equal(loaded.train.labels, distilled.labels[by_class])


def test_record_that_cannot_be_used_is_skipped_in_the_card(shared_set, tmp_path, capsys):
    setting, distilled, record = shared_set
    later = {**record, "setting": {**record["setting"], "later": 1}}
    paths = [setting.record_path().with_name(f"{name}-seed0.json") for name in ("damaged", "later")]
    paths[0].write_text("{")
    store.write_json(paths[1], later)
    try:
        export.export(distilled.artifact, tmp_path / "out", "tensors")
    finally:
        for path in paths:
            path.unlink()
    printed = capsys.readouterr().out
    assert all(printed.count(f"{path}: ") == 1 for path in paths)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| {record['accuracy']['reported']:.1f} | 1 |" in text


def test_parquet_export_opens_with_load_dataset_and_its_card_contains_all(shared_set, tmp_path):
    setting, distilled, record = shared_set
    export.export(distilled.artifact, tmp_path / "out", "parquet")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert table.column_names == ["image", "label", "ipc_index"]
    assert table["label"][:] == distilled.labels.tolist()
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    accuracy, taught = record["accuracy"]["reported"], record["teacher"]["accuracy"]["top1"]
    assert f"| convnet-16 | test/shared | {accuracy:.1f} | 1 | {taught:.1f} |" in body
    settings_block = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(settings_block) == setting.recorded()
    for text in (record["versions"]["torch"], "SHA-256", "scikit-learn", "2 images of 16 px for each of 10 classes"):
        assert text in body
    assert store.read_json(tmp_path / "out" / "record.json") == distilled.record


def test_card_of_a_set_without_a_student_says_so(shared_set):
    _, distilled, _ = shared_set
    text = export.write_card(distilled, [], "parquet")
    assert "Not evaluated yet." in text
    assert "training part of digits" in text


def test_tensors_are_normalised_as_the_students_see_them_and_go_class_by_class(shared_set, tmp_path):
    setting, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", "tensors")
    stored = load_file(tmp_path / "out" / "images.safetensors")
    unit = augment.to_unit_range(distilled.images_uint8)
    expected = augment.normalise(unit, setting.images.mean, setting.images.std)
    assert stored["labels"].tolist() == [label for label in range(10) for _ in range(2)]
    for row, label in enumerate(stored["labels"].tolist()):
        torch.testing.assert_close(stored["images"][row], expected[10 * (row % 2) + label])


def test_export_refuses_what_it_cannot_do_and_leaves_nothing(shared_set, tmp_path, refused):
    _, distilled, _ = shared_set
    with refused("nothing-ipc1-x: no such distilled set under artifacts/ or results/artifacts/"):
        export.export("nothing-ipc1-x", tmp_path / "out", "parquet")
    with refused("top-k: 11", "10 classes"):
        export.export(distilled.artifact, tmp_path / "new" / "out", "parquet", "one", top_k=11)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "out").mkdir()
    with refused("out", "already"):
        export.export(distilled.artifact, tmp_path / "out", "parquet")


def test_export_to_where_nothing_can_be_written_ends_with_one_line(shared_set, tmp_path, capsys):
    _, distilled, _ = shared_set
    (tmp_path / "file").touch()
    assert main(["share", distilled.artifact, "--to", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'out'}: cannot be written; File exists\n"


def test_soft_labels_larger_than_the_disk_are_refused_before_any_work(shared_set, tmp_path, monkeypatch, refused):
    _, distilled, _ = shared_set
    usage = export.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(relabel, "label", None)
    with refused("soft labels: 1.2 kB are more than is free"):
        export.export(distilled.artifact, tmp_path / "out", "parquet", "epochs")


def test_command_line_exports_with_soft_labels_and_says_their_size_first(shared_set, tmp_path):
    _, distilled, _ = shared_set
    command = [sys.executable, "-m", "dwa_paper", "share", distilled.artifact, "--to", str(tmp_path / "out")]
    command += ["--soft-labels", "epochs", "--top-k", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert export.count_bytes(20, 10, 3, 3) == 840
    assert done.stdout.splitlines()[0] == "soft labels: 3 x 20 images, 0.8 kB"
    assert len(ImageFolder(str(tmp_path / "out" / "train"))) == 20
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: SET"),
        (["x", "--format", "zip"], "argument --format: invalid choice: 'zip' (choose from"),
        (["x", "--soft-labels", "two"], "argument --soft-labels: invalid choice: 'two' (choose from"),
    ],
)
def test_command_line_that_cannot_be_read_is_one_line(arguments, text, capsys):
    assert main(["share", *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("error: ")
    assert text in printed.err


# -------------------------------------------------------------------------------------------- soft labels


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "tensors"])
def test_one_soft_label_per_image_is_what_the_teacher_answers(kind, shared_set, tiny_teacher, tmp_path):
    setting, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", kind, "one")
    if kind == "parquet":
        pictures = datasets.load_dataset(str(tmp_path / "out"), split="train")["image"]
    elif kind == "imagefolder":
        pictures = [picture for picture, _ in ImageFolder(str(tmp_path / "out" / "train"))]
    if kind == "tensors":
        images = load_file(tmp_path / "out" / "images.safetensors")["images"]
    else:
        unit = augment.to_unit_range(torch.stack([torch.tensor(np.asarray(picture)) for picture in pictures]))
        images = augment.normalise(unit, setting.images.mean, setting.images.std)
    expected = tiny_teacher.network(images.contiguous(memory_format=torch.channels_last))
    found = export.read_soft_labels(tmp_path / "out" / "soft_labels" / "one.safetensors", 10)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=2e-3, rtol=2e-3)
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()


def test_students_with_fixed_labels_learn_from_the_labels_that_are_exported(
    shared_set, tiny_teacher, tiny_setting, tmp_path, compute
):
    _, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", "tensors", "one")
    exported = export.read_soft_labels(tmp_path / "out" / "soft_labels" / "one.safetensors", 10)
    setting = tiny_setting(relabel={"labels": "fixed"})
    network = relabel.make_labeller(tiny_teacher.network, setting.relabel, compute.precision)
    taught = relabel.store_labels(setting, distilled.split(compute.device), 10, network, compute)
    by_class = distilled.labels.argsort(stable=True)
    expected = (exported / setting.relabel.temperature).softmax(1)
    torch.testing.assert_close(taught.labels[by_class], expected, atol=2e-3, rtol=2e-3)


def test_student_taught_by_stored_labels_is_the_student_taught_on_the_fly(
    shared_set, digits, tiny_teacher, tmp_path, monkeypatch, compute
):
    setting, distilled, record = shared_set
    export.export(distilled.artifact, tmp_path / "out", "parquet", "epochs")
    files = sorted((tmp_path / "out" / "soft_labels").glob("epoch-*.safetensors"))
    assert len(files) == setting.relabel.epochs
    per_file = export.count_bytes(20, 10, 1, None)
    assert all(per_file < file.stat().st_size < per_file + 200 for file in files)

    class Stored(torch.nn.Module):
        """A teacher that reads its answers from the files, and never looks at an image."""

        def __init__(self):
            super().__init__()
            self.rows = torch.cat([export.read_soft_labels(file, 10) for file in files])

        def forward(self, inputs):
            rows, self.rows = self.rows[: len(inputs)], self.rows[len(inputs) :]
            return rows

    monkeypatch.setattr(relabel.devices, "copy_frozen", lambda network: network)
    monkeypatch.setattr(students.diversity, "measure", lambda *_: {})
    taught = dataclasses.replace(tiny_teacher, network=Stored())
    renamed = setting.model_copy(update={"name": "replayed"})
    replayed = students.evaluate(renamed, digits, [digits], [taught], [distilled], compute)
    renamed.record_path().unlink()
    losses = [[entry["loss"] for entry in found["curve"]] for found in (record, replayed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert replayed["accuracy"]["last"] == pytest.approx(record["accuracy"]["last"], abs=1.0)


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_keeps_the_likeliest_classes_and_the_share_of_the_rest(top_k, tmp_path):
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)) * 5
    export.save_file(export.pack(logits, top_k, temperature=20.0), tmp_path / "x.safetensors")
    found = (export.read_soft_labels(tmp_path / "x.safetensors", 10) / 20).softmax(1)
    expected = (logits / 20).softmax(1)
    kept = logits.topk(top_k).indices
    torch.testing.assert_close(found.gather(1, kept), expected.gather(1, kept), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.sum(1), torch.ones(50))
    if top_k < 10:
        others = found.scatter(1, kept, 0.0)
        assert torch.allclose(others.amax(1), others.sum(1) / (10 - top_k))
    divergence = F.kl_div(found.log(), expected, reduction="batchmean").item()
    assert divergence < {1: 0.04, 3: 0.02, 10: 1e-6}[top_k]


def test_size_of_soft_labels_is_that_of_their_tensors():
    logits = torch.zeros(20, 10)
    for top_k in (None, 1, 4):
        tensors = export.pack(logits, top_k, 20.0).values()
        assert sum(t.nbytes for t in tensors) == export.count_bytes(20, 10, 1, top_k)


# ------------------------------------------------------------------------------------------ of others


def external_set(kind: str, distilled, folder, classes=None):
    """`distilled` as others publish such sets."""
    classes = classes or distilled.classes
    if kind == "imagefolder":
        export.write_image_folder(dataclasses.replace(distilled, classes=classes), folder)
    elif kind == "SRe2L's names":
        rows = zip(distilled.images_uint8.numpy(), distilled.labels.tolist(), distilled.ipc_index.tolist(), strict=True)
        for picture, label, index in rows:
            place = folder / f"new{label:03d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"class{label:03d}_id{index:03d}.jpg", quality=95)
    else:
        order = torch.randperm(len(distilled.labels), generator=torch.Generator().manual_seed(1))
        feature = datasets.Value("int64") if kind == "parquet of numbers" else datasets.ClassLabel(names=classes)
        rows = {
            "image": [Image.fromarray(distilled.images_uint8[i].numpy()) for i in order.tolist()],
            "label": distilled.labels[order].tolist(),
        }
        (folder / "data").mkdir(parents=True)
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(), label=feature))
        table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("kind", ["imagefolder", "SRe2L's names", "parquet", "parquet of numbers"])
def test_set_of_others_is_read_whole_in_our_order(kind, shared_set, tmp_path):
    _, distilled, _ = shared_set
    folder = external_set(kind, distilled, tmp_path / "theirs")
    found = sets.read_external(folder, "digits", distilled.classes, 2, 16)
    if kind.startswith("parquet"):  # its rows were shuffled, so which image of a class is the first is another
        by_class = found.view(2, 10, -1).long().sum(2).sort(0).values
        assert torch.equal(by_class, distilled.images_uint8.view(2, 10, -1).long().sum(2).sort(0).values)
    else:
        distance = (found.int() - distilled.images_uint8.int()).abs().float().mean()
        assert distance == 0 if kind == "imagefolder" else distance < 5


def test_classes_of_a_set_of_others_are_matched_by_their_names(shared_set, tmp_path):
    _, distilled, _ = shared_set
    backwards = dataclasses.replace(distilled, classes=distilled.classes[::-1], labels=9 - distilled.labels)
    folder = external_set("parquet", backwards, tmp_path / "theirs")
    found = sets.read_external(folder, "digits", distilled.classes, 2, 16)
    sums = found.view(2, 10, -1).long().sum(2).sort(0).values
    assert torch.equal(sums, distilled.images_uint8.view(2, 10, -1).long().sum(2).sort(0).values)


def test_set_of_others_is_evaluated_as_ours_is(shared_set, digits, tiny_teacher, tiny_setting, tmp_path, compute):
    _, distilled, record = shared_set
    folder = external_set("imagefolder", distilled, tmp_path / "theirs")
    outside = tiny_setting(method="external", distilled=str(folder), ipc=2, name="theirs")
    stored = sets.load_or_synthesize(outside, digits, tiny_teacher, compute)
    assert torch.equal(stored.images_uint8, distilled.images_uint8)
    evaluated = students.evaluate(outside, digits, [digits], [tiny_teacher], [stored], compute)
    assert evaluated["curve"] == record["curve"]
    assert evaluated["setting"]["distilled"] == str(folder)
    assert find_record(outside) == evaluated
    picture = next(folder.rglob("*.png"))
    Image.new("RGB", (16, 16)).save(picture)
    assert find_record(outside) is None, "the set is another now"
    shutil.rmtree(folder)
    assert find_record(outside) == evaluated, "nothing says that it was another set"
    outside.record_path().unlink()


def test_set_of_others_is_stored_as_it_is_under_the_authors_code_too(
    shared_set, digits, tiny_teacher, tiny_setting, tmp_path, compute, monkeypatch
):
    """Which stores sets of its own as JPEG, and under the same name."""
    folder = external_set("imagefolder", shared_set[1], tmp_path / "theirs")
    monkeypatch.setenv("DWA_ROOT", str(tmp_path))
    setting = tiny_setting(method="external", distilled=str(folder), ipc=2, authors=True)
    assert setting.synthesis.storage == "jpeg"
    stored = sets.load_or_synthesize(setting, digits, tiny_teacher, compute)
    assert torch.equal(stored.images_uint8, shared_set[1].images_uint8)


def test_set_of_others_is_read_from_the_hub_by_its_id(shared_set, tiny_setting, tmp_path, monkeypatch, refused):
    """In the layout of he-yang's sets on the hub: data/train-*.parquet, with columns image and class_id."""
    _, distilled, _ = shared_set
    table = sources.open_distilled(external_set("parquet", distilled, tmp_path / "made"))
    theirs = datasets.Features(image=datasets.Image(), class_id=datasets.Value("int32"))
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for number in range(2):
        shard = table.rename_column("label", "class_id").cast(theirs).shard(2, number)
        shard.to_parquet(tmp_path / "copy" / "data" / f"train-{number:05d}-of-00002-0123456789abcdef.parquet")

    def download(name, repo_type, local_files_only):
        assert (name, repo_type) == ("he-yang/a-set", "dataset")
        if local_files_only:
            raise LocalEntryNotFoundError("it is not in the cache")
        return str(tmp_path / "copy")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    setting = tiny_setting(method="external", distilled="he-yang/a-set", ipc=2)
    with refused("distilled: ", "a-set is not a folder, and there is no copy from the hub; it is not in the cache"):
        sets.describe(setting, "data", "teacher")
    folder = sets.external_folder(setting, download=True)
    found, made = (sets.read_external(path, "digits", distilled.classes, 2, 16) for path in (folder, tmp_path / "made"))
    assert torch.equal(found, made)


def test_set_of_others_that_does_not_fit_is_refused(shared_set, tiny_setting, tmp_path, refused):
    _, distilled, _ = shared_set
    folder = external_set("imagefolder", distilled, tmp_path / "theirs")
    with refused("ipc: 3", "has 2 images of class '0'"):
        sets.read_external(folder, "digits", distilled.classes, 3, 16)
    with refused("has 10 classes", "own has 2"):
        sets.read_external(folder, "own", ["a", "b"], 2, 16)
    with refused("nowhere", "not a folder"):
        sets.describe(tiny_setting(method="external", distilled="nowhere"), "data", "teacher")
    (tmp_path / "empty").mkdir()
    with refused("empty", "no images"):
        sets.read_external(tmp_path / "empty", "digits", distilled.classes, 2, 16)


def test_method_external_and_its_folder_need_each_other(tiny_setting, refused):
    with refused("distilled: None", "external"):
        tiny_setting(method="external")
    with refused("distilled: 'x'", "method dwa"):
        tiny_setting(method="dwa", distilled="x")


# ------------------------------------------------------------------------------- DD-Ranking and rethinkdc


def test_rethinkdc_reads_the_exported_folder(shared_set, tmp_path):
    reader = pytest.importorskip("rethinkdc.imagenet_ipc", reason="rethinkdc is not installed")
    _, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", "imagefolder")
    # What lists the images for its data set, whose own constructor, in version 0.3.2, wants a torchvision before 0.18.
    listed = reader.make_dataset(str(tmp_path / "out" / "train"), extensions=(".png",), image_number=1)
    assert [label for _, label in listed] == list(range(10))
    for path, label in listed:
        assert np.array_equal(np.asarray(Image.open(path)), distilled.images_uint8[label].numpy())


@pytest.mark.parametrize(
    ("network", "stem", "side", "options"),
    [
        ("convnet-128", "small", 32, {}),
        ("resnet18", "small", 32, {"use_torchvision": True}),
        ("resnet18", "small", 64, {"use_torchvision": True}),
        ("resnet34", "torchvision", 96, {"use_torchvision": True}),
    ],
)
def test_ddranking_loads_the_teacher(network, stem, side, options, tiny_setting, tmp_path):
    ddranking = pytest.importorskip("ddranking.utils", reason="DD-Ranking is not installed")
    setting = tiny_setting(network=network, stem=stem, images={"side": side})
    ours = models.build(network, 10, stem, side, seed=0)
    name, state = export.convert_for_ddranking(setting, teachers.convert_to_stored(ours))
    torch.save(state, tmp_path / "ckpt_best.pt")
    theirs = ddranking.build_model(
        name, 10, (side, side), pretrained=True, model_path=tmp_path / "ckpt_best.pt", device="cpu", **options
    )
    ours.load_state_dict({key: value.float() for key, value in teachers.convert_to_stored(ours).items()})
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours.eval()(images))


@pytest.mark.parametrize(("network", "stem"), [("convnet-16", "small"), ("resnet18", "torchvision")])
def test_teacher_that_ddranking_has_no_network_for_is_left_out(network, stem, tiny_setting):
    setting = tiny_setting(network=network, stem=stem, images={"side": 32})
    assert export.convert_for_ddranking(setting, {}) is None


@pytest.fixture
def ddranking_scorer(digits, tiny_setting, tmp_path, monkeypatch):
    """A function that makes one of DD-Ranking's scorers for digits; the rest of its arguments are those of the scorer.

    What it would download, CIFAR-10, and what it draws from that, `baseline`, are replaced; all else is its own.
    """
    images = tiny_setting().images

    def part(split, count):
        normalised = augment.normalise(augment.to_unit_range(split.images_uint8[:count]), images.mean, images.std)
        return torch.utils.data.TensorDataset(normalised, split.labels[:count])

    def make(module, kind, baseline, **options):
        module = pytest.importorskip(f"ddranking.metrics.{module}", reason="DD-Ranking is not installed")
        train = part(digits.train, 200)
        train.targets = train.tensors[1]
        tested = part(digits.test, 100)
        same = {label: label for label in range(10)}
        real = (3, (16, 16), images.mean, images.std, 10, train, tested, tested, same, same)
        scorer = getattr(module, kind)
        monkeypatch.setattr(module, "get_dataset", lambda *_: real)
        monkeypatch.setattr(scorer, "_get_random_data_helper", lambda self, eval_iter: baseline)
        # Version 0.2.0 counts one of its scores twice, and then cannot write its table.
        monkeypatch.setattr(module, "save_results", lambda *_: None)
        monkeypatch.setitem(module.REAL_DATA_ACC_CACHE, "CIFAR10-ConvNet-3", 95.0)
        seen = transforms.Compose([transforms.ToTensor(), transforms.Normalize(images.mean, images.std)])
        return scorer(
            dataset="CIFAR10",
            ipc=2,
            model_name="ConvNet-3",
            data_aug_func=None,  # the defaults of this and of the scheduler lack parameters that they need
            lr_scheduler="cosine",
            im_size=(16, 16),
            num_eval=1,
            num_workers=0,
            save_path=str(tmp_path / "scores.csv"),
            custom_train_trans=seen,
            device="cpu",
            **options,
        )

    return make


@pytest.mark.parametrize("kind", ["imagefolder", "tensors"])
def test_ddranking_scores_the_exported_set(kind, shared_set, ddranking_scorer, tmp_path):
    _, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", kind)
    export.export(distilled.artifact, tmp_path / "tensors", "tensors")
    tensors = load_file(tmp_path / "tensors" / "images.safetensors")
    given = {"image_tensor": tensors["images"], "hard_labels": tensors["labels"]}
    mixed_up = (None, tensors["images"], tensors["labels"].roll(2))
    scorer = ddranking_scorer("hard_label", "LabelRobustScoreHard", mixed_up, num_epochs=10)
    if kind == "imagefolder":
        given = {"image_path": str(tmp_path / "out" / "train")}
    scores = scorer.compute_metrics(syn_lr=0.01, **given)
    # With the labels mixed up, a student of these 20 digits is right by chance, in 10 of 100 cases.
    assert scores["improvement_over_random_mean"] > 20
    assert 95.0 - scores["hard_label_recovery_mean"] > 30


def test_ddranking_scores_the_stored_soft_labels(shared_set, ddranking_scorer, tmp_path):
    _, distilled, _ = shared_set
    export.export(distilled.artifact, tmp_path / "out", "tensors", "one")
    images = load_file(tmp_path / "out" / "images.safetensors")["images"]
    soft_labels = export.read_soft_labels(tmp_path / "out" / "soft_labels" / "one.safetensors", 10)
    scorer = ddranking_scorer(
        "soft_label",
        "LabelRobustScoreSoft",
        (None, images, soft_labels.roll(2, dims=0)),
        num_epochs=20,  # it tests a student every 20 epochs
        soft_label_mode="S",
        loss_fn_kwargs={"temperature": 1.0},
        teacher_model_names=[],
    )
    scores = scorer.compute_metrics(image_tensor=images, soft_labels=soft_labels, syn_lr=0.01)
    assert scores["improvement_over_random_mean"] > 20
    assert 95.0 - scores["hard_label_recovery_mean"] > 30


def test_ddranking_scores_the_set_with_its_teacher(digits, tiny_setting, ddranking_scorer, tmp_path, compute):
    setting = tiny_setting(network="convnet-128", student="convnet-16", method="random-real", ipc=2)
    taught = teachers.load_or_train(setting, digits, compute)
    distilled = sets.load_or_synthesize(setting, digits, taught, compute)
    students.evaluate(setting, digits, [digits], [taught], [distilled], compute)
    export.export(distilled.artifact, tmp_path / "out", "tensors", "one")
    images = load_file(tmp_path / "out" / "images.safetensors")["images"]
    (tmp_path / "out" / "teacher_models" / "digits").rename(tmp_path / "out" / "teacher_models" / "CIFAR10")
    scorer = ddranking_scorer(
        "soft_label",
        "LabelRobustScoreSoft",
        (None, images.flip(0), None),  # it labels these by itself too
        num_epochs=20,
        soft_label_mode="M",
        loss_fn_kwargs={"temperature": 20.0},
        teacher_dir=str(tmp_path / "out" / "teacher_models"),
        teacher_model_names=["ConvNet-3-BN"],
    )
    torch.testing.assert_close(scorer.teacher_models[0](images), taught.network(images), rtol=1e-4, atol=1e-4)
    scores = scorer.compute_metrics(image_tensor=images, syn_lr=0.01)
    assert math.isfinite(scores["improvement_over_random_mean"])
    assert 95.0 - scores["hard_label_recovery_mean"] > 30
