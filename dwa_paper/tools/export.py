"""Distilled sets in the formats of other tools, with a dataset card and, on request, soft labels.

    python -m dwa_paper share NAME --format imagefolder --soft-labels epochs --top-k 20

NAME is an artifact under artifacts/distilled/. Formats: `parquet` for `datasets.load_dataset` and the Hugging Face
hub; `imagefolder` for torchvision's ImageFolder, which SRe2L, rethinkdc and DD-Ranking (`image_path`) read;
`tensors` for DD-Ranking's `image_tensor`, with the teacher that its soft-label score needs. Each comes with a dataset
card, README.md.
"""

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
from dwa_core.errors import InputError
from dwa_paper.runs import store, teachers
from dwa_paper.runs.sets import PARQUET, DistilledSet, read_parquet
from dwa_paper.settings.datasets import DATASETS
from dwa_paper.settings.environment import root
from dwa_paper.settings.schema import Setting
from dwa_paper.tools.plan import format_bytes, read_records

FORMATS = ("parquet", "imagefolder", "tensors")
SOFT_LABELS = ("one", "epochs")


def share(name: str, to: Path | None, format: str, soft_labels: str | None, top_k: int | None) -> None:
    """Exports the set `name` as `export` does, to exports/NAME-FORMAT where `to` is None, and prints where it lies."""
    for key, value, allowed in (("format", format, FORMATS), ("soft-labels", soft_labels, (None, *SOFT_LABELS))):
        if value not in allowed:
            raise InputError(f"{key}: {value} is not known; allowed: {', '.join(filter(None, allowed))}")
    target = to or root() / "exports" / f"{name}-{format}"
    export(name, target, format, soft_labels, top_k)
    print(f"written: {target}")


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
    students = find_students(distilled.artifact)
    if not students and (kind == "tensors" or soft_labels is not None):
        reason = "no record names this set, so its settings are unknown; run a setting that uses it"
        raise InputError(f"{distilled.artifact}: {reason}")
    rows = torch.arange(len(distilled.labels))
    if kind == "parquet":
        shutil.copy(folder / PARQUET, target)
    else:  # ImageFolder goes class by class, and DD-Ranking takes tensors to do so
        rows = distilled.labels.argsort(stable=True)
    if kind == "imagefolder":
        write_image_folder(distilled, target / "train")
    elif kind == "tensors":
        normalisation = students[0][0].images
        images = augment.to_unit_range(distilled.images_uint8[rows])
        images = augment.normalise(images, normalisation.mean, normalisation.distilled_std).contiguous()
        save_file({"images": images, "labels": distilled.labels[rows]}, target / "images.safetensors")
    shutil.copy(folder / "record.json", target)
    records = [record for _, record in students]
    (target / "README.md").write_text(write_card(distilled, records, kind, soft_labels))
    if soft_labels is not None:
        setting, record = students[0]
        teacher = record["teacher"]["artifact"]
        write_soft_labels(setting, teacher, distilled, rows, target / "soft_labels", soft_labels, top_k)
        if kind == "tensors":
            write_ddranking_teacher(setting, teacher, target / "teacher_models")


def find_students(name: str) -> list[tuple[Setting, dict]]:
    """Setting and record of all students that learned from the distilled set `name` and no other."""
    return [found for found in read_records() if found[1].get("distilled", {}).get("artifact") == name]


# ------------------------------------------------------------------------------------------- images and card


def name_folders(classes: list[str]) -> list[str]:
    """One folder name per class, whose alphabetical order is that of the labels, as torchvision's ImageFolder wants.

    The names of the classes themselves where they can be; else with the label before them, as in 0001_goldfish.
    """
    if classes == sorted(classes) and all(name.strip(". ") == name and "/" not in name for name in classes):
        return classes
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name.split(",")[0]) for name in classes]
    return [f"{label:04d}_{name}" for label, name in enumerate(plain)]


def write_image_folder(distilled: DistilledSet, target: Path) -> None:
    """Writes the set as target/CLASS/IPC_INDEX.png, which torchvision's ImageFolder reads with the same labels."""
    names = name_folders(distilled.classes)
    rows = zip(distilled.images_uint8.numpy(), distilled.labels.tolist(), distilled.ipc_index.tolist(), strict=True)
    for picture, label, index in rows:
        folder = target / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index:05d}.png")


# The hub's size categories: less than so many images.
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
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
Soft labels lie in `soft_labels/` as logits of the teacher. `dwa_paper.tools.export.read_soft_labels` reads them;
`soft_labels/record.json` contains how they were made.
"""


def write_card(distilled: DistilledSet, records: list[dict], kind: str, soft_labels: str | None = None) -> str:
    """The README.md that the Hugging Face hub shows for a data set: settings, accuracy, licence, provenance."""
    record, count = distilled.record, len(distilled.labels)
    made = record["settings"]
    source = distilled.artifact.rpartition(f"-{made['method']}-ipc")[0]
    row = DATASETS.get(source)
    front = {
        "license": row.licence if row else "unknown",
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation"],
        "size_categories": [next(size for limit, size in SIZES.items() if count < limit)],
    }
    if kind == "parquet":
        files = {"split": "train", "path": "train-*.parquet"}
        front["configs"] = [{"config_name": "default", "data_files": [files]}]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---
# {distilled.artifact}

{made["ipc"]} images of {made["side"]} px for each of {len(distilled.classes)} classes, distilled from the training \
part of {source} by the method {made["method"]}.

```python
{OPENING[kind]}
```
{LABELS_OPENING if soft_labels else ""}
## Accuracy

{tabulate_accuracies(records)}

## Settings

```yaml
{yaml.safe_dump(records[0]["setting"] if records else made)}```

## Provenance

Made {record["finished"]} on {record["device"]} with {versions}, code revision {record["revision"]}, in \
{record["seconds"]:.0f} s. Teacher: `{made.get("teacher", "none")}`. SHA-256 of each file: `record.json`.

## Licence of the source

{row.terms if row else f"The terms of the images of {source} apply; they are not known here."}

## Citation

Du et al., Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment, NeurIPS 2024.
"""


def tabulate_accuracies(records: list[dict]) -> str:
    """Test accuracy of the students in `records`, a line per student network and setting, in Markdown."""
    if not records:
        return "Not evaluated yet."
    groups = {}
    for record in records:
        setting = record["setting"]
        groups.setdefault((setting["student"], setting["profile"], setting["name"]), []).append(record)
    lines = ["| student | setting | test accuracy, % | students | teacher, % |", "|---|---|---|---|---|"]
    for (student, profile, name), group in sorted(groups.items()):
        values = [record["accuracy"]["reported"] for record in group]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        accuracy, teacher = statistics.mean(values), group[0]["teacher"]["accuracy"]["top1"]
        lines.append(f"| {student} | {profile}/{name} | {accuracy:.1f}{spread} | {len(values)} | {teacher:.1f} |")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------- soft labels


def write_soft_labels(
    setting: Setting,
    teacher: str,
    distilled: DistilledSet,
    rows: torch.Tensor,
    folder: Path,
    kind: str,
    top_k: int | None,
) -> None:
    """Stores how the teacher labels the images, as logits in fp16; prints the size before any work.

    "one": of each image as it is, (N, classes), in the order of the exported images, which are `rows` of the set:
    soft_labels/one.safetensors.
    "epochs": of each image that the student with the setting's seed sees, augmented and mixed, in the order in
    which it sees them: soft_labels/epoch-0000.safetensors and so on. The inputs are not stored: the same setting
    and kind of device draw them again (`relabel.mixed_batches`).

    With `top_k`, the logits of the k likeliest classes, their classes, and for all others together the logit that
    gives them, at the recipe's temperature, the share of probability that they had.

    Args:
        setting: of a student that learned from the set; `teacher` is its teacher's artifact.

    Raises:
        InputError: the teacher is not on this machine, `top_k` is not between 1 and the number of classes, or the
            disk is too small.
    """
    stage, images, classes = setting.relabel, setting.images, len(distilled.classes)
    if top_k is not None and not 1 <= top_k <= classes:
        raise InputError(f"top-k: {top_k} is not allowed; there are {classes} classes")
    if (folder_of_teacher := store.find("teachers", teacher)) is None:
        raise InputError(f"{teacher}: the teacher of this set is not on this machine, so it cannot label")
    compute = devices.choose(setting.device, setting.precision)
    network = teachers.load(setting, classes, compute.device, folder_of_teacher)
    labeller, training = relabel.labeller(network, stage, compute.precision), distilled.split(compute.device)
    epochs = stage.epochs if kind == "epochs" else 1
    size = count_bytes(len(training), classes, epochs, top_k)
    print(f"soft labels: {epochs} x {len(training)} images, {format_bytes(size)}", flush=True)
    folder.mkdir()
    if size > shutil.disk_usage(folder).free:
        raise InputError(f"soft labels: {format_bytes(size)} are more than is free under {folder.parent}")

    def label_and_save(batches, file: str, order=slice(None)) -> None:
        logits = relabel.label(labeller, batches, compute).cpu()[order]
        save_file(pack(logits, top_k, stage.temperature), folder / f"{file}.safetensors")

    if kind == "one":
        label_and_save(training.test_batches(images.mean, images.distilled_std), "one", rows)
    else:
        for epoch in tqdm(range(epochs), desc="soft labels", unit="epoch", file=sys.stdout):
            label_and_save(relabel.mixed_batches(setting, training, epoch), f"epoch-{epoch:04d}")
    made = {"kind": kind, "top_k": top_k, "teacher": teacher, "device_type": compute.device.type, "classes": classes}
    store.write_json(folder / "record.json", {**made, "temperature": stage.temperature, "setting": setting.recorded()})


def count_bytes(images: int, classes: int, epochs: int, top_k: int | None) -> int:
    """Bytes of the stored logits: 2 per class, or 4 per kept class and 2 for the rest."""
    return epochs * images * (2 * classes if top_k is None else 4 * top_k + 2)


def pack(logits: torch.Tensor, top_k: int | None, temperature: float) -> dict[str, torch.Tensor]:
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


def write_ddranking_teacher(setting: Setting, teacher: str, target: Path) -> None:
    """Stores the artifact `teacher` as target/DATASET/NETWORK/ckpt_best.pt, where DD-Ranking's `teacher_dir` has it.

    DATASET and NETWORK are DD-Ranking's names; a data set that it does not know keeps its own. If it does not have the
    network, a printed line says so.
    """
    state = load_file(store.find("teachers", teacher) / "model.safetensors")
    converted = convert_for_ddranking(setting, state)
    if converted is None:
        print(f"{teacher}: DD-Ranking has no {setting.network} as ours is; its teacher is left out", flush=True)
        return
    network, state = converted
    row = DATASETS.get(setting.dataset)
    path = target / ((row and row.ddranking) or setting.dataset) / network / "ckpt_best.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)


def convert_for_ddranking(
    setting: Setting, state: dict[str, torch.Tensor]
) -> tuple[str, dict[str, torch.Tensor]] | None:
    """The name and the weights (fp32) in DD-Ranking 0.2.0 of the teacher with the weights `state`.

    ConvNet-128 is its ConvNet-3-BN. torchvision's ResNets are its ResNet-18-BN and so on with `tea_use_torchvision`,
    with the small stem at 32 and 64 px and torchvision's at others. None: it does not have this network.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    if setting.network == "convnet-128":
        last = max(int(name.split(".")[0]) for name in state)
        renamed = {f"features.{name}".replace(f"features.{last}.", "classifier."): state[name] for name in state}
        return "ConvNet-3-BN", renamed
    stem = "small" if setting.images.side in (32, 64) else "torchvision"
    if setting.network in ("resnet18", "resnet34", "resnet50") and setting.stem == stem:
        return f"ResNet-{setting.network.removeprefix('resnet')}-BN", state
    return None
