"""The data sets of the benchmarks, each already split; no seed of a method moves a row.

Toys are drawn from densities with a known logarithm and stay in their own units. Tables are standardised by the rows
that are not for testing. Those of FFJORD_KIT_DATA lose the columns on which a density would run to infinity: those
whose commonest value covers more than TIES of the rows, and the later of each pair correlated above CORRELATED.
Patches are those of the MAF paper (Papamakarios et al. 2017): 8x8 grey, + U(0, 1), / 256, minus the patch's mean,
without the last pixel. Simulations are parameters, of which the density is wanted, and observations, which are given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffjord_kit import datasets

FOLDER = "FFJORD_KIT_DATA"
TOYS = ("moons", "circles", "rings", "8gaussians", "pinwheel", "spirals", "swissroll", "checkerboard", "image")
TOY_ROWS, TOY_TEST_ROWS = 40_000, 10_000
MOST_VALIDATION_ROWS, MOST_TEST_ROWS = 2_000, 2_000
SIMULATIONS_ROWS, OBSERVATIONS = 10_000, 8
TIES, CORRELATED = 0.05, 0.98
PATCH, PATCH_ROWS, PATCH_TEST_ROWS = 8, 100_000, 500
SEED = 0


class Split(NamedTuple):
    """Rows to train on, to choose by, and to judge by, each (n, d), of which the last `contexts` columns are given.

    `log_prob` is the truth of a toy; `shift` is what takes the log-density of a row to the data's usual units.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    shift: float = 0.0
    contexts: int = 0

    def parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The columns of rows (n, d) that have a density, and those that it is given; None without any."""
        count = rows.shape[1] - self.contexts
        return rows[:, :count], rows[:, count:] if self.contexts else None


def load(name: str) -> Split:
    """The set of that name. Raises ValueError for an unknown one, or where its file is not to be found."""
    if name not in SETS:
        raise ValueError(f"no set {name!r}: the sets are {', '.join(SETS)}")
    return SETS[name]()


def toy(name: str) -> Split:
    """A toy in its own units; the last tenth of the training rows, at most 2,000, is for validation."""
    train = datasets.load(f"{name}:train", rows=TOY_ROWS, seed=SEED)
    test = datasets.load(f"{name}:test", rows=TOY_TEST_ROWS, seed=SEED).x
    return Split(*_without_tail(train.x), test, train.log_prob)


def digits() -> Split:
    """The 1,797 digits with uniform noise, 64 columns, split 80 to 20."""
    rows = datasets.load("digits:train", seed=SEED).x
    return _standardized(*_without_tail(rows), datasets.load("digits:test", seed=SEED).x)


def regression(name: str) -> Split:
    """A table of the UCI repository, inputs and target together, split 80/10/10."""
    x = suited(_arrays("uci_regression.npz")[name].astype(np.float64))
    x = x[np.random.default_rng(SEED).permutation(len(x))]
    tenth = len(x) // 10
    return _standardized(*_without_tail(x[tenth:], count=tenth), x[:tenth][:MOST_TEST_ROWS])


def patches() -> Split:
    """Patches of the BSDS300 images, 63 columns: those for testing come from the test images."""
    arrays, rng = _arrays("bsds300_gray.npz"), np.random.default_rng(SEED)
    cut = partial(_cut, rng=rng)
    rows = cut(arrays["train"], arrays["train_ids"], PATCH_ROWS + MOST_VALIDATION_ROWS)
    test = cut(arrays["test"], arrays["test_ids"], PATCH_TEST_ROWS)
    return _standardized(*_without_tail(rows, count=MOST_VALIDATION_ROWS), test)


def simulations(simulate: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]) -> Split:
    """Parameters and observations, standardised; the last tenth of the training rows is for validation."""
    rng = np.random.default_rng(SEED)
    rows, test = (np.concatenate(simulate(rng, n), axis=1) for n in (SIMULATIONS_ROWS, MOST_TEST_ROWS))
    return _standardized(*_without_tail(rows), test, contexts=OBSERVATIONS)


def quadratic(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Five normal parameters (n, 5), and eight noisy quadratic functions of them (n, 8)."""
    weights = np.random.default_rng(1)
    linear, curved = weights.normal(size=(8, 5)) / math.sqrt(5), weights.normal(size=(8, 5, 5)) / 10
    theta = rng.normal(size=(n, 5))
    mean = theta @ linear.T + np.einsum("kij,ni,nj->nk", curved, theta, theta)
    return theta, mean + 0.3 * rng.normal(size=(n, OBSERVATIONS))


def slcp(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Simple likelihood, complex posterior: mean and covariance (n, 5) of four points in the plane (n, 8).

    Papamakarios, Sterratt and Murray 2019, https://arxiv.org/abs/1805.07226.
    """
    theta, noise = rng.uniform(-3, 3, (n, 5)), rng.normal(size=(n, 4, 2))
    first, second, correlation = theta[:, 2, None] ** 2, theta[:, 3, None] ** 2, np.tanh(theta[:, 4, None])
    mixed = correlation * noise[..., 0] + np.sqrt(1 - correlation**2) * noise[..., 1]
    points = np.stack([theta[:, 0, None] + first * noise[..., 0], theta[:, 1, None] + second * mixed], axis=-1)
    return theta, points.reshape(n, OBSERVATIONS)


def redshifts() -> Split:
    """The redshift of simulated galaxies, given the magnitude i and five colours; they are downloaded once."""
    train, test = (
        datasets.load("galaxies:train", rows=SIMULATIONS_ROWS),
        datasets.load("galaxies:test", rows=MOST_TEST_ROWS),
    )
    rows, new = (np.column_stack([x[:, 0], x[:, 4], -np.diff(x[:, 1:], axis=1)]) for x in (train.x, test.x))
    return _standardized(*_without_tail(rows), new, contexts=rows.shape[1] - 1)


def suited(x: np.ndarray) -> np.ndarray:
    """The columns of x (n, d) on which a density is bounded."""
    kept = [column for column in range(x.shape[1]) if _commonest(x[:, column]) <= TIES]
    correlation = np.abs(np.corrcoef(x[:, kept], rowvar=False))
    chosen: list[int] = []
    for i in range(len(kept)):
        if all(correlation[i, j] <= CORRELATED for j in chosen):
            chosen.append(i)
    return x[:, [kept[i] for i in chosen]]


def _commonest(values: np.ndarray) -> float:
    return np.unique(values, return_counts=True)[1].max() / len(values)


def _cut(images: np.ndarray, ids: np.ndarray, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Patches (count, 63) from random places of images (n, height, width); one with a negative id is stored lying."""
    which = rng.integers(len(images), size=count)
    top, left = (rng.integers(side - PATCH + 1, size=count) for side in images.shape[1:])
    within = np.arange(PATCH)
    cut = images[which[:, None, None], (top[:, None] + within)[:, :, None], (left[:, None] + within)[:, None, :]]
    cut = np.where((ids[which] < 0)[:, None, None], cut.swapaxes(1, 2), cut)
    rows = (cut.reshape(count, -1) + rng.random((count, PATCH**2))) / 256
    return (rows - rows.mean(1, keepdims=True))[:, :-1]


def _without_tail(rows: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    count = min(len(rows) // 10 if count is None else count, MOST_VALIDATION_ROWS)
    return rows[:-count], rows[-count:]


def _standardized(train: np.ndarray, validation: np.ndarray, test: np.ndarray, contexts: int = 0) -> Split:
    rows = np.concatenate([train, validation])
    mean, scale = rows.mean(0), rows.std(0)
    parts = ((part - mean) / scale for part in (train, validation, test))
    return Split(*parts, shift=-float(np.log(scale[: rows.shape[1] - contexts]).sum()), contexts=contexts)


def _arrays(name: str) -> dict[str, np.ndarray]:
    if FOLDER not in os.environ:
        raise ValueError(f"set {FOLDER} to the folder that holds {name}, or leave out the sets that need it (--sets)")
    path = Path(os.environ[FOLDER]) / name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {FOLDER} must name the folder that holds {name}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


SETS: dict[str, Callable[[], Split]] = {
    **{name: partial(toy, name) for name in TOYS},
    "protein": partial(regression, "protein"),
    "kin8nm": partial(regression, "kin8nm"),
    "power_plant": partial(regression, "power_plant"),
    "wine_red": partial(regression, "wine_red"),
    "digits": digits,
    "bsds300": patches,
    "quadratic": partial(simulations, quadratic),
    "slcp": partial(simulations, slcp),
    "redshift": redshifts,
}
SIMULATIONS = ("quadratic", "slcp", "redshift")
TABLES = tuple(name for name in SETS if name not in (*TOYS, *SIMULATIONS))
