"""A teacher trained by two processes, on CPUs by gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dwa_core import batches
from dwa_paper.runs import real, store, teachers
from dwa_paper.settings import files, schema

REPOSITORY = Path(__file__).resolve().parents[2]


def torchrun(path: Path, root: Path, processes: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "dwa_paper", "train-teacher", str(path)]
    variables = {**os.environ, "DWA_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)


@pytest.mark.parametrize("side", [16, 72])  # kept in memory, and streamed
def test_two_processes_train_one_teacher_that_runs_then_find(
    side, tiny_setting, tmp_path, own_root, monkeypatch, compute
):
    epochs = 4 if side == 16 else 1
    setting = tiny_setting(images={"side": side}, teacher={"epochs": epochs})
    path = tmp_path / "test" / "tiny.yaml"
    path.parent.mkdir()
    given = {"profile": "test", "name": "tiny", "preset": "digits", "network": "convnet-16", "device": "cpu"}
    given |= {"precision": "fp32", "images": {"side": side}, "teacher": {"epochs": epochs, "batch_size": 48}}
    path.write_text(yaml.safe_dump(given))
    assert schema.resolve(files.read(path)).teacher == setting.teacher
    done = torchrun(path, own_root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    (folder,) = (own_root / "artifacts" / "teachers").glob("digits-*")
    assert store.read_json(folder / "record.json")["processes"] == 2
    digits = real.load("digits", setting.images, compute.device)
    monkeypatch.setattr(teachers, "train_and_store", None)
    found = teachers.load_or_train(setting, digits, compute)
    assert found.artifact == folder.name
    assert found.record["accuracy"]["top1"] > (80 if side == 16 else 20), "ten classes: chance is 10"
    assert not list((own_root / "artifacts" / "checkpoints").glob("*"))


@pytest.mark.parametrize("side", [16, 72])
def test_shares_of_the_processes_are_the_batches_of_one(side, tiny_setting, monkeypatch, cpu):
    monkeypatch.setattr(batches.devices, "count_cpus", lambda: 1)
    setting = tiny_setting(images={"side": side}, teacher={"batch_size": 500})
    split = real.load("digits", setting.images, cpu).train

    def epoch(*share):
        split.share = share
        return list(split.train_batches(setting.teacher, setting.images.mean, setting.images.std, 0, 0))

    whole, first, second = epoch(0, 1), epoch(0, 2), epoch(1, 2)
    assert len(whole) == len(first) == len(second) == 3
    for (images, labels), (ours, our_labels), (theirs, their_labels) in zip(whole, first, second, strict=True):
        assert torch.equal(images[0::2], ours)
        assert torch.equal(images[1::2], theirs)
        assert torch.equal(labels[0::2], our_labels)
        assert torch.equal(labels[1::2], their_labels)


def test_weights_leave_nothing_to_be_trained(tmp_path, own_root):
    path = tmp_path / "test" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"profile": "test", "name": "tiny", "preset": "imagenet-1k"}))
    done = torchrun(path, own_root, processes=1)
    assert done.returncode != 0
    assert "error: teacher.weights: 'IMAGENET1K_V1' leaves nothing to be trained" in done.stderr
