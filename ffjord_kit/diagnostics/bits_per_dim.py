r"""Bits per dimension of whole grey levels, with every error that the figure has.

With K draws u_i of the noise, from a law q(u | k) on [0, 1)^D, the probability of an image k of D pixels is estimated
by

    P(k) = E_q[p(k + u) / q(u | k)] ~ (1/K) sum_i p(k + u_i) / q(u_i | k),    bits = -log2 P(k) / D,

without bias in P; in the mean of its logarithm the bound is from above, and falls as K grows (K = 1 is the figure of
most papers; Burda et al. 2016), or as q comes near p's own law of u (dequantizer.py). Uniform noise has q = 1. The
mean over images has its standard error, to which the noise and an estimated trace's add by themselves; the solver's
error is measured on a few images.

All draws of an image share the probes of an estimated trace, whose error e in log p would otherwise be averaged as
exp(e), which is more than 1 in the mean: the figure would fall below the truth. What of e is not common to the draws
still does so: with many draws take more probes, or the exact trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.flow import Flow
from ffjord_kit.images.dequantizer import Dequantizer, UniformDequantizer
from ffjord_kit.images.pixels import Pixels
from ffjord_kit.solver import Solver
from ffjord_kit.trace import ExactTrace, OwnTrace
from ffjord_kit.training.data import Fixed, peel
from ffjord_kit.training.precision import all_digits

FINER = 32.0  # times the tolerance, or steps doubled: the solve that measures the error
JUDGED = 32  # images


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension: their mean and its standard error, the solver's mean error of an image, and each, (n,).

    `draws` of the `noise`, uniform or variational, `probes` of the trace (0: exact), and the solver are those that it
    was made with; `nfe` the most evaluations of the dynamics that the images of a batch took.
    """

    mean: float
    standard_error: float
    solver_error: float
    values: Tensor
    bits: int
    draws: int
    probes: int
    solver: Solver
    noise: str = "uniform"
    nfe: int = 0

    def __str__(self) -> str:
        steps = f"{self.solver.steps} steps" if self.solver.steps is not None else f"tolerance {self.solver.rtol:g}"
        trace = f"{self.probes} probes" if self.probes else "exact trace"
        noise = f"{self.draws} draw{'s' * (self.draws > 1)} of {self.noise} noise"
        how = f"{len(self.values)} images, {self.bits} bits, {noise}, {trace}, {self.solver.method} with {steps}"
        return (
            f"{self.mean:.4f} ± {self.standard_error:.4f} bits/dim ({how}: solver's error of an image "
            f"{self.solver_error:.1e})"
        )


@torch.no_grad()
def bits_per_dim(
    flow: Flow,
    pixels: Pixels,
    context: Tensor | None = None,
    *,
    draws: int = 1,
    probes: int | None = 2,
    solver: Solver | None = None,
    batch_size: int = 64,
    dequantizer: Dequantizer | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Bits per dimension of images under a flow in the units of their grey levels.

    `probes` of Hutchinson's trace, None for the exact one; the solver is adaptive by row at 1e-4 unless it is given.
    The noise is uniform unless a `dequantizer` draws it; noise and probes are each image's own, whatever others there
    are. `tell` is told of the solves done and of all. Raises ValueError for no draws.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    solver, dequantizer = solver or Solver("dopri5_by_row", 1e-4, 1e-4), dequantizer or UniformDequantizer()
    weigh = _Weigh(*peel(flow), pixels, context, dequantizer, probes, pixels.own_noise(slice(None)))
    size, nfe, logs = len(pixels), 0, torch.empty(draws, len(pixels), dtype=torch.float64)
    for draw in range(draws):
        share = weigh.first if draw == 0 else pixels.own_noise(slice(None), draw)
        for start in range(0, size, batch_size):
            part = slice(start, start + batch_size)
            logs[draw, part], taken = weigh(part, share[part], solver)
            nfe = max(nfe, taken)
            if tell is not None:
                tell(draw * size + min(start + batch_size, size), draws * size)
    unit = math.prod(pixels.shape[1:]) * math.log(2)
    found, few = -(torch.logsumexp(logs, 0) - math.log(draws)) / unit, slice(0, min(JUDGED, size))
    finer, _ = weigh(few, weigh.first[few], _finer(solver, weigh.like.dtype))
    error = float((logs[0, few] - finer).abs().mean()) / unit
    spread = float(found.std()) / math.sqrt(size) if size > 1 else math.nan
    how = (pixels.bits, draws, probes or 0, solver, dequantizer.name, nfe)
    return BitsPerDim(float(found.mean()), spread, error, found, *how)


@dataclass(frozen=True)
class _Weigh:
    """log p(k + u) - log q(u | k), (rows,), for one draw of u, and the evaluations that it took.

    The `first` draw's noise gives the probes of all.
    """

    fixed: Fixed
    inner: Flow
    pixels: Pixels
    context: Tensor | None
    dequantizer: Dequantizer
    probes: int | None
    first: Tensor

    @property
    def like(self) -> Tensor:
        """Of the dtype and on the device of the flow; in float64 where it has no weights."""
        return next(self.inner.parameters(), torch.zeros((), dtype=torch.float64))

    def __call__(self, rows: slice, share: Tensor, solver: Solver) -> tuple[Tensor, int]:
        given = None if self.context is None else self.context[rows]
        level = self.pixels.level(rows)
        u, log_q = self.dequantizer.draw(level, share, given)
        data = self.fixed.prepare(level + u, given, self.like)
        trace = ExactTrace() if self.probes is None else OwnTrace(self.probes).of(level + self.first[rows])
        with all_digits():
            log_p, moved = self.inner.evaluate_log_prob(data.x, data.context, integration=Integration(trace, solver))
        return log_p.cpu().double() + data.log_det - log_q.cpu(), moved.nfe


def _finer(solver: Solver, dtype: torch.dtype) -> Solver:
    if solver.steps is not None:
        return replace(solver, steps=2 * solver.steps)
    tolerance = max(solver.rtol / FINER, 10 * torch.finfo(dtype).eps)
    return replace(solver, rtol=tolerance, atol=tolerance)
