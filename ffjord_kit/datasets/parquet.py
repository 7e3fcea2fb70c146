"""Parquet tables; the only file that knows pyarrow, which is imported when one is read or written."""

from __future__ import annotations

from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from ffjord_kit.datasets.dataset import Dataset
from ffjord_kit.datasets.faults import refuse_empty, refuse_not_finite, refuse_repeated

INDEX = "__index_level_"  # how pandas names an index that it stores as a column


def import_parquet() -> ModuleType:
    """Return pyarrow.parquet; raises ImportError with what to install when it is not there."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("a .parquet file needs pyarrow: pip install ffjord-kit[parquet]") from error
    return pyarrow.parquet


def read_parquet(path: str) -> Dataset:
    """Read a Parquet file whose columns are numbers; the index that pandas may have stored is left out.

    Raises ValueError for a damaged file, for columns of another type, and for missing or infinite values; ImportError
    without pyarrow.
    """
    table = _load(path)
    names = tuple(name for name in table.column_names if not name.startswith(INDEX))
    x = np.empty((table.num_rows, len(names)))
    refuse_empty(path, x.shape)
    refuse_repeated(path, names)
    for i, name in enumerate(names):
        x[:, i] = _column(path, name, table.column(name))
    refuse_not_finite(path, x, names, "row {} (counted from 0)".format)
    return Dataset(path, x, names)


def write_parquet(file: BinaryIO, x: np.ndarray, columns: tuple[str, ...]) -> None:
    """Write the columns of x (n, d) under their names."""
    import pyarrow

    import_parquet().write_table(pyarrow.table(dict(zip(columns, x.T, strict=True))), file)


def _load(path: str) -> Any:
    parquet = import_parquet()
    import pyarrow

    try:
        return parquet.ParquetFile(path).read()  # read_table would add columns from folders called key=value
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a Parquet file ({str(error).splitlines()[0]})") from error


def _column(path: str, name: str, column: Any) -> np.ndarray:
    import pyarrow

    kind = column.type
    tests = (pyarrow.types.is_integer, pyarrow.types.is_floating, pyarrow.types.is_boolean, pyarrow.types.is_decimal)
    if not any(test(kind) for test in tests):
        raise ValueError(f"{path}: column {name!r} holds {kind}; expected numbers: drop it, or write it as numbers")
    return column.cast(pyarrow.float64(), safe=False).to_numpy()
