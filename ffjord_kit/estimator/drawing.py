"""Draws of a fitted model, the paths that they come on, and the rows that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ffjord_kit.estimator.arrays import held_out_rows, seed_from, tensor
from ffjord_kit.estimator.few_steps import solver_of
from ffjord_kit.estimator.given import Given
from ffjord_kit.estimator.images import refuse_images, split_of
from ffjord_kit.estimator.peeled import Peeled
from ffjord_kit.estimator.reports import checked, contexts, reported
from ffjord_kit.estimator.results import NumpyTrajectory, to_numpy
from ffjord_kit.flow import Flow
from ffjord_kit.images import guided
from ffjord_kit.portions import drawn_at_once
from ffjord_kit.solver import Solver

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

SHOWN, QUICK = 64, Solver("midpoint", steps=8, grading=2.0)  # draws of a flow in training
GUIDED_BY = "context_dropout=0.1"


def draw(
    model: FFJORD, n: int, context: Any, random_state: Any, steps: int | None, method: str, guidance: float
) -> np.ndarray:
    """Draws (n, *event), by a converged solve, or by so many fixed steps in float32."""
    generator, context = _drawing(model, n, context, random_state)
    solver, flow = model.integration.solver if steps is None else solver_of(model, method, steps), model.flow_
    if guidance != 1:
        if not guidance >= 0:
            raise ValueError(f"guidance must be at least 0, and above 1 to go further; got {guidance}")
        if not model.context_dropout:
            raise ValueError(
                f"guidance needs a model that was fitted with {GUIDED_BY}; this one always had its context"
            )
        flow = guided(flow, guidance)
    peeled, parts = Peeled(flow, single=steps is not None), []
    rows = drawn_at_once(model.event_shape_, peeled.like.device.type)
    for start in range(0, n, rows):
        end = min(start + rows, n)
        part = None if context is None else context[start:end]
        parts.append(to_numpy(peeled.sample(end - start, part, solver=solver, generator=generator)))
    return _given_back(model, np.concatenate(parts))


def samples_of(
    flow: Flow, read: Given, seed: int, show: Callable[[dict[str, Any], np.ndarray], None]
) -> Callable[[dict[str, Any]], None]:
    """What shows draws of a flow that is being trained, always from the same noise, when it is told of a validation.

    Their contexts are those of the first of the data.
    """
    context = None if read.context is None else tensor(np.resize(read.context, (SHOWN, read.context.shape[1])))

    def told(record: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = to_numpy(Peeled(flow).sample(SHOWN, context, solver=QUICK, generator=generator))
        show(record, drawn if read.images is None else read.images.restored(drawn))

    return told


def states(model: FFJORD, n: int, times: Sequence[float], context: Any, random_state: Any) -> np.ndarray:
    """States of draws, (T, n, ...): each time solved for from the same noise."""
    check_is_fitted(model, "flow_")
    flow, drawn, seed = Peeled(model.flow_), [], seed_from(random_state)
    for time in times:
        generator, given = _drawing(model, n, context, seed)
        state = flow.sample(n, given, solver=model.integration.solver, generator=generator, time=time)
        drawn.append(to_numpy(state))
    found = np.stack(drawn)
    return found if model.images is None else model.images.framed(found)


def interpolate(
    model: FFJORD, start: Any, end: Any, *, steps: int = 9, contexts: tuple[Any, Any] | None = None
) -> np.ndarray:
    """Ways from data `start` to data `end`, (n, ...) each, by great circles between their places at the base.

    (n, steps, ...), the data themselves at the ends, with their contexts between in equal parts. A line between two
    draws of a normal law of many dimensions would pass where it has hardly any mass.
    Raises ValueError for fewer than three steps, or ends that do not pair.
    """
    if steps < 3 or len(start) != len(end):
        raise ValueError(f"interpolate takes pairs of data and 3 steps or more; got {len(start)}, {len(end)}, {steps}")
    flow, solver = Peeled(model.flow_), model.integration.solver
    told = (None, None) if contexts is None else contexts
    ends = [checked(model, x, context) for x, context in zip((start, end), told, strict=True)]
    if not all(inside.all() for _, _, inside in ends):
        raise ValueError(f"interpolate takes rows within the support, {model.support!r}; got some outside")
    z = [flow.to_base(x, context, solver) for x, context, _ in ends]
    between = []
    for share in np.linspace(0, 1, steps)[1:-1].tolist():
        context = None if contexts is None else torch.lerp(ends[0][1], ends[1][1], share)
        between.append(to_numpy(flow.to_data(_on_great_circle(*z, share), context, solver)))
    made = [_given_back(model, rows) for rows in between]
    return np.stack([np.asarray(start), *made, np.asarray(end)], axis=1)


def _on_great_circle(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Between rows (n, *event), by angle and, in proportion, by length (Shoemake 1985)."""
    a, b = start.flatten(1).double(), end.flatten(1).double()
    lengths = [part.norm(dim=1, keepdim=True) for part in (a, b)]
    cosine = ((a / lengths[0]) * (b / lengths[1])).sum(1, keepdim=True).clamp(-1 + 1e-9, 1 - 1e-9)
    angle = cosine.acos()
    turned = ((1 - share) * angle).sin() * a / lengths[0] + (share * angle).sin() * b / lengths[1]
    length = lengths[0] ** (1 - share) * lengths[1] ** share
    return (turned / angle.sin() * length).reshape(start.shape).to(start)


def _given_back(model: FFJORD, drawn: np.ndarray) -> np.ndarray:
    """Rows as the model gives them: on their grid, or as images."""
    return model.grid.rounded(drawn) if model.images is None else model.images.restored(drawn)


def follow(model: FFJORD, n: int, frames: int, context: Any, random_state: Any) -> NumpyTrajectory:
    """New samples from the base to the data, at so many times."""
    if frames < 2:
        raise ValueError(f"frames must be at least 2; got {frames}")
    generator, context = _drawing(model, n, context, random_state)
    refuse_images(model, "trajectory", "its states, without densities, come by `states`")
    solver, times = model.integration.solver, np.linspace(0.0, 1.0, frames)
    with torch.no_grad():
        start = model.flow_.sample(n, context, time=0.0, generator=generator)
        path = model.flow_.trajectory(start, times.tolist(), context, solver=solver)
    return NumpyTrajectory(times, to_numpy(path.x), to_numpy(path.log_prob))


def split(model: FFJORD, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a fit that it trained on, and those that it held out."""
    if model.images is not None:
        model.images.checked(x)
        train, held_out = split_of(len(x), model.n_features_in_, model.validation_fraction, model.seed_)
        return np.asarray(x)[train.numpy()], np.asarray(x)[held_out.numpy()]
    x = np.asarray(x, np.float64)
    kept, held_out = held_out_rows(x, None, model.validation_fraction, model.seed_)
    return kept[0].numpy(), np.empty((0, x.shape[1])) if held_out is None else held_out[0].numpy()


def _drawing(model: FFJORD, n: int, context: Any, random_state: Any) -> tuple[torch.Generator, Tensor | None]:
    check_is_fitted(model, "flow_")
    if n < 1:
        raise ValueError(f"n_samples must be at least 1; got {n}")
    given = contexts(model, context, n)
    context = None if given is None else reported(model, given)
    return torch.Generator().manual_seed(seed_from(random_state)), context
