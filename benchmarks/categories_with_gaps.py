"""Two dependent categories, whole and with missing cells: the divergence of fitted probabilities from the truth.

    python benchmarks/categories_with_gaps.py [--rows 2000] [--share 0.3] [--seeds 4]

Nothing is trained: probabilities are fitted at once. Of n whole rows the expected divergence of the frequencies of six
combinations is 5 / (2 n) nats. With missing cells the Fisher information of what is left bounds it from below, for many
rows: tr(I_whole I_left^-1) / (2 n).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from command import run

from ffjord_kit import FFJORD

CITIES = np.array(["Bergen", "Oslo", "Tromso"], dtype=object)
JOINT = np.array([0.18, 0.02, 0.25, 0.25, 0.03, 0.27])  # of city and married
EVERY = pd.DataFrame({"city": np.repeat(CITIES, 2), "married": np.tile([False, True], 3)})


def rows_of(count: int, seed: int) -> pd.DataFrame:
    """Return rows of the law."""
    return EVERY.iloc[np.random.default_rng(seed).choice(6, count, p=JOINT)].reset_index(drop=True)


def with_gaps(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return rows with cells missing at random, without those that have no value left."""
    missing = np.random.default_rng((seed, 1)).random(rows.shape) < share
    return rows.astype(object).mask(missing).dropna(how="all")


def divergence(rows: pd.DataFrame) -> float:
    """Return KL(truth | fit), nats."""
    fitted = FFJORD(random_state=0).fit(rows).score_samples(EVERY)
    return float((JOINT * (np.log(JOINT) - fitted)).sum())


def least_divergence(rows: int, share: float) -> float:
    """Return the expected divergence of an efficient estimator, nats, where a share of the cells is missing."""
    of_city, of_married = np.kron(np.eye(3), [1, 1]), np.eye(2)[:, [0, 1] * 3]
    whole, city, married = map(information, (np.eye(6), of_city, of_married))
    left = (1 - share) ** 2 * whole + share * (1 - share) * (city + married)
    return float(np.trace(whole @ np.linalg.inv(left))) / (2 * rows)


def information(groups: np.ndarray) -> np.ndarray:
    """Return the Fisher information of a row that tells its group (k, 6) on the first five probabilities, (5, 5)."""
    slopes = groups[:, :5] - groups[:, 5:]
    return (slopes / (groups @ JOINT)[:, None]).T @ slopes


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.3, help="share of the cells that are missing")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = [rows_of(options.rows, seed) for seed in range(options.seeds)]
    whole = [divergence(rows) for rows in tables]
    gaps = [divergence(with_gaps(rows, options.share, seed)) for seed, rows in enumerate(tables)]
    for word, values in (("whole rows", whole), (f"{options.share:.0%} missing", gaps)):
        least = least_divergence(options.rows, 0.0 if values is whole else options.share)
        measured = f"KL {np.mean(values):.5f} nats, largest {max(values):.5f}"
        print(f"{word:>16}  {measured}; of an efficient estimator {least:.5f}")


if __name__ == "__main__":
    run(main)
