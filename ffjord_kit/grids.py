"""The times at which a fixed number of steps begin and end, equal or graded."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(asked: Tensor, low: float, high: float, steps: int, grading: float) -> Tensor:
    """The times asked for, (T,), to the bit, and between each two their share of the steps from low to high.

    Steps are equal in s, where with u = (t - low) / (high - low), and g the grading, u = 1 - (1 - s)^g for g >= 1 and
    u = s^(1 / g) for g < 1: they crowd towards the high end, and towards the low one.
    """
    if float(asked.min()) < low or float(asked.max()) > high:  # torchdiffeq turned a falling clock round
        return -grid(-asked, low, high, steps, grading)
    times = asked.cpu()
    places = _places((times - low) / (high - low), grading)
    inner = [
        torch.linspace(float(a), float(b), count(a, b, 1 / steps) + 1, dtype=times.dtype)[1:-1]
        for a, b in zip(places[:-1], places[1:], strict=True)
    ]
    between = [low + (high - low) * _shares(piece, grading) for piece in inner]
    parts = [part for piece, b in zip(between, times[1:], strict=True) for part in (piece, b.reshape(1))]
    return torch.cat([times[:1], *parts]).to(asked.device)


def _shares(places: Tensor, grading: float) -> Tensor:
    """u of s."""
    return 1 - (1 - places) ** grading if grading >= 1 else places ** (1 / grading)


def _places(shares: Tensor, grading: float) -> Tensor:
    """s of u."""
    return 1 - (1 - shares).clamp(min=0) ** (1 / grading) if grading >= 1 else shares.clamp(min=0) ** grading


def count(start: Tensor, end: Tensor, width: float) -> int:
    """How many steps of about a width make the way between two times, ()."""
    return max(1, round(float((end - start).abs()) / width))
