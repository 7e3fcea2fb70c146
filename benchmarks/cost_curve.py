"""What a trained flow loses when its likelihood is computed with fewer evaluations: NLL against NFE.

    FFJORD_KIT_DATA=FOLDER python benchmarks/cost_curve.py [--sets moons] [--only rk4] [--budgets 20] [--json FILE]
                                                           [--picture FILE]

One flow is trained on each set, for half of the time by flow matching, then by maximum likelihood with rk4 and the
guard. Up to TEST_ROWS held-out rows are scored with other solvers and numbers of steps:

    integrated   the trace is integrated with the state, as while training: an approximation of the density of the
                 field, whose error may make it look better or worse than it is
    exact        the same steps with the determinant of each (`in_steps`): another model, whose density has no error
                 wherever the steps do not fold; the receipt of `check_steps` (without its integral) looks for folds

The *gap* is the NLL less that of a fine solve, with an interval of 95 % over rows. One thread, CPU seconds.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import sets
import torch
from command import environment, options, run
from results import Row, Store
from torch import Tensor

from ffjord_kit import CNF, AdaptiveSolver, FixedSolver, Flow, FlowMatching, MaximumLikelihood, ResidualDynamics, plots
from ffjord_kit.diagnostics import check_steps
from ffjord_kit.ode import PerRowSolver, Solver
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.training.discretize import in_steps
from ffjord_kit.transforms import Standardize
from ffjord_kit.transforms.cnf import SolveOptions

BENCHMARK = "cost_curve"
SETS = ("moons", "power_plant")
TOLERANCES = [10.0**-k for k in range(1, 6)]
STEPS = {"rk4": (1, 2, 3, 4, 6, 8, 12), "midpoint": (1, 2, 4, 8, 16), "euler": (2, 4, 8, 16, 32)}
METHODS = ("dopri5", *STEPS, *(f"exact {word}" for word in STEPS))
HIDDEN, BUDGET, RATE, CHUNK, TEST_ROWS = (64, 64), 30.0, 3e-3, 1000, 1000
CONFIG = TrainConfig(batch_size=256, warmup=20, ema_decay=0.98)
TRAINED_BY, FINE = FixedSolver("rk4", 6), PerRowSolver(1e-6, 1e-6)
NORMAL = 1.96  # standard errors on each side, for 95 %
DRAWN = 0.5  # nats from the fine solve, beyond which a point is left out of the picture


class Scores(NamedTuple):
    """Log-densities (n,), evaluations of the field for a batch, and CPU seconds for 10,000 rows."""

    log_prob: np.ndarray
    nfe: float
    seconds: float


def main() -> None:
    """Train and score what the options ask for, print the tables and draw."""
    extra = {"--picture": {"help": "file to draw NLL against NFE to, of the last set"}}
    given = options(__doc__, sets=SETS, methods=METHODS, budgets=(BUDGET,), extra=extra)
    store, here = Store(given.json), {"benchmark": BENCHMARK, "budget": given.budgets[0], "seed": given.seed}
    for name in given.sets:
        key = {**here, "set": name, "device": "cpu"}
        missing = [method for method in given.only if given.again or not store.has(**key, method=method)]
        if missing:
            for row in measured(sets.load(name), missing, given.budgets[0], given.seed):
                store.add({**key, **row, **environment()})
            print(name, flush=True)
    rows = [row for row in store.rows() if here.items() <= row.items()]
    print("\n\n".join(table(rows, name) for name in given.sets))
    if given.picture:
        plots.save(
            plots.error_against_cost(drawn(rows, given.sets[-1]), error="NLL, nats", scale="linear"), given.picture
        )


def measured(split: sets.Split, methods: list[str], seconds: float, seed: int) -> list[Row]:
    """Train a flow, and score it by each method: a row for each, with a point for each setting."""
    train, test = (torch.as_tensor(rows, dtype=torch.float32) for rows in (split.train, split.test[:TEST_ROWS]))
    flow = trained(train, seconds, seed)
    fine = scored(flow, test, FINE)
    return [{"method": method, "fine": -float(fine.log_prob.mean()), "fine_nfe": fine.nfe,
             "points": [point(flow, test, method, setting, fine) for setting in settings(method)]}
            for method in methods]  # fmt: skip


def trained(train: Tensor, seconds: float, seed: int) -> Flow:
    """A flow of flow matching and maximum likelihood."""
    torch.manual_seed(seed)
    size = train.shape[1]
    field = ResidualDynamics((size,), hidden=HIDDEN)
    flow = Flow([CNF(field, (size,), solver=TRAINED_BY)], preprocess=[Standardize.of(train)])
    objectives = FlowMatching(), MaximumLikelihood(ExactTrace())
    phases = [Phase(each, float("inf"), learning_rate=RATE, seconds=seconds / 2) for each in objectives]
    fit_flow(flow, train, schedule=phases, config=CONFIG)
    return flow


def settings(method: str) -> list[Any]:
    """The tolerances or the numbers of steps of a method."""
    return TOLERANCES if method == "dopri5" else list(STEPS[method.removeprefix("exact ")])


def point(flow: Flow, rows: Tensor, method: str, setting: Any, fine: Scores) -> Row:
    """NLL and cost by one setting of a method."""
    word, exact = method.removeprefix("exact "), method.startswith("exact ")
    if exact:
        flow, solver = in_steps(flow, word, setting), None
        label = f"{setting} {word} step{'s' * (setting > 1)}, exact"
    else:
        solver = AdaptiveSolver(word, setting, setting) if word == "dopri5" else FixedSolver(word, setting)
        label = solver.label
    found = scored(flow, rows, solver)
    off = fine.log_prob - found.log_prob
    row = {"solver": label, "nfe": found.nfe or setting * EXPLICIT_SCHEMES[word].stages, "seconds": found.seconds,
           "nll": -float(found.log_prob.mean()), "gap": float(off.mean()),
           "half": NORMAL * float(off.std()) / len(off) ** 0.5}  # fmt: skip
    return {**row, "holds": check_steps(flow, rows, integrate=False).holds} if exact else row


@torch.no_grad()
def scored(flow: Flow, rows: Tensor, solver: Solver | None) -> Scores:
    """Score rows; a flow of exact steps needs no solver, and counts no evaluations."""
    begun, parts, counts = time.process_time(), [], []
    for part in rows.split(CHUNK):
        values, moved = flow.evaluate_log_prob(part, options=SolveOptions(solver=solver))
        parts.append(values)
        counts.append(sum(stats.nfe for stats in moved.stats))
    seconds = (time.process_time() - begun) * 10_000 / len(rows)
    return Scores(torch.cat(parts).double().numpy(), float(np.mean(counts)), seconds)


def table(rows: list[Row], name: str) -> str:
    """The gap on a set by evaluations for each method of fixed steps; then by tolerance for the adaptive one."""
    own = {row["method"]: row for row in rows if row["set"] == name}
    if not own:
        return ""
    fine = next(iter(own.values()))
    head = f"{name}: NLL {fine['fine']:.3f} by a fine solve of {fine['fine_nfe']:.0f} evaluations"
    fixed = {method: row["points"] for method, row in own.items() if method != "dopri5"}
    counts = sorted({each["nfe"] for points in fixed.values() for each in points})
    lines = [f"| {n:.0f} | " + " | ".join(cell(points, n) for points in fixed.values()) + " |" for n in counts]
    lines = [head, "", "| NFE | " + " | ".join(fixed) + " |", "|---|" + "---|" * len(fixed), *lines]
    adaptive = own["dopri5"]["points"] if "dopri5" in own else []
    return "\n".join([*lines, "", *[f"{p['solver']}: {p['nfe']:.0f} evaluations, {shown(p)}" for p in adaptive]])


def cell(points: list[Row], nfe: float) -> str:
    """The gap of the point with so many evaluations; a dash without one."""
    return next((shown(each) for each in points if each["nfe"] == nfe), "-")


def shown(each: Row) -> str:
    """A gap with its interval; a star where the receipt says that the steps fold."""
    return f"{each['gap']:+.3f} ± {each['half']:.3f}" + (" *" if each.get("holds") is False else "")


def drawn(rows: list[Row], name: str) -> dict[str, list[list[float]]]:
    """The curves to draw: NFE, NLL and its ends, without steps that fold and points far from the fine solve."""
    curves = {
        row["method"]: [[p["nfe"], p["nll"], p["nll"] - p["half"], p["nll"] + p["half"]] for p in row["points"]
                        if abs(p["gap"]) < DRAWN and p.get("holds", True)]
        for row in rows if row["set"] == name
    }  # fmt: skip
    return {method: points for method, points in curves.items() if points}


if __name__ == "__main__":
    run(main)
