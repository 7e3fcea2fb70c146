"""KL to the truth, nats, and the integral of the learned density, for columns of each type of known densities.

    python benchmarks/column_types.py [--sets torus,poisson] [--seconds 60] [--rows 40000] [--seed 0]

One thread, the defaults, CPU seconds. The KL is by quadrature on a circle and for whole numbers, whose probabilities
are integrals over steps of one, and over 10,000 new rows elsewhere. Integrals are sums over whole turns.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from command import run
from scipy.special import logsumexp
from scipy.stats import norm, poisson, vonmises

from ffjord_kit import FFJORD, Circle, Integer, Sphere
from ffjord_kit.columns.types import ColumnType

TEST_ROWS = 10_000
DEGREE = math.pi / 180


class Truth(NamedTuple):
    """Columns with their types, draws, the log-density in their units, and points with weights for sums over all."""

    columns: dict[tuple[str, ...] | str, ColumnType]
    draw: Callable[[int, np.random.Generator], np.ndarray]
    log_prob: Callable[[np.ndarray], np.ndarray]
    nodes: np.ndarray
    weights: np.ndarray
    kl_by_nodes: bool

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [name for own in self.columns for name in ((own,) if isinstance(own, str) else own)]


def circle(draw: Callable[..., np.ndarray], log_prob: Callable[[np.ndarray], np.ndarray]) -> Truth:
    """A density of one angle in degrees, given in radians."""
    nodes = (np.arange(3600) + 0.5)[:, None] / 10
    return Truth(
        {"phi": Circle(360)}, lambda n, rng: np.degrees(draw(n, rng))[:, None] % 360,
        lambda x: log_prob(x[:, 0] * DEGREE) + math.log(DEGREE), nodes, np.full(len(nodes), 0.1), True,
    )  # fmt: skip


def von_mises(kappa: float, mean: float) -> Truth:
    """A von Mises distribution."""
    return circle(lambda n, rng: rng.vonmises(mean, kappa, n), lambda a: vonmises.logpdf(a, kappa, loc=mean))


def wrapped_normals() -> Truth:
    """A mixture of three wrapped normal distributions, one across the end of the range, one narrow."""
    weights, means, spreads = (np.array(part) for part in ((0.5, 0.3, 0.2), (0.1, 2.1, 4.4), (0.3, 0.8, 0.1)))

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        which = rng.choice(3, n, p=weights)
        return rng.normal(means[which], spreads[which])

    def log_prob(a: np.ndarray) -> np.ndarray:
        turns = 2 * math.pi * np.arange(-4, 5)
        parts = norm.logpdf(a[:, None, None] + turns, means[:, None], spreads[:, None]) + np.log(weights)[:, None]
        return logsumexp(parts, axis=(1, 2))

    return circle(draw, log_prob)


def torus() -> Truth:
    """Two angles in degrees, the second one near the first."""

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        a = rng.vonmises(math.pi, 1.0, n)
        return np.degrees(np.stack([a, a + rng.vonmises(0.0, 8.0, n)], axis=1)) % 360

    def log_prob(x: np.ndarray) -> np.ndarray:
        a, b = x.T * DEGREE
        return vonmises.logpdf(a, 1.0, loc=math.pi) + vonmises.logpdf(b - a, 8.0) + 2 * math.log(DEGREE)

    axis = (np.arange(180) + 0.5) * 2
    nodes = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return Truth({"phi": Circle(360), "psi": Circle(360)}, draw, log_prob, nodes, np.full(len(nodes), 4.0), False)


def von_mises_fisher(kappa: float) -> Truth:
    """A von Mises-Fisher distribution about longitude 350 and latitude 60 degrees."""
    kind = Sphere("deg", 0)
    mean = kind.to_points(np.array([[350.0, 60.0]]))[0]
    frame = np.linalg.svd(mean[None])[2][1:]

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        along = 1 + np.log(rng.uniform(size=n) * (1 - math.exp(-2 * kappa)) + math.exp(-2 * kappa)) / kappa
        turn, across = rng.uniform(0, 2 * math.pi, n), np.sqrt(1 - along**2)
        side = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ frame
        return kind.to_angles(along[:, None] * mean + across[:, None] * side)

    def log_prob(x: np.ndarray) -> np.ndarray:
        constant = math.log(kappa / (2 * math.pi * -math.expm1(-2 * kappa)))
        return constant + kappa * (kind.to_points(x) @ mean - 1)

    height, weight = np.polynomial.legendre.leggauss(100)
    longitude, latitude = (np.arange(200) + 0.5) * 1.8, np.degrees(np.arcsin(height))
    nodes = np.stack(np.meshgrid(longitude, latitude, indexing="ij"), axis=-1).reshape(-1, 2)
    return Truth({("ra", "dec"): kind}, draw, log_prob, nodes, np.tile(weight, 200) * 2 * math.pi / 200, False)


def counts(mean: float) -> Truth:
    """A Poisson distribution; its nodes are places within the steps around each number."""
    places, weights = np.polynomial.legendre.leggauss(8)
    numbers = np.arange(20.0)
    nodes = (numbers[:, None] + places / 2).reshape(-1, 1)
    return Truth(
        {"kids": Integer()}, lambda n, rng: rng.poisson(mean, n).astype(float)[:, None],
        lambda x: poisson.logpmf(np.round(x[:, 0]), mean), nodes, np.tile(weights / 2, len(numbers)), True,
    )  # fmt: skip


SETS: dict[str, Callable[[], Truth]] = {
    "von_mises_0.5": lambda: von_mises(0.5, 0.3),
    "von_mises_20": lambda: von_mises(20.0, -0.1),
    "wrapped_normals": wrapped_normals,
    "torus": torus,
    "von_mises_fisher_10": lambda: von_mises_fisher(10.0),
    "poisson_3": lambda: counts(3.0),
}


def measure(name: str, seconds: float, rows: int, seed: int) -> str:
    """Fit one set, and return the line of the table."""
    truth, rng = SETS[name](), np.random.default_rng(1)
    train, test = truth.draw(rows, rng), truth.draw(TEST_ROWS, rng)
    begun = time.process_time()
    model = FFJORD(columns=truth.columns, max_seconds=seconds, random_state=seed).fit(train, columns=truth.names)
    spent = time.process_time() - begun
    density = np.exp(model.score_samples(truth.nodes))
    integral, error = float((density * truth.weights).sum()), math.nan
    if truth.kl_by_nodes:
        kl = divergence(truth, density)
    else:
        gaps = truth.log_prob(test) - model.score_samples(test)
        kl, error = float(gaps.mean()), float(gaps.std() / math.sqrt(len(gaps)))
    shown = f"{kl:.4f}" if math.isnan(error) else f"{kl:.4f} ± {error:.4f}"
    return f"| {name} | {shown} | {integral:.5f} | {model.model_.density} | {spent:.0f} |"


def divergence(truth: Truth, density: np.ndarray) -> float:
    """Return the KL by quadrature; of whole numbers that of their probabilities."""
    log_p = truth.log_prob(truth.nodes)
    if "kids" in truth.columns:
        steps = (density * truth.weights).reshape(-1, 8).sum(1)
        log_p = log_p.reshape(-1, 8)[:, 0]
        return float((np.exp(log_p) * (log_p - np.log(steps))).sum())
    return float((np.exp(log_p) * (log_p - np.log(density)) * truth.weights).sum())


def main() -> None:
    """Run what the options ask for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="sets (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=40_000, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the fit; the data do not change")
    given = parser.parse_args()
    unknown = [name for name in given.sets.split(",") if name not in SETS]
    if unknown:
        raise ValueError(f"no set {unknown[0]!r}: the sets are {', '.join(SETS)}")
    torch.set_num_threads(1)
    print("| set | KL(truth ‖ model) | integral | density | CPU s |", "|---|---|---|---|---|", sep="\n", flush=True)
    for name in given.sets.split(","):
        print(measure(name, given.seconds, given.rows, given.seed), flush=True)


if __name__ == "__main__":
    run(main)
