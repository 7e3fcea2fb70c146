"""A user's own files: text, NumPy's NPY and NPZ, Parquet. Nothing pickled is ever loaded."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ffjord_kit.datasets.dataset import Dataset, default_columns, listing, pixel_columns, suggestion
from ffjord_kit.datasets.faults import refuse_empty, refuse_not_finite, warn_of_discrete
from ffjord_kit.datasets.parquet import read_parquet
from ffjord_kit.datasets.text import read_text

STREAMED_BYTES = 1 << 28
MEMORY_SHARE = 0.5
DAMAGE = (ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
KINDS = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text", "M": "dates", "V": "named fields"}


def read(source: str) -> Dataset:
    """Read the table in a file: its path, or `file.npz:KEY` for one array of several.

    Arrays (n, height, width) are flattened and get an `image_shape`. Raises ValueError, in one line, for whatever is
    wrong with the file, and ImportError for Parquet without pyarrow; warns with DataWarning of discrete columns.
    """
    path, key = _path_and_key(source)
    path = in_data_folder(path)
    reader = _reader(path)
    try:
        dataset = reader(path) if key is None else read_npz(path, key=key)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    warn_of_discrete(source, dataset.x, dataset.columns)
    return dataset


def looks_like_path(source: str) -> bool:
    """Whether a source can only mean a file: it exists, has a folder in it, or ends like a file."""
    path, _ = _path_and_key(source)
    return os.path.exists(path) or os.path.dirname(path) != "" or Path(path).suffix != ""


def read_npy(path: str) -> Dataset:
    """Read one array of an NPY file; a large table of floats stays in it, mapped into memory."""
    with explained(path), open(path, "rb") as file:
        if os.path.getsize(path) >= STREAMED_BYTES:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.ndim == 2 and mapped.dtype in (np.float32, np.float64):
                return _as_table(path, mapped)
        array = np.lib.format.read_array(file, allow_pickle=False)
    return _as_table(path, array)


def read_npz(path: str, *, key: str | None = None) -> Dataset:
    """Read an array of an NPZ file: `key`, or the one called x, or the only one.

    The columns are named by the array of text called `columns`, when it has one name for each.
    """
    with open_npz(path) as arrays:
        chosen = _choose(path, arrays.files, key)
        with explained(f"{path}:{chosen}"):
            array = np.asarray(arrays[chosen])
        return _as_table(path if key is None else f"{path}:{key}", array, _stored_columns(path, arrays))


def open_npz(path: str) -> np.lib.npyio.NpzFile:
    """Open an NPZ file, whose arrays are read when they are asked for. Raises ValueError for what is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: damaged, or not an NPZ file")
    _refuse_bombs(path)
    with explained(path):
        return np.load(path, allow_pickle=False)


def _path_and_key(source: str) -> tuple[str, str | None]:
    head, colon, tail = source.rpartition(":")
    if os.path.exists(source) or not colon or not Path(head).suffix:
        return source, None
    if Path(head).suffix.lower() != ".npz":
        raise ValueError(f"{source}: only a file of several arrays, .npz, takes a name after the colon; got {tail!r}")
    return head, tail


def absolute(source: str) -> str:
    """A file's source, with its key if it has one, by its absolute path."""
    path, key = _path_and_key(source)
    return os.path.abspath(in_data_folder(path)) + (f":{key}" if key else "")


def in_data_folder(path: str) -> str:
    """A relative path that is not here, looked for in the folder of larger sets that FFJORD_KIT_DATA names."""
    folder = os.environ.get("FFJORD_KIT_DATA")
    there = os.path.join(folder, path) if folder else path
    return there if not os.path.exists(path) and os.path.exists(there) else path


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


@contextmanager
def explained(label: str) -> Iterator[None]:
    """Turn what NumPy raises about a bad file into one line, a ValueError."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in reason:
            raise ValueError(f"{label}: pickled Python objects, which are never loaded; save plain numbers") from error
        raise ValueError(f"{label}: damaged, or not a NumPy file ({reason})") from error


def _refuse_bombs(path: str) -> None:
    """Raise ValueError where an array unpacks to more than a share of this machine's memory."""
    with explained(path), zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size, default=None)
    if largest is not None and largest.file_size > MEMORY_SHARE * _memory():
        name, size = largest.filename.removesuffix(".npy"), largest.file_size / 1e9
        raise ValueError(
            f"{path}: {name} would unpack to {size:.0f} GB, more than {MEMORY_SHARE:.0%} of this machine's memory: "
            "save it as .npy, which is read where it lies"
        )


def _memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _choose(path: str, names: list[str], key: str | None) -> str:
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


def _as_table(label: str, array: np.ndarray, columns: tuple[str, ...] | None = None) -> Dataset:
    _check_array(label, array)
    image_shape = array.shape[1:] if array.ndim == 3 else None
    x = array if isinstance(array, np.memmap) else array.reshape(len(array), -1).astype(np.float64)
    if columns is None or len(columns) != x.shape[1]:
        columns = default_columns(x.shape[1]) if image_shape is None else pixel_columns(image_shape)
    refuse_not_finite(label, x, columns, "row {} (counted from 0)".format)
    return Dataset(label, x, columns, image_shape=image_shape)


def _check_array(label: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{label}: {KINDS.get(array.dtype.kind, 'no numbers')} ({array.dtype}); expected real numbers")
    if array.ndim not in (2, 3):
        advice = "; for one column save x[:, None]" if array.ndim == 1 else ""
        expected = "expected (rows, columns) or (pictures, height, width)"
        raise ValueError(f"{label}: shape {array.shape}; {expected}{advice}")
    refuse_empty(label, array.shape)


READERS: dict[str, Callable[[str], Dataset]] = {
    ".csv": read_text,
    ".tsv": read_text,
    ".txt": read_text,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
}
