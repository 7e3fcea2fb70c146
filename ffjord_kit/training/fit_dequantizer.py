r"""Training of a dequantiser q by the bound that it gives for a flow p, and of both together:

    minimise over q, and over p where they are joint:    E_k E_q[log q(u | k) - log p(k + u)].

The gradient runs through the noise u(w, k), and so through the flow's solve: a few graded steps, each evaluation made
again on the way back, which keeps the memory of one. The guard of training by likelihood sees to it that the steps are
fine enough. A flow that stays as it is gets no gradient for its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffjord_kit.flow import Flow
from ffjord_kit.images.dequantizer import VariationalDequantizer
from ffjord_kit.images.pixels import Pixels
from ffjord_kit.objectives import Loss, MaximumLikelihood
from ffjord_kit.solver import Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training import Guard, History, Optimization, Phase
from ffjord_kit.training.data import Batches, Fixed, looked_at, noise_generator, peel
from ffjord_kit.training.divergence import diverging
from ffjord_kit.training.guard import EVERY, guarded
from ffjord_kit.training.log import STEPS, OnStep
from ffjord_kit.training.optimization import Average, Descent, assign
from ffjord_kit.training.watch import Watch

NAME = "dequantizer"
SOLVER = Solver("rk4", steps=4, grading=2.0, gradient="checkpointed")


@torch.enable_grad()
def fit_dequantizer(
    dequantizer: VariationalDequantizer,
    flow: Flow,
    pixels: Pixels,
    context: Tensor | None = None,
    *,
    steps: float = 1000,
    seconds: float = math.inf,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    solver: Solver | None = None,
    probes: int | None = 1,
    joint: bool = False,
    guard: float = 0.1,
    optimization: Optimization | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> History:
    """Train the dequantiser in place for a flow in the units of grey levels; the average of the weights is left in it.

    With `joint` the flow's weights learn by the same loss, its maximum likelihood; else they stay as they are. It takes
    at most so many `steps`, or `seconds` of work. `probes` are of Hutchinson's trace, None for the exact one; `guard`
    is that of `fit`. `on_step` is told of each step: `loss` in nats an image, `bits` in bits per dimension.
    Shapes: context (n, context_dim), as the flow is given it. Raises ValueError for pixels that do not fit the flow,
    TrainingDiverged where the loss, its gradient, or the dynamics are not finite.
    """
    flow.check(*looked_at(pixels, context))
    objective = MaximumLikelihood(ExactTrace() if probes is None else HutchinsonTrace(probes), solver=solver or SOLVER)
    bound = _Bound(dequantizer, *peel(flow), objective, Guard(guard), History(seed))
    weights = list(bound.inner.parameters())
    batches = Batches(_Levels(pixels, context), batch_size, seed)
    with _learning(weights, joint):
        trained = [*dequantizer.parameters(), *(weights if joint else [])]
        phase = Phase(objective, steps, learning_rate, seconds)
        return _descend(bound, batches, trained, phase, optimization or Optimization(), on_step)


@dataclass(frozen=True)
class _Bound:
    """The loss of a dequantiser and a flow; the history holds the place of the solver's guard."""

    dequantizer: VariationalDequantizer
    fixed: Fixed
    inner: Flow
    objective: MaximumLikelihood
    guard: Guard
    history: History

    def loss(self, levels: Tensor, context: Tensor | None) -> Loss:
        """The mean of log q(u | k) - log p(k + u), (), for levels k (batch, *event)."""
        like = next(self.inner.parameters(), next(self.dequantizer.parameters()))
        generator = self._generator("noise", torch.device("cpu"))
        share = torch.rand(levels.shape, generator=generator, dtype=torch.float64)
        u, log_q = self.dequantizer.draw(levels, share.to(levels.device), context)
        x, log_det = self.fixed.to_base(levels + u)
        batch = (x.to(like), self.fixed.scaled(context, like))
        objective = self._guarded((batch[0].detach(), batch[1]))
        found = objective.loss(self.inner, *batch, self._generator("probes", like.device))
        value = found.value + (log_q.to(log_det) - log_det).mean().to(found.value)
        return Loss(value, {"bits": value / (math.log(2) * math.prod(levels.shape[1:]))}, found.evaluations)

    def _guarded(self, batch: tuple[Tensor, Tensor | None]) -> MaximumLikelihood:
        """The objective by the solver that the guard lets pass."""
        here = self.history
        if not self.guard.watches(self.inner, self.objective, len(batch[0])):
            return self.objective
        if here.step % EVERY == 0:
            key, state = (here.seed, "guard", here.step), (here.solver_level, here.solver_grading)
            verdict = self.guard.judge(self.inner, self.objective, batch, key, state)
            here.solver_level, here.solver_grading = verdict.level, verdict.grading
            here.records.append({"step": here.step, "phase": NAME, **verdict.record()})
        return guarded(self.inner, self.objective, here.solver_level, here.solver_grading)

    def _generator(self, purpose: str, device: torch.device) -> torch.Generator:
        return noise_generator(device, self.history.seed, NAME, purpose, self.history.step)


@dataclass(frozen=True)
class _Levels:
    """Whole grey levels and their contexts as data for batches."""

    pixels: Pixels
    context: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.images.device

    def take(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return self.pixels.level(rows), None if self.context is None else self.context[rows]


def _descend(
    bound: _Bound,
    batches: Batches,
    parameters: Sequence[nn.Parameter],
    phase: Phase,
    how: Optimization,
    on_step: OnStep | None,
) -> History:
    """The steps, and the average of the weights in their place."""
    here, watch = bound.history, Watch(parameters[0].device)
    average, descent = Average(parameters), Descent(parameters, how, phase.learning_rate)
    while not here.over(phase, patience=1):
        share = here.share(phase)
        rate = how.rate(here.step, phase.steps, phase.learning_rate, share)
        with diverging(here.step + 1, f"at learning rate {rate:.3g}", ""):
            loss = bound.loss(*batches[here.step])
            norm = descent.step(loss.value, rate)
        average.update(how.ema_decay)
        here.step, here.phase_step = here.step + 1, here.phase_step + 1
        here.seconds, here.spent = watch.read()
        kept = int(STEPS * here.share(phase)) > int(STEPS * share)
        if kept or on_step is not None:
            told = {"learning_rate": rate, "gradient_norm": norm, "phase_share": here.share(phase)}
            _tell(here, loss.numbers(told), kept, on_step)
    assign(parameters, average.values)
    return here


def _tell(here: History, numbers: dict[str, float], kept: bool, on_step: OnStep | None) -> None:
    """Note the step where it is to be kept, and tell of it where somebody listens."""
    record = {"step": here.step, "phase": NAME, "seconds": round(here.seconds, 3), **numbers}
    if on_step is not None:
        on_step({**record, "phase_index": 0, "phase_step": here.phase_step, "best_nll": here.best_nll})
    if kept:
        here.records.append(record)


@contextmanager
def _learning(weights: Sequence[nn.Parameter], learning: bool) -> Iterator[None]:
    """Weights that take a gradient for a while, or that take none."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(learning)
    try:
        yield
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)
