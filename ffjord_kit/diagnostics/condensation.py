r"""Condensation: neurons of a layer that point the same way do the work of one.

All that feeds a neuron j, its weights and its bias, is a vector w_j; all that reads it is v_j. Its orientation is
w_j / |w_j|, its amplitude |w_j| |v_j|. Where two orientations agree, the neurons compute the same function but for its
scale, and the layer has fewer effective neurons than its width: as many as groups at a cosine of at least a threshold.

A network of two layers, f(x) = sum_j a_j s(w_j^T x) / alpha with a_j ~ N(0, b1^2) and w_j ~ N(0, b2^2), condenses or
not by its initial scale. With m neurons

    gamma = -log(b1 b2 / alpha) / log m,    gamma' = -log(b1 / b2) / log m,

as m grows, the weights hardly move where gamma < 1 or gamma' > gamma - 1 (linear), and change their orientation by
orders of magnitude where gamma > 1 and gamma' < gamma - 1 (condensed); between the two they move by their own size
(critical).

References:
    Luo, Xu, Ma & Zhang 2021, Phase diagram for two-layer ReLU neural networks, https://arxiv.org/abs/2007.07497.
    Zhou et al. 2022, Towards understanding the condensation of neural networks, https://arxiv.org/abs/2105.11686.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from ffjord_kit.nn.neurons import hidden_neurons

THRESHOLD = 0.95  # least cosine within a group, on average
SILENT = 1e-3  # amplitude of a neuron that does nothing, relative to the largest
LINEAR, CRITICAL, CONDENSED = PHASES = ("linear", "critical", "condensed")


@dataclass(frozen=True)
class Condensation:
    """Orientations and amplitudes of the neurons of a layer.

    Attributes:
        name: Name of the layer.
        angles: Angle of each orientation in the plane of the two main directions, radians, shape (m,); for a single
            input with a bias that of (weight, bias) itself.
        amplitudes: Amplitude of each neuron, shape (m,).
        similarity: Cosines between orientations, shape (m, m).
        groups: Number of each neuron's group; -1 for a silent one, shape (m,).
        order: Neurons in the order in which like ones are neighbours, shape (m,).

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])  # of three neurons, two of one orientation
        >>> layer = layer_condensation(weights)
        >>> layer.width, layer.effective, layer.amplitudes.tolist()
        (3, 2, [1.0, 2.0, 3.0])
    """

    name: str
    angles: Tensor
    amplitudes: Tensor
    similarity: Tensor
    groups: Tensor
    order: Tensor

    @property
    def width(self) -> int:
        """Number of neurons m."""
        return len(self.groups)

    @property
    def effective(self) -> int:
        """Number of groups of like neurons."""
        return int(self.groups.max()) + 1

    @property
    def ordered_similarity(self) -> Tensor:
        """Cosines between orientations, like neurons side by side, shape (m, m)."""
        return self.similarity[self.order][:, self.order]


def network_condensation(network: nn.Module, *, threshold: float = THRESHOLD, odd: bool = False) -> list[Condensation]:
    """Measure how far the neurons of each hidden layer have condensed.

    Args:
        network: Network, or a module that contains such, as `hidden_neurons` takes them.
        threshold: Least cosine of neurons of a group, on average.
        odd: Whether neurons of opposite orientations are like each other, as those of an odd activation are.

    Returns:
        A measurement of each hidden layer.

    Raises:
        ValueError: If there is no hidden layer, or the threshold is not in (0, 1].

    Example:
        >>> chain = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
        >>> _ = nn.init.ones_(chain[0].weight), nn.init.zeros_(chain[0].bias)
        >>> [(layer.width, layer.effective) for layer in network_condensation(chain)]
        [(6, 1)]
    """
    found = hidden_neurons(network)
    if not found:
        raise ValueError(
            f"expected a fully connected network of a hidden layer or more; got {type(network).__name__}: pass the "
            "weights of a layer to layer_condensation"
        )
    return [
        layer_condensation(
            neurons.rows(network), neurons.columns(network), name=neurons.name, threshold=threshold, odd=odd
        )
        for neurons in found
    ]


def layer_condensation(
    rows: Tensor, columns: Tensor | None = None, *, name: str = "", threshold: float = THRESHOLD, odd: bool = False
) -> Condensation:
    """Measure how far the neurons of a layer have condensed.

    Args:
        rows: All that feeds each neuron, weights and bias, shape (m, ...).
        columns: All that reads it, shape (k, m); amplitudes are those of the rows alone if None.
        name: Name of the layer.
        threshold: Least cosine of neurons of a group, on average.
        odd: Whether neurons of opposite orientations are like each other.

    Returns:
        The measurement.

    Raises:
        ValueError: If the threshold is not in (0, 1].

    Example:
        >>> opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> layer_condensation(opposite).effective, layer_condensation(opposite, odd=True).effective
        (2, 1)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], a cosine; got {threshold}")
    w = rows.detach().double().flatten(1).cpu()
    lengths = w.norm(dim=1)
    amplitudes = lengths if columns is None else lengths * columns.detach().double().norm(dim=0).cpu()
    orientations = w / lengths.clamp(min=torch.finfo(w.dtype).tiny)[:, None]
    similarity = (orientations @ orientations.T).clamp(-1, 1)
    loud = amplitudes > SILENT * amplitudes.max()
    likeness = similarity.abs() if odd else similarity
    groups, order = _grouped(likeness, loud, threshold)
    return Condensation(name, _angles(w), amplitudes, similarity, groups, order)


def initial_scale_phase(
    output_scale: float, input_scale: float, width: int, *, alpha: float = 1.0
) -> tuple[str, float, float]:
    """Return the phase of a two-layer network of a large width, by its initial scale.

    Args:
        output_scale: Deviation b1 of the output weights.
        input_scale: Deviation b2 of the input weights.
        width: Number of neurons m.
        alpha: Divisor of the output.

    Returns:
        A word of PHASES, gamma and gamma'.

    Raises:
        ValueError: If a scale is not positive, or the width less than 2.

    Example:
        >>> initial_scale_phase(1e-3, 1e-3, 100)
        ('condensed', 3.0, 0.0)
    """
    if not (min(output_scale, input_scale, alpha) > 0 and width > 1):
        raise ValueError(
            f"expected positive scales and two neurons or more; got {output_scale}, {input_scale}, alpha {alpha} and "
            f"{width} neurons"
        )
    gamma = -math.log(output_scale * input_scale / alpha) / math.log(width)
    tilt = -math.log(output_scale / input_scale) / math.log(width)
    edge = min(gamma - 1, gamma - 1 - tilt)
    return (
        LINEAR if edge < -1e-9 else CRITICAL if edge <= 1e-9 else CONDENSED,
        round(gamma, 12) + 0.0,
        round(tilt, 12) + 0.0,
    )


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return the distance that weights have moved, relative to where they began.

    Args:
        before: Weights before training, of any shape.
        after: Weights after it.

    Returns:
        |after - before| / |before|.

    Example:
        >>> relative_change(torch.ones(4), 3 * torch.ones(4))
        2.0
    """
    return float((after - before).norm() / before.norm())


def _grouped(likeness: Tensor, loud: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the group of each neuron, -1 for silent ones, and an order that puts like ones side by side.

    Two groups are joined while the mean cosine between them is at least the threshold.
    """
    groups = torch.full((len(loud),), -1)
    numbers = loud.nonzero()[:, 0]
    silent = (~loud).nonzero()[:, 0]
    if len(numbers) < 2:
        groups[numbers] = torch.arange(len(numbers))
        return groups, torch.cat([numbers, silent])
    distances = (1 - likeness[numbers][:, numbers]).clamp(min=0).fill_diagonal_(0)
    tree = linkage(squareform(distances.numpy(), checks=False), "average", optimal_ordering=len(numbers) <= 256)
    labels = fcluster(tree, 1 - threshold + 1e-12, "distance")
    groups[numbers] = torch.as_tensor(np.unique(labels, return_inverse=True)[1])
    return groups, torch.cat([numbers[torch.as_tensor(leaves_list(tree).astype(np.int64))], silent])


def _angles(w: Tensor) -> Tensor:
    """Return the angles of vectors (m, k) in the plane of their two main directions."""
    plane = w
    if w.shape[1] != 2:
        plane = w @ torch.linalg.svd(w, full_matrices=False).Vh[:2].T
    second = plane[:, 1] if plane.shape[1] > 1 else torch.zeros(len(w), dtype=w.dtype)
    return torch.atan2(second, plane[:, 0])
