r"""Blocks of depth: the middle of an ODE-Net, and of the residual networks that it is compared with.

All are schemes on a vector field f. Where the weights change with the layer, layer n acts for t in [n, n + 1):

    ode       dx/dt = f(t, x), t from 0 to 1, to a tolerance
    rk        the same field by a fixed number of Runge-Kutta steps
    resnet    x_{n+1} = x_n + f_n(x_n)
    lm        x_{n+1} = (1 - k_n) x_n + k_n x_{n-1} + (1 + k_n) f_n(x_n) with learned k_n, and Euler's first step

References:
    Chen et al. 2018, Neural ordinary differential equations, https://arxiv.org/abs/1806.07366.
    Lu, Zhong, Li & Dong 2018, Beyond finite layer neural networks, https://arxiv.org/abs/1710.10121.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ffjord_kit.ode import AdaptiveSolver, FixedSolver, Solver, SolverStats
from ffjord_kit.ode.architectures import LinearMultistep

MakeField = Callable[[], nn.Module]


class Block(nn.Module, ABC):
    """A map of states to states of the same shape, by evaluations of vector fields."""

    @abstractmethod
    def forward(self, x: Tensor, solver: Solver | None = None) -> tuple[Tensor, SolverStats]:
        """Map states.

        Args:
            x: States, shape (batch, *event).
            solver: Solver; the block's own if None.

        Returns:
            States, shape (batch, *event), and the counts of evaluations.

        Raises:
            ValueError: If a solver is passed to a block of separate layers.
            SolveError: If the solve cannot go on.
        """


class ODEBlock(Block):
    """The flow of dx/dt = f(t, x) over a time.

    Args:
        field: Vector field f.
        solver: Solver.
        end_time: Time at the end; it begins at 0.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> x, stats = ODEBlock(ConcatDynamics((2,)), FixedSolver("rk4", 3))(torch.zeros(4, 2))
        >>> tuple(x.shape), stats.nfe
        ((4, 2), 12)
    """

    def __init__(self, field: nn.Module, solver: Solver, end_time: float = 1.0) -> None:
        super().__init__()
        self.field, self.solver, self.end_time = field, solver, end_time

    def forward(self, x: Tensor, solver: Solver | None = None) -> tuple[Tensor, SolverStats]:
        _refuse_solver(solver, isinstance(self.field, LayeredField))
        times, params = torch.tensor([0.0, self.end_time]), tuple(self.field.parameters())
        solution = (solver or self.solver).solve(self._velocity, (x,), times, params=params)
        return solution.states[0][-1], solution.stats

    def _velocity(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.field(t, state[0]),)


class LayeredField(nn.Module):
    """A field whose weights change at each whole number of the time.

    Args:
        layers: Vector field of each layer.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, (), within the rounding of a whole number.
            x: States, shape (batch, *event).

        Returns:
            dx/dt, shape (batch, *event).
        """
        return self.layers[round(float(t))](torch.zeros_like(t), x)


class MultistepBlock(Block):
    """LM-ResNet: two-step layers, each with weights and a coefficient k of its own.

    Args:
        field: Field of the layers.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> block = MultistepBlock(LayeredField([ConcatDynamics((2,)) for _ in range(3)]))
        >>> x, stats = block(torch.zeros(4, 2))
        >>> tuple(x.shape), stats.nfe
        ((4, 2), 3)
    """

    def __init__(self, field: LayeredField) -> None:
        super().__init__()
        self.field, self.scheme = field, LinearMultistep(len(field.layers))

    def forward(self, x: Tensor, solver: Solver | None = None) -> tuple[Tensor, SolverStats]:
        _refuse_solver(solver, True)
        count = len(self.field.layers)
        grid = torch.arange(count + 1, dtype=torch.float64)
        (x,) = self.scheme(lambda t, state: (self.field(t, state[0]),), (x,), grid)
        return x, SolverStats(nfe=count)


def _refuse_solver(solver: Solver | None, layered: bool) -> None:
    if solver is not None and layered:
        raise ValueError(
            f"separate layers are no ODE, which {solver.label} could solve: leave the solver out, or pass block='ode' "
            "or 'rk'"
        )


def _ode(make: MakeField, layers: int, tolerance: float, adjoint: str) -> Block:
    return ODEBlock(make(), AdaptiveSolver("dopri5", tolerance, tolerance, adjoint=adjoint))


def _rk(make: MakeField, layers: int, tolerance: float, adjoint: str) -> Block:
    return ODEBlock(make(), FixedSolver("rk4", layers, adjoint=adjoint))


def _resnet(make: MakeField, layers: int, tolerance: float, adjoint: str) -> Block:
    return ODEBlock(LayeredField([make() for _ in range(layers)]), FixedSolver("euler", layers), float(layers))


def _lm(make: MakeField, layers: int, tolerance: float, adjoint: str) -> Block:
    return MultistepBlock(LayeredField([make() for _ in range(layers)]))


# From a maker of fields, a number of layers or steps, a tolerance and a word of ADJOINTS to a block.
BLOCKS: dict[str, Callable[[MakeField, int, float, str], Block]] = {
    "ode": _ode,
    "resnet": _resnet,
    "rk": _rk,
    "lm": _lm,
}
