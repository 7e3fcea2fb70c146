r"""Reflow of a fitted flow: flow matching again on its own pairs, so that sampling takes a few steps.

    z ~ base,   x = to_data(z) by a converged solve,   then   E_t |f(t, (1 - t) z + t x) - (x - z)|^2

(Liu et al. 2023). A new network need not learn what is linear: an affine transform brings the ends x to mean 0 and
covariance 1, and turns them towards their beginnings z, so that lines are short and no direction of little variance
makes the field stiff. The density of the new flow is its own: it is solved for, and measured, as any other.

A few fixed steps may crowd towards one end of the time (`FixedSolver.grading`): a field that was fitted to data is
stiffest near them, one after reflow where its paths begin, for there the mass forks. So the grading is measured, and
kept.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.data import Batch, sampling_batch_size
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.memory import check_fits
from ffjord_kit.nn.base import buffers_added_later
from ffjord_kit.objectives import FlowMatching, Reflow, split_transforms
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, SolveError, Solver
from ffjord_kit.precision import single_precision
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import TensorData
from ffjord_kit.training.history import History
from ffjord_kit.training.loop import fit
from ffjord_kit.transforms import Affine, Transform
from ffjord_kit.transforms.cnf import SolveOptions

PAIR_BYTES = 4 * 4  # of an element of a start and its end, drawn and stacked, in float32
PAIRS_PER_COLUMN = 10  # that a covariance takes, at least
TIME_DENSITY = "uniform"  # the weight of the likelihood leaves the early field, and so its straightness, unlearnt
GRADINGS = (0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0)
GRADING_ROWS = 4_096  # the error is that of few rows, where paths fork
GRADING_METHOD, GRADING_STEPS = "rk4", (3, 6)


@dataclass(frozen=True)
class ReflowSettings:
    """Settings of a reflow.

    Args:
        pairs: Number of pairs to draw.
        steps: Steps of training on them.
        learning_rate: Peak learning rate.
        hidden: Widths of a new network that learns the pairs; None to train the old one on.

    Raises:
        ValueError: If a number is not positive.
    """

    pairs: int = 20_000
    steps: int = 4_000
    learning_rate: float = 8e-3
    hidden: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden must be one or more positive widths; got {self.hidden}")

    @property
    def phase(self) -> Phase:
        """Phase of training."""
        return Phase(Reflow(FlowMatching(TIME_DENSITY)), self.steps, self.learning_rate)


@torch.no_grad()
def draw_pairs(
    flow: Flow, contexts: Tensor | None, count: int, seed: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw pairs of ends of the continuous transforms' paths.

    Args:
        flow: Flow.
        contexts: Contexts to draw from, shape (n, c), or None.
        count: Number of pairs.
        seed: Seed.
        tolerance: Tolerance of the solve.

    Returns:
        Starts and ends, shape (count, *event), and contexts as the transforms see them.

    Raises:
        ValueError: If the memory cannot hold so many.
    """
    size = math.prod(flow.event_shape)
    check_fits(f"{count} pairs would take", PAIR_BYTES * count * size, "draw fewer pairs")
    _, cnfs, below = split_transforms(flow)
    generator, context = torch.Generator().manual_seed(seed), None
    start = flow.base.sample(count, generator)
    if contexts is not None:
        chosen = contexts[torch.randint(len(contexts), (count,), generator=generator)]
        context = flow.preprocess.scale_context(chosen, flow.like)
    for transform in reversed(below):
        start, _ = transform.to_data(start, context)
    options, ends = SolveOptions(trace=None, solver=AdaptiveSolver("dopri5", tolerance, tolerance)), []
    for batch in Batch(start, context).split(sampling_batch_size(flow.event_shape, start.device.type)):
        state = batch.x
        for cnf in reversed(cnfs):
            state = cnf.integrate(state, [0.0, cnf.end_time], context=batch.context, options=options).x[-1]
        ends.append(state)
    return start, torch.cat(ends), context


def prepare_flow(
    old: Flow, layers: Sequence[Transform] | None, start: Tensor, end: Tensor
) -> tuple[Flow, Tensor, bool]:
    """Prepare the flow to train on pairs: a copy of the old one, or one with new continuous transforms.

    Args:
        old: Flow that drew the pairs.
        layers: New continuous transforms, or None to train the old ones on.
        start: Starts of the paths, shape (n, *event).
        end: Their ends.

    Returns:
        The flow, the ends as its continuous transforms see them, and whether an affine transform aligns them.
    """
    if layers is None:
        return copy.deepcopy(old), end, False
    layers = [layer.to(old.like) for layer in layers]
    known = isinstance(old.base, StandardNormal) and len(end) >= PAIRS_PER_COLUMN * end.shape[1]
    if not known:
        above, _, below = split_transforms(old)
        return with_transforms(old, [*above, *layers, *below]), end, False
    alignment = Affine.aligning(start, end)
    return with_alignment(old, alignment, layers), alignment.to_base(end)[0], True


def train_on_pairs(
    flow: Flow,
    pairs: Batch,
    settings: ReflowSettings,
    config: TrainConfig,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train the continuous transforms on pairs of their ends.

    Args:
        flow: Flow, which is trained in place.
        pairs: Pairs, as `stack_pairs` makes them, and contexts.
        settings: Settings.
        config: Options of the training loop.
        on_step: Called with the record of each step.

    Returns:
        The history.
    """
    for cnf in split_transforms(flow)[1]:
        cnf.requires_grad_(True)
    return fit(flow, TensorData(pairs), [settings.phase], config=config, on_step=on_step)


def with_alignment(flow: Flow, alignment: Transform, continuous: Sequence[Transform] | None = None) -> Flow:
    """Return a flow with an exact transform on the data's side of its continuous ones.

    It joins the preprocessing where nothing with weights stands between.

    Args:
        flow: The flow; it stays as it is.
        alignment: Exact transform without weights.
        continuous: Continuous transforms that take the place of the flow's own; its own if None.

    Returns:
        The new flow.
    """
    above, own, below = split_transforms(flow)
    middle = [*(own if continuous is None else continuous), *below]
    if above:
        return with_transforms(flow, [*above, alignment, *middle])
    return Flow(
        middle, base=flow.base, preprocess=[*flow.preprocess.transforms, alignment], context_dim=flow.context_dim,
        context_preprocess=flow.preprocess.context,
    )  # fmt: skip


def best_grading(flow: Flow, contexts: Tensor | None, seed: int) -> float:
    """Return the grading with which samples by a few steps are nearest to those of a converged solve.

    Nearness is the mean, over numbers of steps, of the logarithm of the mean square error.

    Args:
        flow: Fitted flow; few steps run in float32.
        contexts: Contexts to draw for, shape (n, c), or None.
        seed: Seed of the draws.

    Returns:
        One of GRADINGS.
    """
    single = single_precision(flow)
    z = flow.base.sample(GRADING_ROWS, torch.Generator().manual_seed(seed)).to(single.like)
    if contexts is not None:
        contexts = contexts[torch.arange(GRADING_ROWS) % len(contexts)]
    truth = _end(single, z, contexts, AdaptiveSolver("dopri5", 1e-5, 1e-5))

    def error(grading: float, steps: int) -> float:
        try:
            moved = _end(single, z, contexts, FixedSolver(GRADING_METHOD, steps, grading=grading))
        except SolveError:  # steps placed like this leave the reach of the field
            return math.inf
        return float(((moved - truth) / truth.std(0)).square().mean().log())

    return min(GRADINGS, key=lambda grading: sum(error(grading, steps) for steps in GRADING_STEPS))


@torch.no_grad()
def _end(flow: Flow, z: Tensor, context: Tensor | None, solver: Solver) -> Tensor:
    """Map points at the base to data."""
    return flow.to_data(z, context, options=SolveOptions(trace=None, solver=solver))[0]


def weights_digest(flow: Flow) -> str:
    """Return the SHA-256 of all weights.

    Args:
        flow: Flow.

    Returns:
        Hexadecimal digits.
    """
    digest, later = hashlib.sha256(), buffers_added_later(flow)
    for name, value in flow.state_dict().items():
        if name in later:  # the digest of a run of an earlier version is that without it
            continue
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
