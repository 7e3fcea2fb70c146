r"""Configuration of training: the phases of a schedule, and how weights are updated, validated and guarded.

The learning rate of a step is

    rate(s) = peak * risen(s) * (1 + cos(pi * share)) / 2,    share of the phase that is done,

with a linear rise over the first `warmup` steps, or the first tenth of the phase where that is over sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ffjord_kit.objectives import Objective
from ffjord_kit.precision import check_precision

WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Phase:
    """One part of a schedule.

    Seconds are those that the training thread works, validations included; on a GPU those on the wall.

    Args:
        objective: Objective to minimise.
        steps: Largest number of steps; may be infinite.
        learning_rate: Peak learning rate.
        seconds: Largest number of seconds; may be infinite.
        trial: Whether the phase may be of no help: one of steps ends at the second validation that is not better, and
            any ends where its numbers are not finite; the weights are then those of before.
        validations: Least number of validations of a phase of steps.

    Raises:
        ValueError: If a length is not positive, or the phase has no end.

    Example:
        >>> from ffjord_kit.objectives import FlowMatching
        >>> Phase(FlowMatching(), steps=4000).seconds
        inf
    """

    objective: Objective
    steps: float
    learning_rate: float = 2e-3
    seconds: float = math.inf
    trial: bool = False
    validations: int = 4

    def __post_init__(self) -> None:
        if not (self.steps > 0 and self.seconds > 0 and min(self.steps, self.seconds) < math.inf):
            raise ValueError(
                f"a phase takes a number of steps, seconds, or both, positive and not both infinite; "
                f"got {self.steps} steps and {self.seconds} seconds"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How weights are updated (AdamW, warm-up and cosine, clipping, moving average), validated and guarded.

    Args:
        batch_size: Rows of a step.
        weight_decay: Weight decay of AdamW; 0 makes it plain Adam.
        warmup: Steps of warm-up; at most a tenth of a phase is used.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the exponential moving average of the weights.
        validate_every: Most steps between validations, of a phase of steps.
        patience: Validations without a better one that end a phase.
        guard: Largest share of the loss's noise that the solver's error may take; 0 for no guard.
        precision: Word of PRECISIONS for the network.
        micro_batches: Parts of a batch, computed one after another or over workers; None for one a worker.
        seed: Seed of all noise.

    Raises:
        ValueError: If the precision is unknown, or the guard negative.
    """

    batch_size: int = 512
    weight_decay: float = 0.0
    warmup: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    validate_every: int = 500
    patience: int = 10
    guard: float = 0.1
    precision: str = "float32"
    micro_batches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not self.guard >= 0:
            raise ValueError(f"guard must be at least 0, the share of the loss's noise; got {self.guard}")

    def learning_rate(self, step: int, steps: float, peak: float, share: float) -> float:
        """Return the learning rate of a step.

        Args:
            step: Steps of the phase before it.
            steps: Steps of the phase; may be infinite.
            peak: Peak learning rate.
            share: Share of the phase that is done, in [0, 1].

        Returns:
            The learning rate.
        """
        warmup = max(1, self.warmup if steps == math.inf else min(self.warmup, steps // 10))
        risen = min(1.0, max((step + 1) / warmup, share / WARMUP_SHARE))
        return peak * risen * 0.5 * (1 + math.cos(math.pi * share))
