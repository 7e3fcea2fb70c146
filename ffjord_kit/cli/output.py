"""Output of commands: tables on the terminal, and samples of images in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ffjord_kit import metrics, plots
from ffjord_kit.atomic import replacing
from ffjord_kit.run import Run

SHEET_IMAGES = 100
OVER_ROWS = "± is over rows, not over fits"  # by another seed a fit may differ by more
CONSOLE = Console(markup=False, highlight=False)  # a column's name may look like markup


def plain_table(*titles: str) -> Table:
    """Return a table without lines.

    Args:
        titles: Titles of the columns; empty ones are not shown.

    Returns:
        The table, still empty.
    """
    table = Table(show_header=any(titles), box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns; a word that is longer than a line goes on in the next one, uncut.

    Args:
        rows: Names and values.
    """
    table = plain_table("", "")
    for name, value in rows:
        table.add_row(name, value)
    CONSOLE.print(table, soft_wrap=True)


def with_error(values: np.ndarray, digits: int = 4, *, weight: np.ndarray | None = None) -> str:
    """Return the mean of values with its standard error.

    Args:
        values: Values, shape (n,).
        digits: Digits after the point.
        weight: Weights of positive sum, shape (n,), or None.

    Returns:
        Text such as "1.2345 ± 0.0067".

    Example:
        >>> with_error(np.array([1.0, 2.0, 3.0]), digits=2)
        '2.00 ± 0.58'
    """
    mean, error = metrics.mean_and_standard_error(values, weight)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def image_files(out: str) -> list[str]:
    """Return the two files that samples of images go to.

    Args:
        out: Either of them.

    Returns:
        An NPZ file and a PNG file of one name.

    Raises:
        ValueError: If `out` ends otherwise.

    Example:
        >>> image_files("samples.png")
        ['samples.npz', 'samples.png']
    """
    path = Path(out)
    if path.suffix.lower() not in (".npz", ".png"):
        raise ValueError(f"samples of images go to a .npz and a .png of one name; got {path.name!r}")
    return [str(path.with_suffix(suffix)) for suffix in (".npz", ".png")]


def write_images(paths: list[str], images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write images to an archive that can be read as data, and draw a sheet of them.

    Args:
        paths: The NPZ file and the PNG file.
        images: Images of uint8, shape (n, c, h, w); the archive holds them as x_train, channels last.
        labels: Labels, shape (n,), which the archive holds as y_train, or None.
    """
    archive, sheet = map(Path, paths)
    channels_last = images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)
    arrays: dict[str, Any] = {"x_train": channels_last} | ({} if labels is None else {"y_train": labels})
    figure = plots.image_sheet(as_picture(images[:SHEET_IMAGES]))  # before anything is written
    archive.parent.mkdir(parents=True, exist_ok=True)
    with replacing(archive) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    plots.save(figure, sheet)


def write_training_sheet(run: Run, shape: tuple[int, ...], record: Mapping[str, Any], images: np.ndarray) -> None:
    """Draw a sheet of samples during training; its name states the step and the bits per dimension.

    Args:
        run: Run that trains.
        shape: Shape (c, h, w) of an image.
        record: Record of the validation.
        images: Images of uint8, shape (n, ...).
    """
    bits = metrics.bits_per_dim(record["validation_nll"], int(np.prod(shape)))
    name = f"step-{record['step']:06d}-{bits:.4f}-bits.png"
    plots.save(plots.image_sheet(as_picture(images.reshape(-1, *shape))), run.file("samples") / name)


def as_picture(images: np.ndarray) -> np.ndarray:
    """Return images as plots take them.

    Args:
        images: Levels from 0 to 255, shape (..., c, h, w).

    Returns:
        Brightness from 0 to 1, shape (..., h, w, 3) for three channels, else (..., h, w) of the first one.
    """
    colours = images.shape[-3] == 3
    return (np.moveaxis(images, -3, -1) if colours else images[..., 0, :, :]) / 255.0
