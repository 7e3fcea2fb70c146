r"""How stiff the field is along the paths: the spectrum of its Jacobian.

An explicit method of a fixed step h is stable where |h lambda| stays below about 3 for each eigenvalue lambda of
df/dx, so the largest modulus says how many steps are needed at least, and the largest real part how fast paths part.
Eigenvalues are those of a whole layer's time, T lambda, so that layers of any end time compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.diagnostics.case import Case
from ffjord_kit.diagnostics.findings import GOOD, UNSURE, Finding, judged
from ffjord_kit.solver import Solver
from ffjord_kit.trace import ExactTrace, evaluate

LARGEST, ROWS, PLACES = 128, 32, 17
MILD, STIFF = 100.0, 1000.0
STABLE = 2.8  # the interval of stability of Runge and Kutta's method of fourth order
ROUGH = Solver("dopri5_by_row", 1e-4, 1e-4)


@dataclass(frozen=True)
class Spectrum:
    """The largest real part and modulus of the Jacobian's eigenvalues over some rows, at places along the flow's time.

    All are (places,), from data to base; times are the flow's.
    """

    times: Tensor
    real: Tensor
    modulus: Tensor


@torch.no_grad()
def spectrum(case: Case) -> Spectrum | None:
    """The spectrum along the paths of some rows; None for a flow without continuous layers, or of too many columns."""
    if not case.continuous or case.size > LARGEST:
        return None
    (x, context), total = case.few(ROWS), sum(layer.end_time for layer in case.continuous)
    context, end, parts = case.flow.scaled_context(context), 1.0, []
    for layer in case.flow.layers:
        if isinstance(layer, CNF):
            clock = torch.linspace(layer.end_time, 0.0, PLACES, dtype=torch.float64)
            path = layer.transport(x, clock, context=context, integration=Integration(trace=None, solver=ROUGH))
            along = zip(clock, path.x, strict=True)
            values = torch.stack([_eigenvalues(layer, t, state, context) for t, state in along])
            parts.append((end - (layer.end_time - clock) / total, values.real.amax((1, 2)), values.abs().amax((1, 2))))
            x, end = path.x[-1], end - layer.end_time / total
        else:
            x = layer.to_base(x, context)[0]
    return Spectrum(*(torch.cat([part[i].cpu() for part in parts]) for i in range(3)))


def check_stiffness(case: Case, found: Spectrum | None) -> Finding:
    """How many explicit steps the field needs to stay stable."""
    if found is None:
        why = "no continuous layer" if not case.continuous else f"not looked at above {LARGEST} columns"
        return Finding("stiffness", GOOD if not case.continuous else UNSURE, why)
    place, modulus = int(found.modulus.argmax()), float(found.modulus.max())
    measured = (
        f"largest modulus of the Jacobian's eigenvalues {modulus:.0f}, at t = {float(found.times[place]):.2f}, largest "
        f"real part {float(found.real.max()):.0f}: equal rk4 steps need at least {max(1, round(modulus / STABLE))}"
    )
    verdict = judged(modulus, MILD, STIFF)
    return Finding("stiffness", verdict, measured, "a regularizer, or adaptive steps")


def _eigenvalues(layer: CNF, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Those of the Jacobian at rows x (n, *event), (n, d), times the layer's end time."""
    products = evaluate(layer.dynamics, t.to(x), x, ExactTrace().draw(x), context).products
    return layer.end_time * torch.linalg.eigvals(products.reshape(len(products), len(x), -1).movedim(1, 0))
