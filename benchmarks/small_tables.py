"""Small tables, 100 to 500 rows: does schedule `auto` overfit? Against a Gaussian and a Gaussian mixture.

    python benchmarks/small_tables.py [--seconds 12] [--seeds 5] [--only wine,iris]

Held-out NLL, nats a row in the units of the data. The mixture's number of components and kind of covariance are chosen
by BIC on the same rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn import datasets as sets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

from ffjord_kit import FFJORD

Table = tuple[np.ndarray, np.ndarray]  # rows to fit to, rows to score
TEST_ROWS = 2000


def _two_gaussians(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d))
    x[:, 0] += 3 * rng.integers(0, 2, n)
    return x


def _clusters(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    centres = np.random.default_rng(1).normal(size=(5, d)) * 4
    return centres[rng.integers(0, 5, n)] + rng.normal(size=(n, d)) * np.linspace(0.5, 1.5, d)


def _student(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.standard_t(4, size=(n, d)) @ np.linalg.cholesky(0.5 * np.eye(d) + 0.5).T


def _banana(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d))
    x[:, 1] = 0.3 * x[:, 1] + x[:, 0] ** 2
    return x


def _skewed(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return np.exp(rng.normal(size=(n, d)) @ np.linalg.cholesky(0.7 * np.eye(d) + 0.3).T * 0.5)


def _drawn(make: Callable[[np.random.Generator, int, int], np.ndarray], n: int, d: int) -> Callable[[int], Table]:
    def table(seed: int) -> Table:
        rng = np.random.default_rng(100 + seed)
        return make(rng, n, d), make(rng, TEST_ROWS, d)

    return table


def _real(load: Callable[..., object], columns: slice = slice(None)) -> Callable[[int], Table]:
    def table(seed: int) -> Table:
        x = load().data[:, columns] + 0.0  # type: ignore[attr-defined]
        x = x / x.std(0) + 0.05 * np.random.default_rng(0).normal(size=x.shape)  # no ties
        return tuple(train_test_split(x, test_size=0.33, random_state=seed))

    return table


TABLES: dict[str, Callable[[int], Table]] = {
    "two gaussians, 200 x 6": _drawn(_two_gaussians, 200, 6),
    "five clusters, 300 x 3": _drawn(_clusters, 300, 3),
    "five clusters, 500 x 10": _drawn(_clusters, 500, 10),
    "student, 200 x 4": _drawn(_student, 200, 4),
    "banana, 150 x 2": _drawn(_banana, 150, 2),
    "banana, 500 x 4": _drawn(_banana, 500, 4),
    "skewed, 300 x 5": _drawn(_skewed, 300, 5),
    "wine, 119 x 10": _real(sets.load_wine, slice(0, 10)),
    "iris, 100 x 4": _real(sets.load_iris),
    "diabetes, 296 x 10": _real(sets.load_diabetes),
}


def main() -> None:
    """Fit, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="CPU seconds of a fit (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="fits of each table (default: %(default)s)")
    parser.add_argument("--only", default="", help="parts of names, comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| table | gaussian | mixture | auto | auto less better, mean and worst | CPU s |\n|---|---|---|---|---|---|")
    for name, make in TABLES.items():
        if any(part in name for part in options.only.split(",")):
            print(f"| {name} | {_compared(make, options.seeds, options.seconds)} |", flush=True)


def _compared(make: Callable[[int], Table], seeds: int, seconds: float) -> str:
    rows = []
    for seed in range(seeds):
        x, test = make(seed)
        begun = time.process_time()
        model = FFJORD(max_seconds=seconds, random_state=seed, verbose=False).fit(x)
        spent = time.process_time() - begun
        rows.append((-_mixture(x, 1, ("full",)).score(test), -_mixture(x, 10).score(test), -model.score(test), spent))
    gaussian, mixture, auto, spent = np.array(rows).T
    excess = auto - np.minimum(gaussian, mixture)
    means = f"{gaussian.mean():.3f} | {mixture.mean():.3f} | {auto.mean():.3f}"
    return f"{means} | {excess.mean():+.3f}, {excess.max():+.3f} | {spent.mean():.1f}"


def _mixture(x: np.ndarray, most: int, kinds: tuple[str, ...] = ("full", "diag")) -> GaussianMixture:
    fits = [
        GaussianMixture(k, covariance_type=kind, random_state=0, n_init=3).fit(x)
        for k in range(1, most + 1)
        for kind in kinds
    ]
    return min(fits, key=lambda fit: fit.bic(x))


if __name__ == "__main__":
    main()
