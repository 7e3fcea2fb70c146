"""Sets of images that are too large to carry: found on this machine, or fetched once from openml.org.

They are looked for as NPZ files (see `archives`) in the folder that FFJORD_KIT_DATA names, then in the cache: `data/`
of a checkout, `~/.cache/ffjord_kit` elsewhere (or that of XDG_CACHE_HOME). What is fetched is written to the cache.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from ffjord_kit.atomic import replacing
from ffjord_kit.datasets.archives import Arrays, channels_first, read_archive

ROOM = "FFJORD_KIT_DATA"
CHECKOUT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds without a byte
NETWORK = (OSError, ValueError, EOFError, HTTPException, zlib.error)


@dataclass(frozen=True)
class Origin:
    """Where a set of images comes from, and by what it is known.

    `shape` is that of an image, (c, h, w), `counts` the images of each class by split, `digests` the SHA-256 of the
    bytes of all images (n, c, h, w), then all labels, by split, where somebody has measured it. OpenML has the train
    images first; `planes` tells that it has the colours of an image one after the other, not pixel by pixel. `parts`
    are files that serve where the whole is missing.
    """

    name: str
    openml: str
    shape: tuple[int, ...]
    counts: Mapping[str, tuple[int, ...]]
    digests: Mapping[str, str] = field(default_factory=dict)
    planes: bool = False
    parts: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.npz"


def read_fetched(origin: Origin, split: str) -> Arrays:
    """Read a split of a set that is fetched where it has to be.

    Raises ValueError when it can be neither found nor fetched, or is not what it should be.
    """
    path = find(origin) or fetch(origin)
    arrays = read_archive(str(path), split)
    _check(str(path), arrays, origin)
    _check_digest(str(path), arrays, origin.digests.get(split), split)
    return arrays


def find(origin: Origin) -> Path | None:
    """The file of a set on this machine. Raises ValueError where FFJORD_KIT_DATA names no folder."""
    named = os.environ.get(ROOM)
    if named and not os.path.isdir(named):
        raise ValueError(f"{ROOM} must name a folder; got {named!r}")
    folders = [Path(named), cache_folder()] if named else [cache_folder()]
    places = [folder / file for folder in folders for file in (origin.file, *origin.parts)]
    return next((place for place in places if place.exists()), None)


def cache_folder() -> Path:
    """Where fetched sets are kept: `data/` of a checkout that may be written, else the user's cache."""
    data = CHECKOUT / "data"
    if (CHECKOUT / "setup.cfg").exists() and (data / "README.md").exists() and os.access(data, os.W_OK):
        return data
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ffjord_kit"


def fetch(origin: Origin) -> Path:
    """Fetch a set from openml.org and write its file in the cache, whole or not at all.

    Raises ValueError when it cannot be fetched, or is not what it should be.
    """
    path = cache_folder() / origin.file
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {origin.name} from openml.org, once, into {path} ...", file=sys.stderr, flush=True)
    splits = _splits(_download(origin, path.parent), origin)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{f"{key}_{split}": array for split, pair in splits.items() for key, array in pair.items()})
    return path


def _download(origin: Origin, folder: Path) -> Bunch:
    """OpenML's table, through a folder that goes: only the NPZ file is kept."""
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as home, _patient(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A network error|Invalid cache")  # the error itself says all
            parser = "liac-arff"  # slower than pandas, which may be missing, and whose 3.1 stumbles over the classes
            return fetch_openml(origin.openml, version=1, as_frame=False, parser=parser, data_home=home, n_retries=1)
    except NETWORK as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = f"go on line, or set {ROOM} to a folder that holds {origin.file}"
        raise ValueError(f"{origin.name} is not on this machine and cannot be fetched ({reason}): {advice}") from error


@contextmanager
def _patient() -> Iterator[None]:
    """Connections that give up after PATIENCE, instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _splits(table: Bunch, origin: Origin) -> dict[str, dict[str, np.ndarray]]:
    """x and y of each split as the file has them, checked."""
    label, train = f"{origin.openml} of openml.org", sum(origin.counts["train"])
    x, y = _images(label, table, origin), _labels(label, table, origin)
    splits = {"train": slice(0, train), "test": slice(train, None)}
    for split, rows in splits.items():
        _check_counts(label, y[rows], origin.counts[split], split)
        _check_digest(label, Arrays(channels_first(x[rows]), y[rows]), origin.digests.get(split), split)
    return {split: {"x": x[rows], "y": y[rows]} for split, rows in splits.items()}


def _images(label: str, table: Bunch, origin: Origin) -> np.ndarray:
    """(n, h, w) or (n, h, w, c)."""
    channels, height, width = origin.shape
    expected = (sum(map(sum, origin.counts.values())), channels * height * width)
    if table.data.shape != expected:
        raise ValueError(f"{label}: a table of shape {table.data.shape}; expected {expected}")
    with np.errstate(invalid="ignore"):
        levels = table.data.astype(np.uint8)
    if not np.array_equal(levels, table.data):
        raise ValueError(f"{label}: levels must be whole numbers, 0 to 255; got others")
    if origin.planes:
        return levels.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return levels.reshape(-1, height, width, *([channels] if channels > 1 else []))


def _labels(label: str, table: Bunch, origin: Origin) -> np.ndarray:
    try:
        numbers = table.target.astype(np.float64).astype(np.uint8)
    except ValueError as error:
        raise ValueError(f"{label}: classes must be numbers ({error})") from error
    return numbers % len(origin.counts["train"])  # SVHN calls the digit 0 the class 10


def _check(label: str, arrays: Arrays, origin: Origin) -> None:
    """Raise ValueError unless images have the set's shape, and labels its classes."""
    shape, classes = arrays.images.shape[1:], len(origin.counts["train"])
    if shape != origin.shape:
        raise ValueError(f"{label}: images of {origin.name} have shape {origin.shape}; got {shape}")
    if arrays.labels is None or arrays.labels.max() >= classes:
        raise ValueError(f"{label}: {origin.name} needs labels 0 .. {classes - 1} (y_train, y_test); got others")


def _check_counts(label: str, labels: np.ndarray, expected: tuple[int, ...], split: str) -> None:
    """Raise ValueError unless each class has as many images as the standard split."""
    got = tuple(np.bincount(labels, minlength=len(expected)).tolist())
    if got != expected:
        raise ValueError(f"{label}: not the standard {split} split: images of each class {got}; expected {expected}")


def _check_digest(label: str, arrays: Arrays, expected: str | None, split: str) -> None:
    if expected is None:
        return
    digest = hashlib.sha256(arrays.images.reshape(-1))
    digest.update(arrays.labels.astype(np.uint8))
    if digest.hexdigest() != expected:
        text = f"SHA-256 of x_{split} and y_{split}: expected {expected}, got {digest.hexdigest()}"
        raise ValueError(f"{label}: {text}: damaged, or another file of that name; remove it")
