"""What a log-density by few exact steps costs: operations, the machine's limit, and the share of it that is reached.

    python benchmarks/step_cost.py [--columns 2,5,9,21,43,63] [--compile]

One thread, float32, 2,000 rows, the network and the evaluations that a fit of so many columns has; rows are scored as
many at once as the caches hold with their tangents (`Flow.rows_at_once`), and beside it 512 at once. Operations
are those of the products with the network's matrices for a state and its frame of tangents, 2 E (1 + d) W a row for E
evaluations and W weights. The limit is the rate of one product of matrices of the network's size.
"""

from __future__ import annotations

import argparse
import time

import torch
from clock import least_seconds

from ffjord_kit import Flow, ResidualDynamics
from ffjord_kit.estimator.discretize import FAST, MANY
from ffjord_kit.training.discretize import FEW
from ffjord_kit.transforms import Stepped

ROWS, MANY_AT_ONCE = 2000, 512
NARROW, WIDE = (64, 64, 64), (128, 128, 128)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="2,5,9,21,43,63", help="numbers of columns (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="by torch.compile, and print what compiling takes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = "columns", "rows at once", "Mflop a row", "limit, s for 10,000 rows", "measured", "share", "512 at once"
    print(f"| {' | '.join(head)} |", "|" + "---|" * len(head), sep="\n")
    for columns in map(int, given.columns.split(",")):
        print(_row(columns, compiled=given.compile), flush=True)


@torch.no_grad()
def _row(columns: int, *, compiled: bool) -> str:
    torch.manual_seed(0)
    widths = NARROW if columns <= FEW else WIDE
    evaluations = (FAST if columns <= FEW else MANY).evaluations[0]
    field = ResidualDynamics((columns,), hidden=widths)
    flow = Flow([Stepped(field, (columns,), method="euler", steps=evaluations)])
    x, log_prob = torch.randn(ROWS, columns), flow.log_prob
    if compiled:
        begun = time.perf_counter()
        log_prob = torch.compile(log_prob)
        log_prob(x[: flow.rows_at_once])
        print(f"compiled in {time.perf_counter() - begun:.0f} s")
    weights = 2 * columns * widths[0] + sum(a * b for a, b in zip(widths, (*widths[1:], widths[-1]), strict=True))
    operations = 2 * evaluations * (1 + columns) * weights
    rows = flow.rows_at_once
    limit = operations * 10_000 / _rate(widths[0], rows * (1 + columns))
    seconds, many = (
        least_seconds(lambda at_once=at_once: [log_prob(part) for part in x.split(at_once)]) * 10_000 / ROWS
        for at_once in (rows, MANY_AT_ONCE)
    )
    return (
        f"| {columns} | {rows} | {operations / 1e6:.1f} | {limit:.2f} | {seconds:.2f} | {limit / seconds:.0%} | "
        f"{many:.2f} |"
    )


def _rate(width: int, rows: int) -> float:
    """Operations in a second of a product of (rows, width) and (width, width)."""
    a, b = torch.randn(rows, width), torch.randn(width, width)
    repeats = max(1, 20_000 // rows)
    return 2 * rows * width * width * repeats / least_seconds(lambda: [a @ b for _ in range(repeats)])


if __name__ == "__main__":
    main()
