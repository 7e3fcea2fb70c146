"""The second density of a fit: the same flow in few explicit steps, trained on by exact likelihood, with its receipt.

It is exact, and costs a fixed number of evaluations. The continuous flow remains: for trajectories, for p_t, and as the
density that reports where the steps' is not as good or fails its receipt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import Receipt, check_steps
from ffjord_kit.estimator.data import TrainingData
from ffjord_kit.estimator.tables.measurement_errors import NEEDS_STEPS
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Objective
from ffjord_kit.ode import SolveError
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.precision import double_precision, single_precision
from ffjord_kit.progress import training_progress
from ffjord_kit.run import Run, finite_or_none, number_or_infinity
from ffjord_kit.training import History, Phase, TrainConfig, Workers, fit_flow
from ffjord_kit.training.discretize import (
    FEW,
    MANY_COLUMNS,
    MANY_ROWS,
    Steps,
    in_steps,
    learns_fast,
    rank_steps,
    suited,
    train_steps,
)  # fmt: skip
from ffjord_kit.training.history import OnStep
from ffjord_kit.training.runtime import Timer


class Choice(NamedTuple):
    """Evaluations of the field that the steps of some fits may take.

    Attributes:
        evaluations: Numbers of evaluations; the later ones are taken where steps of fewer would fold too much.
        folding: Nats of penalty that are too much, before any training: more than a stray row has.
    """

    evaluations: tuple[int, ...]
    folding: float = 100.0


# Of many rows, short steps of a simple scheme begin worse than long ones of a higher order, and end better; and fewer
# make more steps of training. After 33 s of matching and 11 s of steps protein has an NLL of -3.85, -3.69 and -3.54 by
# 8 evaluations of euler and of midpoint, and 16 of euler; after 25 s and 20 s checkerboard has a KL of 0.026 and 0.032
# by 6 and 12. Of few rows training regains nearly nothing of what steps lose, so the scheme that loses least is taken:
# on kin8nm 16 evaluations of euler lose 0.14 nats, and of midpoint 0.003. With contexts it regains less. Of wide rows,
# whose frames are dear, some ten steps of training can be had, so their steps must hold as they are: on digits 16
# evaluations of euler have 0.34 nats less than the midpoint's, but count 0.75 % of the mass twice, and the midpoint's
# nothing; on BSDS300 8 of euler fold, and 16 of the midpoint do not.
FAST, MANY, FEW_ROWS = Choice((6, 12), 500.0), Choice((8, 16)), Choice((16,))
WIDE, OTHERS = Choice((16, 32)), Choice((16, 32))
SCHEMES, SCHEMES_OF_FEW_ROWS, SCHEMES_OF_WIDE_ROWS = ("euler",), ("euler", "midpoint"), ("midpoint",)
FOLDING_OF_FEW_ROWS = 0.01  # factor of the penalty there: 10 nats of it are gone after a few steps of training
# Rows of the choice of a scheme, and of the receipt that a fit makes: elements, and least and most rows.
SCHEME_ELEMENTS, SCHEME_ROWS = 2048, (32, 300)
RECEIPT_ELEMENTS, RECEIPT_ROWS = 1536, (24, 200)
RECEIPT_ROWS_A_SECOND = 20  # of a short training of the steps, at most
FEW_POINTS, MORE_ROWS = 2, 3  # against a density: one of 165 is no evidence of a share above 0.5 %
JUDGED_WITH_NOISE = 300  # held-out rows
# Draws of the steps, which the continuous flow learns, in so many steps or in so large a share of the seconds.
FOLLOWED_DRAWS, FOLLOWING_STEPS, FOLLOWING_SHARE = 10_000, 1000, 0.15
NOISE_REMOVED = "noise_removed"  # entry of config.json of a fit with measurement errors that has ended
MARGIN = 0.02  # nats by which the steps may be worse than the continuous flow, which costs many times as much


@dataclass(frozen=True)
class SteppedNote:
    """Note of a run on its flow in few steps.

    Attributes:
        scheme: The steps.
        nll: Validation NLL by the steps, nats; infinite where none was measured, or no weights were sound.
        continuous_nll: Validation NLL by the continuous flow, nats; infinite where none was measured.
        receipt: Receipt on held-out rows.
    """

    scheme: Steps
    nll: float
    continuous_nll: float
    receipt: Receipt

    @property
    def density(self) -> str:
        """Word of the density that reports: "steps" where these hold, and are as good as the continuous flow."""
        as_good = math.isfinite(self.nll) and self.nll <= self.continuous_nll + MARGIN
        return "steps" if self.receipt.holds and as_good else "continuous"

    def __str__(self) -> str:
        sound = f"validation NLL {self.nll:.4f} nats" if math.isfinite(self.nll) else "no sound validation"
        if not math.isfinite(self.continuous_nll):
            return f"{self.scheme}, {sound}"
        return f"{self.scheme}, {sound} (continuous flow {self.continuous_nll:.4f})"

    def record(self) -> dict[str, Any]:
        """Return the note as plain values.

        Returns:
            Values by name.
        """
        nlls = {name: finite_or_none(getattr(self, name)) for name in ("nll", "continuous_nll")}
        return {**self.scheme._asdict(), **nlls, "receipt": self.receipt.record(), "density": self.density}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> SteppedNote:
        """Read the note of a record.

        Args:
            record: Values by name, as `record` returned them.

        Returns:
            The note.

        Raises:
            KeyError, TypeError, ValueError: If they make no sense.
        """
        nll, continuous = (number_or_infinity(record[name]) for name in ("nll", "continuous_nll"))
        return cls(scheme_of(record), nll, continuous, Receipt.of_record(record["receipt"]))


def scheme_of(record: Mapping[str, Any]) -> Steps:
    """Read the scheme of a record.

    Args:
        record: Values by name.

    Returns:
        The scheme.

    Raises:
        KeyError, TypeError, ValueError: If they make no sense.
    """
    return Steps(str(record["method"]), int(record["steps"]), float(record["grading"]))


def fit_steps(
    flow: Flow,
    rows: TrainingData,
    phase: Phase,
    config: TrainConfig,
    *,
    before: History,
    continuous_nll: float | None,
    record: dict[str, Any],
    steps: int | None = None,
    method: str | None = None,
    folder: Run | None = None,
    resume: bool = False,
    timer: Timer | None = None,
    shown: bool = False,
    on_step: OnStep | None = None,
) -> tuple[Flow | None, History, dict[str, Any]]:
    """Train a copy of a flow on, in few explicit steps, and examine it; the first worker chooses these.

    Args:
        flow: Continuous flow.
        rows: Training data.
        phase: Objective and length of the training; its learning rate is that of the flow.
        config: How weights are updated and validated.
        before: History of the continuous flow.
        continuous_nll: Validation NLL of the continuous flow; None if it was not validated.
        record: What config.json holds; an earlier choice of steps in it stays.
        steps: Number of steps; chosen on held-out rows if None.
        method: Word of EXPLICIT_SCHEMES; chosen on held-out rows if None.
        folder: Run folder, or None.
        resume: Whether to go on from the last checkpoint of the steps, if there is one.
        timer: Clocks that run already.
        shown: Whether to show a progress bar.
        on_step: Called with the record of each step.

    Returns:
        The flow of steps, None if it was interrupted; the history; and the record with the note of the steps.
    """
    workers, judges = Workers.here(), rows.fitting if rows.held_out is None else rows.held_out
    judges = replace(judges, noise=None)
    known = record.get("steps")
    scheme: Steps = workers.broadcast(
        lambda: scheme_of(known) if known else _best_scheme(flow, judges, len(rows.x), steps, method)
    )
    record = record if known else amended(record, folder, steps=scheme._asdict())
    few, part = stepped(flow, scheme), None if folder is None else folder.within("steps")
    phase = suited(phase, few, len(rows.x))
    going_on = workers.broadcast(lambda: part is not None and resume and part.has_checkpoint)
    with training_progress([phase], shown=shown and workers.is_first, on_step=on_step) as bars:
        history = train_steps(
            few, rows.x, validation=_judges_of_steps(rows), context=rows.context, weight=rows.weight,
            noise=rows.noise, phase=phase, config=config, workers=workers, run=part, resume=going_on,
            before=replace(before, best_nll=None), timer=timer, on_step=bars.on_step,
        )  # fmt: skip
        bars.finish(history.interrupted)
    if history.interrupted:
        return None, history, record
    nlls = (history.best_nll, continuous_nll)
    count = _count(
        RECEIPT_ELEMENTS, judges, (RECEIPT_ROWS[0], min(RECEIPT_ROWS[1], RECEIPT_ROWS_A_SECOND * phase.seconds))
    )
    asked = rows.examined(judges)
    note = workers.broadcast(lambda: _examined(few, scheme, asked, *nlls, rows=count).record())
    few.requires_grad_(False)
    return few, history, amended(record, folder, steps=note)


def follow_steps(
    flow: Flow,
    steps: Flow | None,
    rows: TrainingData,
    matching: tuple[Objective[Any], float],
    config: TrainConfig,
    *,
    max_seconds: float | None,
    record: dict[str, Any],
    folder: Run | None,
) -> dict[str, Any]:
    """Train a continuous flow, which knows rows with their errors, on draws of its few steps, which know true values.

    Args:
        flow: Continuous flow, trained in place.
        steps: Flow of steps.
        rows: Training data, whose contexts the draws have.
        matching: Flow matching and its peak learning rate.
        config: How weights are updated.
        max_seconds: Seconds of the whole fit; None where steps are counted.
        record: What config.json holds.
        folder: Run folder, or None.

    Returns:
        The record, with the note that the measurement errors of the rows are removed.

    Raises:
        ValueError: If there is no flow of steps.
    """
    if steps is None:
        raise ValueError(f"noise_std needs few explicit steps, and no trial was made for them: {NEEDS_STEPS}")
    lengths = (FOLLOWING_STEPS, math.inf) if max_seconds is None else (math.inf, FOLLOWING_SHARE * max_seconds)
    phase = Phase(matching[0], lengths[0], matching[1], lengths[1], validations=1)
    places = torch.arange(FOLLOWED_DRAWS) % len(rows.x)
    z = steps.base.sample(FOLLOWED_DRAWS, torch.Generator().manual_seed(config.seed))
    draws = _reached(double_precision(steps), Batch(z, None if rows.context is None else rows.context[places]))
    fit_flow(flow, draws.x, context=draws.context, schedule=[phase], config=config, workers=Workers())
    if folder is not None:
        folder.save_model(flow)
    return amended(record, folder, **{NOISE_REMOVED: True})


@torch.no_grad()
def _reached(steps: Flow, place: Batch) -> Batch:
    """Return the draws of base points, without those that no exact step reaches."""
    while True:
        try:
            return place.with_x(steps.to_data(place.x.to(steps.like), place.context)[0])
        except SolveError as error:
            good = torch.ones(len(place), dtype=torch.bool)
            good[list(error.rows)] = False
            if not error.rows or not bool(good.any()):
                raise
            place = place[good]


def _judges_of_steps(rows: TrainingData) -> Batch | None:
    """Return the held-out rows; fewer of them where each is scored many times, less its measurement error."""
    return rows.held_out if rows.held_out is None or rows.noise is None else rows.held_out[:JUDGED_WITH_NOISE]


def stepped(flow: Flow, scheme: Steps) -> Flow:
    """Return a copy of a flow in few steps, in the precision of training.

    Args:
        flow: Continuous flow.
        scheme: The steps.

    Returns:
        The flow of steps.
    """
    return in_steps(single_precision(flow), *scheme)


def amended(record: dict[str, Any], folder: Run | None, **content: Any) -> dict[str, Any]:
    """Return a record with further entries, which its run keeps too.

    Args:
        record: What config.json holds.
        folder: Run folder, or None.
        **content: Entries by name.

    Returns:
        The new record.
    """
    return {**record, **content} if folder is None else folder.amend(**content)


def _best_scheme(flow: Flow, judges: Batch, rows: int, steps: int | None = None, method: str | None = None) -> Steps:
    """Return the scheme with the lowest sum of NLL and penalty, of more evaluations where that penalty is large.

    Narrow peaks fold long steps. On the power_plant table, whose rows are nearly identical, 16, 32 and 64 evaluations
    begin with a penalty of 1790, 170 and 7 nats after 5 minutes of matching; on protein it is below 1 nat.
    """
    count = min(len(judges), _count(SCHEME_ELEMENTS, judges, SCHEME_ROWS))
    some, choice = judges[torch.linspace(0, len(judges) - 1, count).long()], _choice(flow, rows)
    schemes, weight = _schemes(flow, rows)
    rank = partial(rank_steps, single_precision(flow), some, folding=weight)
    schemes = schemes if method is None else (method,)
    if steps is not None:
        each = [rank(steps * EXPLICIT_SCHEMES[word].stages, (word,))[0] for word in schemes]
        return min(each, key=lambda candidate: candidate.score(weight)).steps
    for evaluations in choice.evaluations:
        best = rank(evaluations, schemes)[0]
        if best.penalty < choice.folding:
            break
    return best.steps


def _schemes(flow: Flow, rows: int) -> tuple[tuple[str, ...], float]:
    """Return the schemes that the steps of a flow of so many rows may have, and the factor of their penalty."""
    if _is_wide(flow):
        return SCHEMES_OF_WIDE_ROWS, 1.0
    return (SCHEMES_OF_FEW_ROWS, FOLDING_OF_FEW_ROWS) if rows < MANY_ROWS else (SCHEMES, 1.0)


def _is_wide(flow: Flow) -> bool:
    return math.prod(flow.event_shape) > MANY_COLUMNS


def _choice(flow: Flow, rows: int) -> Choice:
    """Return the evaluations that the steps of a flow of so many rows may take."""
    if learns_fast(flow, rows):
        return FAST
    if _is_wide(flow):
        return WIDE
    if flow.context_dim or math.prod(flow.event_shape) <= FEW:
        return OTHERS
    return FEW_ROWS if rows < MANY_ROWS else MANY


def _count(elements: int, rows: Batch, bounds: tuple[float, float]) -> int:
    """Return the number of rows that have so many elements, within bounds: the frame of a wide row is dear."""
    least, most = bounds
    return int(max(least, min(most, elements // rows.x[0].numel())))


def _examined(
    flow: Flow, scheme: Steps, judges: Batch, nll: float | None, continuous_nll: float | None, *, rows: int
) -> SteppedNote:
    """Examine a flow of steps on some rows; an NLL is None where it was not validated, or no weights were sound."""
    return SteppedNote(
        scheme, number_or_infinity(nll), number_or_infinity(continuous_nll), _receipt(flow, judges, rows)
    )


def _receipt(flow: Flow, judges: Batch, rows: int) -> Receipt:
    """Check steps on some rows, and on more of them where one or two points alone speak against a density."""
    rows = min(rows, len(judges))
    receipt = check_steps(flow, judges.x, judges.context, rows=rows, integrate=False)
    against = rows * max(receipt.uncertified, receipt.unreached, receipt.excess)
    if receipt.holds or round(against) > FEW_POINTS:
        return receipt
    return check_steps(flow, judges.x, judges.context, rows=MORE_ROWS * rows, integrate=False)
