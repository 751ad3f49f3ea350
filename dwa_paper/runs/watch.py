"""TensorBoard, where DWA_TENSORBOARD names a folder: losses, accuracies and the images as they are made.

    DWA_TENSORBOARD=runs make reproduce
    .venv/bin/tensorboard --logdir runs

Only for watching: it is no setting, so no hash and no record knows of it.
"""

import functools
import os

import torch

from dwa_core.errors import InputError

SHOWN = 64  # images of a grid, at most


@functools.cache
def board(name: str):
    """The writer for the artifact or student `name`, or None where nobody watches.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """
    folder = os.environ.get("DWA_TENSORBOARD")
    if not folder:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("DWA_TENSORBOARD needs TensorBoard; .venv/bin/pip install -e '.[tensorboard]'") from None
    return SummaryWriter(os.path.join(folder, name))


def epoch(name: str, entry: dict) -> None:
    """An epoch of a teacher or student: all numbers of `entry`, at its own number of the epoch."""
    if (writer := board(name)) is not None:
        for key, value in entry.items():
            if key != "epoch":
                writer.add_scalar(key, value, entry["epoch"])
        writer.flush()


def synthesised(name: str, index: int, losses: dict[str, list[float]], images_uint8: torch.Tensor) -> None:
    """The first class batch of an ipc index of a distilled set: its losses by name, and its images, NHWC."""
    if (writer := board(name)) is not None:
        for key, values in losses.items():
            for iteration, value in enumerate(values, start=1):
                writer.add_scalar(f"ipc index {index}/{key}", value, iteration)
        writer.add_images("images", images_uint8[:SHOWN], index, dataformats="NHWC")
        writer.flush()
