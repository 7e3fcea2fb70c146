r"""Configuration of training: the phases of a schedule, and how weights are updated, validated and guarded.

The learning rate of step s = 0, 1, .. of a phase warms up linearly and falls as a cosine,

    rate(s) = peak min(1, max((s + 1) / warmup, tau / 0.1)) (1 + cos(pi tau)) / 2,

where tau is the share of the phase that is done, by steps or by time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ffjord_kit.objectives import Objective
from ffjord_kit.precision import check_precision
from ffjord_kit.words import OPTIMIZERS

WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Phase:
    """One part of a schedule: an objective, and how long it is minimised.

    The phase ends after its steps or its seconds, whichever come first; seconds include validations, and are those of
    the configuration's clock. What has not ended when the time is up, is given up.

    Args:
        objective: Objective to minimise.
        steps: Largest number of steps; may be infinite.
        learning_rate: Peak learning rate.
        seconds: Largest number of seconds of work; may be infinite.
        trial: Whether the phase is an attempt that may fail. A trial that is limited by steps alone ends at the second
            validation without improvement; any trial ends quietly if its numbers are not finite. The best earlier
            weights are kept.
        from_start: Whether the weights that the phase begins with are a candidate too; a trial with a limit of time is
            then validated as often as other phases.
        validations: Least number of validations of a phase that is limited by steps alone; 1 for the end alone.
        overtime: Seconds by which the last validation may be late.
        patient: Whether validations without improvement do not end it. Where weights decay, they get better only as the
            learning rate falls.
        initial: Function that returns the weights to begin with, for each parameter that is trained; None for the best
            ones of the phases before.

    Raises:
        ValueError: If a length is not positive, or the phase has no end.

    Example:
        >>> from ffjord_kit.objectives import FlowMatching
        >>> Phase(FlowMatching(), steps=4000).seconds
        inf
    """

    objective: Objective[Any]
    steps: float
    learning_rate: float = 2e-3
    seconds: float = math.inf
    trial: bool = False
    from_start: bool = False
    validations: int = 4
    overtime: float = 0.0
    patient: bool = False
    initial: Callable[[], Sequence[Tensor]] | None = None

    def __post_init__(self) -> None:
        if not (self.steps > 0 and self.seconds > 0 and min(self.steps, self.seconds) < math.inf):
            raise ValueError(
                f"a phase takes a number of steps, seconds, or both, positive and not both infinite; "
                f"got {self.steps} steps and {self.seconds} seconds"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Options of training: the optimizer and its learning rate, validation, the guard on the solver, and the seed.

    Args:
        batch_size: Rows of a step.
        optimizer: Word of OPTIMIZERS.
        weight_decay: Weight decay of matrices, as AdamW has it.
        warmup: Steps of warm-up; at most a tenth of a phase is used.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the exponential moving average of the weights.
        validate_every: Largest number of steps between validations, in a phase that is limited by steps alone.
        patience: Number of validations in a row without improvement that ends a phase.
        guard: Largest solver error of the loss, as a share of the loss's standard error; 0 for no guard.
        precision: Precision of the network, a word of PRECISIONS.
        clock: What seconds are, a word of CLOCKS; see `Timer`.
        micro_batches: Number of equal parts in which a batch is computed, one after another or by several workers; None
            for one part per worker.
        seed: Seed of all noise.

    Raises:
        ValueError: If a word is unknown, or the guard negative.

    Example:
        >>> config = TrainConfig(batch_size=64, warmup=10)
        >>> config.learning_rate(step=0, steps=1000, peak=1e-2, share=0.0)  # the first of ten steps of warm-up
        0.001
    """

    batch_size: int = 512
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    warmup: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    validate_every: int = 500
    patience: int = 10
    guard: float = 0.1
    precision: str = "float32"
    clock: str = "cpu"
    micro_batches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if not self.guard >= 0:
            raise ValueError(f"guard must be at least 0, the share of the loss's noise; got {self.guard}")

    def learning_rate(self, step: int, steps: float, peak: float, share: float) -> float:
        """Return the learning rate of a step.

        Args:
            step: Number s of the step in its phase, from 0.
            steps: Steps of the phase; may be infinite.
            peak: Peak learning rate.
            share: Share tau of the phase that is done, in [0, 1].

        Returns:
            The learning rate.
        """
        warmup = max(1, self.warmup if steps == math.inf else min(self.warmup, steps // 10))
        rise = min(1.0, max((step + 1) / warmup, share / WARMUP_SHARE))
        return peak * rise * 0.5 * (1 + math.cos(math.pi * share))
