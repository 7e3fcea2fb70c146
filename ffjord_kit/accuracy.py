r"""The error of a log-density: of the solver, row by row, and of the trace's estimator.

With z the row's place at the base and L its log-determinant, log p = log p_0(z) + L. Each row is solved twice: by
adaptive steps of its own, and by each of these as two of half the length (z', L'). The method is of fifth order, so the
difference of the two is the error of the first, to 1/32 of it. Errors of z and of L may cancel in log p by chance, so
their sizes are added, and doubled for the terms of higher order. Errors of several steps may cancel too: a difference
counts as no smaller than the root of the sum of squares of what each step adds to it.

    solver error = 2 (|L - L'| + sum_i |d log p_0 / d z_i| |z_i - z'_i|) + rounding

That holds where the field is smooth on the scale of the longest step, an eighth of the time or less. Where the slopes
leap within a step, the order does not hold: h times the leap is added for it, and log(1 + leap / |f|) for a leap of the
velocity in space, whose part of the trace no derivative shows.

With K probes of Hutchinson's trace, each gives a log-determinant L_k: the value is their mean, its standard error
s / sqrt(K). The error of the whole is

    error = solver error + t s / sqrt(K),    t the quantile 0.9975 of Student's law with K - 1 degrees of freedom,

so that at least about 99 % of rows lie within it. Where an error is requested, rows that do not meet it are solved
again, at a finer tolerance if the solver's error is too large, else with more probes; each row by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.distributions import Base
from ffjord_kit.ode import PerRowSolver, RowSteps
from ffjord_kit.trace import ExactTrace, HutchinsonTrace, TraceEstimator
from ffjord_kit.transforms.cnf import SolveOptions

SAFETY = 2.0
CONFIDENCE = 0.9975  # two-sided 0.995: errors of few probes have heavier tails than normal ones
FEW_ELEMENTS = 8  # of an event; below, the exact trace costs hardly more than probes, which may coincide
ROUNDINGS = 4  # units in the last place of the value, for each step
FINER, MORE_PROBES = 32.0, 4
MAX_STEP = 1 / 8  # of the time of a continuous transform
PROGRESS = 0.5  # largest share of the error that a finer solve may leave; above it, finer ones do not help
SHORTER = 1.5  # times the steps of the coarser solve; with fewer, finer ones are tried on

Carry = Callable[[Batch, SolveOptions], tuple[Tensor, Tensor, list[RowSteps]]]


@dataclass(frozen=True)
class LogDensity:
    """Log-densities of rows, and their errors; all have shape (batch,), in nats.

    Attributes:
        value: Log-densities.
        error: Bound on the distance to the truth for about 99 % of rows: the solver's error and, with probes, a
            multiple of `trace_error`.
        solver_error: Error of the solver.
        trace_error: Standard error of the estimated trace; 0 for the exact one.
        met: Whether a row has the requested error (True where none was requested).
        tolerance: Tolerance at which a row was solved.
        probes: Probes of a row; 0 for the exact trace.
        accepted: Accepted steps.
        rejected: Rejected steps.
        longest_step: Longest step, in the time of its continuous transform. A field that changes on a much shorter
            scale, between the stages of a step, is not seen.
        rounding: Part of the solver's error that no finer tolerance lowers.

    Example:
        >>> from ffjord_kit import CNF, ConcatDynamics, Flow
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))]).double()
        >>> result = flow.evaluate(torch.zeros(3, 2, dtype=torch.float64), error=1e-6)
        >>> result.met.tolist(), bool((result.error <= 1e-6).all())
        ([True, True, True], True)
    """

    value: Tensor
    error: Tensor
    solver_error: Tensor
    trace_error: Tensor
    met: Tensor
    tolerance: Tensor
    probes: Tensor
    accepted: Tensor
    rejected: Tensor
    longest_step: Tensor
    rounding: Tensor

    def take(self, rows: Tensor) -> LogDensity:
        """Return the results of some rows.

        Args:
            rows: Indices of the rows, shape (n,).

        Returns:
            Their results.
        """
        return LogDensity(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def updated(self, rows: Tensor, other: LogDensity) -> LogDensity:
        """Return a copy with other results in some rows, where those are finite.

        Args:
            rows: Indices of the rows, shape (n,).
            other: Results of these rows.

        Returns:
            The updated results.
        """
        good = other.value.isfinite()
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)[good]) for f in fields(self)}
        return LogDensity(**{name: mine.index_copy(0, rows[good], new) for name, (mine, new) in pairs.items()})


@dataclass(frozen=True)
class AccuracyOptions:
    """Request for log-densities with errors.

    Args:
        tolerance: Relative and absolute tolerance of the first solve.
        probes: Number of Hutchinson probes; None for the exact trace.
        error: Requested error, nats; None for none.
        max_nfe: Largest number of evaluations of a solve.
        on_failure: "raise", or "nan" for rows that cannot be solved.

    Raises:
        ValueError: If the error is not positive, or there is one probe, which does not show its error.

    Example:
        >>> AccuracyOptions(1e-3, probes=4).with_more_probes().probes
        16
    """

    tolerance: float
    probes: int | None = None
    error: float | None = None
    max_nfe: int = 10_000
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        if self.error is not None and not self.error > 0:
            raise ValueError(f"error must be positive, in nats; got {self.error}")
        if self.probes is not None and self.probes < 2:
            raise ValueError(f"probes must be at least 2, or None for the exact trace; got {self.probes}")

    def finer(self, dtype: torch.dtype) -> AccuracyOptions | None:
        """Return the request at a finer tolerance.

        Args:
            dtype: Type of the states.

        Returns:
            The request, or None where floats resolve no finer tolerance.
        """
        finest = 4 * torch.finfo(dtype).eps
        return None if self.tolerance <= finest else replace(self, tolerance=max(self.tolerance / FINER, finest))

    def with_more_probes(self) -> AccuracyOptions | None:
        """Return the request with more probes.

        Returns:
            The request, or None where the trace is exact.
        """
        return None if self.probes is None else replace(self, probes=MORE_PROBES * self.probes)

    def exact_if_cheaper(self, size: int) -> AccuracyOptions:
        """Return the request with the exact trace where that costs hardly more than the probes.

        Args:
            size: Elements of an event.

        Returns:
            The request.
        """
        return replace(self, probes=None) if size <= max(FEW_ELEMENTS, self.probes or 0) else self


@dataclass(frozen=True)
class PairedProbes(TraceEstimator):
    """Give both rows of each pair, i and n + i, the same probes.

    Args:
        trace: Estimator that draws them for n rows.

    Example:
        >>> probes = PairedProbes(HutchinsonTrace(1)).draw(torch.zeros(4, 2))
        >>> bool((probes[:, :2] == probes[:, 2:]).all())
        True
    """

    trace: TraceEstimator

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probes = self.trace.draw(x[: len(x) // 2], generator)
        return probes if probes.shape[1] == 1 else torch.cat([probes, probes], dim=1)


def log_density(
    carry: Carry, base: Base, batch: Batch, options: AccuracyOptions, generator: torch.Generator | None
) -> LogDensity:
    """Return log-densities with errors.

    Args:
        carry: From rows and solve options to z, shape (batch, *event), log-determinants, shape (batch,), or (batch,
            probe) with probes kept apart, and the steps of the rows in each continuous transform.
        base: Base distribution.
        batch: Rows and contexts.
        options: Tolerance, probes, and the requested error.
        generator: Source of the probes.

    Returns:
        Log-densities and errors.
    """
    return _refined(carry, base, batch, options.exact_if_cheaper(batch.x[0].numel()), generator, ())


def _refined(
    carry: Carry,
    base: Base,
    batch: Batch,
    options: AccuracyOptions,
    generator: torch.Generator | None,
    before: tuple[LogDensity, ...],
) -> LogDensity:
    """Solve, and solve the rows again that do not meet the error; `before`: of up to two coarser solves.

    Rows are given up where two finer solves in a row did not help, as at a jump. One proves nothing: at a turning point
    of a smooth field the stages of a long step look like a leap.
    """
    first = _evaluate(carry, base, batch, options, generator)
    if options.error is None:
        return first
    allowed = options.error / (1 if options.probes is None else 2)
    coarse = (first.solver_error > allowed) & (first.rounding < allowed)
    noisy = ~first.met & (first.solver_error <= allowed) & first.value.isfinite()
    if len(before) == 2:
        coarse &= _helped(before[1], before[0]) | _helped(first, before[1])
    for unmet, refined, known in (
        (coarse, options.finer(batch.x.dtype), (*before, first)[-2:]),
        (noisy, options.with_more_probes(), ()),
    ):
        rows = unmet.nonzero().flatten()
        if len(rows) and refined is not None:
            coarser = tuple(solve.take(rows) for solve in known)
            again = _refined(carry, base, batch[rows], replace(refined, on_failure="nan"), generator, coarser)
            first = first.updated(rows, again)  # a coarser solve stands where a finer one cannot go on
    return first


def _helped(finer: LogDensity, coarser: LogDensity) -> Tensor:
    """Say of each row whether a finer solve lowered its error, or hardly shortened its steps, (batch,)."""
    lower = finer.solver_error <= PROGRESS * coarser.solver_error
    return lower | (finer.accepted <= SHORTER * coarser.accepted)


def _evaluate(
    carry: Carry, base: Base, batch: Batch, options: AccuracyOptions, generator: torch.Generator | None
) -> LogDensity:
    """Solve each row by its steps, and by each of them as two."""
    trace = ExactTrace() if options.probes is None else HutchinsonTrace(options.probes)
    solver = PerRowSolver(
        options.tolerance, options.tolerance, max_nfe=options.max_nfe, max_step=MAX_STEP, step_doubling=True,
        on_failure=options.on_failure,
    )  # fmt: skip
    paired = SolveOptions(PairedProbes(trace), solver, generator=generator, per_probe=options.probes is not None)
    z, log_dets, steps = carry(batch.repeat(2), paired)
    n = len(batch)
    means = log_dets if options.probes is None else log_dets.mean(1)
    value = base.log_prob(z[:n]) + means[:n]
    accepted, rejected, longest = _counts(steps, n, z)
    place = _apart(z[:n] - z[n:], [rows.gaps[0] for rows in steps])
    difference = _apart(means[:n] - means[n:], [rows.gaps[1] for rows in steps]) + _sensitivity(base, z[n:], place)
    size = 1 + value.abs() + _sensitivity(base, z[n:], z[:n])
    rounding = ROUNDINGS * torch.finfo(z.dtype).eps * size * (1 + accepted)
    solver_error = SAFETY * difference + _leap_error(base, z[n:], steps, value) + rounding
    trace_error, quantile = _trace_error(log_dets[:n], options)
    error = solver_error + quantile * trace_error
    met = error <= (math.inf if options.error is None else options.error)
    tolerance, probes = torch.full_like(value, options.tolerance), torch.full_like(accepted, options.probes or 0)
    return LogDensity(
        value, error, solver_error, trace_error, met, tolerance, probes, accepted, rejected, longest, rounding
    )


def _apart(difference: Tensor, gaps: list[Tensor]) -> Tensor:
    """Return the size of the difference (n, ...) of two solutions, at least that of the gaps that their steps made."""
    squares = torch.zeros_like(difference)
    for gap in (part[: len(difference)] for part in gaps):
        gap = gap.mean(1) if gap.dim() > 1 and difference.dim() == 1 else gap  # over the probes
        squares = squares + (gap.square() if gap.shape == difference.shape else 0)
    return torch.maximum(difference.abs(), squares.sqrt())


def _counts(steps: list[RowSteps], n: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the accepted and rejected steps of n rows over all transforms, and the longest step, (n,)."""
    none = like.new_zeros(n, dtype=torch.long)
    accepted = sum((rows.accepted[:n] for rows in steps), none)
    rejected = sum((rows.rejected[:n] for rows in steps), none)
    longest = [rows.longest[:n].to(like) for rows in steps]
    return accepted, rejected, torch.stack(longest).amax(0) if longest else like.new_zeros(n)


def _leap_error(base: Base, z: Tensor, steps: list[RowSteps], like: Tensor) -> Tensor:
    """Return the bound on the errors by leaps of the slopes, and by jumps of the velocity in space, (batch,)."""
    total = torch.zeros_like(like)
    for rows in steps:
        x, log_det = (part[: len(z)] for part in rows.leaps[:2])
        total = total + (log_det.mean(1) if log_det.dim() > 1 else log_det) + rows.jumps[: len(z)]
        if x.shape == z.shape:
            total = total + _sensitivity(base, z, x)
    return total


def _sensitivity(base: Base, z: Tensor, shift: Tensor) -> Tensor:
    """Return the change of log p_0 by shifts of z (batch, *event), the sizes of their elements added, (batch,)."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(base.log_prob(point).sum(), point)
    return (slope * shift).abs().reshape(len(z), -1).sum(1)


def _trace_error(log_dets: Tensor, options: AccuracyOptions) -> tuple[Tensor, float]:
    """Return the standard error, (batch,), of the mean over probes, (batch, probe), and Student's quantile."""
    if options.probes is None:
        return torch.zeros_like(log_dets), 0.0
    return log_dets.std(1) / math.sqrt(options.probes), float(stdtrit(options.probes - 1, CONFIDENCE))
