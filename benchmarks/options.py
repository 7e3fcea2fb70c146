"""The options of maximum likelihood beside each other: what each buys in the same CPU seconds, from the same start.

    python benchmarks/options.py [--seconds 40] [--set pinwheel] [--seed 0] [--json FILE]

One thread. A small flow is fitted by flow matching (MATCHING steps); each option then trains a copy of it by maximum
likelihood for the same CPU seconds, by Adam with warm-up and a cosine, dopri5 at TRAINING and the exact trace.
Potential dynamics are another network, so they have a start of their own, of as many steps. Judged without gradients,
in float64, on test rows: KL to the truth (exact trace, each row at 1e-5 by itself, ± a standard error), and the
evaluations of one dopri5 solve of all rows at 1e-5. "start" is the fit before any maximum likelihood.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit import CNF, DYNAMICS, Flow, Integration, MaximumLikelihood, Solver, Standardize, datasets, metrics
from ffjord_kit.cnf import Paced
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.trace import ExactTrace

HIDDEN, BATCH, MATCHING = (64, 64), 256, 1500
RATES = {"flow_matching": 2e-3, "mle": 5e-4}
TRAINING, JUDGING = 1e-3, 1e-5  # tolerances
ROWS, JUDGED = 10_000, 2000


class Option(NamedTuple):
    """What differs from plain maximum likelihood."""

    dynamics: str = "residual"
    gradient: str = "backprop"
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
    "checkpointed": Option(gradient="checkpointed"),
    "adjoint": Option(gradient="adjoint"),
    "seminorm": Option(gradient="seminorm"),
    "potential": Option("potential"),
    "potential + hjb": Option("potential", costs={"hjb": 0.01}),
}


def main() -> None:
    """Run every option, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU seconds of maximum likelihood for each option")
    parser.add_argument("--set", default="pinwheel", help="a toy whose truth is known")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.set, options.seconds, options.seed)
    print(table(rows))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


def run(name: str, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Every start and every option, judged."""
    x = torch.as_tensor(datasets.load(f"{name}:train", rows=ROWS, seed=seed).x)
    test = datasets.load(f"{name}:test", rows=JUDGED, seed=seed)
    starts, rows = {}, []
    for word in dict.fromkeys(option.dynamics for option in OPTIONS.values()):
        starts[word] = flow_of(Option(word), x, seed)
        spent = train(starts[word], FlowMatching(), x, lambda steps, _: steps / MATCHING, seed)
        rows.append({"option": f"start, {word}", **spent, **judged(starts[word], test)})
    for label, option in OPTIONS.items():
        flow = flow_of(option, x, seed)
        inside(flow).load_state_dict(copy.deepcopy(inside(starts[option.dynamics]).state_dict()))
        objective = MaximumLikelihood(ExactTrace(), option.costs, steer=option.steer)
        spent = train(flow, objective, x, lambda _, s: s / seconds, seed)
        rows.append({"option": label, **spent, **judged(flow, test)})
    return rows


def flow_of(option: Option, x: Tensor, seed: int) -> Flow:
    """An untrained flow whose exact layer is fitted to x (n, 2)."""
    torch.manual_seed(seed)
    solver = Solver("dopri5", TRAINING, TRAINING, gradient=option.gradient)
    dynamics = DYNAMICS[option.dynamics]((2,), hidden=HIDDEN)
    cnf = CNF(dynamics, (2,), solver=solver, learn_end_time=option.learn_end_time)
    return Flow([Standardize.of(x), cnf]).float()


def inside(flow: Flow) -> torch.nn.Module:
    """The network, without the pace of a learned end time."""
    dynamics = flow.layers[-1].dynamics
    return dynamics.dynamics if isinstance(dynamics, Paced) else dynamics


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
        objective.loss(flow, batch, None, generator).value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
    spent = time.process_time() - begun
    return {"steps": steps, "cpu_seconds": spent, "ms_per_step": 1000 * spent / steps}


@torch.no_grad()
def judged(flow: Flow, test: Any) -> dict[str, float]:
    """KL to the truth with its standard error, and evaluations, of converged solves."""
    flow, x = copy.deepcopy(flow).double(), torch.as_tensor(test.x)
    log_prob = flow.log_prob(x, solver=Solver("dopri5_by_row", JUDGING, JUDGING))
    kl, error = metrics.mean_and_standard_error(test.log_prob(test.x) - log_prob.numpy())
    _, moved = flow.evaluate_log_prob(x, integration=Integration(solver=Solver("dopri5", JUDGING, JUDGING)))
    return {"kl": kl, "standard_error": error, "nfe": moved.nfe, "end_time": float(flow.layers[-1].learned_end_time)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| option | steps | ms a step | NFE at 1e-5 | end time | KL to the truth (nats) |\n|---|---|---|---|---|---|"
    lines = [
        f"| {r['option']} | {r['steps']} | {r['ms_per_step']:.1f} | {r['nfe']} | {r['end_time']:.2f} "
        f"| {r['kl']:.4f} ± {r['standard_error']:.4f} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
