r"""Schemes whose steps have an inverse in closed form, and gradients that walk back by it.

Such a scheme carries a pair of states (y, z), and its step is a few shears, each of which moves one of the pair by a
function of the other alone:

    y <- a y + g(z),    so that    y = (y_new - g(z)) / a

    coupling of any explicit scheme dy = Psi_h(t, y), McCallum & Foster 2024 (y_0 = z_0 = x_0):
        y_{n+1} = lambda y_n + (1 - lambda) z_n + Psi_h(t_n, z_n)
        z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1})
    revnet, Gomez et al. 2017: the coupling of Euler's scheme at lambda = 1
        y_{n+1} = y_n + h f(t_n, z_n),    z_{n+1} = z_n + h f(t_{n+1}, y_{n+1});    x is their mean, of order 2
    asynchronous_leapfrog, Zhuang et al. 2021 (MALI), of order 2, with z an estimate of the slope (z_0 = f(t_0, x_0)):
        y <- y + h z / 2,    z <- 2 f(t + h/2, y) - z,    y <- y + h z / 2

The way back undoes the shears one by one and takes the vector-Jacobian product of each g where it is evaluated: exact
gradients of the discrete solution, with as many evaluations as the way forward, in memory that does not grow with the
number of steps. Every part of the state (log-determinant, costs) is in the pair.

References:
    Gomez et al. 2017, The reversible residual network, https://arxiv.org/abs/1707.04585.
    Zhuang et al. 2021, MALI, https://arxiv.org/abs/2102.04668.
    McCallum & Foster 2024, Efficient, accurate and stable gradients for neural ODEs, https://arxiv.org/abs/2410.11648.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode.errors import refuse_second_derivative
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.ode.field import State
from ffjord_kit.ode.scheme import Field, Scheme, StepCallback

COUPLING = 0.999  # lambda; nearer 1 the inverse loses fewer digits, farther from 1 the steps damp more

Pair = tuple[State, State]


class Shear(NamedTuple):
    """One member of the pair moves by a function of the other: target <- scale target + increment(source).

    Attributes:
        target: Index of the member that moves, 0 for y and 1 for z.
        scale: Factor a of the member that moves.
        increment: From the field and the other member to the increment.
    """

    target: int
    scale: float
    increment: Callable[[Field, State], State]

    def apply(self, field: Field, pair: Pair) -> Pair:
        """Move the target.

        Args:
            field: Field, from t () and the state to slopes.
            pair: The pair (y, z).

        Returns:
            The pair after the shear.
        """
        increment = self.increment(field, pair[1 - self.target])
        moved = tuple([self.scale * a + d for a, d in zip(pair[self.target], increment, strict=True)])
        return _replaced(pair, self.target, moved)


class ReversibleScheme(NamedTuple):
    """A scheme on pairs whose steps are shears.

    Attributes:
        start: From the field, the first time and the state to the first pair.
        stage_times: From the starts, sizes and ends of steps, each (steps,), to the times of each stage, each (steps,).
        shears: From the times of the stages of a step and its size h to its shears, in their order.
        reading: Weights of y and z in the solution.
    """

    start: Callable[[Field, Tensor, State], Pair]
    stage_times: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    shears: Callable[[tuple[Tensor, ...], float], tuple[Shear, ...]]
    reading: tuple[float, float] = (1.0, 0.0)

    def read(self, pair: Pair) -> State:
        """Return the solution that a pair stands for.

        Args:
            pair: The pair (y, z).

        Returns:
            The state.
        """
        first, second = self.reading
        return tuple([first * y + second * z if second else y for y, z in zip(*pair, strict=True)])


def coupled(scheme: Scheme, coupling: float = COUPLING, reading: tuple[float, float] = (1.0, 0.0)) -> ReversibleScheme:
    """Couple two solutions of an explicit scheme so that their steps have an inverse.

    Args:
        scheme: Explicit one-step scheme; it keeps its order.
        coupling: Parameter lambda, in (0, 1].
        reading: Weights of y and z in the solution.

    Returns:
        A scheme with two steps of the explicit one in each of its own.
    """

    def stage_times(start: Tensor, step: Tensor, end: Tensor) -> tuple[Tensor, ...]:
        return (*scheme.stage_times(start, step, end), *scheme.stage_times(end, -step, start))

    def shears(t: tuple[Tensor, ...], h: float) -> tuple[Shear, ...]:
        ahead, back = t[: len(t) // 2], t[len(t) // 2 :]

        def from_z(field: Field, z: State) -> State:
            return tuple([(1 - coupling) * a + d for a, d in zip(z, scheme.change(field, ahead, h, z), strict=True)])

        def from_y(field: Field, y: State) -> State:
            return tuple([-d for d in scheme.change(field, back, -h, y)])

        return Shear(0, coupling, from_z), Shear(1, 1.0, from_y)

    return ReversibleScheme(lambda field, t, x: (x, x), stage_times, shears, reading)


def _leapfrog_shears(t: tuple[Tensor, ...], h: float) -> tuple[Shear, ...]:
    half = Shear(0, 1.0, lambda field, z: tuple([0.5 * h * slope for slope in z]))
    turn = Shear(1, -1.0, lambda field, y: tuple([2 * slope for slope in field(t[0], y)]))
    return half, turn, half


REVERSIBLE_SCHEMES: dict[str, ReversibleScheme] = {
    "revnet": coupled(EXPLICIT_SCHEMES["euler"], 1.0, reading=(0.5, 0.5)),
    "asynchronous_leapfrog": ReversibleScheme(
        lambda field, t, x: (x, field(t, x)), lambda t, h, end: (t + 0.5 * h,), _leapfrog_shears
    ),
}


def reversible_scheme(method: str) -> ReversibleScheme:
    """Return the reversible scheme of a method: its own, or the coupling of an explicit one.

    Args:
        method: Word of REVERSIBLE_SCHEMES or EXPLICIT_SCHEMES.

    Returns:
        The scheme.
    """
    return REVERSIBLE_SCHEMES[method] if method in REVERSIBLE_SCHEMES else coupled(EXPLICIT_SCHEMES[method])


class Pull:
    """Vector-Jacobian products of functions of a state; those by the parameters are summed.

    Args:
        params: Tensors that the functions depend on.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = [p for p in params if p.requires_grad]
        self.sums: list[Tensor | None] = [None] * len(self.params)

    def __call__(self, function: Callable[[State], State], point: State, weights: State) -> tuple[State, State]:
        """Evaluate a function, and pull the weights of its values back.

        Args:
            function: Function of a state.
            point: State to evaluate it at.
            weights: Weights of its values, a state.

        Returns:
            The values, and the gradient by the point of their product with the weights.
        """
        with torch.enable_grad():
            inputs = tuple([part.detach().requires_grad_() for part in point])
            values = function(inputs)
        pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v.requires_grad]
        outputs, products = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, [*inputs, *self.params], products, allow_unused=True)
        by_params = found[len(inputs) :]
        self.sums = [a if b is None else b if a is None else a + b for a, b in zip(self.sums, by_params, strict=True)]
        by_point = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=False)]
        return tuple([v.detach() for v in values]), tuple(by_point)


class Walk:
    """The steps of a reversible scheme along a grid, forwards and back.

    Args:
        scheme: Reversible scheme.
        field: Field, from t () and the state to slopes.
        grid: Ends of the steps, shape (steps + 1,), monotonic, on the CPU; it holds all of `times`.
        times: Times to return states at, shape (T,).
        like: A tensor whose device and type the times get.
        callback: Called with time, state and step before each step forwards.
    """

    def __init__(
        self, scheme: ReversibleScheme, field: Field, grid: Tensor, times: Tensor, like: Tensor, callback: StepCallback
    ) -> None:
        self.scheme, self.field, self.grid, self.callback = scheme, field, grid, callback
        self.first = times[0].to(like.device, like.dtype)
        self.sizes, self.ends, self.requested = grid.diff().tolist(), grid[1:].tolist(), times.tolist()
        stages = scheme.stage_times(grid[:-1], grid.diff(), grid[1:])
        self.stages = [stage.to(like.device, like.dtype) for stage in stages]

    def forwards(self, state: State) -> tuple[list[State], Pair]:
        """Make all steps.

        Args:
            state: State at the first time.

        Returns:
            The states at the requested times, and the last pair.
        """
        pair, solution = self.scheme.start(self.field, self.first, state), [state]
        for n, end in enumerate(self.ends):
            self.callback(self.grid[n], pair[0], self.grid[n + 1] - self.grid[n])
            for shear in self._shears(n):
                pair = shear.apply(self.field, pair)
            if end == self.requested[len(solution)]:
                solution.append(self.scheme.read(pair))
        return solution, pair

    def backwards(self, state: State, pair: Pair, slopes: Sequence[State], pull: Pull) -> State:
        """Undo all steps, and pull gradients back with them.

        Args:
            state: State at the first time.
            pair: Last pair.
            slopes: Gradients by the states at the requested times.
            pull: Vector-Jacobian products, which keeps the sums of the parameters' gradients.

        Returns:
            The gradient by the state at the first time.
        """
        zero = tuple([torch.zeros_like(part) for part in state])
        gradient, remaining = (zero, zero), len(slopes) - 1
        for n in reversed(range(len(self.ends))):
            if self.ends[n] == self.requested[remaining]:
                gradient = _added(gradient, self.scheme.reading, slopes[remaining])
                remaining -= 1
            for shear in reversed(self._shears(n)):
                pair, gradient = self._undone(shear, pair, gradient, pull)
        begun = pull(lambda x: sum(self.scheme.start(self.field, self.first, x), ()), state, sum(gradient, ()))[1]
        return tuple([a + b for a, b in zip(begun, slopes[0], strict=True)])

    def _shears(self, n: int) -> tuple[Shear, ...]:
        return self.scheme.shears(tuple([stage[n] for stage in self.stages]), self.sizes[n])

    def _undone(self, shear: Shear, pair: Pair, gradient: Pair, pull: Pull) -> tuple[Pair, Pair]:
        """Return the pair before a shear, and the gradient by it."""
        target, source = shear.target, 1 - shear.target
        increment, by_source = pull(lambda y: shear.increment(self.field, y), pair[source], gradient[target])
        before = tuple([(a - d) / shear.scale for a, d in zip(pair[target], increment, strict=True)])
        scaled = tuple([shear.scale * g for g in gradient[target]])
        summed = tuple([g + d for g, d in zip(gradient[source], by_source, strict=True)])
        return _replaced(pair, target, before), _replaced((summed, summed), target, scaled)


class _Reversed(torch.autograd.Function):
    """A walk that keeps its last pair alone."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, parts: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        solution, pair = walk.forwards(tensors[:parts])
        ctx.walk, ctx.parts = walk, parts
        ctx.save_for_backward(*tensors, *pair[0], *pair[1])
        return tuple([part.clone() for state in solution for part in state])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("reversible")
        parts, saved = ctx.parts, ctx.saved_tensors
        state, params, last = saved[:parts], saved[parts : -2 * parts], saved[-2 * parts :]
        pull = Pull(params)
        pair, by_time = (last[:parts], last[parts:]), list(_parted(slopes, parts))
        gradient = ctx.walk.backwards(state, pair, by_time, pull)
        sums = iter(pull.sums)
        return None, None, *gradient, *[next(sums) if p.requires_grad else None for p in params]


def walk_on_grid(
    scheme: ReversibleScheme, field: Field, state: State, grid: Tensor, times: Tensor, callback: StepCallback
) -> list[State]:
    """Integrate along a grid by a reversible scheme; autograd records every step.

    Args:
        scheme: Reversible scheme.
        field: Field, from t () and the state to slopes.
        state: State at times[0], a tuple of tensors (batch, ...).
        grid: Ends of the steps, shape (steps + 1,), monotonic, on the CPU; it holds all of `times`.
        times: Times to return states at, shape (T,).
        callback: Called with time, state and step before each step.

    Returns:
        The states at `times`.
    """
    return Walk(scheme, field, grid, times, state[0], callback).forwards(state)[0]


def integrate_reversibly(
    scheme: ReversibleScheme,
    field: Field,
    state: State,
    grid: Tensor,
    times: Tensor,
    callback: StepCallback,
    params: Sequence[Tensor],
) -> list[State]:
    """Integrate along a grid by the same steps; the gradient walks back by their inverse, and no step is recorded.

    Args:
        scheme: Reversible scheme.
        field: Field, from t () and the state to slopes.
        state: State at times[0], a tuple of tensors (batch, ...).
        grid: Ends of the steps, shape (steps + 1,), monotonic, on the CPU; it holds all of `times`.
        times: Times to return states at, shape (T,).
        callback: Called with time, state and step before each step.
        params: Tensors that the field depends on and that get a gradient.

    Returns:
        The states at `times`.
    """
    walk = Walk(scheme, field, grid, times, state[0], callback)
    return list(_parted(_Reversed.apply(walk, len(state), *state, *params), len(state)))


def _parted(tensors: Sequence[Tensor], parts: int) -> Iterator[State]:
    for start in range(0, len(tensors), parts):
        yield tuple(tensors[start : start + parts])


def _replaced(pair: Pair, index: int, state: State) -> Pair:
    return (state, pair[1]) if index == 0 else (pair[0], state)


def _added(pair: Pair, weights: tuple[float, float], state: State) -> Pair:
    first, second = (
        tuple([a + weight * b for a, b in zip(member, state, strict=True)])
        for member, weight in zip(pair, weights, strict=True)
    )
    return first, second
