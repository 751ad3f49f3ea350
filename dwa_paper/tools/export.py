"""Distilled sets in the formats of other tools, with a dataset card and, on request, soft labels.

    python -m dwa_core.export NAME --format imagefolder --soft-labels epochs --top-k 20

NAME is an artifact under artifacts/distilled/. Formats: `parquet` for `datasets.load_dataset` and the Hugging Face
hub; `imagefolder` for torchvision's ImageFolder, which SRe2L, rethinkdc and DD-Ranking (`image_path`) read;
`tensors` for DD-Ranking's `image_tensor`, with the teacher that its soft-label score wants. Each comes with a dataset
card, README.md.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dwa_core import augment, devices, relabel
from dwa_core.errors import InputError, StorageError
from dwa_paper.command import failed
from dwa_paper.runs import store, teachers
from dwa_paper.runs.records import as_setting
from dwa_paper.runs.sets import PARQUET, DistilledSet, read_parquet
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting
from dwa_paper.tools import plan

FORMATS = ("parquet", "imagefolder", "tensors")
SOFT_LABELS = ("one", "epochs")
# DD-Ranking's names of data sets, in its get_dataset.
DDRANKING = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "tiny-imagenet": "TinyImageNet",
    "imagenet-1k": "ImageNet1K",
}
# The hub's tag for the terms of each source, and what its owners say of them.
LICENCES = {
    "digits": ("cc-by-4.0", "UCI's Optical Recognition of Handwritten Digits, as scikit-learn bundles it: CC BY 4.0."),
    "cifar10": ("unknown", "CIFAR-10 (Krizhevsky, 2009) names no licence; its authors ask to be cited."),
    "cifar100": ("unknown", "CIFAR-100 (Krizhevsky, 2009) names no licence; its authors ask to be cited."),
    "tiny-imagenet": ("other", "Tiny-ImageNet is a part of ImageNet: non-commercial research and education only."),
    "imagenet-1k": ("other", "ImageNet's terms of access: non-commercial research and education only."),
}


def export(name: str, target: Path, kind: str, soft_labels: str | None = None, top_k: int | None = None) -> None:
    """Writes the distilled set `name` to the new folder `target` in the format `kind`, one of FORMATS, with a card.

    Args:
        soft_labels: None, or one of SOFT_LABELS, as `write_soft_labels` has them.
        top_k: how many classes of each soft label are kept; None keeps all.

    Raises:
        InputError: there is no such set, `target` is there already, or the soft labels cannot be made.
        StorageError: `target` cannot be written.
    """
    folder = store.find("distilled", name)
    if folder is None:
        raise InputError(f"{name}: no such distilled set under artifacts/ or results/artifacts/ of {root()}")
    if target.exists():
        raise InputError(f"{target}: is there already; delete it or name another folder")
    distilled, temporary = read_parquet(folder), target.with_name(f".{target.name}.part")
    with store.writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            fill(temporary, folder, distilled, kind, soft_labels, top_k)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def fill(
    target: Path, folder: Path, distilled: DistilledSet, kind: str, soft_labels: str | None, top_k: int | None
) -> None:
    """Writes all that `export` writes of the artifact in `folder` to the empty folder `target`."""
    records = records_of(distilled.artifact)
    rows = torch.arange(len(distilled.labels))
    if kind == "parquet":
        shutil.copy(folder / PARQUET, target)
    else:  # ImageFolder goes class by class, and DD-Ranking takes tensors to do so
        rows = distilled.labels.argsort(stable=True)
    if kind == "imagefolder":
        write_image_folder(distilled, target / "train")
    elif kind == "tensors":
        mean, std = normalisation(distilled, records)
        images = augment.normalise(augment.to_unit_range(distilled.images_uint8[rows]), mean, std).contiguous()
        save_file({"images": images, "labels": distilled.labels[rows]}, target / "images.safetensors")
    shutil.copy(folder / "record.json", target)
    (target / "README.md").write_text(card(distilled, records, kind, soft_labels))
    if soft_labels is not None:
        write_soft_labels(distilled, records, target / "soft_labels", soft_labels, top_k, rows)
        if kind == "tensors":
            write_ddranking_teacher(records[0], target / "teacher_models")


def records_of(name: str) -> list[dict]:
    """The records of all students that learnt from the distilled set `name` and no other."""
    return [record for record in plan.recorded() if record.get("distilled", {}).get("artifact") == name]


def setting_of(records: list[dict], name: str) -> Setting:
    """The setting of the first of `records`.

    Raises:
        InputError: there are none.
    """
    if not records:
        raise InputError(f"{name}: no student has learnt from this set yet, so its settings are not known")
    return as_setting(records[0]["setting"])


def normalisation(distilled: DistilledSet, records: list[dict]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that the students of the set see it with."""
    images = setting_of(records, distilled.artifact).images
    return images.mean, images.distilled_std


# ------------------------------------------------------------------------------------------- images and card


def folder_names(classes: list[str]) -> list[str]:
    """One folder name per class, whose alphabetical order is that of the labels, as torchvision's ImageFolder wants.

    The names of the classes themselves where they can be; else with the label before them, as in 0001_goldfish.
    """
    if classes == sorted(classes) and all(name.strip(". ") == name and "/" not in name for name in classes):
        return classes
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name.split(",")[0]) for name in classes]
    return [f"{label:04d}_{name}" for label, name in enumerate(plain)]


def write_image_folder(distilled: DistilledSet, target: Path) -> None:
    """Writes the set as target/CLASS/IPC_INDEX.png, which torchvision's ImageFolder reads with the same labels."""
    names = folder_names(distilled.classes)
    rows = zip(distilled.images_uint8.numpy(), distilled.labels.tolist(), distilled.ipc_index.tolist(), strict=True)
    for picture, label, index in rows:
        folder = target / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index:05d}.png")


# The hub's size categories.
SIZES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
]
OPENING = {
    "parquet": """import datasets

distilled = datasets.load_dataset("path/to/this/folder", split="train")  # columns image, label, ipc_index""",
    "imagefolder": """import torchvision

distilled = torchvision.datasets.ImageFolder("path/to/this/folder/train")""",
    "tensors": """from safetensors.torch import load_file

distilled = load_file("path/to/this/folder/images.safetensors")
images, labels = distilled["images"], distilled["labels"]  # images: (N, 3, H, W), normalised, class by class""",
}
LABELS_OPENING = """
Soft labels lie in `soft_labels/` as logits of the teacher. `dwa_core.export.read_soft_labels` reads them;
`soft_labels/record.json` says how they were made.
"""


def card(distilled: DistilledSet, records: list[dict], kind: str, soft_labels: str | None = None) -> str:
    """The README.md that the Hugging Face hub shows for a data set: settings, accuracy, licence, provenance."""
    made = distilled.record["settings"]
    source = records[0]["setting"]["dataset"] if records else distilled.artifact.split(f"-{made['method']}-")[0]
    tag, terms = LICENCES.get(
        source, ("unknown", f"The terms of the images of {source} apply; they are not known here.")
    )
    count = len(distilled.labels)
    front = {
        "license": tag,
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation"],
        "size_categories": [next(size for limit, size in SIZES if count < limit)],
    }
    if kind == "parquet":
        files = {"split": "train", "path": "train-*.parquet"}
        front["configs"] = [{"config_name": "default", "data_files": [files]}]
    where = distilled.record
    versions = ", ".join(f"{name} {version}" for name, version in sorted(where["versions"].items()))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False) + "---",
            f"# {distilled.artifact}",
            "",
            f"{made['ipc']} images of {made['side']} px for each of {len(distilled.classes)} classes, distilled from "
            f"the training part of {source} by the method {made['method']}.",
            "",
            f"```python\n{OPENING[kind]}\n```",
            LABELS_OPENING if soft_labels else "",
            "## Accuracy",
            "",
            *accuracy_lines(records),
            "",
            "## Settings",
            "",
            f"```yaml\n{yaml.safe_dump(records[0]['setting'] if records else made)}```",
            "",
            "## Provenance",
            "",
            f"Made {where['finished']} on {where['device']} with {versions}, code revision {where['revision']}, in "
            f"{where['seconds']:.0f} s. Teacher: `{made.get('teacher', 'none')}`. SHA-256 of each file: `record.json`.",
            "",
            "## Licence of the source",
            "",
            terms,
            "",
            "## Citation",
            "",
            "Du et al., Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment, "
            "NeurIPS 2024.",
            "",
        ]
    )


def accuracy_lines(records: list[dict]) -> list[str]:
    """Test accuracy of the students in `records`, a line per student network and recipe."""
    if not records:
        return ["Not evaluated yet."]
    groups = {}
    for record in records:
        setting = record["setting"]
        groups.setdefault((setting["student"], setting["profile"], setting["name"]), []).append(record)
    lines = ["| student | setting | test accuracy, % | students | teacher, % |", "|---|---|---|---|---|"]
    for (student, profile, name), group in sorted(groups.items()):
        values = [record["accuracy"]["reported"] for record in group]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        taught = group[0]["teacher"]["accuracy"]["top1"]
        lines.append(
            f"| {student} | {profile}/{name} | {statistics.mean(values):.1f}{spread} | {len(values)} | {taught:.1f} |"
        )
    return lines


# -------------------------------------------------------------------------------------------- soft labels


def write_soft_labels(
    distilled: DistilledSet, records: list[dict], folder: Path, kind: str, top_k: int | None, rows: torch.Tensor
) -> None:
    """Stores what the teacher says of the images, as logits in fp16; prints the size before any work.

    "one": of each image as it is, (N, classes), in the order of the exported images, which are `rows` of the set:
    soft_labels/one.safetensors.
    "epochs": of each image that the student with the setting's seed sees, augmented and mixed, in the order in
    which it sees them: soft_labels/epoch-0000.safetensors and so on. The inputs are not stored: the same setting
    and kind of device draw them again (`relabel.mixed_batches`).

    With `top_k`, the logits of the k likeliest classes, their classes, and for all others together the logit that
    gives them, at the recipe's temperature, the share of probability that they had.

    Raises:
        InputError: no student has learnt from the set, its teacher is not on this machine, `top_k` is not between
            1 and the number of classes, or the disk is too small.
    """
    setting = setting_of(records, distilled.artifact)
    stage, classes = setting.relabel, len(distilled.classes)
    if top_k is not None and not 1 <= top_k <= classes:
        raise InputError(f"top-k: {top_k} is not allowed; there are {classes} classes")
    name = records[0]["teacher"]["artifact"]
    if (folder_of_teacher := store.find("teachers", name)) is None:
        raise InputError(f"{name}: the teacher of this set is not on this machine, so it cannot label")
    compute = devices.choose(setting.device, setting.precision)
    device = compute.device
    network = teachers.load(setting, classes, device, folder_of_teacher)
    labeller = relabel.labeller(network, stage, compute.precision)
    training, (mean, std) = distilled.split(device), normalisation(distilled, records)
    epochs = stage.epochs if kind == "epochs" else 1
    size = soft_label_bytes(len(training), classes, epochs, top_k)
    print(f"soft labels: {epochs} x {len(training)} images, {in_bytes(size)}", flush=True)
    folder.mkdir()
    if size > shutil.disk_usage(folder).free:
        raise InputError(f"soft labels: {in_bytes(size)} are more than is free under {folder.parent}")

    def labelled(batches) -> torch.Tensor:
        with torch.inference_mode(), compute.autocast():
            return torch.cat([labeller(inputs).float() for inputs, _ in batches])

    def keep(logits: torch.Tensor, file: str) -> None:
        save_file(packed_logits(logits.cpu(), top_k, stage.temperature), folder / f"{file}.safetensors")

    if kind == "one":
        keep(labelled(training.test_batches(mean, std))[rows], "one")
    else:
        for epoch in tqdm(range(epochs), desc="soft labels", unit="epoch", file=sys.stdout):
            keep(labelled(relabel.mixed_batches(setting, training, epoch)), f"epoch-{epoch:04d}")
    made = {"kind": kind, "top_k": top_k, "teacher": name, "device_type": device.type, "classes": classes}
    store.write_json(folder / "record.json", {**made, "temperature": stage.temperature, "setting": setting.recorded()})


def soft_label_bytes(images: int, classes: int, epochs: int, top_k: int | None) -> int:
    """Bytes of the stored logits: 2 per class, or 4 per kept class and 2 for the rest."""
    return epochs * images * (2 * classes if top_k is None else 4 * top_k + 2)


def in_bytes(size: int) -> str:
    """`size` bytes as 3.4 kB, 3.4 MB or 3.4 GB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def packed_logits(logits: torch.Tensor, top_k: int | None, temperature: float) -> dict[str, torch.Tensor]:
    """`logits` (N, classes) as stored: in fp16, the k largest alone where `top_k` is given."""
    logits = logits - logits.amax(1, keepdim=True)  # probabilities stay the same, and fp16 is finest near 0
    if top_k is None:
        return {"logits": logits.half()}
    values, indices = logits.topk(top_k)
    left = logits.scatter(1, indices, -torch.inf)
    others = max(logits.shape[1] - top_k, 1)
    rest = temperature * (torch.logsumexp(left / temperature, 1) - torch.log(torch.tensor(float(others))))
    return {"values": values.half(), "indices": indices.short(), "rest": rest.clamp(min=-60_000).half()}


def read_soft_labels(path: Path, classes: int) -> torch.Tensor:
    """The logits (N, classes) of one file of soft labels, in fp32, up to a constant for each image."""
    stored = load_file(path)
    if "logits" in stored:
        return stored["logits"].float()
    logits = stored["rest"].float()[:, None].repeat(1, classes)
    return logits.scatter(1, stored["indices"].long(), stored["values"].float())


def write_ddranking_teacher(record: dict, target: Path) -> None:
    """Stores the teacher of `record` as target/DATASET/NETWORK/ckpt_best.pt, where DD-Ranking's `teacher_dir` has it.

    DATASET and NETWORK are DD-Ranking's names; a data set that it does not know keeps its own. Of a network that it
    does not have, it is said that there is no such file.
    """
    setting, artifact = as_setting(record["setting"]), record["teacher"]["artifact"]
    state = load_file(store.find("teachers", artifact) / "model.safetensors")
    named = ddranking_teacher(setting, state)
    if named is None:
        print(f"{artifact}: DD-Ranking has no {setting.network} as ours is; its teacher is left out", flush=True)
        return
    name, state = named
    path = target / DDRANKING.get(setting.dataset, setting.dataset) / name / "ckpt_best.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)


def ddranking_teacher(setting: Setting, state: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]] | None:
    """The name and the weights (fp32) in DD-Ranking 0.2.0 of the teacher with the weights `state`.

    ConvNet-128 is its ConvNet-3-BN. torchvision's ResNets are its ResNet-18-BN and so on with `tea_use_torchvision`,
    with the small stem at 32 and 64 px and torchvision's at others. None: it does not have this network.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    side = setting.images.side
    if setting.network == "convnet-128":
        last = max(int(name.split(".")[0]) for name in state)
        renamed = {f"features.{name}".replace(f"features.{last}.", "classifier."): state[name] for name in state}
        return "ConvNet-3-BN", renamed
    stem = "small" if side in (32, 64) else "torchvision"
    if setting.network in ("resnet18", "resnet34", "resnet50") and setting.stem == stem:
        return f"ResNet-{setting.network.removeprefix('resnet')}-BN", state
    return None


# ------------------------------------------------------------------------------------------- command line


def main() -> int:
    """Reads the command line, exports, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Write a distilled set in the format of other tools.")
    parser.add_argument("name", metavar="SET", help="name of a folder under artifacts/distilled/")
    parser.add_argument("--to", type=Path, help="folder to be made; default: exports/NAME-FORMAT")
    parser.add_argument("--format", choices=FORMATS, default="imagefolder")
    parser.add_argument("--soft-labels", choices=SOFT_LABELS, help="one per image, or one per image and epoch")
    parser.add_argument("--top-k", type=int, help="classes kept of each soft label; default: all")
    parser.error = lambda message: sys.exit(failed(message, 2))
    given = parser.parse_args()
    target = given.to or root() / "exports" / f"{given.name}-{given.format}"
    try:
        export(given.name, target, given.format, given.soft_labels, given.top_k)
    except InputError as error:
        return failed(error, 2)
    except StorageError as error:
        return failed(error, 1)
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
