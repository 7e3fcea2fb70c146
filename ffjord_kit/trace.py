r"""Trace of the Jacobian J = df/dx, exact or estimated, from the products of J with probes alone.

One identity serves every estimator. For probes v_1..v_K with E[sum_k v_k v_k^T] = I,

    E[sum_k v_k^T J v_k] = tr J            E[sum_k |v_k^T J|^2] = E[sum_k |J v_k|^2] = |J|_F^2.

The products are J v where the field carries tangents itself (`VectorField`), and v^T J by automatic differentiation
where it does not.

The basis vectors satisfy it without the expectation (exact); K random vectors scaled by 1/sqrt(K) satisfy it for any
distribution with unit covariance (Hutchinson 1990); K orthogonal vectors of length sqrt(D/K) satisfy it with less
variance. Probes are drawn once and held during one solve, so the integrand stays a deterministic function of time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.nn.base import VectorField, check_velocity
from ffjord_kit.noise import per_row_noise, standard_normal
from ffjord_kit.ode.field import inside_transform


class TraceEstimator(ABC):
    """A rule that draws the probes v whose products with J estimate the trace."""

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw probes with E[sum_k v_k v_k^T] = I.

        Args:
            x: States, shape (batch, *event).
            generator: Source of the noise; None for a fresh one.

        Returns:
            Probes, shape (probe, batch, *event), or (probe, 1, *event) where all rows share them.
        """


@dataclass(frozen=True)
class ExactTrace(TraceEstimator):
    """All basis vectors: the exact trace, tr J = sum_k e_k^T J e_k, at one product for each dimension.

    Example:
        >>> ExactTrace().draw(torch.zeros(5, 2)).tolist()
        [[[1.0, 0.0]], [[0.0, 1.0]]]
    """

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        size = math.prod(x.shape[1:])
        basis = torch.eye(size, dtype=x.dtype, device=x.device)
        return basis.reshape(size, 1, *x.shape[1:])


@dataclass(frozen=True)
class HutchinsonTrace(TraceEstimator):
    """Independent random probes with unit covariance, divided by sqrt(K).

    Args:
        probes: Number K of probes of each row.
        noise: "rademacher" (random signs, the smallest variance) or "gaussian".

    Raises:
        ValueError: If `probes` is below 1 or the noise is unknown.

    Example:
        >>> v = HutchinsonTrace(4).draw(torch.zeros(5, 2), torch.Generator().manual_seed(0))
        >>> v.shape, v.abs().unique().tolist()
        (torch.Size([4, 5, 2]), [0.5])

    References:
        Hutchinson 1990, A stochastic estimator of the trace, https://doi.org/10.1080/03610919008812866.
    """

    probes: int = 1
    noise: str = "rademacher"

    def __post_init__(self) -> None:
        _check_probes(self.probes)
        if self.noise not in ("rademacher", "gaussian"):
            raise ValueError(f"noise must be 'rademacher' or 'gaussian'; got {self.noise!r}")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = standard_normal((self.probes, *x.shape), x, generator)
        signs = noise.sign() + (noise == 0).to(x.dtype)
        return (signs if self.noise == "rademacher" else noise) / math.sqrt(self.probes)


@dataclass(frozen=True)
class OrthogonalTrace(TraceEstimator):
    """Random orthogonal probes of length sqrt(D/K); K = D of them give the exact trace.

    Args:
        probes: Number K of probes of each row; more than D count as D.

    Raises:
        ValueError: If `probes` is below 1.

    Example:
        >>> v = OrthogonalTrace(2).draw(torch.zeros(1, 2))[:, 0]
        >>> torch.allclose(v @ v.T, torch.eye(2), atol=1e-6)
        True
    """

    probes: int = 1

    def __post_init__(self) -> None:
        _check_probes(self.probes)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        size = math.prod(x.shape[1:])
        count = min(self.probes, size)
        frame, _ = torch.linalg.qr(standard_normal((len(x), size, count), x, generator))
        return frame.movedim(2, 0).reshape(count, *x.shape) * math.sqrt(size / count)


@dataclass(frozen=True)
class PerRowTrace(TraceEstimator):
    """Rademacher probes that each row seeds by its own values, so that a row's estimate does not depend on other rows.

    Args:
        probes: Number K of probes of each row.
        noise: Uniform noise of other rows, shape (probe, batch, *event), as `of` gives it; None for the states' own.

    Raises:
        ValueError: If `probes` is below 1.

    Example:
        >>> x, trace = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), PerRowTrace(3)
        >>> torch.equal(trace.draw(x)[:, 1:], trace.draw(x[1:]))
        True
    """

    probes: int = 1
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        _check_probes(self.probes)

    def of(self, x: Tensor) -> PerRowTrace:
        """Return an estimator that keeps the probes of given rows wherever a transform carries them.

        Args:
            x: Rows that seed the probes, shape (batch, *event).

        Returns:
            The estimator, for batches of these rows.
        """
        return replace(self, noise=per_row_noise(x, self.probes))

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = per_row_noise(x, self.probes) if self.noise is None else self.noise
        return (2 * (noise < 0.5).to(x) - 1) / math.sqrt(self.probes)


class FieldPoint(NamedTuple):
    """The field and its products with probes at one instant; the trace and every cost along the path use it.

    Attributes:
        t: Time, () or (batch,).
        x: States, shape (batch, *event).
        dx: Velocity, shape (batch, *event).
        probes: Probes v, shape (probe, 1 or batch, *event).
        products: J v or v^T J, shape (probe, batch, *event).
        field: The field, for costs that need further derivatives.
        context: Contexts, shape (batch, context_dim), or None.

    Example:
        >>> x = torch.ones(2, 3)
        >>> point = evaluate_field(lambda t, x, context: 2 * x, torch.tensor(0.0), x, ExactTrace().draw(x))
        >>> point.trace.tolist()
        [6.0, 6.0]
    """

    t: Tensor
    x: Tensor
    dx: Tensor
    probes: Tensor
    products: Tensor
    field: Callable[..., Tensor]
    context: Tensor | None = None

    @property
    def trace(self) -> Tensor:
        """The (estimated) trace of J, shape (batch,)."""
        return (self.products * self.probes).reshape(*self.products.shape[:2], -1).sum(dim=(0, 2))

    @property
    def traces(self) -> Tensor:
        """The estimate of each probe alone, shape (batch, probe); their mean is the trace."""
        terms = (self.products * self.probes).reshape(*self.products.shape[:2], -1).sum(2)
        return len(self.probes) * terms.T


def evaluate_field(
    dynamics: Callable[..., Tensor], t: Tensor, x: Tensor, probes: Tensor, context: Tensor | None = None
) -> FieldPoint:
    """Evaluate a field and its products with probes.

    The result is differentiable to any order where gradients are enabled, and free of a graph where they are not.

    Args:
        dynamics: Vector field.
        t: Time, () or (batch,).
        x: States, shape (batch, *event).
        probes: Probes, shape (probe, 1 or batch, *event).
        context: Contexts, shape (batch, context_dim), or None.

    Returns:
        The velocity and the products at (t, x).

    Raises:
        ValueError: If the velocity has not the shape of the states.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> point = evaluate_field(lambda t, x, context: t * x, torch.tensor(2.0), x, ExactTrace().draw(x))
        >>> point.dx.tolist(), point.trace.tolist()
        ([[6.0, 8.0]], [4.0])
    """
    if isinstance(dynamics, VectorField):
        dx, products = dynamics.jvp(t, x, probes, context)
        return FieldPoint(t, x, check_velocity(dx, x), probes, products, dynamics, context)
    if torch.is_inference_mode_enabled():  # where autograd, which makes the products, records nothing
        with torch.inference_mode(False), torch.no_grad():
            context = None if context is None else context.clone()
            return evaluate_field(dynamics, t.clone(), x.clone(), probes.clone(), context)
    if inside_transform():
        return _evaluate_by_vjp(dynamics, t, x, probes, context)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # Without gradients x may be a view that autograd disowns (inside the adjoint's forward pass): start anew.
        point = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        dx = check_velocity(dynamics(t, point, context), x)
        products = _products(dx, point, probes.expand(-1, *x.shape), differentiable)
    return FieldPoint(t, x, dx if differentiable else dx.detach(), probes, products, dynamics, context)


def _evaluate_by_vjp(
    dynamics: Callable[..., Tensor], t: Tensor, x: Tensor, probes: Tensor, context: Tensor | None
) -> FieldPoint:
    """Evaluate inside a transform of torch.func, which autograd's own products cannot look into."""
    dx, vjp = torch.func.vjp(lambda point: dynamics(t, point, context), x)[:2]
    check_velocity(dx, x)
    products = torch.stack([vjp(probe)[0] for probe in probes.expand(-1, *x.shape)])
    return FieldPoint(t, x, dx, probes, products, dynamics, context)


def _products(dx: Tensor, x: Tensor, probes: Tensor, differentiable: bool) -> Tensor:
    if not dx.requires_grad:
        return torch.zeros_like(probes)
    batched = len(probes) > 1
    (rows,) = torch.autograd.grad(
        dx, x, probes if batched else probes[0], is_grads_batched=batched, create_graph=differentiable,
        allow_unused=True,
    )  # fmt: skip
    if rows is None:  # dx does not depend on x
        return torch.zeros_like(probes)
    return rows if batched else rows.unsqueeze(0)


def _check_probes(probes: int) -> None:
    if probes < 1:
        raise ValueError(f"probes must be at least 1; got {probes}")


TRACE_ESTIMATORS: dict[str, Callable[[int], TraceEstimator]] = {
    "exact": lambda probes: ExactTrace(),
    "rademacher": lambda probes: HutchinsonTrace(probes),
    "gaussian": lambda probes: HutchinsonTrace(probes, "gaussian"),
    "orthogonal": lambda probes: OrthogonalTrace(probes),
}
