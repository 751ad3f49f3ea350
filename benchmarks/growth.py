"""How time and memory of synthesis grow with ipc, classes and side; `make bench-growth` calls it.

Each point runs `dwa_core.synthesis.synthesize` in a process of its own, on random images and an untrained
network, with two iterations per batch, or 100 on a GPU, where the first few become a graph. There, several batches run
side by side, as in every synthesis, except at ipc 1, where there is one. Writes results/bench/growth-DEVICE.json and
figures/bench/growth-DEVICE.*.
"""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from bench import REPEATS, make_stem, measure_median, read_peak_memory, run_alone

from dwa_core import batches, devices, models
from dwa_core.synthesis import synthesize
from dwa_core.training import Progress
from dwa_paper.report.product import save_figure, use_style
from dwa_paper.runs import store
from dwa_paper.settings import schema
from dwa_paper.settings.environment import root

NETWORK = "convnet-128"
SMALL = {"iterations": 100 if torch.cuda.is_available() else 2, "steps": 1, "classes_per_batch": 10}
IMAGES = 1000  # in the training part, at every point
# One thing grows at a time: (ipc, classes, side).
SERIES = {
    "ipc": [(ipc, 10, 32) for ipc in (1, 10, 100)],
    "classes": [(1000 // classes, classes, 32) for classes in (10, 100, 1000)],
    "side": [(2, 10, side) for side in (32, 64, 224)],
}


def grow(ipc: int, classes: int, side: int) -> dict:
    """Median seconds per image, number of images, and peak memory in MB of one synthesis."""
    compute = devices.choose()
    place = {"profile": "bench", "name": "growth", "preset": "cifar10", "network": NETWORK}
    setting = schema.resolve({**place, "ipc": ipc, "images": {"side": side}, "synthesis": SMALL})
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, side, side, 3), dtype=torch.uint8, generator=random)
    train = batches.Resident(pixels, torch.arange(IMAGES) % classes, compute.device)
    network = devices.move_to_device(models.build(NETWORK, classes, setting.stem, side, seed=0), compute.device)
    teacher = network.eval().requires_grad_(False)
    seconds = measure_median(lambda: synthesize(setting, train, classes, teacher, compute, Progress("growth")))
    return {"seconds per image": seconds / (ipc * classes), "images": ipc * classes, **read_peak_memory(compute.device)}


def ticks(values: pd.Series) -> list[float]:
    """1, 2, 5, 10, 20 and so on, from one below all values to one above them."""
    steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    return [step for step in steps if values.min() / 2.5 < step < values.max() * 2.5]


def draw(rows: pd.DataFrame, stem: str) -> None:
    """Time per image and peak memory of each series, as figures/bench/<stem>.svg and .png."""
    use_style()
    rows = rows.assign(**{"ms per image": 1000 * rows["seconds per image"], "peak memory, MB": rows["peak_memory_mb"]})
    figure, axes = plt.subplots(2, len(SERIES), figsize=(10, 5.5))
    for column, (series, points) in zip(axes.T, rows.groupby("series", sort=False), strict=True):
        for axis, shown in zip(column, ("ms per image", "peak memory, MB"), strict=True):
            axis.plot(points[series], points[shown], "o-", color="black")
            axis.set(xscale="log", yscale="log", xlabel="side, px" if series == "side" else series, ylabel=shown)
            axis.set_xticks(points[series], points[series].astype(str))
            axis.set_yticks(rounded := ticks(rows[shown]), [f"{value:,g}" for value in rounded])
            axis.set_ylim(rounded[0], rounded[-1])
            axis.minorticks_off()
    caption = (
        f"Synthesis with {NETWORK}, {SMALL['iterations']} iterations and one step of weight adjustment per batch of 10 "
        f"images, {IMAGES} training images. Top: median of {REPEATS} runs. Bottom: the whole process, or the "
        "tensors on a GPU."
    )
    folder = root() / "figures" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / f"{stem}.svg", Title="How synthesis grows", Description=caption)


def main() -> None:
    compute, rows = devices.choose(), []
    for series, points in SERIES.items():
        for ipc, classes, side in points:
            point = {"series": series, "ipc": ipc, "classes": classes, "side": side}
            rows.append(point | run_alone(grow, ipc, classes, side))
            print(rows[-1], flush=True)
    stem = make_stem("growth", compute.describe())
    measured = {"network": NETWORK, "synthesis": SMALL, "rows": rows, **store.collect_provenance(compute)}
    store.write_json(root() / "results" / "bench" / f"{stem}.json", measured)
    draw(pd.DataFrame(rows), stem)
    print(f"written: results/bench/{stem}.json, figures/bench/{stem}.svg and .png")


if __name__ == "__main__":
    main()
