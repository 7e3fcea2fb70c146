"""Data of a command: reading them, reading them again for a run, and contexts that an option gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import click
import numpy as np

from ffjord_kit import datasets
from ffjord_kit.categories import Category, Date
from ffjord_kit.column_type import ColumnType
from ffjord_kit.column_types import read_types
from ffjord_kit.datasets.dataset import listing
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.persistence import check_entry, check_record
from ffjord_kit.rows import frame_of
from ffjord_kit.run import Run
from ffjord_kit.training.distributed import current_workers

LABEL = "label"  # the column that images can be conditioned on
NOTE: dict[str, tuple[type, ...]] = {"context_columns": (list,), "classes": (list,), "drop": (list,)}
SOURCE_NOTE: dict[str, tuple[type, ...]] = {
    "source": (str,), "rows": (int, type(None)), "seed": (int,), "size": (int, type(None)), "grey": (bool,),
}  # fmt: skip
RECORDED = ("rows", "seed", "context_columns", "size", "grey", "drop")  # arguments of `load` that a run records


@dataclass(frozen=True)
class LoadedData:
    """Data of a command, split into the part to model and the context.

    Attributes:
        x: Rows (n, d), or images of uint8 (n, c, h, w).
        context: Contexts (n, c) of rows, labels (n,) of images, or None.
        columns: Names of the d columns; none for images.
        note: Source and options of `load`, as a run records them.
        log_prob: True log-density, from points (n, d) to nats (n,); None if it is unknown.
        image_shape: Shape of an image, also of rows that are the pixels of one; None otherwise.
        classes: Names of the classes that number the labels.
        types: Types of the columns of categories and dates, in whose place x holds numbers, by name.
    """

    x: np.ndarray
    context: np.ndarray | None
    columns: tuple[str, ...]
    note: dict[str, Any]
    log_prob: Callable[[np.ndarray], np.ndarray] | None
    image_shape: tuple[int, ...] | None
    classes: tuple[str, ...] = ()
    types: Mapping[str, ColumnType] = field(default_factory=dict)

    @property
    def table(self) -> Any:
        """The rows as an estimator takes them: an array, or a frame where there are categories or dates."""
        if not self.types:
            return self.x
        named, types = zip(self.columns, self.x.T, strict=True), self.types
        return frame_of({name: _cells(types.get(name), column) for name, column in named})

    @property
    def is_images(self) -> bool:
        """Whether the data are images, not rows of a table."""
        return self.x.ndim == 4

    def take(self, rows: Any) -> LoadedData:
        """Return some of the rows.

        Args:
            rows: Indices, a mask or a slice.

        Returns:
            The data with these rows alone.
        """
        return replace(self, x=self.x[rows], context=None if self.context is None else self.context[rows])


def open_run(path: str) -> Run:
    """Open a run folder, and check what config.json says of the fit and of its data.

    Args:
        path: Run folder.

    Returns:
        The run.

    Raises:
        RunError: If there is no run, or its config.json is damaged.
    """
    run = Run.open(path)
    check_record(run)
    with run.explained("config.json"):
        note = run.config["data"]
        for name, kinds in {**NOTE, **(SOURCE_NOTE if "source" in note else {})}.items():
            if name in note:
                check_entry(note, name, *kinds)
    return run


def load(
    source: str,
    *,
    rows: int | None = None,
    seed: int = 0,
    context_columns: Sequence[str] = (),
    size: int | None = None,
    grey: bool = False,
    drop: Sequence[str] = (),
    missing_ok: bool = False,
    types: Mapping[str, ColumnType] | None = None,
    told: bool = True,
) -> LoadedData:
    """Read a named data set, a file or a folder of pictures.

    Args:
        source: Name or path, with a split or key where it has one.
        rows: Number of rows of a toy, or of a random subset; None for all.
        seed: Seed of a toy's rows, or of the subset.
        context_columns: Columns to condition on.
        size: Side that images are cropped and averaged to.
        grey: Whether to convert images to grey levels.
        drop: Columns of a table to leave out, by name or index.
        missing_ok: Whether the latter are names alone, and may be missing.
        types: Types of columns that are known, by name.
        told: Whether to tell on stderr what was found in a file of a table.

    Returns:
        The data.

    Raises:
        ValueError: If the source cannot be read, or a column is not there.
    """
    if datasets.is_image_source(source):
        if drop:
            raise ValueError(f"--drop is for the columns of a table; {source} holds images")
        return _load_images(source, rows=rows, seed=seed, context_columns=context_columns, size=size, grey=grey)
    if size is not None or grey:
        raise ValueError(f"--size and --grey are for images; {source} is a table")
    dataset = _load_table(source, told=told, rows=rows, seed=seed, types=types or {}, drop=drop, missing_ok=missing_ok)
    note = {
        "source": datasets.locate(source),
        "rows": rows,
        "seed": seed,
        "context_columns": list(context_columns),
        "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
        **({"drop": list(dataset.dropped)} if drop else {}),
    }
    if not context_columns:
        shape, known = dataset.image_shape, dataset.log_prob
        return LoadedData(dataset.x, None, dataset.columns, note, known, shape, types=dataset.types)
    split = datasets.split_columns(dataset, context_columns)
    _refuse_texts(dataset, split.context_columns)
    kept = {name: kind for name, kind in dataset.types.items() if name in split.columns}
    return LoadedData(split.x, split.context, split.columns, note, None, None, types=kept)


def load_fitted(run: Run, advice: str = "put it back there") -> LoadedData:
    """Read the data that a run was fitted to.

    Args:
        run: The run.
        advice: Advice for where they cannot be had.

    Returns:
        The data.

    Raises:
        ValueError: If the run does not name its data, or they cannot be read.
    """
    note = run.config["data"]
    if "source" not in note:
        raise ValueError(f"{run.path} was made in Python and does not name its data: {advice}")
    try:
        return load(
            note["source"], told=False, types=_types_of(run), **{name: note[name] for name in RECORDED if name in note}
        )
    except ValueError as error:
        raise ValueError(f"{error}; {run.path} was fitted to it: {advice}") from error


def find_fitted(run: Run) -> LoadedData | None:
    """Read the data that a run was fitted to, if they can be had.

    Args:
        run: The run.

    Returns:
        The data; None where they are gone or not named.
    """
    try:
        return load_fitted(run)
    except (ValueError, OSError):
        return None


def load_for_run(run: Run, source: str, *, rows: int | None = None, seed: int = 0) -> LoadedData:
    """Read data in the form of a run's: its columns by name, or by position where either side has no names.

    Images come at the size and in the colours of the run's, with labels that number its classes.

    Args:
        run: The run.
        source: Name or path.
        rows: Number of rows of a toy, or of a random subset; None for all.
        seed: Seed of a toy's rows, or of the subset.

    Returns:
        The data.

    Raises:
        ValueError: If a column is missing, or the data are of another kind or shape.
    """
    config = run.config
    if config.get("images") is not None:
        return _load_images_for_run(config, source, rows, seed)
    if datasets.is_image_source(source):
        raise ValueError(f"{source} holds images, and {run.path} is a run on a table of {listing(config['columns'])}")
    note, types = config["data"], _types_of(run)
    data = load(
        source, rows=rows, seed=seed, context_columns=note.get("context_columns", []), drop=note.get("drop", []),
        missing_ok=True, types=types,
    )  # fmt: skip
    expected, places = tuple(config["columns"]), {name: i for i, name in enumerate(data.columns)}
    if set(expected) <= places.keys():
        return replace(data, x=data.x[:, [places[column] for column in expected]], columns=expected)
    unnamed = datasets.default_columns(len(expected)) in (data.columns, expected)
    if unnamed and len(data.columns) == len(expected):
        return data
    missing = next(column for column in expected if column not in places)
    raise ValueError(f"{source} has no column {missing!r}, which the run has; its columns are {listing(data.columns)}")


def held_out(model: DensityModel, fitted: LoadedData) -> LoadedData:
    """Return the rows that a model held out of its training data.

    Args:
        model: The model.
        fitted: Data that the model was fitted to.

    Returns:
        The rows held out; all rows of a set so small that none were.
    """
    _, rows = model.split_indices(fitted.x)
    return fitted.take(rows) if len(rows) else fitted


def parse_context(run: Run, text: str | None, count: int) -> np.ndarray | None:
    """Read the option --context of a command that uses a run.

    Args:
        run: The run.
        text: Values "1.0,2.5" for all rows, a file with a row for each, or classes of images, used in turn.
        count: Number of rows.

    Returns:
        Contexts, (1, c) from values or (count, c) from a file; labels (count,) of images; None for a run without
        context.

    Raises:
        ValueError: If the text does not suit the run.
    """
    if run.config.get("images") is not None and run.config["images"]["classes"]:
        return _parse_labels(run, text, count)
    expected = run.config["context_dim"]
    names = run.config["data"].get("context_columns", [])
    if not expected:
        if text is not None:
            raise ValueError("this run takes no context: leave --context out")
        return None
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with values of {', '.join(names) or expected}")
    rows = _read_contexts(text)
    if rows.shape not in ((1, expected), (count, expected)):
        raise ValueError(
            f"--context must give {expected} values ({', '.join(names)}), or a file of {count} rows of them; "
            f"got shape {rows.shape}"
        )
    return rows


def _types_of(run: Run) -> dict[str, ColumnType]:
    """Return the types of a run's columns, categories with their levels."""
    return {own[0]: kind for own, kind in read_types(run.config.get("types")).items() if len(own) == 1}


def _cells(kind: ColumnType | None, column: np.ndarray) -> np.ndarray:
    """Return the cells of a column, where it is a category or has dates, or else its numbers."""
    return kind.cells(column) if isinstance(kind, (Category, Date)) else column


def _refuse_texts(dataset: datasets.Dataset, names: Sequence[str]) -> None:
    """Refuse contexts of texts."""
    for name in names:
        kind = dataset.types.get(name)
        if isinstance(kind, Category) and kind.is_text:
            raise ValueError(
                f"column {name!r} holds text, and a context must be numbers: leave it out of --context (the density of "
                "all columns together knows it), or write its levels as columns of 0 and 1"
            )


def _load_table(source: str, *, told: bool = True, **options: Any) -> datasets.Dataset:
    """Read a table; of a file, tell what was found in it."""
    dataset = datasets.load(source, **options)
    if told and dataset.found and current_workers().is_first:
        click.echo(f"read {source}: {dataset.found}", err=True)
    return dataset


def _load_images(
    source: str, *, rows: int | None, seed: int, context_columns: Sequence[str], size: int | None, grey: bool
) -> LoadedData:
    image_set = datasets.load_images(source, rows=rows, seed=seed, size=size, grey=grey)
    unknown = [column for column in context_columns if column != LABEL]
    if unknown or (context_columns and image_set.labels is None):
        known = f"only {LABEL!r}" if image_set.labels is not None else "none: its images have no labels"
        raise ValueError(f"no column {(unknown or [LABEL])[0]!r} in {source} to condition on; there is {known}")
    note = {
        "source": datasets.locate_images(source), "rows": rows, "seed": seed, "context_columns": list(context_columns),
        "size": size, "grey": grey, "classes": list(image_set.classes), "bits": image_set.bits,
    }  # fmt: skip
    labels = image_set.labels if context_columns else None
    shape = tuple(image_set.images.shape[1:])
    return LoadedData(image_set.images, labels, (), note, None, shape, tuple(image_set.classes))


def _load_images_for_run(config: Mapping[str, Any], source: str, rows: int | None, seed: int) -> LoadedData:
    channels, height, width = config["images"]["shape"]
    if not datasets.is_image_source(source):
        raise ValueError(f"{source} holds no images, and this run is on images of {channels} x {height} x {width}")
    note = config["data"]
    columns = note.get("context_columns", [LABEL] if config["images"]["classes"] else [])
    size = height if height == width else None
    data = load(source, rows=rows, seed=seed, context_columns=columns, size=size, grey=channels == 1)
    if data.x.shape[1:] != (channels, height, width):
        shape = " x ".join(map(str, data.x.shape[1:]))
        raise ValueError(f"{source} has images of {shape}; the run's are {channels} x {height} x {width}")
    return _number_classes(data, note.get("classes", []), source)


def _number_classes(data: LoadedData, classes: Sequence[str], source: str) -> LoadedData:
    """Return images whose labels number the classes of a run, matched by name."""
    ours, known = list(data.classes), list(classes)
    unnamed = ours == [str(i) for i in range(len(ours))] and len(ours) <= len(known)
    if data.context is None or not known or unnamed or ours == known:
        return data
    unknown = [word for word in ours if word not in known]
    if unknown:
        raise ValueError(
            f"{source} has the class {unknown[0]!r}, which the run has not; its classes are {listing(known)}"
        )
    numbers = np.array([known.index(word) for word in ours])
    return replace(data, context=numbers[data.context], classes=tuple(known))


def _read_contexts(text: str) -> np.ndarray:
    """Return values for all rows, as one row, or else the rows of a file."""
    try:
        return np.array([[float(part) for part in text.split(",")]])
    except ValueError:
        return _load_table(text).x


def _parse_labels(run: Run, text: str | None, count: int) -> np.ndarray:
    """Return labels from classes, given by name or number and repeated in turn."""
    number = run.config["images"]["classes"]
    classes = [*map(str, run.config["data"].get("classes", []))] or [str(i) for i in range(number)]
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with classes, e.g. {listing(classes)}")
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in classes and not (word.isdecimal() and int(word) < number)]
    if unknown:
        raise ValueError(f"no class {unknown[0]!r}; the classes are {listing(classes, limit=20)}")
    labels = [classes.index(word) if word in classes else int(word) for word in words]
    return np.resize(np.array(labels, np.int64), count)
