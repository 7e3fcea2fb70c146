r"""Gradients of the log-likelihood against finite differences, for any dynamics, trace and solver.

For the mean log-likelihood L(theta, x) in float64, and unit directions u in the space of parameters and rows,

    error = max over u of |<grad L, u> - (L(+ h u) - L(- h u)) / 2h| / |grad L|.

The differences are taken by the same fixed steps, or, for an adaptive method, by a solve so fine that the changes of
its steps do not matter. So the error of an adjoint includes that of its own integration.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.ode import ADJOINTS, AdaptiveSolver, FixedSolver, PerRowSolver, Solver
from ffjord_kit.ode.errors import SolveError
from ffjord_kit.trace import ExactTrace, TraceEstimator

STEP = 1e-5
REFERENCE_TOLERANCE, REFERENCE_MAX_NFE = 1e-10, 10**6
MAX_ERROR = 1e-2  # far below the noise of training
SOLVERS = (AdaptiveSolver("dopri5"), FixedSolver("rk4", steps=20))


@dataclass(frozen=True)
class GradientCheck:
    """A gradient by one solver and one adjoint.

    Args:
        solver: Solver, whose `adjoint` says how the gradient runs back.
        error: Relative error; NaN where there is no gradient.
        seconds: Seconds of the way forward and back.
        saved_bytes: Bytes that the way forward saves for the way back.
        failure: Why there is no gradient; empty where there is one.

    Example:
        >>> solver = FixedSolver("rk4", steps=4)
        >>> GradientCheck(solver, error=1e-9).good, GradientCheck(solver, failure="no inverse").good
        (True, False)
    """

    solver: Solver
    error: float = float("nan")
    seconds: float = float("nan")
    saved_bytes: int = 0
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether the error is small enough for training."""
        return self.error <= MAX_ERROR


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
    """Check the gradients of each solver with each adjoint against finite differences.

    The flow stays as it is: a copy in float64 does the work. A stochastic trace has the same noise throughout.

    Args:
        flow: Flow.
        x: Rows, shape (batch, *event).
        context: Contexts, shape (batch, context_dim), or None.
        solvers: Solvers to check; their own adjoints do not matter.
        trace: Trace estimator; exact if None.
        directions: Number of random directions.
        seed: Seed of the directions and of the trace's noise.

    Returns:
        One check for each solver and each word of ADJOINTS.

    Raises:
        ValueError: If the flow has no parameters, or the rows do not fit it.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> from ffjord_kit.transforms import CNF
        >>> flow = Flow([CNF(ConcatDynamics((1,), hidden=(4,)), (1,))])
        >>> checks = check_gradients(flow, torch.ones(2, 1), solvers=[FixedSolver("rk4", steps=2)], directions=1)
        >>> [check.solver.adjoint for check in checks]
        ['backprop', 'checkpointed', 'adjoint', 'seminorm', 'reversible']
    """
    flow = copy.deepcopy(flow).double().requires_grad_(True)
    batch = Batch(x.detach().double(), None if context is None else context.detach().double())
    flow.check(batch.x, batch.context)
    loss = _Loss(flow, batch, trace or ExactTrace(), seed, directions)
    if not loss.parameters:
        raise ValueError("this flow has no parameters, so there are no gradients to check")
    return [_check(loss, solver, adjoint) for solver in solvers for adjoint in ADJOINTS]


def gradient_table(checks: Sequence[GradientCheck]) -> str:
    """Format checks as a table, and name the fastest good gradient and the one that saves the fewest bytes.

    Args:
        checks: Checks of `check_gradients`.

    Returns:
        Lines of text: a header, one for each check, and advice.

    Example:
        >>> check = GradientCheck(FixedSolver("rk4", steps=4), error=1e-9, seconds=0.004, saved_bytes=2000)
        >>> print(gradient_table([check]))
        solver          adjoint            error       ms saved, kB
        rk4 x 4         backprop         1.0e-09      4.0         2
        use rk4 with backprop for speed, rk4 with backprop for memory
    """
    names = [_name(check.solver) for check in checks]
    width = max(15, *map(len, names)) + 1
    lines = [f"{'solver':<{width}}{'adjoint':<15}{'error':>9}{'ms':>9}{'saved, kB':>10}"]
    for name, check in zip(names, checks, strict=True):
        numbers = f"{check.error:>9.1e}{1e3 * check.seconds:>9.1f}{check.saved_bytes / 1e3:>10.0f}"
        lines.append(f"{name:<{width}}" + (check.failure or f"{check.solver.adjoint:<15}{numbers}"))
    good = [check for check in checks if check.good]
    if not good:
        advice = f"no gradient is right to {MAX_ERROR:g}: is a transform or the dynamics not differentiable?"
        return "\n".join([*lines, advice])
    best = min(good, key=lambda check: check.seconds), min(good, key=lambda check: check.saved_bytes)
    fastest, smallest = (f"{check.solver.method} with {check.solver.adjoint}" for check in best)
    return "\n".join([*lines, f"use {fastest} for speed, {smallest} for memory"])


def _name(solver: Solver) -> str:
    return f"{solver.method} x {solver.steps}" if isinstance(solver, FixedSolver) else str(solver.method)


class _Loss:
    """The mean log-likelihood as a function of parameters and rows."""

    def __init__(self, flow: Flow, batch: Batch, trace: TraceEstimator, seed: int, directions: int) -> None:
        self.flow, self.batch, self.trace, self.seed, self.directions = flow, batch, trace, seed, directions
        self.parameters = list(flow.parameters())
        self.slopes: dict[Solver, list[tuple[list[Tensor], float]]] = {}

    def __call__(self, x: Tensor, solver: Solver) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        context = self.batch.context
        return self.flow.log_prob(x, context, trace=self.trace, solver=solver, generator=generator).mean()

    def central_differences(self, solver: Solver) -> list[tuple[list[Tensor], float]]:
        """Return unit directions in parameters and rows, and the central difference along each, once for a solver."""
        if solver not in self.slopes:
            self.slopes[solver] = self._differences(solver)
        return self.slopes[solver]

    @torch.no_grad()
    def _differences(self, solver: Solver) -> list[tuple[list[Tensor], float]]:
        generator, slopes = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.directions):
            points = [*self.parameters, self.batch.x]
            direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in points]
            size = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
            direction = [part / size for part in direction]
            above, below = (self._shifted(solver, direction, sign * STEP) for sign in (1, -1))
            slopes.append((direction, (above - below) / (2 * STEP)))
        return slopes

    def _shifted(self, solver: Solver, direction: Sequence[Tensor], step: float) -> float:
        """Evaluate at parameters and rows that are shifted along a direction; the parameters are put back."""
        for parameter, part in zip(self.parameters, direction, strict=False):
            parameter.add_(part, alpha=step)
        try:
            return float(self(self.batch.x + step * direction[-1], solver))
        finally:
            for parameter, part in zip(self.parameters, direction, strict=False):
                parameter.sub_(part, alpha=step)


def _reference(solver: Solver) -> Solver:
    """Return the solver of the differences: the same fixed steps, or a fine solve."""
    if isinstance(solver, FixedSolver):  # a reversible gradient has steps of its own
        return solver if solver.adjoint == "reversible" else replace(solver, adjoint="backprop")
    return AdaptiveSolver("dopri5", REFERENCE_TOLERANCE, REFERENCE_TOLERANCE, max_nfe=REFERENCE_MAX_NFE)


def _check(loss: _Loss, solver: Solver, adjoint: str) -> GradientCheck:
    """Check one adjoint of a solver; a solver without it gets a failure."""
    try:
        chosen = _with_adjoint(solver, adjoint)
        return _compare(loss, chosen, loss.central_differences(_reference(chosen)))
    except (ValueError, SolveError) as error:
        return GradientCheck(_with_adjoint(solver, "backprop"), failure=f"{adjoint}: {error}")


def _compare(loss: _Loss, solver: Solver, slopes: Sequence[tuple[list[Tensor], float]]) -> GradientCheck:
    point = loss.batch.x.clone().requires_grad_()
    start = time.perf_counter()
    with _count_saved_bytes() as saved:
        value = loss(point, solver)
    gradients = torch.autograd.grad(value, [*loss.parameters, point], allow_unused=True)
    seconds = time.perf_counter() - start
    size = float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())
    differences = [abs(_inner_product(gradients, direction) - slope) for direction, slope in slopes]
    error = max(differences) / max(size, torch.finfo(point.dtype).tiny)
    return GradientCheck(solver, error, seconds, sum(saved.values()))


def _with_adjoint(solver: Solver, adjoint: str) -> Solver:
    if isinstance(solver, (AdaptiveSolver, FixedSolver, PerRowSolver)):
        return replace(solver, adjoint=adjoint)
    raise TypeError(f"expected an adaptive, fixed or per-row solver; got {type(solver).__name__}")


def _inner_product(gradients: Sequence[Tensor | None], direction: Sequence[Tensor]) -> float:
    pairs = zip(gradients, direction, strict=True)
    return float(sum((gradient * part).sum() for gradient, part in pairs if gradient is not None))


@contextmanager
def _count_saved_bytes() -> Iterator[dict[int, int]]:
    """Collect the bytes of each memory that autograd saves, by its address."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        saved[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
