"""The frequency principle: which sines and which scales are learned first, and what helps with the late ones.

    python benchmarks/frequencies.py [--seeds 5] [--parts sines,density] [--picture docs/frequencies.png]

Sines: a network of two hidden layers of 64 tanh learns the sum of sines of 1, 3 and 5 periods from 128 points, by Adam
at a rate of 1e-3 on all points. The table gives the steps from which on the error of each sine stays below a tenth: the
median over seeds, the least and the most; ">" where it took longer than all steps.

Density: the checkerboard by flow matching in counted steps, a residual network of three layers of 64. The spectrum of
8,000 samples is compared with that of 20,000 rows of the truth. The table gives the root mean square of the relative
errors of the visible frequencies in two bands, mean and standard error over seeds; the picture shows seed 0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit import FFJORD, datasets, plots
from ffjord_kit.diagnostics.spectrum import density_spectrum, mode_errors, steps_to_learn
from ffjord_kit.nn.multiscale import MultiscaleLinear

PERIODS, POINTS, WIDTH = (1, 3, 5), 128, 64
SINE_STEPS, EVERY = 5_000, 20
BANDS = {"below 3": (0.0, 3.0), "3 to 12": (3.0, 12.0)}  # radians per standard deviation
STEPS, ROWS, TRUTH = 400, 5_000, 20_000
FITS = {
    "plain": {},
    "plain, 3 times the steps": {"steps": 3 * STEPS},
    "fourier_features=2": {"fourier_features": 2},
    "input_scales=3": {"input_scales": 3},
}


class Features(nn.Module):
    """Points with sines and cosines of two octaves of them."""

    def forward(self, x: Tensor) -> Tensor:
        angles = x * torch.tensor([math.pi, 2 * math.pi])
        return torch.cat([x, angles.sin(), angles.cos()], dim=1)


FIRST_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Linear(1, WIDTH),
    "Fourier features, 2 octaves": lambda: nn.Sequential(Features(), nn.Linear(5, WIDTH)),
    "3 input scales": lambda: MultiscaleLinear(1, WIDTH, 3),
}


def main() -> None:
    """Run the parts that are asked for, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--parts", default="sines,density", help="parts to run (default: %(default)s)")
    parser.add_argument("--picture", default="docs/frequencies.png", help="file to draw to (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = given.parts.split(",")
    if "sines" in parts:
        sines(given.seeds)
    if "density" in parts:
        densities(given.seeds, Path(given.picture))


def sines(seeds: int) -> None:
    """Print the steps that each sine takes."""
    print("| first layer | " + " | ".join(f"{p} period{'s' * (p > 1)}" for p in PERIODS) + " |")
    print("|---|" + "---|" * len(PERIODS))
    for name, make in FIRST_LAYERS.items():
        times = torch.stack([learned_at(make, seed) for seed in range(seeds)])
        print(f"| {name} | " + " | ".join(map(spread, times.T)) + " |", flush=True)


def learned_at(make: Callable[[], nn.Module], seed: int) -> Tensor:
    """The step from which on each sine is learned, by one seed."""
    torch.manual_seed(seed)
    net = nn.Sequential(make(), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    x = torch.arange(POINTS)[:, None] / POINTS * 2 - 1
    target = sum((math.pi * p * x).sin() for p in PERIODS)
    optimizer, found = torch.optim.Adam(net.parameters(), 1e-3), []
    for step in range(1, SINE_STEPS + 1):
        predicted = net(x)
        optimizer.zero_grad()
        (predicted - target).square().mean().backward()
        optimizer.step()
        if step % EVERY == 0:
            found.append(mode_errors(predicted.detach()[:, 0], target[:, 0], PERIODS))
    return steps_to_learn(range(EVERY, SINE_STEPS + 1, EVERY), torch.stack(found))


def spread(times: Tensor) -> str:
    """The median of steps, and their ends."""
    low, middle, high = (float(v) for v in (times.min(), times.median(), times.max()))
    return f"{count(middle)} ({count(low)} to {count(high)})"


def count(steps: float) -> str:
    """A number of steps, or that they were too few."""
    return f"{steps:,.0f}" if math.isfinite(steps) else f"> {SINE_STEPS:,}"


def densities(seeds: int, picture: Path) -> None:
    """Print how well each fit has learned two bands of the spectrum, and draw them over training."""
    truth = torch.as_tensor(datasets.load("checkerboard", rows=TRUTH, seed=100).x)
    print("| fit | " + " | ".join(f"error, {band}" for band in BANDS) + " | validation NLL |")
    print("|---|" + "---|" * (len(BANDS) + 1))
    drawn = {}
    for name, fields in FITS.items():
        rows = [measured(dict(fields), seed, truth) for seed in range(seeds)]
        drawn[name] = plots.watched_spectrum(rows[0][1])
        values = np.array([row for row, _ in rows])
        print(f"| {name} | " + " | ".join(map(with_error, values.T)) + " |", flush=True)
    plots.save(plots.spectrum_errors(drawn), picture)


def with_error(values: np.ndarray) -> str:
    """The mean over seeds, and its standard error where there are several."""
    error = f" ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"


def measured(fields: dict, seed: int, truth: Tensor) -> tuple[list[float], list[dict]]:
    """The errors of the bands and the validation NLL of a fit, and its log."""
    x, steps = datasets.load("checkerboard", rows=ROWS, seed=seed).x, fields.pop("steps", STEPS)
    options = {"scaling": "standardize", "time_density": "likelihood", "base": "normal", "fourier_features": 0}
    model = FFJORD(
        schedule=[("flow_matching", steps)], validate_every=max(1, steps // 8), watch="spectrum", random_state=seed,
        **{"hidden": (64, 64, 64), **options, **fields},
    ).fit(x)  # fmt: skip
    spectrum = density_spectrum(model.flow_, truth, seed=seed)
    k, errors = spectrum.frequencies, spectrum.relative_error
    bands = [errors[spectrum.visible & (k >= low) & (k < high)] for low, high in BANDS.values()]
    return [*(float(band.square().mean().sqrt()) for band in bands), model.history_.best_nll], model.history_.records


if __name__ == "__main__":
    main()
