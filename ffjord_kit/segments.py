"""Segments of a path through a flow's transforms: which to pass, which way and how far, between two times.

Time runs from 0 at the base to 1 at the data; continuous transforms share it in proportion to their durations, and
exact ones take none. A state at time t has passed every exact transform, and the continuous ones only up to t.
Transforms are listed from data to base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.ode import RowSteps, SolverStats
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF, Path, SolveOptions


class Segment(NamedTuple):
    """One transform to pass: an exact one whole, or a continuous one between two readings of its own clock.

    Attributes:
        transform: The transform.
        to_base: Direction.
        times: Readings of the clock at the start and the end; None for an exact transform.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> cnf = CNF(ConcatDynamics((2,)), (2,), end_time=2.0)
        >>> [segment.times for segment in path_to_base([cnf], 0.5)]
        [(1.0, 0.0)]
    """

    transform: Transform
    to_base: bool
    times: tuple[float, float] | None

    def apply(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the exact transform in the segment's direction.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Mapped events, and log|det|, shape (batch,).
        """
        return self.transform.to_base(x, context) if self.to_base else self.transform.to_data(x, context)

    def integrate(self, x: Tensor, context: Tensor | None, options: SolveOptions) -> Path:
        """Integrate the continuous transform between the segment's two readings of its clock.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            options: Trace, solver, costs and noise.

        Returns:
            States, log-determinants, costs and counts.
        """
        return cast("CNF", self.transform).integrate(x, self.times or (), context=context, options=options)


class Location(NamedTuple):
    """A point in time within a continuous transform.

    Attributes:
        transform: The continuous transform.
        clock: Reading of its clock.
        rate: Rate of its clock per unit of the flow's time.
    """

    transform: Transform
    clock: float
    rate: float

    @property
    def dynamics(self) -> nn.Module:
        """Vector field of the transform."""
        return cast("CNF", self.transform).dynamics


class Transported(NamedTuple):
    """Events after their way along a path.

    Attributes:
        x: Events, shape (batch, *event).
        log_det: Log-determinants, shape (batch,), or (batch, probe) with probes kept apart; None without a trace.
        costs: Costs along the path, name -> (batch,).
        stats: Counts of each continuous transform.
    """

    x: Tensor
    log_det: Tensor | None
    costs: dict[str, Tensor]
    stats: tuple[SolverStats, ...]

    @property
    def nfe(self) -> int:
        """Evaluations of the dynamics on the way forward, over all transforms."""
        return sum(stats.nfe for stats in self.stats)

    @property
    def row_steps(self) -> list[RowSteps]:
        """Steps of the rows in each continuous transform, where rows step by themselves."""
        return [stats.rows for stats in self.stats if stats.rows is not None]

    @property
    def required_log_det(self) -> Tensor:
        """Log-determinants, which must have been computed."""
        if self.log_det is None:
            raise ValueError("a log-density needs a trace; got trace=None: pass SolveOptions(trace=ExactTrace())")
        return self.log_det


def carry(batch: Batch, segments: Sequence[Segment], options: SolveOptions) -> Transported:
    """Carry rows along a path.

    Args:
        batch: Rows and contexts.
        segments: Path.
        options: Trace, solver, costs and noise; without a trace there is no log-determinant.

    Returns:
        The rows at the end of the path, with log-determinants, costs and counts.
    """
    x, context = batch.x, batch.context
    log_det: Tensor | None = x.new_zeros((len(x), 1) if options.per_probe else len(x))
    costs: dict[str, Tensor] = {}
    stats: list[SolverStats] = []
    for segment in segments:
        step: Tensor | None
        if segment.times is None:
            x, change = segment.apply(x, context)
            step = change[:, None] if options.per_probe else change
        else:
            path = segment.integrate(x, context, options)
            x, step = path.x[-1], None if path.log_det is None else path.log_det[-1]
            costs = {name: cost + costs[name] if name in costs else cost for name, cost in path.costs.items()}
            stats.append(path.stats)
        log_det = None if log_det is None or step is None else log_det + step
    return Transported(x, log_det, costs, tuple(stats))


def apply_exact(batch: Batch, segments: Sequence[Segment]) -> Tensor:
    """Apply the exact transforms of a path, one after another.

    Args:
        batch: Rows and contexts.
        segments: Path; its continuous transforms are passed as whole ones.

    Returns:
        Mapped rows, shape (batch, *event).
    """
    x = batch.x
    for segment in segments:
        x = segment.apply(x, batch.context)[0]
    return x


def reverse(segments: Sequence[Segment]) -> list[Segment]:
    """Return a path run backwards.

    Args:
        segments: Path.

    Returns:
        The same transforms in the opposite order and direction.
    """
    return [Segment(s.transform, not s.to_base, s.times and s.times[::-1]) for s in reversed(segments)]


def path_to_base(transforms: Sequence[Transform], time: float = 1.0) -> list[Segment]:
    """Return the path from the state at a time to the base.

    Args:
        transforms: Transforms, from data to base.
        time: Time of the state, in [0, 1].

    Returns:
        The segments, in order.
    """
    return list(_descend(transforms, 0.0, time, through=True))


def path_between(transforms: Sequence[Transform], start: float, end: float) -> list[Segment]:
    """Return the path from the state at one time to the state at another.

    Args:
        transforms: Transforms, from data to base.
        start: Time of the first state, in [0, 1].
        end: Time of the last state, in [0, 1].

    Returns:
        The segments, in order.
    """
    segments = path_into(transforms, min(start, end), max(start, end))
    exact = [segment for segment in segments if segment.times is None]
    return segments + reverse(exact) if start > end else exact + reverse(segments)


def path_into(transforms: Sequence[Transform], low: float, high: float) -> list[Segment]:
    """Return the path from the state at one time down into the continuous transform that holds another.

    Args:
        transforms: Transforms, from data to base.
        low: Time to reach, in [0, 1].
        high: Time of the state, in [0, 1].

    Returns:
        The segments, in order; exact transforms below the continuous one are left out.
    """
    return list(_descend(transforms, low, high, through=False))


def locate(transforms: Sequence[Transform], time: float) -> Location:
    """Find the continuous transform at a time.

    Args:
        transforms: Transforms, from data to base.
        time: Time, in [0, 1].

    Returns:
        The place in it.

    Raises:
        ValueError: If no transform is continuous.
    """
    for transform, start, end in _spans(transforms):
        if transform.duration and start <= time:
            return Location(transform, _clock(transform, start, end, time), transform.duration / (end - start))
    raise ValueError("this flow has no continuous layer")


def _descend(transforms: Sequence[Transform], low: float, high: float, *, through: bool) -> Iterator[Segment]:
    for transform, start, end in _spans(transforms):
        if not transform.duration:
            yield Segment(transform, True, None)
            continue
        times = _clock(transform, start, end, min(high, end)), _clock(transform, start, end, max(low, start))
        if times[0] > times[1]:
            yield Segment(transform, True, times)
        if start <= low and not through:
            return


def _clock(transform: Transform, start: float, end: float, time: float) -> float:
    return transform.duration if time >= end else transform.duration * (time - start) / (end - start)


def _spans(transforms: Sequence[Transform]) -> list[tuple[Transform, float, float]]:
    """Pair each transform with the time that it covers; exact ones cover an instant."""
    durations = [transform.duration for transform in transforms]
    total = sum(reversed(durations)) or 1.0
    edges = [sum(reversed(durations[i:])) / total for i in range(len(transforms) + 1)]
    return [(transform, edges[i + 1], edges[i]) for i, transform in enumerate(transforms)]
