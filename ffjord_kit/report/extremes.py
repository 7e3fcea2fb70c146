"""The most and the least likely held-out rows, each with a reason.

The reason of an unlikely row is the smallest change of one column, in quantiles of the usual rows, after which its
log-density is a usual one. It says what the model takes for usual, not what causes what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.report.subject import Rows, Subject

COUNT = 5
USUAL = 0.01  # share of the usual rows that are less likely than the threshold
REFERENCE = 1_000  # usual rows
TRIED = np.linspace(0.01, 0.99, 29)  # quantiles of a column that are tried in a row


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


def extremes(subject: Subject, draws: np.ndarray) -> dict[str, Any]:
    """Return the least and the most likely held-out rows of a table.

    Args:
        subject: Subject of the report.
        draws: Draws of the model, which stand in for the rows of the fit where these are unknown.

    Returns:
        The threshold and what it is of, and the rows: number, log-density, cells and reason.
    """
    usual = _usual(subject, draws)
    order = np.argsort(subject.log_prob)
    least, most = order[:COUNT], order[::-1][:COUNT]
    return {
        "threshold": usual.threshold,
        "origin": usual.origin,
        "least": [_row(subject, place, _why_unlikely(subject, place, usual)) for place in least],
        "most": [_row(subject, place, _why_likely(subject, place, usual)) for place in most],
    }


def _usual(subject: Subject, draws: np.ndarray) -> Usual:
    """Return usual rows."""
    known = Rows(draws, subject.contexts(len(draws))) if subject.fitted is None else subject.fitted
    known = known.some(REFERENCE)
    log_prob = subject.model.evaluate(known.x, context=known.context).log_prob
    origin = "draws of the model" if subject.fitted is None else "rows of the fit"
    return Usual(np.asarray(known.x), log_prob, origin)


def _row(subject: Subject, place: int, reason: str) -> dict[str, Any]:
    """Return a row as the page shows it."""
    row, cells = subject.unseen.x[place], subject.model.domain.cells
    texts = [
        str(cells[name](np.array([value]))[0]) if name in cells else f"{value:.5g}"
        for name, value in zip(subject.columns, row, strict=True)
    ]
    number = int(subject.unseen.numbers[place])
    return {"row": number, "log_prob": float(subject.log_prob[place]), "cells": texts, "reason": reason}


def _why_unlikely(subject: Subject, place: int, usual: Usual) -> str:
    """Say which change of one column would make a row a usual one."""
    if subject.log_prob[place] >= usual.threshold:
        return "usual: at least 1 % of the usual rows are less likely"
    row = np.asarray(subject.unseen.x[place], dtype=np.float64)
    ranks = (usual.x < row).mean(0)
    tried = np.quantile(usual.x, TRIED, axis=0, method="nearest")  # (tries, d), values that occur
    changed = np.broadcast_to(row, (tried.size, len(row))).copy()
    columns = np.tile(np.arange(len(row)), len(tried))
    changed[np.arange(tried.size), columns] = tried.ravel()
    context = None if subject.unseen.context is None else subject.unseen.context[[place] * tried.size]
    mended = subject.model.evaluate(changed, context=context).log_prob >= usual.threshold
    if not mended.any():
        return f"{_outside(subject, ranks)}; no change of one column makes it usual"
    size = np.abs(np.repeat(TRIED, len(row)) - ranks[columns])
    best = int(np.argmin(np.where(mended, size, np.inf)))
    column = int(columns[best])
    before, after = (_cell(subject, column, value) for value in (row[column], changed[best, column]))
    return f"{_outside(subject, ranks)}; usual if {subject.columns[column]} were {after} instead of {before}"


def _outside(subject: Subject, ranks: np.ndarray) -> str:
    """Name the column in which a row is farthest out."""
    column = int(np.abs(ranks - 0.5).argmax())
    if abs(ranks[column] - 0.5) < 0.49:
        return "no column is unusual by itself, but their combination is"
    side, share = "above" if ranks[column] > 0.5 else "below", max(ranks[column], 1 - ranks[column])
    return f"{subject.columns[column]} is {side} {'all' if share == 1 else f'{share:.1%} of the'} usual rows"


def _why_likely(subject: Subject, place: int, usual: Usual) -> str:
    """Say how central a row is."""
    ranks = (usual.x < np.asarray(subject.unseen.x[place], dtype=np.float64)).mean(0)
    central, count = int((np.abs(ranks - 0.5) <= 0.25).sum()), len(ranks)
    share = (usual.log_prob < subject.log_prob[place]).mean()
    return f"more likely than {share:.1%} of the usual rows; {central} of {count} columns lie in their middle half"


def _cell(subject: Subject, column: int, value: float) -> str:
    """Return a cell as the data have it."""
    cells = subject.model.domain.cells.get(subject.columns[column])
    return f"{value:.5g}" if cells is None else str(cells(np.array([value]))[0])
