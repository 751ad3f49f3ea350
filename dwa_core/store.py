"""Artifacts and records on disk: named by what determines them, written whole or not at all, never pickled.

`artifacts/` holds what runs make. `results/artifacts/` holds copies that committed records stand on, and
is looked at second, so that every number of a table shares one teacher.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from dwa_core.models import device_name
from dwa_core.settings import root

FORMAT_VERSION = 1
PUBLISHED_LIMIT_MB = 25
CHECKPOINT_SECONDS = 60
VERSIONED = ("torch", "torchvision", "datasets", "numpy", "safetensors")


def canonical_json(value) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(*parts) -> str:
    """The first 10 hexadecimal digits of SHA-256 over the canonical JSON of `parts` and the format version."""
    return hashlib.sha256(canonical_json([FORMAT_VERSION, *parts]).encode()).hexdigest()[:10]


def fingerprint(tensors: dict[str, torch.Tensor], extra=None) -> str:
    """SHA-256 over names, shapes, types and bytes of `tensors`, and over `extra`, which JSON can hold."""
    sha = hashlib.sha256(canonical_json(extra).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def file_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an artifact but its record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "record.json")
    sums = {}
    for path in files:
        with path.open("rb") as stream:
            sums[str(path.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


# --------------------------------------------------------------------------------------------- artifacts


def find(kind: str, name: str) -> Path | None:
    """The folder of the finished artifact `name`, or None; `kind` is teachers, distilled or data."""
    for base in (root() / "artifacts", root() / "results" / "artifacts"):
        folder = base / kind / name
        if (folder / "record.json").is_file():
            return folder
    return None


def lock(kind: str, name: str) -> FileLock:
    """Held while the artifact is made, so that runs side by side make it once; freed if its holder dies.

    An advisory lock of the operating system: it needs a file system that has them, as local ones do.
    """
    path = root() / "artifacts" / kind / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


@contextmanager
def new_artifact(kind: str, name: str):
    """A folder to fill; it gets its name when the block ends well, and vanishes when it does not."""
    parent = root() / "artifacts" / kind
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        final = parent / name
        if not (final / "record.json").is_file():
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish(folder: Path, described: dict, checkpoint: "Checkpoint", device, precision: torch.dtype, **more) -> None:
    """Writes the record of the artifact in `folder`, the last of its files; `described` is what determines it."""
    record = {
        "settings": described,
        "precision": str(precision).removeprefix("torch."),
        "seconds": checkpoint.seconds(),
        "files": file_checksums(folder),
        **more,
        **provenance(device),
    }
    write_json(folder / "record.json", record)


def write_json(path: Path, value) -> None:
    """Writes `value` whole or not at all, and makes the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def read_json(path: Path):
    return json.loads(path.read_text())


# ------------------------------------------------------------------------------------------- checkpoints


class Checkpoint:
    """The state of an unfinished stage: tensors, what is done, and the seconds it took; written on a clock."""

    def __init__(self, name: str):
        self.path = root() / "artifacts" / "checkpoints" / f"{name}.safetensors"
        self.started = self.saved = time.monotonic()
        self.earlier = 0.0

    def load(self, device: torch.device) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors on `device` and the rest of the state, or None where there is none."""
        if not self.path.is_file():
            return None
        tensors = load_file(self.path, device=str(device))
        state = json.loads(bytes(tensors.pop("state").cpu().tolist()))
        self.earlier = state.pop("seconds")
        return tensors, state

    def seconds(self) -> float:
        """Wall time of the stage, interrupted runs included up to their last checkpoint."""
        return round(self.earlier + time.monotonic() - self.started, 1)

    def due(self) -> bool:
        """Whether CHECKPOINT_SECONDS have passed since the last one."""
        return time.monotonic() - self.saved >= CHECKPOINT_SECONDS

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Replaces the checkpoint; `state` is what JSON can hold."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        text = canonical_json({**state, "seconds": self.seconds()})
        packed = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        save_file({**{k: v.detach().contiguous() for k, v in tensors.items()}, "state": packed}, temporary)
        temporary.replace(self.path)
        self.saved = time.monotonic()

    def remove(self) -> None:
        """To be called once the stage's result is stored."""
        self.path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------- records


def provenance(device: torch.device) -> dict:
    """Where a result comes from: device, versions, code revision and whether the tree was clean, time (UTC)."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # there is no git on this machine
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "device": device_name(device),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in VERSIONED},
        "revision": git("rev-parse", "HEAD"),
        "tree_clean": status == "" if status is not None else None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def publish(profile: str) -> None:
    """Copies the artifacts that the records of `profile` stand on to results/artifacts/, and says so of each.

    Sets of real images are left out: they are drawn anew from the data set in a moment, and the data
    set is not ours to pass on; nor is what others distilled.
    """
    wanted = {}
    for path in sorted((root() / "results" / profile).glob("*-seed*.json")):
        record = read_json(path)
        wanted["teachers", record["teacher"]["artifact"]] = path.name
        if record["setting"]["method"] not in ("random-real", "external"):
            wanted["distilled", record["distilled"]["artifact"]] = path.name
    if not wanted:
        print(f"{profile}: no records, so nothing to copy")
    for (kind, name), record_name in wanted.items():
        source, target = root() / "artifacts" / kind / name, root() / "results" / "artifacts" / kind / name
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        if target.exists():
            print(f"{name}: there already")
        elif size == 0:
            print(f"{name}: not on this machine; {record_name} stands on it")
        elif size > PUBLISHED_LIMIT_MB * 1e6:
            print(f"{name}: {size / 1e6:.0f} MB are above the limit of {PUBLISHED_LIMIT_MB} MB")
        else:
            temporary = target.with_name(f".{name}.{os.getpid()}")
            shutil.copytree(source, temporary)
            temporary.rename(target)
            print(f"{name}: copied to results/artifacts/{kind}/")


if __name__ == "__main__":
    publish(sys.argv[1])
