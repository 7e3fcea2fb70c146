"""A product of a base of real elements and uniform distributions on circles and spheres."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ffjord_kit.distributions.base import Base
from ffjord_kit.geometry import Geometry
from ffjord_kit.noise import fresh_generator, standard_normal


class ProductBase(Base):
    r"""A base of the real elements, times the uniform distributions of angles and of points on spheres.

        log p(z) = log p_real(z_real) - (number of circles) log(2 pi) - (number of spheres) log(4 pi)

    It is constant along a circle, so that an angle counts wherever on the line it stands, and per area on a sphere.

    Args:
        geometry: Which elements are angles, and which are points on a sphere.
        real: Base of the real elements; None where there are none.

    Example:
        >>> from ffjord_kit.distributions import StandardNormal
        >>> base = ProductBase(Geometry(2, circles=(1,)), StandardNormal((1,)))
        >>> base.log_prob(torch.tensor([[0.0, 7.0]]))
        tensor([-2.7568])
        >>> base.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    anchor: Tensor

    def __init__(self, geometry: Geometry, real: Base | None) -> None:
        super().__init__()
        self._geometry, self.real, self.event_shape = geometry, real, (geometry.size,)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        circles, spheres = len(geometry.circles), len(geometry.spheres)
        self.constant = -circles * math.log(2 * math.pi) - spheres * math.log(4 * math.pi)

    @property
    def geometry(self) -> Geometry:
        """Which elements are angles, and which are points on a sphere."""
        return self._geometry

    def log_prob(self, z: Tensor) -> Tensor:
        real, angles, points = self.geometry.split(z)
        flat = 0 * (angles.sum(-1) + points.flatten(-2).sum(-1))  # which has a gradient, and is NaN where z is
        return self.constant + (flat if self.real is None else flat + self.real.log_prob(real))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, (_, circles, size) = generator or fresh_generator(), self.geometry.parts
        real = self.anchor.new_zeros(n, 0) if self.real is None else self.real.sample(n, generator)
        share = torch.rand((n, circles), generator=generator, device=generator.device, dtype=torch.float64)
        points = standard_normal((n, size // 3, 3), self.anchor, generator)
        angles = (2 * math.pi * (share - 0.5)).to(real)
        return self.geometry.project(self.geometry.join(real, angles, points.to(real)))

    def project(self, z: Tensor) -> Tensor:
        return self.geometry.project(z)
