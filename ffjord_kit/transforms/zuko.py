r"""Discrete transforms from other normalizing flows, by the library zuko; a continuous transform may follow them.

    maf:3    3 masked autoregressive transforms, z_i = exp(a_i) x_i + b_i,  a_i, b_i of x_1 .. x_i-1
    nsf:3    3 autoregressive transforms by monotone rational-quadratic splines of 8 bins on [-5, 5]
    nice:3   3 affine coupling transforms: half of the columns from the other half

zuko is an optional dependency, which this file alone imports. Towards the base an autoregressive transform is one pass,
back to the data one pass for each column. Outside [-5, 5] a spline is the identity: standardize first.

References:
    Papamakarios et al. 2017, Masked autoregressive flow, https://arxiv.org/abs/1705.07057.
    Durkan et al. 2019, Neural spline flows, https://arxiv.org/abs/1906.04032.
    Dinh et al. 2017, RealNVP, https://arxiv.org/abs/1605.08803.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import cast

from torch import Tensor, nn

from ffjord_kit.transforms.base import Transform


class ZukoTransform(Transform):
    """Any of zuko's lazy transforms of a vector, from data to base, e.g. `zuko.flows.MAF(3).transform`.

    Its inverse is as exact as the transform's own: to rounding for affine and spline transforms, to the tolerance of a
    bisection for those without a closed form.

    Args:
        transform: Lazy transform, which gives a `torch.distributions.Transform` for a context.
        size: Number of columns.

    Example:
        >>> import torch
        >>> import zuko.flows
        >>> z, log_det = ZukoTransform(zuko.flows.MAF(3).transform, 3).to_base(torch.zeros(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, transform: nn.Module, size: int) -> None:
        super().__init__()
        self.event_shape = (size,)
        self.transform = transform

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(context).call_and_ladj(x)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = self.transform(context)
        x = transform.inv(z)
        return x, -transform.call_and_ladj(x)[1]


def zuko_transform(word: str, count: int, size: int, context_dim: int = 0) -> ZukoTransform:
    """Make discrete transforms by name; torch's global random state draws their weights.

    Args:
        word: Kind, a word of ZUKO_TRANSFORMS.
        count: Number of transforms.
        size: Number of columns.
        context_dim: Length of the context vectors; 0 for none.

    Returns:
        The transforms, composed.

    Raises:
        ValueError: If zuko is not installed, or a coupling has fewer than two columns.
    """
    if word == "nice" and size < 2:
        raise ValueError("transforms 'nice' couple columns and need two or more; got 1: take 'maf' or 'nsf'")
    flow = ZUKO_TRANSFORMS[word](_import_zuko(word, count), size, context_dim, count)
    return ZukoTransform(cast(nn.Module, flow.transform), size)


def _import_zuko(word: str, count: int) -> ModuleType:
    try:
        import zuko.flows
    except ImportError as error:
        raise ValueError(f"transforms='{word}:{count}' needs zuko: pip install 'ffjord-kit[zuko]'") from error
    return zuko.flows


def _autoregressive(flows: ModuleType, size: int, context_dim: int, count: int) -> nn.Module:
    return flows.MAF(size, context_dim, transforms=count)


def _spline(flows: ModuleType, size: int, context_dim: int, count: int) -> nn.Module:
    return flows.NSF(size, context_dim, transforms=count)


def _coupling(flows: ModuleType, size: int, context_dim: int, count: int) -> nn.Module:
    return flows.NICE(size, context_dim, transforms=count)


ZUKO_TRANSFORMS: dict[str, Callable[[ModuleType, int, int, int], nn.Module]] = {
    "maf": _autoregressive,
    "nsf": _spline,
    "nice": _coupling,
}
