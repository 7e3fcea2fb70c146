r"""Grids of a fixed number of steps, equal or graded.

With u = (t - low) / (high - low), steps are equal in s, where for a grading g

    u = 1 - (1 - s)^g    for g >= 1: they crowd towards the high end
    u = s^(1 / g)        for g < 1: they crowd towards the low end
"""

from __future__ import annotations

import torch
from torch import Tensor


def graded_grid(times: Tensor, low: float, high: float, steps: int, grading: float) -> Tensor:
    """Return the ends of steps between times: each interval has its share of the steps from low to high.

    Args:
        times: Times that the grid must hold, to the bit, shape (T,), monotonic.
        low: Lower end of the whole interval.
        high: Upper end.
        steps: Steps over the whole interval.
        grading: Exponent g of the grading.

    Returns:
        Ends of the steps, in the order of `times`.
    """
    if float(times.min()) < low or float(times.max()) > high:  # torchdiffeq negates a falling clock
        return -graded_grid(-times, low, high, steps, grading)
    clock = times.cpu()
    places = _place((clock - low) / (high - low), grading)
    inner = [
        torch.linspace(float(a), float(b), step_count(a, b, 1 / steps) + 1, dtype=clock.dtype)[1:-1]
        for a, b in zip(places[:-1], places[1:], strict=True)
    ]
    between = [low + (high - low) * _share(piece, grading) for piece in inner]
    pieces = [part for piece, end in zip(between, clock[1:], strict=True) for part in (piece, end.reshape(1))]
    return torch.cat([clock[:1], *pieces]).to(times.device)


def step_count(start: Tensor, end: Tensor, width: float) -> int:
    """Return the number of steps of about a width between two times.

    Args:
        start: First time, ().
        end: Last time, ().
        width: Width of a step.

    Returns:
        Number of steps, at least 1.
    """
    return max(1, round(float((end - start).abs()) / width))


def _share(place: Tensor, grading: float) -> Tensor:
    """Return u of s."""
    return 1 - (1 - place) ** grading if grading >= 1 else place ** (1 / grading)


def _place(share: Tensor, grading: float) -> Tensor:
    """Return s of u."""
    return 1 - (1 - share).clamp(min=0) ** (1 / grading) if grading >= 1 else share.clamp(min=0) ** grading
