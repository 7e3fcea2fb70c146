"""Seconds and evaluations for 10,000 log-likelihoods and 10,000 samples, against their actual error.

    FFJORD_KIT_DATA=FOLDER python benchmarks/solves.py [--sets moons] [--budgets 60] [--schedule auto] [--json FILE]

FFJORD and zuko's CNF are trained on the same data, zuko's for --peer-seconds. A flow that has learned little is
smooth and cheap to solve, so `nll` says how good each is. Each flow is solved by one setting after the other. Ours:
in float64, each row with its own steps (`score_samples`, `sample`); in float32 with one step size; and after reflow
into a small network (method `straightened`), by fixed steps too. zuko's: by its own `log_prob` with the exact trace,
and its own map from base to data, in float32.

The error of a log-likelihood is the mean of |log p - reference|. The error of a sample is the root mean square
distance from the reference, in standard deviations of a column. At the end: zuko's seconds divided by our least
seconds at equal error, interpolated between the measured tolerances (straight lines in the logarithms). Fixed steps
are not interpolated.
"""

from __future__ import annotations

import math

import numpy as np
import sets
import torch
from clock import Clock
from command import environment, options, run
from report import ratios, table
from results import Row, Store
from subjects import SUBJECTS, Subject

BENCHMARK = "solves"
LEAST_SECONDS = 0.5  # a short solve is made again and again for so long, and the shortest counts
BUDGET, PEER_SECONDS = 60.0, 600.0


def main() -> None:
    """Train, measure every solve, print the table and the ratios."""
    extra = {
        "--schedule": {"default": "auto", "help": "of ours; only 'auto' keeps to the budget"},
        "--peer-seconds": {"type": float, "default": PEER_SECONDS, "help": "of training zuko's CNF (%(default)g)"},
    }
    names, methods = ("moons", "protein"), tuple(SUBJECTS)
    given = options(__doc__, sets=names, methods=methods, budgets=(BUDGET,), extra=extra)
    store, place = Store(given.json), {"seed": given.seed, "device": given.device, "budget": given.budgets[0]}
    for name in given.sets:
        split = sets.load(name)
        for word in given.only:
            for subject in SUBJECTS[word](split, given):
                for row in measured(subject, given.device):
                    store.add({"benchmark": BENCHMARK, "set": name, **place, **row, **environment()})
                    print(name, *(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    print(table(store.rows(), BENCHMARK), ratios(store.rows()), sep="\n\n")


@torch.no_grad()
def measured(subject: Subject, device: str) -> list[Row]:
    """A row for each setting."""
    rows = []
    for setting in subject.settings:
        clock, seconds = Clock(device), math.inf
        while seconds == math.inf or clock.seconds() < LEAST_SECONDS:
            again = Clock(device)
            values, evaluations = subject.work(setting)
            seconds = min(seconds, again.seconds())
        row = {"method": subject.method, "nll": subject.nll, "quantity": subject.quantity, "setting": setting}
        rows.append({**row, "error": error(values, subject.exact), "seconds": seconds, "nfe": evaluations})
    return rows


def error(values: np.ndarray, exact: np.ndarray) -> float:
    """How far the values of the first rows are from the exact ones: log-densities (n,), or samples (n, d)."""
    apart = values[: len(exact)] - exact
    return float(np.abs(apart).mean() if apart.ndim == 1 else np.sqrt(np.square(apart).sum(1).mean()))


if __name__ == "__main__":
    run(main)
