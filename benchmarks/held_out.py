"""Held-out log-likelihood of flows beside a Gaussian mixture and a KDE, on the same rows, with the CPU seconds of each.

    python benchmarks/held_out.py [--seed 0] [--json FILE]

One thread; CPU seconds of fitting alone; each method chooses its settings (the flow: when to stop) on the same held-out
tenth of the training rows, and is judged on the test rows. Log-likelihoods are in nats a row and, where `standardized`
is said, of the standardized columns (a constant apart from those of the data).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ffjord_kit import FFJORD, datasets, metrics

DIGITS = {
    "flow matching, t uniform": {"schedule": "flow_matching:4000"},
    "flow matching, likelihood weighting": {"schedule": "flow_matching:4000", "time_density": "likelihood"},
}
SMALL = {"hidden": (64, 64, 64), "learning_rate": 5e-3, "mle_learning_rate": 3e-3, "train_tolerance": 1e-2}
MOONS = {
    "flow matching": {"schedule": "flow_matching:4000", **SMALL},
    "flow matching, then maximum likelihood": {"schedule": "flow_matching:4000,mle:120", **SMALL},
}
# A data set, the rows to fit (None: all), and the flows to fit to them.
CASES: tuple[tuple[str, int | None, dict[str, dict[str, Any]]], ...] = (
    ("digits", None, DIGITS),
    ("moons", 10_000, MOONS),
    ("moons", 40_000, MOONS),
)


def main() -> None:
    """Run every method on every set, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in run(*case, options.seed)]
    print(table(rows))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


def run(name: str, size: int | None, flows: dict[str, dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Every method on one set."""
    train = datasets.load(f"{name}:train", rows=size, seed=seed).x
    test = datasets.load(f"{name}:test", seed=seed).x
    name, rows, model = f"{name}, {len(train)} rows", [], None
    for method, fields in flows.items():
        model, seconds = timed(lambda fields=fields: FFJORD(**fields, random_state=seed).fit(train))
        rows.append(judged(name, method, model.score_samples(test), seconds, train))
    kept, held_out = model.split(train)
    mixture, seconds = timed(lambda: metrics.best_gaussian_mixture(kept, held_out, seed=seed))
    rows.append(judged(name, "Gaussian mixture (scikit-learn)", mixture.score_samples(test), seconds, train))
    kernels, seconds = timed(lambda: metrics.best_kde(kept, held_out))
    rows.append(judged(name, "KDE (scikit-learn)", kernels.score_samples(test), seconds, train))
    return rows


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and the CPU seconds that it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def judged(name: str, method: str, log_prob: np.ndarray, seconds: float, train: np.ndarray) -> dict[str, Any]:
    """A row of the table."""
    mean, error = metrics.mean_and_standard_error(log_prob)
    standardized = mean + float(np.log(train.std(0)).sum())
    return {
        "set": name, "method": method, "log_likelihood": mean, "standard_error": error,
        "standardized_nll": -standardized, "cpu_seconds": seconds,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| set | method | log-likelihood (nats) | NLL, standardized | fit, CPU s |\n|---|---|---|---|---|"
    lines = [
        f"| {r['set']} | {r['method']} | {r['log_likelihood']:.3f} ± {r['standard_error']:.3f} "
        f"| {r['standardized_nll']:.3f} | {r['cpu_seconds']:.1f} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
