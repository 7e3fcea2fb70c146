r"""Bits per dimension of whole grey levels, with every error that the figure has.

With K draws u_i of the noise from a law q(u | k) on [0, 1)^D, the probability of an image k of D pixels is estimated
by

    P(k) = E_q[p(k + u) / q(u | k)] ~ (1/K) sum_i p(k + u_i) / q(u_i | k),    bits = -log2 P(k) / D.

The estimate of P is unbiased. The mean of its logarithm gives an upper bound on the bits, which falls as K grows (K =
1 is the figure of most papers; Burda et al. 2016), or as q approaches p's own law of u (`objectives.dequantization`).
Uniform noise has q = 1. The standard error of the mean over images includes that of the noise and of an estimated
trace; the error of the solver is measured on a few images.

All draws of an image share the probes of an estimated trace. With other probes the error e of log p would be averaged
over draws as exp(e), whose mean is above 1, and the figure would fall below the truth. The part of e that differs
between draws still has this effect: with many draws take more probes, or the exact trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch, Pixels
from ffjord_kit.diagnostics.examination import preprocessed
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.dequantization import Dequantizer, UniformDequantizer
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver, SolveError, Solver
from ffjord_kit.precision import full_precision
from ffjord_kit.trace import ExactTrace, PerRowTrace
from ffjord_kit.transforms.cnf import SolveOptions

FINER = 32.0  # times finer the tolerance, with which the solver's error is measured; steps are doubled
ERROR_IMAGES = 32
FEW_METHOD, FEW_STEPS, GRADINGS = "rk4", (3, 4, 6, 8, 12, 16), (1.0, 2.0, 3.0)
JUDGING_IMAGES = 16  # on which the fewest steps are found


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of images.

    Args:
        mean: Mean over images.
        standard_error: Standard error of the mean.
        solver_error: Mean absolute error of an image's figure that the solver causes.
        values: Figure of each image, shape (n,).
        bits: Bits of the grey levels.
        draws: Number of draws of the noise.
        probes: Number of Hutchinson probes; 0 for the exact trace.
        solver: Solver.
        noise: Word for the noise: "uniform" or "variational".
        nfe: Evaluations of the dynamics in the solve that took most.

    Example:
        >>> values = torch.tensor([3.0, 3.5])
        >>> bits = BitsPerDim(3.25, 0.25, 1e-5, values, bits=8, draws=2, probes=0, solver=FixedSolver("rk4", steps=8))
        >>> bits.setting, str(bits)[:24]
        ('rk4 with 8 steps', '3.2500 ± 0.2500 bits/dim')
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

    @property
    def setting(self) -> str:
        """Solver in words."""
        return _format(self.solver)

    def __str__(self) -> str:
        trace = f"{self.probes} probes" if self.probes else "exact trace"
        noise = f"{self.draws} draw{'s' * (self.draws > 1)} of {self.noise} noise"
        setup = f"{len(self.values)} images, {self.bits} bits, {noise}, {trace}, {self.setting}"
        return (
            f"{self.mean:.4f} ± {self.standard_error:.4f} bits/dim ({setup}: solver's error of an image "
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
    max_error: float | None = None,
    batch_size: int = 64,
    dequantizer: Dequantizer | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Compute the bits per dimension of images under a flow in the units of their grey levels.

    Noise and probes belong to each image and do not depend on the other images.

    Args:
        flow: Flow in the units of grey levels.
        pixels: Images, shape (n, *event).
        context: Contexts, shape (n, context_dim), or None.
        draws: Number of draws of the noise.
        probes: Number of Hutchinson probes; None for the exact trace.
        solver: Solver of all continuous transforms; adaptive by row at 1e-4 if None.
        max_error: Mean error of an image's figure that the solver may cause, bits per dimension: the fewest graded
            steps are used that hold it on a few images, judged by `solver`. None for `solver` itself.
        batch_size: Number of images solved at once.
        dequantizer: Law of the noise; uniform if None.
        on_progress: Called with the number of solves done and of all solves.

    Returns:
        Bits per dimension with their errors.

    Raises:
        ValueError: If `draws` is below 1, the error not positive, or the images do not fit the flow.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> pixels = Pixels(torch.tensor([[[[90]]], [[[110]]]], dtype=torch.uint8))
        >>> flow = Flow([], preprocess=[Standardize.of(pixels.fetch(slice(None)))])
        >>> bits = bits_per_dim(flow, pixels, draws=100, probes=None)
        >>> print(f"{bits.mean:.1f}")
        5.4
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    if max_error is not None and not max_error > 0:
        raise ValueError(f"max_error must be positive; got {max_error}")
    solver, dequantizer = solver or PerRowSolver(1e-4, 1e-4), dequantizer or UniformDequantizer()
    estimate = _Estimate(flow, flow.inner, pixels, context, dequantizer, probes, pixels.own_noise(slice(None)))
    size, unit = len(pixels), math.prod(pixels.shape[1:]) * math.log(2)
    solver_error = None
    if max_error is not None:
        solver, solver_error = _fewest_steps(estimate, solver, max_error, unit)
    log_ratios, nfe = _all_log_ratios(estimate, solver, draws, batch_size, on_progress)
    values = -(torch.logsumexp(log_ratios, 0) - math.log(draws)) / unit
    if solver_error is None:
        first = slice(0, min(ERROR_IMAGES, size))
        finer, _ = estimate(first, estimate.first_noise[first], _finer(solver, flow.like.dtype))
        solver_error = float((log_ratios[0, first] - finer).abs().mean()) / unit
    standard_error = float(values.std()) / math.sqrt(size) if size > 1 else math.nan
    return BitsPerDim(
        float(values.mean()), standard_error, solver_error, values, pixels.bits, draws, probes or 0, solver,
        dequantizer.name, nfe,
    )  # fmt: skip


@dataclass(frozen=True)
class _Estimate:
    """log p(k + u) - log q(u | k) of some images; the noise of the first draw seeds the probes of all draws."""

    flow: Flow
    inner: Flow
    pixels: Pixels
    context: Tensor | None
    dequantizer: Dequantizer
    probes: int | None
    first_noise: Tensor

    def __call__(self, rows: slice, noise: Tensor, solver: Solver) -> tuple[Tensor, int]:
        """Return log-ratios, (rows,), in float64 on the CPU, and the evaluations that they took."""
        levels = Batch(self.pixels.level(rows), None if self.context is None else self.context[rows])
        u, log_q = self.dequantizer.draw(levels.x, noise, levels.context)
        batch, log_det = preprocessed(self.flow, levels.with_x(levels.x + u))
        trace = ExactTrace() if self.probes is None else PerRowTrace(self.probes).of(levels.x + self.first_noise[rows])
        with full_precision():
            log_p, moved = self.inner.evaluate_log_prob(batch.x, batch.context, options=SolveOptions(trace, solver))
        return log_p.cpu().double() + log_det - log_q.cpu(), moved.nfe


def _fewest_steps(estimate: _Estimate, converged: Solver, max_error: float, unit: float) -> tuple[Solver, float | None]:
    """Return the fewest graded steps whose mean error on some images is small enough, and that error.

    Where none are, return the converged solver, whose error is yet to be measured.
    """
    some = slice(0, min(JUDGING_IMAGES, len(estimate.pixels)))
    truth, _ = estimate(some, estimate.first_noise[some], converged)
    for steps in FEW_STEPS:
        errors = {}
        for grading in GRADINGS:
            solver = FixedSolver(FEW_METHOD, steps, grading=grading)
            try:
                values, _ = estimate(some, estimate.first_noise[some], solver)
            except SolveError:  # steps so long leave the reach of the field
                continue
            errors[solver] = float((values - truth).abs().mean()) / unit
        best = min(errors, key=lambda solver: errors[solver], default=None)
        if best is not None and errors[best] <= max_error:
            return best, errors[best]
    return converged, None


def _all_log_ratios(
    estimate: _Estimate, solver: Solver, draws: int, batch_size: int, on_progress: Callable[[int, int], None] | None
) -> tuple[Tensor, int]:
    """Return log-ratios of all draws, (draws, n), and the evaluations of the solve that took most."""
    size, nfe = len(estimate.pixels), 0
    log_ratios = torch.empty(draws, size, dtype=torch.float64)
    for draw in range(draws):
        noise = estimate.first_noise if draw == 0 else estimate.pixels.own_noise(slice(None), draw)
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size)
            log_ratios[draw, rows], evaluations = estimate(rows, noise[rows], solver)
            nfe = max(nfe, evaluations)
            if on_progress is not None:
                on_progress(draw * size + min(start + batch_size, size), draws * size)
    return log_ratios, nfe


def _finer(solver: Solver, dtype: torch.dtype) -> Solver:
    """Return the solver with which the error of another is measured."""
    if isinstance(solver, FixedSolver):
        return replace(solver, steps=2 * solver.steps)
    if isinstance(solver, (AdaptiveSolver, PerRowSolver)):
        tolerance = max(solver.rtol / FINER, 10 * torch.finfo(dtype).eps)
        return replace(solver, rtol=tolerance, atol=tolerance)
    raise TypeError(f"expected an adaptive, fixed or per-row solver; got {type(solver).__name__}")


def _format(solver: Solver) -> str:
    if isinstance(solver, FixedSolver):
        graded = "" if solver.grading == 1 else f" of grading {solver.grading:g}"
        return f"{solver.method} with {solver.steps} steps{graded}"
    if isinstance(solver, (AdaptiveSolver, PerRowSolver)):
        return f"{solver.method} with tolerance {solver.rtol:g}"
    return solver.label
