"""A user's own tables, whatever file they come in. No pickled object is ever loaded."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ffjord_kit.columns.base import ColumnType
from ffjord_kit.datasets.arrays import read_npy, read_npz
from ffjord_kit.datasets.columnar import read_feather, read_parquet
from ffjord_kit.datasets.dataset import Dataset, listing, suggestion
from ffjord_kit.datasets.excel import read_excel
from ffjord_kit.datasets.fits import read_fits
from ffjord_kit.datasets.frame import Frame, Marks
from ffjord_kit.datasets.hdf5 import read_hdf5
from ffjord_kit.datasets.json_tables import read_json
from ffjord_kit.datasets.text import read_text
from ffjord_kit.datasets.text_file import COMPRESSIONS, inner_name

DATA_FOLDER = "FFJORD_KIT_DATA"  # environment variable that names the folder of larger sets


class Format(NamedTuple):
    """A kind of file.

    Args:
        name: Its name in messages.
        read: Function of a path that reads it; also of the name of a table where it holds several.
        holds_several: Whether a name after a colon chooses one of several tables.
        is_packed: Whether its compressed form is read too.
    """

    name: str
    read: Callable[..., Frame]
    holds_several: bool = False
    is_packed: bool = False


# ---- paths


def looks_like_path(source: str) -> bool:
    """Return whether a source can only be a file: it exists, has a folder in it, or has an extension.

    Args:
        source: A path, or `file.npz:KEY`.

    Returns:
        True for a path.
    """
    path, _ = _path_and_key(source)
    return os.path.exists(path) or os.path.dirname(path) != "" or Path(path).suffix != ""


def absolute(source: str) -> str:
    """Return the absolute path of a file, with its key if it has one.

    Args:
        source: A path, or `file.npz:KEY`.

    Returns:
        The source as it can be read from any folder.
    """
    path, key = _path_and_key(source)
    return os.path.abspath(in_data_folder(path)) + (f":{key}" if key else "")


def in_data_folder(path: str) -> str:
    """Look for a relative path that does not exist here in the folder that FFJORD_KIT_DATA names.

    Args:
        path: Path of a file or folder.

    Returns:
        The path in that folder where it exists there alone, else `path` itself.
    """
    folder = os.environ.get(DATA_FOLDER)
    there = os.path.join(folder, path) if folder else path
    return there if not os.path.exists(path) and os.path.exists(there) else path


def _path_and_key(source: str) -> tuple[str, str | None]:
    head, colon, tail = source.rpartition(":")
    suffix = Path(head).suffix.lower()
    if os.path.exists(source) or not colon or not suffix:
        return source, None
    several = [own for own, form in FORMATS.items() if form.holds_several]
    if suffix not in several:
        raise ValueError(
            f"{source}: only a file of several tables, {', '.join(several)}, takes a name after the colon; got {tail!r}"
        )
    return head, tail


# ---- reading


def read(
    source: str,
    *,
    missing: Marks | None = None,
    types: Mapping[str, ColumnType] | None = None,
    drop: Sequence[str] = (),
    missing_ok: bool = False,
) -> Dataset:
    """Read the table in a file.

    Args:
        source: Path of the file, or `file.npz:KEY` for one table of several.
        missing: Marks of missing cells, beside empty ones; None where no cell may be missing.
        types: Types of columns that are known, by name, where texts, truth values and dates are to be read; None where
            all columns must be numbers.
        drop: Columns to leave out, by name or index.
        missing_ok: Whether the latter are names alone, and may be missing.

    Returns:
        The table. Arrays (n, height, width) are flattened and get an `image_shape`.

    Raises:
        ValueError: If anything is wrong with the file, in one line.
        ImportError: If a library is missing that the file needs.
    """
    whole = read_frame(source)
    frame = whole.without(drop, missing_ok=missing_ok)
    dataset = frame.dataset(missing) if types is None else frame.mixed_dataset(types, missing)
    return replace(dataset, dropped=tuple(name for name in whole.columns if name not in frame.columns))


def read_frame(source: str) -> Frame:
    """Read the table in a file, whatever the kinds of its columns.

    Args:
        source: Path of the file, or `file.npz:KEY` for one table of several.

    Returns:
        The table.

    Raises:
        ValueError: If the file is no table, or is damaged, in one line.
        ImportError: If a library is missing that the file needs.
    """
    path, key = _path_and_key(source)
    path = in_data_folder(path)
    form = _format(path)
    try:
        _check_content(path, form)
        return form.read(path) if key is None else form.read(path, key)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_readable(source: str) -> None:
    """Check that a file is there and that its extension is known, without reading it.

    Args:
        source: Path of the file, or `file.npz:KEY`.

    Raises:
        ValueError: If it is not.
    """
    path, _ = _path_and_key(source)
    _format(in_data_folder(path))


def _format(path: str) -> Format:
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if Path(inner_name(name)).suffix.lower() in FORMATS)
        raise ValueError(f"{path}: a folder; give a file in it ({listing(inside, limit=5) or 'it holds no tables'})")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file{suggestion(os.path.basename(path), _siblings(path))}")
    outer, inner = Path(path).suffix.lower(), Path(inner_name(path)).suffix.lower()
    if inner not in FORMATS:
        known = f"known: {', '.join(FORMATS)}, some with {', '.join(COMPRESSIONS)}, and image:PATH for pictures"
        raise ValueError(f"{path}: unknown extension {inner or outer!r}; {ADVICE.get(inner, known)}")
    form = FORMATS[inner]
    if outer != inner and not form.is_packed:
        raise ValueError(f"{path}: {form.name} is not read in compressed form: unpack it first")
    return form


def _siblings(path: str) -> list[str]:
    folder = os.path.dirname(path) or "."
    return os.listdir(folder) if os.path.isdir(folder) else []


def _check_content(path: str, form: Format) -> None:
    """Refuse a file whose first bytes are those of another kind of file than its extension says."""
    told = _suffix_by_content(path)
    if told and FORMATS[told].name != form.name:
        raise ValueError(f"{path}: {FORMATS[told].name} by its content, not {form.name}: rename it to end in {told}")


def _suffix_by_content(path: str) -> str | None:
    with open(path, "rb") as file:
        head = file.read(10)
    if head.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError):
            return None
        return next((own for own, mark in MEMBERS.items() if any(name.endswith(mark) for name in names)), None)
    return next((own for own, mark in MARKS.items() if head.startswith(mark)), None)


MARKS = {
    ".parquet": b"PAR1",
    ".feather": b"ARROW1",
    ".h5": b"\x89HDF\r\n\x1a\n",
    ".fits": b"SIMPLE  =",
    ".npy": b"\x93NUMPY",
}  # at the start of a file
MEMBERS = {".xlsx": "xl/workbook.xml", ".npz": ".npy"}  # ends of the names of files in an archive
ADVICE = {
    ".xls": "Excel's old form is not read: save it as .xlsx, or as .csv",
    ".ods": "OpenDocument is not read: save it as .xlsx, or as .csv",
    ".pkl": "pickled Python objects are never loaded: save it as .parquet, .npy or .csv",
    ".pickle": "pickled Python objects are never loaded: save it as .parquet, .npy or .csv",
}

_TEXT = Format("text", read_text, is_packed=True)
_JSON = Format("JSON", read_json, is_packed=True)
_EXCEL = Format("an Excel file", read_excel, holds_several=True)
_FEATHER = Format("a Feather file", read_feather)
_HDF5 = Format("an HDF5 file", read_hdf5, holds_several=True)
_FITS = Format("a FITS file", read_fits, holds_several=True, is_packed=True)

FORMATS: dict[str, Format] = {
    ".csv": _TEXT,
    ".tsv": _TEXT,
    ".txt": _TEXT,
    ".dat": _TEXT,
    ".tab": _TEXT,
    ".psv": _TEXT,
    ".npy": Format("a NumPy file", read_npy),
    ".npz": Format("an NPZ file", read_npz, holds_several=True),
    ".parquet": Format("a Parquet file", read_parquet),
    ".feather": _FEATHER,
    ".arrow": _FEATHER,
    ".xlsx": _EXCEL,
    ".xlsm": _EXCEL,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".fits": _FITS,
    ".fit": _FITS,
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".json": _JSON,
}
