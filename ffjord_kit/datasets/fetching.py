"""Data that are too large to carry: found on this machine, or downloaded once by pooch.

A file is looked for in the folder that FFJORD_KIT_DATA names, then in the cache: `data/` of a checkout, else
`~/.cache/ffjord_kit` (or `ffjord_kit` in the folder that XDG_CACHE_HOME names). Where there is none, the original files
are downloaded from their publishers, each is compared with its SHA-256, and the file is written to the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ffjord_kit.atomic import replacing
from ffjord_kit.datasets.damage import reason
from ffjord_kit.datasets.files import DATA_FOLDER

CHECKOUT = Path(__file__).parents[2]
TIMEOUT = 60.0  # seconds without a byte
RETRIES = 1

Pack = Callable[[Sequence[Path], BinaryIO], None]  # original files -> the file that is kept


@dataclass(frozen=True)
class Origin:
    """Where data come from.

    Args:
        name: Name of the data; their file is `name.npz`.
        files: SHA-256 of each original file by its URL.
    """

    name: str
    files: Mapping[str, str]

    @property
    def file(self) -> str:
        """Name of the NPZ file."""
        return f"{self.name}.npz"

    @property
    def hosts(self) -> str:
        """Hosts of the original files, in words."""
        return " and ".join(dict.fromkeys(url.split("/")[2] for url in self.files))


def find(*names: str) -> Path | None:
    """Find a file on this machine.

    Args:
        *names: Names of the file, the best one first.

    Returns:
        Its path, or None.

    Raises:
        ValueError: If FFJORD_KIT_DATA names no folder.
    """
    named = os.environ.get(DATA_FOLDER)
    if named and not os.path.isdir(named):
        raise ValueError(f"{DATA_FOLDER} must name a folder; got {named!r}")
    folders = [Path(named), cache_folder()] if named else [cache_folder()]
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def cache_folder() -> Path:
    """Return the folder that keeps what was downloaded.

    Returns:
        `data/` of a checkout that may be written, else the user's cache.
    """
    data = CHECKOUT / "data"
    if (CHECKOUT / "setup.cfg").exists() and (data / "README.md").exists() and os.access(data, os.W_OK):
        return data
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ffjord_kit"


def fetch(origin: Origin, pack: Pack) -> Path:
    """Download data, and write their file to the cache, whole or not at all.

    Args:
        origin: Where they come from.
        pack: Function that writes the file from the original ones, in the order of `origin.files`.

    Returns:
        The path of the file.

    Raises:
        ValueError: If an original file cannot be downloaded, or `pack` refuses what it holds.
    """
    path = cache_folder() / origin.file
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {origin.name} from {origin.hosts}, once, into {path} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        originals = _download(origin, folder)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            pack(originals, file)
    return path


def check_digest(label: str, what: str, content: Sequence[np.ndarray], expected: str) -> None:
    """Check the SHA-256 of what a file holds.

    Args:
        label: Name of the file, for the message.
        what: Names of the arrays, for the message.
        content: The arrays, whose bytes follow one another.
        expected: SHA-256 that they should have.

    Raises:
        ValueError: If they have another one.
    """
    digest = hashlib.sha256()
    for array in content:
        digest.update(np.ascontiguousarray(array).data)
    if (got := digest.hexdigest()) != expected:
        text = f"SHA-256 of {what}: expected {expected}, got {got}"
        raise ValueError(f"{label}: {text}: damaged, or another file of that name; remove it")


def _download(origin: Origin, folder: str) -> list[Path]:
    """Download the original files with pooch, which compares each with its SHA-256."""
    import pooch

    urls = {url.rpartition("/")[2]: url for url in origin.files}
    registry = {name: f"sha256:{origin.files[url]}" for name, url in urls.items()}
    source = pooch.create(folder, base_url="", registry=registry, urls=urls, retry_if_failed=RETRIES)
    try:
        with _quiet(pooch.get_logger()):
            return [Path(source.fetch(name, downloader=pooch.HTTPDownloader(timeout=TIMEOUT))) for name in urls]
    except (OSError, ValueError) as error:
        advice = f"go on line, or set {DATA_FOLDER} to a folder that holds {origin.file}"
        raise ValueError(
            f"{origin.name} is not on this machine and cannot be fetched ({reason(error)}): {advice}"
        ) from error


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence a logger below errors; the exception says the rest."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
