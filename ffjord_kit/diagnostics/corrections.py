"""Corrections: why a row is judged an outlier, and what would mend it.

A correction is the smallest change of the allowed columns after which a row passes. It is

    minimal    in sum_j |change_j| / scale_j, by `minimal_change`
    stable     every change within e of it, column by column, passes too: none of N draws fails and no corner, so that
               the failing share is at most 1 - (1 - c)^(1/N) with confidence c (see `boxes`)
    symbolic   a box around it, in which the same holds, in words: "raise dose to 2.1..2.4 and keep age below 40"

It says what the model would take for an ordinary row, not what causes what.

References:
    Zhang, Solar-Lezama & Singh 2018, Interpreting neural network judgments via minimal, stable, and symbolic
    corrections, https://arxiv.org/abs/1802.07384.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.boxes import TRIES, Certificate, certify, cut, grow, trim
from ffjord_kit.diagnostics.judgment import LOWEST, Allowed, Judge, Judgment
from ffjord_kit.diagnostics.minimal_change import Candidates, Search
from ffjord_kit.flow import Flow
from ffjord_kit.precision import full_precision
from ffjord_kit.transforms.cnf import SolveOptions

DRAWS, CONFIDENCE = 7000, 0.99  # at most 0.1 % of a box fails
FIRST_TRIES = 2  # without more margin
SLACK = 1e-4  # margin beyond the threshold, against rounding
AT_THE_END = 1e-6  # share of its room by which a side may miss the bound that it reached

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Correction:
    """The smallest stable change of a row, and a box of such changes.

    Attributes:
        row: Number of the row.
        before: Its margin, below 0 if it fails; minus infinity where its score is undefined.
        after: Margin of the corrected row.
        missing: How much of the margin no change within the bounds was found to reach; 0 if the row is corrected.
        size: Sum of the changes in units of the columns' scales.
        original: Values of the allowed columns, shape (k,).
        corrected: The same after the change, shape (k,).
        lower: Lower ends of the box, in the units of the data, shape (k,).
        upper: Upper ends, shape (k,).
        ends: Least and greatest value that each column may take, shape (2, k).
        names: Names of the allowed columns.
        stability: Certificate of the changes within e.
        certificate: Certificate of the box.

    Example:
        >>> allowed = Allowed.of(np.array([[-9.0], [9.0]]), ["dose"])
        >>> found = correct(lambda x, row: 1 - x[:, 0], np.array([[0.0], [3.0]]), allowed, np.zeros((1, 1)), stable=0)
        >>> [item.in_words({"dose": "mg"}) for item in found]
        ['passes as it is', 'lower dose to at most 0.99 mg']
    """

    row: int
    before: float
    after: float
    missing: float
    size: float
    original: np.ndarray
    corrected: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    ends: np.ndarray
    names: tuple[str, ...]
    stability: Certificate
    certificate: Certificate

    @property
    def passed(self) -> bool:
        """Whether the row passes as it is."""
        return self.before >= 0

    @property
    def found(self) -> bool:
        """Whether there is a change after which the row passes."""
        return self.missing == 0

    def in_words(
        self, units: Mapping[str, str] | None = None, written: Mapping[str, Callable[[float], str]] | None = None
    ) -> str:
        """Say what mends the row.

        Args:
            units: Units of columns, e.g. {"dose": "mg"}.
            written: How numbers of columns are written that stand for something else, e.g. for dates.

        Returns:
            A sentence; its numbers are rounded into the box.
        """
        if self.passed:
            return "passes as it is"
        if math.isinf(self.missing):
            return "no change within the bounds leads into the support"
        if not self.found:
            return f"no change within the bounds suffices: the best found misses by {self.missing:.3g}"
        columns = zip(self.names, self.original, self.lower, self.upper, self.ends.T, strict=True)
        unit, text = units or {}, written or {}
        parts = [
            (value < low or value > high, _advice(name, value, low, high, ends, unit.get(name, ""), text.get(name)))
            for name, value, low, high, ends in columns
        ]
        return ", ".join(said for _, said in sorted(parts, key=lambda part: not part[0]) if said) or "change nothing"


@dataclass(frozen=True, eq=False)
class Corrections:
    """Corrections of rows.

    Attributes:
        items: One for each row, in their order.
        threshold: Score that a row must reach.
        rows: The corrected rows, those that cannot be corrected as they were, shape (n, d).

    Example:
        >>> allowed = Allowed.of(np.array([[-9.0], [9.0]]), ["dose"])
        >>> found = correct(lambda x, row: 1 - x[:, 0], np.array([[3.0]]), allowed, np.zeros((1, 1)), stable=0)
        >>> len(found), found.table()["dose"].round(2).tolist()
        (1, [1.0])
    """

    items: tuple[Correction, ...]
    threshold: float
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Correction]:
        return iter(self.items)

    def __getitem__(self, place: int) -> Correction:
        return self.items[place]

    def table(self) -> dict[str, np.ndarray]:
        """Return a table of numbers, one line for each row.

        Returns:
            Columns: the row's number, its score before and after, what is missing, the size, the failing share of the
            box, and of each allowed column the corrected value and both ends of the box; NaN without a correction.
        """
        first = self.items[0]
        found = np.array([item.found for item in self.items])
        score = {name: self.threshold + self._column(name) for name in ("before", "after")}
        share = np.array([item.certificate.share for item in self.items])
        table = {
            "row": self._column("row"), **score, "missing": self._column("missing"), "size": self._column("size"),
            "failing_share": share,
        }  # fmt: skip
        for place, name in enumerate(first.names):
            for suffix, field in (("", "corrected"), (" from", "lower"), (" to", "upper")):
                table[name + suffix] = np.where(found, self._column(field)[:, place], np.nan)
        return table

    def _column(self, name: str) -> np.ndarray:
        return np.array([getattr(item, name) for item in self.items], dtype=np.float64)


def correct(
    judge: Judge,
    rows: np.ndarray,
    allowed: Allowed,
    reference: np.ndarray,
    *,
    verify: Judge | None = None,
    stable: float = 0.05,
    slack: float = SLACK,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    threshold: float = 0.0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Corrections:
    """Find the smallest stable change of each row that fails, and a box of such changes.

    Args:
        judge: Gives the margins of points (m, d), each a change of the row (m,) beside it; differentiable.
        rows: Rows, shape (n, d).
        allowed: What may change.
        reference: Rows that pass, some of whose values are tried, shape (m, d).
        verify: A dearer judge that decides what passes, while the first one guides the search; the same if None.
        stable: Distance e, in units of the columns' scales, within which every change must pass.
        slack: Margin that a change must reach, against errors of the judge.
        draws: Number of draws that certify a box.
        confidence: Confidence of a certificate.
        threshold: Score at which the margin is 0, for the table.
        seed: Seed of all draws.
        on_progress: Called with the number of rows done and of all that fail.

    Returns:
        The corrections.

    Raises:
        ValueError: If a number is out of range, or there is no row.

    Example:
        >>> allowed = Allowed.of(np.array([[-9.0, -9.0], [9.0, 9.0]]), ["a", "b"], bounds={"a": (-9, 9)})
        >>> found = correct(lambda x, row: 1 - x[:, 0], np.array([[3.0, 0.0]]), allowed, np.zeros((1, 2)), stable=0)
        >>> found[0].in_words(), found.rows.round(2).tolist()
        ('lower a to at most 0.99', [[1.0, 0.0]])
    """
    _check(rows, stable, draws, confidence)
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(np.asarray(rows), dtype=torch.float64)
    with full_precision():
        judged = Judgment(judge, x, allowed, verify)
        before = judged.margins(x.new_zeros(len(x), len(allowed.names)), torch.arange(len(x)))
        failing = (before < 0).nonzero()[:, 0]
        mender = _Mender(Search(judged.of(failing), stable), slack, draws, confidence, generator)
        values = torch.tensor(np.asarray(reference), dtype=torch.float64)[:, allowed.columns]
        mended = dict(zip(failing.tolist(), mender.mend(values, on_progress), strict=True)) if len(failing) else {}
    items = tuple(_item(i, float(before[i]), x[i], allowed, mended.get(i)) for i in range(len(x)))
    return Corrections(items, threshold, _with_values(rows, items, allowed))


def density_judge(
    flow: Flow, threshold: float, context: Tensor | None = None, options: SolveOptions | None = None
) -> Judge:
    """Judge by the log-density: a point passes where log p(x | context) is at least the threshold.

    Args:
        flow: Flow.
        threshold: Threshold, nats.
        context: Contexts of the rows, shape (n, context_dim), or None.
        options: Trace and solver.

    Returns:
        The judge.

    Example:
        >>> from ffjord_kit.distributions import StandardNormal
        >>> judge = density_judge(Flow([], base=StandardNormal((1,))), threshold=-1.0)
        >>> judge(torch.tensor([[0.0], [3.0]]), torch.tensor([0, 1]))  # log p + 1
        tensor([ 0.0811, -4.4189])
    """

    def judge(points: Tensor, row: Tensor) -> Tensor:
        batch = Batch(points, None if context is None else context[row])
        batch = batch.to(flow.like) if flow.preprocess.identity else batch
        inside = flow.support.check(points).nonzero()[:, 0]
        margins = 0 * points.sum(1) - torch.inf  # outside the support, without a slope
        if not len(inside):
            return margins
        batch = batch[inside]
        log_prob = flow.evaluate_log_prob(batch.x, batch.context, options=options)[0].to(points)
        return margins.index_put((inside,), log_prob - threshold)

    return judge


def class_judge(scores: Callable[[Tensor], Tensor], wanted: Tensor) -> Judge:
    """Judge by the scores of classes: a point passes where the wanted class has the highest.

    Args:
        scores: Scores of points, from (m, d) to (m, classes), differentiable; logits for instance.
        wanted: Number of the wanted class of each row, shape (n,).

    Returns:
        The judge.

    Example:
        >>> class_judge(lambda x: x, torch.tensor([1]))(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-2.])
    """

    def judge(points: Tensor, row: Tensor) -> Tensor:
        values, place = scores(points), wanted[row, None]
        others = values.scatter(1, place, -torch.inf).amax(1)
        return values.gather(1, place)[:, 0] - others

    return judge


@dataclass(frozen=True, eq=False)
class _Mended:
    """The change of a row, its box, and what they hold."""

    change: Tensor
    lower: Tensor
    upper: Tensor
    certificate: Certificate
    after: float
    missing: float
    stability: Certificate


@dataclass(frozen=True, eq=False)
class _Mender:
    """Search, certify, and search on with more margin where a draw fails."""

    search: Search
    slack: float
    draws: int
    confidence: float
    generator: torch.Generator

    def mend(self, reference: Tensor, on_progress: OnProgress | None) -> list[_Mended]:
        n = len(self.search.judgment.rows)
        required = torch.full((n,), self.slack, dtype=torch.float64)
        found = self.search.run(reference, required, self.generator)
        mended = []
        for row in range(n):
            if on_progress is not None:
                on_progress(row, n)
            mended.append(self._mend(row, Candidates(found.change[[row]], found.margin[[row]])))
        return mended

    def _mend(self, row: int, found: Candidates) -> _Mended:
        """Certify the best change of a row; the search goes on with the worst draw, and later with more margin."""
        search = self.search
        place, required = torch.tensor([row]), torch.tensor([self.slack], dtype=torch.float64)
        for attempt in range(1, TRIES + 1):
            change, margin = (part[0] for part in found.best(required))
            box = (end[0] for end in self.search.box(change[None], place))
            core, missing, stability = (next(box), next(box)), self.slack - float(margin), self._unknown
            if missing > 0:
                break
            stability, failing, margins = self._certify(row, core)
            if not len(failing):
                return _Mended(change, *self._grown(row, core, stability), self._after(change, row), 0.0, stability)
            missing = -float(margins.min())
            search = search.knowing(failing[margins.argmin()] - change)
            required = required + missing * (attempt > FIRST_TRIES)
            found = search.improve(found.change, required, rows=place)
            if bool((found.margin < self.slack).all()):
                found = search.anew(found.change, required, place)
        return _Mended(change, *core, self._unknown, self._after(change, row), missing, stability)

    def _grown(
        self, row: int, core: tuple[Tensor, Tensor], stability: Certificate
    ) -> tuple[Tensor, Tensor, Certificate]:
        """Grow a box, and cut off what fails, until no draw does; the core if that never is so."""
        box = grow(self.search.judgment, row, core, self.generator)
        for _ in range(TRIES):
            box = trim(self.search.judgment, row, box, core, self.generator)
            certificate, failing, _ = self._certify(row, box)
            if not len(failing):
                return *box, certificate
            box = cut(box, core, failing)
        return *core, stability

    def _certify(self, row: int, box: tuple[Tensor, Tensor]) -> tuple[Certificate, Tensor, Tensor]:
        return certify(self.search.judgment, row, box, self.draws, self.confidence, self.generator)

    def _after(self, change: Tensor, row: int) -> float:
        return float(self.search.judgment.margins(change[None], torch.tensor([row])))

    @property
    def _unknown(self) -> Certificate:
        return Certificate(0, 0, self.confidence)


def _check(rows: np.ndarray, stable: float, draws: int, confidence: float) -> None:
    if not len(rows):
        raise ValueError("expected 1 row or more to explain; got none")
    if not (stable >= 0 and math.isfinite(stable)):
        raise ValueError(f"stable must be a distance of at least 0, in scales of the columns; got {stable}")
    if draws < 1 or not 0 < confidence < 1:
        raise ValueError(f"draws must be at least 1 and confidence between 0 and 1; got {draws} and {confidence}")


def _item(row: int, before: float, x: Tensor, allowed: Allowed, mended: _Mended | None) -> Correction:
    """Return a correction in the units of the data."""
    original, score = x[allowed.columns], before if before > LOWEST else -math.inf
    ends = torch.stack([torch.minimum(original, allowed.lower), torch.maximum(original, allowed.upper)])
    fields: dict[str, Any] = {"row": row, "before": score, "names": allowed.names, "ends": ends.numpy()}
    if mended is None:
        none, values = Certificate(0, 0, CONFIDENCE), original.numpy()
        return Correction(**fields, after=score, missing=0.0, size=0.0, original=values, corrected=values,
                          lower=values, upper=values, stability=none, certificate=none)  # fmt: skip
    places = (mended.change, mended.lower, mended.upper)
    corrected, lower, upper = ((original + change * allowed.scale).numpy() for change in places)
    missing = mended.missing if mended.missing < -LOWEST / 2 else math.inf
    return Correction(**fields, after=mended.after, missing=missing, size=float(mended.change.abs().sum()),
                      original=original.numpy(), corrected=corrected, lower=lower, upper=upper,
                      stability=mended.stability, certificate=mended.certificate)  # fmt: skip


def _with_values(rows: np.ndarray, items: Sequence[Correction], allowed: Allowed) -> np.ndarray:
    corrected = np.array(rows, dtype=np.float64)
    for item in items:
        if item.found:
            corrected[item.row, allowed.columns.numpy()] = item.corrected
    return corrected


def _advice(
    name: str,
    value: float,
    low: float,
    high: float,
    ends: np.ndarray,
    unit: str,
    written: Callable[[float], str] | None,
) -> str:
    """Say what to do with a column; nothing where its box is all that its bounds allow."""
    room = AT_THE_END * (ends[1] - ends[0])
    open_below, open_above = low <= ends[0] + room, high >= ends[1] - room
    verb = "raise" if value < low else "lower" if value > high else "keep"
    if verb == "keep" and open_below and open_above:
        return ""
    first, last = _rounded_inwards(low, high) if written is None else _written_inwards(low, high, written)
    unit = unit and f" {unit}"
    if open_above and verb != "lower":
        return f"{verb} {name} {'to' if verb == 'raise' else ''} at least {first}{unit}".replace("  ", " ")
    if open_below and verb != "raise":
        return f"{verb} {name} {'to' if verb == 'lower' else ''} at most {last}{unit}".replace("  ", " ")
    return f"{verb} {name} {'within' if verb == 'keep' else 'to'} {first}..{last}{unit}"


def _rounded_inwards(low: float, high: float) -> tuple[str, str]:
    """Return the ends of an interval with as many digits as its width deserves, neither beyond it."""
    width = high - low
    digits = max(0, 2 - math.floor(math.log10(width))) if width > 0 else 6
    unit = 10.0**digits
    first, last = math.ceil(low * unit) / unit, math.floor(high * unit) / unit
    return (
        (f"{first:.{digits}f}", f"{last:.{digits}f}") if first <= last else (f"{low:.{digits}f}", f"{high:.{digits}f}")
    )


def _written_inwards(low: float, high: float, written: Callable[[float], str]) -> tuple[str, str]:
    """Return the ends of an interval as they are written, whole numbers within it where there are any."""
    first, last = math.ceil(low), math.floor(high)
    return (written(first), written(last)) if first <= last else (written(low), written(high))
