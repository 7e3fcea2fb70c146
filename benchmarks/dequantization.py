"""Does learned noise pay? Bits per dimension of the same images with uniform and with variational dequantization.

    python benchmarks/dequantization.py [--sets digits] [--budgets 100] [--flow 80] [--draws 1,8] [--json FILE]

A U-Net is trained by flow matching as in images.py, for `--flow` CPU seconds of one thread. Then, each from there for
`--budgets` seconds: `variational` fits a dequantizer to the flow as it is, `likelihood` trains the flow by maximum
likelihood under uniform noise, `joint` both together. The first 64 test images, K draws of the noise that share the
eight probes of the trace, rk4 with eight graded steps; the difference from uniform noise with the first K is of each
image, and so is its standard error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from clock import Clock
from command import environment, options, run
from images import BITS, Images, load, ours
from results import Store

from ffjord_kit import FixedSolver, Flow, MaximumLikelihood, Phase, fit_flow
from ffjord_kit.data import Pixels
from ffjord_kit.diagnostics import bits_per_dim
from ffjord_kit.objectives.dequantization import Dequantizer, VariationalDequantizer
from ffjord_kit.training import TrainConfig, fit_dequantizer

BENCHMARK = "dequantization"
METHODS = ("uniform", "variational", "likelihood", "joint")
JUDGED, PROBES = 64, 8
JUDGE = FixedSolver("rk4", steps=8, grading=2.0)
TRAINED = FixedSolver("rk4", steps=4, grading=2.0)  # where the guard begins
BATCH, RATES = 16, {"variational": 5e-3, "likelihood": 1e-3, "joint": 1e-3}


def prepared(
    method: str, flow: Flow, images: Images, seconds: float, seed: int
) -> tuple[Flow, Dequantizer | None, dict[str, Any]]:
    """The flow and the dequantizer (None: uniform) that a method makes of a flow, which stays as it is."""
    if method == "uniform":
        return flow, None, {"seconds": 0.0, "steps": 0}
    clock, pixels, flow = Clock(), Pixels(images.train, images.bits), copy.deepcopy(flow)
    rate = RATES[method]
    if method == "likelihood":
        phase = Phase(MaximumLikelihood(solver=TRAINED), math.inf, rate, seconds)
        law, history = None, fit_flow(flow, pixels, schedule=[phase], config=TrainConfig(batch_size=BATCH, seed=seed))
    else:
        torch.manual_seed(seed)
        law = VariationalDequantizer(pixels.shape[1:], bits=images.bits)
        history = fit_dequantizer(
            law, flow, pixels, steps=math.inf, seconds=seconds, learning_rate=rate, solver=TRAINED,
            joint=method == "joint", config=TrainConfig(batch_size=BATCH, seed=seed),
        )  # fmt: skip
    return flow, law, {"seconds": round(clock.seconds(), 1), "steps": history.step}


def measured(name: str, methods: Sequence[str], draws: Sequence[int], seconds: tuple[float, float], seed: int) -> list:
    """The rows of one set: methods by numbers of draws; the seconds are those of the flow, and those after it."""
    images, rows, first = load(name), [], None
    _, start, _ = ours(images, seconds[0], seed, name)
    judges = Pixels(images.test[:JUDGED], images.bits)
    for method in methods:
        flow, law, facts = prepared(method, start, images, seconds[1], seed)
        for count in draws:
            found = bits_per_dim(flow, judges, dequantizer=law, draws=count, probes=PROBES, solver=JUDGE)
            first = found.values if first is None else first
            apart = found.values - first
            row = {"set": name, "method": method, "setting": count, "mean": found.mean, **facts, "note": str(found)}
            row["difference"] = float(apart.mean())
            row["difference_error"] = float(apart.std()) / math.sqrt(len(apart))
            rows.append({**row, "standard_error": found.standard_error})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    bits = f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
    apart = f"{row['difference']:+.3f} ± {row['difference_error']:.3f}"
    return f"| {row['set']} | {row['method']} | {row['setting']} | {bits} | {apart} | {row['steps']} |"


def main() -> None:
    """Measure what the options ask for, and print it."""
    extra = {
        "--flow": {"type": float, "default": 80.0, "help": "seconds of flow matching (default: %(default)s)"},
        "--draws": {"default": "1,8", "help": "of the noise (default: %(default)s)"},
    }
    given = options(__doc__, sets=tuple(BITS), methods=METHODS, budgets=(100.0,), extra=extra)
    store, draws = Store(given.json), tuple(map(int, given.draws.split(",")))
    print("| set | method | K | bits/dim | against the first row | steps |\n|---|---|---|---|---|---|")
    for name in given.sets:
        for budget in given.budgets:
            for row in measured(name, given.only, draws, (given.flow, budget), given.seed):
                key = {"benchmark": BENCHMARK, "budget": budget, "seed": given.seed, "device": "cpu"}
                store.add({**key, "flow_seconds": given.flow, **row, **environment()})


if __name__ == "__main__":
    run(main)
