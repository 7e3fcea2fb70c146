"""The most and the least likely held-out rows, each with a reason.

The reason of an unlikely row is the smallest change of one column, in quantiles of the usual rows, after which its
log-density is a usual one. Beside it stands which columns make the row unlikely: by how much log p rises where one
column takes the most plausible of the values tried, all others staying. Both say what the model takes for usual, not
what causes what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.report.subject import Rows, Subject

COUNT = 5
USUAL = 0.01  # share of the usual rows that are less likely than the threshold
REFERENCE = 1_000  # usual rows
FAR = 0.99  # share of the usual rows on one side of a value that is far out
FEWEST, TRIED, BUDGET = 9, 29, 800  # quantiles of a column that are tried: fewest, most, and of all columns together
NAMED, LEAST = 3, 0.1  # columns of an unlikely row that are named; least share of the greatest gain


class Usual(NamedTuple):
    """Usual rows.

    Attributes:
        x: The rows, shape (n, d).
        log_prob: Their log-densities, nats, shape (n,).
        origin: Words for the rows.
    """

    x: np.ndarray
    log_prob: np.ndarray
    origin: str

    @property
    def threshold(self) -> float:
        """Log-density that 99 % of the rows exceed, nats."""
        return float(np.quantile(self.log_prob, USUAL))


class Changes(NamedTuple):
    """A row with one column changed, for each column and each value tried.

    Attributes:
        quantiles: Quantiles of the usual rows that are tried, shape (tries,).
        values: Values of the column there, shape (tries, d).
        log_prob: Log-density of the row with it, nats, shape (tries, d); -inf beyond the support.
    """

    quantiles: np.ndarray
    values: np.ndarray
    log_prob: np.ndarray

    @classmethod
    def of(cls, subject: Subject, place: int, usual: Usual) -> Changes:
        """Score the changes of a row.

        Args:
            subject: Subject of the report.
            place: Place of the row among the unseen ones.
            usual: Usual rows, whose quantiles are tried.

        Returns:
            The changes.
        """
        tries = int(np.clip(BUDGET // usual.x.shape[1], FEWEST, TRIED))
        quantiles = np.linspace(0.01, 0.99, tries)
        values = np.quantile(usual.x, quantiles, axis=0, method="nearest").astype(np.float64)  # values that occur
        columns = values.shape[1]
        rows = np.tile(np.asarray(subject.unseen.x[place], dtype=np.float64), (tries, columns, 1))
        rows[:, np.arange(columns), np.arange(columns)] = values
        context = None if subject.unseen.context is None else subject.unseen.context[[place] * values.size]
        found = subject.model.evaluate(rows.reshape(-1, columns), context=context).log_prob
        return cls(quantiles, values, np.where(np.isnan(found), -np.inf, found).reshape(tries, columns))

    def in_words(self, subject: Subject, row: np.ndarray, log_prob: float) -> tuple[str, ...]:
        """Say by how many nats the most plausible value of one column raises a row's log-density.

        Args:
            subject: Subject of the report.
            row: The row, shape (d,).
            log_prob: Its log-density, nats.

        Returns:
            The columns that gain most, at most three, each with at least a tenth of the greatest gain.
        """
        best = self.log_prob.argmax(0)
        gains = self.log_prob.max(0) - log_prob
        order = [int(column) for column in np.argsort(-gains)[:NAMED] if gains[column] > max(LEAST * gains.max(), 0.0)]
        return tuple(
            f"{subject.columns[column]} = {_cell(subject, column, row[column])}: log p rises by {gains[column]:.1f} "
            f"at {_cell(subject, column, self.values[best[column], column])}"
            for column in order
        )


def extremes(subject: Subject, draws: np.ndarray) -> dict[str, Any]:
    """Return the least and the most likely held-out rows of a table.

    Args:
        subject: Subject of the report.
        draws: Draws of the model, which stand in for the rows of the fit where these are unknown.

    Returns:
        The threshold and what it is of, and the rows: number, log-density, cells, reason, and of unlikely rows the
        columns whose change gains most.
    """
    usual = _usual(subject, draws)
    order = np.argsort(subject.log_prob)
    least, most = order[:COUNT], order[::-1][:COUNT]
    return {
        "threshold": usual.threshold,
        "origin": usual.origin,
        "least": [_unlikely(subject, int(place), usual) for place in least],
        "most": [_row(subject, int(place), _why_likely(subject, int(place), usual)) for place in most],
    }


def _usual(subject: Subject, draws: np.ndarray) -> Usual:
    """Return usual rows."""
    known = Rows(draws, subject.contexts(len(draws))) if subject.fitted is None else subject.fitted
    known = known.some(REFERENCE)
    log_prob = subject.model.evaluate(known.x, context=known.context).log_prob
    origin = "draws of the model" if subject.fitted is None else "rows of the fit"
    return Usual(np.asarray(known.x), log_prob, origin)


def _row(subject: Subject, place: int, reason: str, gains: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a row as the page shows it."""
    row, cells = subject.unseen.x[place], subject.model.domain.cells
    texts = [
        str(cells[name](np.array([value]))[0]) if name in cells else f"{value:.5g}"
        for name, value in zip(subject.columns, row, strict=True)
    ]
    number, log_prob = int(subject.unseen.numbers[place]), float(subject.log_prob[place])
    return {"row": number, "log_prob": log_prob, "cells": texts, "reason": reason, "gains": list(gains)}


def _unlikely(subject: Subject, place: int, usual: Usual) -> dict[str, Any]:
    """Return an unlikely row: which change of one column would make it a usual one, and what each column gains."""
    row, log_prob = np.asarray(subject.unseen.x[place], dtype=np.float64), float(subject.log_prob[place])
    changes = Changes.of(subject, place, usual)
    gains = changes.in_words(subject, row, log_prob)
    if log_prob >= usual.threshold:
        return _row(subject, place, "usual: at least 1 % of the usual rows are less likely", gains)
    below, above = _shares(usual.x, row)
    outside = _outside(subject, below, above)
    mended = changes.log_prob >= usual.threshold
    if not mended.any():
        return _row(subject, place, f"{outside}; no change of one column makes it usual", gains)
    size = np.abs(changes.quantiles[:, None] - (1 + below - above) / 2)
    tried, column = np.unravel_index(np.argmin(np.where(mended, size, np.inf)), size.shape)
    before, after = (_cell(subject, int(column), value) for value in (row[column], changes.values[tried, column]))
    change = f"usual if {subject.columns[column]} were {after} instead of {before}"
    return _row(subject, place, f"{outside}; {change}", gains)


def _shares(x: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of rows that lie below and above a row, by column; equal ones are neither."""
    return (x < row).mean(0), (x > row).mean(0)


def _ordered(subject: Subject) -> np.ndarray:
    """Return which columns have an order, shape (d,): all but categories."""
    categories = getattr(subject.model.domain, "categories", {})
    return np.array([name not in categories for name in subject.columns])


def _outside(subject: Subject, below: np.ndarray, above: np.ndarray) -> str:
    """Name the column in which a row is farthest out, from the shares of the usual rows on either side."""
    farthest = np.where(_ordered(subject), np.maximum(below, above), 0.0)
    column = int(farthest.argmax())
    share = farthest[column]
    if share < FAR:
        return "no column is unusual by itself, but their combination is"
    side = "above" if below[column] > above[column] else "below"
    return f"{subject.columns[column]} is {side} {'all' if share == 1 else f'{share:.1%} of the'} usual rows"


def _why_likely(subject: Subject, place: int, usual: Usual) -> str:
    """Say how central a row is."""
    below, above = _shares(usual.x, np.asarray(subject.unseen.x[place], dtype=np.float64))
    ordered = _ordered(subject)
    central, count = int((np.maximum(below, above) <= 0.75)[ordered].sum()), int(ordered.sum())
    share = (usual.log_prob < subject.log_prob[place]).mean()
    said = f"more likely than {share:.1%} of the usual rows"
    return f"{said}; {central} of {count} columns lie in their middle half" if count else said


def _cell(subject: Subject, column: int, value: float) -> str:
    """Return a cell as the data have it."""
    cells = subject.model.domain.cells.get(subject.columns[column])
    return f"{value:.5g}" if cells is None else str(cells(np.array([value]))[0])
