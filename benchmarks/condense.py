"""What condensing a fit saves: width, held-out likelihood, and seconds to score.

    FFJORD_KIT_DATA=FOLDER python benchmarks/condense.py [--sets pinwheel,power_plant] [--seeds 5] [--seconds 15]

An over-wide residual network of three layers of 128 is fitted by flow matching for some CPU seconds, then condensed at
a loss of at most 0.005 nats on the rows that the fit held out. Both are scored on up to 4,000 rows that neither has
seen, by the reporting solve: the change is the mean rise of the negative log-likelihood row by row with its standard
error over rows, the seconds are CPU seconds of one thread for 1,000 of them, the least of three scorings. A line for
each seed; the last one of a set has the mean change over seeds with its standard error over seeds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import sets
import torch
from clock import least_seconds

from ffjord_kit import FFJORD, metrics

LOSS, ROWS, TIMED = 0.005, 4_000, 1_000


def main() -> None:
    """Fit, condense, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="pinwheel,power_plant", help="data sets (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1_500, help="steps of imitation of a width (default: %(default)s)")
    parser.add_argument("--seconds", default="15", help="CPU seconds of the fit (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of fits of each set (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | width before | after | NLL before | change | seconds before | after | seconds to condense |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.sets.split(","):
        rows = []
        for seed in range(given.seeds):
            rows.append(measured(name, given.steps, f"{given.seconds}s", seed))
            print(line(f"{name}, seed {seed}", rows[-1]), flush=True)
        if len(rows) > 1:
            print(line(f"{name}, mean", mean(rows)), flush=True)


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The means over seeds; the error is that of the mean change over seeds."""
    changes = np.array([row["change"] for row in rows])
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {**means, "error": metrics.mean_and_standard_error(changes)[1]}


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    likelihood = f"{row['nll']:.4f} | {row['change']:+.4f} ± {row['error']:.4f}"
    seconds = f"{row['slow']:.2f} | {row['fast']:.2f} | {row['seconds']:.0f}"
    return f"| {name} | {row['before']:.0f} | {row['after']:.0f} | {likelihood} | {seconds} |"


def measured(name: str, steps: int, budget: str, seed: int) -> dict[str, Any]:
    """The widths, likelihoods and seconds of one fit."""
    split = sets.load(name)
    x, test = np.concatenate([split.train, split.validation]), split.test[:ROWS]
    fields = {"fourier_features": 2 if x.shape[1] == 2 else 0, "scaling": "standardize", "base": "normal"}
    wide = FFJORD(
        schedule=[("flow_matching", budget)],
        hidden=(128, 128, 128),
        time_density="likelihood",
        random_state=seed,
        **fields,
    ).fit(x)
    begun = time.process_time()
    narrow = wide.condense(x, loss=LOSS, steps=steps)
    seconds = time.process_time() - begun
    before, after = wide.score_samples(test), narrow.score_samples(test)
    change, error = metrics.mean_and_standard_error(before - after)
    return {
        "before": wide.hidden[0], "after": narrow.hidden[0], "nll": -before.mean(), "change": change, "error": error,
        "slow": least_seconds(lambda: wide.score_samples(test[:TIMED])),
        "fast": least_seconds(lambda: narrow.score_samples(test[:TIMED])),
        "seconds": seconds,
    }  # fmt: skip


if __name__ == "__main__":
    main()
