r"""Costs along the path: each is an integrand r >= 0, and the flow pays the integral of r(x(t), t) dt.

They keep trajectories straight and the field smooth, so that a solver needs few evaluations. With D = d/dt + f . d/dx,
the derivative along a trajectory,

    kinetic         |f(t, x)|^2                                  (RNODE, Finlay et al. 2020, equation 9)
    jacobian        |df/dx|_F^2 = E[sum_k |v_k^T J|^2]           (equation 10; the products that the trace paid for)
    acceleration    |d^2x/dt^2|^2 = |D f|^2                      (Kelly et al. 2020, order 2)
    jerk            |d^3x/dt^3|^2 = |D D f|^2                    (order 3)
    hjb             |dPhi/dt - 1/2 |dPhi/dx|^2|, f = -dPhi/dx    (OT-Flow, Onken et al. 2021, equation 13)

The last is zero along an optimal transport, by the equation of Hamilton, Jacobi and Bellman.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffjord_kit.nn.potential import potential_of
from ffjord_kit.trace import FieldPoint

Regularizer = Callable[[FieldPoint], Tensor]
Quantity = Callable[[Tensor, Tensor], Tensor]


def kinetic_energy(point: FieldPoint) -> Tensor:
    """Squared speed |f|^2, (batch,)."""
    return _squared(point.dx)


def jacobian_norm(point: FieldPoint) -> Tensor:
    """Squared Frobenius norm of the Jacobian, estimated by the point's own probes, (batch,)."""
    return point.products.square().reshape(*point.products.shape[:2], -1).sum(dim=(0, 2))


def acceleration(point: FieldPoint) -> Tensor:
    """Squared second derivative of the trajectory, (batch,), by forward differentiation of the field."""
    field = _field(point)
    return _squared(_at(point, _along(field, field)))


def jerk(point: FieldPoint) -> Tensor:
    """Squared third derivative of the trajectory, (batch,), by forward differentiation, twice."""
    field = _field(point)
    return _squared(_at(point, _along(_along(field, field), field)))


def hjb(point: FieldPoint) -> Tensor:
    """What the potential leaves of the Hamilton-Jacobi-Bellman equation, (batch,).

    Raises ValueError for dynamics without a potential.
    """
    potential = potential_of(point.field)

    def rate(t: Tensor, x: Tensor) -> Tensor:
        return torch.func.jvp(lambda s: potential(s, x, point.context), (t,), (torch.ones_like(t),))[1]

    return (_at(point, rate) - 0.5 * _squared(point.dx)).abs()


def _field(point: FieldPoint) -> Quantity:
    return lambda t, x: point.field(t, x, point.context)


def _along(quantity: Quantity, field: Quantity) -> Quantity:
    """The derivative of a quantity along the trajectories of the field, as a quantity."""
    return lambda t, x: torch.func.jvp(quantity, (t, x), (torch.ones_like(t), field(t, x)))[1]


def _at(point: FieldPoint, quantity: Quantity) -> Tensor:
    """The quantity at a point: with autograd on, for some functions know a second forward derivative only there."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        value = quantity(point.t, point.x)
    return value if recorded else value.detach()


def _squared(values: Tensor) -> Tensor:
    """The sum of squares over the event, (batch,)."""
    return values.square().reshape(len(values), -1).sum(1)


REGULARIZERS: dict[str, Regularizer] = {
    "kinetic": kinetic_energy,
    "jacobian": jacobian_norm,
    "acceleration": acceleration,
    "jerk": jerk,
    "hjb": hjb,
}
