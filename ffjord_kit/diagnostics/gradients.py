r"""Gradients of the log-likelihood against finite differences, for any dynamics, trace and solver.

For the mean log-likelihood L(theta, x) in float64, and unit directions u in the space of parameters and rows,

    error = max over u of |<grad L, u> - (L(+ h u) - L(- h u)) / 2h| / |grad L|,

where the differences are those of the same fixed steps, or, of an adaptive method, of a solve so fine that the
roughness of its steps is not felt. The adjoint's error is thus that of its own integration too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.flow import Flow
from ffjord_kit.solver import GRADIENTS, SolveError, Solver
from ffjord_kit.trace import ExactTrace, TraceEstimator

STEP = 1e-5
REFERENCE = 1e-10  # tolerance
GOOD = 1e-2  # an error that no training feels, below its own noise by far
SOLVERS = (Solver("dopri5"), Solver("rk4", steps=20))


@dataclass(frozen=True)
class GradientCheck:
    """One way to a gradient: its relative error, its seconds, and the bytes that the way forward keeps for it.

    `failure` says why there is none.
    """

    solver: Solver
    error: float = float("nan")
    seconds: float = float("nan")
    kept_bytes: int = 0
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether training may rely on it."""
        return self.error <= GOOD


def check_gradients(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    solvers: Sequence[Solver] = SOLVERS,
    trace: TraceEstimator | None = None,
    directions: int = 4,
    seed: int = 0,
) -> list[GradientCheck]:
    """Each solver with each way back that it has, checked on the rows x (batch, *event), context (batch, context_dim).

    The flow stays as it is. A stochastic trace has the same noise throughout. Raises ValueError for a flow without
    parameters, or rows that are not its own.
    """
    flow, x = copy.deepcopy(flow).double().requires_grad_(True), x.detach().double()
    context = None if context is None else context.detach().double()
    flow.check(x, context)
    loss = _Loss(flow, context, trace or ExactTrace(), seed)
    if not loss.parameters:
        raise ValueError("this flow has no parameters, so there are no gradients to check")
    found = []
    for solver in solvers:
        slopes = loss.differences(x, _reference(solver), directions, seed)
        for gradient in GRADIENTS:
            try:
                found.append(_checked(loss, x, replace(solver, gradient=gradient), slopes))
            except (ValueError, SolveError) as error:
                found.append(GradientCheck(replace(solver, gradient="backprop"), failure=f"{gradient}: {error}"))
    return found


def gradient_table(checks: Sequence[GradientCheck]) -> str:
    """The checks as lines of text, and which way to use: of the good ones the fastest, and the one that keeps least."""
    lines = [f"{'solver':<16}{'gradient':<15}{'error':>9}{'ms':>9}{'kept, kB':>10}"]
    for check in checks:
        name = check.solver.method if check.solver.steps is None else f"{check.solver.method} x {check.solver.steps}"
        numbers = f"{check.error:>9.1e}{1e3 * check.seconds:>9.1f}{check.kept_bytes / 1e3:>10.0f}"
        lines.append(f"{name:<16}" + (check.failure or f"{check.solver.gradient:<15}{numbers}"))
    good = [check for check in checks if check.good]
    if not good:
        return "\n".join([*lines, f"no gradient is right to {GOOD:g}: is a layer or the dynamics not differentiable?"])
    fast, small = min(good, key=lambda c: c.seconds), min(good, key=lambda c: c.kept_bytes)
    told = [f"{check.solver.method} with {check.solver.gradient}" for check in (fast, small)]
    return "\n".join([*lines, f"use {told[0]} for speed, {told[1]} for memory"])


class _Loss:
    """The mean log-likelihood of rows as a function of parameters and rows."""

    def __init__(self, flow: Flow, context: Tensor | None, trace: TraceEstimator, seed: int) -> None:
        self.flow, self.context, self.trace, self.seed = flow, context, trace, seed
        self.parameters = list(flow.parameters())

    def __call__(self, x: Tensor, solver: Solver) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return self.flow.log_prob(x, self.context, trace=self.trace, solver=solver, generator=generator).mean()

    @torch.no_grad()
    def differences(self, x: Tensor, solver: Solver, count: int, seed: int) -> list[tuple[list[Tensor], float]]:
        """Unit directions in parameters and rows, and the central difference along each."""
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(count):
            like = [*self.parameters, x]
            direction = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in like]
            size = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
            direction = [part / size for part in direction]
            ends = [self._moved(x, solver, direction, sign * STEP) for sign in (1, -1)]
            found.append((direction, (ends[0] - ends[1]) / (2 * STEP)))
        return found

    def _moved(self, x: Tensor, solver: Solver, direction: list[Tensor], step: float) -> float:
        for parameter, part in zip(self.parameters, direction, strict=False):
            parameter.add_(part, alpha=step)
        try:
            return float(self(x + step * direction[-1], solver))
        finally:
            for parameter, part in zip(self.parameters, direction, strict=False):
                parameter.sub_(part, alpha=step)


def _reference(solver: Solver) -> Solver:
    """The solver of the differences: the same fixed steps, or a fine solve."""
    return solver if solver.steps is not None else Solver("dopri5", REFERENCE, REFERENCE, max_nfe=10**6)


def _checked(loss: _Loss, x: Tensor, solver: Solver, slopes: Sequence[tuple[list[Tensor], float]]) -> GradientCheck:
    point = x.clone().requires_grad_()
    begun = time.perf_counter()
    with _counting() as kept:
        value = loss(point, solver)
    gradients = torch.autograd.grad(value, [*loss.parameters, point], allow_unused=True)
    seconds = time.perf_counter() - begun
    size = float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())
    apart = [abs(_along(gradients, direction) - slope) for direction, slope in slopes]
    return GradientCheck(solver, max(apart) / max(size, torch.finfo(x.dtype).tiny), seconds, sum(kept.values()))


def _along(gradients: Sequence[Tensor | None], direction: Sequence[Tensor]) -> float:
    pairs = zip(gradients, direction, strict=True)
    return float(sum((g * part).sum() for g, part in pairs if g is not None))


@contextmanager
def _counting() -> Iterator[dict[int, int]]:
    """The bytes of each memory that is kept for the way back, by its address."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
