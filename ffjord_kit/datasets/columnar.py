"""Tables in Parquet and Feather files, by pyarrow and pandas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ffjord_kit.datasets.damage import explained_by
from ffjord_kit.datasets.extras import import_extra
from ffjord_kit.datasets.frame import Frame, make_frame

if TYPE_CHECKING:
    import pandas as pd


def read_parquet(path: str) -> Frame:
    """Read a Parquet file; an index that pandas stored is left out.

    Args:
        path: Path of the file.

    Returns:
        The table.

    Raises:
        ValueError: If the file is damaged.
        ImportError: If pyarrow or pandas is missing.
    """
    return _read(path, "pyarrow.parquet", "a Parquet file")


def read_feather(path: str) -> Frame:
    """Read a Feather file, or one of Arrow's interchange format.

    Args:
        path: Path of the file.

    Returns:
        The table.

    Raises:
        ValueError: If the file is damaged.
        ImportError: If pyarrow or pandas is missing.
    """
    return _read(path, "pyarrow.feather", "a Feather file")


def _read(path: str, module: str, kind: str) -> Frame:
    arrow, pandas = import_extra(module, path), import_extra("pandas", path)
    with explained_by(path, kind), open(path, "rb") as file:  # by a path, folders called key=value would add columns
        frame = arrow.read_table(file).to_pandas(types_mapper=pandas.ArrowDtype)
        columns = list(_columns(frame))
    return make_frame(path, columns)


def _columns(frame: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values of each column: floats where they are numbers, and else the cells."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    for name, column in frame.items():
        if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
            yield str(name), column.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            yield str(name), column.to_numpy(dtype=object)
