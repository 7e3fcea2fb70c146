r"""Vector fields: networks f(t, x, context) that give dx/dt, and how they take in time and context.

Any `nn.Module` with this signature is a vector field:

    forward(t, x, context=None) -> dx/dt      t: () or (batch,); x: (batch, *event); context: (batch, context_dim)

A row of the output depends on the same row of the inputs alone (no batch normalisation), since the trace of the
Jacobian is taken row by row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def buffers_added_later(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that runs of earlier versions do not have, as their modules name them in `added_later`.

    Args:
        model: Model.

    Returns:
        Buffers by their names in the model's state.
    """
    return {
        f"{prefix}.{name}".lstrip("."): getattr(module, name)
        for prefix, module in model.named_modules()
        for name in getattr(module, "added_later", ())
    }


class VectorField(nn.Module, ABC):
    """A network that carries tangents itself: one pass gives the velocity and its directional derivatives.

    That makes the trace of the Jacobian cheaper than automatic differentiation does. A subclass defines `forward` and
    `jvp`, and `divergence` if it has a closed form.

    Example:
        >>> class Rotation(VectorField):
        ...     def forward(self, t, x, context=None):
        ...         return x.flip(1) * torch.tensor([-1.0, 1.0])
        ...     def jvp(self, t, x, tangents, context=None):
        ...         return self(t, x), tangents.expand(-1, len(x), -1).flip(2) * torch.tensor([-1.0, 1.0])
        >>> dx, trace = Rotation().divergence(torch.tensor(0.0), torch.tensor([[1.0, 2.0]]))
        >>> dx.tolist(), trace.tolist()
        ([[-2.0, 1.0]], [0.0])
    """

    @abstractmethod
    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the velocity and Jacobian-vector products.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            tangents: Tangents v, shape (probe, 1 or batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event), and J v, shape (probe, batch, *event).
        """

    def divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the velocity and the exact trace of the Jacobian.

        A field with a cheaper closed form overrides this sum over all basis vectors.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event), and tr J, shape (batch,).
        """
        size = math.prod(x.shape[1:])
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
        dx, columns = self.jvp(t, x, basis, context)
        check_velocity(dx, x)
        return dx, (columns * basis).reshape(*columns.shape[:2], -1).sum(dim=(0, 2))


def evaluation_methods(field: nn.Module) -> tuple[str, ...]:
    """Return the names of the methods that evaluate a field; compilation and casts change all of them.

    Args:
        field: Any vector field.

    Returns:
        Names of methods.
    """
    return ("forward", "jvp", "divergence") if isinstance(field, VectorField) else ("forward",)


def check_velocity(dx: Tensor, x: Tensor) -> Tensor:
    """Return a velocity whose shape is that of the states.

    Args:
        dx: Velocity.
        x: States, shape (batch, *event).

    Returns:
        The velocity.

    Raises:
        ValueError: If the shapes differ.
    """
    if dx.shape != x.shape:
        raise ValueError(f"dynamics must give dx/dt of the shape of x, {tuple(x.shape)}; got {tuple(dx.shape)}")
    return dx


class SinusoidalEmbedding(nn.Module):
    """Embed time as sines and cosines at geometrically spaced angular frequencies.

    Args:
        count: Number of frequencies.
        max_frequency: Largest angular frequency; the smallest is 1.

    Example:
        >>> SinusoidalEmbedding(2, max_frequency=10.0)(torch.zeros(1, 1)).tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """

    frequencies: Tensor

    def __init__(self, count: int = 16, *, max_frequency: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0.0, math.log10(max_frequency), count))

    def forward(self, t: Tensor) -> Tensor:
        """Return sines and cosines.

        Args:
            t: Times, shape (rows, 1).

        Returns:
            Features, shape (rows, 2 * count).
        """
        angles = t * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def time_column(t: Tensor) -> Tensor:
    """Return time as a column.

    Args:
        t: Time, () or (batch,).

    Returns:
        Time, shape (1, 1) or (batch, 1).
    """
    return t.reshape(-1, 1)


def join_context(time: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Join features of time with the context, if any.

    Args:
        time: Features of time, shape (1 or batch, features).
        x: States, shape (batch, *event); they give the number of rows.
        context: Contexts, shape (batch, context_dim), or None.

    Returns:
        Features, shape (1 or batch, features), or (batch, features + context_dim) with a context.
    """
    if context is None:
        return time
    return torch.cat([time.expand(len(x), -1), context], dim=1)


def gates_and_shifts(widths: Sequence[int], context_dim: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Make the layers by which time and context gate and shift concat-squash layers.

    Args:
        widths: Widths of the concat-squash layers.
        context_dim: Length of the context vectors.

    Returns:
        A gate and a shift for each layer.
    """
    gates = nn.ModuleList(nn.Linear(1 + context_dim, width) for width in widths)
    return gates, nn.ModuleList(nn.Linear(1 + context_dim, width, bias=False) for width in widths)
