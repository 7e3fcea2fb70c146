"""The number of CPU threads: one or all, whichever a short measurement finds faster.

Products of small matrices gain little by a second thread, and on a busy machine the threads wait for each other. What
the user has set, by torch.set_num_threads or in the environment, stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator
from ffjord_kit.ode import FixedSolver
from ffjord_kit.training import Phase
from ffjord_kit.training.data import preprocessed
from ffjord_kit.transforms.cnf import SolveOptions

AT_START = torch.get_num_threads()
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the environment
REPEATS = 5
GAIN = 1.5  # all threads must be faster by this factor, as they cost more CPU time
ONE_STEP = SolveOptions(trace=None, solver=FixedSolver("euler", 1))

_chosen: dict[tuple[Hashable, ...], int] = {}


def training_threads(flow: Flow, rows: Batch, phases: Sequence[Phase], batch_size: int) -> AbstractContextManager[None]:
    """Return a context with as many threads as train a flow faster.

    Args:
        flow: Flow.
        rows: Rows to train on.
        phases: Schedule of training, whose first phase decides.
        batch_size: Rows of a step.

    Returns:
        The context.
    """
    if not phases or phases[0].objective.name != "flow_matching":
        return nullcontext()
    objective = phases[0].objective
    count = min(len(rows), batch_size)

    def train_once() -> None:
        batch = preprocessed(flow, rows[torch.arange(count)]).batch
        with torch.enable_grad():
            objective.loss(flow.inner, batch, keyed_generator(batch.x.device, "threads")).value.backward()
        flow.zero_grad(set_to_none=True)

    return faster_threads(train_once, flow.like.device, ("fit", *_size(flow, count)))


def solving_threads(flow: Flow, rows: Batch) -> AbstractContextManager[None]:
    """Return a context with as many threads as solve for rows faster.

    Args:
        flow: Flow.
        rows: Rows, at most as many as are solved at once, and contexts.

    Returns:
        The context.
    """
    generator = keyed_generator(flow.like.device, "threads")
    x = flow.base.sample(len(rows), generator).to(flow.like)  # zeros would be on no sphere
    context = None if rows.context is None else torch.zeros_like(rows.context).to(flow.like)

    @torch.no_grad()
    def solve_once() -> None:
        flow.inner.to_base(x, context, options=ONE_STEP)

    return faster_threads(solve_once, flow.like.device, ("solve", *_size(flow, len(x))))


def _size(flow: Flow, rows: int) -> tuple[int, ...]:
    return rows.bit_length(), sum(p.numel() for p in flow.parameters())


@contextmanager
def faster_threads(work: Callable[[], object], device: torch.device, key: tuple[Hashable, ...]) -> Iterator[None]:
    """Use one thread or all, whichever is faster, in a context.

    Args:
        work: Piece of the work to come, some milliseconds long; it is run twenty times, once in a process.
        device: Device of the work.
        key: What the work depends on.

    Yields:
        Nothing.
    """
    if device.type != "cpu" or _is_settled():
        yield
        return
    before = torch.get_num_threads()
    try:
        if key not in _chosen:
            _chosen[key] = _faster(work, before)
        torch.set_num_threads(_chosen[key])
        yield
    finally:
        torch.set_num_threads(before)


def _is_settled() -> bool:
    """Say whether the user, or an outer context, has chosen."""
    number = torch.get_num_threads()
    return number == 1 or number != AT_START or any(name in os.environ for name in SETTINGS)


def _faster(work: Callable[[], object], most: int) -> int:
    """Return 1 or the number of all threads, by the least wall time of some repeats in turn."""
    seconds = {1: float("inf"), most: float("inf")}
    for _ in range(REPEATS):
        for threads in seconds:
            torch.set_num_threads(threads)
            work()  # threads wake up
            begun = time.perf_counter()
            work()
            seconds[threads] = min(seconds[threads], time.perf_counter() - begun)
    return most if seconds[most] * GAIN < seconds[1] else 1
