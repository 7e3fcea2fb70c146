r"""Stiffness of the field along the paths: the spectrum of its Jacobian.

An explicit method of a fixed step h is stable where |h lambda| stays below about 3 for each eigenvalue lambda of
df/dx. So the largest modulus gives the least number of steps, and the largest real part gives the rate at which
neighbouring paths diverge. Eigenvalues are scaled by the end time T of their transform, T lambda, so that transforms
of any end time compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.diagnostics.examination import Examination, preprocessed
from ffjord_kit.diagnostics.findings import GOOD, UNSURE, Finding, grade
from ffjord_kit.ode import PerRowSolver
from ffjord_kit.trace import ExactTrace, evaluate_field
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF, SolveOptions

MAX_SIZE, ROWS, TIMES = 128, 32, 17  # elements of an event, rows, and times in each continuous transform
MILD, STIFF = 100.0, 1000.0
STABILITY_LIMIT = 2.8  # of |h lambda|, for Runge-Kutta methods of fourth order
PATH_OPTIONS = SolveOptions(trace=None, solver=PerRowSolver(1e-4, 1e-4))


@dataclass(frozen=True)
class Spectrum:
    """Extremes of the Jacobian's eigenvalues over some rows, at times from data to base.

    Args:
        times: Times of the flow, in [0, 1], shape (T,).
        real: Largest real part, shape (T,).
        modulus: Largest modulus, shape (T,).
    """

    times: Tensor
    real: Tensor
    modulus: Tensor


@torch.no_grad()
def spectrum(exam: Examination) -> Spectrum | None:
    """Compute the spectrum along the paths of the first rows.

    Args:
        exam: Examination.

    Returns:
        The spectrum; None for a flow without continuous transforms, or with more than 128 elements of an event.
    """
    if not exam.continuous or exam.size > MAX_SIZE:
        return None
    batch, _ = preprocessed(exam.flow, exam.batch[:ROWS])
    x, context, end, chunks = batch.x, batch.context, 1.0, []
    total = sum(transform.end_time for transform in exam.continuous)
    for transform in exam.flow.transforms:
        if isinstance(transform, CNF):
            clock = torch.linspace(transform.end_time, 0.0, TIMES, dtype=torch.float64)
            path = transform.integrate(x, clock, context=context, options=PATH_OPTIONS)
            values = torch.stack([_eigenvalues(transform, t, s, context) for t, s in zip(clock, path.x, strict=True)])
            times = end - (transform.end_time - clock) / total
            chunks.append((times, values.real.amax((1, 2)).cpu(), values.abs().amax((1, 2)).cpu()))
            x, end = path.x[-1], end - transform.end_time / total
        elif isinstance(transform, Transform):
            x = transform.to_base(x, context)[0]
    return Spectrum(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def check_stiffness(exam: Examination, spectrum: Spectrum | None) -> Finding:
    """Report the least number of explicit steps that stay stable.

    Args:
        exam: Examination.
        spectrum: Spectrum along the paths; None where there is none.

    Returns:
        The finding.
    """
    if not exam.continuous:
        return Finding("stiffness", GOOD, "no continuous transform")
    if spectrum is None:
        return Finding("stiffness", UNSURE, f"not computed above {MAX_SIZE} columns")
    modulus, time = float(spectrum.modulus.max()), float(spectrum.times[int(spectrum.modulus.argmax())])
    measured = (
        f"largest modulus of the Jacobian's eigenvalues {modulus:.0f}, at t = {time:.2f}, largest real part "
        f"{float(spectrum.real.max()):.0f}: rk4 needs at least {max(1, round(modulus / STABILITY_LIMIT))} equal steps"
    )
    return Finding("stiffness", grade(modulus, good=MILD, fair=STIFF), measured, "regularize, or use adaptive steps")


def _eigenvalues(transform: CNF, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the Jacobian's eigenvalues at rows x (n, *event), (n, d), times the end time."""
    products = evaluate_field(transform.dynamics, t.to(x), x, ExactTrace().draw(x), context).products
    return transform.end_time * torch.linalg.eigvals(products.reshape(len(products), len(x), -1).movedim(1, 0))
