r"""Autonomous equations dy/dt = rhs(y), solved once for a batch whose rows have times of their own.

All rows are solved on one grid t_k = k h of the clock that starts at each row's first time. Between two nodes a row is
read off the cubic that has the states and the slopes of both (Hermite): with s = (t - t_k) / h and d = y_{k+1} - y_k,

    y(t) = y_k + s (m_k + s (3 d - 2 m_k - m_{k+1} + s (m_k + m_{k+1} - 2 d))),      m = h rhs(y).

Its error is of the order h^4, as that of the Runge-Kutta steps. The cost does not grow with the number of times: a
solve that ends a step at every time of every row makes as many steps as the batch has different times.
`benchmarks/series.py --only clocks` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ffjord_kit.ode import FixedSolver

State = tuple[Tensor, ...]


def solve_at(rhs: Callable[[State], State], start: State, times: Tensor, *, steps: int) -> State:
    """Solve from time 0, and return the states at each row's own times.

    Args:
        rhs: Right-hand side, from a state to its slopes, for any number of rows.
        start: State at time 0, a tuple of tensors (batch, k).
        times: Times, at least 0, shape (batch, T), in any order.
        steps: Number of Runge-Kutta steps per unit of time.

    Returns:
        The states, a tuple of tensors (batch, T, k).

    Raises:
        SolveError: If a slope is not finite.

    Example:
        >>> times = torch.tensor([[0.0, 1.0], [0.3, 0.7]], dtype=torch.float64)
        >>> (y,) = solve_at(lambda y: (-y[0],), (torch.ones(2, 1, dtype=torch.float64),), times, steps=50)
        >>> bool((y[..., 0] - (-times).exp()).abs().max() < 1e-9)
        True
    """
    count = max(1, math.ceil(float(times.max()) * steps))
    grid = torch.arange(count + 1, dtype=torch.float64) / steps
    solver = FixedSolver("rk4", count, max_nfe=4 * count)
    nodes = solver.solve(lambda _, state: rhs(state), start, grid).states
    slopes = [slope.unflatten(0, nodes[0].shape[:2]) / steps for slope in rhs(tuple(y.flatten(0, 1) for y in nodes))]
    clock = times * steps
    number = clock.floor().long().clamp(max=count - 1)
    share = (clock - number).to(start[0].dtype)[..., None]
    return tuple(_cubic(y, m, number, share) for y, m in zip(nodes, slopes, strict=True))


def _cubic(nodes: Tensor, slopes: Tensor, number: Tensor, share: Tensor) -> Tensor:
    """Read states, shape (batch, T, k), off nodes and slopes per step, shape (steps + 1, batch, k)."""
    rows = torch.arange(len(number), device=nodes.device)[:, None]
    left, right = nodes[number, rows], nodes[number + 1, rows]
    m, n, d = slopes[number, rows], slopes[number + 1, rows], right - left
    return left + share * (m + share * (3 * d - 2 * m - n + share * (m + n - 2 * d)))
