"""The shape of a loss around a fit, in one reading: is it a minimum, and how steep are its walls?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ffjord_kit.diagnostics.findings import Finding, grade
from ffjord_kit.diagnostics.hessian import SpectralDensity, spectral_density, top_eigenvalues
from ffjord_kit.diagnostics.landscape import loss_along, loss_on_plane, random_direction
from ffjord_kit.diagnostics.weight_loss import WeightLoss

REACH, POINTS, LINE_POINTS = 1.0, 9, 21  # of the plane, in lengths of the filters; points along a side, and a line
SETTLED, NEARLY = 0.05, 0.5  # |lowest / largest| eigenvalue of a good and of a fair minimum
TOLERANCE, LANCZOS_STEPS, VECTORS = 1e-2, 20, 4


@dataclass(frozen=True, eq=False)
class Shape:
    """The loss around a fit.

    Attributes:
        steps: Steps along both random directions, in lengths of the filters, shape (A,).
        plane: Loss on their plane, shape (A, A).
        along: Steps along the eigenvector of the largest eigenvalue, in the length of the weights, shape (B,).
        lines: Loss along it by name, each (B,).
        lowest: Lowest eigenvalue of the Hessian.
        largest: Largest eigenvalue.
        density: Distribution of the eigenvalues.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False).double()
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> shape = loss_shape(WeightLoss(net, lambda net: net.weight.square().sum()))
        >>> shape.plane.shape, float(shape.plane[4, 4])  # the loss at the fit itself stands in the middle
        ((9, 9), 2.0)
    """

    steps: np.ndarray
    plane: np.ndarray
    along: np.ndarray
    lines: dict[str, np.ndarray]
    lowest: float
    largest: float
    density: SpectralDensity

    @property
    def finding(self) -> Finding:
        """The shape as a line of a diagnosis."""
        share = max(0.0, -self.lowest) / max(self.largest, np.finfo(float).tiny)
        rise = float(np.nanmin(self.plane[[0, -1]])) - float(self.plane[len(self.steps) // 2, len(self.steps) // 2])
        trace, error = self.density.trace
        measured = (
            f"eigenvalues of the Hessian from {self.lowest:.3g} to {self.largest:.3g}, their sum {trace:.3g} ± "
            f"{error:.2g}; random steps of the weights' own length raise the loss by {rise:.3g} or more"
        )
        advice = (
            f"the loss still falls along directions of negative curvature ({share:.0%} of the largest): train longer"
        )
        return Finding("shape of the loss", grade(share, good=SETTLED, fair=NEARLY), measured, advice)


def loss_shape(loss: WeightLoss, others: dict[str, WeightLoss] | None = None, *, seed: int = 0) -> Shape:
    """Measure the shape of a loss around its weights.

    Args:
        loss: Loss on rows of the fit, of two weights or more.
        others: Further losses of the same model by name, e.g. on held-out rows, for the lines.
        seed: Seed of the directions.

    Returns:
        The shape.

    Raises:
        ValueError: If the loss is not twice differentiable.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> net = torch.nn.Linear(2, 1, bias=False).double()
        >>> shape = loss_shape(WeightLoss(net, lambda net: net(points).square().sum() / 2))
        >>> round(shape.lowest, 6), round(shape.largest, 6), shape.finding.verdict
        (1.0, 4.0, 'good')
    """
    loss.check_smooth(seed)
    ends = top_eigenvalues(loss, 2, end="both", tolerance=TOLERANCE, seed=seed, check=False)
    steps = np.linspace(-REACH, REACH, POINTS)
    directions = torch.stack([random_direction(loss, seed + i) for i in range(2)])
    steepest, along = ends.vectors[-1] * loss.weights.norm(), np.linspace(-1, 1, LINE_POINTS) / 10
    named = {"rows of the fit": loss, **(others or {})}
    return Shape(
        steps, loss_on_plane(loss, directions, (steps, steps)), along,
        {name: loss_along(each, steepest, along) for name, each in named.items()},
        float(ends.values[0]), float(ends.values[-1]),
        spectral_density(loss, steps=LANCZOS_STEPS, vectors=VECTORS, seed=seed, check=False),
    )  # fmt: skip
