"""The path of a run folder: whether a run may be there, and whether one may be made; light, for the command line."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = "config.json"


class RunError(ValueError):
    """Signal a run folder that cannot be read or written; the message says which file, why, and what to do."""


def check_is_run(path: str | Path) -> None:
    """Check that a path is a folder with a config.json, which is not read.

    Args:
        path: Path of the folder.

    Raises:
        RunError: If it is not.
    """
    folder = Path(path)
    if folder.is_file():
        raise RunError(f"{path} is no run folder: it is a file; give the folder that the run was saved in")
    if not folder.is_dir():
        raise RunError(f"{path} is no run folder: no such folder")
    if not any((place / CONFIG).exists() for place in (folder, folder / ".whole")):
        raise RunError(f"{path} is no run folder: it has no {CONFIG}")


def check_room(path: str | Path, *, force: bool) -> None:
    """Check that a run can be made in a folder, before the work whose result it is to keep.

    Args:
        path: Path of the folder.
        force: Whether a run that is there may be replaced.

    Raises:
        RunError: If it cannot.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{path} is a file: choose another folder for the run")
    content = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if content and CONFIG not in content:
        raise RunError(f"{path} is not empty and holds no run: choose another folder")
    if content and not force:
        raise RunError(f"{path} already holds a run: choose another folder, --resume it, or pass --force")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RunError(f"{path} cannot be made: {there} is not a folder that may be written")
