r"""Few explicit steps of a vector field, as a transform of its own with an exact determinant.

Steps x_{k+1} = Phi_k(x_k) of an explicit scheme lead from the data to the base (or from the base to the data). A frame
of tangents through the stages of a step gives its Jacobian D Phi_k, so that

    log p(x) = log p_base(x_K) + sum_k log|det D Phi_k(x_k)|

is exact at any number of steps: the discrete map is the model, and no solver's error is left. It is a density if each
Phi_k is injective. That holds on a convex set where the symmetric part of D Phi_k is positive definite, since then
(x - y)^T (Phi_k(x) - Phi_k(y)) > 0 for x != y. A map that is injective but not onto integrates to less than 1, one that
folds to more.

The way against the steps solves Phi_k(x) = y by Newton's method with the same frame.

References:
    Minty 1962, Monotone (nonlinear) operators in Hilbert space, Duke Mathematical Journal 29.
    Behrmann et al. 2019, Invertible residual networks, https://arxiv.org/abs/1811.00995.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffjord_kit.nn import VectorField
from ffjord_kit.nn.manifold import geometry_in
from ffjord_kit.noise import keyed_generator, standard_normal
from ffjord_kit.ode import SolveError
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.transforms.base import Transform

ENDS = ("data", "base")
TWO_STATES = {
    "linear_multistep": "the state before the last",
    "revnet": "two copies of the state",
    "asynchronous_leapfrog": "a velocity beside the state",
}
FIXED_POINT_STEPS, NEWTON_STEPS, HALVINGS = 3, 50, 8
APART = 1e-3  # distance, in preprocessed units, of two different preimages
RESIDUAL = 8.0  # units of rounding of 1 + |y| to which a step is inverted


class Step(NamedTuple):
    """One step and its derivative.

    Attributes:
        x: State before the step, shape (batch, *event).
        y: State after it, shape (batch, *event).
        jacobian: dy/dx, shape (batch, d, d), for events of d elements.
    """

    x: Tensor
    y: Tensor
    jacobian: Tensor

    @property
    def log_det(self) -> Tensor:
        """log|det dy/dx|, in float64, shape (batch,)."""
        return torch.linalg.slogdet(self.jacobian.double())[1]


class Stepped(Transform):
    """K explicit steps of a vector field f from one end of the flow to the other, with their exact log-determinant.

    Args:
        dynamics: Vector field f(t, x, context), on times from 0 at the base to `end_time` at the data.
        event_shape: Shape of an event. The frame costs as many products as it has elements.
        method: Scheme, a word of EXPLICIT_SCHEMES.
        steps: Number of steps K.
        grading: Exponent g of the grid t = T (1 - s^g), s equally spaced: above 1 the steps crowd towards the data.
        explicit_from: The end that the steps begin at: "data" for cheap log-densities, "base" for cheap draws.
        learn_grid: Whether training moves the ends of the steps.
        end_time: End time T.

    Raises:
        ValueError: If a word is unknown, or a number not positive.
        SolveError: From the way against the steps, if a step has no inverse there.

    Example:
        >>> class Decay(nn.Module):
        ...     def forward(self, t, x, context=None):
        ...         return -x
        >>> step = Stepped(Decay(), (2,), method="euler", steps=1)  # from x at t = 1 to x + x at t = 0
        >>> z, log_det = step.to_base(torch.ones(1, 2))
        >>> z, log_det  # 2 log 2
        (tensor([[2., 2.]]), tensor([1.3863]))
        >>> step.to_data(z)[0]
        tensor([[1., 1.]])
    """

    event_shape: tuple[int, ...]

    def __init__(
        self,
        dynamics: nn.Module,
        event_shape: Sequence[int],
        *,
        method: str = "midpoint",
        steps: int = 8,
        grading: float = 1.0,
        explicit_from: str = "data",
        learn_grid: bool = False,
        end_time: float = 1.0,
    ) -> None:
        super().__init__()
        _check_method(method)
        if explicit_from not in ENDS:
            raise ValueError(f"explicit_from must be one of {', '.join(ENDS)}; got {explicit_from!r}")
        if not (steps >= 1 and grading > 0 and end_time > 0):
            raise ValueError(f"steps, grading and end_time must be positive; got {steps}, {grading} and {end_time}")
        self.dynamics, self.event_shape, self.method = dynamics, tuple(event_shape), method
        self.explicit_from, self.end_time = explicit_from, end_time
        self.geometry = geometry_in(dynamics)  # after a step points on spheres get back the length they had
        self.widths: Tensor
        self.register_buffer("widths", (torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** grading).diff())
        self.log_scales = nn.Parameter(torch.zeros(steps)) if learn_grid else None

    @property
    def steps(self) -> int:
        """Number of steps K."""
        return len(self.widths)

    @property
    def grid(self) -> Tensor:
        """Ends of the steps in their order, from the explicit end, shape (K + 1,)."""
        widths = self.widths.double()
        if self.log_scales is not None:
            widths = (widths.log() + self.log_scales.double()).softmax(0)
        shares = torch.cat([widths.new_zeros(1), widths.cumsum(0)])  # 0 at the data
        times = self.end_time * (1 - shares)
        return times if self.explicit_from == "data" else times.flip(0)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._forward(x, context) if self.explicit_from == "data" else self._backward(x, context)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._forward(z, context) if self.explicit_from == "base" else self._backward(z, context)

    def walk(self, x: Tensor, context: Tensor | None = None) -> Iterator[Step]:
        """Make the steps one by one, each with its Jacobian.

        Args:
            x: States at the explicit end, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Yields:
            The steps, in their order.
        """
        for start, end in zip(self.grid[:-1], self.grid[1:], strict=True):
            step = self._step(start, end, x, context)
            yield step
            x = step.y

    def push_forward(
        self, x: Tensor, tangents: Sequence[Tensor], context: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Make the steps one by one with some tangents in place of the whole frame.

        Args:
            x: States at the explicit end, shape (batch, *event).
            tangents: Tangents v of each step, shape (k, batch, *event), K of them.
            context: Contexts, shape (batch, context_dim), or None.

        Yields:
            The state after each step, shape (batch, *event), and its Jacobian-vector products (dy/dx) v.
        """
        for start, end, v in zip(self.grid[:-1], self.grid[1:], tangents, strict=True):
            x, products = self._moved(start, end, x, v, context)
            yield x, products

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x), dtype=torch.float64)
        for step in self.walk(x, context):
            x, log_det = step.y, log_det + step.log_det
        return x, log_det.to(x.dtype)

    def _backward(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_det = y.new_zeros(len(y), dtype=torch.float64)
        grid = self.grid
        for start, end in zip(grid[:-1].flip(0), grid[1:].flip(0), strict=True):
            step = self._inverted(start, end, y, context)
            y, log_det = step.x, log_det - step.log_det
        return y, log_det.to(y.dtype)

    def _step(self, start: Tensor, end: Tensor, x: Tensor, context: Tensor | None) -> Step:
        """Make a step, with the frame of unit vectors carried through its stages."""
        size = math.prod(self.event_shape)
        frame = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *self.event_shape)
        y, frame = self._moved(start, end, x, frame.expand(-1, *x.shape), context)
        return Step(x, y, frame.reshape(size, len(x), size).permute(1, 2, 0))

    def _moved(
        self, start: Tensor, end: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the state after a step, and its Jacobian-vector products."""
        scheme, length = EXPLICIT_SCHEMES[self.method], (end - start).to(x)

        def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return push_forward(self.dynamics, t, state[0], state[1], context)

        times = tuple(t.to(x) for t in scheme.stage_times(start, end - start, end))
        dx, dtangents = scheme.change(field, times, length, (x, tangents))
        y, pushed = x + dx, tangents + dtangents
        return (y, pushed) if self.geometry is None else self.geometry.rescale(x, y, tangents, pushed)

    def _inverted(self, start: Tensor, end: Tensor, y: Tensor, context: Tensor | None) -> Step:
        """Return the step that ends at y; with a gradient by one Newton step at the solution, where it is exact."""
        with torch.no_grad():
            found = self._inverse(start, end, y.detach(), context)
        if not torch.is_grad_enabled():
            return found
        step = self._step(start, end, found.x, context)
        return self._step(start, end, found.x - _solved(step.jacobian, step.y - y), context)

    @torch.no_grad()
    def other_preimages(self, steps: Sequence[Step], spread: float, context: Tensor | None = None) -> Tensor:
        """Say for which steps Newton's method, begun elsewhere, finds another state that leads to the same end.

        The integral of the density is the mean number of preimages of a base point, so each of them is mass in excess.

        Args:
            steps: All steps of a walk, as `walk` yields them.
            spread: Standard deviation of the beginnings from the known states.
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Whether there is another one for a step of the row, shape (batch,).
        """
        found = torch.zeros(len(steps[0].x), dtype=torch.bool, device=steps[0].x.device)
        generator = keyed_generator(found.device, "preimages", int(1e3 * spread))
        for start, end, step in zip(self.grid[:-1], self.grid[1:], steps, strict=True):
            guess = step.x + spread * standard_normal(step.x.shape, step.x, generator)
            other, tolerance = self._newton(start, end, step.y, context, guess)
            reached = _largest(other.y - step.y) <= 1e3 * tolerance
            found |= reached & (_largest(other.x - step.x) > APART)
        return found

    def _inverse(self, start: Tensor, end: Tensor, y: Tensor, context: Tensor | None) -> Step:
        """Return the step that ends at y: by a few fixed-point iterations, which need no frame, and Newton's method."""
        guess, least = y, torch.full_like(y.flatten(1)[:, 0], math.inf)
        x = y
        for _ in range(FIXED_POINT_STEPS):
            miss = self._moved(start, end, x, x.new_zeros(0, *x.shape), context)[0] - y
            nearer = _largest(miss) < least
            guess = torch.where(nearer.reshape(-1, *[1] * (y.ndim - 1)), x, guess)
            least, x = torch.minimum(least, _largest(miss)), x - miss
        return self._checked(*self._newton(start, end, y, context, guess), y)

    def _newton(
        self, start: Tensor, end: Tensor, y: Tensor, context: Tensor | None, guess: Tensor
    ) -> tuple[Step, Tensor]:
        """Solve for the step that ends at y: Newton's method, on the rows that have not arrived.

        Return the step that is reached, and the distance from y, per row, that rounding allows.
        """
        step = self._step(start, end, guess, context)
        step = Step(*(part.clone() for part in step))
        tolerance = RESIDUAL * torch.finfo(y.dtype).eps * (1 + _largest(y))
        left = (~(_largest(step.y - y) <= tolerance)).nonzero()[:, 0]
        for _ in range(NEWTON_STEPS):
            if not len(left):
                break
            left = left[self._improve(start, end, step, y, context, left)]
            left = left[~(_largest(step.y[left] - y[left]) <= tolerance[left])]
        return step, tolerance

    def _improve(
        self, start: Tensor, end: Tensor, step: Step, y: Tensor, context: Tensor | None, rows: Tensor
    ) -> Tensor:
        """Make a Newton step of some rows in place, halved where it does not help; return which rows are nearer y."""
        residual = _largest(step.y[rows] - y[rows])
        change = _solved(step.jacobian[rows], step.y[rows] - y[rows])
        nearer = torch.zeros_like(residual, dtype=torch.bool)
        for halving in range(HALVINGS):
            places = (~nearer).nonzero()[:, 0]
            if not len(places):
                break
            some = rows[places]
            given = None if context is None else context[some]
            trial = self._step(start, end, step.x[some] - 0.5**halving * change[places], given)
            good = _largest(trial.y - y[some]) < residual[places]
            for part, new in zip(step, trial, strict=True):
                part[some[good]] = new[good]
            nearer[places[good]] = True
        return nearer

    def _checked(self, step: Step, tolerance: Tensor, y: Tensor) -> Step:
        """Return the step, if it is a solution but for some more rounding."""
        bad = ~(_largest(step.y - y) <= 1e3 * tolerance)
        if bool(bad.any()):
            rows = bad.nonzero().flatten().tolist()
            raise SolveError(
                f"{len(rows)} of {len(y)} rows (first: {rows[:5]}) are reached by no step of {self.method!r}: the "
                "steps are not onto there; take more steps, or train them with their monotonicity held",
                rows=rows,
            )
        return step


def _check_method(method: str) -> None:
    """Refuse a method whose steps are no maps of the state alone."""
    if method in TWO_STATES:
        raise ValueError(
            f"method {method!r} carries {TWO_STATES[method]}, so its step is no map of x alone and has no determinant: "
            f"choose one of {', '.join(EXPLICIT_SCHEMES)}, or integrate it by FixedSolver"
        )
    if method not in EXPLICIT_SCHEMES:
        raise ValueError(f"method must be one of {', '.join(EXPLICIT_SCHEMES)}; got {method!r}")


def push_forward(
    dynamics: nn.Module, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the velocity and Jacobian-vector products of any vector field.

    Args:
        dynamics: Vector field; one that is no `VectorField` is differentiated forward by torch.func.
        t: Time, ().
        x: States, shape (batch, *event).
        tangents: Tangents, shape (k, batch, *event).
        context: Contexts, shape (batch, context_dim), or None.

    Returns:
        dx/dt, shape (batch, *event), and J v, shape (k, batch, *event).
    """
    if not len(tangents):
        return dynamics(t, x, context), tangents
    if isinstance(dynamics, VectorField):
        return dynamics.jvp(t, x, tangents, context)

    def velocity(point: Tensor) -> Tensor:
        return dynamics(t, point, context)

    products = torch.func.vmap(lambda v: torch.func.jvp(velocity, (x,), (v,))[1])(tangents)
    return velocity(x), products


def _solved(jacobian: Tensor, change: Tensor) -> Tensor:
    """Return the change of x that makes a change of y, to first order."""
    solution, _ = torch.linalg.solve_ex(jacobian, change.reshape(len(change), -1, 1))  # not finite where singular
    return solution.reshape(change.shape)


def _largest(values: Tensor) -> Tensor:
    """Return the largest absolute element of each row, shape (batch,)."""
    return values.abs().flatten(1).amax(1)
