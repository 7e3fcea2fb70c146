"""A continuous flow turned into few explicit steps of its field, and trained on by their exact likelihood.

The scheme, the number of steps and the grading of their grid are chosen by the likelihood of held-out rows, and by how
far the steps are from folding there, at a given number of evaluations. Training then minimises the exact negative
log-likelihood with each step held monotone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.data import Batch, Rows
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import SteppedLikelihood
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES, RUNGE_KUTTA
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import preprocessed
from ffjord_kit.training.history import History
from ffjord_kit.training.loop import fit_flow
from ffjord_kit.transforms import CNF, Stepped

GRADINGS = (1.0, 2.0, 3.0)
MANY_COLUMNS = 32  # beyond which the frame of a row is so dear that few steps of training can be had
# Of a training that makes some hundreds of steps. Where rows of few columns are many, the high rate and the long
# average leave 0.9 of the KL that 3e-3 and 0.98 leave, and 0.7 of that by 1e-3; 1,500 rows are learnt by heart (NLL of
# a banana 1.667, and 1.656 by 1e-3), and on the nine columns of protein 3e-3 loses 0.3 nats.
LEARNING_RATE, EMA_DECAY = 1e-3, 0.98
FEW, MANY_ROWS, FAST_LEARNING_RATE, FAST_EMA_DECAY = 3, 8_000, 6e-3, 0.995
# Factor of the weight of the penalty there: its gradient, which is clipped, then leaves more of the other. Of 300 steps
# from one start checkerboard has a KL of 0.036 and 0.029 by a factor of 1 (two seeds), 0.030 and 0.026 by 0.1,
# with receipts that hold, and 0.026 and 0.015 by 0.01, where the second counts 1.5 % of the mass twice. Long steps,
# fewer than these, keep the whole weight: with 4 of the midpoint's on moons one of four receipts failed by 0.1, and
# none of four by 1.
FAST_PENALTY, SHORT_STEPS = 0.1, 6
# Elements and least rows of a batch: a step of few rows gains nearly as much as one of many, in a fraction of the time.
# At the high rate a step of too few rows gains less (image has a KL of 0.035, 0.030 and 0.030 by 128, 256 and 512).
BATCH_ELEMENTS, FAST_BATCH_ELEMENTS, LEAST_BATCH = 512, 1024, 32
# Rows are fewer where each is drawn 16 times, less its measurement error. Of 64 rows, 8 and 16 draws have a KL of 0.029
# and 0.026 after 12 to 14 s, and 32 draws 0.039; errors that stay leave it at 0.142 (two components, errors of 0.3
# deviations).
FEWER_WITH_NOISE = 4


class Steps(NamedTuple):
    """A number of explicit steps.

    Attributes:
        method: Word of EXPLICIT_SCHEMES.
        steps: Number of steps.
        grading: Exponent of their grid; see `Stepped`.
    """

    method: str
    steps: int
    grading: float = 1.0

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.method}"


class Candidate(NamedTuple):
    """Steps and how they do on held-out rows, before any training.

    Attributes:
        steps: The steps.
        nll: Mean negative log-likelihood, nats.
        penalty: Weighted penalty on steps that may fold, there and near there; see `SteppedLikelihood`.
    """

    steps: Steps
    nll: float
    penalty: float

    def score(self, folding: float) -> float:
        """Return what candidates are ranked by: the NLL of steps that fold is worthless.

        Args:
            folding: Factor of the penalty.

        Returns:
            The sum of NLL and penalty, nats; lower is better.
        """
        return self.nll + folding * self.penalty


def in_steps(flow: Flow, method: str, steps: int, grading: float = 1.0, *, learn_grid: bool = False) -> Flow:
    """Return a flow whose continuous transforms are explicit steps of copies of their fields.

    Args:
        flow: Flow; it stays as it is.
        method: Word of EXPLICIT_SCHEMES.
        steps: Number of steps of each continuous transform.
        grading: Exponent of their grid.
        learn_grid: Whether training moves the ends of the steps.

    Returns:
        The flow of steps, whose density is its own. Its fields can be trained, also those of a fitted model, which are
        frozen.

    Raises:
        ValueError: If there is no continuous transform.

    Example:
        >>> from ffjord_kit import ResidualDynamics
        >>> flow = Flow([CNF(ResidualDynamics((2,)), (2,))])
        >>> in_steps(flow, "midpoint", 4).transforms[0].steps
        4
    """
    flow = copy.deepcopy(flow)
    if not any(isinstance(transform, CNF) for transform in flow.transforms):
        raise ValueError("only a flow with continuous transforms can be taken in steps; this one has none")
    transforms = [
        Stepped(
            each.dynamics.requires_grad_(), each.event_shape, method=method, steps=steps, grading=grading,
            learn_grid=learn_grid, end_time=each.end_time,
        ) if isinstance(each, CNF) else each
        for each in flow.transforms
    ]  # fmt: skip
    return Flow(transforms, base=flow.base, preprocess=flow.preprocess, context_dim=flow.context_dim)  # type: ignore[arg-type]


def learns_fast(flow: Flow, rows: int) -> bool:
    """Return whether steps can be fewer and learn faster: those of many rows of few columns, without contexts.

    Args:
        flow: Flow.
        rows: Number of rows.

    Returns:
        Whether they can.
    """
    return math.prod(flow.event_shape) <= FEW and not flow.context_dim and rows >= MANY_ROWS


def suited(phase: Phase, flow: Flow, rows: int) -> Phase:
    """Return the training of steps with the learning rate, and the weight of the penalty, that suit a flow.

    Args:
        phase: Objective and length.
        flow: Flow of steps.
        rows: Number of rows.

    Returns:
        The phase.
    """
    if not learns_fast(flow, rows):
        return replace(phase, learning_rate=LEARNING_RATE)
    objective, steps = phase.objective, [each.steps for each in flow.transforms if isinstance(each, Stepped)]
    if isinstance(objective, SteppedLikelihood) and min(steps) >= SHORT_STEPS:
        objective = replace(objective, weight=FAST_PENALTY * objective.weight)
    return replace(phase, objective=objective, learning_rate=FAST_LEARNING_RATE)


def rank_steps(
    flow: Flow,
    validation: Batch,
    evaluations: int = 8,
    methods: Sequence[str] = tuple(RUNGE_KUTTA),
    *,
    folding: float = 1.0,
) -> list[Candidate]:
    """Score the steps that take at most some number of evaluations.

    Args:
        flow: Continuous flow.
        validation: Held-out rows and contexts, in the units of the data.
        evaluations: Largest number of evaluations of the field.
        methods: Words of EXPLICIT_SCHEMES.
        folding: Factor of the penalty; below 1 where training removes what little of it there is.

    Returns:
        Candidates, that of the lowest sum of NLL and penalty first: the NLL of steps that fold is worthless.
    """
    affordable = _affordable(evaluations, methods)
    found = [Candidate(steps, *_scores(in_steps(flow, *steps), validation)) for steps in affordable]
    return sorted(found, key=lambda candidate: candidate.score(folding))


def train_steps(
    flow: Flow, x: Tensor | Rows, *, phase: Phase | None = None, config: TrainConfig | None = None, **options: Any
) -> History:
    """Train a flow of explicit steps in place by its exact likelihood; the best weights on held-out rows are kept.

    Args:
        flow: Flow of steps.
        x: Rows, shape (n, *event), in the units of the data, or a source of them.
        phase: Objective and length; the default objective for 60 seconds if None.
        config: How weights are updated and validated; batch and moving average are those of a short training.
        **options: Further options of `fit_flow`: validation, context, run, on_step, ...

    Returns:
        The history, which ends early where validation gets no better.
    """
    fast = learns_fast(flow, len(x))
    if phase is None:
        phase = suited(
            Phase(SteppedLikelihood(), math.inf, LEARNING_RATE, 60.0, trial=True, from_start=True), flow, len(x)
        )
    config = config or TrainConfig()
    elements, decay = (FAST_BATCH_ELEMENTS, FAST_EMA_DECAY) if fast else (BATCH_ELEMENTS, EMA_DECAY)
    rows = min(config.batch_size, max(LEAST_BATCH, elements // math.prod(flow.event_shape)))
    if options.get("noise") is not None:
        rows = min(rows, max(LEAST_BATCH, rows // FEWER_WITH_NOISE))
    config = replace(config, ema_decay=decay, batch_size=rows)
    return fit_flow(flow, x, schedule=[phase], config=config, **options)


def _affordable(evaluations: int, methods: Sequence[str]) -> Iterator[Steps]:
    for method in methods:
        steps = evaluations // EXPLICIT_SCHEMES[method].stages
        if steps:
            yield from (Steps(method, steps, grading) for grading in GRADINGS)


@torch.no_grad()
def _scores(flow: Flow, rows: Batch) -> tuple[float, float]:
    """Return the NLL of rows by the sizes of their weights, nats in the units of the data, and the weighted penalty."""
    rows = rows.sized()
    objective, parts, inner = SteppedLikelihood(), [], preprocessed(flow, rows)
    generator = keyed_generator(inner.batch.x.device, "scheme")
    for part in inner.batch.split(flow.rows_at_once):
        terms = objective.loss(flow.inner, part, generator).terms
        parts.append([len(part) * float(term) for term in (terms["nll"], terms["monotonicity"])])
    nll, penalty = (sum(part) / len(rows) for part in zip(*parts, strict=True))
    shift = 0.0 if inner.log_det is None else float(rows.mean(inner.log_det))
    return nll - shift, objective.weight * penalty
