"""Tables that are too large to carry: galaxies.

The file of the galaxies is a pickle of pandas, in an archive of the package pzflow. It is not unpickled, as a pickle
can run any code: its numbers lie in one block, which is read as bytes and compared with its SHA-256.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ffjord_kit.datasets.damage import explained_by
from ffjord_kit.datasets.dataset import Dataset
from ffjord_kit.datasets.fetching import Origin, check_digest, fetch, find


class Block(NamedTuple):
    """Numbers in a file of an archive: float64, little-endian, column after column.

    Args:
        member: Name of the file in the archive.
        start: Byte at which the numbers begin.
        rows: Number of rows.
        columns: Names of the columns.
        digest: SHA-256 of the numbers, row after row.
    """

    member: str
    start: int
    rows: int
    columns: tuple[str, ...]
    digest: str


GALAXIES = Block(
    "pzflow/example_files/galaxy-data.pkl",
    523,
    100_000,
    ("redshift", "u", "g", "r", "i", "z", "y"),
    "913c69f2a76a0be805d3da98ca1d7bf590eecac285ecf0889711b01eecd6eeea",
)
_PZFLOW = Origin(
    "galaxies",
    {
        "https://files.pythonhosted.org/packages/83/ae/e82e55ea0ceb5d2a337714b691dc1022ed6251d705f49e437ae3bb42bb43/"
        "pzflow-4.0.0-py3-none-any.whl": "df593c6849387fc5a9f97175d887db1e966a551fd4787f37312d0eaf0a89401d"
    },
)


def galaxies(rng: np.random.Generator) -> Dataset:
    """Load the redshifts and magnitudes of 100,000 simulated galaxies, which are downloaded once (9 MB).

    Source: the Buzzard simulation, DeRose et al. 2019, https://arxiv.org/abs/1901.02401.

    Args:
        rng: Not used.

    Returns:
        The redshift, and magnitudes in the bands u, g, r, i, z and y of the LSST, shape (100000, 7).

    Raises:
        ValueError: If the table can neither be found nor downloaded, or its file holds something else.
    """
    path = find(_PZFLOW.file) or fetch(_PZFLOW, partial(_pack, GALAXIES))
    with explained_by(str(path), "an NPZ file with the array x"), np.load(path, allow_pickle=False) as content:
        x = content["x"]
    check_digest(str(path), "x", [x], GALAXIES.digest)
    return Dataset("galaxies", x, GALAXIES.columns)


def _pack(block: Block, paths: Sequence[Path], file: BinaryIO) -> None:
    """Write the numbers of a block of an archive."""
    with zipfile.ZipFile(paths[0]) as archive:
        content = archive.read(block.member)
    shape = (len(block.columns), block.rows)
    x = np.frombuffer(content, dtype="<f8", count=shape[0] * shape[1], offset=block.start).reshape(shape).T
    check_digest(f"{block.member} of {paths[0].name}", "x", [x], block.digest)
    np.savez(file, x=np.ascontiguousarray(x))
