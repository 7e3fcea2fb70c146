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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.flow import Flow
from ffjord_kit.images.dequantizer import Dequantizer, UniformDequantizer
from ffjord_kit.images.pixels import Pixels
from ffjord_kit.solver import Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training.data import Fixed, peel

FINER = 32.0  # times the tolerance, or steps doubled: the solve that measures the error
JUDGED = 32  # images


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension: their mean and its standard error, the solver's mean error of an image, and each, (n,).

    `draws` of the `noise`, uniform or variational, `probes` of the trace (0: exact), and the solver are those that it
    was made with.
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
    generator: torch.Generator | None = None,
    dequantizer: Dequantizer | None = None,
) -> BitsPerDim:
    """Bits per dimension of images under a flow in the units of their grey levels.

    `probes` of Hutchinson's trace, None for the exact one; the solver is adaptive by row at 1e-4 unless it is given.
    The noise is uniform unless a `dequantizer` draws it. Raises ValueError for no draws.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    generator = generator or _seeded(0)
    solver, dequantizer = solver or Solver("dopri5_by_row", 1e-4, 1e-4), dequantizer or UniformDequantizer()
    weigh = _Weigh(*peel(flow), pixels, context, dequantizer, probes)
    unit, values = math.prod(pixels.shape[1:]) * math.log(2), []
    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        probes_seed = int(torch.randint(2**62, (), generator=generator))
        logs = torch.stack([weigh(part, generator, solver, _seeded(probes_seed)) for _ in range(draws)])
        values.append(-(torch.logsumexp(logs, 0) - math.log(draws)) / unit)
    found, few = torch.cat(values), slice(0, min(JUDGED, len(pixels)))
    twice = [weigh(few, _seeded(1), how, _seeded(2)) for how in (solver, _finer(solver, weigh.like.dtype))]
    error = float((twice[0] - twice[1]).abs().mean()) / unit
    spread = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    how = (pixels.bits, draws, probes or 0, solver, dequantizer.name)
    return BitsPerDim(float(found.mean()), spread, error, found, *how)


@dataclass(frozen=True)
class _Weigh:
    """log p(k + u) - log q(u | k), (rows,), for one draw of u."""

    fixed: Fixed
    inner: Flow
    pixels: Pixels
    context: Tensor | None
    dequantizer: Dequantizer
    probes: int | None

    @property
    def like(self) -> Tensor:
        """Of the dtype and on the device of the flow; in float64 where it has no weights."""
        return next(self.inner.parameters(), torch.zeros((), dtype=torch.float64))

    def __call__(self, rows: slice, noise: torch.Generator, solver: Solver, probing: torch.Generator) -> Tensor:
        given = None if self.context is None else self.context[rows]
        level = self.pixels.level(rows)
        u, log_q = self.dequantizer.draw(level, noise, given)
        data = self.fixed.prepare(level + u, given, self.like)
        trace = ExactTrace() if self.probes is None else HutchinsonTrace(self.probes)
        way = Integration(trace, solver, generator=probing)
        log_p = self.inner.evaluate_log_prob(data.x, data.context, integration=way)[0]
        return log_p.cpu().double() + data.log_det - log_q.cpu()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _finer(solver: Solver, dtype: torch.dtype) -> Solver:
    if solver.steps is not None:
        return replace(solver, steps=2 * solver.steps)
    tolerance = max(solver.rtol / FINER, 10 * torch.finfo(dtype).eps)
    return replace(solver, rtol=tolerance, atol=tolerance)
