"""Libraries that some kinds of files need, and that an installation may lack."""

from __future__ import annotations

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
