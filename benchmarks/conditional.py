"""Held-out conditional NLL, nats a row of standardised columns, against seconds of training: parameters given data.

    python benchmarks/conditional.py [--sets slcp] [--only auto] [--budgets 15,60] [--seed 1] [--json FILE]

10,000 simulations: five parameters given eight observations, or a redshift given a magnitude and five colours. One
thread, CPU seconds of training with all that belongs to it; a run of its own for each budget. zuko's NSF is tuned as in
the other tables: cosine, best validation weights, early stopping.
"""

from __future__ import annotations

import sets
from command import options, run
from race import race
from report import table
from tables import judge

BENCHMARK = "conditional"
METHODS = ("auto", "zuko NSF")
BUDGETS = (15.0, 60.0, 180.0)


def main() -> None:
    """Run what the options ask for, and print the table."""
    given = options(__doc__, sets=sets.SIMULATIONS, methods=METHODS, budgets=BUDGETS)
    print(table(race(BENCHMARK, given, {}, judge), BENCHMARK))


if __name__ == "__main__":
    run(main)
