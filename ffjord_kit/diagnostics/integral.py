r"""Is it a density? Its integral, and its log-determinants against finite differences.

On up to three dimensions, midpoints of a grid over a box that holds the rows and the flow's draws; its error is the
difference from the grid of every second point. Otherwise, and where a grid is too coarse, importance sampling:

    integral p(x) dx = E_q[p(x) / q(x)],     q a Gaussian mixture fitted to draws of the flow, half of it twice as wide,

which knows p by its log-densities alone. Its standard error is honest where many draws carry the mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit import metrics
from ffjord_kit.diagnostics.case import FINE, Case, flat, forgiving, moving
from ffjord_kit.diagnostics.findings import UNSURE, Finding, judged

GRIDS = {1: 4000, 2: 120, 3: 32}  # midpoints along each axis, by dimension
MARGIN = 0.15  # of the range, on each side
DRAWN, DRAWN_ELEMENTS, COMPONENTS = 4000, 40_000, (1, 4, 16)
EFFECTIVE = 50  # draws that must carry a mean
CLOSE, NEAR = 0.01, 0.05  # of 1
ROUGH = 1e-4
LARGEST_DETERMINANT, DETERMINANTS = 128, 3  # elements of an event, rows
STEPS = (1e-4, 1e-5)  # of finite differences, in deviations of a column


class Integral(NamedTuple):
    """An integral, its error, and how it was made."""

    value: float
    error: float
    how: str


def check_integral(case: Case) -> Finding:
    """Does the density integrate to 1? Given the first row's context."""
    if case.size in GRIDS:
        found = _by_grid(case)
        found = found if found.error < CLOSE else min(found, _by_importance(case), key=lambda each: each.error)
    else:
        found = _by_importance(case)
    measured = f"{found.value:.4f} ± {found.error:.4f} by {found.how}"
    if not found.error < NEAR:
        return Finding("integral", UNSURE, measured, "no sum of this size tells: see the determinant")
    away = max(abs(found.value - 1) - 3 * found.error, 0.0)
    return Finding("integral", judged(away, CLOSE, NEAR), measured, "a layer's log-determinant, or a solve, is wrong")


def check_determinant(case: Case) -> Finding:
    """Log-determinants of the way to the base against those of finite differences."""
    if case.size > LARGEST_DETERMINANT:
        return Finding("determinant", UNSURE, f"not looked at above {LARGEST_DETERMINANT} dimensions")
    x, context = case.few(DETERMINANTS)
    told = case.log_prob(x, context, FINE) - case.flow.base.log_prob(_carried(case, x, context))
    apart = min(float((told - _by_differences(case, x, context, step)).abs().max()) for step in STEPS)
    measured = f"log-determinants {apart:.1e} nats from finite differences, at most, of {len(x)} rows"
    advice = "a layer gives a wrong log-determinant: its likelihoods are none"
    return Finding("determinant", judged(apart, CLOSE, NEAR), measured, advice)


def _by_grid(case: Case) -> Integral:
    points, sizes = GRIDS[case.size], case.size
    both = torch.cat([flat(case.x), flat(_drawn(case, len(case.x)))])
    low, high = both.amin(0), both.amax(0)
    width = (high - low) * (1 + 2 * MARGIN)
    axes = [low[i] - MARGIN * (high - low)[i] + width[i] * (torch.arange(points) + 0.5) / points for i in range(sizes)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(case.x)
    density = _density(case, places.reshape(-1, sizes)).exp().reshape((points,) * sizes)
    value = float(density.mean() * width.prod())
    coarse = float(density[(slice(None, None, 2),) * sizes].mean() * width.prod())
    return Integral(value, abs(value - coarse), f"a grid of {' x '.join([str(points)] * sizes)}")


def _by_importance(case: Case) -> Integral:
    count = min(DRAWN, DRAWN_ELEMENTS // case.size)
    drawn = flat(_drawn(case, count)).numpy(force=True)
    mixture = metrics.best_gaussian_mixture(drawn[::2], drawn[1::2], seed=case.seed, components=COMPONENTS)
    chosen = torch.as_tensor(mixture.sample(count)[0]).to(case.x)
    wide = torch.rand(count, generator=case.generator()) < 0.5
    centre = torch.as_tensor(drawn.mean(0)).to(case.x)
    points = torch.where(wide[:, None].to(case.x.device), centre + 2 * (chosen - centre), chosen)
    narrow, broad = points.numpy(force=True), (centre + (points - centre) / 2).numpy(force=True)
    log_q = torch.as_tensor(mixture.score_samples(narrow)), torch.as_tensor(mixture.score_samples(broad))
    log_q = torch.logaddexp(log_q[0], log_q[1] - case.size * math.log(2)) - math.log(2)
    weights = (_density(case, points) - log_q.to(case.x)).exp()
    carriers = float(weights.sum() ** 2 / weights.square().sum())
    value, error = metrics.mean_and_standard_error(weights.numpy(force=True))
    how = f"importance sampling ({carriers:.0f} of {count} draws carry it)"
    return Integral(value, error if carriers >= EFFECTIVE else math.inf, how)


def _drawn(case: Case, count: int) -> Tensor:
    """Draws of the flow, given the first row's context."""
    context = None if case.context is None else case.context[0]
    drawn = case.flow.sample(count, context, solver=forgiving(ROUGH), generator=case.generator())
    return drawn[flat(drawn).isfinite().all(1)]


def _density(case: Case, points: Tensor) -> Tensor:
    """Log-densities at points (n, d), given the first row's context; none where they cannot be solved."""
    context = None if case.context is None else case.context[:1].expand(len(points), -1)
    found = case.log_prob(points.reshape(-1, *case.flow.event_shape), context, ROUGH)
    return found.nan_to_num(nan=-math.inf)


def _carried(case: Case, x: Tensor, context: Tensor | None) -> Tensor:
    return case.flow.to_base(x, context, integration=moving(FINE))[0]


def _by_differences(case: Case, x: Tensor, context: Tensor | None, step: float) -> Tensor:
    """log|det dz/dx|, (batch,), by central differences."""
    size, scale = case.size, case.scale
    moves = (step * scale).diag().reshape(size, 1, *x.shape[1:])
    ends = torch.cat([x + moves, x - moves]).reshape(-1, *x.shape[1:])
    given = None if context is None else context.repeat(2 * size, 1)
    there = flat(_carried(case, ends, given)).reshape(2, size, len(x), size)
    return torch.linalg.slogdet((there[0] - there[1]).movedim(1, 0) / (2 * step * scale)[:, None]).logabsdet
