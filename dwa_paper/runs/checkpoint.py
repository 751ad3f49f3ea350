"""How far an unfinished stage is: stored so that the same command continues it, and shown by TensorBoard.

    DWA_TENSORBOARD=runs make reproduce
    .venv/bin/tensorboard --logdir runs

shows losses, accuracies and the images as they are made. It is no setting, so no hash and no record knows of it.
"""

import functools
import json
import os
import time

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dwa_core.errors import InputError, StoppedError
from dwa_core.training import Progress
from dwa_paper.runs import stop, store
from dwa_paper.settings.environment import read_checkpoint_seconds, root

SHARE = 20  # a stage goes on at least so many times as long as its last checkpoint took; ImageNet-1K's have 15 GB
SHOWN = 64  # images of a grid of TensorBoard's, at most


@functools.cache
def open_board(name: str):
    """TensorBoard's writer for the artifact or student `name`, or None where nobody watches."""
    folder = os.environ.get("DWA_TENSORBOARD")
    if not folder:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("DWA_TENSORBOARD needs TensorBoard; .venv/bin/pip install -e '.[tensorboard]'") from None
    return SummaryWriter(os.path.join(folder, name))


class Checkpoint(Progress):
    """The state of an unfinished stage: tensors, what is done, and the seconds it took; written on a clock.

    Of processes that share a stage, one has it written; the others only read it, and are ended when that one stops.
    """

    def __init__(self, name: str, label: str = "", written: bool = True):
        super().__init__(label)
        self.path = root() / "artifacts" / "checkpoints" / f"{name}.safetensors"
        self.written = written
        self.started = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last one took
        self.earlier = 0.0

    def load(self, device: torch.device) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors on `device` and the rest of the state, or None where there is none that can be used.

        From here to `remove`, signals are requests to stop.
        """
        stop.listen()
        if not self.path.is_file():
            return None
        try:
            tensors = load_file(self.path)
            state = json.loads(bytes(tensors.pop("state").tolist()))
            if state.pop("checksum") != store.fingerprint(tensors, [self.path.name, state]):
                raise ValueError
            self.earlier = state.pop("seconds")
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
            store.set_aside(self.path, "the checkpoint is damaged or of another run; its stage begins again")
            return None
        return {name: tensor.to(device) for name, tensor in tensors.items()}, state

    def seconds(self) -> float:
        """Wall time of the stage, interrupted runs included up to their last checkpoint."""
        return round(self.earlier + time.monotonic() - self.started, 1)

    def due(self) -> bool:
        """Whether the last one is old enough for the next, or the run has to stop."""
        asked = read_checkpoint_seconds()
        late = time.monotonic() - self.saved >= (max(asked, SHARE * self.saving) if asked else 0)
        return self.written and (late or stop.reason() is not None)

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Replaces the checkpoint; `state` is what JSON can hold.

        Raises:
            StoppedError: the run has to stop, and can now.
        """
        began = time.monotonic()
        state = {**state, "seconds": self.seconds()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = store.canonical_json({**state, "checksum": store.fingerprint(tensors, [self.path.name, state])})
        packed = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        with store.replace_whole(self.path) as temporary:
            save_file(tensors | {"state": packed}, temporary)
        self.saved = time.monotonic()
        self.saving = self.saved - began
        if (reason := stop.reason()) is not None:
            stop.restore_handlers()
            raise StoppedError(reason)

    def remove(self) -> None:
        """To be called once the stage's result is stored."""
        self.path.unlink(missing_ok=True)
        stop.restore_handlers()

    def epoch(self, entry: dict) -> None:
        if self.written and (writer := open_board(self.path.stem)) is not None:
            for key in entry.keys() - {"epoch"}:
                writer.add_scalar(key, entry[key], entry["epoch"])
            writer.flush()

    def synthesised(self, index: int, losses: dict[str, list[float]], images_uint8: torch.Tensor) -> None:
        if (writer := open_board(self.path.stem)) is not None:
            for key, values in losses.items():
                for iteration, value in enumerate(values, start=1):
                    writer.add_scalar(f"ipc index {index}/{key}", value, iteration)
            writer.add_images("images", images_uint8[:SHOWN], index, dataformats="NHWC")
            writer.flush()
