"""The data of a command: loaded, split into columns to model and columns to condition on, and remembered in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ffjord_kit import datasets
from ffjord_kit.datasets.dataset import listing
from ffjord_kit.estimator import FFJORD
from ffjord_kit.estimator.arrays import held_out_rows
from ffjord_kit.estimator.images import split_of
from ffjord_kit.runs import Run

Rows = tuple[np.ndarray | None, np.ndarray | None]
LABEL = "label"  # what images may be conditioned on
SAID = ("rows", "seed", "context_columns", "size", "grey")  # of its source, in a run's config


@dataclass(frozen=True)
class Source:
    """Rows to model (n, d), their context (n, c) or None, names of both, and what is known of the set.

    Or images (n, c, h, w), and their labels (n,), numbers of `classes`, as the context.
    """

    x: np.ndarray
    context: np.ndarray | None
    columns: tuple[str, ...]
    note: dict[str, Any]
    log_prob: Callable[[np.ndarray], np.ndarray] | None
    image_shape: tuple[int, ...] | None
    classes: tuple[str, ...] = ()

    @property
    def is_images(self) -> bool:
        """Whether it holds images (n, c, h, w) of uint8, not rows."""
        return self.x.ndim == 4

    @property
    def pair(self) -> Rows:
        """The rows and their context."""
        return self.x, self.context


def open_source(
    name: str,
    *,
    rows: int | None,
    seed: int,
    context_columns: Sequence[str],
    size: int | None = None,
    grey: bool = False,
) -> Source:
    """Load a data set or a file, and take the context columns out of it; images at a size, and in grey.

    Raises ValueError for what cannot be read, or is not there.
    """
    if datasets.is_image_source(name):
        return _open_images(name, rows, seed, context_columns, size, grey)
    if size is not None or grey:
        raise ValueError(f"--size and --grey are for images; {name} is a table")
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


def _open_images(
    name: str, rows: int | None, seed: int, context_columns: Sequence[str], size: int | None, grey: bool
) -> Source:
    found = datasets.load_images(name, rows=rows, seed=seed, size=size, grey=grey)
    odd = [column for column in context_columns if column != LABEL]
    if odd or (context_columns and found.labels is None):
        there = f"only {LABEL!r}" if found.labels is not None else "none: its images have no labels"
        raise ValueError(f"no column {(odd or [LABEL])[0]!r} in {name} to condition on; there is {there}")
    note = {
        "source": datasets.locate_images(name), "rows": rows, "seed": seed, "context_columns": list(context_columns),
        "size": size, "grey": grey, "classes": list(found.classes), "bits": found.bits,
    }  # fmt: skip
    labels = found.labels if context_columns else None
    return Source(found.images, labels, (), note, None, tuple(found.images.shape[1:]), found.classes)


def bits_of(name: str) -> int:
    """The bits of the grey levels of a set of images; 8 of anything else."""
    named = datasets.IMAGE_SETS.get(name.partition(":")[0])
    return 8 if named is None else named.bits


def source_of(run: Run) -> Source:
    """The data that a run was fitted to. Raises ValueError where the run does not say, or they have gone."""
    note = run.config["data"]
    if "source" not in note:
        raise ValueError(
            f"{run.path} was made in Python and does not name its data: resume it there, or plot --data FILE"
        )
    return open_source(note["source"], **{name: note[name] for name in SAID if name in note})


def rows_like(run: Run, name: str, *, rows: int | None = None, seed: int = 0) -> Source:
    """The columns of the run out of a data set or a file, by name, or by place where either has no names.

    Images come at the size, and in the colours, of the run's. Raises ValueError that says which column is missing.
    """
    config = run.config
    if config.get("images") is not None:
        return _images_like(config, name, rows, seed)
    if datasets.is_image_source(name):
        raise ValueError(f"{name} holds images, and {run.path} is a run on a table of {listing(config['columns'])}")
    source = open_source(name, rows=rows, seed=seed, context_columns=config["data"].get("context_columns", []))
    expected = tuple(config["columns"])
    if set(expected) <= set(source.columns):
        places = [source.columns.index(column) for column in expected]
        return replace(source, x=source.x[:, places], columns=expected)
    unnamed = datasets.default_columns(len(expected)) in (source.columns, expected)
    if unnamed and len(source.columns) == len(expected):
        return source
    missing = next(column for column in expected if column not in source.columns)
    raise ValueError(f"{name} has no column {missing!r}, which the run has; its columns are {listing(source.columns)}")


def _images_like(config: Mapping[str, Any], name: str, rows: int | None, seed: int) -> Source:
    channels, height, width = config["images"]["shape"]
    if not datasets.is_image_source(name):
        raise ValueError(f"{name} holds no images, and this run is on images of {channels} x {height} x {width}")
    note = config["data"]
    columns = note.get("context_columns", [LABEL] if config["images"]["classes"] else [])
    size = height if height == width else None
    source = open_source(name, rows=rows, seed=seed, context_columns=columns, size=size, grey=channels == 1)
    if source.image_shape != (channels, height, width):
        found = " x ".join(map(str, source.image_shape))
        raise ValueError(f"{name} has images of {found}; the run's are {channels} x {height} x {width}")
    return _with_classes(source, note.get("classes", []), name)


def _with_classes(source: Source, classes: Sequence[str], name: str) -> Source:
    """The images with labels that are numbers of a run's classes, by name. Raises ValueError for another class."""
    found, known = list(source.classes), list(classes)
    nameless = found == [str(i) for i in range(len(found))] and len(found) <= len(known)
    if source.context is None or not known or nameless or found == known:
        return source
    odd = [word for word in source.classes if word not in classes]
    if odd:
        raise ValueError(f"{name} has the class {odd[0]!r}, which the run has not; its classes are {listing(classes)}")
    numbers = np.array([known.index(word) for word in found])
    return replace(source, context=numbers[source.context], classes=tuple(classes))


def held_out_of(model: FFJORD, fitted: Source | None) -> Rows:
    """The rows of its data that a model held out, and their context; of a small set that held out none, all."""
    if fitted is None:
        return None, None
    if fitted.is_images:
        _, which = split_of(len(fitted.x), fitted.x[0].size, model.validation_fraction, model.seed_)
        x, context = (part if part is None else part[which.numpy()] for part in fitted.pair)
        return (x, context) if len(x) else fitted.pair
    _, held_out = held_out_rows(fitted.x, fitted.context, model.validation_fraction, model.seed_)
    if held_out is None:
        return fitted.pair
    return held_out[0].numpy(), None if held_out[1] is None else held_out[1].numpy()


def context_rows(run: Run, text: str | None, count: int) -> np.ndarray | None:
    """The context that an option gives: numbers '1.0,2.5' for all rows, or a file with a row for each."""
    if run.config.get("images") is not None and run.config["images"]["classes"]:
        return _labels(run, text, count)
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


def _labels(run: Run, text: str | None, count: int) -> np.ndarray:
    """The labels that an option gives: one class or several, by name or number, in turn over all images."""
    number = run.config["images"]["classes"]
    classes = [*map(str, run.config["data"].get("classes", []))] or [str(i) for i in range(number)]
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with classes, e.g. {listing(classes)}")
    words = [word.strip() for word in text.split(",")]
    odd = [word for word in words if word not in classes and not (word.isdecimal() and int(word) < number)]
    if odd:
        raise ValueError(f"no class {odd[0]!r}; the classes are {listing(classes, limit=20)}")
    labels = [classes.index(word) if word in classes else int(word) for word in words]
    return np.resize(np.array(labels, np.int64), count)
