r"""Geometry of an event: which of its elements are angles, which triples are points on a sphere; the rest are real.

Circle. An angle is kept on the line, x and x + 2 pi being the same point. A map of the line with F(x + 2 pi) =
F(x) + 2 pi is a map of the circle, and its slope is that of the circle's. The flow of a field of period 2 pi is of this
kind, and so is each explicit step of it. So states may wander around the circle as they are.

Sphere. A point is kept in R^3 with its length r, x = r u. All maps F keep the length and are of degree 1, F(r u) =
r F(u). In an orthonormal frame that begins with the radial direction the Jacobian of such a map is

    dF(x) u = F(u)        (degree 1: the radial direction goes to the radial one, by the factor 1),
    dF(x) v ortho. F(u)   for tangents v (the length is kept),

so it is the number 1 beside the Jacobian of the map of the sphere: the determinant in R^3 is that of the sphere. A
field V(x) = r P(u) g(t, u), P(u) = 1 - u u^T, is tangent and of degree 1, so that its flow is such a map, and

    tr DV = divergence on the sphere + u . DV u,    DV u = V(u) (Euler),    u . V(u) = 0:

the trace in R^3 is the divergence on the sphere. (Without the factor r, trace and determinant would be these too, but
the Jacobian of a step would shear the radial direction.) An explicit step y = x + h V leaves the sphere by h^2;
followed by a rescaling to the length |x| it is of degree 1 and keeps the length again. All of this holds for each
sphere beside other elements, as these only shear along tangents.

A step whose Jacobian has a positive definite symmetric part everywhere is injective, in R^3 as on the line, and so on
the sphere and the circle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEAST = 1e-12  # length of a tangent that has a direction


@dataclass(frozen=True)
class Geometry:
    """Which elements of an event are angles, and which triples are points on a sphere.

    Args:
        size: Number of elements.
        circles: Elements that are angles, in radians.
        spheres: Triples of elements that are points on the unit sphere.

    Example:
        >>> geometry = Geometry(3, circles=(1,))
        >>> geometry.real, geometry.embedded_size
        ((0, 2), 4)
        >>> geometry.embed(torch.zeros(1, 3)).tolist()
        [[0.0, 0.0, 1.0, 0.0]]
    """

    size: int
    circles: tuple[int, ...] = ()
    spheres: tuple[tuple[int, int, int], ...] = ()

    @cached_property
    def real(self) -> tuple[int, ...]:
        """Elements that are neither."""
        taken = {*self.circles, *(i for triple in self.spheres for i in triple)}
        return tuple(i for i in range(self.size) if i not in taken)

    @property
    def is_flat(self) -> bool:
        """Whether all elements are real."""
        return not (self.circles or self.spheres)

    @property
    def is_one_sphere(self) -> bool:
        """Whether an event is a point on one sphere, and nothing else."""
        return self.size == 3 and len(self.spheres) == 1

    @property
    def embedded_size(self) -> int:
        """Number of elements of an embedded event: cosine and sine in place of each angle."""
        return self.size + len(self.circles)

    @property
    def parts(self) -> tuple[int, int, int]:
        """Number of real elements, of angles and of elements of spheres."""
        return len(self.real), len(self.circles), 3 * len(self.spheres)

    @cached_property
    def order(self) -> Tensor:
        """Elements in the order real, angles, spheres."""
        return torch.tensor([*self.real, *self.circles, *(i for triple in self.spheres for i in triple)])

    @cached_property
    def inverse(self) -> Tensor:
        """Where the elements are in `order`."""
        return self.order.argsort()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split events.

        Args:
            x: Events, shape (..., size).

        Returns:
            Real elements (..., r), angles (..., c) and points (..., s, 3).
        """
        real, angles, points = x.index_select(-1, self.order.to(x.device)).split(self.parts, dim=-1)
        return real, angles, points.unflatten(-1, (-1, 3))

    def join(self, real: Tensor, angles: Tensor, points: Tensor) -> Tensor:
        """Join what `split` returned.

        Args:
            real: Real elements, shape (..., r).
            angles: Angles, shape (..., c).
            points: Points, shape (..., s, 3).

        Returns:
            Events, shape (..., size).
        """
        parts = torch.cat([real, angles, points.flatten(-2)], dim=-1)
        return parts.index_select(-1, self.inverse.to(parts.device))

    def embed(self, x: Tensor) -> Tensor:
        """Return events in a space where near points are near, and angles have no end.

        Args:
            x: Events, shape (..., size).

        Returns:
            Real elements, cosines, sines and unit vectors, shape (..., embedded_size).
        """
        real, angles, points = self.split(x)
        return torch.cat([real, angles.cos(), angles.sin(), unit(points).flatten(-2)], dim=-1)

    def project(self, x: Tensor) -> Tensor:
        """Bring events into their standard form: angles within half a turn of 0, points at length 1.

        Args:
            x: Events, shape (..., size).

        Returns:
            Events, shape (..., size).
        """
        real, angles, points = self.split(x)
        return self.join(real, wrap(angles), unit(points))

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return points on the shortest ways, straight lines, arcs and great circles, and their velocities.

        Args:
            start: Events at t = 0, shape (batch, size).
            end: Events at t = 1, shape (batch, size).
            t: Times, shape (batch, 1).

        Returns:
            Events at t, the angles on the line through the end's, and velocities, each of shape (batch, size).
        """
        (a, alpha, p), (b, beta, q) = self.split(start), self.split(end)
        turn = wrap(beta - alpha)
        point, velocity = great_circle(p, q, t[..., None])
        state = self.join(torch.lerp(a, b, t), beta - (1 - t) * turn, point)
        return state, self.join(b - a, turn, velocity)

    def rescale(self, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the points of events after a step to the lengths that they had before it.

        Args:
            x: Events before the step, shape (batch, size).
            y: Events after it, shape (batch, size).
            dx: Tangents before it, shape (probe, batch, size).
            dy: Their images, shape (probe, batch, size).

        Returns:
            Events after the step and the rescaling, and the images of the tangents.
        """
        if not self.spheres:
            return y, dy
        (_, _, p), (real, angles, q) = self.split(x), self.split(y)
        (_, _, dp), (dreal, dangles, dq) = self.split(dx), self.split(dy)
        before, after = _length(p), _length(q)
        factor = before / after
        change = _dot(p, dp) / (before * after) - factor * _dot(q, dq) / after.square()
        return self.join(real, angles, factor * q), self.join(dreal, dangles, factor * dq + change * q)


def wrap(angles: Tensor) -> Tensor:
    """Return the same angles within half a turn of 0.

    Args:
        angles: Angles in radians.

    Returns:
        Angles in [-pi, pi).

    Example:
        >>> print(f"{wrap(torch.tensor([4.0])).item():.4f}")
        -2.2832
    """
    return angles - 2 * math.pi * torch.floor(angles / (2 * math.pi) + 0.5)


def unit(points: Tensor) -> Tensor:
    """Return the directions of points.

    Args:
        points: Points, shape (..., 3).

    Returns:
        Unit vectors, shape (..., 3).

    Example:
        >>> unit(torch.tensor([0.0, 0.0, 5.0])).tolist()
        [0.0, 0.0, 1.0]
    """
    return points / _length(points)


def great_circle(start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return points on great circles, and their velocities.

    Args:
        start: Unit vectors at t = 0, shape (..., 3).
        end: Unit vectors at t = 1, shape (..., 3); opposite ones have no shortest way, and take any.
        t: Times, which broadcast.

    Returns:
        Points and velocities, each of shape (..., 3).

    Example:
        >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> great_circle(north, east, torch.tensor(0.5))[0]  # half way
        tensor([0.7071, 0.0000, 0.7071])
    """
    cosine = _dot(start, end)
    across = end - cosine * start
    sine = across.square().sum(-1, keepdim=True).sqrt()
    angle = torch.atan2(sine, cosine)
    across = across / sine.clamp(min=LEAST)  # a unit tangent at the start
    turned = angle * t
    return turned.cos() * start + turned.sin() * across, angle * (turned.cos() * across - turned.sin() * start)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _length(points: Tensor) -> Tensor:
    return points.square().sum(-1, keepdim=True).sqrt()
