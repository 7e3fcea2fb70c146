r"""Flow matching: regression of the velocity on straight lines from base to data, without a solve.

    L = E_t [ w(t) |f(t, x_t) - (x_1 - x_0)|^2 ],   x_t = (1 - t) x_0 + t x_1,   x_0 ~ base,   x_1 ~ data

(Lipman et al. 2023). The minimiser f(t, x) = E[x_1 - x_0 | x_t = x] carries the base to the data. The density q(t) of
the times is uniform with w = 1, or chosen for the likelihood: q(t) proportional to 1 / (1 - t + 0.02) with w = t. Then
q w is about t / (1 - t), the weight under which the error of the velocity bounds the error of the likelihood (Song et
al. 2021).

Exact transforms get no gradient from this loss, which they could lower by making its target small. They are trained
before it, by their own likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.objectives.couplings import COUPLINGS
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF

LIKELIHOOD_FLOOR = 0.02


@dataclass(frozen=True)
class FlowMatching(Objective[Flow]):
    """Regression of the velocity on straight lines from base to data.

    `loss` raises ValueError for a flow whose continuous transforms are not side by side.

    Args:
        time_density: Word of TIME_DENSITIES; the times of a batch are stratified.
        coupling: Word of COUPLINGS: how base points and rows are paired.
        name: Word for logs and schedules.

    Raises:
        ValueError: If a word is unknown.

    Example:
        >>> import torch
        >>> from ffjord_kit import CNF, Flow, ResidualDynamics
        >>> from ffjord_kit.data import Batch
        >>> flow = Flow([CNF(ResidualDynamics((2,)), (2,))])
        >>> loss = FlowMatching().loss(flow, Batch(torch.zeros(512, 2)), torch.Generator().manual_seed(0))
        >>> abs(loss.value.item() - 1) < 0.1  # an untrained field is zero, and E |x_1 - x_0|^2 = 1 for each element
        True

    References:
        Lipman et al. 2023, https://arxiv.org/abs/2210.02747; Song et al. 2021, https://arxiv.org/abs/2101.09258.
    """

    time_density: str = "uniform"
    coupling: str = "independent"
    name: str = "flow_matching"

    def __post_init__(self) -> None:
        for field_name, menu in (("time_density", TIME_DENSITIES), ("coupling", COUPLINGS)):
            word = getattr(self, field_name)
            if word not in menu:
                raise ValueError(f"{field_name} must be one of {', '.join(menu)}; got {word!r}")

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        above, cnfs, below = split_transforms(model)
        x, context = batch.x, batch.context
        with torch.no_grad():
            for transform in above:
                x, _ = transform.to_base(x, context)
            start = model.base.sample(len(x), generator)
            for transform in reversed(below):
                start, _ = transform.to_data(start, context)
            start = start[self._order(start, x, context)]
        return self.match(cnfs, start, batch.with_x(x), generator)

    def match(self, cnfs: list[CNF], start: Tensor, end: Batch, generator: torch.Generator) -> Loss:
        """Return the loss on pairs of end points.

        Args:
            cnfs: Continuous transforms, from data to base.
            start: End points x_0 on the side of the base, shape (batch, *event).
            end: End points x_1 on the side of the data, and contexts.
            generator: Source of the times.

        Returns:
            The loss.
        """
        times, weights = TIME_DENSITIES[self.time_density](_stratified(end.x, generator))
        value = end.mean(weights * self._error(cnfs, times, start, end))
        return Loss(value, {"matching": value})

    def _error(self, cnfs: list[CNF], t: Tensor, start: Tensor, end: Batch) -> Tensor:
        """Return the squared error of each row's velocity, a mean over its elements, shape (batch,)."""
        column = t.reshape(-1, *[1] * (start.dim() - 1))
        state, slope = self._line(start, end.x, column)
        velocity = _velocity(cnfs, t, end.with_x(state))
        return (velocity - slope).square().reshape(len(t), -1).mean(1)

    def _line(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return points on the lines from base to data, and their velocities."""
        return torch.lerp(start, end, t), end - start

    def _order(self, start: Tensor, end: Tensor, context: Tensor | None) -> Tensor:
        """Return the order of the base points that the coupling pairs with the rows."""
        return COUPLINGS[self.coupling](start, end, context)


def split_transforms(flow: Flow) -> tuple[list[Transform], list[CNF], list[Transform]]:
    """Split the transforms of a flow into exact, continuous and exact ones, from data to base.

    Args:
        flow: Flow.

    Returns:
        The exact transforms on the side of the data, the continuous ones, and the exact ones on the side of the base.

    Raises:
        ValueError: If the continuous transforms are not side by side.

    Example:
        >>> from ffjord_kit import ConcatDynamics, Standardize
        >>> scale, cnf = Standardize.of(torch.tensor([[1.0], [3.0]])), CNF(ConcatDynamics((1,)), (1,))
        >>> [len(part) for part in split_transforms(Flow([scale, cnf, cnf]))]
        [1, 2, 0]
    """
    transforms = cast(list[Transform], list(flow.transforms))  # a ModuleList says Module
    places = [i for i, transform in enumerate(transforms) if isinstance(transform, CNF)]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise ValueError(
            "flow matching needs continuous transforms side by side: train this flow by maximum likelihood"
        )
    cnfs = [transform for transform in transforms if isinstance(transform, CNF)]
    return transforms[: places[0]], cnfs, transforms[places[-1] + 1 :]


def _velocity(cnfs: list[CNF], t: Tensor, batch: Batch) -> Tensor:
    """Return dx/dt in the flow's time for rows at times t of their own, shape (batch,).

    The continuous transforms share the time [0, 1], from base to data, in proportion to their end times.
    """
    total = sum(cnf.end_time for cnf in cnfs)
    if len(cnfs) == 1:
        return cnfs[0].dynamics(t * total, batch.x, batch.context) * total
    velocity, before = torch.zeros_like(batch.x), 0.0
    for cnf in reversed(cnfs):
        clock = t * total - before
        inside = (clock < cnf.end_time) | (cnf is cnfs[0])  # the last one includes t = 1
        rows = ((clock >= 0) & inside).nonzero().flatten()
        if len(rows):
            own = batch[rows]
            velocity = velocity.index_add(0, rows, cnf.dynamics(clock[rows], own.x, own.context) * total)
        before += cnf.end_time
    return velocity


def _stratified(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one uniform number in each of `batch` equal parts of [0, 1), shape (batch,)."""
    noise = torch.rand(len(x), generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return (torch.arange(len(x), device=x.device, dtype=x.dtype) + noise) / len(x)


def _uniform(u: Tensor) -> tuple[Tensor, Tensor]:
    return u, torch.ones_like(u)


def _likelihood(u: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the inverse distribution function of the density 1 / (1 - t + floor); return t and the weight t."""
    top = 1 + LIKELIHOOD_FLOOR
    t = top - top * (LIKELIHOOD_FLOOR / top) ** u
    return t, t


# From stratified uniform numbers u (batch,) to times t and weights w.
TIME_DENSITIES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "uniform": _uniform,
    "likelihood": _likelihood,
}
