"""Rows with known measurement errors: the divergence of the density of true values from the truth.

    python benchmarks/deconvolution.py [--sets moons,normals] [--only known] [--budgets 60] [--seeds 3] [--errors 0.3]

Each of 10,000 rows has errors of its own, of deviations between a half and three halves of `--errors` times a column's.
Three fits with the same seconds: to the observed rows, which ignores the errors; to the same rows with `noise_std`, as
they are known; and to the true values, as if there were none. KL in nats, with its standard error, by 5,000 new true
values. One thread, CPU seconds.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import numpy as np
from command import SEEDS, environment, options, run
from results import Row, Store
from scipy.special import logsumexp

from ffjord_kit import FFJORD, datasets
from ffjord_kit.metrics import mean_and_standard_error

BENCHMARK = "deconvolution"
SETS = ("normals", "moons", "8gaussians", "pinwheel")
METHODS = ("ignored", "known", "none")  # errors
ROWS, TEST_ROWS = 10_000, 5_000
CENTRES, DEVIATIONS = np.array([[-1.0, 0.0], [1.5, 0.5]]), np.array([0.7, 0.3])

Truth = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]


def truth(name: str, seed: int) -> Truth:
    """Return true values to fit and to judge by, and their log-density."""
    if name == "normals":
        rng = np.random.default_rng(seed)
        return normals(rng, ROWS), normals(rng, TEST_ROWS), normals_log_prob
    train = datasets.load(f"{name}:train", rows=ROWS, seed=seed)
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


def measure(name: str, method: str, budget: float, seed: int, device: str, errors: float) -> Row:
    """Fit, and return the divergence from the truth."""
    x, test, log_prob = truth(name, seed)
    rng = np.random.default_rng((seed, 1))
    noise = errors * x.std(0) * rng.uniform(0.5, 1.5, x.shape)
    rows = x if method == "none" else x + noise * rng.normal(size=x.shape)
    beside = {"noise_std": noise} if method == "known" else {}
    model = FFJORD(max_seconds=budget, random_state=seed, device=device).fit(rows, **beside)
    kl, error = mean_and_standard_error(log_prob(test) - model.score_samples(test))
    return {"kl": round(kl, 4), "standard_error": round(error, 4), "density": model.model_.density}


def main() -> None:
    """Run what the options ask for, and print the table."""
    extra = {
        "--seeds": SEEDS,
        "--errors": {"type": float, "default": 0.3, "help": "in deviations of a column (default: %(default)s)"},
    }
    given = options(__doc__, sets=SETS, methods=METHODS, budgets=(60.0,), extra=extra)
    warnings.simplefilter("ignore")
    store, seeds = Store(given.json), range(given.seed, given.seed + given.seeds)
    print("| set | seed | seconds | errors | KL, nats |", "|---|---|---|---|---|", sep="\n", flush=True)
    for name, seed, budget, method in itertools.product(given.sets, seeds, given.budgets, given.only):
        what = {"set": name, "method": method, "budget": budget, "seed": seed, "device": given.device}
        key = {"benchmark": BENCHMARK, **what, "setting": f"errors {given.errors:g}"}
        if given.again or not store.has(**key):
            row = measure(name, method, budget, seed, given.device, given.errors)
            store.add({**key, **row, **environment()})
            cell = f"{row['kl']:.4f} ± {row['standard_error']:.4f}"
            print(f"| {name} | {seed} | {budget:g} | {method} | {cell} |", flush=True)


if __name__ == "__main__":
    run(main)
