r"""Discrete layers: what other normalizing flows are made of, as layers that a continuous one finishes.

    maf:3    3 masked autoregressive layers, z_i = exp(a_i) x_i + b_i,  a_i, b_i of x_1 .. x_i-1   (Papamakarios 2017)
    nsf:3    the same with monotone rational-quadratic splines of 8 bins on [-5, 5]                (Durkan et al. 2019)
    nice:3   3 affine coupling layers: half of the columns from the other half                     (Dinh et al. 2017)

They come from zuko, an optional dependency that this file alone knows. Towards the base an autoregressive layer is one
pass, back to the data as many as there are columns. Outside [-5, 5] a spline is the identity: standardize first.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from ffjord_kit.transforms.base import Transform


class ZukoTransform(Transform):
    """Any of zuko's lazy transforms of a vector, from data to base: `zuko.flows.MAF(3).transform` is one.

    Its inverse is as exact as the transform's own: to rounding for affine and spline ones, to the tolerance of their
    bisection for those without a closed form. Shapes: x (batch, size), context (batch, context_dim).
    """

    def __init__(self, transform: nn.Module, size: int) -> None:
        super().__init__()
        self.event_shape = (size,)
        self.transform = transform

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(context).call_and_ladj(x)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        here = self.transform(context)
        x = here.inv(z)
        return x, -here.call_and_ladj(x)[1]


def zuko_transform(word: str, count: int, size: int, context_dim: int = 0) -> Transform:
    """`count` layers of the kind that the word of DISCRETE names, for events (size,); the global state draws weights.

    Raises ValueError where zuko is missing, or the kind cannot do with so few columns.
    """
    if word == "nice" and size < 2:
        raise ValueError("layers 'nice' couple columns and need two or more; got 1: take 'maf' or 'nsf'")
    flow = DISCRETE[word](_zuko(word, count), size, context_dim, count)
    return ZukoTransform(flow.transform, size)


def _zuko(word: str, count: int) -> ModuleType:
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


DISCRETE: dict[str, Callable[[ModuleType, int, int, int], nn.Module]] = {
    "maf": _autoregressive,
    "nsf": _spline,
    "nice": _coupling,
}
