"""Two dependent categories, whole and with missing cells: the divergence of fitted probabilities from the truth.

    python benchmarks/categories_with_gaps.py [--rows 2000] [--share 0.3] [--seeds 4]

Nothing is trained: probabilities are fitted at once. Of n whole rows the expected divergence of the frequencies of six
combinations is 5 / (2 n) nats.
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
        print(f"{word:>16}  KL {np.mean(values):.5f} nats, largest {max(values):.5f}")


if __name__ == "__main__":
    run(main)
