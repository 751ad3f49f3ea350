"""Made-up settings and records, for tables and figures that can be worked out by hand."""

import json

import matplotlib.pyplot as plt
import pytest
import yaml

from dwa_paper.settings import files, presets, schema

PAPER = {"preset": "cifar10", "network": "resnet18", "ipc": 10, "method": "dwa"}


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SETTINGS", tmp_path / "settings")
    monkeypatch.setenv("DWA_ROOT", str(tmp_path))
    yield
    plt.close("all")


@pytest.fixture
def add(tmp_path):
    """A function that writes a settings file, and one record for each accuracy; fewer accuracies leave seeds unrun."""

    def write(name: str, *accuracies: float, seeds=(0, 1, 2), shown_in=("table-1",), record=(), **differences):
        parameters = {**PAPER, **differences, "profile": "trial", "name": name}
        parameters |= {"seeds": list(seeds), "shown_in": list(shown_in)}
        path = tmp_path / "settings" / "trial" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}: [{', '.join(map(str, parameters.pop(key)))}]" for key in ("seeds", "shown_in")]
        path.write_text("\n".join([*lines, yaml.safe_dump(parameters)]))
        for seed, accuracy in zip(seeds, accuracies, strict=False):
            setting = schema.resolve({**files.read(path), "seed": seed})
            made = {
                "setting": setting.recorded(),
                "accuracy": {"reported": accuracy, "last": accuracy, "best": accuracy, "top5": 99.0},
                "teacher": {
                    "artifact": f"teacher-{setting.network}",
                    "accuracy": {"top1": 95.0, "top5": 99.9},
                    "files": {},
                },
                "distilled": {"artifact": f"set-{name}", "files": {}},
                "curve": [],
                "data": {
                    "fingerprint": "0123456789abcdef",
                    "training_images": 50_000,
                    "test_images": 10_000,
                    "classes": 10,
                },
                "seconds": {"teacher": 3600.0, "synthesis": 60.0, "student": 30.0},
                "device": "a device",
                "precision": "bfloat16",
                "versions": {"torch": "2.0"},
                "revision": "0123456789abcdef",
                "tree_clean": True,
                "finished": "2026-01-01T00:00:00+00:00",
            }
            made = presets.merge(made, dict(record))
            setting.record_path().parent.mkdir(parents=True, exist_ok=True)
            setting.record_path().write_text(json.dumps(made))

    return write
