"""Checks of the files, folders and words that a command names, before PyTorch is loaded: errors come at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ffjord_kit import datasets
from ffjord_kit.cli.options import flag
from ffjord_kit.cli.parsing import parse_fields
from ffjord_kit.datasets.series import TEXT_SUFFIXES, check_series_source
from ffjord_kit.estimator.fields import ImageFields, TableFields
from ffjord_kit.models.fields import LatentODEFields, check_fields
from ffjord_kit.run_folder import RunError, check_is_run, check_room, locate_run, refuse_pretrained

IMAGE_SUFFIXES = (".npz", ".png")  # samples of images make the folder of these themselves
PAGE_SUFFIXES = (".html", ".htm")


def check_replaceable(path: str | Path, *, force: bool) -> None:
    """Check that a file may be written.

    Args:
        path: The file.
        force: Whether an existing file may be replaced.

    Raises:
        ValueError: If it exists, and must not be replaced.
    """
    if Path(path).exists() and not force:
        raise ValueError(f"{path} exists: choose another name, or pass --force")


def check_fit(options: Mapping[str, Any], explicit: Sequence[str]) -> None:
    """Check the data, the words and the folder of a fit.

    Args:
        options: Parameters of the command.
        explicit: Those that the command line names.

    Raises:
        ValueError: If something is not there, or cannot be read or written.
    """
    datasets.check_source(options["source"])
    _refuse_foreign(options["source"], explicit)
    parse_fields(options)
    alone = "WORLD_SIZE" not in os.environ  # of several workers the first one looks, which may have been restarted
    if alone and options["out"] is not None and not options["dry_run"]:
        check_room(options["out"], force=options["force"])


def check_resume(path: str, **_: Any) -> None:
    """Check the folder of a run to resume.

    Args:
        path: Run folder.

    Raises:
        RunError: If it is none, or one of the package.
    """
    refuse_pretrained(path)
    check_is_run(path)


def check_sample(run: str, out: str, given: str | None, force: bool, **_: Any) -> None:
    """Check the run, the given values and the file of samples.

    Args:
        run: Run folder.
        out: File.
        given: Values of columns, as a=0,b=1.5, or None.
        force: Whether an existing file may be replaced.

    Raises:
        ValueError: If there is no run, the values cannot be read, or the file cannot be written.
    """
    parse_values(given, "--given")
    check_is_run(run)
    check_replaceable(out, force=force)
    if Path(out).suffix.lower() not in IMAGE_SUFFIXES:
        datasets.check_writable(out)


def check_impute(run: str, source: str, out: str, force: bool, **_: Any) -> None:
    """Check the run, the table and the file of its fillings.

    Args:
        run: Run folder.
        source: Table.
        out: File.
        force: Whether an existing file may be replaced.

    Raises:
        ValueError: If something is not there, or the file cannot be written.
    """
    check_replaceable(out, force=force)
    datasets.check_writable(out)
    check_use(run, source)


def check_score(
    run: str, source: str, other: str | None, out: str | None, picture: str | None, force: bool, **_: Any
) -> None:
    """Check the run, the data and the files of scores.

    Args:
        run: Run folder.
        source: Data.
        other: Further data, or None.
        out: File for the result of each row, or None.
        picture: PNG file, or None.
        force: Whether existing files may be replaced.

    Raises:
        ValueError: If something is not there, or a file cannot be written.
    """
    for path in filter(None, (out, picture)):
        check_replaceable(path, force=force)
    if out is not None:
        datasets.check_writable(out)
    check_use(run, source)
    if other is not None:
        datasets.check_source(other)


def check_explain(
    run: str, source: str, bounds: str | None, out: str | None, picture: str | None, force: bool, **_: Any
) -> None:
    """Check the run, the rows, the bounds and the files of corrections.

    Args:
        run: Run folder.
        source: Rows.
        bounds: Bounds of columns, as a=0..5,b=1..2, or None.
        out: File for the corrections, or None.
        picture: PNG file, or None.
        force: Whether existing files may be replaced.

    Raises:
        ValueError: If something is not there or cannot be read, or a file cannot be written.
    """
    parse_bounds(bounds)
    for path in filter(None, (out, picture)):
        check_replaceable(path, force=force)
    if out is not None:
        datasets.check_writable(out)
    check_use(run, source)


def parse_bounds(text: str | None) -> dict[str, tuple[float, float]]:
    """Read the option --bounds.

    Args:
        text: Bounds of columns, as a=0..5,b=1..2, or None.

    Returns:
        Least and greatest value of each column.

    Raises:
        ValueError: If it cannot be read.

    Example:
        >>> parse_bounds("dose=0..2.5,age=18..90")
        {'dose': (0.0, 2.5), 'age': (18.0, 90.0)}
    """
    bounds = {}
    for part in text.split(",") if text else []:
        name, _, interval = part.rpartition("=")
        low, _, high = interval.partition("..")
        try:
            bounds[name.strip()] = (float(low), float(high))
        except ValueError as error:
            raise ValueError(f"--bounds must read like dose=0..2.5,age=18..90; got {part!r}") from error
    return bounds


def parse_values(text: str | None, option: str) -> dict[str, str]:
    """Read an option with values of columns.

    Args:
        text: Values of columns, as a=0,city=Oslo, or None.
        option: Name of the option, for the message.

    Returns:
        Value of each column, as a text that the model reads by the column's type.

    Raises:
        ValueError: If it cannot be read.

    Example:
        >>> parse_values("age=40,city=Oslo", "--given")
        {'age': '40', 'city': 'Oslo'}
    """
    values = {}
    for part in text.split(",") if text else []:
        name, _, value = (word.strip() for word in part.rpartition("="))
        if not name or not value:
            raise ValueError(f"{option} must read like age=40,city=Oslo; got {part!r}")
        values[name] = value
    return values


def check_use(run: str, source: str | None = None, **_: Any) -> None:
    """Check a run and the data that it is used on.

    Args:
        run: Run folder.
        source: Data, or None.

    Raises:
        ValueError: If one of them is not there.
    """
    check_is_run(run)
    if source is not None:
        datasets.check_source(source)


def check_report(run: str, source: str | None, out: str, force: bool, **_: Any) -> None:
    """Check the run, the data and the file of a report.

    Args:
        run: Run folder.
        source: Data, or None.
        out: HTML file.
        force: Whether an existing file may be replaced.

    Raises:
        ValueError: If something is not there, or the file cannot be written.
    """
    check_replaceable(out, force=force)
    if Path(out).suffix.lower() not in PAGE_SUFFIXES:
        raise ValueError(f"a report goes to a .html file; got {out}")
    check_use(run, source)


def check_successor(run: str, source: str | None, out: str, force: bool, **_: Any) -> None:
    """Check a run, its data, and the folder of a run made from it, which must be another one.

    Args:
        run: Run folder.
        source: Data, or None.
        out: Folder of the new run.
        force: Whether to replace an existing run.

    Raises:
        ValueError: If something is not there, or the folder cannot be used.
    """
    folder = Path(out)
    if folder.resolve() == locate_run(run).resolve():
        raise RunError(f"{out} is the run to begin with, which stays as it is: choose another folder")
    content = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if content and not (force and "config.json" in content):
        raise RunError(f"{out} is not empty: choose another folder, or pass --force to replace a run in it")
    check_room(folder, force=force)
    check_use(run, source)


def check_fit_series(options: Mapping[str, Any]) -> None:
    """Check the data, the fields and the folder of a fit of series.

    Args:
        options: Parameters of the command.

    Raises:
        ValueError: If something is not there, or cannot be read or written.
    """
    if options["resume"] is not None:
        return check_resume(options["resume"])
    check_series_source(options["source"])
    check_fields(LatentODEFields(**{each.name: options[each.name] for each in fields(LatentODEFields)}))
    return check_room(options["out"], force=options["force"])


def check_predict_series(run: str, source: str, out: str, force: bool, **_: Any) -> None:
    """Check the run, the series and the file of predictions.

    Args:
        run: Run folder.
        source: Series.
        out: File.
        force: Whether an existing file may be replaced.

    Raises:
        ValueError: If something is not there, or the file cannot be written.
    """
    check_is_run(run)
    check_series_source(source)
    check_replaceable(out, force=force)
    if Path(out).suffix.lower() not in TEXT_SUFFIXES:
        raise ValueError(f"predictions go to a {' or '.join(TEXT_SUFFIXES)} file; got {out}")


def check_plot_series(run: str, source: str | None, **_: Any) -> None:
    """Check a run of series and the series to draw.

    Args:
        run: Run folder.
        source: Series, or None.

    Raises:
        ValueError: If one of them is not there.
    """
    check_is_run(run)
    if source is not None:
        check_series_source(source)


def _refuse_foreign(source: str, explicit: Sequence[str]) -> None:
    """Refuse options of images for a table, and those of tables for images."""
    is_images = datasets.is_image_source(source)
    kind, other = (ImageFields, TableFields) if is_images else (TableFields, ImageFields)
    names = {field.name for field in fields(kind)}
    foreign = [field.name for field in fields(other) if field.name in explicit and field.name not in names]
    if foreign:
        own, other_kind = ("a set of images", "tables") if is_images else ("a table", "images")
        raise ValueError(f"{flag(foreign[0])} is for {other_kind}; {source} is {own}: leave it out")


CHECKS: dict[str, Callable[..., None]] = {
    "fit": check_fit,
    "resume": check_resume,
    "sample": check_sample,
    "impute": check_impute,
    "score": check_score,
    "explain": check_explain,
    "doctor": check_use,
    "reflow": check_successor,
    "condense": check_successor,
    "discretize": check_successor,
    "plot": check_use,
    "report": check_report,
    "describe_run": check_use,
    "fit_series": check_fit_series,
    "predict_series": check_predict_series,
    "plot_series": check_plot_series,
}
