"""zuko's transforms below a continuous one: held-out NLL of each alone and of both, at equal CPU seconds, one thread.

    FFJORD_KIT_DATA=FOLDER python benchmarks/layers.py [--sets power_plant] [--budgets 60] [--only nsf:3] [--json FILE]

All use standardised columns and the likelihood's weight of t; each phase has its share of the seconds. NLL in nats a
row of the test rows, exact trace, converged.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from command import options, run
from peers import Method, ours
from race import race
from report import table
from tables import judge

BENCHMARK = "layers"
COMMON = {"time_density": "likelihood", "scaling": "standardize", "fourier_features": 0}
# A method, its fields, and its phases with their shares of the seconds.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "flow matching": ({}, {"flow_matching": 1.0}),
    "flow matching by transport": ({"coupling": "optimal_transport"}, {"flow_matching": 1.0}),
    "maf:3": ({"transforms": [("maf", 3)]}, {"transforms": 1.0}),
    "nsf:3": ({"transforms": [("nsf", 3)]}, {"transforms": 1.0}),
    "maf:3 then flow matching": ({"transforms": [("maf", 3)]}, {"transforms": 0.5, "flow_matching": 0.5}),
    "nsf:3 then flow matching": ({"transforms": [("nsf", 3)]}, {"transforms": 0.5, "flow_matching": 0.5}),
    "maf:3 then both by likelihood": ({"transforms": [("maf", 3)]}, {"transforms": 0.7, "mle": 0.3}),
}
SETS, BUDGETS = ("power_plant", "protein"), (60.0,)


def main() -> None:
    """Run what the options ask for, and print the rows."""
    given = options(__doc__, sets=SETS, methods=tuple(VARIANTS), budgets=BUDGETS)
    print(table(race(BENCHMARK, given, {}, judge, methods=METHODS), BENCHMARK))


def fields(name: str, budget: float) -> dict[str, Any]:
    """Return the fields of the estimator for a method and a number of seconds."""
    special, shares = VARIANTS[name]
    schedule = [(word, f"{share * budget:g}s") for word, share in shares.items()]
    return {**COMMON, **special, "schedule": schedule}


METHODS = {name: Method(name, ours(partial(fields, name))) for name in VARIANTS}

if __name__ == "__main__":
    run(main)
