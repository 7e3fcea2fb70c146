"""Few exact steps on a GPU: log-densities and steps of training, kernel by kernel, by a CUDA graph, and compiled.

    python benchmarks/gpu_steps.py [--columns 2,9,21] [--compile] [--device cuda]

Default networks in float32 with random weights, midpoint in 8 steps (16 evaluations). Seconds on the wall for 10,000
log-densities at once, and milliseconds for a step of training (gradient of the exact likelihood and Adam) with 128 and
512 rows. A graph records the kernels once and launches them together; "-" says that it could not be recorded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ffjord_kit import Flow, ResidualDynamics
from ffjord_kit.transforms import Stepped

ROWS, BATCHES, STEPS, REPEATS, WARM_UPS = 10_000, (128, 512), 8, 20, 3
NARROW, WIDE = (64, 64, 64), (128, 128, 128)
Work = Callable[[], object]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="2,9,21", help="numbers of columns (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="by torch.compile too, which takes minutes")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine; --device cpu shows that the command runs")
    print("| columns | work | kernel by kernel | CUDA graph | compiled |\n|" + "---|" * 5)
    for columns in map(int, given.columns.split(",")):
        flow, rows = _flow(columns, given.device), torch.randn(ROWS, columns, device=given.device)
        _line(columns, "10,000 log-densities", _scoring(flow, rows), given)
        for batch in BATCHES:
            _line(columns, f"a step of training, {batch} rows", _training(flow, rows[:batch], given.device), given)


def _flow(columns: int, device: str) -> Flow:
    torch.manual_seed(0)
    field = ResidualDynamics((columns,), hidden=NARROW if columns <= 3 else WIDE)
    return Flow([Stepped(field, (columns,), method="midpoint", steps=STEPS)]).to(device)


def _scoring(flow: Flow, rows: Tensor) -> Work:
    @torch.no_grad()
    def work() -> Tensor:
        return flow.log_prob(rows)

    return work


def _training(flow: Flow, rows: Tensor, device: str) -> Work:
    adam = torch.optim.Adam(flow.parameters(), lr=1e-5, capturable=device != "cpu")

    def work() -> None:
        adam.zero_grad(set_to_none=False)
        (-flow.log_prob(rows).mean()).backward()
        adam.step()

    return work


def _line(columns: int, what: str, work: Work, given: argparse.Namespace) -> None:
    times = [_milliseconds(work, given.device)]
    for other in (_graph if given.device != "cpu" else None, torch.compile if given.compile else None):
        try:
            times.append(None if other is None else _milliseconds(other(work), given.device))
        except RuntimeError as error:
            print(f"{what}: {str(error).splitlines()[0]}", file=sys.stderr)
            times.append(None)
    cells = ["-" if ms is None else f"{ms:.2f} ms" for ms in times]
    print(f"| {columns} | {what} | {' | '.join(cells)} |", flush=True)


def _graph(work: Work) -> Work:
    """Return the replay of a graph that was recorded from the work, after it ran a few times beside."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _milliseconds(work: Work, device: str) -> float:
    """Median time of the work, which is done a few times before."""
    found = []
    for count in range(WARM_UPS + REPEATS):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if count >= WARM_UPS:
            found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found)


if __name__ == "__main__":
    main()
