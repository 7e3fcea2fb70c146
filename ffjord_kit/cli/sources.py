"""Data of a command: reading them, reading them again for a run, and contexts that an option gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import click
import numpy as np

from ffjord_kit import datasets
from ffjord_kit.cli.contexts import is_named, read_labels, read_values
from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Category, Dated
from ffjord_kit.columns.types import read_types
from ffjord_kit.datasets.dataset import listing
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.persistence import check_entry, check_record
from ffjord_kit.rows import frame_of
from ffjord_kit.run import Run
from ffjord_kit.training.distributed import current_workers

LEAST_DRAWN = 20  # rows that remain when they are drawn by their weights
LABEL = "label"  # the column that images can be conditioned on
NOTE: dict[str, tuple[type, ...]] = {
    "context_columns": (list,), "classes": (list,), "drop": (list,), "weight": (str,), "noise_columns": (list,),
    "about": (str,),
}  # fmt: skip
SOURCE_NOTE: dict[str, tuple[type, ...]] = {
    "source": (str,), "rows": (int, type(None)), "seed": (int,), "size": (int, type(None)), "grey": (bool,),
}  # fmt: skip
# Arguments of `load` that a run records.
RECORDED = ("rows", "seed", "context_columns", "drop", "weight", "noise_columns", "size", "grey")


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
        context_types: Types of the contexts that are categories, in whose place context holds numbers, by name.
        weight: Weights of rows, shape (n,), or None.
        noise: Deviations of the measurement errors of rows, shape (n, d), or None.
        numbers: Number of each row in the data, shape (n,); None for 0, 1, ...
    """

    x: np.ndarray
    context: np.ndarray | None
    columns: tuple[str, ...]
    note: dict[str, Any]
    log_prob: Callable[[np.ndarray], np.ndarray] | None
    image_shape: tuple[int, ...] | None
    classes: tuple[str, ...] = ()
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    context_types: Mapping[str, Category] = field(default_factory=dict)
    weight: np.ndarray | None = None
    noise: np.ndarray | None = None
    numbers: np.ndarray | None = None

    @property
    def row_numbers(self) -> np.ndarray:
        """Number of each row in the data, from 0 on, shape (n,)."""
        return np.arange(len(self.x)) if self.numbers is None else self.numbers

    @property
    def table(self) -> Any:
        """The rows as an estimator takes them: an array, or a frame where there are categories or dates."""
        if not self.types:
            return self.x
        named, types = zip(self.columns, self.x.T, strict=True), self.types
        return frame_of({name: _cells(types.get(name), column) for name, column in named})

    @property
    def context_table(self) -> Any:
        """The contexts as an estimator takes them: an array, or a frame where there are categories; None for none."""
        if self.context is None or not self.context_types:
            return self.context
        named = zip(self.note["context_columns"], self.context.T, strict=True)
        return frame_of({name: _cells(self.context_types.get(name), column) for name, column in named})

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
        parts = (self.context, self.weight, self.noise)
        context, weight, noise = (None if part is None else part[rows] for part in parts)
        numbers = self.row_numbers[rows]
        return replace(self, x=self.x[rows], context=context, weight=weight, noise=noise, numbers=numbers)

    def drawn(self, seed: int = 0) -> LoadedData:
        """Return rows that count alike: each is kept with a probability in proportion to its weight.

        Args:
            seed: Seed of the choice.

        Returns:
            The rows kept, without weights; all where there are no weights.

        Raises:
            ValueError: If the rows have measurement errors, a weight is negative, or fewer than 20 rows are kept.
        """
        if self.noise is not None:
            raise ValueError(
                "this needs rows that are draws of the density of true values, and those of the fit have measurement "
                "errors: pass others as DATA"
            )
        if self.weight is None:
            return self
        if (self.weight < 0).any():
            raise ValueError(
                "this needs rows that are draws of a density, and rows of negative weight are none: pass others as DATA"
            )
        chance = np.random.default_rng(seed).random(len(self.weight))
        kept = chance * self.weight.max() < self.weight
        if kept.sum() < LEAST_DRAWN:
            raise ValueError(
                f"this needs rows that are draws of a density: {kept.sum()} of {len(kept)} remain when each is kept in "
                f"proportion to its weight, and {LEAST_DRAWN} are needed; pass more rows as DATA"
            )
        click.echo(f"{kept.sum()} of {len(kept)} rows stand for all, drawn by their weights", err=True)
        return replace(self.take(kept), weight=None)


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


def load_model(run: str, density: str) -> DensityModel:
    """Load the model of a run.

    Args:
        run: Run folder.
        density: Word of DENSITIES that reports, or "auto" for that of the run.

    Returns:
        The model.

    Raises:
        ValueError: If the run has no such density.
    """
    model = DensityModel.load(run)
    if density == "auto":
        return model
    if density == "steps" and model.steps is None:
        raise ValueError(f"{run} has no density of few steps: make one by discretize, or leave --density out")
    return model.reporting_by(density)


def load(
    source: str,
    *,
    rows: int | None = None,
    seed: int = 0,
    context_columns: Sequence[str] = (),
    weight: str | None = None,
    noise_columns: Sequence[str] = (),
    size: int | None = None,
    grey: bool = False,
    drop: Sequence[str] = (),
    missing_ok: bool = False,
    types: Mapping[str, ColumnType] | None = None,
    missing: Sequence[float | str] | None = None,
    keep_empty: bool = False,
    told: bool = True,
) -> LoadedData:
    """Read a named data set, a file or a folder of pictures.

    Args:
        source: Name or path, with a split or key where it has one.
        rows: Number of rows of a toy, or of a random subset; None for all.
        seed: Seed of a toy's rows, or of the subset.
        context_columns: Columns to condition on.
        weight: Column of the rows' weights, or None.
        noise_columns: Columns of measurement errors, each as COLUMN=ERROR.
        size: Side that images are cropped and averaged to.
        grey: Whether to convert images to grey levels.
        drop: Columns of a table to leave out, by name or index.
        missing_ok: Whether the latter are names alone, and may be missing.
        types: Types of columns that are known, by name.
        missing: Marks of missing cells; None where no cell may be missing.
        keep_empty: Whether rows without any value stay.
        told: Whether to tell on stderr what was found in a file of a table.

    Returns:
        The data.

    Raises:
        ValueError: If the source cannot be read, or a column is not there.
    """
    if datasets.is_image_source(source):
        if weight is not None or noise_columns or drop:
            raise ValueError(f"--weight, --noise-columns and --drop are for tables; {source} holds images")
        return _load_images(source, rows=rows, seed=seed, context_columns=context_columns, size=size, grey=grey)
    if size is not None or grey:
        raise ValueError(f"--size and --grey are for images; {source} is a table")
    dataset = _load_table(
        source, told=told, rows=rows, seed=seed, missing=missing, types=types or {}, drop=drop, missing_ok=missing_ok,
    )  # fmt: skip
    note = {
        "source": datasets.locate(source),
        "rows": rows,
        "seed": seed,
        "context_columns": list(context_columns),
        "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
        **({"drop": list(dataset.dropped)} if drop else {}),
    }
    if weight is None and not context_columns and not noise_columns:
        shape, known = dataset.image_shape, dataset.log_prob
        data = LoadedData(dataset.x, None, dataset.columns, note, known, shape, types=dataset.types)
    else:
        data = _set_aside(dataset, note, context_columns, weight, noise_columns)
    return data if keep_empty or missing is None else _with_values(data, told)


def _set_aside(
    dataset: datasets.Dataset,
    note: dict[str, Any],
    context_columns: Sequence[str],
    weight: str | None,
    noise_columns: Sequence[str],
) -> LoadedData:
    """Take contexts, weights and measurement errors out of the columns of a table."""
    pairs = [_noise_pair(each) for each in noise_columns]
    weights = [] if weight is None else [weight]
    split = datasets.split_columns(dataset, [*context_columns, *weights, *(error for _, error in pairs)])
    _refuse_texts(dataset, split.context_columns[len(context_columns) :])
    context_types = _texts_among(dataset, split.context_columns[: len(context_columns)])
    if context_types:
        note["context_columns"] = list(split.context_columns[: len(context_columns)])
    context, weighing, errors = np.split(split.context, np.cumsum([len(context_columns), len(weights)]), axis=1)
    if weights:
        note |= {"weight": split.context_columns[len(context_columns)]}
    if pairs:
        note |= {"noise_columns": list(noise_columns)}
    return LoadedData(
        split.x, context if context_columns else None, split.columns, note, None, None,
        types={name: kind for name, kind in dataset.types.items() if name in split.columns},
        context_types=context_types,
        weight=weighing[:, 0] if weights else None,
        noise=_noise(split.columns, [column for column, _ in pairs], errors) if pairs else None,
    )  # fmt: skip


def _noise_pair(text: str) -> tuple[str, str]:
    """Read a column and that of its measurement errors."""
    column, equals, error = (part.strip() for part in text.partition("="))
    if not (column and equals and error):
        raise ValueError(f"--noise-columns must read like a=a_err,b=b_err; got {text!r}")
    return column, error


def _noise(columns: Sequence[str], measured: Sequence[str], errors: np.ndarray) -> np.ndarray:
    """Return the deviations of all cells, 0 in columns without errors."""
    noise = np.zeros((len(errors), len(columns)))
    for column, values in zip(measured, errors.T, strict=True):
        if column not in columns:
            raise ValueError(f"--noise-columns names {column!r}, which is no column to model: {listing(columns)}")
        noise[:, columns.index(column)] = values
    return noise


def _without_weights(data: LoadedData, column: str | None, expected: Sequence[str]) -> LoadedData:
    """Take the column of weights out of the rows, if the data have it beside the expected columns."""
    count = len(data.columns)
    unnamed = data.columns == datasets.default_columns(count) and count == len(expected)
    if column not in data.columns or unnamed:
        return data
    place = data.columns.index(column)
    rest = [i for i in range(count) if i != place]
    columns = tuple(data.columns[i] for i in rest)
    return replace(data, x=data.x[:, rest], columns=columns, weight=np.array(data.x[:, place], dtype=np.float64))


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
        origin = "comes without its data" if "about" in note else "was made in Python and does not name its data"
        raise ValueError(f"{run.path} {origin}: {advice}")
    try:
        known = {name: note[name] for name in RECORDED if name in note}
        return load(note["source"], told=False, types=_types_of(run), missing=marks_of_missing(run), **known)
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


def load_for_run(
    run: Run,
    source: str,
    *,
    rows: int | None = None,
    seed: int = 0,
    keep_empty: bool = False,
    context: str | None = None,
) -> LoadedData:
    """Read data in the form of a run's: its columns by name, or by position where either side has no names.

    Images come at the size and in the colours of the run's, with labels that number its classes.

    Args:
        run: The run.
        source: Name or path.
        rows: Number of rows of a toy, or of a random subset; None for all.
        seed: Seed of a toy's rows, or of the subset.
        keep_empty: Whether rows without any value stay.
        context: Text of --context, one for all rows of a table; None for that of each row.

    Returns:
        The data.

    Raises:
        ValueError: If a column is missing, or the data are of another kind or shape.
    """
    config = run.config
    if config.get("images") is not None:
        if context is not None:
            raise ValueError("--context is one for all rows of a table; images carry their labels: leave it out")
        return _load_images_for_run(config, source, rows, seed)
    if datasets.is_image_source(source):
        raise ValueError(f"{source} holds images, and {run.path} is a run on a table of {listing(config['columns'])}")
    expected, note = tuple(config["columns"]), config["data"]
    data = load(
        source, rows=rows, seed=seed, context_columns=note.get("context_columns", []) if context is None else [],
        drop=note.get("drop", []), missing_ok=True, types=_types_of(run), missing=marks_of_missing(run),
        keep_empty=True,
    )  # fmt: skip
    data = _without_weights(data, note.get("weight"), expected)
    if context is not None:
        given = cast(np.ndarray, parse_context(run, context, len(data.x)))
        data = replace(data, context=np.broadcast_to(given, (len(data.x), given.shape[1])))
    data = _in_order(data, source, expected)
    return data if keep_empty or marks_of_missing(run) is None else _with_values(data, told=True)


def _in_order(data: LoadedData, source: str, expected: tuple[str, ...]) -> LoadedData:
    """Return data with the columns of a run, by name, or by position where either side has no names."""
    places = {name: i for i, name in enumerate(data.columns)}
    if set(expected) <= places.keys():
        return replace(data, x=data.x[:, [places[column] for column in expected]], columns=expected)
    unnamed = datasets.default_columns(len(expected)) in (data.columns, expected)
    if unnamed and len(data.columns) == len(expected):
        return data
    missing = next(column for column in expected if column not in places)
    raise ValueError(f"{source} has no column {missing!r}, which the run has; its columns are {listing(data.columns)}")


def marks_of_missing(run: Run) -> Sequence[float | str] | None:
    """Return what marks the missing cells of a run's data.

    A conditional run has none, but rows whose every value to model is missing are left out.

    Args:
        run: The run.

    Returns:
        The marks beside empty cells; None where no cell may be missing.
    """
    fields, conditional = run.config["estimator"], run.config["data"].get("context_columns")
    return fields.get("missing") or () if fields.get("subsets") or run.config.get("subsets") or conditional else None


def complete_rows(data: LoadedData, verb: str, noun: str = "rows") -> LoadedData:
    """Leave out rows with missing cells, and tell their number.

    Args:
        data: Data.
        verb: Name of the command, for the message.
        noun: What the rows are, for the message.

    Returns:
        The rows without missing cells.

    Raises:
        ValueError: If there are fewer than two.
    """
    if data.is_images or not np.isnan(data.x).any():
        return data
    whole = ~np.isnan(data.x).any(1)
    if whole.sum() < 2:
        raise ValueError(
            f"{verb} takes rows without missing cells; {whole.sum()} of {len(whole)} are: impute them first"
        )
    click.echo(f"{(~whole).sum()} of {len(whole)} {noun} left out, which have missing cells")
    return data.take(whole)


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
        text: Values "1.0,2.5" or "age=40,kids=2" for all rows, a file with a row for each, or classes of images, used
            in turn.
        count: Number of rows.

    Returns:
        Contexts, (1, c) from values or (count, c) from a file; labels (count,) of images; None for a run without
        context.

    Raises:
        ValueError: If the text does not suit the run.
    """
    if run.config.get("images") is not None and run.config["images"]["classes"]:
        return read_labels(run, text, count)
    expected = run.config["context_dim"]
    names = run.config["data"].get("context_columns") or run.config.get("context_columns", [])
    if not expected:
        if text is not None:
            raise ValueError("this run takes no context: leave --context out")
        return None
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with values of {', '.join(names) or expected}")
    types = {own[0]: kind for own, kind in read_types(run.config.get("context_types")).items()}
    rows, expected = _read_contexts(text, names, types), len(names) if types else expected
    if rows.shape not in ((1, expected), (count, expected)):
        raise ValueError(
            f"--context must give {expected} values ({', '.join(names)}), or a file of {count} rows of them; "
            f"got shape {rows.shape}"
        )
    return rows


def _types_of(run: Run) -> dict[str, ColumnType]:
    """Return the types of a run's columns, categories with their levels."""
    types = {**read_types(run.config.get("types")), **read_types(run.config.get("context_types"))}
    return {own[0]: kind for own, kind in types.items() if len(own) == 1}


def _cells(kind: ColumnType | None, column: np.ndarray) -> np.ndarray:
    """Return the cells of a column, where it is a category or has dates, or else its numbers."""
    return kind.cells(column) if isinstance(kind, (Category, Dated)) else column


def _refuse_texts(dataset: datasets.Dataset, names: Sequence[str]) -> None:
    """Refuse weights and measurement errors that are texts."""
    for name in names:
        kind = dataset.types.get(name)
        if isinstance(kind, Category) and kind.is_text:
            raise ValueError(f"column {name!r} holds text, and a weight or an error must be numbers: name another one")


def _texts_among(dataset: datasets.Dataset, names: Sequence[str]) -> dict[str, Category]:
    """Return the types of the columns that hold texts; truth values and dates are numbers among contexts."""
    kinds = {name: dataset.types[name] for name in names if name in dataset.types}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, Category) and kind.is_text}


def _load_table(source: str, *, told: bool = True, **options: Any) -> datasets.Dataset:
    """Read a table; of a file, tell what was found in it."""
    dataset = datasets.load(source, **options)
    if told and dataset.found and current_workers().is_first:
        click.echo(f"read {source}: {dataset.found}", err=True)
    return dataset


def _with_values(data: LoadedData, told: bool) -> LoadedData:
    """Return the rows with any value to model, and tell how many have none."""
    empty = np.isnan(data.x).all(1)
    if not empty.any():
        return data
    if told and current_workers().is_first:
        click.echo(f"{empty.sum()} of {len(empty)} rows left out, which have no value", err=True)
    return data.take(~empty)


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


def _read_contexts(text: str, names: Sequence[str], types: Mapping[str, ColumnType]) -> np.ndarray:
    """Return values for all rows, as one row, or else the rows of a file, by name where it has the names of the fit."""
    try:
        return read_values(text, names, types)
    except ValueError:
        if is_named(text) or (types and not datasets.files.looks_like_path(text)):
            raise
    table = _load_table(text, types=dict(types) if types else None)
    named = [table.columns.index(name) for name in names if name in table.columns]
    return table.x[:, named] if names and len(named) == len(names) else table.x
