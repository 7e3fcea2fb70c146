r"""Scalings of a table of which only some columns of a row are modelled, and of the questions that say which.

A scaling s is applied column by column. Of a row with modelled columns M, given columns and absent ones,

    z_i = s_i(x_i) in M, and 0 elsewhere;    log|det| = sum over M of log s_i'(x_i).

The flow behind has d columns always: those not modelled are noise that stands still, and independent of all else:
standard normal, of angles uniform. Dividing by the density of this noise leaves that of the modelled columns; the
log-determinants below contain the division, so log-densities are those of the modelled columns alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ffjord_kit.nn.masked import QuestionContext
from ffjord_kit.transforms.base import Transform

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Elementwise(nn.Module):
    """Transforms of each column by itself, one after another, and what they do at the point that goes to 0.

    Args:
        transforms: Transforms, from data to base, none of which mixes columns.
        size: Number of columns d.
        circles: Columns that are angles, in radians on the side of the base.
    """

    reference: Tensor
    log_slope: Tensor
    on_line: Tensor

    def __init__(self, transforms: Sequence[Transform], size: int, circles: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer(
            "on_line", torch.tensor([i not in circles for i in range(size)], dtype=torch.bool), persistent=False
        )
        self.transforms = cast(Sequence[Transform], nn.ModuleList(transforms))
        reference, _ = self.to_data(torch.zeros(1, size, dtype=torch.float64))
        with torch.inference_mode(False), torch.enable_grad():
            point = reference.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.to_base(point)[0].sum(), point)
        self.register_buffer("reference", reference[0].detach())
        self.register_buffer("log_slope", slope[0].log())

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data towards the base.

        Args:
            x: Data, shape (batch, d).

        Returns:
            z, shape (batch, d), and log|det dz/dx|, shape (batch,).
        """
        log_det = x.new_zeros(len(x))
        for transform in self.transforms:
            x, step = transform.to_base(x)
            log_det = log_det + step
        return x, log_det

    def to_data(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map from the base's side to data.

        Args:
            z: Points, shape (batch, d).

        Returns:
            x, shape (batch, d), and log|det dx/dz|, shape (batch,).
        """
        log_det = z.new_zeros(len(z))
        for transform in reversed(self.transforms):
            z, step = transform.to_data(z)
            log_det = log_det + step
        return z, log_det

    def noise_log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of the noise in the columns that are not modelled.

        Args:
            z: Noise, shape (batch, d).

        Returns:
            Log-densities of each element, shape (batch, d).
        """
        return torch.where(self.on_line, -0.5 * z.square() - HALF_LOG_2PI, -2 * HALF_LOG_2PI)


class SubsetScaling(Transform):
    """Scale the modelled columns of each row; its context says which they are.

    Args:
        scaling: Transforms of each column by itself.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> rows = torch.tensor([[1.0, 10.0], [3.0, 30.0]], dtype=torch.float64)
        >>> transform = SubsetScaling(Elementwise([Standardize.of(rows)], 2))
        >>> modelled = torch.tensor([[1.0, 0.0]])
        >>> context = QuestionContext(torch.zeros(1, 2), torch.zeros(1, 2), modelled).context
        >>> transform.to_base(torch.tensor([[3.0, math.nan]]).double(), context)[0].tolist()
        [[1.0, 0.0]]
    """

    event_shape: tuple[int, ...]

    def __init__(self, scaling: Elementwise) -> None:
        super().__init__()
        self.scaling, self.event_shape = scaling, tuple(scaling.reference.shape)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        modelled = _modelled(x, context)
        z, log_det = self.scaling.to_base(torch.where(modelled, x, self.scaling.reference.to(x)))
        z = torch.where(modelled, z, 0.0)
        absent = torch.where(modelled, 0.0, -self.scaling.noise_log_prob(z) - self.scaling.log_slope.to(x))
        return z, log_det + absent.sum(1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        modelled = _modelled(z, context)
        x, log_det = self.scaling.to_data(torch.where(modelled, z, 0.0))
        absent = torch.where(modelled, 0.0, self.scaling.log_slope.to(z) + self.scaling.noise_log_prob(z))
        return torch.where(modelled, x, self.scaling.reference.to(x)), log_det + absent.sum(1)


class QuestionScaling(Transform):
    """Scale the given values of questions [g, v, m, ...]; all else stays.

    Args:
        scaling: Transforms of each column by itself.
        categories: Number of elements behind [g, v, m].
    """

    event_shape: tuple[int, ...]

    def __init__(self, scaling: Elementwise, categories: int = 0) -> None:
        super().__init__()
        self.scaling, self.event_shape = scaling, (3 * len(scaling.reference) + categories,)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        question = QuestionContext.of_context(x, len(self.scaling.reference))
        given = question.given > 0
        values, _ = self.scaling.to_base(torch.where(given, question.values, self.scaling.reference.to(x)))
        return question._replace(values=torch.where(given, values, 0.0)).context, x.new_zeros(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        question = QuestionContext.of_context(z, len(self.scaling.reference))
        values, _ = self.scaling.to_data(question.values)
        values = torch.where(question.given > 0, values, 0.0)
        return question._replace(values=values).context, z.new_zeros(len(z))


def _modelled(x: Tensor, context: Tensor | None) -> Tensor:
    """Return which columns are modelled, shape (batch, d); all of them without a context."""
    if context is None:
        return torch.ones_like(x, dtype=torch.bool)
    return QuestionContext.of_context(context, x.shape[1]).modelled > 0
