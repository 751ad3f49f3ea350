"""Artifacts on disk: named by what determines them, written whole or not at all, never pickled.

`artifacts/` holds what runs make. `results/artifacts/` has copies of what committed records name, and
is looked at second, so that every number of a table shares one teacher.
"""

import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout
from safetensors import SafetensorError

from dwa_core.devices import Compute
from dwa_core.errors import StoppedError, StorageError
from dwa_paper.runs import stop
from dwa_paper.runs.records import code_fingerprint
from dwa_paper.settings.environment import root

FORMAT_VERSION = 1
LEASE_SECONDS = 60
BASES = ("artifacts", "results/artifacts")  # of artifacts under the root, in the order in which they are looked for
# Every file of an artifact but itself, in the format of sha256sum.
SUMS = "SHA256SUMS"
CODE = code_fingerprint()  # of what this process imported; a long run leaves time for edits
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


def compute_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an artifact but its record and SHA256SUMS."""
    own = ("record.json", SUMS)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    return {str(path.relative_to(folder)): checksum(path) for path in files}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def guard_writing(path: Path):
    """Turns what goes wrong in writing to `path` into StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StorageError(f"{path}: cannot be written; {reason}") from None


def find(kind: str, name: str) -> Path | None:
    """The folder of the finished artifact `name`, or None; `kind` is teachers, distilled or data.

    It is compared with its checksums first. A damaged or foreign one is named, set aside and not used.
    """
    for base in BASES:
        folder = root() / base / kind / name
        if not folder.is_dir():
            continue
        if (problem := find_damage(folder)) is None:
            return folder
        if base == BASES[0]:
            set_aside(folder, problem)
        else:
            print(f"{folder}: {problem}; it is not used")
    return None


def find_damage(folder: Path, called: str = "") -> str | None:
    """What is wrong with the artifact in `folder` in a few words, or None; `called` is its name if not the folder's."""
    try:
        record = read_json(folder / "record.json")
    except FileNotFoundError:
        return "record.json is missing"
    except (ValueError, RecursionError):
        return "record.json is not JSON"
    if not isinstance(record, dict) or "settings" not in record or not isinstance(record.get("files"), dict):
        return "record.json is damaged, or of an older or newer format"
    if not (called or folder.name).endswith(digest(record["settings"])):
        return "it was made with other settings than its name says"
    expected, found = record["files"], compute_checksums(folder)
    if (folder / SUMS).is_file():  # those made before there was one have the sums in their record alone
        sums = expected | {"record.json": checksum(folder / "record.json")}
        if (folder / SUMS).read_bytes() != format_sums(sums):
            return f"record.json or {SUMS} is damaged"
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            what = "is missing" if name not in found else "is damaged" if name in expected else "does not belong to it"
            return f"{name} {what}"
    return find_miscount(folder, record["settings"]["ipc"]) if "ipc" in record["settings"] else None


def find_miscount(folder: Path, ipc: int) -> str | None:
    """What is wrong with the number of images of the distilled set in `folder`, in a few words, or None."""
    import pyarrow.parquet  # here because few callers have a set to count

    try:
        table = pyarrow.parquet.read_table(folder / "train-00000-of-00001.parquet", columns=["label", "ipc_index"])
        classes = len(json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"])
        found = sorted(zip(*(table[key].to_pylist() for key in ("ipc_index", "label")), strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its images cannot be counted; {' '.join(repr(error).split())}"
    if found != [(index, label) for index in range(ipc) for label in range(classes)]:
        return f"it has {len(found)} images, and not those of its settings, {ipc} of each of {classes} classes"
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
    with guard_writing(target):
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
    with guard_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                held = acquire(FileLock(path, fallback_to_soft=False), name)
            except OSError as error:
                if error.errno not in (ENOSYS, EOPNOTSUPP, ENOLCK):
                    raise
                lease = path.with_suffix(".lease")
                held = acquire(SoftFileLease(lease, lease_duration=LEASE_SECONDS), name)
        except Timeout:
            raise StoppedError(stop.reason()) from None
    with held:
        try:
            yield
        finally:  # also where the stage failed: in JupyterLab this process goes on
            stop.restore_handlers()


def acquire(lock: BaseFileLock, name: str):
    """Acquires the lock of `name`, and says so where it has to wait, as long as the time budget allows."""
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"{name} is being made by another run; waiting for it", flush=True)
        return lock.acquire(timeout=stop.seconds_left())


@contextmanager
def create_artifact(kind: str, name: str) -> Iterator[Path]:
    """A folder to fill, which becomes the artifact when the block ends well, as `replace_whole` has it. Hold its lock.

    One that a run beside this one has finished meanwhile, where locks do not work, stays as it is.
    """
    folder = root() / "artifacts" / kind / name
    with replace_whole(folder, unless=lambda: find(kind, name) == folder) as temporary:
        temporary.mkdir()
        yield temporary


def seal(folder: Path, described: dict, **more) -> None:
    """Writes the record of the artifact in `folder`: what determines it and `more`. Its checksums come last."""
    sums = compute_checksums(folder)
    write_json(folder / "record.json", {"settings": described, "files": sums, **more})
    (folder / SUMS).write_bytes(format_sums(sums | {"record.json": checksum(folder / "record.json")}))


def format_sums(sums: dict[str, str]) -> bytes:
    """The content of SHA256SUMS."""
    return "".join(f"{total}  {name}\n" for name, total in sorted(sums.items())).encode()


def write_json(path: Path, value) -> None:
    """Writes `value` whole or not at all, and makes the folder if there is none."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    with replace_whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def replace_whole(path: Path, unless: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Where to make a file or folder, which takes the place of `path` when the block ends well, and vanishes otherwise.

    What an earlier run on this machine left there when it was killed is removed, so only one run at a time may write
    `path` here.

    Args:
        unless: whether to leave what is there by then.
    """
    here = f".{path.name}.{platform.node()}"  # locks may not reach another machine that writes it too
    temporary = path.with_name(f"{here}.{os.getpid()}")
    with guard_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(here)}.*"):
            delete(left)
        try:
            yield temporary
            if not unless():
                temporary.replace(path)
        finally:
            delete(temporary)


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path):
    return json.loads(path.read_text())


def collect_provenance(compute: Compute) -> dict:
    """Where a result comes from: device, precision, versions, code of dwa_core, git revision and state, time."""
    command = ["git", "-C", str(Path(__file__).parent), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # there is no git on this machine, or this is no checkout
        status = []
    heading = "# branch.oid "
    return {
        "device": compute.describe(),
        "precision": str(compute.precision).removeprefix("torch."),
        "compiled": compute.compiles(),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in VERSIONED},
        "code": CODE,
        "revision": next((line.removeprefix(heading) for line in status if line.startswith(heading)), None),
        "tree_clean": all(line.startswith("#") for line in status) if status else None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
