r"""Schedule `auto`: open fields are tried out on validation data, then training goes on for the rest of the budget.

Short fits by flow matching follow each other, each with one field changed, and the better is kept: the density of t
(which weight suits is a matter of the data), the scaling next to the data (correlations, edges and skew against plain
units), and for a few columns the Fourier features among the inputs. A later value must win by a margin. The best fit is
trained on by flow matching. A quarter of the seconds left goes to its few explicit steps, trained by exact likelihood,
or, of more columns than these pay for, a share to a finish by maximum likelihood, if that buys enough steps. Where the
base alone is likelier by far, as kernels at places on a sphere can be, it is left as it is. The log records every trial
and choice.

Of a table of fewer than a thousand rows, a part judges badly: there settings and the length of training are chosen by
cross-validation, beginning with the flow as it is, which is its base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.estimator.config import Config, build_flow, resolve
from ffjord_kit.estimator.data import TrainingData
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import OPEN, CommonFields, PhaseSpec
from ffjord_kit.estimator.tables.table import SCALING_MARGIN
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator
from ffjord_kit.ode import OutOfTime, SolveError, time_limit
from ffjord_kit.progress import training_progress
from ffjord_kit.training import History, Phase, TrainingDiverged, Workers, fit_flow
from ffjord_kit.training.cross_validation import Race, split_folds
from ffjord_kit.training.data import preprocessed
from ffjord_kit.training.discretize import MANY_COLUMNS
from ffjord_kit.training.runtime import Timer, pass_on
from ffjord_kit.training.validation import LikelihoodValidation

STEPS, MOST_EPOCHS = 4000, 700  # of flow matching where steps are counted: small sets are learnt by heart beyond
TRIAL_STEPS, TRIAL_SHARE, TRIAL_SHARE_OF_MANY = 400, 0.06, 0.05  # of few columns, and of more, with more to try
# Seconds beyond which trials of few columns grow as the root of those allowed, and leave the time to the fit. Of 60 s,
# trials of 0.03 in place of 0.06 take the KL of image and checkerboard from 0.031 and 0.034 to 0.030 and 0.030
# (benchmarks/front.py, two seeds). Of more columns they stay long: kin8nm is better standardized, and after 500 steps
# gaussianized by 0.28 nats, after 1,900 by 0.07.
LONG = 20.0
# Of the validation data that judge a trial: elements, at most so many for each second of it, and least rows.
TRIAL_ELEMENTS, TRIAL_ELEMENTS_A_SECOND, TRIAL_ROWS = 4_096, 512, 50
# Nats a column by which a later value must win: a short fit is kinder to some.
MARGINS = {"time_density": 0.05, "scaling": SCALING_MARGIN, "fourier_features": 0.01, "base": 0.1}
RACED = ("base", "scaling")  # fields whose values race in cross-validation; others are tried on the winner
FOLDS, MIN_FOLDED, MOST_FOLDED = 4, 30, 10_000  # of cross-validation; least and largest number of rows
FLOW_FIELDS = ("scaling", "base", "hidden", "fourier_features")  # tried out, and part of a flow
TRIALS_SHARE = 0.4  # of the seconds; no trial begins later
LEAST_SHARE = 0.01  # of the seconds, for the rest of a fit whose trials took all
RATE_OF_ONE_STEP = 1e-9  # leaves the flow as it begins
WARM_STEPS = 3  # before the trials: the first steps of a process are slow
TRANSFORMS_STEPS, TRANSFORMS_SHARE = 2000, 0.25
FINISH_SHARE, FINISH_STEPS = 0.2, 50  # of the time left for maximum likelihood, and the least steps of it
# In few explicit steps: where steps are counted; else a share of the time: of up to 3 columns without contexts, of
# more, and of many, whose frames are dear.
STEPS_IN_STEPS, SHARE_IN_STEPS_OF_FEW, SHARE_IN_STEPS, SHARE_IN_STEPS_OF_MANY = 200, 0.4, 0.25, 0.1
SHARE_WITH_NOISE = 0.5  # of the time for the steps, where these remove measurement errors
THERE_AND_BACK = 3  # times the cost of the forward pass


class Choice(NamedTuple):
    """Settled choices of schedule auto."""

    values: dict[str, Any]
    flow: Flow
    before: History


class Trial(NamedTuple):
    """A short fit.

    Attributes:
        values: Values of the open fields that it was made with.
        flow: Its flow.
        nll: Its validation NLL.
        steps: Its steps.
        failure: What made it fail.
    """

    values: dict[str, Any]
    flow: Flow
    nll: float = math.inf
    steps: int = 0
    failure: TrainingDiverged | None = None

    @property
    def is_untrained(self) -> bool:
        """Whether its flow is left as it begins, which is its base."""
        return self.values.get("learning_rate") == RATE_OF_ONE_STEP


def is_small(domain: Domain, data: TrainingData) -> bool:
    """Return whether the rows are so few, by their weights, that all of them must judge, by cross-validation.

    Args:
        domain: Domain of the data.
        data: Training data.

    Returns:
        True if they are.
    """
    foldable = isinstance(data.x, Tensor) and MIN_FOLDED <= len(data.x) <= MOST_FOLDED
    return foldable and domain.is_small(data.effective_rows)


def choose(
    fields: CommonFields, domain: Domain, data: TrainingData, config: Config, flow: Flow, timer: Timer
) -> Choice:
    """Try out the open fields, and settle the schedule.

    Args:
        fields: Fields, some of them open.
        domain: Domain of the data.
        data: Training data.
        config: Configuration with the open fields at their defaults.
        flow: Untrained flow of that configuration.
        timer: Clocks of the fit.

    Returns:
        The choice.

    Raises:
        TrainingDiverged: If every trial diverges.
        KeyboardInterrupt: If it is interrupted: the trials are soon made again.
    """
    search, best = Search(fields, domain, data, config, flow, History(config.train.seed), timer), Trial({}, flow)
    reason = search.reason_not_to_try()
    if reason:
        search.note(f"nothing tried out ({reason})")
    else:
        best = search.cross_validated() if search.is_small else search.best()
    values = {**domain.defaults(), **best.values}
    values = {name: value for name, value in values.items() if getattr(fields, name) in OPEN}
    settled = resolve(fields, domain, seed=config.train.seed, chosen=values)
    if best.steps and not search.is_small:
        search.before.best_nll = search.score(settled, best)
    specs = (
        [PhaseSpec("flow_matching", best.steps), *search.in_steps_with_noise(best)]
        if best.steps and (search.is_small or best.is_untrained)
        else [*search.schedule(settled, best)]
    )
    values["schedule"] = [spec.value for spec in specs]
    search.note(
        "chosen: "
        + ", ".join(f"{name}={_word(value)}" for name, value in values.items())
        + untrained_remark(settled.fields)
    )
    search.before.seconds, search.before.work_seconds = timer.read()
    return Choice(values, best.flow, search.before)


@dataclass
class Search:
    """The trials of one fit.

    Args:
        fields: Fields, some of them open.
        domain: Domain of the data.
        data: Training data.
        config: Configuration with the open fields at their defaults.
        flow: Untrained flow of that configuration.
        before: History that records the trials.
        timer: Clocks of the fit.
        untrained: Untrained flows by what they are made of.
    """

    fields: CommonFields
    domain: Domain
    data: TrainingData
    config: Config
    flow: Flow
    before: History
    timer: Timer
    untrained: dict[Any, Flow] = field(default_factory=dict)

    def best(self) -> Trial:
        """Make the trials: the first values first, then the best so far with one value changed.

        Returns:
            The best trial.

        Raises:
            TrainingDiverged: If every trial diverges.
        """
        options = list(self.options())
        count = 1 + sum(len(values) - 1 for _, values in options)
        first = {name: values[0] for name, values in options}
        if given := self._untrained_bases(given=True):
            return self._tried_base(first, given[0])
        if self.fields.max_seconds is not None:
            self._fitted(first, (WARM_STEPS, math.inf), None)
        best = self._tried(first, f"trial 1/{count}")
        changes = [(name, value) for name, values in options for value in values[1:]]
        for number, (name, value) in enumerate(changes, 2):
            if self._seconds > TRIALS_SHARE * (self.fields.max_seconds or math.inf):
                self.note(f"{name}={value} not tried: the trials have had their share of the seconds")
                continue
            trial = self._tried({**best.values, name: value}, f"trial {number}/{count}")
            margin = MARGINS.get(name, 0.0) * self.domain.size
            best = trial if trial.nll < best.nll - margin else best
        best = self._base_if_better(best)
        if best.failure is not None:
            raise best.failure
        return best

    def _base_if_better(self, best: Trial) -> Trial:
        """Return the best trial, or a base as it is if that is likelier by a margin: a short fit goes on to gain."""
        for word in self._untrained_bases(given=False):
            trial = self._tried_base(best.values, word)
            best = trial if trial.nll < best.nll - MARGINS["base"] * self.domain.size else best
        return best

    def _tried_base(self, values: dict[str, Any], word: str) -> Trial:
        """Try a base as it is."""
        return self._tried(_with_rate({**values, "base": word}, 1), word, (1, math.inf))

    def _untrained_bases(self, *, given: bool) -> list[str]:
        """Return the bases that may be left as they are: those of the field, or those that are open."""
        wanted = getattr(self.fields, "base", None)
        free = self.fields.learning_rate in OPEN
        return [
            word
            for word in self.domain.untrained_bases(self.data)
            if free and (wanted == word if given else wanted in OPEN)
        ]

    @property
    def is_small(self) -> bool:
        """Whether the rows are so few that all of them must judge."""
        return is_small(self.domain, self.data)

    def cross_validated(self) -> Trial:
        """Choose values and the number of steps by cross-validation.

        Returns:
            The best trial, whose flow is not trained.
        """
        parts = split_folds(len(self.data.x), FOLDS, self.before.seed)
        folds = [self.domain.fold(self.data, *rows) for rows in parts]

        def score(values: Mapping[str, Any], fold: int, steps: int) -> float:
            title = f"fold {fold + 1}/{FOLDS}" if steps > 1 else None
            return self._fitted(_with_rate(values, steps), (steps, math.inf), title, folds[fold]).nll

        race = Race(score, self._seconds_to_search, self._matching_steps(), FOLDS)
        options = dict(self.options())
        first = {name: values[0] for name, values in options.items()}
        race.run([first, *({**first, name: value} for name in RACED for value in options.get(name, ())[1:])])
        race.refine()
        values, steps = race.best()
        for change in ({**values, name: value} for name, each in options.items() for value in each):
            if not race.has(change, steps):
                race.add(change, steps)
        self._note_race(race)
        values, steps = race.best()
        values = _with_rate(values, steps)
        flow = build_flow(
            resolve(self.fields, self.domain, seed=self.before.seed, chosen=values),
            self.domain,
            self.data,
            self.before.seed,
        )
        return Trial(values, flow, race.lowest, steps)

    def _seconds_to_search(self) -> float:
        """Return the seconds left for cross-validation, the rest being for the fit itself."""
        limit = self.fields.max_seconds
        if limit is None:
            return math.inf
        return limit * (1.0 if self.data.noise is None else 1 - SHARE_WITH_NOISE) - self._seconds

    def _note_race(self, race: Race) -> None:
        """Record the scores of all settings."""
        for values, steps, scores in race.results:
            settings = ", ".join(f"{name}={value}" for name, value in values.items())
            self.note(f"tried {settings}: validation NLL {fmean(scores):.4f} after {steps} steps, {race.folds} folds")

    def options(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the fields to try out and their values, the likelier first.

        Yields:
            Fields and values.
        """
        for name, values in self.domain.search_options(self.data, self.fields.max_seconds or math.inf):
            suits = name != "fourier_features" or self.config.fields.dynamics == "residual"
            if getattr(self.fields, name) in OPEN and suits:
                yield name, values

    def reason_not_to_try(self) -> str:
        """Return why no trials are made.

        Returns:
            The reason; empty if they are made.
        """
        if self.config.transforms:
            return "exact transforms come first"
        return self.domain.reason_not_to_search() or (
            "no validation rows" if self.data.held_out is None and not self.is_small else ""
        )

    def schedule(self, config: Config, best: Trial) -> Iterator[PhaseSpec]:
        """Yield the phases that follow, in the rest of the budget.

        Args:
            config: Configuration with the chosen values.
            best: Best trial.

        Yields:
            Phases.
        """
        left = self._seconds_left()
        if config.phases[0].objective.name == "mle":  # multi-scale flows, which flow matching cannot train
            yield PhaseSpec("mle", self._matching_steps()) if left is None else PhaseSpec("mle", seconds=left)
            return
        finish = self.in_steps(best) or self.finish(config, best)
        left = self._seconds_left()
        taken = 0.0 if finish is None or left is None else finish.seconds
        if config.transforms:
            yield PhaseSpec("transforms", *_length(left, TRANSFORMS_SHARE, TRANSFORMS_STEPS))
            taken += 0.0 if left is None else TRANSFORMS_SHARE * left
        matching = "flow_matching"
        yield PhaseSpec(matching, self._matching_steps()) if left is None else PhaseSpec(matching, seconds=left - taken)
        if finish is not None:
            yield finish

    def in_steps(self, best: Trial) -> PhaseSpec | None:
        """Return the training in few explicit steps.

        Args:
            best: Best trial.

        Returns:
            The phase; None where the trials, the columns or the data rule it out.
        """
        if not best.steps or self.domain.reason_not_to_step():
            return None
        if self.fields.max_seconds is None:
            return PhaseSpec("steps", steps=STEPS_IN_STEPS)
        return PhaseSpec("steps", seconds=self._share_in_steps() * (self._seconds_left() or 0.0))

    def _share_in_steps(self) -> float:
        """Return the share of the seconds left that goes to few explicit steps."""
        if self.data.noise is not None:
            return SHARE_WITH_NOISE
        if self.domain.size > MANY_COLUMNS:
            return SHARE_IN_STEPS_OF_MANY
        return SHARE_IN_STEPS_OF_FEW if self.domain.few_columns and self.data.context is None else SHARE_IN_STEPS

    def in_steps_with_noise(self, best: Trial) -> Iterator[PhaseSpec]:
        """Yield the training in few explicit steps of a small table, which needs it where rows have measurement errors.

        Args:
            best: Best trial.

        Yields:
            The phase, or none.
        """
        phase = None if self.data.noise is None else self.in_steps(best)
        if phase is not None:
            yield phase

    def finish(self, config: Config, best: Trial) -> PhaseSpec | None:
        """Return the finish by maximum likelihood, where the columns are too many for explicit steps.

        Args:
            config: Configuration with the chosen values.
            best: Best trial.

        Returns:
            The phase; None if it cannot be judged, or too few of its steps can be had.
        """
        if not best.steps:
            return self._no_finish("no trials")
        if self.fields.max_seconds is None:
            return self._no_finish("too dear for so many columns without max_seconds")
        forward = self._seconds_of_a_loss(config, best.flow)
        left = self._seconds_left() or 0.0
        steps = int(FINISH_SHARE * left / (THERE_AND_BACK * forward))
        if steps < FINISH_STEPS:
            return self._no_finish(f"{FINISH_SHARE:.0%} of the time left would buy {steps} of its steps")
        return PhaseSpec("mle", seconds=FINISH_SHARE * (self._seconds_left() or 0.0))

    def score(self, config: Config, best: Trial) -> float | None:
        """Score a trial on all validation rows, so that its weights stay if training finds no better ones.

        Args:
            config: Configuration with the chosen values.
            best: The trial.

        Returns:
            Validation NLL, nats; None if it cannot be had in time.
        """
        held_out, end = self.data.held_out, self._seconds + self._share * (self.fields.max_seconds or math.inf)
        if held_out is None or len(held_out) == len(self._judges() or ()):
            return best.nll
        validate = LikelihoodValidation(best.flow.inner, preprocessed(best.flow, held_out), config.validation)
        try:
            with time_limit(lambda: self._seconds > end):
                return validate(Workers(), 1).mean
        except (SolveError, OutOfTime):
            return None

    def note(self, event: str) -> None:
        """Record an event.

        Args:
            event: Text.
        """
        seconds = round(self.timer.read()[0], 3)
        self.before.records.append({"step": 0, "phase": "trials", "seconds": seconds, "event": event})

    @property
    def _share(self) -> float:
        """Share of the allowed seconds that a trial takes."""
        if not self.domain.few_columns:
            return TRIAL_SHARE_OF_MANY
        limit = self.fields.max_seconds
        return TRIAL_SHARE if limit is None else TRIAL_SHARE * math.sqrt(min(1.0, LONG / limit))

    def _seconds_left(self) -> float | None:
        """Return the seconds left of those allowed, at least a trial's share; None without a limit."""
        limit = self.fields.max_seconds
        return None if limit is None else max(limit - self._seconds, LEAST_SHARE * limit)

    def _matching_steps(self) -> int:
        """Return the steps of flow matching where no seconds are given."""
        epoch = max(1, self.data.effective_rows // self.config.train.batch_size)
        return min(STEPS, MOST_EPOCHS * epoch)

    def _no_finish(self, reason: str) -> PhaseSpec | None:
        """Record why there is no finish."""
        self.note(f"no finish by maximum likelihood: {reason}")
        return None

    def _tried(self, values: dict[str, Any], title: str, length: tuple[float, float] | None = None) -> Trial:
        """Make a trial, and record it."""
        trial = self._fitted(values, length or _length(self.fields.max_seconds, self._share, TRIAL_STEPS), title)
        settings = ", ".join(f"{name}={value}" for name, value in values.items()) or "the only way"
        result = f"validation NLL {trial.nll:.4f} after {trial.steps} steps" if trial.failure is None else "diverged"
        self.note(f"tried {settings}: {result}")
        return trial

    def _fitted(
        self,
        values: Mapping[str, Any],
        length: tuple[float, float],
        title: str | None,
        fold: TrainingData | None = None,
    ) -> Trial:
        """Make a short fit from the start, with a progress bar if it has a title."""
        (steps, seconds), data, before = length, fold or self.data, self.before
        config = resolve(self.fields, self.domain, seed=before.seed, chosen=values)
        objective, rate = config.objectives["flow_matching"]
        phase = Phase(objective, steps, rate, seconds, validations=1, overtime=self._overtime(seconds))
        guess = 0.0 if seconds == math.inf else seconds / 8  # of what a validation costs: there is one, at the end
        known = History(before.seed, validation_cost=before.validation_cost or guess)
        shown = self.fields.verbose and title is not None
        try:
            with training_progress([phase], shown=shown, titles=[title or ""]) as bars:
                flow = self._untrained(config, data)
                history = fit_flow(
                    flow, data.fitting.x, context=data.fitting.context, weight=data.fitting.weight,
                    validation=self._judges() if fold is None else fold.held_out,
                    schedule=[phase],
                    evaluation=config.validation, config=self._alone(config), workers=Workers(), before=known,
                    on_step=bars.on_step,
                )  # fmt: skip
                bars.finish(history.interrupted)
        except TrainingDiverged as error:
            return Trial(dict(values), self.flow, failure=error)
        if history.interrupted:
            pass_on(history.signal)
            raise KeyboardInterrupt  # a handler of the script's own has returned: there is no model yet
        before.validation_cost = history.validation_cost
        nll = math.inf if history.best_nll is None else history.best_nll
        return Trial(dict(values), flow, nll, history.step)

    def _untrained(self, config: Config, data: TrainingData) -> Flow:
        """Return an untrained flow; what it is made of is fitted once, as a mixture takes seconds."""
        key = (id(data), *(getattr(config.fields, name, None) for name in FLOW_FIELDS))
        if key not in self.untrained:
            self.untrained[key] = build_flow(config, self.domain, data, self.before.seed)
        return deepcopy(self.untrained[key])

    def _judges(self) -> Batch | None:
        """Return some of the held-out rows."""
        held_out = self.data.held_out
        if held_out is None:
            return None
        limit = self.fields.max_seconds
        affordable = math.inf if limit is None else TRIAL_ELEMENTS_A_SECOND * self._share * limit
        few = held_out[: max(TRIAL_ROWS, int(min(TRIAL_ELEMENTS, affordable)) // self.domain.size)]
        return few if few.weight is None or few.weight.sum() > 0 else held_out

    def _alone(self, config: Config) -> Any:
        """Return the training options for one worker, which computes all parts of a batch."""
        return replace(config.train, micro_batches=config.train.micro_batches or Workers.here().size)

    def _seconds_of_a_loss(self, config: Config, flow: Flow) -> float:
        """Return the seconds that a batch's loss takes in maximum likelihood; infinite if it cannot be solved."""
        rows = min(len(self.data.fitting), config.train.batch_size)
        some = torch.linspace(0, len(self.data.fitting) - 1, rows).long()
        batch = preprocessed(flow, self.data.fitting[some]).batch
        begun, generator = self._seconds, keyed_generator(batch.x.device, "cost")
        end = begun + (self._seconds_left() or math.inf) / THERE_AND_BACK
        try:
            with torch.no_grad(), time_limit(lambda: self._seconds > end):
                float(config.objectives["mle"][0].loss(flow.inner, batch, generator).value)
        except (SolveError, OutOfTime):
            return math.inf
        return self._seconds - begun

    @property
    def _seconds(self) -> float:
        """Seconds since the fit began, as limits count them."""
        return self.timer.read()[1]

    def _overtime(self, seconds: float) -> float:
        """Return how late the validation of a trial may be: what it costs is not known yet."""
        if seconds == math.inf:
            return math.inf
        left = self._seconds_to_search()
        return max(seconds, 0.2 * left)


def _with_rate(values: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return values whose single step, if there is no other, changes nothing to speak of."""
    return {**values, **({"learning_rate": RATE_OF_ONE_STEP} if steps == 1 else {})}


def untrained_remark(fields: CommonFields) -> str:
    """Say that the flow is left as it begins, if it is.

    Args:
        fields: Settled fields.

    Returns:
        A remark to follow the chosen values, or nothing.
    """
    if fields.learning_rate != RATE_OF_ONE_STEP:
        return ""
    base = getattr(fields, "base", "")
    word = base if isinstance(base, str) else "your own"
    return f"; more steps are no likelier on rows left out, so the density is that of the base alone: {word}"


def _word(value: Any) -> str:
    """Write a chosen value for the log."""
    return ",".join(f"{word}:{length}" for word, length in value) if isinstance(value, list) else str(value)


def _length(seconds: float | None, share: float, steps: int) -> tuple[float, float]:
    """Return (steps, seconds): the steps, or a share of the seconds if they are limited."""
    return (steps, math.inf) if seconds is None else (math.inf, share * seconds)
