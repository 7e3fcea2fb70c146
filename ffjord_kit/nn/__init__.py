"""Networks f(t, x, context) that give dx/dt; the menus DYNAMICS and IMAGE_DYNAMICS name them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import VectorField
from ffjord_kit.nn.convolutional import ConvolutionDynamics
from ffjord_kit.nn.manifold import ManifoldDynamics
from ffjord_kit.nn.mlp import ConcatDynamics, ConcatSquashDynamics, ResidualDynamics
from ffjord_kit.nn.planar import PlanarDynamics
from ffjord_kit.nn.potential import PotentialDynamics
from ffjord_kit.nn.unet import UNetDynamics

DYNAMICS: dict[str, Callable[..., nn.Module]] = {
    "residual": ResidualDynamics,
    "concat_squash": ConcatSquashDynamics,
    "concat": ConcatDynamics,
    "potential": PotentialDynamics,
}

IMAGE_DYNAMICS: dict[str, Callable[..., nn.Module]] = {"convolution": ConvolutionDynamics, "unet": UNetDynamics}

__all__ = [
    "ACTIVATIONS", "DYNAMICS", "IMAGE_DYNAMICS", "ConcatDynamics", "ConcatSquashDynamics", "ConvolutionDynamics",
    "ManifoldDynamics", "PlanarDynamics", "PotentialDynamics", "ResidualDynamics", "UNetDynamics", "VectorField",
]  # fmt: skip
