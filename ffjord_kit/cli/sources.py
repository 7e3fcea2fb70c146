"""The data of a command: loaded, split into columns to model and columns to condition on, and remembered in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ffjord_kit import datasets
from ffjord_kit.datasets.dataset import listing
from ffjord_kit.estimator import FFJORD
from ffjord_kit.estimator.arrays import held_out_rows
from ffjord_kit.runs import Run

Rows = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Source:
    """Rows to model (n, d), their context (n, c) or None, names of both, and what is known of the set."""

    x: np.ndarray
    context: np.ndarray | None
    columns: tuple[str, ...]
    note: dict[str, Any]
    log_prob: Callable[[np.ndarray], np.ndarray] | None
    image_shape: tuple[int, ...] | None

    @property
    def pair(self) -> Rows:
        """The rows and their context."""
        return self.x, self.context


def open_source(name: str, *, rows: int | None, seed: int, context_columns: Sequence[str]) -> Source:
    """Load a data set or a file, and take the context columns out of it."""
    dataset = datasets.load(name, rows=rows, seed=seed)
    note = {
        "source": datasets.locate(name),
        "rows": rows,
        "seed": seed,
        "context_columns": list(context_columns),
        "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
    }
    if not context_columns:
        return Source(dataset.x, None, dataset.columns, note, dataset.log_prob, dataset.image_shape)
    parts = datasets.split_columns(dataset, context_columns)
    return Source(parts.x, parts.context, parts.columns, note, None, None)


def source_of(run: Run) -> Source:
    """The data that a run was fitted to. Raises ValueError where the run does not say, or they have gone."""
    note = run.config["data"]
    if "source" not in note:
        raise ValueError(
            f"{run.path} was made in Python and does not name its data: resume it there, or plot --data FILE"
        )
    return open_source(note["source"], rows=note["rows"], seed=note["seed"], context_columns=note["context_columns"])


def rows_like(run: Run, name: str) -> Source:
    """The columns of the run out of a data set or a file, by name, or by place where either has no names.

    Raises ValueError that says which column is missing.
    """
    config = run.config
    source = open_source(name, rows=None, seed=0, context_columns=config["data"].get("context_columns", []))
    expected = tuple(config["columns"])
    if set(expected) <= set(source.columns):
        places = [source.columns.index(column) for column in expected]
        return replace(source, x=source.x[:, places], columns=expected)
    unnamed = datasets.default_columns(len(expected)) in (source.columns, expected)
    if unnamed and len(source.columns) == len(expected):
        return source
    missing = next(column for column in expected if column not in source.columns)
    raise ValueError(f"{name} has no column {missing!r}, which the run has; its columns are {listing(source.columns)}")


def held_out_of(model: FFJORD, fitted: Source | None) -> Rows:
    """The rows of its data that a model held out, and their context; of a small set that held out none, all."""
    if fitted is None:
        return None, None
    _, held_out = held_out_rows(fitted.x, fitted.context, model.validation_fraction, model.seed_)
    if held_out is None:
        return fitted.pair
    return held_out[0].numpy(), None if held_out[1] is None else held_out[1].numpy()


def context_rows(run: Run, text: str | None, count: int) -> np.ndarray | None:
    """The context that an option gives: numbers '1.0,2.5' for all rows, or a file with a row for each."""
    expected = run.config["context_dim"]
    names = run.config["data"].get("context_columns", [])
    if not expected:
        if text is not None:
            raise ValueError("this run takes no context: leave --context out")
        return None
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with values of {', '.join(names) or expected}")
    try:
        rows = np.broadcast_to(np.array([float(part) for part in text.split(",")]), (count, text.count(",") + 1))
    except ValueError:
        rows = datasets.load(text).x
    if rows.shape != (count, expected):
        raise ValueError(f"--context must give {expected} values ({', '.join(names)}), or a file of {count} rows of "
                         f"them; got shape {rows.shape}")  # fmt: skip
    return rows
