"""Discrete layers below a continuous one: held-out NLL of each alone and of both, at equal CPU seconds, on one thread.

    FFJORD_KIT_DATA=FOLDER python benchmarks/layers.py [--set power_plant] [--seconds 60] [--seed 0] [--json FILE]

The folder holds uci_regression.npz. Columns whose commonest value covers more than 5 % of the rows, and one of each
pair correlated above 0.98, are dropped; rows are split 80/10/10 by the seed and standardized by the training rows.
Steps are as many as fit the seconds, by a short trial; validation, on the middle tenth, chooses when to stop. NLL in
nats a row of the last tenth, exact trace, tolerance 1e-5; the standard error is that of the difference from the first
method, row by row, for all but the first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffjord_kit import FFJORD

MATCHING = {"time_density": "likelihood"}
# A method, its fields, and its phases with their shares of the seconds.
METHODS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "flow matching": (MATCHING, {"flow_matching": 1.0}),
    "maf:3": ({"layers": "maf:3"}, {"layers": 1.0}),
    "nsf:3": ({"layers": "nsf:3"}, {"layers": 1.0}),
    "maf:3, then flow matching": ({"layers": "maf:3", **MATCHING}, {"layers": 0.5, "flow_matching": 0.5}),
    "nsf:3, then flow matching": ({"layers": "nsf:3", **MATCHING}, {"layers": 0.5, "flow_matching": 0.5}),
    "maf:3, then both by maximum likelihood": ({"layers": "maf:3"}, {"layers": 0.7, "mle": 0.3}),
    "flow matching, coupled": ({**MATCHING, "coupling": "optimal_transport"}, {"flow_matching": 1.0}),
}
TRIAL_STEPS = {"layers": 200, "flow_matching": 200, "mle": 20}
VALIDATING = 0.85  # the part of the seconds that is spent on steps; validation takes about the rest


def main() -> None:
    """Run every method, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="power_plant")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", action="append", choices=METHODS, help="only this one; may be given again")
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = split(columns(load(options.set)), options.seed)
    rows, first = [], None
    print(f"{options.set}: {len(train)} rows to train on and validate, {len(test)} to test, {train.shape[1]} columns")
    for name in options.method or METHODS:
        log_prob, row = judged(name, train, test, options.seconds, options.seed)
        first = log_prob if first is None else first
        row["difference"], row["difference_error"] = mean_and_error(first - log_prob)
        rows.append(row)
        print(line(row), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2))


def load(name: str) -> np.ndarray:
    """The rows of one set, the target last."""
    with np.load(Path(os.environ["FFJORD_KIT_DATA"]) / "uci_regression.npz") as sets:
        return sets[name].astype(float)


def columns(x: np.ndarray) -> np.ndarray:
    """The columns on which a density can be judged."""
    commonest = np.array([np.unique(column, return_counts=True)[1].max() for column in x.T]) / len(x)
    kept: list[int] = []
    for i in np.flatnonzero(commonest <= 0.05):
        if all(abs(np.corrcoef(x[:, i], x[:, j])[0, 1]) <= 0.98 for j in kept):
            kept.append(int(i))
    return x[:, kept]


def split(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine tenths to train on (of which the estimator validates on a ninth) and one to test, standardized."""
    x = x[np.random.default_rng(seed).permutation(len(x))]
    train, test = x[: -len(x) // 10], x[-len(x) // 10 :]
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def judged(name: str, train: np.ndarray, test: np.ndarray, seconds: float, seed: int) -> tuple[np.ndarray, dict]:
    """The log-densities of the test rows, and a row of the table."""
    fields, shares = METHODS[name]
    common = {**fields, "random_state": seed, "validation_fraction": 1 / 9, "device": "cpu"}
    parts = [(word, int(VALIDATING * share * seconds / a_step(common, word, train))) for word, share in shares.items()]
    model = FFJORD(
        **common,
        schedule=",".join(f"{word}:{steps}" for word, steps in parts),
        validate_every=max(1, max(steps for _, steps in parts) // 8),
    )
    begun = time.process_time()
    model.fit(train)
    spent = time.process_time() - begun
    log_prob = model.score_samples(test)
    nll, error = mean_and_error(-log_prob)
    return log_prob, {"method": name, "steps": dict(parts), "nll": nll, "standard_error": error, "cpu_seconds": spent}


def a_step(fields: dict[str, Any], word: str, train: np.ndarray) -> float:
    """The CPU seconds of one step of a phase, once the first ones are made."""
    clock: list[float] = []
    trial = FFJORD(**{**fields, "validation_fraction": 0.0}, schedule=f"{word}:{TRIAL_STEPS[word]}")
    trial.fit(train, on_step=lambda record: clock.append(time.process_time()))
    half = len(clock) // 2
    return (clock[-1] - clock[half]) / (len(clock) - 1 - half)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    steps = ", ".join(f"{word} {count}" for word, count in row["steps"].items())
    return (
        f"| {row['method']} | {steps} | {row['cpu_seconds']:.0f} | {row['nll']:.3f} ± {row['standard_error']:.3f} "
        f"| {row['difference']:+.3f} ± {row['difference_error']:.3f} |"
    )


if __name__ == "__main__":
    main()
