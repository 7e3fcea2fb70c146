r"""Objectives: what training minimises.

    MaximumLikelihood   -E[log p(x)] + sum_i weight_i E[cost_i]                        (FFJORD; RNODE's costs)
    LayersLikelihood    -E[log p(x)] of the flow without its continuous layers
    FlowMatching         E_t[ w(t) |f(t, x_t) - (x_1 - x_0)|^2 ],  x_t = (1 - t) x_0 + t x_1,   x_0 ~ base, x_1 ~ data

Flow matching (Lipman et al. 2023) needs no simulation; its linear paths have the minimiser E[x_1 - x_0 | x_t], whose
flow carries the base to the data. The time density is uniform with w = 1, or for the likelihood: density proportional
to 1 / (1 - t + 0.02) with w = t, which makes the product about t / (1 - t), the weight under which the error of the
velocity bounds that of the likelihood (Song et al. 2021). Exact layers with weights of their own get no gradient from
it: they could make its target small. They are trained before it, by their own likelihood.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.couplings import COUPLINGS
from ffjord_kit.flow import Flow
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.solver import Evaluations, Solver
from ffjord_kit.trace import HutchinsonTrace, TraceEstimator

LIKELIHOOD_FLOOR = 0.02


class Loss(NamedTuple):
    """A differentiable value, the terms that a log shows, and the evaluations (the backward ones are counted later)."""

    value: Tensor
    terms: dict[str, Tensor]
    evaluations: tuple[Evaluations, ...]

    def numbers(self, more: Mapping[str, float | Tensor]) -> dict[str, float | int]:
        """What a log shows of it, with `more` in the middle."""
        values = {"loss": self.value.detach(), **more, **{name: term.detach() for name, term in self.terms.items()}}
        return {
            **{name: float(value) for name, value in values.items()},
            "nfe_forward": sum(e.forward for e in self.evaluations),
            "nfe_backward": sum(e.backward for e in self.evaluations),
        }


class Objective(ABC):
    """A loss of a flow on a batch of data."""

    name: str

    @abstractmethod
    def loss(self, flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator) -> Loss:
        """The loss on x (batch, *event), context (batch, context_dim); all its noise comes from the generator."""


@dataclass(frozen=True)
class MaximumLikelihood(Objective):
    """Plain FFJORD: the mean negative log-likelihood, with weighted costs along the path.

    `regularizers` maps words of REGULARIZERS to weights; `solver` None takes each layer's own. With `steer` the end
    time T of each step's solve is drawn from U(T - steer T, T + steer T), so that the flow settles about T and its
    dynamics are not stiff there (STEER, Behl et al. 2020). Raises ValueError unless 0 <= steer < 1.
    """

    trace: TraceEstimator = field(default_factory=HutchinsonTrace)
    regularizers: Mapping[str, float] = field(default_factory=dict)
    solver: Solver | None = None
    steer: float = 0.0
    name: str = "mle"

    def __post_init__(self) -> None:
        if not 0 <= self.steer < 1:
            raise ValueError(f"steer must be in [0, 1), a part of the end time; got {self.steer}")

    def loss(self, flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator) -> Loss:
        costs = {word: REGULARIZERS[word] for word in self.regularizers}
        how = Integration(self.trace, self.solver, costs, generator, self.steer)
        log_prob, moved = flow.evaluate_log_prob(x, context, integration=how)
        terms = {"nll": -log_prob.mean(), **{word: cost.mean() for word, cost in moved.costs.items()}}
        value = terms["nll"] + sum(weight * terms[word] for word, weight in self.regularizers.items())
        return Loss(value, terms, moved.evaluations)

    def losses(
        self, flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator, solver: Solver
    ) -> Tensor:
        """The negative log-likelihood of each row, (batch,), by another solver."""
        how = Integration(self.trace, solver, {}, generator, self.steer)
        return -flow.evaluate_log_prob(x, context, integration=how)[0]


@dataclass(frozen=True)
class LayersLikelihood(Objective):
    """The mean negative log-likelihood of a flow's exact layers alone, its continuous ones left out.

    Raises ValueError for a flow whose exact layers have nothing to learn.
    """

    name: str = "layers"

    def loss(self, flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator) -> Loss:
        exact = [layer for layer in flow.layers if not isinstance(layer, CNF)]
        if not any(list(layer.parameters()) for layer in exact):
            raise ValueError("no exact layer of this flow has weights to train: pass layers='maf:3', or train by 'mle'")
        context, log_det = flow.scaled_context(context), x.new_zeros(len(x))
        for layer in exact:
            x, step = layer.to_base(x, context)
            log_det = log_det + step
        value = -(flow.base.log_prob(x) + log_det).mean()
        return Loss(value, {"nll": value}, ())


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Regression of the velocity on straight lines from base to data: a start without simulation.

    `time_density` is a word of TIME_DENSITIES, t is stratified over the batch; `coupling` is one of COUPLINGS.
    Raises ValueError for an unknown word, and for a flow whose continuous layers are not side by side.
    """

    time_density: str = "uniform"
    coupling: str = "independent"
    name: str = "flow_matching"

    def __post_init__(self) -> None:
        for field_name, menu in (("time_density", TIME_DENSITIES), ("coupling", COUPLINGS)):
            word = getattr(self, field_name)
            if word not in menu:
                raise ValueError(f"{field_name} must be one of {', '.join(menu)}; got {word!r}")

    def loss(self, flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator) -> Loss:
        above, cnfs, below = split(flow)
        context = flow.scaled_context(context)
        with torch.no_grad():
            for layer in above:
                x, _ = layer.to_base(x, context)
            start = flow.base.sample(len(x), generator)
            for layer in reversed(below):
                start, _ = layer.to_data(start, context)
            start = start[COUPLINGS[self.coupling](start, x, context)]
        return self.match(cnfs, start, x, context, generator)

    def match(
        self, cnfs: list[CNF], start: Tensor, end: Tensor, context: Tensor | None, generator: torch.Generator
    ) -> Loss:
        """The loss of continuous layers on given pairs of their ends (batch, *event), the context as they see it."""
        times, weights = TIME_DENSITIES[self.time_density](_stratified(end, generator))
        value = (weights * self._error(cnfs, times, start, end, context)).mean()
        return Loss(value, {"matching": value}, ())

    def _error(self, cnfs: list[CNF], t: Tensor, start: Tensor, end: Tensor, context: Tensor | None) -> Tensor:
        """The squared error of the velocity for each row, (batch,), a mean over the event."""
        column = t.reshape(-1, *[1] * (end.dim() - 1))
        state, slope = torch.lerp(start, end, column), end - start
        velocity = _velocity(cnfs, t, state, context)
        return (velocity - slope).square().reshape(len(t), -1).mean(1)


def _velocity(cnfs: list[CNF], t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """dx/dt in the flow's own time, for rows at their own times t (batch,); the CNFs share [0, 1] from base to data."""
    total = sum(cnf.end_time for cnf in cnfs)
    if len(cnfs) == 1:
        return cnfs[0].dynamics(t * total, x, context) * total
    velocity, before = torch.zeros_like(x), 0.0
    for cnf in reversed(cnfs):
        clock = t * total - before
        inside = (clock < cnf.end_time) | (cnf is cnfs[0])  # the last one, at the data, holds the end of time
        rows = ((clock >= 0) & inside).nonzero().flatten()
        if len(rows):
            part = cnf.dynamics(clock[rows], x[rows], None if context is None else context[rows])
            velocity = velocity.index_add(0, rows, part * total)
        before += cnf.end_time
    return velocity


def split(flow: Flow) -> tuple[list, list[CNF], list]:
    """The exact layers on the data's side, the continuous ones, and the exact ones on the base's side.

    Raises ValueError where the continuous layers are not side by side.
    """
    layers = list(flow.layers)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, CNF)]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise ValueError("flow matching needs continuous layers side by side: train this flow by maximum likelihood")
    return layers[: places[0]], layers[places[0] : places[-1] + 1], layers[places[-1] + 1 :]


def _stratified(x: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform number in each of batch equal parts of [0, 1)."""
    noise = torch.rand(len(x), generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return (torch.arange(len(x), device=x.device, dtype=x.dtype) + noise) / len(x)


def _uniform(u: Tensor) -> tuple[Tensor, Tensor]:
    return u, torch.ones_like(u)


def _likelihood(u: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the distribution function of the density 1 / (1 - t + floor), and the weight t."""
    top = 1 + LIKELIHOOD_FLOOR
    t = top - top * (LIKELIHOOD_FLOOR / top) ** u
    return t, t


TIME_DENSITIES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "uniform": _uniform,
    "likelihood": _likelihood,
}

OBJECTIVES: dict[str, type[Objective]] = {
    "flow_matching": FlowMatching,
    "mle": MaximumLikelihood,
    "layers": LayersLikelihood,
}
