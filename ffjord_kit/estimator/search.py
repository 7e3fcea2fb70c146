r"""Schedule `auto`: what is left open is tried out on validation data, then trained for the rest of the budget.

Short fits by flow matching, one after the other, each with one word changed and the better one kept: the density of t
(which weight suits is a matter of the data), the scaling next to the data (correlations, edges and skew against plain
units), and for a few columns the octaves among the inputs. A later word must win by a margin. The best of them is
trained on by flow matching. A finish by maximum likelihood follows: MLE_STEPS for a few columns where steps are
counted, or, of a limit in seconds, a share of what is left where that buys enough steps. One of steps ends at the
second validation that is not better; the better weights are kept. The log says all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.estimator import build
from ffjord_kit.estimator.defaults import FEW_COLUMNS, OPEN, defaults, is_image, settled
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.plan import Plan, untrained
from ffjord_kit.estimator.words import Part
from ffjord_kit.failures import SolveError
from ffjord_kit.flow import Flow
from ffjord_kit.heavy_tails import widened
from ffjord_kit.layers import shared_information
from ffjord_kit.progress import progress_bar
from ffjord_kit.training import History, Phase, TrainingDiverged, fit
from ffjord_kit.training.data import noise_generator, peel
from ffjord_kit.training.watch import Watch

STEPS, MOST_EPOCHS = 4000, 700  # of flow matching where steps are counted: small sets are learnt by heart beyond
TRIAL_STEPS, TRIAL_SHARE, TRIAL_SHARE_OF_MANY = 400, 0.06, 0.05  # of few columns, and of more, with more to try
TRIAL_ELEMENTS, TRIAL_ROWS = 4_096, 50  # of the validation data; at least so many rows
# Nats a column by which a later word must win: a short fit is kinder to some.
MARGINS = {"time_density": 0.05, "scaling": 0.02, "octaves": 0.01}
WARM_STEPS = 3  # before the trials: the first steps of a process are slow
LAYERS_STEPS, LAYERS_SHARE = 2000, 0.25
GAUSSIANIZED_FROM = 200  # rows: fewer say little of the quantiles
WHITENED_UP_TO = 32  # columns: with 63 it led by ten nats after 240 steps, and after 2,500 by nothing
MLE_STEPS = 100  # of a finish where steps are counted, for a few columns
FINISH, FINISH_OF_MANY = (0.35, 30), (0.2, 50)  # of the time left, and the least steps of it: few columns, and more
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
    search, best = Search(fields, plan, seed, History(seed)), Trial({}, plan.flow)
    why = _nothing_to_try(fields, plan)
    if why:
        search.note(f"nothing tried out ({why})")
    else:
        best = search.best()
    words = {**defaults(plan.event, fields.base), **best.words}
    words = {name: word for name, word in words.items() if getattr(fields, name) in OPEN}
    parts = search.parts(settled(fields, words, plan.event), best)
    words["schedule"] = ",".join(map(str, parts))
    search.note("chosen: " + ", ".join(f"{name}={word}" for name, word in words.items()))
    return Chosen(words, best.flow, search.before)


@dataclass
class Search:
    """What the trials are made of, and the history `before` the schedule, which tells of them and of their time."""

    fields: Fields
    plan: Plan
    seed: int
    before: History

    def best(self) -> Trial:
        """The best of the trials: first words first, then the best so far with one word changed.

        Raises TrainingDiverged where every trial does.
        """
        options = list(self.open())
        count = 1 + sum(len(words) - 1 for _, words in options)
        first = {name: words[0] for name, words in options}
        if self.fields.max_seconds is not None:
            self._fitted(first, (WARM_STEPS, math.inf), None)
        best = self._tried(first, f"trial 1/{count}")
        ways = [(name, word) for name, words in options for word in words[1:]]
        for number, (name, word) in enumerate(ways, 2):
            trial = self._tried({**best.words, name: word}, f"trial {number}/{count}")
            margin = MARGINS[name] * self.dimensions
            best = trial if trial.nll < best.nll - margin else best
        if best.failure is not None:
            raise best.failure
        return best

    def open(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The fields left open, and the words to try, the likelier first."""
        if self.fields.time_density == "auto":
            yield "time_density", ("likelihood", "uniform")
        if self.fields.scaling == "auto":
            yield "scaling", self._scalings()
        if self.fields.octaves is None and self.fields.dynamics in ("auto", "residual"):
            yield "octaves", (2, 0) if self.few_columns else (0,)

    def _scalings(self) -> tuple[str, ...]:
        if self.fields.base == "student":
            return ("robust",)
        x = self.plan.fitting[0]
        if widened(x):
            words = ("robust",)
        else:
            words = ("standardize", "half_whiten") if self._worth_whitening(x) else ("standardize",)
        return (*words, "gaussianize") if len(self.plan.rows[0]) >= GAUSSIANIZED_FROM else words

    def _worth_whitening(self, x: Tensor) -> bool:
        """Whether what correlations show is worth a margin, can be taken away, and a trial would tell."""
        some = FEW_COLUMNS < self.dimensions <= WHITENED_UP_TO
        return some and MARGINS["scaling"] * self.dimensions < shared_information(x) < math.inf

    def parts(self, now: Fields, best: Trial) -> Iterator[Part]:
        """The phases that follow, of the settled fields `now`, in what is left of the budget."""
        left = self._left()
        if now.scales > 1:  # flow matching moves every pixel to the end, and leaves none behind
            yield Part("mle", self._steps()) if left is None else Part("mle", seconds=left)
            return
        finish = self.finish(now, best)
        left = self._left()
        taken = 0.0 if finish is None or left is None else finish.seconds
        if now.layers:
            yield Part("layers", *_length(left, LAYERS_SHARE, LAYERS_STEPS))
            taken += 0.0 if left is None else LAYERS_SHARE * left
        yield Part("flow_matching", self._steps()) if left is None else Part("flow_matching", seconds=left - taken)
        if finish is not None:
            yield finish

    def finish(self, now: Fields, best: Trial) -> Part | None:
        """The finish by maximum likelihood, or None where it cannot be judged or too few of its steps can be had."""
        if not best.steps:
            return self._no_finish("no trials")
        if self.fields.max_seconds is None:
            if self.few_columns:
                return Part("mle", steps=MLE_STEPS)
            return self._no_finish("too dear for so many columns without max_seconds")
        share, least = FINISH if self.few_columns else FINISH_OF_MANY
        with self._counted():
            forward = _seconds_forward(now, self.plan, best.flow)
        steps = int(share * self._left() / (THERE_AND_BACK * forward))
        if steps < least:
            return self._no_finish(f"{share:.0%} of the time left would buy {steps} of its steps")
        return Part("mle", seconds=share * self._left())

    @property
    def dimensions(self) -> int:
        """The number of columns, or pixels."""
        return math.prod(self.plan.event)

    @property
    def few_columns(self) -> bool:
        """Whether a step by likelihood is cheap."""
        return self.dimensions <= FEW_COLUMNS

    @property
    def _share(self) -> float:
        """Of the seconds allowed, what a trial takes."""
        return TRIAL_SHARE if self.few_columns else TRIAL_SHARE_OF_MANY

    def note(self, event: str) -> None:
        """Tell it in the log."""
        self.before.records.append(
            {"step": 0, "phase": "trials", "seconds": round(self.before.seconds, 3), "event": event}
        )

    def _left(self) -> float | None:
        """The seconds left of those allowed, a trial's share at least; None without a limit."""
        limit = self.fields.max_seconds
        return None if limit is None else max(limit - self.before.spent, self._share * limit)

    def _steps(self) -> int:
        """The steps of flow matching where no seconds are given."""
        an_epoch = max(1, len(self.plan.rows[0]) // self.plan.options["batch_size"])
        return min(STEPS, MOST_EPOCHS * an_epoch)

    def _no_finish(self, why: str) -> None:
        self.note(f"no finish by maximum likelihood: {why}")

    def _tried(self, words: dict[str, Any], title: str) -> Trial:
        """A trial, which the log tells."""
        trial = self._fitted(words, _length(self.fields.max_seconds, self._share, TRIAL_STEPS), title)
        told = ", ".join(f"{name}={word}" for name, word in words.items()) or "the only way"
        result = f"validation NLL {trial.nll:.4f} after {trial.steps} steps" if trial.failure is None else "diverged"
        self.note(f"tried {told}: {result}")
        return trial

    def _fitted(self, words: dict[str, Any], length: tuple[float, float], title: str | None) -> Trial:
        """A short fit from the start, under a progress bar with a title."""
        (steps, seconds), plan, before = length, self.plan, self.before
        now = settled(self.fields, words, self.plan.event)
        objective, rate = build.build_objectives(now, self.plan.event)["flow_matching"]
        phase = Phase(objective, steps, rate, seconds, validations=1)
        few = slice(0, max(TRIAL_ROWS, TRIAL_ELEMENTS // self.dimensions))
        judges = tuple(part if part is None else part[few] for part in plan.held_out)
        guess = 0.0 if seconds == math.inf else seconds / 8  # of what a validation costs: there is one, at the end
        known = History(self.seed, validation_cost=before.validation_cost or guess)
        try:
            with (
                self._counted(),
                progress_bar([phase], self.fields.verbose and title is not None, titles=[title]) as tell,
            ):
                flow = untrained(now, *plan.fitting, self.seed)
                history = fit(
                    flow, plan.rows[0], context=plan.rows[1], validation=judges, schedule=[phase], **plan.options,
                    seed=self.seed, before=known, on_step=tell,
                )  # fmt: skip
        except TrainingDiverged as error:
            return Trial(words, plan.flow, failure=error)
        if history.interrupted:
            raise KeyboardInterrupt
        before.validation_cost = history.validation_cost
        return Trial(words, flow, history.best_nll, history.step)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of what is done here, however it ends."""
        watch = Watch(build.build_device(self.fields.device), self.before.seconds, self.before.spent)
        try:
            yield
        finally:
            self.before.seconds, self.before.spent = watch.read()


def _nothing_to_try(fields: Fields, plan: Plan) -> str:
    """Why no trials are made; empty where they are."""
    if is_image(plan.event):
        return "images have words that suit them"
    if fields.layers:
        return "layers come first"
    return "no validation rows" if plan.held_out is None else ""


def _seconds_forward(now: Fields, plan: Plan, flow: Flow) -> float:
    """What the loss of a batch takes in maximum likelihood; infinite where it cannot be solved."""
    objective = build.build_objectives(now, plan.event)["mle"][0]
    fixed, inner = peel(flow)
    few = torch.linspace(0, len(plan.fitting[0]) - 1, min(len(plan.fitting[0]), plan.options["batch_size"])).long()
    context = None if plan.fitting[1] is None else plan.fitting[1][few]
    data = fixed.prepare(plan.fitting[0][few], context, next(inner.parameters()))
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
