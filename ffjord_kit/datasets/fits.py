"""Tables in FITS files, by astropy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ffjord_kit.datasets.arrays import choose_table
from ffjord_kit.datasets.damage import explained_by
from ffjord_kit.datasets.extras import import_extra
from ffjord_kit.datasets.frame import Frame, make_frame


def read_fits(path: str, key: str | None = None) -> Frame:
    """Read a table of a FITS file.

    Args:
        path: Path of the file.
        key: Name of the extension, or its number where it has no name; None for the only table.

    Returns:
        The table. A column of vectors makes several columns.

    Raises:
        ValueError: If the file is damaged, or has no such table.
        ImportError: If astropy is missing.
    """
    fits, table = import_extra("astropy.io.fits", path), import_extra("astropy.table", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units and words of the header that astropy does not know
        warnings.filterwarnings("error", message=".*truncated.*")
        with explained_by(path, "a FITS file"), fits.open(path) as file:
            kinds = (fits.BinTableHDU, fits.TableHDU)
            tables = {hdu.name or str(i): hdu for i, hdu in enumerate(file) if isinstance(hdu, kinds)}
            names = list(tables)
            name = next((own for own in names if key is not None and own.lower() == key.lower()), key)
            chosen = name if name in tables else (names[0] if name is None and len(names) == 1 else None)
            columns = [] if chosen is None else _columns(table.Table.read(tables[chosen]))
    if chosen is None:
        choose_table(path, names, name)
    label = path if key is None else f"{path}:{key}"
    return make_frame(label, columns, found=f"table {chosen!r}" if len(names) > 1 else "")


def _columns(table: Any) -> list[tuple[str, np.ndarray]]:
    return [(name, _values(table[name])) for name in table.colnames]


def _values(column: Any) -> np.ndarray:
    """Return the values of a column, nan where they are masked."""
    mask = np.ma.getmaskarray(column)
    values = np.asarray(np.ma.getdata(column))
    if not mask.any():
        return values
    values = values.astype(float if values.dtype.kind in "biuf" else object)
    values[mask] = np.nan
    return values
