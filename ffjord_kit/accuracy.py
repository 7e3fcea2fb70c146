r"""How far a log-density is to be trusted: the solver's error of each row, and that of the trace's estimator.

With z the row's place at the base and L its log-determinant, log p = log p_0(z) + L. Each row is solved twice: by steps
of its own, and by each of these as two of half the length (z', L'). Their method is of fifth order, so what parts the
two is the error of the first, to 1/32 of it. Errors of z and of L may cancel in log p by chance, so they are added up
by size, and doubled for the terms that the orders leave out:

    solver error = 2 (|L - L'| + sum_i |d log p_0 / d z_i| |z_i - z'_i|) + rounding

With K probes of Hutchinson's trace, each gives a log-determinant L_k: the value is their mean, its standard error
s / sqrt(K). The error of the whole is

    error = solver error + t s / sqrt(K),    t the quantile 0.995 of Student's law with K - 1 degrees of freedom,

so that at least about 99 % of rows lie within it. Where an error is asked for, the rows that have not met it are solved
again, at a finer tolerance or with more probes, as their larger part of the error demands; each for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from ffjord_kit.base import Base
from ffjord_kit.cnf import Integration
from ffjord_kit.solver import Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace, TraceEstimator

SAFETY = 2.0
CONFIDENCE = 0.995
ROUNDINGS = 4  # of the value, a step
FINER, MORE_PROBES = 32.0, 4

Way = Callable[[Tensor, "Tensor | None", Integration], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class LogDensity:
    """Log-densities of rows in nats, and their errors; all are (batch,).

    `error` bounds the distance to the truth for about 99 % of rows: it is the solver's error and, with probes,
    `trace_error`, a standard error, times a quantile. `met` says which rows have the error that was asked for (all,
    where none was); `tolerance` at which each was solved, with so many `probes` (0: the exact trace, which as many
    probes as dimensions are); `taken` and `refused` steps.
    """

    value: Tensor
    error: Tensor
    solver_error: Tensor
    trace_error: Tensor
    met: Tensor
    tolerance: Tensor
    probes: Tensor
    taken: Tensor
    refused: Tensor

    def put(self, rows: Tensor, other: LogDensity) -> LogDensity:
        """With those of another, where they are finite, in the places of some rows, (n,)."""
        good = other.value.isfinite()
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)[good]) for f in fields(self)}
        return LogDensity(**{name: mine.index_copy(0, rows[good], its) for name, (mine, its) in pairs.items()})


@dataclass(frozen=True)
class Asked:
    """What is asked of log-densities: a tolerance, probes of the trace (None: exact), and the error, if any.

    A row whose solve cannot go on ends all, or, where it is forgiven, has the value NaN and has met nothing.
    Raises ValueError for an error that is not positive, or for one probe, which does not show its error.
    """

    tolerance: float
    probes: int | None = None
    error: float | None = None
    max_nfe: int = 10_000
    forgiving: bool = False

    def __post_init__(self) -> None:
        if self.error is not None and not self.error > 0:
            raise ValueError(f"error must be positive, in nats; got {self.error}")
        if self.probes is not None and self.probes < 2:
            raise ValueError(f"probes must be at least 2, or None for the exact trace; got {self.probes}")

    def finer(self, dtype: torch.dtype) -> Asked | None:
        """The same at a finer tolerance; None where floats resolve no finer one."""
        finest = 4 * torch.finfo(dtype).eps
        return None if self.tolerance <= finest else replace(self, tolerance=max(self.tolerance / FINER, finest))

    def surer(self) -> Asked | None:
        """The same with more probes; None where the trace is exact."""
        return None if self.probes is None else replace(self, probes=MORE_PROBES * self.probes)

    def exact_if_cheaper(self, size: int) -> Asked:
        """The same with the exact trace where as many probes as an event has elements were asked for."""
        return replace(self, probes=None) if self.probes is not None and self.probes >= size else self


@dataclass(frozen=True)
class Twins(TraceEstimator):
    """The same probes for both rows of each pair."""

    trace: TraceEstimator

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probes = self.trace.draw(x[: len(x) // 2], generator)
        return probes if probes.shape[1] == 1 else torch.cat([probes, probes], dim=1)


def log_density(
    way: Way, base: Base, x: Tensor, context: Tensor | None, asked: Asked, generator: torch.Generator | None
) -> LogDensity:
    """The log-densities of rows x (batch, *event) that `way` carries to the base.

    `way(x, context, integration)` gives z (batch, *event), log-determinants (batch,), or (batch, probe) with probes
    kept apart, and the steps of each row, taken and refused (batch,).
    """
    asked = asked.exact_if_cheaper(x[0].numel())
    first = _judged(way, base, x, context, asked, generator)
    if asked.error is None:
        return first
    coarse = first.solver_error > asked.error / (1 if asked.probes is None else 2)
    noisy = ~first.met & ~coarse & first.value.isfinite()
    for unmet, again in ((coarse, asked.finer(x.dtype)), (noisy, asked.surer())):
        rows = unmet.nonzero().flatten()
        if len(rows) and again is not None:
            part = None if context is None else context[rows]
            found = log_density(way, base, x[rows], part, replace(again, forgiving=True), generator)
            first = first.put(rows, found)  # a coarser solve stands where a finer one cannot go on
    return first


def _judged(
    way: Way, base: Base, x: Tensor, context: Tensor | None, asked: Asked, generator: torch.Generator | None
) -> LogDensity:
    trace = ExactTrace() if asked.probes is None else HutchinsonTrace(asked.probes)
    solver = Solver(
        "dopri5_by_row", asked.tolerance, asked.tolerance, max_nfe=asked.max_nfe, paired=True, forgiving=asked.forgiving
    )
    how = Integration(Twins(trace), solver, generator=generator, apart=asked.probes is not None)
    twice = None if context is None else torch.cat([context, context])
    z, log_dets, taken, refused = way(torch.cat([x, x]), twice, how)
    half = len(x)
    means = log_dets if asked.probes is None else log_dets.mean(1)
    value = base.log_prob(z[:half]) + means[:half]
    apart = (means[:half] - means[half:]).abs() + _felt(base, z[half:], z[:half] - z[half:])
    rounding = ROUNDINGS * torch.finfo(x.dtype).eps * (1 + value.abs()) * (1 + taken[:half])
    solver_error = SAFETY * apart + rounding
    spread, quantile = _trace_error(log_dets[:half], asked)
    error = solver_error + quantile * spread
    met = error <= (math.inf if asked.error is None else asked.error)
    tolerance, probes = torch.full_like(value, asked.tolerance), torch.full_like(taken[:half], asked.probes or 0)
    return LogDensity(value, error, solver_error, spread, met, tolerance, probes, taken[:half], refused[:half])


def _felt(base: Base, z: Tensor, shift: Tensor) -> Tensor:
    """How much shifts of z (batch, *event) are felt in log p_0, their elements added up by size, (batch,)."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(base.log_prob(point).sum(), point)
    return (slope * shift).abs().reshape(len(z), -1).sum(1)


def _trace_error(log_dets: Tensor, asked: Asked) -> tuple[Tensor, float]:
    """The standard error, (batch,), of the mean over probes, (batch, probe), and the quantile that goes with it."""
    if asked.probes is None:
        return torch.zeros_like(log_dets), 0.0
    return log_dets.std(1) / math.sqrt(asked.probes), float(stdtrit(asked.probes - 1, CONFIDENCE))
