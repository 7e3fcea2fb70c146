r"""Training against the worst rows nearby, and how these are found.

    min over w of the mean over rows of  max over |delta_i| <= eps of  loss(w, x_i + delta_i)

The inner maximum is sought by steps up the gradient, each followed by a projection to the box |delta| <= eps (norm
"inf") or to the ball (norm "2"). One step of length eps is the fast gradient sign method; several shorter ones are
projected gradients. What they find is a point within eps, not a proof that there is none worse.

References:
    Goodfellow, Shlens & Szegedy 2015 (fast gradient sign), https://arxiv.org/abs/1412.6572.
    Madry, Makelov, Schmidt, Tsipras & Vladu 2018 (projected gradients), https://arxiv.org/abs/1706.06083.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.objectives.base import Loss, Model, Objective, SolvedObjective
from ffjord_kit.ode import Solver, SolverStats

LENGTH = 2.5  # of all steps together, in units of eps: enough to cross the box
T = TypeVar("T", bound=Objective[Any])


@dataclass(frozen=True)
class Neighbourhood:
    """Where rows may be moved, and how.

    Args:
        eps: Largest move, in units of `scale`.
        steps: Steps up the gradient: 1 for the fast gradient sign method, more for projected gradients.
        norm: "inf" for a move of each element by at most eps, "2" for the length of the whole row.

    Raises:
        ValueError: If eps or the steps are not positive, or the norm is unknown.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> *_, (worst, _) = Neighbourhood(0.5).path(lambda x: x.square().sum(1), x)
        >>> worst.tolist()
        [[1.5, -2.5]]
    """

    eps: float
    steps: int = 1
    norm: str = "inf"

    def __post_init__(self) -> None:
        if not isinstance(self.eps, Real) or not 0 < float(self.eps) < math.inf:
            raise ValueError(f"eps must be positive, the largest move of a row; got {self.eps!r}")
        if not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1; got {self.steps!r}")
        if self.norm not in ("inf", "2"):
            raise ValueError(f"norm must be 'inf' or '2'; got {self.norm!r}")

    def path(
        self,
        losses: Callable[[Tensor], Tensor],
        x: Tensor,
        scale: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows step by step, from those given to the last ones, each with the losses there.

        The losses of the last rows are not computed: NaN stands for them, shape ().

        Args:
            losses: Function from rows to a loss of each, (batch,), or to their sum or mean, ().
            x: Rows, shape (batch, *event).
            scale: Units of eps, which broadcast against a row; 1 if None.
            generator: Source of a random start within the neighbourhood; None for a start at the rows.

        Yields:
            Rows, shape (batch, *event), and their losses, as `losses` gives them.

        Raises:
            ValueError: If the losses do not depend on the rows.
        """
        units = torch.ones_like(x) if scale is None else scale.to(x).expand_as(x)
        shift = torch.zeros_like(x)
        if generator is not None:
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
            shift = self._projected((2 * noise - 1) * self.eps)
        length = self.eps if self.steps == 1 else LENGTH * self.eps / self.steps
        for _ in range(self.steps):
            rows = (x + units * shift).detach().requires_grad_()
            with torch.enable_grad():
                values = losses(rows)
                slope = _slope(values, rows)
            yield rows.detach(), values.detach()
            shift = self._projected(shift + length * self._uphill(slope * units))
        yield x + units * shift, torch.tensor(math.nan)

    def _uphill(self, slope: Tensor) -> Tensor:
        """Return the step of length one that raises a linear loss most."""
        tiny = torch.finfo(slope.dtype).tiny
        return slope.sign() if self.norm == "inf" else slope / _lengths(slope).clamp(min=tiny)

    def _projected(self, shift: Tensor) -> Tensor:
        """Return the nearest move within the neighbourhood."""
        if self.norm == "inf":
            return shift.clamp(-self.eps, self.eps)
        return shift * (self.eps / _lengths(shift).clamp(min=self.eps))


@dataclass(frozen=True)
class Robust(Objective[Model]):
    """An objective on the worst rows near those of a batch.

    Rows are moved in the units in which training takes them: behind the preprocessing of a flow, where each column has
    a standard deviation of about one. The log also has the loss of the rows as they are, `plain`.

    Args:
        objective: Objective, whose loss is a mean over rows.
        near: Neighbourhood.

    Example:
        >>> from ffjord_kit import CNF, ConcatDynamics, FixedSolver, Flow, MaximumLikelihood
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,), solver=FixedSolver("rk4", 4))])
        >>> objective = made_robust(MaximumLikelihood(), 0.1)
        >>> loss = objective.loss(flow, Batch(torch.randn(8, 2)), torch.Generator().manual_seed(0))
        >>> bool(loss.value > loss.terms["plain"]), [stats.nfe for stats in loss.stats]
        (True, [32])

    References:
        Madry et al. 2018, https://arxiv.org/abs/1706.06083.
    """

    objective: Objective[Model]
    near: Neighbourhood

    @property
    def name(self) -> str:
        """Word of the objective."""
        return self.objective.name

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> Loss:
        """Return the loss of the worst rows found; the noise is the same for all points of a row."""
        counts: list[SolverStats] = []

        def mean_loss(x: Tensor) -> Tensor:
            loss = self.objective.loss(model, batch.with_x(x), generator.clone_state())
            counts.extend(loss.stats)
            return loss.value

        points = list(self.near.path(mean_loss, batch.x))
        loss = self.objective.loss(model, batch.with_x(points[-1][0]), generator)
        stats = [*counts, *loss.stats]
        total = SolverStats(sum(s.nfe for s in stats), sum(s.nfe_backward for s in stats))
        return Loss(loss.value, {**loss.terms, "plain": points[0][1]}, (total,) if stats else ())


@dataclass(frozen=True)
class RobustSolved(Robust[Model], SolvedObjective[Model]):
    """A robust objective whose loss is the result of a solve; the solver is judged at the rows as they are."""

    objective: SolvedObjective[Model]

    @property
    def solver(self) -> Solver | None:
        """Solver of the objective."""
        return self.objective.solver

    def row_losses(self, model: Model, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        return self.objective.row_losses(model, batch, generator, solver)

    def with_solver(self, solver: Solver) -> RobustSolved[Model]:
        return replace(self, objective=self.objective.with_solver(solver))


def made_robust(objective: T, eps: float, *, steps: int = 1, norm: str = "inf") -> T:
    """Return an objective on the worst rows within eps of those of a batch.

    Args:
        objective: Objective, whose loss is a mean over rows.
        eps: Largest move of a row, in the units in which training takes it.
        steps: Steps up the gradient; each costs as much as a step of training.
        norm: "inf" or "2".

    Returns:
        The robust objective.

    Raises:
        ValueError: If a number is not positive, or the norm is unknown.

    Example:
        >>> from ffjord_kit import FlowMatching
        >>> objective = made_robust(FlowMatching(), eps=0.1, steps=3)
        >>> objective.near, objective.name
        (Neighbourhood(eps=0.1, steps=3, norm='inf'), 'flow_matching')
    """
    near = Neighbourhood(eps, steps, norm)
    kind = RobustSolved if isinstance(objective, SolvedObjective) else Robust
    return cast(T, kind(cast(Any, objective), near))


def _slope(values: Tensor, rows: Tensor) -> Tensor:
    if not values.requires_grad:
        raise ValueError("expected a loss that depends on the rows, to find worse ones nearby; got one that does not")
    (slope,) = torch.autograd.grad(values.sum(), rows, allow_unused=True)
    if slope is None:
        raise ValueError("expected a loss that depends on the rows, to find worse ones nearby; got one that does not")
    return slope


def _lengths(x: Tensor) -> Tensor:
    """Return the length of each row, shape (batch, 1, ...)."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
