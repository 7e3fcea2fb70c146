"""Flows trained with each scheme for the same seconds: held-out NLL, evaluations and seconds.

    FFJORD_KIT_DATA=FOLDER python benchmarks/schemes.py [--sets moons] [--only euler,rk4] [--budgets 10] [--json FILE]

Maximum likelihood from scratch with the exact trace, small costs of the path (RNODE: without them training finds fields
that a coarse scheme misjudges), the same network, batches and rate, and no guard on the solver's error; each solve has
about EVALUATIONS evaluations of the field. One thread, CPU seconds. Up to 1,000 held-out rows are scored three times:

    field    the density of the trained field, by a fine solve: what the flow is, whatever the scheme
    gap      the log-density that the scheme's own integral claims, minus that of the field: what training was misled by
    steps    the density of the scheme's steps by their exact determinants (one-step schemes): a model without a solver
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import sets
import torch
from command import environment, options, run
from results import Row, Store

from ffjord_kit import CNF, FixedSolver, Flow, MaximumLikelihood, ResidualDynamics
from ffjord_kit.ode import PerRowSolver
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.training.discretize import in_steps
from ffjord_kit.transforms import Standardize
from ffjord_kit.transforms.cnf import SolveOptions

BENCHMARK = "schemes"
SETS = ("moons", "pinwheel", "checkerboard", "kin8nm", "power_plant")
EVALUATIONS = 12
STEPS = {  # with EVALUATIONS evaluations each
    "euler": 12, "poly2": 6, "poly3": 4, "fractal2": 6, "fractal3": 3, "midpoint": 6, "rk4": 3, "linear_multistep": 12,
    "revnet": 6, "asynchronous_leapfrog": 12, "coupled midpoint": 3,
}  # fmt: skip
HIDDEN = (32, 32)
COSTS = {"kinetic": 0.1, "jacobian": 0.1}
BUDGET, RATE, CHUNK, TOLERANCE, TEST_ROWS = 6.0, 3e-3, 1000, 1e-4, 1000
CONFIG = TrainConfig(batch_size=128, warmup=20, ema_decay=0.95, guard=0.0)


def main() -> None:
    """Train what the options ask for, and print the tables."""
    given = options(__doc__, sets=SETS, methods=tuple(STEPS), budgets=(BUDGET,))
    store = Store(given.json)
    for name in given.sets:
        split = sets.load(name)
        for method in given.only:
            key = {"benchmark": BENCHMARK, "set": name, "method": method, "budget": given.budgets[0],
                   "seed": given.seed, "device": "cpu"}  # fmt: skip
            if given.again or not store.has(**key):
                store.add({**key, **measured(split, method, given.budgets[0], given.seed), **environment()})
                print(name, method, flush=True)
    rows = [row for row in store.rows() if row["benchmark"] == BENCHMARK]
    print(table(rows, given.sets), stepped_table(rows, given.sets), sep="\n\n")


def measured(split: sets.Split, method: str, seconds: float, seed: int) -> Row:
    """Train a flow with a scheme, and score it."""
    coupled, word = method.startswith("coupled "), method.removeprefix("coupled ")
    solver = FixedSolver(word, STEPS[method], adjoint="reversible" if coupled else "backprop")
    train, test = (torch.as_tensor(rows, dtype=torch.float32) for rows in (split.train, split.test[:TEST_ROWS]))
    torch.manual_seed(seed)
    size = train.shape[1]
    flow = Flow(
        [CNF(ResidualDynamics((size,), hidden=HIDDEN), (size,), solver=solver)], preprocess=[Standardize.of(train)]
    )
    phase = Phase(MaximumLikelihood(ExactTrace(), COSTS), float("inf"), learning_rate=RATE, seconds=seconds)
    fit_flow(flow, train, schedule=[phase], config=CONFIG)
    own, nfe, needed = scored(flow, test, solver)
    field = scored(flow, test, PerRowSolver(TOLERANCE, TOLERANCE, on_failure="nan"))[0]
    row = {"nfe": nfe, "seconds_10k": needed,
           "field": -float(field.mean()), "error": float(field.std()) / len(field) ** 0.5,
           "gap": float((own - field).mean())}  # fmt: skip
    if word in EXPLICIT_SCHEMES and not coupled:
        row["steps"] = -float(scored(in_steps(flow, word, solver.steps), test, None)[0].mean())
    return row


@torch.no_grad()
def scored(flow: Flow, rows: torch.Tensor, solver: Any) -> tuple[np.ndarray, int, float]:
    """Log-densities, evaluations of a solve, and CPU seconds for 10,000 rows."""
    begun, parts, nfe = time.process_time(), [], 0
    for part in rows.split(CHUNK):
        if solver is None:
            parts.append(flow.log_prob(part))
        else:
            values, moved = flow.evaluate_log_prob(part, options=SolveOptions(solver=solver))
            parts.append(values)
            nfe = max(nfe, *[stats.nfe for stats in moved.stats])
    seconds = (time.process_time() - begun) * 10_000 / len(rows)
    return torch.cat(parts).double().numpy(), nfe, seconds


def table(rows: list[Row], names: tuple[str, ...]) -> str:
    """One line for each scheme: NLL of the field and the gap, on each set."""
    lines = [
        "| scheme | evaluations | s for 10,000 rows | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for method in STEPS:
        own = {row["set"]: row for row in rows if row["method"] == method}
        if own:
            seconds = " to ".join(f"{pick(row['seconds_10k'] for row in own.values()):.2f}" for pick in (min, max))
            nfe = max(row["nfe"] for row in own.values())
            cells = [f"{own[n]['field']:.3f} ({own[n]['gap']:+.3f})" if n in own else "-" for n in names]
            lines.append(f"| {method} | {nfe} | {seconds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stepped_table(rows: list[Row], names: tuple[str, ...]) -> str:
    """One line for each one-step scheme: NLL of its exact steps on each set."""
    lines = ["| exact steps of | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in STEPS:
        own = {row["set"]: row["steps"] for row in rows if row["method"] == method and "steps" in row}
        if own:
            lines.append(f"| {method} | " + " | ".join(f"{own[n]:.3f}" if n in own else "-" for n in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
