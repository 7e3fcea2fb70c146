"""Training on pairs: flow matching whose base points and data belong together already (reflow, Liu et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.flow import Flow
from ffjord_kit.objectives import split
from ffjord_kit.training.data import Batches, Data, noise_generator
from ffjord_kit.training.divergence import TrainingDiverged
from ffjord_kit.training.optimization import Average, Descent, Optimization, assign
from ffjord_kit.training.phase import History, Phase

NAME = "straighten"


@torch.enable_grad()
def fit_pairs(
    flow: Flow,
    start: Tensor,
    end: Tensor,
    context: Tensor | None = None,
    *,
    phase: Phase,
    batch_size: int = 512,
    optimization: Optimization | None = None,
    seed: int = 0,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train the flow's continuous layers in place on pairs of their ends; the average of the weights is left in them.

    The `phase` is of flow matching, in steps.
    Shapes: start, end (n, *event), at the base's and the data's side of the continuous layers; context (n, context_dim)
    as the layers see it. Raises TrainingDiverged where the loss is not finite, ValueError for continuous layers apart.
    """
    cnfs, how = split(flow)[1], optimization or Optimization()
    parameters = [p for cnf in cnfs for p in cnf.parameters()]
    batches = Batches(Data(torch.stack([start, end], 1), context, start.new_zeros(len(start))), batch_size, seed)
    average, descent = Average(parameters), Descent(parameters, how, phase.learning_rate)
    history, begun = History(seed), time.monotonic()
    for step in range(phase.steps):
        pairs, c = batches[step]
        generator = noise_generator(start.device, seed, NAME, step)
        loss = phase.objective.match(cnfs, pairs[:, 0], pairs[:, 1], c, generator)
        rate = how.rate(step, phase.steps, phase.learning_rate)
        try:
            norm = descent.step(loss.value, rate)
        except ArithmeticError as error:
            raise TrainingDiverged(f"straightening failed at step {step}: {error}; lower learning_rate") from error
        average.update(how.ema_decay)
        history.step, history.phase_step, history.seconds = step + 1, step + 1, time.monotonic() - begun
        record = {
            "step": step + 1, "phase": NAME, "seconds": round(history.seconds, 3), "loss": loss.value.detach(),
            "matching": loss.value.detach(), "learning_rate": rate, "gradient_norm": norm,
            "nfe_forward": 0, "nfe_backward": 0, "phase_share": (step + 1) / phase.steps,
        }  # fmt: skip
        _keep(history, record, max(1, phase.steps // 200), on_step)
    assign(parameters, average.values)
    return history


def _keep(history: History, record: dict, every: int, on_step: Callable[[dict[str, Any]], None] | None) -> None:
    """Note one step in `every`, and tell of each where somebody listens; only then are its numbers fetched."""
    if on_step is None and history.step % every:
        return
    record = {name: float(value) if isinstance(value, Tensor) else value for name, value in record.items()}
    if on_step is not None:
        on_step({**record, "phase_index": 0, "phase_step": history.phase_step, "best_nll": history.best_nll})
    if history.step % every == 0:
        history.records.append(record)
