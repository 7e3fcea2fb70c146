r"""Weights of rows, w_1 .. w_n: means, the effective number of rows, and fits to weighted rows.

    mean of v under w        sum w v / sum w
    its standard error       sqrt(sum w^2 (v - mean)^2) / |sum w|
    effective number         (sum w)^2 / sum w^2                            (Kish 1965)

Rows of weight w count as w copies; n rows of equal weight have the effective number n. Negative weights, as simulations
of high-energy physics give them, take density away. Location, scale and quantiles exist of positive weights alone: for
those, which only choose the units in which a flow works, the sizes |w| stand in.

References:
    Kish 1965, Survey sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_number(weight: Tensor) -> float:
    """Return the effective number of rows, (sum w)^2 / sum w^2.

    Args:
        weight: Weights, not all zero, shape (n,).

    Returns:
        The number, at most n.

    Example:
        >>> effective_number(torch.tensor([1.0, 1.0, 0.0])), effective_number(torch.tensor([3.0, 1.0]))
        (2.0, 1.6)
    """
    double = weight.double()
    return float(double.sum().square() / double.square().sum())


def mean_and_error(values: Tensor, weight: Tensor | None = None) -> tuple[float, float]:
    """Return the mean of rows' values, and its standard error.

    Args:
        values: Values, shape (n,).
        weight: Weights of positive sum, shape (n,), or None.

    Returns:
        Mean and standard error.

    Example:
        >>> mean_and_error(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))[0]
        1.5
    """
    if weight is None:
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))
    weight, values = weight.double(), values.double()
    total = weight.sum()
    mean = (weight * values).sum() / total
    return float(mean), float((weight * (values - mean)).norm() / total.abs())


def mean_and_deviation(x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each element, under the sizes of the weights.

    Args:
        x: Rows, shape (n, *event).
        weight: Weights, shape (n,), or None.

    Returns:
        Means and deviations, each of shape (*event).

    Example:
        >>> mean, deviation = mean_and_deviation(torch.tensor([[0.0], [2.0]]), torch.tensor([3.0, 1.0]))
        >>> mean.tolist(), round(deviation.item(), 4)
        ([0.5], 0.866)
    """
    if weight is None:
        return x.mean(0), x.std(0, correction=0)
    share = _shares(weight).to(x).reshape(-1, *[1] * (x.dim() - 1))
    mean = (share * x).sum(0)
    return mean, (share * (x - mean).square()).sum(0).sqrt()


def resampled(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return rows drawn in proportion to the sizes of their weights, as many as these are worth.

    Draws are systematic, at equal distances along the sum of the weights: the same rows for the same weights. Equal
    weights give the rows themselves.

    Args:
        x: Rows, shape (n, *event).
        weight: Weights, shape (n,), or None.

    Returns:
        Rows, shape (m, *event), m the effective number of the sizes, at least 2.

    Example:
        >>> resampled(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 0.0]))
        tensor([1., 2.])
    """
    if weight is None:
        return x
    count = max(2, round(effective_number(weight.abs())))
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    rows = torch.searchsorted(_shares(weight).cpu().cumsum(0), places).clamp(max=len(x) - 1)
    return x[rows.to(x.device)]


def _shares(weight: Tensor) -> Tensor:
    """Return the sizes of the weights as shares of their sum, in float64."""
    sizes = weight.double().abs()
    return sizes / sizes.sum()
