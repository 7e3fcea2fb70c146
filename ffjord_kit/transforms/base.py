"""Transforms: invertible maps with their log-determinants.

A transform maps data x towards the base, z = to_base(x), and back, x = to_data(z); each map comes with the log of the
absolute determinant of its Jacobian, so that log p(x) = log p(z) + log|det dz/dx|.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Transform(nn.Module, ABC):
    """An invertible map between data and base.

    Attributes:
        event_shape: Shape of an event on the base's side, or None where any shape will do.
        duration: Time that the transform takes; 0 unless it is continuous.

    Example:
        >>> import math, torch
        >>> class Doubling(Transform):  # x = 2 z
        ...     event_shape = (3,)
        ...     def to_base(self, x, context=None):
        ...         return x / 2, x.new_full((len(x),), -3 * math.log(2))
        ...     def to_data(self, z, context=None):
        ...         return 2 * z, z.new_full((len(z),), 3 * math.log(2))
        >>> z, log_det = Doubling().to_base(torch.ones(1, 3))
        >>> z, log_det
        (tensor([[0.5000, 0.5000, 0.5000]]), tensor([-2.0794]))
    """

    event_shape: tuple[int, ...] | None = None
    duration: float = 0.0

    def flaw(self) -> str:
        """Return why the fitted values make no invertible map, e.g. those of a damaged file.

        Returns:
            The reason; empty if they do.
        """
        return ""

    @abstractmethod
    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data towards the base.

        Args:
            x: Data, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            z, shape (batch, *event), and log|det dz/dx|, shape (batch,).
        """

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map from the base's side to data.

        Args:
            z: Points on the base's side, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            x, shape (batch, *event), and log|det dx/dz|, shape (batch,).
        """
