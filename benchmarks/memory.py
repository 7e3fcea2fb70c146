"""Peak memory of one gradient step of maximum likelihood against the number of steps, for each adjoint.

    python benchmarks/memory.py [--steps 4,8,16,32,64] [--json FILE]

The default network in the plane, 256 rows, exact trace, rk4. On the CPU each point is a process of its own, and the
figure is what the operating system saw: the peak of its resident memory over that after a small warm-up step (so
it holds the gradients, and pages that the allocator keeps). On a GPU it is the peak that torch allocated.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from command import environment, options, run
from report import table
from results import Store

from ffjord_kit import CNF, FixedSolver, Flow, ResidualDynamics
from ffjord_kit.ode import ADJOINTS

BENCHMARK = "memory"
ROWS, WARM_UP_ROWS = 256, 8
STEPS = "4,8,16,32,64"
MEGABYTE = 2**20
STATUS = Path("/proc/self/status")
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def main() -> None:
    """Measure every point, each in its own process, and print the table."""
    given = options(
        __doc__, sets=("normal",), methods=tuple(ADJOINTS), budgets=(), extra={"--steps": {"default": STEPS}}
    )
    store = Store(given.json)
    for method in given.only:
        for steps in map(int, given.steps.split(",")):
            key = {"benchmark": BENCHMARK, "set": "normal", "method": method, "setting": steps, "seed": given.seed,
                   "device": given.device, "budget": None}  # fmt: skip
            if given.again or not store.has(**key):
                row = {**key, "peak_mb": round(alone(peak, method, steps, given.device) / MEGABYTE, 2)}
                store.add({**row, **environment()})
                print(f"{method:<14}{steps:>6} steps  {row['peak_mb']:>10.2f} MB", flush=True)
    print(table(store.rows(), BENCHMARK))


def alone(function: Callable[..., int], *args: Any) -> int:
    """What a function returns in a fresh process. Raises RuntimeError where that process fails."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_tell, args=(there, function, *args))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process that measured {function.__name__}{args} ended with {process.exitcode}")
    return here.recv()


def peak(method: str, steps: int, device: str) -> int:
    """Bytes that one gradient step takes at its peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    how = FixedSolver("rk4", steps=steps, adjoint=method)
    flow = Flow([CNF(ResidualDynamics((2,)), (2,), solver=how)]).to(device)
    _step(flow, WARM_UP_ROWS, device)
    before = used(device)
    _step(flow, ROWS, device)
    return max(0, used(device) - before)  # the kernel counts pages per core, so its peak may fall by some


def _step(flow: Flow, rows: int, device: str) -> None:
    flow.zero_grad(set_to_none=True)
    (-flow.log_prob(torch.randn(rows, 2, device=device)).mean()).backward()


def used(device: str) -> int:
    """The most bytes that this process has had so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # on Linux, where the usage of a fresh process begins with the peak of the one that started it
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def _tell(there: Connection, function: Callable[..., int], *args: Any) -> None:
    there.send(function(*args))


if __name__ == "__main__":
    run(main)
