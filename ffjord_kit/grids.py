"""The times at which a fixed number of steps begin and end, equal or graded."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(asked: Tensor, low: float, high: float, steps: int, grading: float) -> Tensor:
    """The times asked for, (T,), to the bit, and between each two their share of the steps from low to high.

    Steps are equal in s = 1 - ((high - t) / (high - low))^(1 / grading).
    """
    if float(asked.min()) < low or float(asked.max()) > high:  # torchdiffeq turned a falling clock round
        return -grid(-asked, low, high, steps, grading)
    times = asked.cpu()
    places = 1 - ((high - times).clamp(min=0) / (high - low)) ** (1 / grading)
    inner = [
        torch.linspace(float(a), float(b), count(a, b, 1 / steps) + 1, dtype=times.dtype)[1:-1]
        for a, b in zip(places[:-1], places[1:], strict=True)
    ]
    between = [high - (high - low) * (1 - piece) ** grading for piece in inner]
    parts = [part for piece, b in zip(between, times[1:], strict=True) for part in (piece, b.reshape(1))]
    return torch.cat([times[:1], *parts]).to(asked.device)


def count(start: Tensor, end: Tensor, width: float) -> int:
    """How many steps of about a width make the way between two times, ()."""
    return max(1, round(float((end - start).abs()) / width))
