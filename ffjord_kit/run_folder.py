"""The path of a run folder: whether a run may be there, and whether one may be made; light, for the command line.

`pretrained:NAME` in the place of a path is a run that comes with the package, to read alone.
"""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = "config.json"
PRETRAINED = "pretrained:"
MODELS = Path(__file__).parent / "pretrained"


class RunError(ValueError):
    """Signal a run folder that cannot be read or written; the message says which file, why, and what to do."""


def pretrained_runs() -> list[str]:
    """Return the words of the runs that come with the package.

    Returns:
        Words such as pretrained:moons.

    Example:
        >>> "pretrained:moons" in pretrained_runs()
        True
    """
    return sorted(PRETRAINED + config.parent.name for config in MODELS.glob(f"*/{CONFIG}"))


def locate_run(path: str | Path) -> Path:
    """Return where a run is.

    Args:
        path: Path of its folder, or the word of a run that comes with the package.

    Returns:
        The path of its folder.

    Raises:
        RunError: If the package has no run of that word.

    Example:
        >>> locate_run("runs/mine").as_posix(), locate_run("pretrained:moons").name
        ('runs/mine', 'moons')
    """
    if not _is_pretrained(path):
        return Path(path)
    if path not in pretrained_runs():
        raise RunError(f"{path} is no run of the package: it has {', '.join(pretrained_runs())}")
    return MODELS / str(path).removeprefix(PRETRAINED)


def refuse_pretrained(path: str | Path | None) -> None:
    """Refuse to write to a run that comes with the package.

    Args:
        path: Path of a folder, or None.

    Raises:
        RunError: If it is the word of such a run.
    """
    if path is not None and _is_pretrained(path):
        raise RunError(f"{path} is a run of the package, to read alone: choose a folder of your own")


def check_is_run(path: str | Path) -> None:
    """Check that a path is a folder with a config.json, which is not read.

    Args:
        path: Path of the folder, or the word of a run of the package.

    Raises:
        RunError: If it is not.
    """
    folder = locate_run(path)
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
    refuse_pretrained(path)
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


def _is_pretrained(path: str | Path) -> bool:
    return str(path).startswith(PRETRAINED)
