r"""A vector field on circles and spheres, made of a network on the space around them.

An event x is embedded as e = (real elements, cos and sin of angles, unit vectors u), and the network gives o(t, e).
With its parts o_c, o_s at the cosine and the sine of an angle a, and o_u at a unit vector of a point of length r,

    da/dt = -sin(a) o_c + cos(a) o_s,        dx/dt = r (o_u - u (u . o_u)):

the parts along the circle and the sphere. So the field is periodic in each angle, and tangent and of degree 1 at each
point, as `ffjord_kit.geometry` needs it; where o is the gradient of a potential, so is the field.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffjord_kit.geometry import Geometry, unit
from ffjord_kit.nn.base import VectorField


class ManifoldDynamics(VectorField):
    """A vector field on the real elements, circles and spheres of an event.

    Args:
        network: Vector field on embedded events, shape (geometry.embedded_size,).
        geometry: Which elements are angles, and which are points on a sphere.

    Example:
        >>> from ffjord_kit.nn.mlp import ConcatDynamics
        >>> field = ManifoldDynamics(ConcatDynamics((2,), hidden=(8,)), Geometry(1, circles=(0,)))
        >>> t, x = torch.tensor(0.5), torch.tensor([[1.0], [1.0 + 2 * torch.pi]])
        >>> dx = field(t, x)
        >>> torch.allclose(dx[0], dx[1], atol=1e-5)
        True
    """

    def __init__(self, network: VectorField, geometry: Geometry) -> None:
        super().__init__()
        self.network, self.geometry = network, geometry

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, () or (batch,).
            x: Events, shape (batch, size).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, size).
        """
        _, angles, points = self.geometry.split(x)
        real, (o_c, o_s), out = self._split_output(self.network(t, self.geometry.embed(x), context))
        return self.geometry.join(real, angles.cos() * o_s - angles.sin() * o_c, _tangent(points, out))

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _, a, p = self.geometry.split(x)
        dreal, da, dp = self.geometry.split(tangents.expand(-1, len(x), -1))
        sine, cosine, length = a.sin(), a.cos(), p.square().sum(-1, keepdim=True).sqrt()
        u = p / length
        du = (dp - u * _dot(u, dp)) / length
        embedded = self.geometry.embed(x)
        pushed = torch.cat([dreal, -sine * da, cosine * da, du.flatten(-2)], dim=-1)
        o, do = self.network.jvp(t, embedded, pushed, context)
        real, (o_c, o_s), out = self._split_output(o)
        dreal, (do_c, do_s), dout = self._split_output(do)
        along = cosine * o_s - sine * o_c
        dalong = cosine * do_s - sine * do_c - (cosine * o_c + sine * o_s) * da
        radial = _dot(u, out)
        tangent = out - u * radial
        dtangent = dout - du * radial - u * (_dot(du, out) + _dot(u, dout))
        dvelocity = _dot(u, dp) * tangent + length * dtangent
        return self.geometry.join(real, along, length * tangent), self.geometry.join(dreal, dalong, dvelocity)

    def _split_output(self, o: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Split the network's output into that at real elements, at cosines and sines, and at unit vectors."""
        real, circles, spheres = self.geometry.parts
        parts = o.split((real, circles, circles, spheres), dim=-1)
        return parts[0], (parts[1], parts[2]), parts[3].unflatten(-1, (-1, 3))


def geometry_in(dynamics: nn.Module) -> Geometry | None:
    """Return the geometry of a field that is, or holds, one on circles and spheres.

    Args:
        dynamics: Vector field.

    Returns:
        The geometry; None of any other field.
    """
    return next((each.geometry for each in dynamics.modules() if isinstance(each, ManifoldDynamics)), None)


def _tangent(points: Tensor, out: Tensor) -> Tensor:
    """Return the part of vectors that is tangent to the spheres through points, times the points' lengths."""
    u = unit(points)
    return points.square().sum(-1, keepdim=True).sqrt() * (out - u * _dot(u, out))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
