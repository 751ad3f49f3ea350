"""Checkpoints: what is saved comes back, and is written by the clock."""

from pathlib import Path

import torch

from dwa_paper.runs.checkpoint import Checkpoint
from dwa_paper.settings.environment import read_checkpoint_seconds


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_checkpoint_returns_what_was_saved(own_root, cpu):
    checkpoint = Checkpoint("stage")
    assert checkpoint.load(cpu) is None
    square = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    tensors = {"square": square, "half": torch.tensor(0.1).half(), "step": torch.tensor(3), "none": torch.empty(0, 2)}
    curve = [{"loss": 0.1 + 0.2, "top1": 97.4}]
    checkpoint.save(tensors, {"curve": curve})
    found, state = Checkpoint("stage").load(cpu)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype is value.dtype
    assert state["curve"] == curve
    assert Checkpoint("other").load(cpu) is None
    assert [path.suffix for path in files(own_root)] == [".safetensors"]
    checkpoint.remove()
    checkpoint.remove()
    assert files(own_root) == []


def test_checkpoint_is_due_by_the_clock(monkeypatch, cpu):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint = Checkpoint("stage")
    checkpoint.load(cpu)
    assert not checkpoint.due()
    now[0] += read_checkpoint_seconds() + 1
    assert checkpoint.due()
    checkpoint.save({}, {})
    assert not checkpoint.due()
    checkpoint.saving = 30.0
    now[0] += 20 * 30 - 1
    assert not checkpoint.due(), "one that takes long is written more rarely"
    now[0] += 2
    assert checkpoint.due()
