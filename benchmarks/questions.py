"""Any question of one model: how well conditionals, marginals and missing cells are learned, and what that costs.

    python benchmarks/questions.py [--only mixture,missing,imputation,price] [--columns 3,5] [--seconds 60] [--seed 0]

Mixtures of three normals with a known density, 20,000 rows, cells missing completely at random; KL divergences in nats
over new rows, by the density that reports. The price is the held-out NLL of `subsets=True` against a plain fit, on toys
and tables. One thread, CPU seconds of training with all that belongs to it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sets
import torch
from command import run

from ffjord_kit import FFJORD

PARTS = ("mixture", "missing", "imputation", "price")
PRICED = ("moons", "checkerboard", "power_plant", "wine_red")
ROWS, TEST_ROWS, MISSING, MOST_QUESTIONS = 20_000, 2_000, 0.3, 10
IMPUTED_ROWS, DRAWS = 200, 200
BOUND, RATIO = 0.03, 1.3  # nats of a conditional on average; KL with missing cells over that without


@dataclass(frozen=True)
class Mixture:
    """A mixture of normals with means (k, d) and covariances (k, d, d), all equally likely."""

    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def drawn(cls, columns: int, seed: int = 0) -> Mixture:
        """Three components of which no two columns are independent."""
        rng = np.random.default_rng(seed)
        factors = 0.45 * rng.normal(size=(3, columns, columns))
        return cls(1.5 * rng.normal(size=(3, columns)), factors @ factors.transpose(0, 2, 1) + 0.15 * np.eye(columns))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n, d)."""
        component, roots = rng.integers(len(self.means), size=n), np.linalg.cholesky(self.covariances)
        noise = rng.normal(size=(n, self.means.shape[1]))
        return self.means[component] + np.einsum("nij,nj->ni", roots[component], noise)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-densities (n,) of rows (n, d)."""
        return np.logaddexp.reduce(self._joint(x), axis=1)

    def of(self, columns: list[int]) -> Mixture:
        """The marginal of some columns."""
        return Mixture(self.means[:, columns], self.covariances[:, columns][:, :, columns])

    def conditional(self, x: np.ndarray, asked: list[int], given: list[int]) -> np.ndarray:
        """Log-densities (n,) of the columns that are asked for, given others."""
        both = [*given, *asked]
        below = self.of(given).log_prob(x[:, given]) if given else 0.0
        return self.of(both).log_prob(x[:, both]) - below

    def moments(self, row: np.ndarray, given: list[int], asked: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of columns, given others of a row (d,)."""
        weights = np.exp(self.of(given)._joint(row[None, given])[0])
        weights, means, squares = weights / weights.sum(), [], []
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            gain = covariance[np.ix_(asked, given)] @ np.linalg.inv(covariance[np.ix_(given, given)])
            own = mean[asked] + gain @ (row[given] - mean[given])
            left = covariance[np.ix_(asked, asked)] - gain @ covariance[np.ix_(given, asked)]
            means.append(own)
            squares.append(np.diag(left) + own**2)
        mean = weights @ np.array(means)
        return mean, np.sqrt(weights @ np.array(squares) - mean**2)

    def _joint(self, x: np.ndarray) -> np.ndarray:
        """log of weight times density of each component, (n, k)."""
        roots = np.linalg.cholesky(self.covariances)
        standard = [np.linalg.solve(root, (x - mean).T) for root, mean in zip(roots, self.means, strict=True)]
        logs = [-0.5 * (z**2).sum(0) - np.log(np.diag(root)).sum() for z, root in zip(standard, roots, strict=True)]
        return np.stack(logs, 1) - np.log(len(self.means)) - 0.5 * x.shape[1] * np.log(2 * np.pi)


@dataclass(frozen=True)
class Fits:
    """A mixture, new rows of it, and fits to complete rows and to rows with missing cells."""

    mixture: Mixture
    test: np.ndarray
    complete: FFJORD
    seconds: float
    seed: int
    x: np.ndarray

    @classmethod
    def made(cls, columns: int, seconds: float, seed: int) -> Fits:
        """Draw rows, and fit the complete ones."""
        mixture, rng = Mixture.drawn(columns), np.random.default_rng(1)
        x, test = mixture.sample(ROWS, rng), mixture.sample(TEST_ROWS, rng)
        return cls(mixture, test, fitted(x, seconds, seed, subsets=True), seconds, seed, x)

    def kl(self, model: FFJORD, asked: list[int], given: list[int]) -> float:
        """KL divergence of a question, nats, a mean over rows; not a number for failed solves."""
        return float(self._excess(model, asked, given).mean())

    def _excess(self, model: FFJORD, asked: list[int], given: list[int]) -> np.ndarray:
        question = model.given({f"x{i}": self.test[:, i] for i in given}) if given else model
        log_prob = question.marginal([f"x{i}" for i in asked]).log_prob(self.test[:, asked])
        return self.mixture.conditional(self.test, asked, given) - log_prob


def mixture(fits: Fits) -> Iterator[str]:
    """Conditionals, marginals, and how far they are from consistent."""
    model, columns = fits.complete, list(range(fits.test.shape[1]))
    proper = [list(part) for size in columns[1:] for part in itertools.combinations(columns, size)]
    chosen = [proper[i] for i in np.random.default_rng(0).permutation(len(proper))[:MOST_QUESTIONS]]
    yield f"joint: KL {fits.kl(model, columns, []):.4f}; density of {model.model_.density}"
    conditionals = [fits.kl(model, [i for i in columns if i not in given], given) for given in chosen]
    yield (
        f"conditionals of {len(chosen)} questions: KL {np.mean(conditionals):.4f} on average, largest "
        f"{max(conditionals):.4f} (wanted: at most {BOUND} on average)"
    )
    marginals = [fits.kl(model, asked, []) for asked in chosen]
    yield f"marginals of {len(chosen)} questions: KL {np.mean(marginals):.4f} on average, largest {max(marginals):.4f}"
    gaps = []
    for given in chosen:
        others = [f"x{i}" for i in columns if i not in given]
        first = model.marginal([f"x{i}" for i in given]).log_prob(fits.test[:, given])
        rest = model.given({f"x{i}": fits.test[:, i] for i in given}).marginal(others)
        gaps.append(first + rest.log_prob(fits.test[:, [int(name[1:]) for name in others]]))
    gap = np.array(gaps) - model.score_samples(fits.test)
    yield f"log p(a) + log p(b | a) - log p(a, b): mean {gap.mean():+.4f}, mean size {np.abs(gap).mean():.4f}"


def missing(fits: Fits) -> Iterator[str]:
    """The cost of missing cells."""
    x, rng = fits.x.copy(), np.random.default_rng(2)
    x[rng.random(x.shape) < MISSING] = np.nan
    x = x[~np.isnan(x).all(1)]
    columns = list(range(x.shape[1]))
    model = fitted(x, fits.seconds, fits.seed, subsets=True)
    with_all, without = fits.kl(fits.complete, columns, []), fits.kl(model, columns, [])
    yield (
        f"{MISSING:.0%} of the cells missing: KL {without:.4f}, with all cells {with_all:.4f}, ratio "
        f"{without / with_all:.2f} (wanted: at most {RATIO})"
    )


def imputation(fits: Fits) -> Iterator[str]:
    """Mean and spread of draws for missing cells."""
    rows = fits.test[:IMPUTED_ROWS].copy()
    hidden = np.random.default_rng(3).random(rows.shape) < MISSING
    hidden[hidden.all(1), 0] = False
    rows[hidden] = np.nan
    filled = fits.complete.impute(rows, draws=DRAWS, random_state=0)
    same = all(np.array_equal(table[~hidden], rows[~hidden]) for table in filled)
    truth = np.full((2, *rows.shape), np.nan)
    for i in np.flatnonzero(hidden.any(1)):
        asked, given = np.flatnonzero(hidden[i]).tolist(), np.flatnonzero(~hidden[i]).tolist()
        truth[:, i, asked] = fits.mixture.moments(fits.test[i], given, asked)
    mean, deviation = truth[:, hidden]
    error = (filled.mean(0)[hidden] - mean) / deviation
    spread = filled.std(0)[hidden] / deviation
    yield (
        f"{hidden.sum()} cells imputed {DRAWS} times: means off by {np.sqrt((error**2).mean()):.3f} true deviations "
        f"(root mean square; {1 / np.sqrt(DRAWS):.3f} by chance), deviations {spread.mean():.3f} of the true ones on "
        f"average; observed cells {'identical' if same else 'CHANGED'}"
    )


def price(name: str, seconds: float, seed: int) -> str:
    """Held-out NLL of a fit that answers all questions, and of one that does not."""
    split = sets.load(name)
    rows = np.concatenate([split.train, split.validation])
    nlls = [-fitted(rows, seconds, seed, subsets=subsets).score_samples(split.test).mean() for subsets in (False, True)]
    plain, all_questions = nlls
    cost = f"{all_questions - plain:+.4f}"
    return f"{name} ({rows.shape[1]} columns): NLL {plain:.4f} plain, {all_questions:.4f} with subsets ({cost})"


def fitted(x: np.ndarray, seconds: float, seed: int, *, subsets: bool) -> FFJORD:
    """A fit of some seconds."""
    return FFJORD(max_seconds=seconds, random_state=seed, subsets=subsets).fit(x)


def main() -> None:
    """Run what the options ask for, and print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts (default: %(default)s)")
    parser.add_argument("--columns", default="3,5", help="columns of the mixtures (default: %(default)s)")
    parser.add_argument("--sets", default=",".join(PRICED), help="sets of the price (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"mixture": mixture, "missing": missing, "imputation": imputation}
    wanted = given.only.split(",")
    if set(wanted) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}; got {given.only}")
    print(f"{given.seconds:g} s of training, seed {given.seed}", flush=True)
    for columns in map(int, given.columns.split(",")) if set(wanted) & set(parts) else ():
        fits = Fits.made(columns, given.seconds, given.seed)
        for part in (part for word, part in parts.items() if word in wanted):
            for line in part(fits):
                print(f"mixture of {columns} columns, {line}", flush=True)
    for name in given.sets.split(",") if "price" in wanted else ():
        print(price(name, given.seconds, given.seed), flush=True)


if __name__ == "__main__":
    run(main)
