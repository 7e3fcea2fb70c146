r"""The mode of a fitted density: the highest log p(x) that climbs from several draws reach.

The climb goes in preprocessed coordinates y, where the support is the whole line and scales are alike, and is judged by
the log-density of the rows x(y) themselves. Steps are those of the quasi-Newton method BFGS, all climbs side by side.

References:
    Nocedal & Wright 2006, Numerical optimization, chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.estimator.data import to_numpy
from ffjord_kit.estimator.fields import whole
from ffjord_kit.estimator.questions.gradients import DifferentiableModel, value_and_gradient
from ffjord_kit.estimator.scoring import placed
from ffjord_kit.estimator.tables.table import TableDomain
from ffjord_kit.flow import Flow
from ffjord_kit.precision import double_precision

DRAWS_PER_START = 32  # the likeliest of so many begin the climbs
STEPS = 200
SLOPE = 1e-7  # of log p by the scaled columns, at which a climb has arrived
SUFFICIENT = 1e-4  # of the rise that the slope promises
SHORTER = 0.25  # a refused step is tried again so much shorter
STALLED = 1e-6  # share of a step at which a climb ends, since rounding or the solver hides any rise

Climbed = Callable[[Batch], Tensor]


class Mode(NamedTuple):
    """The highest density that was found; a higher one may exist.

    Attributes:
        x: The row, in the form of a draw, shape (1, d).
        log_prob: Its log-density, nats.
        reached: Log-density at the end of each climb, the highest first, shape (starts,).
        slope: Largest derivative of the log-density at x by a scaled column, nats.

    Example:
        >>> top = Mode(np.array([[0.0, 1.0]]), -1.5, np.array([-1.5, -1.5, -2.25]), 1e-8)
        >>> top.reached - top.log_prob  # one of three climbs ended on a lower maximum
        array([ 0.  ,  0.  , -0.75])
    """

    x: Any
    log_prob: float
    reached: np.ndarray
    slope: float


@dataclass(frozen=True, eq=False)
class ModeModel(DifferentiableModel):
    """A fitted flow that finds its mode; see `ffjord_kit.estimator.model.DensityModel`."""

    def mode(self, *, context: Any = None, starts: int = 8, random_state: Any = 0) -> Mode:
        """Return the row of the highest density found, by gradient ascent from several draws.

        The density is the one that reports. Categories stay as they were drawn while the other columns climb. A mode
        belongs to its columns: that of log(a) is not the logarithm of that of a.

        Args:
            context: One context, of a conditional model.
            starts: Number of climbs; they begin at the likeliest of 32 times as many draws.
            random_state: Seed of the draws.

        Returns:
            The row, its log-density, and how high each climb came.

        Raises:
            ValueError: If the data are images, columns are of equal steps, or there are several contexts.
        """
        domain, starts = self._climbable(), whole("starts", starts)
        flow = double_precision(self.reporting_flow)
        begin = self._beginnings(flow, starts, context, random_state)
        top = climb(self._height(flow), begin)
        order = top.value.argsort(descending=True)
        x, given = _to_rows(flow, top.at)[order[:1]], None if begin.context is None else begin.context[order[:1]]
        row = domain.drawn(to_numpy(x), given)
        return Mode(
            domain.presented(row), float(top.value[order[0]]), to_numpy(top.value[order]),
            float(top.slope[order[0]].abs().max()),
        )  # fmt: skip

    def _climbable(self) -> TableDomain:
        """Return the domain, if all columns but categories have derivatives."""
        self.domain.require_table("mode", "draw images, and score them")
        domain = cast(TableDomain, self.domain)
        steps = [name for name, step in zip(domain.columns, domain.grid.step, strict=True) if step > 0]
        if steps:
            raise ValueError(
                f"mode climbs by derivatives, and column {steps[0]!r} is of equal steps: take the likeliest of many "
                "draws (sample, then score_samples)"
            )
        return domain

    def _beginnings(self, flow: Flow, starts: int, context: Any, random_state: Any) -> Batch:
        """Return the likeliest of some draws as preprocessed rows, with their contexts."""
        if context is not None and self._contexts_given(context) != 1:
            raise ValueError(f"mode takes one context; got {self._contexts_given(context)}: call it for each")
        count = DRAWS_PER_START * starts
        generator, given = self._prepare_draws(count, context, random_state)
        place = Batch(flow.base.sample(count, generator), given)
        draws = place.with_x(self._moved(flow, place, self._solver, generator))
        best = torch.from_numpy(self.evaluate_batch(draws).log_prob).topk(starts).indices
        chosen = draws[best]
        return chosen.with_x(flow.preprocess.to_base(chosen.x, chosen.context)[0])

    def _height(self, flow: Flow) -> Climbed:
        """Return the log-density of rows as a function of preprocessed ones."""
        solver = self._recomputing_solver

        def height(batch: Batch) -> Tensor:
            rows = placed(flow, batch.with_x(_to_rows(flow, batch)))
            return flow.log_prob(rows.x, rows.context, solver=solver)

        return height


class Climb(NamedTuple):
    """Climbs side by side.

    Attributes:
        at: Where they are: rows (n, d) and contexts.
        value: Height, shape (n,).
        slope: Gradient, shape (n, d).
    """

    at: Batch
    value: Tensor
    slope: Tensor


def climb(height: Climbed, start: Batch) -> Climb:
    """Climb to local maxima by BFGS steps, each row by itself.

    A step that does not rise enough is refused, and a shorter one in its direction comes next.

    Args:
        height: Function of rows and contexts, each value by its own row, shape (n,).
        start: Rows, shape (n, d), and contexts.

    Returns:
        The last places.

    Example:
        >>> def hill(batch):
        ...     return -(batch.x - 3).square().sum(1)
        >>> climb(hill, Batch(torch.zeros(1, 2))).at.x.tolist()
        [[3.0, 3.0]]
    """
    here, size = Climb(start, *value_and_gradient(height, start)), start.x.shape[1]
    inverse = torch.eye(size, dtype=start.x.dtype).expand(len(start), -1, -1).clone()  # of minus the Hessian
    length = (1 / here.slope.norm(dim=1).clamp(min=1.0))[:, None]  # of the first step: at most 1
    for _ in range(STEPS):
        moving = here.slope.abs().amax(1) > SLOPE
        if not bool((moving & (length[:, 0] > STALLED)).any()):
            break
        direction = (inverse @ here.slope[..., None])[..., 0]
        step = length * direction
        trial = here.at.with_x(here.at.x + step)
        there = Climb(trial, *value_and_gradient(height, trial))
        rises = there.value - here.value > SUFFICIENT * (step * here.slope).sum(1)
        inverse = torch.where(rises[:, None, None], _updated(inverse, step, here.slope - there.slope), inverse)
        length = torch.where(rises[:, None], torch.ones_like(length), SHORTER * length)
        here = _where(rises, there, here)
    return here


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Return the inverse Hessian after a step and its change of slope; the old one where that bends the wrong way."""
    bend = (step * change).sum(1)
    sound = bend > 1e-10 * step.norm(dim=1) * change.norm(dim=1)
    rho = torch.where(sound, 1 / bend, torch.zeros_like(bend))[:, None, None]
    s, y = step[..., None], change[..., None]
    left = torch.eye(step.shape[1], dtype=step.dtype) - rho * s @ y.mT
    return torch.where(sound[:, None, None], left @ inverse @ left.mT + rho * s @ s.mT, inverse)


def _where(chosen: Tensor, new: Climb, old: Climb) -> Climb:
    """Return new climbs in some rows, and old ones in the others."""
    at = old.at.with_x(torch.where(chosen[:, None], new.at.x, old.at.x))
    return Climb(at, torch.where(chosen, new.value, old.value), torch.where(chosen[:, None], new.slope, old.slope))


def _to_rows(flow: Flow, batch: Batch) -> Tensor:
    """Return rows of preprocessed ones, points of spheres at length 1."""
    return flow.preprocess.to_data(flow.base.project(batch.x), batch.context)[0]
