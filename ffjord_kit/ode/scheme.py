r"""One-step schemes: from a state y at time t to y + dy at t + h, by evaluations of the field alone.

A Butcher tableau (c, a, b) is such a scheme:

    k_i = f(t + c_i h, y + h sum_{j < i} a_ij k_j),    dy = h sum_i b_i k_i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode.field import State

Field = Callable[[Tensor, State], State]
StepCallback = Callable[[Tensor, State, Tensor], None]


class Scheme(NamedTuple):
    """An explicit one-step scheme.

    Attributes:
        stage_times: From the starts, sizes and ends of steps, each (steps,), to the times of each stage, each (steps,).
        change: From the field, the times of the stages, the step size h (a number or tensor ()) and the state y to dy.
    """

    stage_times: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    change: Callable[[Field, tuple[Tensor, ...], Any, State], State]

    @property
    def stages(self) -> int:
        """Evaluations of the field in a step."""
        zero = torch.zeros(())
        return len(self.stage_times(zero, zero, zero))


class Tableau(NamedTuple):
    """The Butcher tableau of an explicit scheme.

    Attributes:
        nodes: Times c of the stages, in steps from the start.
        rows: Weights a of the earlier slopes in each stage; row i has i numbers.
        weights: Weights b of the slopes in the step.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def scheme(self) -> Scheme:
        """Return the scheme of the tableau.

        Returns:
            A scheme with a stage for each row.
        """
        return Scheme(self._stage_times, self._change)

    def _stage_times(self, start: Tensor, step: Tensor, end: Tensor) -> tuple[Tensor, ...]:
        return tuple([end if node == 1 else start + node * step for node in self.nodes])

    def _change(self, field: Field, t: tuple[Tensor, ...], h: Any, y: State) -> State:
        slopes: list[State] = []
        for time, row in zip(t, self.rows, strict=True):
            inner = y if not any(row) else tuple([a + d for a, d in zip(y, _weighted(row, slopes, h), strict=True)])
            slopes.append(field(time, inner))
        return _weighted(self.weights, slopes, h)


def _weighted(weights: Sequence[float], slopes: Sequence[State], h: Any) -> State:
    """Return h times the weighted sum of slopes, of which at least one weighs."""
    terms = [[(h * weight) * part for part in slope] for weight, slope in zip(weights, slopes, strict=True) if weight]
    return tuple([sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)])
