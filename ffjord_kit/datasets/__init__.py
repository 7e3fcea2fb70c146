"""Data sets with a name, and readers of a user's files.

`load` gives a table, `load_images` a set of images, `write` writes a table. To add a data set, write a function and
give it a word in DATASETS: a function that returns a Density (a toy in the plane, whose density is known) or one that
reads a Dataset (a real table).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ffjord_kit.columns.base import ColumnType
from ffjord_kit.datasets import curves, fetched_tables, files, pictures, tables, toys
from ffjord_kit.datasets.dataset import (
    Columns,
    Dataset,
    DataWarning,
    Density,
    ImageSet,
    default_columns,
    split_columns,
    suggestion,
)
from ffjord_kit.datasets.images import (
    IMAGE_SETS,
    ImageDescription,
    check_image_source,
    describe_images,
    is_image_source,
    load_images,
    locate_images,
)
from ffjord_kit.datasets.splits import SPLITS, check_numbers, random_stream, split_rows, subset_rows
from ffjord_kit.datasets.writing import check_disk, check_writable, write, write_chunks
from ffjord_kit.memory import check_fits

__all__ = [
    "DATASETS",
    "IMAGE_SETS",
    "Columns",
    "DataWarning",
    "Dataset",
    "Density",
    "Description",
    "ImageDescription",
    "ImageSet",
    "check_disk",
    "check_source",
    "check_writable",
    "default_columns",
    "describe",
    "describe_images",
    "is_image_source",
    "load",
    "load_images",
    "locate",
    "locate_images",
    "split_columns",
    "write",
    "write_chunks",
]

TOY_ROWS = 10_000
POINT_BYTES = 64  # of a point of a toy and of what its drawing takes


class Description(NamedTuple):
    """A row of the list of data sets.

    Args:
        name: Word in DATASETS.
        summary: What the rows are.
        dimensions: Number of columns.
        rows: Number of rows; None for a toy, which draws any number.
        truth_known: Whether the exact density is known.
        source: Author and licence.

    Example:
        >>> moons = {found.name: found for found in describe()}["moons"]
        >>> moons.dimensions, moons.rows, moons.truth_known  # a toy draws any number of rows
        (2, None, True)
    """

    name: str
    summary: str
    dimensions: int
    rows: int | None
    truth_known: bool
    source: str


class NamedDataset(ABC):
    """A data set that has a word in DATASETS, with a summary and its source."""

    summary: str
    source: str

    @abstractmethod
    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        """Make the data set, or one split of it.

        Args:
            name: Name that the result gets.
            split: "train", "test", or None.
            rows: Number of rows to draw; None for the usual number.
            seed: Seed of everything random.

        Returns:
            The table.

        Raises:
            ValueError: If `rows` exceeds the number of rows there are.
        """

    @abstractmethod
    def describe(self, name: str) -> Description:
        """Describe the data set.

        Args:
            name: Its word in DATASETS.

        Returns:
            A row of the list of data sets.
        """


@dataclass(frozen=True)
class Toy(NamedDataset):
    """Points drawn from a density in the plane; its splits are independent draws, and no split is the train one.

    Args:
        summary: What the density looks like.
        density: Function that returns it.
        source: Where its shape comes from.

    Example:
        >>> DATASETS["moons"].load("moons", split="test", rows=4, seed=0).x.shape
        (4, 2)
    """

    summary: str
    density: Callable[[], Density]
    source: str = "generated, after Grathwohl et al. 2019"

    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        count, rng = TOY_ROWS if rows is None else rows, random_stream(seed, split or "train")
        check_fits(f"{count} rows of {name} would take", count * POINT_BYTES, "draw fewer rows")
        density = self.density()
        x = density.sample(count, rng)
        return Dataset(name, x, default_columns(2), log_prob=density.log_prob)

    def describe(self, name: str) -> Description:
        return Description(name, self.summary, 2, None, True, self.source)


@dataclass(frozen=True)
class Table(NamedDataset):
    """Measured rows; the splits are 80 and 20 per cent of one fixed permutation.

    Args:
        summary: What was measured.
        read: Function that reads the table; its argument is the source of noise, where noise is added.
        source: Author and licence.
        shape: Numbers of rows and columns; None for those of the table, which is read to know them.

    Example:
        >>> DATASETS["iris"].load("iris", split="test", rows=None, seed=0).x.shape
        (30, 4)
    """

    summary: str
    read: Callable[[np.random.Generator], Dataset]
    source: str
    shape: tuple[int, int] | None = None

    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        dataset = replace(self.read(random_stream(seed, "noise")), name=name)
        return _take(_split(dataset, split), rows=rows, seed=seed)

    def describe(self, name: str) -> Description:
        rows, dimensions = self.shape or self.read(random_stream(0, "noise")).x.shape
        return Description(name, self.summary, dimensions, rows, False, self.source)


def load(
    source: str | os.PathLike[str],
    *,
    rows: int | None = None,
    seed: int = 0,
    missing: files.Marks | None = None,
    types: Mapping[str, ColumnType] | None = None,
    drop: Sequence[str] = (),
    missing_ok: bool = False,
) -> Dataset:
    """Load a table by name or from a file.

    A name takes a split, as in `moons:test`.

    Args:
        source: A word in DATASETS, `image:PATH` for the density of a picture, the path of a file (text, NumPy, Parquet,
            Feather, Excel, HDF5, FITS, JSON; see `files.FORMATS`), or `file.npz:KEY` for one table of several.
        rows: Number of points to draw from a toy, or of rows to draw from a table, which keep their order; None for
            10,000 points, or all rows.
        seed: Seed of everything random.
        missing: Numbers and words that mark missing cells of a file, beside empty ones, NA and their like: these come
            as nan; None where no cell may be missing.
        types: Types of columns of a file that are known, by name, where its texts, truth values and dates are to be
            read as categories and days; None where all columns must be numbers.
        drop: Columns to leave out, by name or index.
        missing_ok: Whether the latter are names alone, and may be missing.

    Returns:
        The table, with its exact log-density where that is known.

    Raises:
        ValueError: If the source is unknown or damaged, or `rows` exceeds the number of rows.
        ImportError: If a library is missing that the file needs.

    Example:
        >>> moons = load("moons", rows=5)
        >>> moons.x.shape, moons.columns, moons.log_prob(moons.x).shape
        ((5, 2), ('x0', 'x1'), (5,))
        >>> load("iris:test").x.shape
        (30, 4)
    """
    source = os.fspath(source)
    check_numbers(rows=rows, seed=seed)
    name, split = _name_and_split(source)
    if name in DATASETS:
        return DATASETS[name].load(source, split=split, rows=rows, seed=seed).without(drop, missing_ok=missing_ok)
    if name.startswith("image:"):
        return _picture(name).load(source, split=split, rows=rows, seed=seed).without(drop, missing_ok=missing_ok)
    if files.looks_like_path(source):
        whole = files.read(source, missing=missing, types=types, drop=drop, missing_ok=missing_ok)
        return _take(whole, rows=rows, seed=seed)
    raise ValueError(_unknown(source))


def check_source(source: str) -> None:
    """Check that a data set or a file is there, of a table or of images, without reading it.

    Args:
        source: A name or a path, as `load` and `load_images` take it.

    Raises:
        ValueError: If there is none.

    Example:
        >>> check_source("moons")
        >>> check_source("moon")
        Traceback (most recent call last):
        ValueError: no data set and no file 'moon' (did you mean 'moons'?); ...
    """
    name, _ = _name_and_split(source)
    if name in DATASETS:
        return
    if is_image_source(source):
        check_image_source(source)
    elif name.startswith("image:"):
        _picture(name).density()
    elif files.looks_like_path(source):
        files.check_readable(source)
    else:
        raise ValueError(_unknown(source))


def locate(source: str) -> str:
    """Return a source as `load` finds it from any folder.

    Args:
        source: A name or a path, as `load` takes it.

    Returns:
        The absolute path of a file or picture, or the name unchanged.

    Example:
        >>> locate("moons:test"), os.path.isabs(locate("table.csv"))
        ('moons:test', True)
    """
    name, split = _name_and_split(source)
    if name.startswith("image:"):
        return f"image:{os.path.abspath(name.removeprefix('image:'))}" + (f":{split}" if split else "")
    return source if name in DATASETS else files.absolute(source)


def describe() -> list[Description]:
    """List the data sets that have a name.

    Returns:
        A description of each data set, in the order of DATASETS.

    Example:
        >>> [found.name for found in describe()][:3]
        ['moons', 'circles', 'rings']
    """
    return [dataset.describe(name) for name, dataset in DATASETS.items()]


def _name_and_split(source: str) -> tuple[str, str | None]:
    head, _, tail = source.rpartition(":")
    named = head in DATASETS or head.startswith("image:")
    return (head, tail) if named and tail in SPLITS else (source, None)


def _picture(name: str) -> Toy:
    return Toy(_PICTURE, partial(pictures.picture, name.removeprefix("image:")), "a picture of the user's")


def _split(dataset: Dataset, split: str | None) -> Dataset:
    return dataset if split is None else replace(dataset, x=dataset.x[split_rows(len(dataset.x), split)])


def _take(dataset: Dataset, *, rows: int | None, seed: int) -> Dataset:
    if rows is None:
        return dataset
    return replace(dataset, x=dataset.x[subset_rows(dataset.name, len(dataset.x), rows=rows, seed=seed)])


def _unknown(source: str) -> str:
    word, colon, split = source.partition(":")
    if word in IMAGE_SETS:
        return f"{word} is a set of images, not a table: load it with load_images"
    if colon and word in DATASETS:
        return f"{source!r}: the splits of {word} are {' and '.join(SPLITS)}; got {split!r}"
    known = f"the data sets are {', '.join(DATASETS)}; of images {', '.join(IMAGE_SETS)}"
    hint = suggestion(word, [*DATASETS, *IMAGE_SETS])
    return f"no data set and no file {source!r}{hint}; {known}; or give a file's path"


_PICTURE = "the brightness of a picture: a flower, or image:PATH"
_UCI = "UCI repository, CC BY 4.0; carried by scikit-learn"

DATASETS: dict[str, NamedDataset] = {
    "moons": Toy("two half circles", curves.moons),
    "circles": Toy("two circles, one inside the other", toys.circles),
    "rings": Toy("four thin circles", toys.rings),
    "8gaussians": Toy("eight Gaussians on a circle", toys.eight_gaussians),
    "pinwheel": Toy("five Gaussian arms, twisted", toys.pinwheel),
    "spirals": Toy("two spiral arms", curves.spirals),
    "swissroll": Toy("one spiral arm, denser inside", curves.swissroll),
    "checkerboard": Toy("uniform on eight squares", toys.checkerboard),
    "image": Toy(
        _PICTURE,
        pictures.sample_picture,
        "photograph by vultilion, CC BY 2.0; carried by scikit-learn",
    ),
    "digits": Table("handwritten digits, 8 by 8, with uniform noise", tables.digits, _UCI),
    "breast_cancer": Table("measures of cell nuclei", tables.breast_cancer, _UCI),
    "wine": Table("chemical analysis of wines", tables.wine, _UCI),
    "iris": Table("sepals and petals of irises", tables.iris, _UCI),
    "diabetes": Table(
        "age, body mass and serum of patients",
        tables.diabetes,
        "Efron et al. 2004, no licence stated; carried by scikit-learn",
    ),
    "galaxies": Table(
        "redshifts and magnitudes of simulated galaxies",
        fetched_tables.galaxies,
        "DeRose et al. 2019, Buzzard simulation; downloaded with pzflow, MIT",
        (100_000, 7),
    ),
}
