"""KL(truth || model) in nats against seconds of training, on every toy in the plane.

    python benchmarks/toys.py [--sets moons] [--only auto,mle] [--budgets 15,60] [--json FILE]

One thread, CPU seconds of training with all that belongs to it. The mean of log p - log q over 10,000 fresh points,
with its standard error; 2,000 for the paper's FFJORD, which is judged at many marks of one long run.
"""

from __future__ import annotations

from typing import Any

import sets
from command import options, run
from peers import Fitted
from race import numbers, race
from report import table

from ffjord_kit import metrics

BENCHMARK = "toys"
METHODS = ("auto", "mle", "zuko CNF", "zuko NSF", "paper FFJORD")
BUDGETS = (15.0, 60.0)
OWN_BUDGETS = {"paper FFJORD": (30.0, 60.0, 120.0, 300.0, 600.0)}
FEW_ROWS = 2_000


def main() -> None:
    """Run what the options ask for, and print the table."""
    given = options(__doc__, sets=sets.TOYS, methods=METHODS, budgets=BUDGETS)
    print(table(race(BENCHMARK, given, OWN_BUDGETS, judge), BENCHMARK))


def judge(fitted: Fitted, split: sets.Split, method: str) -> dict[str, Any]:
    """The divergence from the truth."""
    rows = split.test[: FEW_ROWS if method in OWN_BUDGETS else None]
    mean, error = metrics.kl_divergence(split.log_prob(rows), fitted.score(rows))
    return numbers(mean, error, test_rows=len(rows))


if __name__ == "__main__":
    run(main)
