"""What condensing a fit saves: width, held-out likelihood, and seconds to score.

    FFJORD_KIT_DATA=FOLDER python benchmarks/condense.py [--sets pinwheel,checkerboard] [--steps 1500] [--seconds 15]

An over-wide residual network of three layers of 128 is fitted by flow matching for some CPU seconds, then condensed at
a loss of at most 0.005 nats on the rows that the fit held out. Both are scored on 1,000 rows that neither has seen, by
the reporting solve: the change is the mean increase of the negative log-likelihood row by row with its standard error,
the seconds are CPU seconds of one thread, the least of three scorings.
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

LOSS, ROWS = 0.005, 1_000


def main() -> None:
    """Fit, condense, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="pinwheel,checkerboard", help="data sets (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1_500, help="steps of imitation of a width (default: %(default)s)")
    parser.add_argument("--seconds", default="15", help="CPU seconds of the fit (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | width before | after | NLL before | change | seconds before | after | seconds to condense |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.sets.split(","):
        row = measured(name, given.steps, f"{given.seconds}s")
        likelihood = f"{row['nll']:.4f} | {row['change']:+.4f} ± {row['error']:.4f}"
        seconds = f"{row['slow']:.2f} | {row['fast']:.2f} | {row['seconds']:.0f}"
        print(f"| {name} | {row['before']} | {row['after']} | {likelihood} | {seconds} |", flush=True)


def measured(name: str, steps: int, budget: str) -> dict[str, Any]:
    """The widths, likelihoods and seconds of one data set."""
    split = sets.load(name)
    x, test = np.concatenate([split.train, split.validation]), split.test[:ROWS]
    fields = {"fourier_features": 2 if x.shape[1] == 2 else 0, "scaling": "standardize", "base": "normal"}
    wide = FFJORD(
        schedule=[("flow_matching", budget)],
        hidden=(128, 128, 128),
        time_density="likelihood",
        random_state=0,
        **fields,
    ).fit(x)
    begun = time.process_time()
    narrow = wide.condense(x, loss=LOSS, steps=steps)
    seconds = time.process_time() - begun
    before, after = wide.score_samples(test), narrow.score_samples(test)
    change, error = metrics.mean_and_standard_error(before - after)
    return {
        "before": wide.hidden[0], "after": narrow.hidden[0], "nll": -before.mean(), "change": change, "error": error,
        "slow": least_seconds(lambda: wide.score_samples(test)),
        "fast": least_seconds(lambda: narrow.score_samples(test)),
        "seconds": seconds,
    }  # fmt: skip


if __name__ == "__main__":
    main()
