r"""Training as control: the costate and the Jacobian along the paths of a flow, which must neither explode nor vanish.

Training steers the state x(t), from the data at t = 1 to the base at t = 0, so that log p(x(1)) is large. The costate

    a(t) = d log p(x(1)) / d x(t) = grad log p_t(x(t))

is what the adjoint equation carries: the gradient by the weights is the integral of a(t) times the field's own (and of
the trace's). It is the score of the density p_t. With F(t) = dx(t)/dx(1), states near each other move apart by the
largest singular value of F and together by the smallest. Where |a| or F grow or fall by many powers of ten, some times
train the weights and others hardly do.

Both are taken from the path that autograd records, cut at the times: a(t) by one way back, F(t) as the product of the
pieces' Jacobians. They are in the coordinates of the transforms, behind the preprocessing.

References:
    Li, Chen, Tai & E 2018, Maximum principle based algorithms for deep learning, https://arxiv.org/abs/1710.09513.
    Chen et al. 2018, Neural ordinary differential equations, https://arxiv.org/abs/1806.07366.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import Examination, preprocessed
from ffjord_kit.diagnostics.findings import GOOD, UNSURE, Finding, grade
from ffjord_kit.flow import Flow
from ffjord_kit.ode import PerRowSolver
from ffjord_kit.segments import carry, path_between, path_to_base
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF, SolveOptions

MAX_SIZE, ROWS, TIMES = 32, 16, 17  # elements of an event, rows, and times
MILD, STRONG = 100.0, 10_000.0  # factors between the least and the largest
OPTIONS = SolveOptions(solver=PerRowSolver(1e-6, 1e-6))


@dataclass(frozen=True)
class ControlPath:
    """Sizes of the costate and of the Jacobian along the paths of some rows.

    Attributes:
        times: Times of the flow from data to base, 1 to 0, shape (T,).
        costate: |a(t)| of each row, shape (T, n).
        largest: Largest singular value of dx(t)/dx(1), shape (T, n).
        smallest: Smallest singular value, shape (T, n).

    Example:
        >>> times, one = torch.tensor([1.0, 0.0]), torch.ones(2, 1)
        >>> path = ControlPath(times, costate=torch.tensor([[1.0], [2.0]]), largest=3 * one, smallest=one)
        >>> path.costate_ratio, path.worst
        (2.0, 3.0)
    """

    times: Tensor
    costate: Tensor
    largest: Tensor
    smallest: Tensor

    @property
    def costate_ratio(self) -> float:
        """Largest over least root mean square of |a(t)| over rows, at any times."""
        sizes = self.costate.square().mean(1).sqrt()
        return float(sizes.max() / sizes.min())

    @property
    def worst(self) -> float:
        """Largest factor by which the costate or the Jacobian grow or fall."""
        return max(self.costate_ratio, float(self.largest.max()), float(1 / self.smallest.min()))


def control_path(flow: Flow, x: Tensor, context: Tensor | None = None, *, times: int = TIMES) -> ControlPath:
    """Measure the costate and the Jacobian along the paths of rows.

    The flow stays as it is: a copy in float64 does the work. The cost grows with the square of an event's elements.

    Args:
        flow: Flow with one continuous transform or more.
        x: Rows in the units of the data, shape (n, *event).
        context: Contexts, shape (n, context_dim), or None.
        times: Number of times, at least 2.

    Returns:
        Their sizes at times from data to base.

    Raises:
        ValueError: If rows or contexts do not fit, no transform is continuous, or there are too few times.
        SolveError: If a row cannot be solved.

    Example:
        >>> from ffjord_kit import CNF, Flow, ResidualDynamics
        >>> path = control_path(Flow([CNF(ResidualDynamics((2,)), (2,))]), torch.ones(3, 2))  # the identity
        >>> round(path.costate_ratio, 6), round(path.worst, 6)
        (1.0, 1.0)
    """
    flow.check(x, context)
    if not any(isinstance(transform, CNF) for transform in flow.transforms):
        raise ValueError("expected a flow with a continuous transform; got none: there is no path to follow")
    if times < 2:
        raise ValueError(f"times must be at least 2; got {times}")
    copied = copy.deepcopy(flow).double().requires_grad_(False)
    wide = Batch(x.detach().double(), None if context is None else context.detach().double())
    with torch.inference_mode(False), torch.enable_grad():
        return _follow(copied, preprocessed(copied, wide)[0], times)


def check_control(exam: Examination) -> Finding:
    """Report by how much the costate and the Jacobian change along the paths.

    Args:
        exam: Examination.

    Returns:
        The finding.
    """
    name = "gradient along the path"
    if not exam.continuous:
        return Finding(name, GOOD, "no continuous transform")
    if exam.size > MAX_SIZE:
        return Finding(name, UNSURE, f"not computed above {MAX_SIZE} columns")
    first = exam.batch[:ROWS]
    path = control_path(exam.flow, first.x, first.context)
    measured = (
        f"the costate changes by a factor of {path.costate_ratio:.3g} between data and base; singular values of the "
        f"Jacobian from {float(path.smallest.min()):.2g} to {float(path.largest.max()):.2g}"
    )
    advice = "gradients explode or vanish on the way: regularize (kinetic, jacobian), or shorten end_time"
    return Finding(name, grade(path.worst, good=MILD, fair=STRONG), measured, advice)


def _follow(flow: Flow, batch: Batch, count: int) -> ControlPath:
    """Carry rows from time to time, and differentiate."""
    times = torch.linspace(1, 0, count, dtype=torch.float64)
    transforms = cast("list[Transform]", list(flow.transforms))
    states = [batch.x.requires_grad_()]
    log_prob = torch.zeros(len(batch), dtype=batch.x.dtype, device=batch.x.device)
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        moved = carry(batch.with_x(states[-1]), path_between(transforms, start, end), OPTIONS)
        states, log_prob = [*states, moved.x], log_prob + moved.required_log_det
    last = carry(batch.with_x(states[-1]), path_to_base(transforms, 0.0), OPTIONS)
    log_prob = log_prob + last.required_log_det + flow.base.log_prob(last.x)
    costates = torch.autograd.grad(log_prob.sum(), states, retain_graph=True)
    values = torch.linalg.svdvals(_jacobians(states))
    sizes = torch.stack([a.flatten(1).norm(dim=1) for a in costates])
    return ControlPath(times, sizes.cpu(), values[..., 0].cpu(), values[..., -1].cpu())


def _jacobians(states: Sequence[Tensor]) -> Tensor:
    """Return dx(t)/dx(1) at each time, (T, n, d, d)."""
    size = states[0][0].numel()
    product = torch.eye(size, dtype=states[0].dtype, device=states[0].device).expand(len(states[0]), -1, -1)
    found = [product]
    for before, after in zip(states[:-1], states[1:], strict=True):
        rows = [
            torch.autograd.grad(y.sum(), before, retain_graph=True)[0].flatten(1) for y in after.flatten(1).unbind(1)
        ]
        product = torch.stack(rows, dim=1) @ product
        found.append(product)
    return torch.stack(found)
