r"""Flow matching: regression of the velocity on straight lines from base to data, without simulation.

    E_t[ w(t) |f(t, x_t) - (x_1 - x_0)|^2 ],  x_t = (1 - t) x_0 + t x_1,   x_0 ~ base, x_1 ~ data

(Lipman et al. 2023). The minimiser E[x_1 - x_0 | x_t] carries the base to the data. The time density is uniform with
w = 1, or for the likelihood: density proportional to 1 / (1 - t + 0.02) with w = t, which makes the product about
t / (1 - t), the weight under which the error of the velocity bounds that of the likelihood (Song et al. 2021). Exact
transforms with weights of their own get no gradient from it: they could make its target small. They are trained before
it, by their own likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
class FlowMatching(Objective):
    """Regression of the velocity on straight lines from base to data.

    Args:
        time_density: Word of TIME_DENSITIES; t is stratified over the batch.
        coupling: Word of COUPLINGS, which base point a row of data is matched with.
        name: Word for logs and schedules.

    Raises:
        ValueError: If a word is unknown; from `loss`, for a flow whose continuous transforms are not side by side.
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
            start = start[COUPLINGS[self.coupling](start, x, context)]
        return self.match(cnfs, start, batch.with_x(x), generator)

    def match(self, cnfs: list[CNF], start: Tensor, end: Batch, generator: torch.Generator) -> Loss:
        """Return the loss on given pairs of ends.

        Args:
            cnfs: Continuous transforms, from data to base.
            start: Ends at the base's side, shape (batch, *event).
            end: Ends at the data's side, and contexts.
            generator: Source of the times.

        Returns:
            The loss.
        """
        times, weights = TIME_DENSITIES[self.time_density](_stratified(end.x, generator))
        value = (weights * self._error(cnfs, times, start, end)).mean()
        return Loss(value, {"matching": value})

    def _error(self, cnfs: list[CNF], t: Tensor, start: Tensor, end: Batch) -> Tensor:
        """Return the squared error of the velocity of each row, a mean over the event, (batch,)."""
        column = t.reshape(-1, *[1] * (start.dim() - 1))
        state, slope = torch.lerp(start, end.x, column), end.x - start
        velocity = _velocity(cnfs, t, end.with_x(state))
        return (velocity - slope).square().reshape(len(t), -1).mean(1)


def split_transforms(flow: Flow) -> tuple[list[Transform], list[CNF], list[Transform]]:
    """Split the transforms of a flow into exact, continuous and exact ones, from data to base.

    Args:
        flow: Flow.

    Returns:
        The exact transforms on the data's side, the continuous ones, and the exact ones on the base's side.

    Raises:
        ValueError: If the continuous transforms are not side by side.
    """
    transforms = list(flow.transforms)
    places = [i for i, transform in enumerate(transforms) if isinstance(transform, CNF)]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise ValueError(
            "flow matching needs continuous transforms side by side: train this flow by maximum likelihood"
        )
    return transforms[: places[0]], transforms[places[0] : places[-1] + 1], transforms[places[-1] + 1 :]


def _velocity(cnfs: list[CNF], t: Tensor, batch: Batch) -> Tensor:
    """Return dx/dt in the flow's time, for rows at their own times t (batch,); the CNFs share [0, 1], base to data."""
    total = sum(cnf.end_time for cnf in cnfs)
    if len(cnfs) == 1:
        return cnfs[0].dynamics(t * total, batch.x, batch.context) * total
    velocity, before = torch.zeros_like(batch.x), 0.0
    for cnf in reversed(cnfs):
        clock = t * total - before
        inside = (clock < cnf.end_time) | (cnf is cnfs[0])  # the last one, at the data, holds the end of time
        rows = ((clock >= 0) & inside).nonzero().flatten()
        if len(rows):
            part = batch[rows]
            velocity = velocity.index_add(0, rows, cnf.dynamics(clock[rows], part.x, part.context) * total)
        before += cnf.end_time
    return velocity


def _stratified(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one uniform number in each of batch equal parts of [0, 1)."""
    noise = torch.rand(len(x), generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return (torch.arange(len(x), device=x.device, dtype=x.dtype) + noise) / len(x)


def _uniform(u: Tensor) -> tuple[Tensor, Tensor]:
    return u, torch.ones_like(u)


def _likelihood(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse of the distribution function of the density 1 / (1 - t + floor), and the weight t."""
    top = 1 + LIKELIHOOD_FLOOR
    t = top - top * (LIKELIHOOD_FLOOR / top) ** u
    return t, t


# From stratified uniform numbers u (batch,) to times t and weights w.
TIME_DENSITIES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "uniform": _uniform,
    "likelihood": _likelihood,
}
