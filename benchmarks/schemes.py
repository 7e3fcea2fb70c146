"""Flows trained with each scheme for the same seconds: held-out NLL, evaluations and seconds.

    FFJORD_KIT_DATA=FOLDER python benchmarks/schemes.py [--sets moons] [--only euler,rk4] [--budgets 20] [--seeds 2]
                                                        [--guard 0] [--json FILE]

Maximum likelihood from scratch with the exact trace, small costs of the path (RNODE), the same network, batches and
rate. Each solve begins with about EVALUATIONS evaluations of the field. The guard, on by default as in training, makes
the steps finer where the error of the loss asks for it; without it (--guard 0) the steps stay. One thread, CPU
seconds. Up to 1,000 held-out rows are scored three times, with the steps of the end of training:

    field    the density of the trained field, by a fine solve: what the flow is, whatever the scheme
    gap      the log-density that the scheme's own integral claims, minus that of the field: what training was misled by
    steps    the density of the scheme's steps by their exact determinants (one-step schemes): a model without a solver,
             and whether it is a density, by the receipt of `check_steps` (without its integral)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import sets
import torch
from command import SEEDS, environment, options, run
from results import Row, Store

from ffjord_kit import CNF, FixedSolver, Flow, MaximumLikelihood, ResidualDynamics
from ffjord_kit.diagnostics import check_steps
from ffjord_kit.ode import PerRowSolver
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.training.discretize import in_steps
from ffjord_kit.training.history import History
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
OPTIONS = {"batch_size": 128, "warmup": 20, "ema_decay": 0.95}
GUARD = TrainConfig().guard


def main() -> None:
    """Train what the options ask for, and print the tables."""
    guard = {"type": float, "default": GUARD, "help": "largest share of the solver's error (default: %(default)s)"}
    extra = {"--seeds": SEEDS, "--guard": guard}
    given = options(__doc__, sets=SETS, methods=tuple(STEPS), budgets=(BUDGET,), extra=extra)
    store, here = Store(given.json), {"budget": given.budgets[0], "setting": f"guard {given.guard:g}"}
    for seed in range(given.seed, given.seed + given.seeds):
        for name in given.sets:
            split = sets.load(name)
            for method in given.only:
                key = {"benchmark": BENCHMARK, "set": name, "method": method, **here, "seed": seed, "device": "cpu"}
                if given.again or not store.has(**key):
                    row = measured(split, method, given.budgets[0], seed, given.guard)
                    store.add({**key, **row, **environment()})
                    print(name, method, seed, flush=True)
    rows = [row for row in store.rows() if here.items() <= row.items()]
    print(table(rows, given.sets), stepped_table(rows, given.sets), spread(rows), sep="\n\n")


def measured(split: sets.Split, method: str, seconds: float, seed: int, guard: float = GUARD) -> Row:
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
    history = fit_flow(flow, train, schedule=[phase], config=TrainConfig(seed=seed, guard=guard, **OPTIONS))
    solver = guarded_solver(history, solver)
    own, nfe, needed = scored(flow, test, solver)
    field = scored(flow, test, PerRowSolver(TOLERANCE, TOLERANCE, on_failure="nan"))[0]
    row = {"nfe": nfe, "seconds_10k": needed,
           "field": -float(field.mean()), "error": float(field.std()) / len(field) ** 0.5,
           "gap": float((own - field).mean())}  # fmt: skip
    return row if coupled or word not in EXPLICIT_SCHEMES else {**row, **exact_steps(flow, test, solver)}


def guarded_solver(history: History, solver: FixedSolver) -> FixedSolver:
    """The solver at the end of training, which the guard has chosen where there is one."""
    chosen = [record for record in history.records if "solver_steps" in record]
    return replace(solver, steps=chosen[-1]["solver_steps"], grading=chosen[-1]["grading"]) if chosen else solver


def exact_steps(flow: Flow, rows: torch.Tensor, solver: FixedSolver) -> Row:
    """The NLL of the steps by their exact determinants, and the verdict of their receipt."""
    stepped = in_steps(flow, solver.method, solver.steps, solver.grading)
    receipt = check_steps(stepped, rows, integrate=False)
    return {"steps": -float(scored(stepped, rows, None)[0].mean()), "holds": receipt.holds, "receipt": str(receipt)}


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
    """One line for each scheme: NLL of the field and the gap on each set, means over the seeds."""
    lines = [
        "| scheme | evaluations | s for 10,000 rows | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for method in STEPS:
        own = [row for row in rows if row["method"] == method]
        if own:
            costs = between(own, "nfe", ".0f"), between(own, "seconds_10k", ".2f")
            cells = [cell(own, name, lambda found: f"{mean(found, 'field'):.3f} ({mean(found, 'gap'):+.3f})")
                     for name in names]  # fmt: skip
            lines.append("| " + " | ".join([method, *costs, *cells]) + " |")
    return "\n".join(lines)


def stepped_table(rows: list[Row], names: tuple[str, ...]) -> str:
    """One line for each one-step scheme: NLL of its exact steps on each set, where all seeds' receipts hold."""
    lines = ["| exact steps of | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in STEPS:
        own = [row for row in rows if row["method"] == method and "steps" in row]
        if own:
            lines.append("| " + " | ".join([method, *[cell(own, name, verdict) for name in names]]) + " |")
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """The mean NLL of exact steps that are a density for every seed; else for how many they are none."""
    failed = sum(not row["holds"] for row in rows)
    return f"no density ({failed} of {len(rows)})" if failed else f"{mean(rows, 'steps'):.3f}"


def spread(rows: list[Row]) -> str:
    """The typical difference of two seeds."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["method"]), []).append(row["field"])
    widths = [max(values) - min(values) for values in groups.values() if len(values) > 1]
    return f"Seeds differ by {np.median(widths):.3f} in the median, {max(widths):.3f} at most." if widths else ""


def cell(rows: list[Row], name: str, shown: Callable[[list[Row]], str]) -> str:
    """What is shown of the rows of a set; a dash without any."""
    found = [row for row in rows if row["set"] == name]
    return shown(found) if found else "-"


def mean(rows: list[Row], quantity: str) -> float:
    """The mean of a quantity."""
    return float(np.mean([row[quantity] for row in rows]))


def between(rows: list[Row], quantity: str, form: str) -> str:
    """The least and the largest of a quantity, once if they look alike."""
    values = [row[quantity] for row in rows]
    return " to ".join(dict.fromkeys(f"{pick(values):{form}}" for pick in (min, max)))


if __name__ == "__main__":
    run(main)
