r"""Costs along the path: each is an integrand r >= 0, and the flow pays the integral of r(x(t), t) dt.

Both terms of RNODE (Finlay et al. 2020, equations 9 and 10) come from the products that the trace already paid
for. They keep trajectories straight and the field smooth, so that a solver needs few evaluations.

    kinetic    |f(t, x)|^2            jacobian    |df/dx|_F^2 = E[sum_k |v_k^T J|^2]
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ffjord_kit.trace import FieldPoint

Regularizer = Callable[[FieldPoint], Tensor]


def kinetic_energy(point: FieldPoint) -> Tensor:
    """Squared speed |f|^2, (batch,)."""
    return point.dx.square().reshape(len(point.dx), -1).sum(1)


def jacobian_norm(point: FieldPoint) -> Tensor:
    """Squared Frobenius norm of the Jacobian, estimated by the point's own probes, (batch,)."""
    return point.products.square().reshape(*point.products.shape[:2], -1).sum(dim=(0, 2))


REGULARIZERS: dict[str, Regularizer] = {"kinetic": kinetic_energy, "jacobian": jacobian_norm}
