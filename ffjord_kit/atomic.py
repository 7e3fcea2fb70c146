"""Atomic writes: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the final name when all is on the disk.

    If the writing fails, is interrupted or ends by SIGTERM, the temporary file is removed, and a file of the final name
    stays as it was.

    Args:
        path: Final path.

    Yields:
        A path beside it, of the same suffix.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    with _unwound_by_sigterm():
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            flush(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: Path of the file.
        text: Its content.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Args:
        path: The file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, where nothing else handles it, end the process as Ctrl-C does: what is begun is removed."""
    alone = threading.current_thread() is threading.main_thread()  # no other thread may change handlers
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
