r"""Residual architectures as schemes, after Lu, Zhong, Li & Dong 2018; F = h f is a residual block.

    ResNet        x + F(x)                              forward Euler (`euler` of explicit.py)
    PolyNet       x + F(x) + F(F(x)) + ...              backward Euler, solved by a few fixed-point iterations
    FractalNet    f_{c+1} = mean of f_1 and f_c o f_c   a Runge-Kutta scheme; f_c o f_c are two steps of half the length
    LM-ResNet     (1 - k) x_n + k x_{n-1} + F(x_n)      a linear two-step method
    RevNet        y_1 = x_1 + F(x_2), y_2 = x_2 + F(y_1)    two coupled Euler streams (reversible.py)

PolyNet's polynomial, read literally, evaluates f at h f(x), which is no state: for h -> 0 it is x + h (f(x) + f(0)), of
order 0. On a linear field it is the truncated Neumann series of (I - F)^{-1} x, and so are the iterations

    y_0 = x,    y_{i+1} = x + h f(t + h, y_i)

of backward Euler, which have order 1 for every field. These are the scheme.

LM-ResNet as printed solves (1 + k) dx/dt = f. Its step with h f weighted by 1 + k, for unequal steps too, is

    x_{n+1} = x_n + h_n f_n + k (x_{n-1} - x_n + h_{n-1} f_n),    f_n = f(t_n, x_n),

Euler's first step included, of order 1, and of order 2 for k = 1 (leapfrog). It is zero-stable for -1 < k <= 1.

References:
    He et al. 2016, Deep residual learning, https://arxiv.org/abs/1512.03385.
    Zhang et al. 2017, PolyNet, https://arxiv.org/abs/1611.05725.
    Larsson et al. 2017, FractalNet, https://arxiv.org/abs/1605.07648.
    Lu, Zhong, Li & Dong 2018, Beyond finite layer neural networks, https://arxiv.org/abs/1710.10121.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffjord_kit.ode.field import State
from ffjord_kit.ode.scheme import Field, Scheme, StepCallback, Tableau

MEMORY = 0.5  # k of `linear_multistep`: a third of Euler's error


def poly(degree: int) -> Tableau:
    """Return PolyNet's scheme: `degree` fixed-point iterations of backward Euler.

    Args:
        degree: Degree of the polynomial on a linear field; 1 evaluates Euler's step at the end time.

    Returns:
        The tableau.

    Example:
        >>> poly(2)
        Tableau(nodes=(1.0, 1.0), rows=((), (1.0,)), weights=(0.0, 1.0))
    """
    last = [(0.0,) * (stage - 1) + (1.0,) for stage in range(1, degree + 1)]
    return Tableau((1.0,) * degree, ((), *last[:-1]), last[-1])


def fractal(columns: int, shallow: float = 0.5) -> Tableau:
    """Return FractalNet's scheme.

    Args:
        columns: Number of columns C; a step evaluates the field 2^(C - 1) times.
        shallow: Share of the shallow branch in a join: FractalNet's mean, 1/2, has order 1, Richardson's -1 order 2.

    Returns:
        The tableau.

    Example:
        >>> fractal(2)
        Tableau(nodes=(0.0, 0.5), rows=((), (0.5,)), weights=(0.75, 0.25))
    """
    tableau = Tableau((0.0,), ((),), (1.0,))
    for _ in range(columns - 1):
        deep = _twice(tableau)
        weights = [(1 - shallow) * weight for weight in deep.weights]
        tableau = deep._replace(weights=(weights[0] + shallow, *weights[1:]))  # both branches begin with the same slope
    return tableau


def _twice(tableau: Tableau) -> Tableau:
    """Return two steps of half the length as one."""
    weights = _halved(tableau.weights)
    first = [_halved(row) for row in tableau.rows]
    nodes = (*_halved(tableau.nodes), *[0.5 + node for node in _halved(tableau.nodes)])
    return Tableau(nodes, (*first, *[(*weights, *row) for row in first]), (*weights, *weights))


def _halved(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple([number / 2 for number in numbers])


def linear_multistep(
    field: Field, state: State, grid: Tensor, times: Tensor, callback: StepCallback, memory: Sequence[Any] | None = None
) -> list[State]:
    """Integrate along a grid by the linear two-step method of LM-ResNet.

    Args:
        field: Field, from t () and the state to slopes.
        state: State at times[0], a tuple of tensors (batch, ...).
        grid: Ends of the steps, shape (steps + 1,), monotonic, on the CPU; it holds all of `times`.
        times: Times to return states at, shape (T,).
        callback: Called with time, state and step before each step.
        memory: Coefficient k of each step, numbers or tensors (); 1/2 if None.

    Returns:
        The states at `times`.
    """
    coefficients = [MEMORY] * (len(grid) - 1) if memory is None else list(memory)
    clock = grid.to(state[0].device, state[0].dtype)
    sizes, ends, requested = grid.diff().tolist(), grid[1:].tolist(), times.tolist()
    solution, previous, before = [state], state, 0.0
    for n, (h, end, k) in enumerate(zip(sizes, ends, coefficients, strict=True)):
        callback(grid[n], state, grid[n + 1] - grid[n])
        parts = zip(state, previous, field(clock[n], state), strict=True)
        previous, state = state, tuple([x + h * f + k * (last - x + before * f) for x, last, f in parts])
        before = h
        if end == requested[len(solution)]:
            solution.append(state)
    return solution


class LinearMultistep(nn.Module):
    """LM-ResNet with a learned coefficient k_n = tanh(a_n) for each step, which keeps each step zero-stable.

    It stands for the word of a method: with `solver=FixedSolver(LinearMultistep(8), steps=8)` a CNF learns the
    coefficients with its field. Where a solve has another number of steps, each coefficient serves an equal share of
    them, so that finer solves still converge to the flow of the field.

    Args:
        steps: Number of coefficients, one for each step.
        memory: First value of each k, in (-1, 1).

    Raises:
        ValueError: If `steps` is below 1 or `memory` is not in (-1, 1).

    Example:
        >>> solve = LinearMultistep(steps=8)
        >>> (x,) = solve(lambda t, state: (-state[0],), (torch.ones(1, 1),), torch.linspace(0, 1, 9))
        >>> tuple(x.shape), x.requires_grad
        ((1, 1), True)
    """

    def __init__(self, steps: int, memory: float = MEMORY) -> None:
        super().__init__()
        if steps < 1 or not -1 < memory < 1:
            raise ValueError(f"expected steps >= 1 and memory in (-1, 1); got {steps} and {memory}")
        self.unbounded = nn.Parameter(torch.full((steps,), memory).atanh())

    @property
    def memory(self) -> Tensor:
        """Coefficient k of each step, shape (steps,), in the order of time."""
        return self.unbounded.tanh()

    def coefficients(self, grid: Tensor, like: Tensor) -> list[Tensor]:
        """Return the coefficient of each step along a grid; a step back in time has that of the same step forwards.

        Args:
            grid: Ends of the steps, shape (n + 1,), monotonic, on the CPU.
            like: Tensor of the device and floats wanted.

        Returns:
            Coefficients, n tensors ().
        """
        count, memory = len(grid) - 1, self.memory.to(like)
        found = list(memory[torch.arange(count) * len(memory) // count].unbind())
        return found if grid[-1] > grid[0] else found[::-1]

    def forward(self, field: Field, state: State, grid: Tensor) -> State:
        """Integrate from the first to the last time of a grid.

        Args:
            field: Field, from t () and the state to slopes.
            state: State at grid[0], a tuple of tensors (batch, ...).
            grid: Ends of the steps, shape (n + 1,), monotonic.

        Returns:
            The state at grid[-1].
        """
        clock = grid.cpu()
        coefficients = self.coefficients(clock, state[0])
        return linear_multistep(field, state, clock, clock[[0, -1]], lambda *_: None, coefficients)[-1]

    def extra_repr(self) -> str:
        return f"steps={len(self.unbounded)}"

    def __str__(self) -> str:
        return "learned linear_multistep"


ARCHITECTURES: dict[str, Scheme] = {
    "poly2": poly(2).scheme(),
    "poly3": poly(3).scheme(),
    "fractal2": fractal(2).scheme(),
    "fractal3": fractal(3).scheme(),
}
