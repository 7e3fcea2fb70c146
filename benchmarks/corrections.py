"""Corrections of outliers on three tables: found, minimal, stable, and their seconds.

    FFJORD_KIT_DATA=FOLDER python benchmarks/corrections.py [--rows 12] [--seeds 5] [--only moons] [--picture FILE]

A flow is fitted to each table by each seed, and scores by its few exact steps. Outliers are rows of the table in which
some of the allowed columns were moved by two to four scales, and whose log-density then is below the 1 % quantile; so a
change that mends each is known. With two allowed columns every change is tried on a grid of steps of e / 2, with all
its neighbours within e. The share found has its one-sided limit of 95 % (Clopper and Pearson) over all rows. The share
that stays is that of 10,000 new draws within e. Seconds are those of one CPU thread (`time.process_time`), so that
other work on the machine does not count. The picture has three rows of moons, of the first seed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from command import run
from scipy.stats import binomtest
from sets import FOLDER

from ffjord_kit import FFJORD, datasets, plots
from ffjord_kit.diagnostics import Allowed, Corrections

STABLE = 0.05
DRAWS = 10_000
SCHEDULE = [("flow_matching", 1500), ("steps", 150)]
FITTED_ROWS = 5000


class Task(NamedTuple):
    """A table (n, d), and the columns that may change."""

    x: np.ndarray
    allow: list[str]


class Found(NamedTuple):
    """What was found for the outliers of one fit."""

    exist: list[bool]
    ratios: list[float]
    stays: float
    share: float
    seconds: float


def main() -> None:
    """Fit, explain, check against the grid, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12, help="outliers of each fit (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of fits of each table (default: %(default)s)")
    parser.add_argument("--only", default=",".join(TASKS), help="tables (default: %(default)s)")
    parser.add_argument("--picture", help="file for a picture of moons")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["table", "columns, allowed", "found, where any exists", "at least, %", "size / grid's, mean and largest",
             "stay within e, least", "failing share of a box, at most", "s a row"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in arguments.only.split(","):
        task = TASKS[name]()
        fits = [fitted(task, seed, arguments.rows, arguments.picture if seed == 0 and name == "moons" else None)
                for seed in range(arguments.seeds)]  # fmt: skip
        print(line(name, task, fits), flush=True)


def fitted(task: Task, seed: int, count: int, picture: str | None) -> Found:
    """Fit a table, explain outliers, and check what is found."""
    model = FFJORD(schedule=SCHEDULE, density="steps", random_state=seed).fit(task.x)
    names = [f"x{i}" for i in range(task.x.shape[1])]
    allowed = Allowed.of(task.x, names, task.allow)
    threshold = float(np.quantile(model.score_samples(task.x), 0.01))
    rows = outliers(model, task, allowed, threshold, count, seed)
    begin = time.process_time()
    found = model.explain(rows, allow=task.allow, stable=STABLE, reference=task.x, threshold=threshold)
    seconds = (time.process_time() - begin) / len(rows)
    sizes = [grid_size(model, row, allowed, threshold) for row in rows] if len(task.allow) == 2 else [None] * len(rows)
    if picture is not None:
        draw(model, found, task, Path(picture))
    return Found(
        [item.found for item, size in zip(found, sizes, strict=True) if size is None or np.isfinite(size)],
        [item.size / size for item, size in zip(found, sizes, strict=True) if size and item.found],
        min(stays(model, found, i, allowed, threshold) for i in range(len(rows)) if found[i].found),
        max(item.certificate.share for item in found if item.found),
        seconds,
    )


def line(name: str, task: Task, fits: list[Found]) -> str:
    """A table's line, over all its fits."""
    exist, ratios = ([each for fit in fits for each in getattr(fit, word)] for word in ("exist", "ratios"))
    least = binomtest(sum(exist), len(exist), alternative="greater").proportion_ci(0.95).low
    ratio = f"{np.mean(ratios):.3f}, {max(ratios):.3f}" if ratios else "no grid"
    columns = f"{task.x.shape[1]}, {len(task.allow)}"
    stay, share = min(fit.stays for fit in fits), max(fit.share for fit in fits)
    seconds = np.mean([fit.seconds for fit in fits])
    return (
        f"| {name} | {columns} | {sum(exist)} of {len(exist)} | {100 * least:.1f} | {ratio} | {100 * stay:.2f} % "
        f"| {100 * share:.2g} % | {seconds:.2f} |"
    )


def outliers(model: FFJORD, task: Task, allowed: Allowed, threshold: float, count: int, seed: int) -> np.ndarray:
    """Rows moved by two to four scales in a random half of the allowed columns, within their range, that fail."""
    rng = np.random.default_rng(1 + seed)
    columns, k = allowed.columns.numpy(), len(allowed.names)
    rows = task.x[rng.permutation(len(task.x))[: 20 * count]].copy()
    move = rng.uniform(2, 4, (len(rows), k)) * rng.choice([-1, 1], (len(rows), k)) * (rng.random((len(rows), k)) < 0.5)
    rows[:, columns] = np.clip(
        rows[:, columns] + move * allowed.scale.numpy(), allowed.lower.numpy(), allowed.upper.numpy()
    )
    return rows[model.score_samples(rows) < threshold][:count]


def grid_size(model: FFJORD, row: np.ndarray, allowed: Allowed, threshold: float) -> float:
    """The least size of a change on the grid whose neighbours within e all pass; infinite where there is none."""
    columns, scale = allowed.columns.numpy(), allowed.scale.numpy()
    step = STABLE / 2
    ends = [(end.numpy() - row[columns]) / scale for end in (allowed.lower, allowed.upper)]
    axes = [
        step * np.arange(np.ceil(min(a, 0) / step), np.floor(max(b, 0) / step) + 1) for a, b in zip(*ends, strict=True)
    ]
    change = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    points = np.repeat(row[None], change[..., 0].size, axis=0)
    points[:, columns] += change.reshape(-1, 2) * scale
    margin = torch.from_numpy(model.score_samples(points) - threshold).reshape(1, 1, *change.shape[:2])
    worst = -torch.nn.functional.max_pool2d(-margin, 5, stride=1, padding=2)[0, 0].numpy()
    return float(np.abs(change).sum(-1)[worst >= 0].min(initial=np.inf))


def stays(model: FFJORD, found: Corrections, place: int, allowed: Allowed, threshold: float) -> float:
    """The share of new draws within e of a corrected row, and within the bounds, that pass."""
    rng, item = np.random.default_rng(99 + place), found[place]
    moved = item.corrected + rng.uniform(-STABLE, STABLE, (DRAWS, len(item.corrected))) * allowed.scale.numpy()
    points = np.repeat(found.rows[[place]], DRAWS, axis=0)
    points[:, allowed.columns.numpy()] = np.clip(moved, *item.ends)
    return float((model.score_samples(points) >= threshold).mean())


def draw(model: FFJORD, found: Corrections, task: Task, path: Path) -> None:
    """Draw three corrected rows of a table in the plane."""
    panels = [
        plots.CorrectedRow(
            f"row {item.row}", model.score_samples, item.original, item.corrected, item.lower, item.upper
        )
        for item in list(found)[:3]
    ]
    plots.save(plots.corrections(panels, found.threshold, ("x0", "x1"), bounds=plots.robust_bounds(task.x, 0.3)), path)


def moons() -> Task:
    """Two moons, both columns."""
    return Task(datasets.load("moons", rows=2000).x, ["x0", "x1"])


def uci(name: str, allow: int) -> Task:
    """A table of the file uci_regression.npz, whose first columns may change."""
    path = Path(os.environ.get(FOLDER, ".")) / "uci_regression.npz"
    if not path.exists():
        raise ValueError(f"{path} is not there: set {FOLDER} to the folder that holds it, or pass --only moons")
    with np.load(path) as file:
        x = file[name].astype(np.float64)
    if name == "protein":
        x = np.delete(x, 1, axis=1)  # nearly a copy of the first column
    rng = np.random.default_rng(0)
    return Task(x[rng.permutation(len(x))[:FITTED_ROWS]], [f"x{i}" for i in range(allow)])


TASKS = {"moons": moons, "power_plant": lambda: uci("power_plant", 2), "protein": lambda: uci("protein", 8)}


if __name__ == "__main__":
    run(main)
