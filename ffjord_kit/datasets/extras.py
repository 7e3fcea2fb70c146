"""Libraries that some kinds of files need, and that an installation may lack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType


def import_extra(module: str, path: str) -> ModuleType:
    """Import a library that reads or writes a file.

    Args:
        module: Name of the module.
        path: Path of the file, for the message.

    Returns:
        The module.

    Raises:
        ImportError: If the library is missing, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        kind = Path(path).suffix.lower()
        raise ImportError(f"a {kind} file needs {library}: pip install {library}, or ffjord-kit[tables]") from error


@contextmanager
def explained_by(path: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises about a damaged file into a ValueError of one line.

    Args:
        path: Path of the file, for the message.
        kind: What the file should be, e.g. "an Excel file".

    Yields:
        None, around the statements in which the library reads.

    Raises:
        ValueError: If they raise.
    """
    try:
        yield
    except Exception as error:  # of many types, as a crafted file may bring a library anywhere
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: damaged, or not {kind} ({reason})") from error
