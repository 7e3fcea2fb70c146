"""Files of text, compressed or not, in the encoding that is found by looking."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TextIO, cast

from ffjord_kit.datasets.damage import reason
from ffjord_kit.memory import check_fits

CHUNK = 1 << 20  # bytes looked at at once
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODINGS = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
    "utf-32": "UTF-32", "latin-1": "Latin-1", "cp1252": "Windows-1252",
}  # fmt: skip
CONTROL = bytes([*range(9), *range(14, 27), *range(28, 32)])  # bytes that no text has
HIGH_CONTROL = bytes(range(0x80, 0xA0))  # control characters of Latin-1, letters and marks in Windows-1252
NOT_IN_1252 = bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D])
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


class TextFile(NamedTuple):
    """A file of text, and how its characters are had.

    Args:
        path: Path of the file.
        compression: Extension of its compression, ".gz", ".bz2", ".xz" or ".zip"; empty for none.
        encoding: Encoding, a word of Python's.
    """

    path: str
    compression: str
    encoding: str

    @contextmanager
    def open(self) -> Iterator[TextIO]:
        """Open the file for reading, its ends of lines as they are.

        Yields:
            The open file.

        Raises:
            ValueError: If it is damaged, or not text in its encoding.
        """
        with self._explained(), _open_bytes(self.path, self.compression) as file:
            yield io.TextIOWrapper(cast(IO[bytes], file), self.encoding, newline="")

    @property
    def found(self) -> list[str]:
        """Words about the encoding and the compression, where they are not the usual ones."""
        encoding = [] if self.encoding.startswith("utf-8") else [ENCODINGS[self.encoding]]
        return [*encoding, *([f"unpacked from {self.compression}"] if self.compression else [])]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with undamaged(self.path, self.compression):
            try:
                yield
            except UnicodeDecodeError as error:
                name = ENCODINGS[self.encoding]
                raise ValueError(
                    f"{self.path}: not text in {name} (byte {error.start}); save it again as UTF-8"
                ) from error


def find_text(path: str) -> TextFile:
    """Find the compression and the encoding of a file of text.

    The compression is told by the first bytes, and otherwise by the extension. A byte order mark tells Unicode; without
    one, a file that is not UTF-8 is taken for Windows-1252 if it has marks of it, and else for Latin-1.

    Args:
        path: Path of the file.

    Returns:
        The file.

    Raises:
        ValueError: If it is damaged, is not text, or would unpack to more than a share of the memory.
    """
    compression = _find_compression(path)
    with undamaged(path, compression), _open_bytes(path, compression) as file:
        return TextFile(path, compression, _find_encoding(path, file, bool(compression)))


def inner_name(path: str) -> str:
    """Return the name of the file that a compressed file holds.

    Args:
        path: Path of the file.

    Returns:
        Its name without the extension of the compression, or the name of the only file in a ZIP archive; the name
        itself where the extension names no compression.
    """
    name = Path(path)
    if name.suffix.lower() not in COMPRESSIONS:
        return name.name
    if name.suffix.lower() == ".zip" and not Path(name.stem).suffix and zipfile.is_zipfile(path):
        with undamaged(path, ".zip"), zipfile.ZipFile(path) as archive:
            return os.path.basename(_only_entry(path, archive))
    return name.stem


@contextmanager
def undamaged(path: str, compression: str) -> Iterator[None]:
    """Turn the errors about a damaged compressed file into a ValueError of one line.

    Args:
        path: Path of the file, for the message.
        compression: Extension of its compression.

    Yields:
        None, around the statements that read the file.

    Raises:
        ValueError: If they raise.
    """
    try:
        yield
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or not compression):
            raise  # of the disk, and not of what was read
        raise ValueError(
            f"{path}: damaged, or cut short: it cannot be unpacked as {compression} ({reason(error)})"
        ) from error
    except RuntimeError as error:
        if "password" not in str(error):
            raise
        raise ValueError(f"{path}: locked by a password; unpack it first") from error


def _find_compression(path: str) -> str:
    with open(path, "rb") as file:
        head = file.read(6)
    told = next((suffix for suffix, mark in MARKS.items() if head.startswith(mark)), "")
    suffix = Path(path).suffix.lower()
    return told or (suffix if suffix in COMPRESSIONS else "")


@contextmanager
def _open_bytes(path: str, compression: str) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        if not compression:
            yield file
            return
        with COMPRESSIONS[compression](file) as unpacked:
            yield unpacked


@contextmanager
def _open_zip(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(file) as archive, archive.open(_only_entry(file.name, archive)) as entry:
        yield entry


def _only_entry(path: str, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and not _is_hidden(name)]
    if len(names) != 1:
        held = ", ".join(names[:5]) or "none"
        raise ValueError(f"{path}: expected one file in the archive; got {len(names)} ({held}): unpack it first")
    return names[0]


def _is_hidden(name: str) -> bool:
    return os.path.basename(name).startswith(".") or name.startswith("__MACOSX/")


def _find_encoding(path: str, file: IO[bytes], compressed: bool) -> str:
    """Return the encoding of the bytes, which are all looked at where none tells it at once."""
    chunk = file.read(CHUNK)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if chunk.startswith(mark):
            return encoding
    if chunk.count(0) > len(chunk) // 4:
        return _encoding_by_zeros(path, chunk)
    decoder, size, high, control, fault = codecs.getincrementaldecoder("utf-8")(), 0, b"", b"", None
    while True:
        size += len(chunk)
        if compressed:
            check_fits(f"{path}: it would unpack to at least", size, "unpack it, and keep a part of its rows")
        if fault is None:
            fault = _first_fault(decoder, chunk, size)
        high, control = high + _only(chunk, HIGH_CONTROL), control + _only(chunk, CONTROL)[:1]
        if not chunk:
            break
        high, chunk = bytes(set(high)), file.read(CHUNK)
    if fault is None:
        return "utf-8"
    if control:
        raise ValueError(f"{path}: not text in UTF-8 (byte {fault}), nor in another encoding; save it again as UTF-8")
    return "cp1252" if high and not _only(high, NOT_IN_1252) else "latin-1"


def _first_fault(decoder: codecs.IncrementalDecoder, chunk: bytes, size: int) -> int | None:
    """Return the place of the first byte that is not UTF-8, counted from 0, where the chunk has one."""
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        return size - len(error.object) + error.start
    return None


def _encoding_by_zeros(path: str, chunk: bytes) -> str:
    """Return UTF-16 without a byte order mark, told by which bytes of a pair are 0."""
    even, odd = chunk[::2].count(0), chunk[1::2].count(0)
    if min(even, odd) > max(even, odd) // 8:
        raise ValueError(f"{path}: not text, but bytes of another kind; save it as text in UTF-8")
    return "utf-16-le" if odd > even else "utf-16-be"


def _only(chunk: bytes, kept: bytes) -> bytes:
    return chunk.translate(None, bytes(set(range(256)) - set(kept)))


MARKS = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zip": b"PK\x03\x04"}  # at the start of a file
COMPRESSIONS: dict[str, Callable] = {
    ".gz": partial(gzip.open, mode="rb"),
    ".bz2": partial(bz2.open, mode="rb"),
    ".xz": partial(lzma.open, mode="rb"),
    ".zip": _open_zip,
}
