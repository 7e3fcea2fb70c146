"""The gain of the network, its inputs, the weight of time, the scaling and a finish: one thing changed at a time.

    FFJORD_KIT_DATA=FOLDER python benchmarks/networks.py [--sets checkerboard] [--only "64x3,128x3"] [--json FILE]

One thread, CPU seconds of flow matching, some with a finish by maximum likelihood. KL to the truth (toys) or held-out
NLL of standardised columns (tables) in nats, by a converged solve with the exact trace. "AxB" is B hidden layers of
width A. Where its name says nothing else, a variant is a residual network with SiLU, peak learning rate 8e-3, the
likelihood's weight of t, standardised columns, and in the plane two octaves of Fourier features
(`fourier_features=2`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sets
from command import options, run
from peers import Fitted, Method, ours
from race import numbers, race
from report import table

from ffjord_kit import metrics

BENCHMARK = "networks"
WIDE = {"hidden": (128, 128, 128)}
VARIANTS: dict[str, dict[str, Any]] = {
    "64x3": {"hidden": (64, 64, 64)},
    "96x3": {"hidden": (96, 96, 96)},
    "128x3": WIDE,
    "256x3": {"hidden": (256, 256, 256)},
    "128x2": {"hidden": (128, 128)},
    "128x4": {"hidden": (128, 128, 128, 128)},
    "128x3 tanh": {**WIDE, "activation": "tanh"},
    "128x3 softplus": {**WIDE, "activation": "softplus"},
    "128x3 concat-squash": {**WIDE, "dynamics": "concat_squash", "fourier_features": 0},
    "128x3 no octaves": {**WIDE, "fourier_features": 0},
    "128x3 input scales": {**WIDE, "fourier_features": 0, "input_scales": 3},
    "128x3 t uniform": {**WIDE, "time_density": "uniform"},
    "128x3 gaussianized": {**WIDE, "scaling": "gaussianize"},
    "128x3 half whitened": {**WIDE, "scaling": "half_whiten"},
    "128x3 whitened": {**WIDE, "scaling": "whiten"},
    "128x3 rate 4e-3": {**WIDE, "learning_rate": 4e-3},
    "128x3 by transport": {**WIDE, "coupling": "optimal_transport"},
    "64x3 and a third mle": {"hidden": (64, 64, 64), "finish": 1 / 3},
}
SETS = ("checkerboard", "pinwheel", "protein")
BUDGETS = (30.0,)
FEW_ROWS = 1_000


def main() -> None:
    """Run what the options ask for, and print the rows."""
    given = options(__doc__, sets=SETS, methods=tuple(VARIANTS), budgets=BUDGETS)
    print(table(race(BENCHMARK, given, {}, judge, methods=METHODS), BENCHMARK))


def judge(fitted: Fitted, split: sets.Split, method: str) -> dict[str, Any]:
    """The mean negative log-density of test rows; of a toy over the truth's."""
    rows = split.test[:FEW_ROWS]
    log_prob = fitted.score(rows)
    truth = 0.0 if split.log_prob is None else split.log_prob(rows)
    mean, error = metrics.mean_and_standard_error(truth - log_prob)
    return numbers(mean, error, test_rows=len(rows))


def schedule(budget: float, finish: float) -> list[tuple[str, str]]:
    """Flow matching for the budget, a share of which may be left to maximum likelihood."""
    first = ("flow_matching", f"{(1 - finish) * budget:g}s")
    return [first, ("mle", f"{finish * budget:g}s")] if finish else [first]


def variant(name: str) -> Method:
    """The estimator with a variant's fields, trained for its budget by flow matching."""

    def fit(split: sets.Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
        features = 2 if split.train.shape[1] == 2 else 0
        fields = {
            "time_density": "likelihood",
            "scaling": "standardize",
            "fourier_features": features,
            **VARIANTS[name],
        }
        finish = fields.pop("finish", 0.0)
        timed = ours(lambda budget: {"schedule": schedule(budget, finish), **fields})
        yield from timed(split, budgets, seed, device)

    return Method(name, fit)


METHODS = {name: variant(name) for name in VARIANTS}

if __name__ == "__main__":
    run(main)
