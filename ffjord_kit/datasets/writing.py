"""Tables into files, all or nothing: a new file is written beside the old one, then takes its name."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ffjord_kit.atomic import replacing
from ffjord_kit.datasets.dataset import default_columns
from ffjord_kit.datasets.faults import refuse_repeated
from ffjord_kit.datasets.parquet import import_parquet, write_parquet
from ffjord_kit.datasets.text import is_text

Writer = Callable[[BinaryIO, np.ndarray, tuple[str, ...]], None]


def write(path: str | os.PathLike[str], x: np.ndarray, columns: Sequence[str]) -> None:
    """Write x (n, d) and the names of its d columns in the format that the extension of `path` says.

    Numbers in text have as many digits as reading them back exactly needs. An NPY file has no place for names, and a
    text file would take names that are all numbers for a row of data: there they are x0, x1, ... A crash leaves the
    old file or the new one, never a part. Raises as `check_writable`, and ValueError when x is not a table or the
    names do not fit it.
    """
    check_writable(path)
    table = _as_table(x, columns)
    refuse_repeated(str(path), list(columns))
    with replacing(os.path.realpath(path)) as temporary, open(temporary, "wb") as file:
        WRITERS[Path(path).suffix.lower()](file, table, tuple(columns))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless `write` could write there: known extension, existing folder that may be written.

    Raises ImportError for Parquet without pyarrow. Call it before the work whose result is to be written.
    """
    suffix, folder = Path(path).suffix.lower(), Path(os.path.realpath(path)).parent
    if suffix not in WRITERS:
        raise ValueError(f"{path}: unknown extension {suffix!r}; known: {', '.join(WRITERS)}")
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder; give the name of a file")
    if not folder.is_dir():
        raise ValueError(f"{path}: no folder {str(folder)!r}; make it first")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: the folder {str(folder)!r} may not be written")
    if suffix == ".parquet":
        import_parquet()


def _as_table(x: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    table = np.asarray(x)
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise ValueError(f"x must have shape (rows, {len(columns)}), a column for each name; got {table.shape}")
    if table.dtype.kind not in "biuf":
        raise ValueError(f"x must hold real numbers; got {table.dtype}")
    return table


def _write_text(file: BinaryIO, x: np.ndarray, columns: tuple[str, ...], *, delimiter: str) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns if any(map(is_text, columns)) else default_columns(len(columns)))
    writer.writerows(map(np.ndarray.tolist, x))  # row by row; csv writes floats by repr
    text.detach()


def _write_npy(file: BinaryIO, x: np.ndarray, columns: tuple[str, ...]) -> None:
    np.save(file, x, allow_pickle=False)


def _write_npz(file: BinaryIO, x: np.ndarray, columns: tuple[str, ...]) -> None:
    np.savez(file, x=x, columns=np.array(columns, dtype=np.str_))


WRITERS: dict[str, Writer] = {
    ".csv": partial(_write_text, delimiter=","),
    ".tsv": partial(_write_text, delimiter="\t"),
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": write_parquet,
}
