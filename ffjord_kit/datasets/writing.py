"""Tables written to a user's files, all at once or chunk by chunk.

A file is written whole or not at all: the new file is written beside the old one, then takes its name.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ffjord_kit.atomic import replacing
from ffjord_kit.datasets.cells import is_text
from ffjord_kit.datasets.dataset import default_columns
from ffjord_kit.datasets.extras import import_extra
from ffjord_kit.datasets.validation import check_distinct_names
from ffjord_kit.memory import readable

CHUNK = 1 << 16  # rows written at once
TEXT_BYTES, NUMBER_BYTES = 18, 8  # of a number with all its digits and a delimiter in text, and in other files
LARGEST_WHOLE = 2**53  # floats beyond have no digits after the point, and too many before it
SHEET_ROWS = 1 << 20  # of an Excel sheet
LONGER = "write .csv or .parquet"
LIBRARIES = {".parquet": "pyarrow", ".feather": "pyarrow", ".xlsx": "openpyxl"}


Cells = Callable[[np.ndarray], np.ndarray]


class Heading(NamedTuple):
    """The facts about a table that stand before its rows.

    Args:
        columns: Names of the columns.
        rows: Number of rows.
        whole: Names of columns of whole numbers, which text holds without a point.
        cells: What stands in the place of numbers: texts, truth values or dates, as a function of these, by column.
    """

    columns: tuple[str, ...]
    rows: int
    whole: Collection[str]
    cells: Mapping[str, Cells]

    def column(self, x: np.ndarray, j: int) -> np.ndarray:
        """Return a column as it is written.

        Args:
            x: Numbers, shape (n, d).
            j: Position of the column.

        Returns:
            Numbers, texts, truth values or dates, shape (n,).
        """
        name = self.columns[j]
        if name in self.cells:
            return self.cells[name](x[:, j])
        return _as_whole(x[:, j]) if name in self.whole else x[:, j]


Chunks = Iterator[np.ndarray]


def write(path: str | os.PathLike[str], x: np.ndarray, columns: Sequence[str]) -> None:
    """Write a table in the format that the extension of the path names.

    Numbers in text have as many digits as reading them back exactly needs; Excel keeps 16. An NPY file has no place for
    names, and a text file whose names are all numbers would be read as a table without a header: there they become
    x0, x1, ...
    A crash leaves the old file or the new one, never a part.

    Args:
        path: Path of the file: .csv, .tsv, .npy, .npz, .parquet, .feather or .xlsx.
        x: Values, shape (n, d).
        columns: Names of the d columns.

    Raises:
        ValueError: If the file cannot be written there (see `check_writable`), `x` is not a table of real numbers, or
            the names do not fit it.
        ImportError: If a library is missing that the file needs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/pairs.csv", np.array([[0.5, 1.0], [2.0, 3.0]]), ["a", "b"])
        ...     print(Path(folder, "pairs.csv").read_text())
        a,b
        0.5,1.0
        2.0,3.0
        <BLANKLINE>
    """
    check_writable(path)
    table = _check_table(x, columns)
    chunks = (table[start : start + CHUNK] for start in range(0, max(1, len(table)), CHUNK))
    write_chunks(path, chunks, columns, rows=len(table))


def write_chunks(
    path: str | os.PathLike[str],
    chunks: Iterable[np.ndarray],
    columns: Sequence[str],
    *,
    rows: int,
    whole: Collection[str] = (),
    cells: Mapping[str, Cells] | None = None,
) -> None:
    """Write a table as its rows come, in the format of `write`, so that it may be larger than the memory.

    Args:
        path: Path of the file: .csv, .tsv, .npy, .npz, .parquet, .feather or .xlsx.
        chunks: Values, each of shape (some, d), one chunk or more.
        columns: Names of the d columns.
        rows: Number of rows in all.
        whole: Names of columns of whole numbers, which text then holds without a point.
        cells: What is written in the place of numbers, as a function of these, by column: texts, truth values or dates.

    Raises:
        ValueError: If the file cannot be written there (see `check_writable`) or holds numbers alone, or two names are
            the same.
        ImportError: If a library is missing that the file needs.

    Example:
        >>> import tempfile
        >>> chunks = (np.full((1, 2), i) for i in (0.5, 1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_chunks(f"{folder}/pairs.csv", chunks, ["a", "b"], rows=2)
        ...     print(Path(folder, "pairs.csv").read_text().splitlines())
        ['a,b', '0.5,0.5', '1.0,1.0']
    """
    check_writable(path)
    check_distinct_names(str(path), columns)
    if Path(path).suffix.lower() == ".xlsx" and rows >= SHEET_ROWS:
        raise ValueError(f"{path}: an Excel sheet has {SHEET_ROWS - 1:,} rows below its header; got {rows:,}: {LONGER}")
    if cells and Path(path).suffix.lower() in (".npy", ".npz"):
        raise ValueError(f"{path}: holds numbers alone, and column {next(iter(cells))!r} has others: {LONGER}")
    with replacing(os.path.realpath(path)) as temporary, open(temporary, "wb") as file:
        WRITERS[Path(path).suffix.lower()](file, iter(chunks), Heading(tuple(columns), rows, whole, cells or {}))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that `write` can write to a path. Call it before the work whose result is to be written.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the extension is unknown, or the folder does not exist or may not be written.
        ImportError: If a library is missing that the file needs.

    Example:
        >>> check_writable("draws.csv")
        >>> check_writable("draws.doc")
        Traceback (most recent call last):
        ValueError: draws.doc: unknown extension '.doc'; known: .csv, .tsv, .npy, .npz, .parquet, .feather, .xlsx
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
    if suffix in LIBRARIES:
        import_extra(LIBRARIES[suffix], str(path))


def check_disk(path: str | os.PathLike[str], rows: int, widths: Sequence[int]) -> None:
    """Check that a disk has room for a table. Call it before the work whose result is to be written.

    Args:
        path: Path of the file.
        rows: Number of rows.
        widths: Characters of a number in text, delimiter included, of each column.

    Raises:
        ValueError: If it has not.

    Example:
        >>> check_disk("draws.npy", rows=1000, widths=[18, 18])  # 16 kB, for which there is room
        >>> check_disk("draws.npy", rows=10**18, widths=[18, 18])
        Traceback (most recent call last):
        ValueError: draws.npy: 1000000000000000000 rows take about ...
    """
    text = Path(path).suffix.lower() in (".csv", ".tsv")
    size = rows * (sum(widths) if text else NUMBER_BYTES * len(widths))
    free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
    if size > free:
        raise ValueError(
            f"{path}: {rows} rows take about {readable(size)}, and its disk has {readable(free)} left: write fewer "
            "rows, or to another disk"
        )


def _check_table(x: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    table = np.asarray(x)
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise ValueError(f"x must have shape (rows, {len(columns)}), a column for each name; got {table.shape}")
    if table.dtype.kind not in "biuf":
        raise ValueError(f"x must hold real numbers; got {table.dtype}")
    return table


def _write_text(file: IO[bytes], chunks: Chunks, heading: Heading, *, delimiter: str) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(_text_names(heading.columns))
    for x in chunks:
        writer.writerows(_rows(x, heading))
    text.detach()  # which leaves the file open


def _text_names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return names that are read as a header: numbered ones where all are numbers."""
    return columns if any(map(is_text, columns)) else default_columns(len(columns))


def _rows(x: np.ndarray, heading: Heading) -> Iterator[tuple[Any, ...]]:
    """Return rows of Python's numbers, whole ones in columns of whole numbers, of texts, and of dates in ISO form."""
    table = x if x.dtype.kind in "iu" else x.astype(np.float64)
    columns = (heading.column(table, j) for j in range(len(heading.columns)))
    return zip(*((each.astype(str) if each.dtype.kind == "M" else each).tolist() for each in columns), strict=True)


def _as_whole(column: np.ndarray) -> np.ndarray:
    """Return whole numbers as integers, where they are small enough to be exact."""
    return column.astype(np.int64) if np.abs(column).max(initial=0) < LARGEST_WHOLE else column


def _write_npy(file: IO[bytes], chunks: Chunks, heading: Heading) -> None:
    """Write the header of the first chunk's type, with the shape of all, and then the numbers as they come."""
    first = next(chunks)
    descr = np.lib.format.dtype_to_descr(first.dtype)
    shape = (heading.rows, len(heading.columns))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    for x in chain([first], chunks):
        file.write(np.ascontiguousarray(x).tobytes())


def _write_npz(file: IO[bytes], chunks: Chunks, heading: Heading) -> None:
    names = np.array(heading.columns, dtype=np.str_)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as entry:
            _write_npy(entry, chunks, heading)
        with archive.open("columns.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, names, allow_pickle=False)


def _write_parquet(file: IO[bytes], chunks: Chunks, heading: Heading) -> None:
    import pyarrow.parquet as pq

    _write_arrow(chunks, heading, lambda schema: pq.ParquetWriter(file, schema))


def _write_feather(file: IO[bytes], chunks: Chunks, heading: Heading) -> None:
    import pyarrow as pa

    _write_arrow(chunks, heading, lambda schema: pa.ipc.new_file(file, schema))


def _write_arrow(chunks: Chunks, heading: Heading, make_writer: Callable[[Any], Any]) -> None:
    import pyarrow as pa

    writer = None
    for x in chunks:
        columns = [_for_arrow(heading.column(x, j)) for j in range(len(heading.columns))]
        table = pa.table(columns, names=list(heading.columns))
        writer = writer or make_writer(table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _for_arrow(column: np.ndarray) -> np.ndarray:
    """Return a column whose type is the same in all chunks."""
    return np.ascontiguousarray(column.astype("datetime64[s]") if column.dtype.kind == "M" else column)


def _write_excel(file: IO[bytes], chunks: Chunks, heading: Heading) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("table")
    sheet.append(_text_names(heading.columns))
    for row in (row for x in chunks for row in _rows(x, heading)):
        sheet.append(
            [str(cell) if isinstance(cell, float) and not np.isfinite(cell) else cell for cell in row]
        )  # Excel has no infinite numbers
    book.save(file)


Writer = Callable[[IO[bytes], Chunks, Heading], None]

WRITERS: dict[str, Writer] = {
    ".csv": partial(_write_text, delimiter=","),
    ".tsv": partial(_write_text, delimiter="\t"),
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".feather": _write_feather,
    ".xlsx": _write_excel,
}
