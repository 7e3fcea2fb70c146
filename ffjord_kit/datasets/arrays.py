"""Tables in NumPy's NPY and NPZ files. No pickled object is ever loaded."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ffjord_kit.datasets.damage import reason
from ffjord_kit.datasets.dataset import default_columns, listing, pixel_columns, suggestion
from ffjord_kit.datasets.frame import NUMBERS, Frame, columns_of, make_frame
from ffjord_kit.datasets.validation import check_not_empty
from ffjord_kit.memory import check_fits

STREAMED_BYTES = 1 << 28  # an NPY file of this size is mapped into memory, not read
STREAMING = "save a table of float32 as .npy, which is read where it lies"
DAMAGE = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
KINDS = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text", "M": "dates"}
SPARSE = {"shape", "format", "data"}  # arrays that scipy.sparse.save_npz writes


def read_npy(path: str) -> Frame:
    """Read the array of an NPY file; a large table of floats is mapped into memory instead.

    Args:
        path: Path of the file.

    Returns:
        The table; the fields of a structured array are its columns.

    Raises:
        ValueError: If the file is damaged, or holds no table of numbers.
    """
    with explained(path), open(path, "rb") as file:
        if os.path.getsize(path) >= STREAMED_BYTES:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.ndim == 2 and mapped.dtype in (np.float32, np.float64):
                return _as_frame(path, mapped)
        array = np.lib.format.read_array(file, allow_pickle=False)
    return _as_frame(path, array)


def read_npz(path: str, key: str | None = None) -> Frame:
    """Read an array of an NPZ file.

    Args:
        path: Path of the file.
        key: Name of the array; None for the array called x, or the only one.

    Returns:
        The table. An array of text called `columns` names its columns, where it has one name for each.

    Raises:
        ValueError: If the file is damaged, lacks the array, or the array is no table of numbers.
    """
    with open_npz(path) as arrays:
        if set(arrays.files) >= SPARSE:
            raise ValueError(f"{path}: a sparse matrix; a density needs every cell: save x.toarray() with numpy.save")
        name = choose_table(path, [name for name in arrays.files if name != "columns"], key)
        with explained(f"{path}:{name}"):
            array = np.asarray(arrays[name])
        return _as_frame(path if key is None else f"{path}:{key}", array, _stored_columns(path, arrays))


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
    with explained(path):
        check_unpacked_size(path, STREAMING)
        return np.load(path, allow_pickle=False)


def check_unpacked_size(path: str, advice: str) -> None:
    """Refuse an archive with a file that would unpack to more than a share of the memory.

    Args:
        path: Path of the ZIP archive.
        advice: Advice.

    Raises:
        ValueError: If it has one.
    """
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size, default=None)
    if largest is not None:
        name = largest.filename.removesuffix(".npy")
        check_fits(f"{path}: {name} would unpack to", largest.file_size, advice)


def choose_table(path: str, names: list[str], key: str | None) -> str:
    """Choose one of the tables in a file.

    Args:
        path: Path of the file.
        names: Names of its tables.
        key: Name that is asked for; None for the table called x, or the only one.

    Returns:
        The name.

    Raises:
        ValueError: If there is no such table, or none is named and there are several.
    """
    if key is not None and key not in names:
        raise ValueError(f"{path}: no table {key!r}{suggestion(key, names)}; it holds {listing(names) or 'none'}")
    choice = key or ("x" if "x" in names else names[0] if len(names) == 1 else None)
    if choice is None:
        raise ValueError(f"{path}: holds {listing(names) or 'no table'}; name the one to read, as in {path}:KEY")
    return choice


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
        if "allow_pickle" in str(error):
            raise ValueError(f"{label}: pickled Python objects, which are never loaded; save plain numbers") from error
        raise ValueError(f"{label}: damaged, or not a NumPy file ({reason(error)})") from error


def _stored_columns(path: str, arrays: np.lib.npyio.NpzFile) -> tuple[str, ...] | None:
    if "columns" not in arrays.files:
        return None
    with explained(f"{path}:columns"):
        names = np.asarray(arrays["columns"])
    return tuple(names.tolist()) if names.dtype.kind == "U" and names.ndim == 1 else None


def _as_frame(label: str, array: np.ndarray, columns: tuple[str, ...] | None = None) -> Frame:
    if array.dtype.names and array.ndim == 1:
        return make_frame(label, columns_of("x", array))
    _check_array(label, array)
    image_shape = array.shape[1:] if array.ndim == 3 else None
    x = array if isinstance(array, np.memmap) else _as_floats(label, array)
    if columns is None or len(columns) != x.shape[1]:
        columns = default_columns(x.shape[1]) if image_shape is None else pixel_columns(image_shape)
    return Frame(label, x, columns, (NUMBERS,) * x.shape[1], image_shape=image_shape)


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
