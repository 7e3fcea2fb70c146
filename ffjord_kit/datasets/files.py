"""A user's own tables: text, NumPy's NPY and NPZ, and Parquet. No pickled object is ever loaded."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ffjord_kit.datasets.dataset import Dataset, default_columns, listing, pixel_columns, suggestion
from ffjord_kit.datasets.text import read_text
from ffjord_kit.datasets.validation import (
    check_distinct_names,
    check_finite,
    check_not_empty,
)
from ffjord_kit.memory import check_fits

if TYPE_CHECKING:
    import pandas as pd

DATA_FOLDER = "FFJORD_KIT_DATA"  # environment variable that names the folder of larger sets
STREAMED_BYTES = 1 << 28  # an NPY file of this size is mapped into memory, not read
STREAMING = "save a table of float32 as .npy, which is read where it lies"
DAMAGE = (ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
KINDS = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text", "M": "dates", "V": "named fields"}


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
    if os.path.exists(source) or not colon or not Path(head).suffix:
        return source, None
    if Path(head).suffix.lower() != ".npz":
        raise ValueError(f"{source}: only a file of several arrays, .npz, takes a name after the colon; got {tail!r}")
    return head, tail


# ---- reading


def read(source: str) -> Dataset:
    """Read the table in a file.

    Args:
        source: Path of the file, or `file.npz:KEY` for one array of several.

    Returns:
        The table. Arrays (n, height, width) are flattened and get an `image_shape`.

    Raises:
        ValueError: If anything is wrong with the file, in one line.
        ImportError: If the file is Parquet and pyarrow is missing.
    """
    path, key = _path_and_key(source)
    path = in_data_folder(path)
    reader = _reader(path)
    try:
        dataset = reader(path) if key is None else read_npz(path, key=key)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    return dataset


def check_readable(source: str) -> None:
    """Check that a file is there and that its extension is known, without reading it.

    Args:
        source: Path of the file, or `file.npz:KEY`.

    Raises:
        ValueError: If it is not.
    """
    path, _ = _path_and_key(source)
    _reader(in_data_folder(path))


def read_npy(path: str) -> Dataset:
    """Read the array of an NPY file; a large table of floats is mapped into memory instead.

    Args:
        path: Path of the file.

    Returns:
        The table.

    Raises:
        ValueError: If the file is damaged, or is not a table of finite numbers.
    """
    with explained(path), open(path, "rb") as file:
        if os.path.getsize(path) >= STREAMED_BYTES:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.ndim == 2 and mapped.dtype in (np.float32, np.float64):
                return _as_dataset(path, mapped)
        array = np.lib.format.read_array(file, allow_pickle=False)
    return _as_dataset(path, array)


def read_npz(path: str, *, key: str | None = None) -> Dataset:
    """Read an array of an NPZ file.

    Args:
        path: Path of the file.
        key: Name of the array; None for the array called x, or the only one.

    Returns:
        The table. An array of text called `columns` names its columns, where it has one name for each.

    Raises:
        ValueError: If the file is damaged, lacks the array, or the array is not a table of finite numbers.
    """
    with open_npz(path) as arrays:
        name = _choose_array(path, arrays.files, key)
        with explained(f"{path}:{name}"):
            array = np.asarray(arrays[name])
        return _as_dataset(path if key is None else f"{path}:{key}", array, _stored_columns(path, arrays))


def open_npz(path: str) -> np.lib.npyio.NpzFile:
    """Open an NPZ file, whose arrays are read on access.

    Args:
        path: Path of the file.

    Returns:
        The open file, a context manager.

    Raises:
        ValueError: If it is no NPZ file, or an array would unpack to more than a share of the memory.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: damaged, or not an NPZ file")
    _check_unpacked_size(path)
    with explained(path):
        return np.load(path, allow_pickle=False)


def read_parquet(path: str) -> Dataset:
    """Read a Parquet file whose columns are numbers; an index that pandas stored is left out.

    Args:
        path: Path of the file.

    Returns:
        The table.

    Raises:
        ValueError: If the file is damaged, a column is of another type, or a value is missing or infinite.
        ImportError: If pyarrow is missing.
    """
    frame = _load_parquet(path)
    names = tuple(map(str, frame.columns))
    check_not_empty(path, frame.shape)
    check_distinct_names(path, names)
    x = np.stack([_numeric_column(path, str(name), column) for name, column in frame.items()], axis=1)
    check_finite(path, x, names)
    return Dataset(path, x, names)


@contextmanager
def explained(label: str) -> Iterator[None]:
    """Turn the errors that NumPy raises about a bad file into a ValueError of one line.

    Args:
        label: Path of the file, for the message.

    Yields:
        None, around the statements that read the file.

    Raises:
        ValueError: If they raise.
    """
    try:
        yield
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in reason:
            raise ValueError(f"{label}: pickled Python objects, which are never loaded; save plain numbers") from error
        raise ValueError(f"{label}: damaged, or not a NumPy file ({reason})") from error


def _reader(path: str) -> Callable[[str], Dataset]:
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if Path(name).suffix.lower() in READERS)
        raise ValueError(f"{path}: a folder; give a file in it ({listing(inside, limit=5) or 'it holds no tables'})")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file{suggestion(os.path.basename(path), _siblings(path))}")
    if suffix not in READERS:
        known = f"known: {', '.join(READERS)}, and image:PATH for pictures"
        raise ValueError(f"{path}: unknown extension {suffix!r}; {known}")
    return READERS[suffix]


def _siblings(path: str) -> list[str]:
    folder = os.path.dirname(path) or "."
    return os.listdir(folder) if os.path.isdir(folder) else []


def _check_unpacked_size(path: str) -> None:
    with explained(path), zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size, default=None)
    if largest is not None:
        name = largest.filename.removesuffix(".npy")
        check_fits(f"{path}: {name} would unpack to", largest.file_size, STREAMING)


def _choose_array(path: str, names: list[str], key: str | None) -> str:
    if key is not None and key not in names:
        raise ValueError(f"{path}: no array {key!r}{suggestion(key, names)}; it holds {listing(names)}")
    arrays = [name for name in names if name != "columns"]
    choice = key or ("x" if "x" in names else arrays[0] if len(arrays) == 1 else None)
    if choice is None:
        raise ValueError(f"{path}: holds {listing(names) or 'no array'}; name the one to read, as in {path}:KEY")
    return choice


def _stored_columns(path: str, arrays: np.lib.npyio.NpzFile) -> tuple[str, ...] | None:
    if "columns" not in arrays.files:
        return None
    with explained(f"{path}:columns"):
        names = np.asarray(arrays["columns"])
    return tuple(names.tolist()) if names.dtype.kind == "U" and names.ndim == 1 else None


def _as_dataset(label: str, array: np.ndarray, columns: tuple[str, ...] | None = None) -> Dataset:
    _check_array(label, array)
    image_shape = array.shape[1:] if array.ndim == 3 else None
    x = array if isinstance(array, np.memmap) else _as_floats(label, array)
    if columns is None or len(columns) != x.shape[1]:
        columns = default_columns(x.shape[1]) if image_shape is None else pixel_columns(image_shape)
    check_finite(label, x, columns)
    return Dataset(label, x, columns, image_shape=image_shape)


def _as_floats(label: str, array: np.ndarray) -> np.ndarray:
    """Return rows of float64, which may take eight times the bytes of the array in the file."""
    check_fits(f"{label}: {array.size} numbers would take", array.size * np.dtype(np.float64).itemsize, STREAMING)
    return array.reshape(len(array), -1).astype(np.float64, copy=False)


def _check_array(label: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{label}: {KINDS.get(array.dtype.kind, 'no numbers')} ({array.dtype}); expected real numbers")
    if array.ndim not in (2, 3):
        advice = "; for one column save x[:, None]" if array.ndim == 1 else ""
        expected = "expected (rows, columns) or (pictures, height, width)"
        raise ValueError(f"{label}: shape {array.shape}; {expected}{advice}")
    check_not_empty(label, array.shape)


def import_pyarrow() -> ModuleType:
    """Import the reader and writer of Parquet.

    Returns:
        The module.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("a .parquet file needs pyarrow: pip install ffjord-kit[parquet]") from error
    return pyarrow


def _load_parquet(path: str) -> pd.DataFrame:
    pyarrow = import_pyarrow()
    import pandas as pd

    try:
        with open(path, "rb") as file:  # from a path, pandas would add columns from folders called key=value
            return pd.read_parquet(file, engine="pyarrow", dtype_backend="pyarrow")
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a Parquet file ({str(error).splitlines()[0]})") from error


def _numeric_column(path: str, name: str, column: pd.Series) -> np.ndarray:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if not (is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype)):
        kind = str(column.dtype).removesuffix("[pyarrow]")
        raise ValueError(f"{path}: column {name!r} holds {kind}; expected numbers: drop it, or write it as numbers")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


READERS: dict[str, Callable[[str], Dataset]] = {
    ".csv": read_text,
    ".tsv": read_text,
    ".txt": read_text,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
}
