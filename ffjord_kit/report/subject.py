"""Subject of a report: a model, rows that it has not seen, and one context where it is conditional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.estimator import DensityModel
from ffjord_kit.progress import OnProgress

LEAST_NEAR = 200  # rows shown beside the draws at one context


class Rows(NamedTuple):
    """Rows of a table or images, and their contexts.

    Attributes:
        x: Rows (n, d), or images (n, ...).
        context: Contexts (n, c), labels (n,) of images, or None.
        number: Number of each row in the data, shape (n,); None for 0, 1, ...
    """

    x: Any
    context: Any = None
    number: Any = None

    @property
    def numbers(self) -> np.ndarray:
        """Number of each row in the data, shape (n,)."""
        return np.arange(len(self.x)) if self.number is None else self.number

    def take(self, places: Any) -> Rows:
        """Return some of the rows.

        Args:
            places: Indices, a mask or a slice.

        Returns:
            These rows with their contexts.
        """
        return Rows(self.x[places], None if self.context is None else self.context[places], self.numbers[places])

    def some(self, most: int) -> Rows:
        """Return evenly spaced rows.

        Args:
            most: Largest number of rows.

        Returns:
            The rows.
        """
        return self.take(np.linspace(0, len(self.x) - 1, min(most, len(self.x))).astype(int))


@dataclass(frozen=True, eq=False)
class Subject:
    """Subject of a report: a model, its rows and one context.

    Attributes:
        model: The model.
        unseen: Rows that it was not fitted to, all within its support.
        fitted: Rows that it was fitted to, or None.
        log_prob: Log-densities of the unseen rows, nats.
        impossible: Number of unseen rows that were left out, as their density is 0.
        at: Context (c,) of all draws of a conditional table, labels (k,) of images in turn, or None.
        seed: Seed of all draws.
    """

    model: DensityModel
    unseen: Rows
    fitted: Rows | None
    log_prob: np.ndarray
    impossible: int
    at: np.ndarray | None
    seed: int

    @classmethod
    def of(
        cls, model: DensityModel, unseen: Rows, fitted: Rows | None, *, at: Any, seed: int, on_progress: OnProgress
    ) -> Subject:
        """Score the unseen rows, and leave out those of density 0.

        Args:
            model: The model.
            unseen: Rows that it was not fitted to.
            fitted: Rows that it was fitted to, or None.
            at: Context of all draws; None for the typical one of the unseen rows, of images for all labels.
            seed: Seed of all draws.
            on_progress: Called with the number of rows done and of all rows.

        Returns:
            The subject.

        Raises:
            ValueError: If no row has a density.
        """
        if model.is_image:
            log_prob = model.draft(unseen.x, context=unseen.context)
        else:
            log_prob = model.evaluate(unseen.x, context=unseen.context, on_progress=on_progress).log_prob
        inside = np.isfinite(log_prob)
        if not inside.any():
            raise ValueError(f"all {len(inside)} rows have density 0 for this model: pass others as DATA")
        if at is None and unseen.context is not None:
            at = np.unique(unseen.context) if model.is_image else typical(unseen.context, _texts(model))
        place = None if at is None else np.ravel(at)
        return cls(model, unseen.take(inside), fitted, log_prob[inside], int((~inside).sum()), place, seed)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of a table."""
        return [str(name) for name in self.model.record["columns"]]

    @property
    def context_names(self) -> list[str]:
        """Names of the contexts."""
        count = 0 if self.at is None else len(self.at)
        names = self.model.record["data"].get("context_columns", [])
        return list(names) if len(names) == count else [f"c{i}" for i in range(count)]

    def contexts(self, count: int) -> np.ndarray | None:
        """Return the contexts of some draws.

        Args:
            count: Number of draws.

        Returns:
            Contexts (count, c), labels (count,) of images, or None.
        """
        if self.at is None:
            return None
        return np.resize(self.at, count) if self.model.is_image else np.broadcast_to(self.at, (count, len(self.at)))

    def draws(self, count: int) -> np.ndarray:
        """Draw rows or images; categories are the places of their levels.

        Args:
            count: Number of draws.

        Returns:
            Draws, shape (count, ...).
        """
        chunks = self.model.sample_chunks(count, context=self.contexts(count), random_state=self.seed)
        return np.concatenate(list(chunks))

    def beside(self, rows: Rows) -> Rows:
        """Return the rows to show beside draws: of a conditional table those as near as the nearest rows of the fit.

        Args:
            rows: Rows.

        Returns:
            All of them, or some.
        """
        if self.at is None or self.model.is_image:
            return rows
        known = rows if self.fitted is None else self.fitted
        return rows.take(nearest(rows.context, self.at, _texts(self.model), known.context))


def typical(contexts: np.ndarray, texts: Sequence[bool] = ()) -> np.ndarray:
    """Return the median of contexts, and of texts the most frequent level.

    Args:
        contexts: Contexts, shape (n, c).
        texts: Whether each is a text, in whose place a number stands; none is if empty.

    Returns:
        One context, shape (c,).

    Example:
        >>> typical(np.array([[1.0, 0.0], [2.0, 2.0], [9.0, 2.0]]), [False, True]).tolist()
        [2.0, 2.0]
    """
    pairs = zip(contexts.T, texts or [False] * contexts.shape[1], strict=True)
    return np.array(
        [float(np.bincount(column.astype(np.int64)).argmax() if text else np.median(column)) for column, text in pairs]
    )


def nearest(
    contexts: np.ndarray, at: np.ndarray, texts: Sequence[bool] = (), known: np.ndarray | None = None
) -> np.ndarray:
    """Find the contexts that are as near to one as a tenth of known ones, at least 200.

    Args:
        contexts: Contexts, shape (n, c).
        at: The one, shape (c,).
        texts: Whether each is a text, in whose place a number stands; none is if empty.
        known: Known contexts, shape (m, c); the contexts themselves if None.

    Returns:
        A mask, shape (n,). Numbers differ by standard deviations, texts by 0 or 1.

    Example:
        >>> int(nearest(np.arange(400.0)[:, None], np.array([0.0])).sum())
        200
    """
    known = contexts if known is None else known
    scale = np.where(np.ptp(known, axis=0) > 0, known.std(axis=0), 1.0)
    kinds = np.array(texts or [False] * len(scale), dtype=bool)

    def distance(rows: np.ndarray) -> np.ndarray:
        apart = np.abs(rows - at)
        return np.linalg.norm(np.where(kinds, apart > 0, apart / scale), axis=1)

    own = np.sort(distance(known))
    return distance(contexts) <= own[min(len(own), max(LEAST_NEAR, len(own) // 10)) - 1]


def _texts(model: DensityModel) -> list[bool]:
    """Return whether each context of a table's model is a text."""
    domain: Any = model.domain
    return [(name,) in domain.context_types for name in domain.context_columns]
