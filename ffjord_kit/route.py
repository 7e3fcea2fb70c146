"""Routes through a flow's layers: which to pass, which way and how far, between two times.

Time runs from 0 at the base to 1 at the data; the continuous layers share it in proportion to their end times, and
exact layers take none. A state "at t in the units of the data" has passed every exact layer, and the continuous ones
only up to t. Layers are listed from data to base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ffjord_kit.cnf import CNF
from ffjord_kit.layers import Layer


class Leg(NamedTuple):
    """One layer to pass: an exact one whole (times None), or a CNF between two readings of its own clock."""

    layer: Layer
    to_base: bool
    times: tuple[float, float] | None

    def map(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The exact layer's map and log-determinant, in the leg's direction."""
        return self.layer.to_base(x, context) if self.to_base else self.layer.to_data(x, context)


class Stop(NamedTuple):
    """A place on the way: the CNF, the reading of its clock, and the clock's rate in the flow's time."""

    layer: CNF
    clock: float
    rate: float


def upward(legs: Sequence[Leg]) -> list[Leg]:
    """The same legs the other way round."""
    return [Leg(leg.layer, not leg.to_base, leg.times and leg.times[::-1]) for leg in reversed(legs)]


def to_base_legs(layers: Sequence[Layer], time: float = 1.0) -> list[Leg]:
    """From the state at `time`, in the units of the data, to the base."""
    return list(_descent(layers, 0.0, time, through=True))


def between(layers: Sequence[Layer], start: float, end: float) -> list[Leg]:
    """From the state at `start` to the state at `end`, both in the units of the data."""
    legs = descent(layers, min(start, end), max(start, end))
    exact = [leg for leg in legs if leg.times is None]
    return legs + upward(exact) if start > end else exact + upward(legs)


def descent(layers: Sequence[Layer], low: float, high: float) -> list[Leg]:
    """From the state at `high` down into the CNF whose time holds `low`, and no further."""
    return list(_descent(layers, low, high, through=False))


def layer_at(layers: Sequence[Layer], time: float) -> Stop:
    """The CNF whose time holds `time`. Raises ValueError where the flow has no continuous layer."""
    for layer, start, end in _spans(layers):
        if isinstance(layer, CNF) and start <= time:
            return Stop(layer, _clock(layer, start, end, time), layer.end_time / (end - start))
    raise ValueError("this flow has no continuous layer")


def _descent(layers: Sequence[Layer], low: float, high: float, *, through: bool) -> Iterator[Leg]:
    for layer, start, end in _spans(layers):
        if not isinstance(layer, CNF):
            yield Leg(layer, True, None)
            continue
        times = _clock(layer, start, end, min(high, end)), _clock(layer, start, end, max(low, start))
        if times[0] > times[1]:
            yield Leg(layer, True, times)
        if start <= low and not through:
            return


def _clock(layer: CNF, start: float, end: float, time: float) -> float:
    return layer.end_time if time >= end else layer.end_time * (time - start) / (end - start)


def _spans(layers: Sequence[Layer]) -> list[tuple[Layer, float, float]]:
    """Each layer with the time that it covers; exact layers cover an instant."""
    lengths = [layer.end_time if isinstance(layer, CNF) else 0.0 for layer in layers]
    total = sum(reversed(lengths)) or 1.0
    edges = [sum(reversed(lengths[i:])) / total for i in range(len(layers) + 1)]
    return [(layer, edges[i + 1], edges[i]) for i, layer in enumerate(layers)]
