"""Artifacts on disk: named by what determines them, written whole or not at all, never pickled.

`artifacts/` holds what runs make. `results/artifacts/` has copies of what committed records name, and
is looked at second, so that every number of a table shares one teacher.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

import torch
from filelock import FileLock, SoftFileLease, Timeout
from safetensors import SafetensorError

from dwa_core.devices import Compute
from dwa_core.errors import StoppedError, StorageError
from dwa_paper.runs import stop
from dwa_paper.settings.environment import root

FORMAT_VERSION = 1
LEASE_SECONDS = 60
# Every file of an artifact but itself, in the format of sha256sum.
SUMS = "SHA256SUMS"
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
    """SHA-256 of every file of an artifact but its record and SHA256SUMS."""
    own = ("record.json", SUMS)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    return {str(path.relative_to(folder)): checksum(path) for path in files}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing(path: Path):
    """Turns what goes wrong in writing to `path` into StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StorageError(f"{path}: cannot be written; {reason}") from None


# --------------------------------------------------------------------------------------------- artifacts


def find(kind: str, name: str) -> Path | None:
    """The folder of the finished artifact `name`, or None; `kind` is teachers, distilled or data.

    It is compared with its checksums first. A damaged or foreign one is named, set aside and not used.
    """
    own = root() / "artifacts"
    for base in (own, root() / "results" / "artifacts"):
        folder = base / kind / name
        if not folder.is_dir():
            continue
        problem = damage(folder)
        if problem is None:
            return folder
        if base == own:
            set_aside(folder, problem)
        else:
            print(f"{folder}: {problem}; it is not used")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with the artifact in `folder`, in a few words, or None."""
    try:
        record = read_json(folder / "record.json")
    except FileNotFoundError:
        return "record.json is missing"
    except ValueError:
        return "record.json is not JSON"
    if not isinstance(record, dict) or "settings" not in record or not isinstance(record.get("files"), dict):
        return "record.json is damaged, or of an older or newer format"
    if not folder.name.endswith(digest(record["settings"])):
        return "it was made with other settings than its name says"
    expected, found = record["files"], file_checksums(folder)
    if (folder / SUMS).is_file():  # those made before there was one have the sums in their record alone
        sums = expected | {"record.json": checksum(folder / "record.json")}
        if (folder / SUMS).read_bytes() != sums_file(sums):
            return f"record.json or {SUMS} is damaged"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name] != expected[name]:
            return f"{name} is damaged"
    return None


def once(kind: str, name: str, make: Callable[[], None]) -> Path:
    """The folder of the artifact `name`, which `make()` stores where there is none yet.

    Of runs side by side that want the same one, the first makes it.
    """
    with lock(kind, name):
        if (folder := find(kind, name)) is None:
            make()
            folder = find(kind, name)
    return folder


def set_aside(path: Path, problem: str) -> None:
    """Moves what cannot be used out of the way, to artifacts/set-aside/, and says so."""
    target = root() / "artifacts" / "set-aside" / f"{path.parent.name}-{path.name}"
    while target.exists():
        target = target.with_name(target.name + "~")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(target)
        except FileNotFoundError:  # another run was faster
            return
    print(f"{path}: {problem}; set aside as {target}")


@contextmanager
def lock(kind: str, name: str):
    """Held while the artifact is made, so that runs side by side make it once.

    It is the operating system's advisory lock, which is freed when its holder dies, on a local file system and on
    NFS with its lock service. Where a file system has none, it is a file that its holder renews; one that was not
    renewed for LEASE_SECONDS is taken over. Locks only save work: an artifact is stored whole or not at all, so
    two runs that make it side by side, as where NFS keeps locks to one host, both end with a good one.

    Raises:
        StoppedError: the time budget was used up while waiting.
    """
    path = root() / "artifacts" / kind / f".{name}.lock"
    timeout = -1 if math.isinf(stop.seconds_left()) else stop.seconds_left()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout, fallback_to_soft=False)
        try:
            try:
                held.acquire()
            except OSError as error:
                if error.errno not in (ENOSYS, EOPNOTSUPP, ENOLCK):
                    raise
                held = SoftFileLease(path.with_suffix(".lease"), timeout=timeout, lease_duration=LEASE_SECONDS)
                held.acquire()
        except Timeout:
            raise StoppedError(stop.reason()) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def new_artifact(kind: str, name: str):
    """A folder to fill; it gets its name when the block ends well, and vanishes when it does not.

    Hold its lock: what an earlier run left half done when it was killed is removed here.
    """
    parent = root() / "artifacts" / kind
    with writing(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{name}.*/"):
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if find(kind, name) != parent / name:
                temporary.rename(parent / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path, described: dict, **more) -> None:
    """Writes the record of the artifact in `folder`, and then its checksums, the last of its files.

    Args:
        described: what determines the artifact; `more` is what a reader wants to know beside.
    """
    sums = file_checksums(folder)
    write_json(folder / "record.json", {"settings": described, "files": sums, **more})
    (folder / SUMS).write_bytes(sums_file(sums | {"record.json": checksum(folder / "record.json")}))


def sums_file(sums: dict[str, str]) -> bytes:
    """The content of SHA256SUMS."""
    return "".join(f"{total}  {name}\n" for name, total in sorted(sums.items())).encode()


def write_json(path: Path, value) -> None:
    """Writes `value` whole or not at all, and makes the folder if there is none."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextmanager
def replacing(path: Path):
    """A file beside `path` to write to, which takes its place when the block ends well, and vanishes otherwise.

    What an earlier run left there when it was killed is removed, so only one run at a time may write `path`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path):
    return json.loads(path.read_text())


# ----------------------------------------------------------------------------------------------- records


def provenance(compute: Compute) -> dict:
    """Where a result comes from: device, precision, versions, code revision and whether the tree was clean, time."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # there is no git on this machine
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "device": compute.describe(),
        "precision": str(compute.precision).removeprefix("torch."),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in VERSIONED},
        "revision": git("rev-parse", "HEAD"),
        "tree_clean": status == "" if status is not None else None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
