r"""Integral of the density, and its log-determinants against finite differences.

Columns with bounds are opened first: x = low + (high - low) / (1 + exp(-v)), or low + exp(v), and the integral is that
over v, of p(x) dx/dv. In one and two dimensions it is the sum over midpoints of a grid, over a box that holds the rows
and samples of the flow; its error is the difference from the grid of every second point. A box cuts the tails. In one
dimension they are added, by pieces whose widths double until they hold next to nothing. In two, the error includes the
share of each half of the points that lies outside the box of the other half. In more dimensions, and where a grid is
too coarse, the integral is estimated by importance sampling:

    integral p(x) dx = E_q[p(x) / q(x)],     q = 0.8 q_1 + 0.2 q_2,

where q_1 is a Gaussian mixture fitted to samples of the flow, and q_2 is q_1 widened by two about their mean. This
uses p by its log-densities alone. The standard error is honest where many samples carry the mean. Where it is large in
three dimensions, a grid is tried.

On circles and on a sphere the grid is that of whole turns, with Gauss-Legendre nodes along the axis of a sphere. Beside
other columns, and on more than two circles or one sphere, no integral is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to

from ffjord_kit import metrics
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import REFERENCE_TOLERANCE, Examination, flat, lenient_solver, states_only
from ffjord_kit.diagnostics.findings import UNSURE, Finding, grade
from ffjord_kit.geometry import Geometry

GRIDS = {1: 4000, 2: 120, 3: 32}  # midpoints along each axis, by dimension
GRID_FIRST = 2  # dimensions up to which a grid is cheaper than importance sampling
MARGIN = 0.15  # of the range, on each side
TAIL_POINTS, DOUBLINGS = 64, 40  # of a piece of a tail, and pieces
NEGLIGIBLE = 1e-7  # mass of a piece of the tails, after which none is looked for
MAX_SAMPLES, SAMPLE_ELEMENTS, COMPONENTS = 4000, 40_000, (1, 4, 16)
WIDE = 0.2  # share of the widened mixture: the weights are at most 1.25 where the narrow one fits
MIN_EFFECTIVE = 50  # effective number of samples that a mean needs
CLOSE, NEAR = 0.01, 0.05  # of 1
TOLERANCE = 1e-4
MAX_SIZE, DETERMINANT_ROWS = 128, 3  # elements of an event, and rows
TURNS = {(1, 0): (2000,), (2, 0): (96, 96), (0, 1): (128, 64)}  # points of a grid, by circles and spheres
NOT_EXAMINED = "not computed for circles or spheres beside other columns"
STEPS = (1e-4, 1e-5)  # of finite differences, in standard deviations of an element


class Integral(NamedTuple):
    """An integral with its error.

    Attributes:
        value: The integral.
        error: Its error; infinite where it cannot be stated.
        method: How it was computed.
    """

    value: float
    error: float
    method: str


def check_integral(exam: Examination) -> Finding:
    """Check that the density integrates to 1, given the context of the first row.

    Args:
        exam: Examination.

    Returns:
        The finding; unsure where the error is too large.
    """
    result = _integrate(exam)
    measured = f"{result.value:.4f} ± {result.error:.4f} by {result.method}"
    if not result.method:
        return Finding("integral", UNSURE, NOT_EXAMINED, "see the determinant")
    if not result.error < NEAR:
        return Finding("integral", UNSURE, measured, "no sum of this size decides: see the determinant")
    distance = max(abs(result.value - 1) - 3 * result.error, 0.0)
    advice = "the log-determinant of a transform, or a solve, is wrong"
    return Finding("integral", grade(distance, good=CLOSE, fair=NEAR), measured, advice)


def check_determinant(exam: Examination) -> Finding:
    """Check log-determinants of the way to the base against finite differences.

    Args:
        exam: Examination.

    Returns:
        The finding, with the largest difference in nats; unsure above 128 dimensions.
    """
    if exam.size > MAX_SIZE:
        return Finding("determinant", UNSURE, f"not computed above {MAX_SIZE} dimensions")
    batch = _away_from_bounds(exam)[:DETERMINANT_ROWS]
    if not len(batch):
        return Finding("determinant", UNSURE, "not computed: every row lies at the bounds of the support")
    log_base = exam.flow.base.log_prob(_to_base(exam, batch))
    log_prob = exam.log_prob(batch, REFERENCE_TOLERANCE)
    log_det = log_prob - log_base.to(log_prob)
    difference = min(float((log_det - _log_det_by_differences(exam, batch, step)).abs().max()) for step in STEPS)
    measured = f"log-determinants differ from finite differences by at most {difference:.1e} nats, in {len(batch)} rows"
    advice = (
        "where a column repeats values, give it the type integer, as its peaks are narrower than the differences; "
        "else the log-determinant of a transform is wrong, and so are all likelihoods"
    )
    return Finding("determinant", grade(difference, good=CLOSE, fair=NEAR), measured, advice)


def _integrate(exam: Examination) -> Integral:
    """Integrate by what is cheaper, and where its error is large by the other one too."""
    geometry = exam.flow.base.geometry
    if not geometry.is_flat:
        context = None if exam.batch.context is None else exam.batch.context[:1]
        given = exam.flow.preprocess.scale_context(context, exam.batch.x)
        return over_turns(geometry, lambda points: _inner_log_density(exam, points, given))
    ways = [_by_grid, _by_importance_sampling] if exam.size <= GRID_FIRST else [_by_importance_sampling, _by_grid]
    first = ways[0](exam)
    if first.error < CLOSE or exam.size not in GRIDS:
        return first
    return min(first, ways[1](exam), key=lambda integral: integral.error)


def _by_grid(exam: Examination) -> Integral:
    both = torch.cat([exam.batch.x, _sample(exam, len(exam))])
    return by_grid(_opened(exam, both), lambda points: _log_density(exam, points))


def by_grid(samples: Tensor, log_density: Callable[[Tensor], Tensor]) -> Integral:
    """Integrate a density by the midpoint rule on a box around given samples; in one dimension over the tails too.

    Args:
        samples: Samples of the density or rows like them, shape (m, d), d among GRIDS.
        log_density: Log-densities of points (count, d), nats, shape (count,).

    Returns:
        The integral; its error is the difference from a grid half as fine, and an estimate of the mass outside.

    Example:
        >>> samples = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = by_grid(samples, torch.distributions.Cauchy(0.0, 1.0).log_prob)  # most of it lies farther out
        >>> round(found.value, 3), found.error < 0.01
        (1.0, True)
    """
    size = samples.shape[1]
    points, (low, high) = GRIDS[size], _box(samples)
    midpoints = (torch.arange(points) + 0.5).to(low.device) / points
    axes = [low[i] + (high - low)[i] * midpoints for i in range(size)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(samples)
    density = log_density(places.reshape(-1, size)).exp().reshape((points,) * size)
    value = float(density.mean() * (high - low).prod())
    coarse = float(density[(slice(None, None, 2),) * size].mean() * (high - low).prod())
    error, method = abs(value - coarse), f"a grid of {' x '.join([str(points)] * size)}"
    if size > 1:
        return Integral(value, error + _outside(samples), method)
    tails, more = _tails(low, high, log_density)
    return Integral(value + tails, error + more, method)


def _box(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners of a box that holds samples, with a margin, each (d,)."""
    low, high = samples.amin(0), samples.amax(0)
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _outside(samples: Tensor) -> float:
    """Estimate the mass outside the box of samples: the share of each half of them outside the box of the other."""
    halves, count = (samples[::2], samples[1::2]), 0
    for inside, others in (halves, halves[::-1]):
        low, high = _box(inside)
        count += int(((others < low) | (others > high)).any(1).sum())
    return count / len(samples)


def _tails(low: Tensor, high: Tensor, log_density: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Integrate a density over the line outside an interval, by pieces whose widths double; return its error too."""
    value, error, mass = 0.0, 0.0, math.inf
    midpoints = (torch.arange(TAIL_POINTS) + 0.5).to(low) / TAIL_POINTS
    for near, far in pairwise((2.0**k - 1) / 4 * float(high - low) for k in range(DOUBLINGS + 1)):
        steps = near + (far - near) * midpoints
        density = log_density(torch.cat([high + steps, low - steps])[:, None]).flatten().exp().reshape(2, -1)
        mass, coarse = (float(part.mean()) * 2 * (far - near) for part in (density, density[:, ::2]))
        value, error = value + mass, error + abs(mass - coarse)
        if mass < NEGLIGIBLE:
            break
    return value, error + mass


def over_turns(geometry: Geometry, log_density: Callable[[Tensor], Tensor]) -> Integral:
    """Integrate a density over circles or a sphere, by a sum over whole turns.

    Args:
        geometry: Which elements are angles, in radians, and which are points on a sphere.
        log_density: Log-densities of points (count, size), nats, shape (count,).

    Returns:
        The integral; its error is the difference from a grid half as fine. NaN, without a method, where there are
        other elements or too many.
    """
    counts = TURNS.get((len(geometry.circles), len(geometry.spheres)))
    if counts is None or geometry.real:
        return Integral(math.nan, math.inf, "")
    values = []
    for each in (counts, tuple(count // 2 for count in counts)):
        points, weights = _turns(geometry, each)
        values.append(float((log_density(points).double().exp() * weights).sum()))
    text = " x ".join(map(str, counts))
    return Integral(values[0], abs(values[0] - values[1]), f"a grid of {text} over whole turns")


def _turns(geometry: Geometry, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return points all around circles or a sphere, (count, size), and their weights in a sum, (count,)."""
    angles = [2 * math.pi * ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) for count in counts]
    if not geometry.spheres:
        points = torch.stack(torch.meshgrid(*angles, indexing="ij"), dim=-1).reshape(-1, len(counts))
        return points, torch.full((len(points),), (2 * math.pi) ** len(counts) / len(points), dtype=torch.float64)
    height, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(counts[1]))
    longitude, height = (part.flatten() for part in torch.meshgrid(angles[0], height, indexing="ij"))
    across = (1 - height.square()).sqrt()
    points = torch.stack([across * longitude.cos(), across * longitude.sin(), height], dim=1)
    return geometry.join(points[:, :0], points[:, :0], points[:, None]), 2 * math.pi / counts[0] * weight.repeat(
        counts[0]
    )


def _by_importance_sampling(exam: Examination) -> Integral:
    count = min(MAX_SAMPLES, SAMPLE_ELEMENTS // exam.size)
    samples = _opened(exam, _sample(exam, count))
    return by_importance_sampling(samples, lambda points: _log_density(exam, points), count=count, seed=exam.seed)


def by_importance_sampling(
    samples: Tensor, log_density: Callable[[Tensor], Tensor], *, count: int, seed: int
) -> Integral:
    """Integrate a density by importance sampling from a mixture like given samples, and the same widened by two.

    Args:
        samples: Samples of the density or rows like them, shape (m, d).
        log_density: Log-densities of points (count, d), nats, shape (count,).
        count: Number of points.
        seed: Seed of the points.

    Returns:
        The integral; its error is infinite where too few points carry it.
    """
    rows = samples.numpy(force=True)
    mixture = metrics.best_gaussian_mixture(rows[::2], rows[1::2], seed=seed, components=COMPONENTS)
    narrow, centre = torch.as_tensor(mixture.sample(count)[0]).to(samples), samples.mean(0)
    wide = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < WIDE
    points = torch.where(wide[:, None].to(narrow.device), centre + 2 * (narrow - centre), narrow)
    log_narrow = mixture.score_samples(points.numpy(force=True))
    log_wide = mixture.score_samples((centre + (points - centre) / 2).numpy(force=True))
    log_q = torch.logaddexp(
        torch.as_tensor(log_narrow) + math.log(1 - WIDE),
        torch.as_tensor(log_wide) + math.log(WIDE) - samples.shape[1] * math.log(2),
    )
    weights = (log_density(points) - log_q.to(points)).exp()
    effective = float(weights.sum() ** 2 / weights.square().sum())
    value, error = metrics.mean_and_standard_error(weights.numpy(force=True))
    method = f"importance sampling ({effective:.0f} of {count} samples carry it)"
    return Integral(value, error if effective >= MIN_EFFECTIVE else math.inf, method)


def _sample(exam: Examination, count: int) -> Tensor:
    """Draw from the flow, given the context of the first row; draws that cannot be solved are left out."""
    context = None if exam.batch.context is None else exam.batch.context[0]
    draws = exam.flow.sample(count, context, solver=lenient_solver(TOLERANCE), generator=exam.generator())
    return draws[flat(draws).isfinite().all(1)]


def _opened(exam: Examination, x: Tensor) -> Tensor:
    """Return rows as points v without bounds, (m, d)."""
    return flat(biject_to(exam.flow.support).inv(x))


def _log_density(exam: Examination, points: Tensor) -> Tensor:
    """Return log-densities at points v (m, d), given the context of the first row; -inf where a solve fails."""
    context = None if exam.batch.context is None else exam.batch.context[:1].expand(len(points), -1)
    v, opening = points.reshape(-1, *exam.flow.event_shape), biject_to(exam.flow.support)
    x = opening(v)
    log_density = exam.log_prob(Batch(x, context), TOLERANCE) + opening.log_abs_det_jacobian(v, x).to(x)
    return log_density.nan_to_num(nan=-math.inf)


def _inner_log_density(exam: Examination, points: Tensor, context: Tensor | None) -> Tensor:
    """Return log-densities at preprocessed points, given one preprocessed context; -inf where a solve fails."""
    inner, solver = exam.flow.inner, lenient_solver(TOLERANCE)
    given = None if context is None else context.expand(len(points), -1)
    chunks = Batch(points, given).split(4096)
    parts = [inner.log_prob(chunk.x, chunk.context, solver=solver) for chunk in chunks]
    return torch.cat(parts).nan_to_num(nan=-math.inf)


def _to_base(exam: Examination, batch: Batch) -> Tensor:
    return exam.flow.to_base(batch.x, batch.context, options=states_only(REFERENCE_TOLERANCE))[0]


def _away_from_bounds(exam: Examination) -> Batch:
    """Return the rows whose shifts by the largest step stay within the support."""
    inside = exam.flow.support.check(_shifted(exam, exam.batch.x, max(STEPS)))
    return exam.batch[inside.reshape(-1, len(exam.batch)).all(0)]


def _shifted(exam: Examination, x: Tensor, step: float) -> Tensor:
    """Return rows shifted up and then down in each element, shape (2 d batch, *event)."""
    shifts = (step * exam.scale).diag().reshape(exam.size, 1, *x.shape[1:])
    return torch.cat([x + shifts, x - shifts]).reshape(-1, *x.shape[1:])


def _log_det_by_differences(exam: Examination, batch: Batch, step: float) -> Tensor:
    """Return log|det dz/dx|, (batch,), by central differences."""
    size, scale, x = exam.size, exam.scale, batch.x
    shifted = _shifted(exam, x, step)
    z = flat(_to_base(exam, batch.repeat(2 * size).with_x(shifted))).to(x).reshape(2, size, len(x), size)
    return torch.linalg.slogdet((z[0] - z[1]).movedim(1, 0) / (2 * step * scale)[:, None]).logabsdet
