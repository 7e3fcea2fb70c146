"""The options of maximum likelihood beside each other: what each buys in the same CPU seconds, from the same start.

    python benchmarks/options.py [--budgets 40] [--only plain,adjoint] [--json FILE]

One thread. A small flow is fitted by flow matching (MATCHING steps); each option then trains a copy of it by maximum
likelihood for the same CPU seconds, by Adam with warm-up and a cosine, dopri5 at TRAINING and the exact trace.
Potential dynamics are another network, so they have a start of their own, of as many steps. Judged without gradients,
in float64, on test rows: KL to the truth (exact trace, each row at 1e-5 by itself, ± a standard error), and the
evaluations of one dopri5 solve of all rows at 1e-5. "start" is the fit before any maximum likelihood.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from command import environment, options, run
from report import table
from results import Row, Store
from torch import Tensor

from ffjord_kit import CNF, AdaptiveSolver, Flow, MaximumLikelihood, PerRowSolver, Standardize, datasets, metrics
from ffjord_kit.data import Batch
from ffjord_kit.nn import DYNAMICS
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.trace import ExactTrace
from ffjord_kit.transforms.cnf import PacedField, SolveOptions

BENCHMARK, SETS, BUDGETS = "options", ("pinwheel",), (40.0,)
HIDDEN, BATCH, MATCHING = (64, 64), 256, 1500
RATES = {"flow_matching": 2e-3, "mle": 5e-4}
TRAINING, JUDGING = 1e-3, 1e-5  # tolerances
ROWS, JUDGED = 10_000, 2000


class Option(NamedTuple):
    """What differs from plain maximum likelihood."""

    dynamics: str = "residual"
    adjoint: str = "backprop"
    learn_end_time: bool = False
    steer: float = 0.0
    costs: dict[str, float] = {}  # noqa: RUF012  never changed


OPTIONS = {
    "plain": Option(),
    "kinetic + jacobian (RNODE)": Option(costs={"kinetic": 0.01, "jacobian": 0.01}),
    "steer 0.5": Option(steer=0.5),
    "learned end time": Option(learn_end_time=True),
    "acceleration": Option(costs={"acceleration": 1e-4}),
    "jerk": Option(costs={"jerk": 1e-7}),
    "checkpointed": Option(adjoint="checkpointed"),
    "adjoint": Option(adjoint="adjoint"),
    "seminorm": Option(adjoint="seminorm"),
    "potential": Option("potential"),
    "potential + hjb": Option("potential", costs={"hjb": 0.01}),
}


def main() -> None:
    """Run what the options ask for, and print the rows."""
    given = options(__doc__, sets=SETS, methods=tuple(OPTIONS), budgets=BUDGETS)
    store = Store(given.json)
    for name in given.sets:
        for budget in given.budgets:
            key = {"benchmark": BENCHMARK, "set": name, "budget": budget, "seed": given.seed, "device": "cpu"}
            for row in rows(name, given.only, budget, given.seed):
                store.add({**key, **row, **environment()})
    print(table(store.rows(), BENCHMARK))


def rows(name: str, chosen: Sequence[str], seconds: float, seed: int) -> Iterator[Row]:
    """The starts, and the options chosen, judged."""
    x = torch.as_tensor(datasets.load(f"{name}:train", rows=ROWS, seed=seed).x)
    test, starts = datasets.load(f"{name}:test", rows=JUDGED, seed=seed), {}
    for word in dict.fromkeys(OPTIONS[label].dynamics for label in chosen):
        starts[word] = flow_of(Option(word), x, seed)
        spent = train(starts[word], FlowMatching(), x, lambda steps, _: steps / MATCHING, seed)
        yield {"method": f"start, {word}", **spent, **judged(starts[word], test)}
    for label in chosen:
        option = OPTIONS[label]
        flow = flow_of(option, x, seed)
        inside(flow).load_state_dict(copy.deepcopy(inside(starts[option.dynamics]).state_dict()))
        objective = MaximumLikelihood(ExactTrace(), option.costs, steer=option.steer)
        spent = train(flow, objective, x, lambda _, s: s / seconds, seed)
        yield {"method": label, **spent, **judged(flow, test)}


def flow_of(option: Option, x: Tensor, seed: int) -> Flow:
    """An untrained flow whose exact layer is fitted to x (n, 2)."""
    torch.manual_seed(seed)
    solver = AdaptiveSolver("dopri5", TRAINING, TRAINING, adjoint=option.adjoint)
    dynamics = DYNAMICS[option.dynamics]((2,), hidden=HIDDEN)
    cnf = CNF(dynamics, (2,), solver=solver, learn_end_time=option.learn_end_time)
    return Flow([Standardize.of(x), cnf]).float()


def inside(flow: Flow) -> torch.nn.Module:
    """The network, without the pace of a learned end time."""
    dynamics = flow.transforms[-1].dynamics
    return dynamics.dynamics if isinstance(dynamics, PacedField) else dynamics


def train(
    flow: Flow, objective: Objective, x: Tensor, done: Callable[[int, float], float], seed: int
) -> dict[str, float]:
    """Train until `done`, of the steps and CPU seconds so far, reaches 1; what it took."""
    x, generator, steps, begun = x.float(), torch.Generator().manual_seed(seed), 0, time.process_time()
    parameters = list(flow.parameters())
    optimizer = torch.optim.Adam(parameters)
    while (part := done(steps, time.process_time() - begun)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATES[objective.name] * min(1.0, 0.01 + 10 * part) * 0.5 * (1 + math.cos(math.pi * part))
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        objective.loss(flow, Batch(batch), generator).value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
    spent = time.process_time() - begun
    return {"steps": steps, "seconds": spent, "ms_per_step": 1000 * spent / steps}


@torch.no_grad()
def judged(flow: Flow, test: Any) -> dict[str, float]:
    """KL to the truth with its standard error, and evaluations, of converged solves."""
    flow, x = copy.deepcopy(flow).double(), torch.as_tensor(test.x)
    log_prob = flow.log_prob(x, solver=PerRowSolver(JUDGING, JUDGING))
    kl, error = metrics.mean_and_standard_error(test.log_prob(test.x) - log_prob.numpy())
    _, moved = flow.evaluate_log_prob(x, options=SolveOptions(solver=AdaptiveSolver("dopri5", JUDGING, JUDGING)))
    return {
        "mean": kl,
        "standard_error": error,
        "nfe": moved.nfe,
        "end_time": float(flow.transforms[-1].learned_end_time),
    }


if __name__ == "__main__":
    run(main)
