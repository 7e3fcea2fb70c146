"""The loop that trains a peer: Adam for so many seconds, and the best weights on the validation rows.

A discrete flow is told its budget, and gets a warm-up over its first 2 % and a cosine over the rest; it stops when a
third of the budget has brought no better validation. A continuous peer keeps its rate, so one run can be judged at
several marks. Validation is a part of the time spent, judging is not. The clock is read every step, and so is the
loss: where it is no longer a number training ends, with the best weights so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from clock import Clock
from torch import Tensor, nn

from ffjord_kit.ode import SolveError
from ffjord_kit.training.optim import MovingAverage, exchanged

WARMUP = 0.02


@dataclass(frozen=True)
class Recipe:
    """How a peer is trained; `validate` and `patience` are shares of its budget (None: not at all).

    `average` is the decay of a moving average of the weights, which is then what validations score.
    """

    batch: int = 512
    rate: float = 1e-3
    cosine: bool = True
    clip: float | None = 1.0
    validate: float | None = 0.03
    patience: float | None = 1 / 3
    validation_rows: int = 2_000
    average: float | None = None

    def rate_at(self, share: float) -> float:
        """The learning rate when a share of the budget is spent."""
        if not self.cosine:
            return self.rate
        return self.rate * min(1.0, 0.05 + share / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass
class Progress:
    """Where a training stands: its steps, its best validation loss, when that was, and what ended it early."""

    steps: int = 0
    best: float = math.inf
    best_at: float = 0.0
    note: str = ""
    weights: list[Tensor] = field(default_factory=list)


def train(
    loss: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    rows: Tensor,
    validation: Tensor,
    *,
    marks: Sequence[float],
    recipe: Recipe,
    clock: Clock,
    seed: int,
) -> Iterator[tuple[float, Progress]]:
    """Minimise `loss` of a batch; at each mark (in seconds) yield it, the best weights being in the parameters."""
    optimizer, here = torch.optim.Adam(parameters, lr=recipe.rate), Progress()
    average = None if recipe.average is None else MovingAverage(parameters)
    batches = _batches(rows, min(recipe.batch, len(rows)), seed)
    held_out = validation[: recipe.validation_rows]
    every = math.inf if recipe.validate is None else recipe.validate * marks[-1]
    due = every
    for mark in marks:
        while clock.seconds() < mark and not here.note:
            _step(loss, next(batches), optimizer, parameters, recipe, clock.seconds() / marks[-1], here)
            if average is not None and recipe.average is not None:
                average.update(recipe.average)
            if clock.seconds() >= due and not here.note:
                _validate(loss, held_out, parameters, here, clock, average)
                due = clock.seconds() + every
                if recipe.patience and clock.seconds() - here.best_at > recipe.patience * marks[-1]:
                    here.note = f"stopped early at {clock.seconds():.0f} s: no better validation"
        if recipe.validate is not None and not here.note:
            _validate(loss, held_out, parameters, here, clock, average)
        with clock.paused(), exchanged(parameters, here.weights or parameters):
            yield mark, here


def _step(
    loss: Callable[[Tensor], Tensor],
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    recipe: Recipe,
    share: float,
    here: Progress,
) -> None:
    optimizer.zero_grad()
    try:
        value = loss(batch)
        value.backward()
    except (ArithmeticError, SolveError) as error:
        here.note = f"stopped at step {here.steps + 1}: {error}"
        return
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
    if not bool((value.detach() + norm).isfinite()):
        here.note = f"stopped: loss {float(value.detach()):.3g} at step {here.steps + 1}"
        return
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate_at(share)
    optimizer.step()
    here.steps += 1


def _validate(
    loss: Callable[[Tensor], Tensor],
    rows: Tensor,
    parameters: Sequence[nn.Parameter],
    here: Progress,
    clock: Clock,
    average: MovingAverage | None,
) -> None:
    """The same noise each time, for losses that draw some from torch's global generator."""
    with torch.no_grad(), torch.random.fork_rng(), exchanged(parameters, average.values if average else parameters):
        torch.manual_seed(0)
        value = float(loss(rows))
        if value < here.best:
            here.best, here.best_at = value, clock.seconds()
            here.weights = [p.detach().clone() for p in parameters]


def _batches(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches without replacement, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        for start in range(0, len(rows) - size + 1, size):
            yield rows[order[start : start + size]]
