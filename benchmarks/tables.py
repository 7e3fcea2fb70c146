"""Held-out negative log-likelihood in nats a row, standardised columns, against seconds of training, on six tables.

    FFJORD_KIT_DATA=FOLDER python benchmarks/tables.py [--sets protein] [--only auto,"zuko MAF"] [--json FILE]

One thread, CPU seconds of training with all that belongs to it; a run of its own for each budget. Every method has
the same rows to train on and to choose by, and every likelihood is exact and converged. The JSON also holds the
log-likelihood in the usual units of the data.
"""

from __future__ import annotations

from typing import Any

import sets
from command import options, run
from peers import Fitted
from race import numbers, race
from report import table

from ffjord_kit import metrics

BENCHMARK = "tables"
METHODS = ("auto", "mle", "zuko CNF", "zuko NSF", "zuko MAF", "mixture", "KDE")
BUDGETS = (60.0, 300.0)


def main() -> None:
    """Run what the options ask for, and print the table."""
    given = options(__doc__, sets=sets.TABLES, methods=METHODS, budgets=BUDGETS)
    print(table(race(BENCHMARK, given, {}, judge), BENCHMARK))


def judge(fitted: Fitted, split: sets.Split, method: str) -> dict[str, Any]:
    """The mean negative log-density of the test rows."""
    mean, error = metrics.mean_and_standard_error(-fitted.score(split.test))
    return numbers(mean, error, test_rows=len(split.test), log_likelihood_in_data_units=split.shift - mean)


if __name__ == "__main__":
    run(main)
