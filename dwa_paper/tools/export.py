"""Distilled sets in the formats of other tools, with a dataset card and, on request, soft labels.

    python -m dwa_paper share NAME --format imagefolder --soft-labels epochs --top-k 20

NAME is an artifact under artifacts/distilled/. Formats: `parquet` for `datasets.load_dataset` and the Hugging Face
hub; `imagefolder` for torchvision's ImageFolder, which SRe2L, rethinkdc and DD-Ranking (`image_path`) read;
`tensors` for DD-Ranking's `image_tensor`, with the teacher that its soft-label score needs. Each comes with a dataset
card, README.md.
"""

import re
import shutil
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import jinja2
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
from dwa_paper.settings.schema import NAME, Setting
from dwa_paper.tools.plan import format_bytes, read_records

CARD = Path(__file__).with_name("card.md")
# The hub's size categories: less than so many images.
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


def export(name: str, to: Path | None, format: str, soft_labels: str | None = None, top_k: int | None = None) -> None:
    """Writes the distilled set `name` with a card to the new folder `to`, or exports/NAME-FORMAT, and prints where.

    Args:
        format: "imagefolder", "parquet" or "tensors".
        soft_labels: None, "one" or "epochs", as `write_soft_labels` has them.
        top_k: how many classes of each soft label are kept; None keeps all.

    Raises:
        InputError: there is no such set, `to` is there already, or the soft labels cannot be made.
        StorageError: `to` cannot be written.
    """
    # Names of files alone: ../x would be found, and written, elsewhere.
    folder = store.find("distilled", name) if re.fullmatch(NAME, name) else None
    target = to or root() / "exports" / f"{name}-{format}"
    if folder is None:
        raise InputError(f"{name}: no such distilled set under artifacts/ or results/artifacts/ of {root()}")
    if target.exists():
        raise InputError(f"{target}: is there already; delete it or name another folder")
    distilled = read_parquet(folder)
    # Of all students that learned from this set and no other.
    students = [found for found in read_records() if found[1].get("distilled", {}).get("artifact") == name]
    if not students and (format == "tensors" or soft_labels is not None):
        reason = "no record names this set, so its settings are unknown; run a setting that uses it"
        raise InputError(f"{name}: {reason}")
    # ImageFolder goes class by class, and DD-Ranking takes tensors to do so.
    rows = torch.arange(len(distilled.labels)) if format == "parquet" else distilled.labels.argsort(stable=True)
    with store.replace_whole(target) as temporary:
        temporary.mkdir()
        if format == "parquet":
            shutil.copy(folder / PARQUET, temporary)
        elif format == "imagefolder":
            write_image_folder(distilled, temporary / "train")
        else:
            seen = students[0][0].images
            images = augment.to_unit_range(distilled.images_uint8[rows])
            images = augment.normalise(images, seen.mean, seen.distilled_std).contiguous()
            save_file({"images": images, "labels": distilled.labels[rows]}, temporary / "images.safetensors")
        shutil.copy(folder / "record.json", temporary)
        card = write_card(distilled, [record for _, record in students], format, soft_labels)
        (temporary / "README.md").write_text(card)
        if soft_labels is not None:
            setting, record = students[0]
            teacher = record["teacher"]["artifact"]
            if others := {one["teacher"]["artifact"] for _, one in students} - {teacher}:
                print(f"labelled by {teacher}; records with this set also have {', '.join(sorted(others))}")
            write_soft_labels(setting, teacher, distilled, rows, temporary / "soft_labels", soft_labels, top_k)
            if format == "tensors":
                write_ddranking_teacher(setting, teacher, temporary / "teacher_models")
    print(f"written: {target}")


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


def write_card(distilled: DistilledSet, records: list[dict], format: str, soft_labels: str | None = None) -> str:
    """The README.md that the Hugging Face hub shows for a data set: settings, accuracy, licence, provenance."""
    made = distilled.record["settings"]
    source = distilled.artifact.rpartition(f"-{made['method']}-ipc")[0]
    options = {"trim_blocks": True, "keep_trailing_newline": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Template(CARD.read_text(), **options).render(
        distilled=distilled,
        source=source,
        data=DATASETS.get(source),
        size=next(size for limit, size in SIZES.items() if len(distilled.labels) < limit),
        format=format,
        soft_labels=soft_labels,
        accuracies=summarise_accuracies(records),
        # A backtick in a name must not end the block of code that the settings are shown in.
        settings=yaml.safe_dump(records[0]["setting"] if records else made).replace("`", "'"),
    )


def summarise_accuracies(records: list[dict]) -> list[list[str]]:
    """Of each student network and setting in `records`: these two, test accuracy, students, teacher's accuracy."""
    groups = defaultdict(list)
    for record in records:
        setting = record["setting"]
        groups[setting["student"], f"{setting['profile']}/{setting['name']}"].append(record)
    rows = []
    for names, group in sorted(groups.items()):
        values = [record["accuracy"]["reported"] for record in group]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        teacher = group[0]["teacher"]["accuracy"]["top1"]
        rows.append([*names, f"{statistics.mean(values):.1f}{spread}", str(len(values)), f"{teacher:.1f}"])
    return rows


def write_soft_labels(
    setting: Setting, teacher: str, distilled: DistilledSet, rows: torch.Tensor, to: Path, kind: str, top_k: int | None
) -> None:
    """Stores how the artifact `teacher` labels the images, as logits in fp16; prints the size before any work.

    "one": of each image as it is, (N, classes), in the order of the exported images, which are `rows` of the set:
    soft_labels/one.safetensors.
    "epochs": of each image that the student of `setting` sees, augmented and mixed, in the order in which it sees
    them: soft_labels/epoch-0000.safetensors and so on. The inputs are not stored: the same setting and kind of device
    draw them again (`relabel.draw_mixed_batches`).

    With `top_k`, the logits of the k likeliest classes, their classes, and for all others together the logit that
    gives them, at the recipe's temperature, the share of probability that they had.
    """
    stage, images, classes = setting.relabel, setting.images, len(distilled.classes)
    if top_k is not None and not 1 <= top_k <= classes:
        raise InputError(f"top-k: {top_k} is not allowed; there are {classes} classes")
    if (teacher_folder := store.find("teachers", teacher)) is None:
        raise InputError(f"{teacher}: the teacher of this set is not on this machine, so it cannot label")
    compute = devices.choose(setting.device, setting.precision)
    network = teachers.load(setting, classes, compute.device, teacher_folder)
    labeller, training = relabel.make_labeller(network, stage, compute.precision), distilled.split(compute.device)
    if kind == "one":
        batches = {"one": training.test_batches(images.mean, images.distilled_std)}
    else:
        rows = slice(None)  # the student's own order
        epochs = range(stage.epochs)
        batches = {f"epoch-{epoch:04d}": relabel.draw_mixed_batches(setting, training, epoch) for epoch in epochs}
    size = count_bytes(len(training), classes, len(batches), top_k)
    print(f"soft labels: {len(batches)} x {len(training)} images, {format_bytes(size)}", flush=True)
    to.mkdir()
    if size > shutil.disk_usage(to).free:
        raise InputError(f"soft labels: {format_bytes(size)} are more than is free under {to.parent}")
    for file, seen in tqdm(batches.items(), desc="soft labels", unit="file", file=sys.stdout, disable=kind == "one"):
        logits = relabel.label(labeller, seen, compute).cpu()[rows]
        save_file(pack(logits, top_k, stage.temperature), to / f"{file}.safetensors")
    made = {"kind": kind, "top_k": top_k, "teacher": teacher, "device_type": compute.device.type, "classes": classes}
    store.write_json(to / "record.json", {**made, "temperature": stage.temperature, "setting": setting.recorded()})


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
    if (converted := convert_for_ddranking(setting, state)) is None:
        print(f"{teacher}: DD-Ranking has no {setting.network} as ours is; its teacher is left out", flush=True)
        return
    network, state = converted
    row = DATASETS.get(setting.dataset)
    path = target / ((row and row.ddranking) or setting.dataset) / network / "ckpt_best.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)


def convert_for_ddranking(setting: Setting, state: dict[str, torch.Tensor]) -> tuple[str, dict] | None:
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
