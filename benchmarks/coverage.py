"""Is the stated error of a log-density honest? Random fields, smooth to stiff, against solves at 1e-12.

    python benchmarks/coverage.py [--networks 30]

For each tolerance: the share of rows whose true log-density lies within the stated error (the limit is 0.99), and the
median of stated over actual error (the limit is 10); then the same for Hutchinson's trace with few probes, where the
error is mostly the trace's; then for fields that are not smooth on the scale of a step (`irregular.py`), where a row
that cannot be solved counts as not within. Thirty networks of one, two, three and five dimensions, 60 rows each.
"""

from __future__ import annotations

import argparse
import math

import torch
from irregular import IRREGULAR, Problem
from torch import Tensor, nn

from ffjord_kit import CNF, ConcatDynamics, Flow, PerRowSolver, ResidualDynamics
from ffjord_kit.nn import ConcatSquashDynamics

KINDS = ((ResidualDynamics, 0.3), (ConcatSquashDynamics, 1.0), (ConcatDynamics, 1.0))
SCALES, DIMENSIONS, ROWS = (0.5, 1.0, 1.5, 2.5), (1, 2, 3, 5), 60
TOLERANCES = tuple(10.0**-k for k in range(2, 9))
PROBES, MANY_DIMENSIONS = (2, 4, 8, 16), (6, 12, 24)
RESOLUTION = 1e-9  # of the truths themselves
TRUTH = PerRowSolver(1e-12, 1e-12, max_nfe=10**6)


def main() -> None:
    """Measure, and print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=30, help="random fields (default: %(default)s)")
    parser.add_argument(
        "--irregular", type=int, default=20, help="fields of each irregular kind (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    _smooth_table(options.networks)
    _probes_table()
    _irregular_table(options.irregular)


def _smooth_table(count: int) -> None:
    print("| tolerance | within the stated error | stated over actual, median | actual, mean |\n|---|---|---|---|")
    problems = [_problem(number) for number in range(count)]
    for tolerance in TOLERANCES:
        print(f"| {tolerance:g} | {_told(_all_errors(problems, tolerance=tolerance))} |", flush=True)


def _probes_table() -> None:
    print("\n| dimensions | probes | within the stated error | stated over actual, median | actual, mean |")
    print("|---|---|---|---|---|")
    for size in MANY_DIMENSIONS:
        problems = [_many(number, size) for number in range(4)]
        for probes in (k for k in PROBES if k < size):
            print(f"| {size} | {probes} | {_told(_all_errors(problems, probes=probes))} |", flush=True)


def _irregular_table(count: int) -> None:
    print("\n| field | tolerance | within the stated error | stated over actual, median | actual, mean |")
    print("|---|---|---|---|---|")
    for name, make in IRREGULAR.items():
        problems = [make(number) for number in range(count)]
        for tolerance in TOLERANCES[::2]:
            print(f"| {name} | {tolerance:g} | {_told(_all_errors(problems, tolerance=tolerance))} |", flush=True)


def _problem(number: int) -> Problem:
    kind, own = KINDS[number % 3]
    size, scale = DIMENSIONS[number % 4], own * SCALES[(number // 3) % 4]
    return _solved(_flow(number, kind((size,), hidden=(16, 16)), size, scale), 2.0, ROWS, number)


def _many(number: int, size: int) -> Problem:
    field = ConcatSquashDynamics((size,), hidden=(32, 32))
    return _solved(_flow(number, field, size, 1.2), 1.0, 4 * ROWS, number)


def _flow(number: int, field: nn.Module, size: int, scale: float) -> Flow:
    generator = torch.Generator().manual_seed(number)
    for p in field.requires_grad_(False).parameters():
        width = scale / math.sqrt(p.shape[1]) if p.dim() > 1 else 0.5 * scale
        nn.init.normal_(p, 0.0, width, generator=generator)
    return Flow([CNF(field, (size,))])


def _solved(flow: Flow, spread: float, rows: int, seed: int) -> Problem:
    x = spread * torch.randn(rows, flow.event_shape[0], generator=torch.Generator().manual_seed(seed))
    return flow, x, flow.log_prob(x, solver=TRUTH)


def _all_errors(problems: list[Problem], **asked: float) -> Tensor:
    return torch.cat([_errors(*problem, **asked) for problem in problems], dim=1)


def _errors(flow: Flow, x: Tensor, truth: Tensor, **asked: float) -> Tensor:
    """The actual and the stated errors, (2, rows)."""
    generator = torch.Generator().manual_seed(0)
    result = flow.evaluate(x, **asked, max_nfe=10**6, generator=generator, on_failure="nan")
    return torch.stack([(result.value - truth).abs(), result.error]).detach()


def _told(errors: Tensor) -> str:
    actual, stated = errors
    within = float((actual <= stated + RESOLUTION).double().mean())
    ratio = float((stated / actual.clamp(min=1e-15)).nanmedian())
    return f"{within:.4f} | {ratio:.1f} | {float(actual.nanmean()):.1e}"


if __name__ == "__main__":
    main()
