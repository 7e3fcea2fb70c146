r"""The loss around a model, and around the path of its training, on lines and planes through the space of the weights.

    line    L(w + a d)            plane    L(w + a d + b e)

A random direction d with **filter normalisation** has, in each filter, the length of the weights of that filter,
d_i <- d_i |w_i| / |d_i|; a filter is a row of a matrix (the weights into one neuron) or a kernel into one channel, and
a vector (a bias) is one filter. Then a network whose layers are scaled against each other, which computes the
same, gives the same picture. Without it a step of one length is large for small weights and small for large ones, and
pictures of two models cannot be compared.

The principal directions of a training run are those along which its weights moved most. |lowest / highest| eigenvalue
of the Hessian over a plane tells whether flat-looking parts hide a direction that bends down: near zero, the loss is
nearly convex there.

References:
    Li, Xu, Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets,
        https://arxiv.org/abs/1712.09913.
    Goodfellow, Vinyals & Saxe 2015 (lines between two models), https://arxiv.org/abs/1412.6544.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ffjord_kit.diagnostics.hessian import top_eigenvalues
from ffjord_kit.diagnostics.weight_loss import WeightLoss, weight_vector

NORMALIZATIONS = ("filter", "layer", "none")
RATIO_TOLERANCE = 1e-2  # of eigenvalues whose ratio is drawn


@dataclass(frozen=True)
class PrincipalPlane:
    """The plane in which the weights of a training run moved most.

    Attributes:
        directions: Two orthogonal directions of length one, shape (2, p).
        path: Coordinates of the weights in the plane, shape (T, 2); the last weights are the origin.
        shares: Share of the squared distances to the last weights along each direction, shape (2,).

    Example:
        >>> weights = torch.tensor([[4.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])  # along a line to (0, 0, 1)
        >>> plane = principal_plane(weights)
        >>> plane.shares.round(6).tolist(), np.abs(plane.path[:, 0]).round(6).tolist()
        ([1.0, 0.0], [4.0, 2.0, 0.0])
    """

    directions: Tensor
    path: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Curvature:
    """The outermost eigenvalues of the Hessian over a plane.

    Attributes:
        lowest: Lowest eigenvalue at each point, shape (A, B).
        highest: Highest eigenvalue, shape (A, B).
        products: Number of products with the Hessian that this took.

    Example:
        >>> net = nn.Linear(2, 1, bias=False).double()
        >>> loss = WeightLoss(net, lambda net: net.weight[0, 0] ** 2 - 0.5 * net.weight[0, 1] ** 2)  # a saddle
        >>> curvature_on_plane(loss, torch.eye(2, dtype=torch.float64), [[0.0], [0.0]]).ratio.round(6).tolist()
        [[0.5]]
    """

    lowest: np.ndarray
    highest: np.ndarray
    products: int

    @property
    def ratio(self) -> np.ndarray:
        """|lowest / highest|, shape (A, B): near zero where the loss is nearly convex."""
        return np.abs(self.lowest / self.highest)


class WeightHistory:
    """A record of the weights while a model trains, for `principal_plane`.

    Pass it as `on_step` to `fit` or `fit_flow`.

    Args:
        model: Model in training.
        every: Number of steps between two entries.

    Raises:
        ValueError: If the model has no parameters, or `every` is not positive.

    Example:
        >>> from ffjord_kit import CNF, ConcatDynamics, Flow, FlowMatching, Phase, fit_flow
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))])
        >>> history = WeightHistory(flow, every=2)
        >>> _ = fit_flow(flow, torch.randn(64, 2), schedule=[Phase(FlowMatching(), steps=6)], on_step=history)
        >>> history.weights.shape[0]  # the start, and three more
        4
    """

    def __init__(self, model: nn.Module, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, a number of steps; got {every}")
        self.model, self.every, self.calls = model, every, 0
        self.entries = [weight_vector(model)]

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Keep the weights, if it is time.

        Args:
            record: Record of the step.
        """
        self.calls += 1
        if self.calls % self.every == 0:
            self.entries.append(weight_vector(self.model))

    @property
    def weights(self) -> Tensor:
        """Weights from the start on, shape (T, p)."""
        return torch.stack(self.entries)


def random_direction(loss: WeightLoss, seed: int = 0, *, normalization: str = "filter") -> Tensor:
    """Return a random direction from the weights of a loss.

    Args:
        loss: Loss of p weights.
        seed: Seed of the direction.
        normalization: "filter" or "layer" for the length of the weights in each of them, "none" for their length as a
            whole.

    Returns:
        The direction, shape (p,).

    Raises:
        ValueError: If the normalisation is unknown, or all weights are zero.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0], [-0.1]]))
        >>> random_direction(WeightLoss(net, lambda net: net.weight.sum())).abs().tolist()
        [3.0, 0.10000000149011612]
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
    if not bool(loss.weights.any()):
        raise ValueError("expected weights that are not all zero, whose length a direction can have; got zeros")
    noise = torch.randn(loss.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise.to(loss.weights)
    if normalization == "none":
        return _with_length_of(noise, loss.weights)
    sizes = [shape.numel() for shape in loss.shapes]
    parts = zip(loss.shapes, noise.split(sizes), loss.weights.split(sizes), strict=True)
    filters = [shape[0] if normalization == "filter" and len(shape) > 1 else 1 for shape in loss.shapes]
    return torch.cat([
        _with_length_of(d.reshape(count, -1), w.reshape(count, -1)).flatten()
        for count, (_, d, w) in zip(filters, parts, strict=True)
    ])  # fmt: skip


def loss_along(loss: WeightLoss, direction: Tensor, steps: ArrayLike) -> np.ndarray:
    """Return the loss along a line, e.g. to another model: direction = other.weights - loss.weights.

    Args:
        loss: Loss; the line goes through its weights.
        direction: Direction d, shape (p,).
        steps: Steps a along it, shape (A,).

    Returns:
        L(w + a d), shape (A,); NaN where a solve cannot go on.

    Raises:
        ValueError: If the direction is not one for these weights.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(net.weight)
        >>> loss_along(WeightLoss(net, lambda net: net.weight.square().sum()), torch.ones(1), [-1, 0, 1]).tolist()
        [0.0, 1.0, 4.0]
    """
    _check_directions(loss, direction[None])
    return np.array([loss.value(loss.weights + step * direction) for step in np.asarray(steps, float).tolist()])


def loss_on_plane(loss: WeightLoss, directions: Tensor, steps: Sequence[ArrayLike]) -> np.ndarray:
    """Return the loss on a plane.

    Args:
        loss: Loss; the plane goes through its weights.
        directions: Directions d and e, shape (2, p).
        steps: Steps a along d, (A,), and b along e, (B,).

    Returns:
        L(w + a d + b e), shape (A, B); NaN where a solve cannot go on.

    Raises:
        ValueError: If the directions are not two for these weights.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> loss = WeightLoss(net, lambda net: net.weight.square().sum())
        >>> loss_on_plane(loss, torch.eye(2), [[0, 1], [0, 2]]).tolist()
        [[0.0, 4.0], [1.0, 5.0]]
    """
    points = _points(loss, directions, steps)
    return np.array([[loss.value(point) for point in row] for row in points])


def curvature_on_plane(loss: WeightLoss, directions: Tensor, steps: Sequence[ArrayLike]) -> Curvature:
    """Return the lowest and the highest eigenvalue of the Hessian on a plane, to a relative 1e-2.

    Args:
        loss: Loss of two weights or more; the plane goes through its weights.
        directions: Directions d and e, shape (2, p).
        steps: Steps a along d, (A,), and b along e, (B,).

    Returns:
        The eigenvalues at w + a d + b e.

    Raises:
        ValueError: If the directions are not two for these weights, or the loss is not twice differentiable.

    Example:
        >>> net = nn.Linear(2, 1, bias=False).double()
        >>> loss = WeightLoss(net, lambda net: net.weight[0, 0] ** 2 + 3 * net.weight[0, 1] ** 2)
        >>> found = curvature_on_plane(loss, torch.eye(2, dtype=torch.float64), [[0.0], [0.0, 1.0]])
        >>> found.lowest.round(6).tolist(), found.highest.round(6).tolist()
        ([[2.0, 2.0]], [[6.0, 6.0]])
    """
    points = _points(loss, directions, steps)
    loss.check_smooth()
    found = [
        [top_eigenvalues(loss.at(p), 2, end="both", tolerance=RATIO_TOLERANCE, check=False) for p in row]
        for row in points
    ]
    lowest, highest = (np.array([[each.values[i] for each in row] for row in found]) for i in (0, 1))
    return Curvature(lowest, highest, sum(each.products for row in found for each in row))


def principal_plane(weights: Tensor) -> PrincipalPlane:
    """Return the plane through the last weights of a training run in which they moved most.

    Args:
        weights: Weights in the order of training, e.g. of a `WeightHistory`, shape (T, p), T at least 3.

    Returns:
        The plane.

    Raises:
        ValueError: If there are fewer than three, or they did not move.

    Example:
        >>> weights = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
        >>> principal_plane(weights).shares.round(2).tolist()  # 16 and 9 of 25
        [0.64, 0.36]
    """
    if weights.dim() != 2 or len(weights) < 3 or weights.shape[1] < 2:
        raise ValueError(f"expected the weights of three steps or more, shape (T, p); got {tuple(weights.shape)}")
    moved = (weights - weights[-1]).double()
    if not bool(moved.any()):
        raise ValueError("expected weights that moved in training; got the same at each step")
    _, sizes, directions = torch.linalg.svd(moved, full_matrices=False)
    shares = sizes.square() / sizes.square().sum()
    return PrincipalPlane(
        directions[:2].to(weights), (moved @ directions[:2].T).cpu().numpy(), shares[:2].cpu().numpy()
    )  # fmt: skip


def _with_length_of(direction: Tensor, weights: Tensor) -> Tensor:
    """Give each row of a direction the length of that row of the weights."""
    return direction * (weights.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True))


def _points(loss: WeightLoss, directions: Tensor, steps: Sequence[ArrayLike]) -> list[list[Tensor]]:
    """Return the weights at each point of a plane, A lists of B."""
    _check_directions(loss, directions)
    if len(directions) != 2 or len(steps) != 2:
        raise ValueError(f"a plane takes two directions and two lists of steps; got {len(directions)}, {len(steps)}")
    first, second = (np.asarray(each, float).tolist() for each in steps)
    return [[loss.weights + a * directions[0] + b * directions[1] for b in second] for a in first]


def _check_directions(loss: WeightLoss, directions: Tensor) -> None:
    if directions.shape[1:] != loss.weights.shape:
        raise ValueError(f"expected directions of {loss.size} weights; got shape {tuple(directions.shape)}")
    if not bool(directions.isfinite().all()) or not bool(directions.any(dim=1).all()):
        raise ValueError("expected directions that are finite and not zero; got others")
