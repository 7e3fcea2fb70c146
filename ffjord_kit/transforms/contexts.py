r"""Scaling of contexts, which a stray value does not silence and a far one does not upset.

    v = c                 or, where values go over orders of magnitude,   v = asinh((c - m) / w)
    u = (v - mean) / scale,    beyond the edge   u <- sign(u) (edge + tanh(|u| - edge))

asinh is nearly linear where |c - m| < w, and a logarithm beyond. Of centres m and widths w at quantiles of the values,
and of v = c, each element takes the one under which a normal distribution of v is the likeliest for c: by
log std(c) - log std(v) + mean log dv/dc that of v leads, and it must lead by MARGIN nats. The edge is as far as the fit
saw values, within EDGES: a context farther out counts as one that is little beyond it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

QUANTILES = (0.01, 0.1, 0.5)  # of |c|, where it is not 0: the widths to choose from; around the median, the last
MARGIN = 1.0  # nats by which asinh must lead
EDGES = (5.0, 10.0)
CONSTANT = 1e150  # scale of an element that does not vary: nothing is learnt of it, so it counts for nothing
LARGEST = 1e300  # of a quotient


class Curve(NamedTuple):
    """The map v of contexts: asinh((c - centre) / width), or c where the width is 0; both of shape (c,)."""

    centre: Tensor
    width: Tensor

    def __call__(self, context: Tensor) -> Tensor:
        """Return v.

        Args:
            context: Contexts, shape (batch, c).

        Returns:
            Values, shape (batch, c).
        """
        width = torch.where(self.width > 0, self.width, 1.0)
        quotient = ((context - self.centre) / width).clamp(-LARGEST, LARGEST)
        return torch.where(self.width > 0, quotient.asinh(), context)

    def log_slope(self, context: Tensor) -> Tensor:
        """Return log dv/dc.

        Args:
            context: Contexts, shape (batch, c).

        Returns:
            Logarithms, shape (batch, c).
        """
        bent = -0.5 * ((context - self.centre).square() + self.width.square()).log()
        return torch.where(self.width > 0, bent, 0.0)


class ContextScaling(nn.Module):
    """Bring contexts to mean 0 and deviation 1, and hold far ones near.

    Args:
        curve: Map v of the values.
        mean: Means of v, shape (c,).
        scale: Scales of v, > 0, shape (c,).
        edge: Edges, > 0, shape (c,).

    Example:
        >>> c = torch.tensor([[-1.0], [0.0], [1.0], [1e6]], dtype=torch.float64)
        >>> scaling = ContextScaling.of(c)
        >>> scaling.curved.tolist(), [round(u, 1) for u in scaling(c).flatten().tolist()]
        ([True], [-0.7, -0.6, -0.4, 1.7])
    """

    centre: Tensor
    width: Tensor
    mean: Tensor
    scale: Tensor
    edge: Tensor

    def __init__(self, curve: Curve, mean: Tensor, scale: Tensor, edge: Tensor) -> None:
        super().__init__()
        for name, value in {**curve._asdict(), "mean": mean, "scale": scale, "edge": edge}.items():
            self.register_buffer(name, value)

    @classmethod
    def of(cls, context: Tensor, *, plain: int = 0) -> ContextScaling:
        """Fit the scaling to contexts.

        Args:
            context: Contexts in float64, shape (n, c).
            plain: Number of elements at the end, codes of 0 and 1, that stay as they are.

        Returns:
            The scaling.
        """
        if plain:
            return cls._with_plain(context[:, : context.shape[1] - plain], plain)
        curve = Curve(*(torch.cat(parts) for parts in zip(*map(_curve, context.split(1, dim=1)), strict=True)))
        v, varies = curve(context), context.amax(0) > context.amin(0)
        mean, scale = torch.where(varies, v.mean(0), context[0]), torch.where(varies, v.std(0, correction=0), CONSTANT)
        return cls(curve, mean, scale, ((v - mean) / scale).abs().amax(0).clamp(*EDGES))

    @classmethod
    def _with_plain(cls, context: Tensor, plain: int) -> ContextScaling:
        """Fit the scaling to contexts, with elements behind them that stay as they are."""
        beside = cls.blank(context.new_zeros(plain))
        parts = [cls.of(context), beside] if context.shape[1] else [beside]
        names = ("centre", "width", "mean", "scale", "edge")
        centre, width, mean, scale, edge = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return cls(Curve(centre, width), mean, scale, edge)

    @classmethod
    def blank(cls, zeros: Tensor) -> ContextScaling:
        """Return a scaling to load values into.

        Args:
            zeros: A tensor of the shape (c,) and dtype of a context.

        Returns:
            The scaling.
        """
        ones = torch.ones_like(zeros)
        return cls(Curve(zeros, zeros.clone()), zeros.clone(), ones, ones.clone())

    @property
    def curved(self) -> Tensor:
        """Whether an element goes through asinh, shape (c,)."""
        return self.width > 0

    @property
    def constant(self) -> Tensor:
        """Whether an element did not vary in the fit; its value is `mean`, shape (c,)."""
        return self.scale == CONSTANT

    def forward(self, context: Tensor) -> Tensor:
        """Scale contexts.

        Args:
            context: Contexts, shape (batch, c).

        Returns:
            Scaled contexts, shape (batch, c).
        """
        v = Curve(self.centre, self.width)(context)
        u = ((v - self.mean) / self.scale).clamp(-LARGEST, LARGEST)
        held = torch.minimum(torch.maximum(u, -self.edge), self.edge)
        return held + (u - held).tanh()


def _curve(column: Tensor) -> Curve:
    """Return the map that suits a column (n, 1)."""
    none = column.new_zeros(1)
    if bool(column.amax() == column.amin()):
        return Curve(none, none)
    around = [(none, share) for share in QUANTILES] + [(column.median()[None], QUANTILES[-1])]
    curves = [Curve(none, none), *(Curve(centre, _quantile(column - centre, share)) for centre, share in around)]
    leads = torch.stack([curve.log_slope(column).mean() - curve(column).std(correction=0).log() for curve in curves])
    leads[0] += MARGIN
    return curves[int(leads.argmax())]


def _quantile(column: Tensor, share: float) -> Tensor:
    """Return a quantile of the sizes of values that are not 0, shape (1,)."""
    size = column[column != 0].abs()
    return size.kthvalue(1 + int(share * len(size))).values[None]
