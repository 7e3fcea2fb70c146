r"""Schedule `auto`: what is left open is tried out on validation data, then trained for the rest of the budget.

Short fits by flow matching, one after the other, each with one word changed and the better one kept: the density of t
(which weight suits is a matter of the data), the scaling next to the data (edges and skew against plain units), and for
a few columns the octaves among the inputs. A later word must win by a margin. The best of them is trained on by flow
matching. A finish by maximum likelihood follows: MLE_STEPS for a few columns where steps are counted, or, of a limit in
seconds, MLE_SHARE of what is left where that buys LEAST_MLE_STEPS. It ends at the second validation that is not better,
and the better weights are kept. The log says all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ffjord_kit.estimator import build
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.plan import Plan, untrained
from ffjord_kit.estimator.words import Part
from ffjord_kit.flow import Flow
from ffjord_kit.progress import progress_bar
from ffjord_kit.solver import SolveError
from ffjord_kit.training import History, Phase, TrainingDiverged, fit
from ffjord_kit.training.data import noise_generator, peel
from ffjord_kit.training.watch import Watch

STEPS = 4000
TRIAL_STEPS, TRIAL_SHARE = 400, 0.06
TRIAL_ELEMENTS, TRIAL_ROWS = 4_096, 50  # of the validation data; at least so many rows
# Nats a column by which a later word must win: a short fit is kinder to some.
MARGINS = {"time_density": 0.05, "scaling": 0.02, "octaves": 0.0}
WARM_STEPS = 3  # before the trials: the first steps of a process are slow
LAYERS_STEPS, LAYERS_SHARE = 2000, 0.25
GAUSSIANIZED_FROM = 200  # rows: fewer say little of the quantiles
MLE_STEPS = 100  # of a finish where steps are counted, for a few columns
MLE_SHARE, LEAST_MLE_STEPS = {True: 0.35, False: 0.2}, 30  # of the time left, for a few columns and for more
THERE_AND_BACK = 3  # times the way forward


class Chosen(NamedTuple):
    """The words of what was left open, the flow to go on with, and what it took so far."""

    words: dict[str, Any]
    flow: Flow
    before: History


class Trial(NamedTuple):
    """A short fit: the words it was made with, its flow, its validation NLL, its steps, and what made it fail."""

    words: dict[str, Any]
    flow: Flow
    nll: float = math.inf
    steps: int = 0
    failure: TrainingDiverged | None = None


def choose(fields: Fields, plan: Plan, seed: int) -> Chosen:
    """Try out what `fields` leave open, and settle the schedule.

    Raises KeyboardInterrupt where it is interrupted: the trials are soon made again.
    """
    before, best = History(seed), Trial({}, plan.flow)
    if fields.layers or plan.held_out is None:
        why = "layers come first" if fields.layers else "no validation rows"
        _note(before, f"nothing tried out ({why})")
    else:
        best = _best(fields, plan, seed, before)
    dimensions = plan.rows[0].shape[1]
    words = {**build.defaults(dimensions), **best.words}
    words = {name: word for name, word in words.items() if getattr(fields, name) in build.OPEN}
    schedule = ",".join(map(str, _parts(build.settled(fields, words, dimensions), plan, best, before)))
    _note(before, "chosen: " + ", ".join(f"{name}={word}" for name, word in {**words, "schedule": schedule}.items()))
    return Chosen({**words, "schedule": schedule}, best.flow, before)


def _best(fields: Fields, plan: Plan, seed: int, before: History) -> Trial:
    """The best of the trials: first words first, then the best so far with one word changed. `before` tells them.

    Raises TrainingDiverged where every trial does.
    """
    options = list(_open(fields, plan))
    count = 1 + sum(len(words) - 1 for _, words in options)
    first = {name: words[0] for name, words in options}
    if fields.max_seconds is not None:
        _fitted(fields, plan, first, seed, (WARM_STEPS, math.inf), None, before)
    best = _tried(fields, plan, first, seed, f"trial 1/{count}", before)
    ways = [(name, word) for name, words in options for word in words[1:]]
    for number, (name, word) in enumerate(ways, 2):
        trial = _tried(fields, plan, {**best.words, name: word}, seed, f"trial {number}/{count}", before)
        margin = MARGINS[name] * plan.rows[0].shape[1]
        best = trial if trial.nll < best.nll - margin else best
    if best.failure is not None:
        raise best.failure
    return best


def _open(fields: Fields, plan: Plan) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The fields left open, and the words to try, the likelier first."""
    rows, dimensions = plan.rows[0].shape
    if fields.time_density == "auto":
        yield "time_density", ("likelihood", "uniform")
    if fields.scaling == "auto":
        yield "scaling", ("standardize", "gaussianize") if rows >= GAUSSIANIZED_FROM else ("standardize",)
    if fields.octaves is None and fields.dynamics == "residual":
        yield "octaves", (2, 0) if dimensions <= build.FEW_COLUMNS else (0,)


def _tried(fields: Fields, plan: Plan, words: dict[str, Any], seed: int, title: str, before: History) -> Trial:
    """A trial, which `before` tells."""
    length = _length(fields.max_seconds, TRIAL_SHARE, TRIAL_STEPS)
    trial = _fitted(fields, plan, words, seed, length, title, before)
    told = ", ".join(f"{name}={word}" for name, word in words.items()) or "the only way"
    result = f"validation NLL {trial.nll:.4f} after {trial.steps} steps" if trial.failure is None else "diverged"
    _note(before, f"tried {told}: {result}")
    return trial


def _fitted(
    fields: Fields,
    plan: Plan,
    words: dict[str, Any],
    seed: int,
    length: tuple[float, float],
    title: str | None,
    before: History,
) -> Trial:
    """A short fit from the start, under a progress bar with a title; its time is counted in `before`."""
    (steps, seconds), dimensions = length, plan.rows[0].shape[1]
    watch = Watch(build.build_device(fields.device), before.seconds, before.spent)
    now = build.settled(fields, words, dimensions)
    flow = untrained(now, *plan.rows, seed)
    objective, rate = build.build_objectives(now, dimensions)["flow_matching"]
    phase = Phase(objective, steps, rate, seconds)
    few = slice(0, max(TRIAL_ROWS, TRIAL_ELEMENTS // dimensions))
    judges = tuple(part if part is None else part[few] for part in plan.held_out)
    guess = 0.0 if seconds == math.inf else seconds / 8  # of what a validation costs: there is one, at the end
    try:
        with progress_bar([phase], fields.verbose and title is not None, titles=[title]) as tell:
            history = fit(
                flow, plan.rows[0], context=plan.rows[1], validation=judges, schedule=[phase], **plan.options,
                seed=seed, before=History(seed, validation_cost=before.validation_cost or guess), on_step=tell,
            )  # fmt: skip
    except TrainingDiverged as error:
        return Trial(words, plan.flow, failure=error)
    finally:
        before.seconds, before.spent = watch.read()
    if history.interrupted:
        raise KeyboardInterrupt
    before.validation_cost = history.validation_cost
    return Trial(words, flow, history.best_nll, history.step)


def _parts(now: Fields, plan: Plan, best: Trial, before: History) -> Iterator[Part]:
    """The phases that follow, in what is left of the budget."""
    left = None if now.max_seconds is None else max(now.max_seconds - before.spent, TRIAL_SHARE * now.max_seconds)
    if now.layers:
        yield Part("layers", *_length(left, LAYERS_SHARE, LAYERS_STEPS))
        left = None if left is None else (1 - LAYERS_SHARE) * left
    finish = _finish(now, plan, best, left, before)
    taken = 0.0 if finish is None or left is None else finish.seconds
    yield Part("flow_matching", steps=STEPS) if left is None else Part("flow_matching", seconds=left - taken)
    if finish is not None:
        yield finish


def _finish(now: Fields, plan: Plan, best: Trial, left: float | None, before: History) -> Part | None:
    """The finish by maximum likelihood, or None where it cannot be judged or too few of its steps can be had."""
    few = plan.rows[0].shape[1] <= build.FEW_COLUMNS
    if best.steps and left is None and few:
        return Part("mle", steps=MLE_STEPS)
    why = (
        "no trials" if not best.steps else "too dear for so many columns without max_seconds" if left is None else None
    )
    if why is None:
        watch = Watch(build.build_device(now.device), before.seconds, before.spent)
        steps = int(MLE_SHARE[few] * left / (THERE_AND_BACK * _seconds_forward(now, plan, best.flow)))
        before.seconds, before.spent = watch.read()
        if steps >= LEAST_MLE_STEPS:
            return Part("mle", seconds=MLE_SHARE[few] * left)
        why = f"{MLE_SHARE[few]:.0%} of the time left would buy {steps} of its steps"
    _note(before, f"no finish by maximum likelihood: {why}")
    return None


def _seconds_forward(now: Fields, plan: Plan, flow: Flow) -> float:
    """What the loss of a batch takes in maximum likelihood; infinite where it cannot be solved."""
    objective = build.build_objectives(now, plan.rows[0].shape[1])["mle"][0]
    fixed, inner = peel(flow)
    few = torch.linspace(0, len(plan.rows[0]) - 1, min(len(plan.rows[0]), plan.options["batch_size"])).long()
    context = None if plan.rows[1] is None else plan.rows[1][few]
    data = fixed.prepare(plan.rows[0][few], context, next(inner.parameters()))
    watch = Watch(data.x.device)
    try:
        with torch.no_grad():
            float(objective.loss(inner, data.x, data.context, noise_generator(data.x.device, "cost")).value)
    except SolveError:
        return math.inf
    return watch.read()[1]


def _length(seconds: float | None, share: float, steps: int) -> tuple[float, float]:
    """So many steps, or a share of the seconds where there is a limit to them: (steps, seconds)."""
    return (steps, math.inf) if seconds is None else (math.inf, share * seconds)


def _note(history: History, event: str) -> None:
    history.records.append({"step": 0, "phase": "trials", "seconds": round(history.seconds, 3), "event": event})
