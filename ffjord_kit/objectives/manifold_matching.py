r"""Flow matching on circles and spheres: along arcs and great circles in place of straight lines.

    x_t = the point at t of the shortest way from x_0 to x_1,        target dx_t/dt

Of an angle the base point is represented at x_1 - wrap(x_1 - x_0), so that the straight line of the angles is the
shorter arc. Points on a sphere move at constant speed on great circles. Couplings measure distances in the space
around: chords in place of arcs.

References:
    Chen and Lipman 2024, Flow matching on general geometries, https://arxiv.org/abs/2302.03660.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ffjord_kit.geometry import Geometry
from ffjord_kit.objectives.flow_matching import FlowMatching


@dataclass(frozen=True)
class ManifoldMatching(FlowMatching):
    """Regression of the velocity on the shortest ways from base to data.

    Args:
        time_density: Word of TIME_DENSITIES.
        coupling: Word of COUPLINGS.
        name: Word for logs and schedules.
        geometry: Which elements are angles, and which are points on a sphere.

    Example:
        >>> import torch
        >>> matching = ManifoldMatching(geometry=Geometry(1, circles=(0,)))
        >>> line = matching._line(torch.tensor([[3.0]]), torch.tensor([[-3.0]]), torch.tensor([[0.5]]))
        >>> [round(part.item(), 3) for part in line]  # across pi, which is at -pi too
        [-3.142, 0.283]

    References:
        Chen and Lipman 2024, https://arxiv.org/abs/2302.03660.
    """

    geometry: Geometry = field(default_factory=lambda: Geometry(1))

    def _line(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.geometry.geodesic(start, end, t)

    def _order(self, start: Tensor, end: Tensor, context: Tensor | None) -> Tensor:
        return super()._order(self.geometry.embed(start), self.geometry.embed(end), context)
