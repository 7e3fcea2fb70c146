"""The data of a command: loaded, split into columns to model and columns to condition on, and remembered in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffjord_kit import datasets
from ffjord_kit.runs import Run


@dataclass(frozen=True)
class Source:
    """Rows to model (n, d), their context (n, c) or None, names of both, and what is known of the set."""

    x: np.ndarray
    context: np.ndarray | None
    columns: tuple[str, ...]
    note: dict[str, Any]
    log_prob: Callable[[np.ndarray], np.ndarray] | None
    image_shape: tuple[int, ...] | None


def open_source(name: str, *, rows: int | None, seed: int, context_columns: Sequence[str]) -> Source:
    """Load a data set or a file, and take the context columns out of it."""
    dataset = datasets.load(name, rows=rows, seed=seed)
    note = {
        "source": name if _is_named(name) else str(Path(name).resolve()),
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
        raise ValueError(f"{run.path} does not say what it was fitted to: it was made in Python")
    return open_source(note["source"], rows=note["rows"], seed=note["seed"], context_columns=note["context_columns"])


def rows_like(run: Run, name: str) -> Source:
    """A data set or a file with the columns of the run. Raises ValueError that names the columns that differ."""
    config = run.config
    source = open_source(name, rows=None, seed=0, context_columns=config["data"].get("context_columns", []))
    expected = tuple(config["columns"])
    if len(source.columns) != len(expected):
        raise ValueError(f"{name} has {len(source.columns)} columns to score; the run has {len(expected)}: "
                         f"{', '.join(expected[:8])}")  # fmt: skip
    unnamed = datasets.default_columns(len(expected))
    if source.columns != expected and unnamed not in (source.columns, expected):
        odd = next(pair for pair in zip(source.columns, expected, strict=True) if pair[0] != pair[1])
        raise ValueError(f"{name} has column {odd[0]!r} where the run has {odd[1]!r}: put the columns in its order")
    return source


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


def _is_named(name: str) -> bool:
    return name.partition(":")[0] in datasets.DATASETS
