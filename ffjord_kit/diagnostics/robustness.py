r"""The cost of an adversary: the worst rows within eps of given ones, and how much worse a model judges them.

For a density the loss of a row is -log p(x), for a classifier the negative log-probability of the right class. The move
is sought by gradients (see `ffjord_kit.objectives.robust`), from the row itself and, for several steps, from random
starts too; of all points on the way the worst counts. So the true worst point is at least as bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.objectives.robust import Neighbourhood


@dataclass(frozen=True)
class Attack:
    """The worst rows found near given ones.

    Attributes:
        x: Rows, shape (n, *event).
        before: Loss of the given rows, nats, shape (n,).
        after: Loss of the worst rows, nats, shape (n,); at least `before`.

    Example:
        >>> Attack(np.zeros((2, 1)), before=np.array([1.0, 1.0]), after=np.array([2.0, 4.0])).cost
        (2.0, 1.0)
    """

    x: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def cost(self) -> tuple[float, float]:
        """Mean rise of the loss, nats, and its standard error over rows."""
        rise = self.after - self.before
        return float(rise.mean()), float(rise.std(ddof=1) / len(rise) ** 0.5) if len(rise) > 1 else math.nan


def attack(
    losses: Callable[[Tensor], Tensor],
    x: Tensor,
    near: Neighbourhood,
    *,
    scale: Tensor | None = None,
    starts: int = 0,
    seed: int = 0,
) -> Attack:
    """Search the worst rows within a neighbourhood.

    Args:
        losses: Function from rows to the loss of each, (n,), which depends on that row alone.
        x: Rows, shape (n, *event).
        near: Neighbourhood and steps.
        scale: Units of eps, which broadcast against a row, e.g. standard deviations of the columns; 1 if None.
        starts: Number of further searches, each from a random start.
        seed: Seed of the random starts.

    Returns:
        The worst rows.

    Raises:
        ValueError: If the losses are not one for each row, or do not depend on the rows.

    Example:
        >>> found = attack(lambda x: x.square().sum(1), torch.tensor([[1.0, -2.0]]), Neighbourhood(0.5))
        >>> found.x.tolist(), found.before.tolist(), found.after.tolist()
        ([[1.5, -2.5]], [5.0], [8.5])
    """
    x, generator = x.detach(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = losses(x)
    if before.shape != x.shape[:1]:
        raise ValueError(f"expected a loss for each of {len(x)} rows; got shape {tuple(before.shape)}")
    worst, after = x, before
    for source in (None, *[generator] * starts):
        for rows, values in near.path(losses, x, scale, source):
            if values.dim() == 0:  # the last rows
                with torch.no_grad():
                    values = losses(rows)
            better = values > after
            worst = torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), rows, worst)
            after = torch.where(better, values, after)
    return Attack(*(values.cpu().double().numpy() for values in (worst, before, after)))
