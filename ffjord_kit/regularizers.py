r"""Costs along the path: each is an integrand r(x(t), t) >= 0, whose integral over time is added to the loss.

They keep trajectories straight and the field smooth, so that a solver needs few evaluations. With D = d/dt + f . d/dx,
the derivative along a trajectory,

    kinetic         |f(t, x)|^2                                  (RNODE, Finlay et al. 2020, equation 9)
    jacobian        |df/dx|_F^2 = E[sum_k |v_k^T J|^2]           (equation 10; the products that the trace paid for)
    acceleration    |d^2x/dt^2|^2 = |D f|^2                      (Kelly et al. 2020, order 2)
    jerk            |d^3x/dt^3|^2 = |D D f|^2                    (order 3)
    hjb             |dPhi/dt - 1/2 |dPhi/dx|^2|, f = -dPhi/dx    (OT-Flow, Onken et al. 2021, equation 13)

The last is zero along an optimal transport, by the equation of Hamilton, Jacobi and Bellman.

References:
    Finlay et al. 2020, RNODE, https://arxiv.org/abs/2002.02798.
    Kelly et al. 2020, https://arxiv.org/abs/2007.04504.
    Onken et al. 2021, OT-Flow, https://arxiv.org/abs/2006.00104.
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
    """Return the squared speed |f|^2.

    Args:
        point: The field and its products with probes.

    Returns:
        The cost's integrand, shape (batch,).

    Example:
        >>> from ffjord_kit.trace import ExactTrace, evaluate_field
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> point = evaluate_field(lambda t, x, context: x, torch.tensor(0.0), x, ExactTrace().draw(x))
        >>> kinetic_energy(point).tolist()  # 3^2 + 4^2
        [25.0]
    """
    return _squared_norm(point.dx)


def jacobian_norm(point: FieldPoint) -> Tensor:
    """Return the squared Frobenius norm of the Jacobian, estimated by the probes of the trace.

    Args:
        point: The field and its products with probes.

    Returns:
        The cost's integrand, shape (batch,).

    Example:
        >>> from ffjord_kit.trace import ExactTrace, evaluate_field
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> point = evaluate_field(lambda t, x, context: 2 * x, torch.tensor(0.0), x, ExactTrace().draw(x))
        >>> jacobian_norm(point)  # of the Jacobian diag(2, 2)
        tensor([8.])
    """
    return point.products.square().reshape(*point.products.shape[:2], -1).sum(dim=(0, 2))


def acceleration(point: FieldPoint) -> Tensor:
    """Return the squared second derivative of the trajectory, by forward differentiation of the field.

    Args:
        point: The field and its products with probes.

    Returns:
        The cost's integrand, shape (batch,).

    Example:
        >>> from ffjord_kit.trace import ExactTrace, evaluate_field
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> point = evaluate_field(lambda t, x, context: 2 * x, torch.tensor(0.0), x, ExactTrace().draw(x))
        >>> acceleration(point)  # x'' = 4 x
        tensor([400.])
    """
    field = _field_of(point)
    return _squared_norm(_evaluate(point, _derivative_along(field, field)))


def jerk(point: FieldPoint) -> Tensor:
    """Return the squared third derivative of the trajectory, by forward differentiation, twice.

    Args:
        point: The field and its products with probes.

    Returns:
        The cost's integrand, shape (batch,).

    Example:
        >>> from ffjord_kit.trace import ExactTrace, evaluate_field
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> point = evaluate_field(lambda t, x, context: 2 * x, torch.tensor(0.0), x, ExactTrace().draw(x))
        >>> jerk(point)  # x''' = 8 x
        tensor([1600.])
    """
    field = _field_of(point)
    return _squared_norm(_evaluate(point, _derivative_along(_derivative_along(field, field), field)))


def hjb(point: FieldPoint) -> Tensor:
    """Return the absolute residual of the Hamilton-Jacobi-Bellman equation.

    Args:
        point: The field and its products with probes.

    Returns:
        The cost's integrand, shape (batch,).

    Raises:
        ValueError: If the field has no potential.

    Example:
        >>> from ffjord_kit.nn.potential import PotentialDynamics
        >>> from ffjord_kit.trace import ExactTrace, evaluate_field
        >>> field, x = PotentialDynamics((2,)), torch.ones(1, 2)
        >>> _ = [torch.nn.init.zeros_(weight) for weight in field.parameters()]  # at rest, which is optimal
        >>> hjb(evaluate_field(field, torch.tensor(0.5), x, ExactTrace().draw(x))).tolist()
        [0.0]
    """
    potential = potential_of(point.field)

    def rate(t: Tensor, x: Tensor) -> Tensor:
        return torch.func.jvp(lambda s: potential(s, x, point.context), (t,), (torch.ones_like(t),))[1]

    return (_evaluate(point, rate) - 0.5 * _squared_norm(point.dx)).abs()


def _field_of(point: FieldPoint) -> Quantity:
    return lambda t, x: point.field(t, x, point.context)


def _derivative_along(quantity: Quantity, field: Quantity) -> Quantity:
    """Return the derivative D of a quantity along the trajectories of the field, as a quantity."""
    return lambda t, x: torch.func.jvp(quantity, (t, x), (torch.ones_like(t), field(t, x)))[1]


def _evaluate(point: FieldPoint, quantity: Quantity) -> Tensor:
    """Evaluate a quantity at a point; some functions have second forward derivatives only with autograd on."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        value = quantity(point.t, point.x)
    return value if differentiable else value.detach()


def _squared_norm(values: Tensor) -> Tensor:
    """Return the sum of squares over the event, (batch,)."""
    return values.square().reshape(len(values), -1).sum(1)


REGULARIZERS: dict[str, Regularizer] = {
    "kinetic": kinetic_energy,
    "jacobian": jacobian_norm,
    "acceleration": acceleration,
    "jerk": jerk,
    "hjb": hjb,
}
