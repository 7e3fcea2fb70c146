"""Rows with known measurement errors: the divergence of the density of true values from the truth.

    python benchmarks/deconvolution.py [--sets moons,normals] [--rows 10000] [--seconds 60] [--seeds 1] [--errors 0.3]

Each row has errors of its own, of deviations between a half and three halves of `--errors` times a column's deviation.
Three fits with the same seconds: to the observed rows, which ignores the errors; to the same rows with `noise_std`; and
to the true values, which nobody has. KL in nats, with its standard error, by 5,000 new true values. One thread, CPU
seconds.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from command import run
from scipy.special import logsumexp

from ffjord_kit import FFJORD, datasets
from ffjord_kit.metrics import mean_and_standard_error

SETS = ("normals", "moons", "8gaussians", "pinwheel")
TEST_ROWS = 5_000
CENTRES, DEVIATIONS = np.array([[-1.0, 0.0], [1.5, 0.5]]), np.array([0.7, 0.3])

Truth = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]


def truth(name: str, rows: int, seed: int) -> Truth:
    """Return true values to fit and to judge by, and their log-density."""
    if name == "normals":
        rng = np.random.default_rng(seed)
        return normals(rng, rows), normals(rng, TEST_ROWS), normals_log_prob
    train = datasets.load(f"{name}:train", rows=rows, seed=seed)
    if train.log_prob is None:
        raise ValueError(f"{name} has no known density")
    return train.x, datasets.load(f"{name}:test", rows=TEST_ROWS, seed=seed).x, train.log_prob


def normals(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Draw from two normal components of unequal widths."""
    which = rng.integers(2, size=rows)
    return CENTRES[which] + DEVIATIONS[which, None] * rng.normal(size=(rows, 2))


def normals_log_prob(x: np.ndarray) -> np.ndarray:
    """Return the log-density of `normals`."""
    squares = ((x[:, None] - CENTRES) ** 2).sum(2) / DEVIATIONS**2
    return logsumexp(-0.5 * squares - np.log(4 * np.pi * DEVIATIONS**2), axis=1)


def measure(name: str, given: argparse.Namespace, seed: int) -> str:
    """Return a line of the table."""
    x, test, log_prob = truth(name, given.rows, seed)
    rng = np.random.default_rng((seed, 1))
    noise = given.errors * x.std(0) * rng.uniform(0.5, 1.5, x.shape)
    observed = x + noise * rng.normal(size=x.shape)
    cells = []
    for rows, beside in ((observed, {}), (observed, {"noise_std": noise}), (x, {})):
        model = FFJORD(max_seconds=given.seconds, random_state=seed).fit(rows, **beside)
        mean, error = mean_and_standard_error(log_prob(test) - model.score_samples(test))
        cells.append(f"{mean:.4f} ± {error:.4f}")
    return f"| {name} | {seed} | {' | '.join(cells)} |"


def main() -> None:
    """Run what the options ask for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="sets (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=10_000, help="to fit (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each fit (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--errors", type=float, default=0.3, help="in deviations of a column (default: %(default)s)")
    given = parser.parse_args()
    unknown = [name for name in given.sets.split(",") if name not in SETS]
    if unknown:
        raise ValueError(f"no set {unknown[0]!r}: the sets are {', '.join(SETS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    head = "| set | seed | errors ignored | errors known | true values fitted |"
    print(head, "|---|---|---|---|---|", sep="\n", flush=True)
    for name in given.sets.split(","):
        for seed in range(given.seeds):
            print(measure(name, given, seed), flush=True)


if __name__ == "__main__":
    run(main)
