"""Named data sets, and readers of a user's files: everything that `load` can give.

To add a data set, write a function and give it a word in DATASETS: a function that returns a Density (a toy in the
plane, whose truth is known) or one that reads a Dataset (a real table).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets import curves, files, pictures, tables, toys
from ffjord_kit.datasets.dataset import (
    Columns,
    Dataset,
    DataWarning,
    ImageSet,
    default_columns,
    split_columns,
    suggestion,
)
from ffjord_kit.datasets.density import Density
from ffjord_kit.datasets.images import (
    IMAGE_SETS,
    ImageDescription,
    describe_images,
    is_image_source,
    load_images,
    locate_images,
)
from ffjord_kit.datasets.subsets import SPLITS, check_numbers, random_stream, split_rows, subset_rows
from ffjord_kit.datasets.writing import check_writable, write

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
    "check_writable",
    "describe",
    "describe_images",
    "is_image_source",
    "load",
    "load_images",
    "locate",
    "locate_images",
    "split_columns",
    "write",
]

TOY_ROWS = 10_000


class Description(NamedTuple):
    """A row of the list of data sets; `rows` is None where as many are drawn as asked for."""

    name: str
    what: str
    dimensions: int
    rows: int | None
    truth_known: bool
    source: str


class Spec(ABC):
    """How the data set behind a word is made."""

    what: str
    source: str

    @abstractmethod
    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        """Make the data set, or one split of it."""

    @abstractmethod
    def describe(self, name: str) -> Description:
        """Say what it is."""


@dataclass(frozen=True)
class Toy(Spec):
    """Points drawn from a density in the plane; the splits are independent draws, and no split is the train one."""

    what: str
    density: Callable[[], Density]
    source: str = "generated, after Grathwohl et al. 2019"

    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        density, rng = self.density(), random_stream(seed, split or "train")
        x = density.sample(TOY_ROWS if rows is None else rows, rng)
        return Dataset(name, x, default_columns(2), log_prob=density.log_prob)

    def describe(self, name: str) -> Description:
        return Description(name, self.what, 2, None, True, self.source)


@dataclass(frozen=True)
class Table(Spec):
    """Rows that somebody measured; the splits are parts of one fixed permutation, 80 and 20 per cent."""

    what: str
    read: Callable[[np.random.Generator], Dataset]
    source: str

    def load(self, name: str, *, split: str | None, rows: int | None, seed: int) -> Dataset:
        dataset = replace(self.read(random_stream(seed, "noise")), name=name)
        return _take(_part(dataset, split), rows=rows, seed=seed)

    def describe(self, name: str) -> Description:
        rows, dimensions = self.read(random_stream(0, "noise")).x.shape
        return Description(name, self.what, dimensions, rows, False, self.source)


def load(source: str | os.PathLike[str], *, rows: int | None = None, seed: int = 0) -> Dataset:
    """Load a data set by its word in DATASETS, `image:PATH` for a picture, or the path of a file.

    A word takes a split, as in `moons:test`. `rows` is how many to draw from a toy, or a random subset of a table in
    the table's order; `seed` fixes all that is random. Raises ValueError for a source that is unknown or wrong, and
    for more rows than there are; ImportError for Parquet without pyarrow.
    """
    source = os.fspath(source)
    check_numbers(rows=rows, seed=seed)
    name, split = _name_and_split(source)
    if name in DATASETS:
        return DATASETS[name].load(source, split=split, rows=rows, seed=seed)
    if name.startswith("image:"):
        return _picture(name).load(source, split=split, rows=rows, seed=seed)
    if files.looks_like_path(source):
        return _take(files.read(source), rows=rows, seed=seed)
    raise ValueError(_unknown(source))


def locate(source: str) -> str:
    """The source as `load` finds it from any folder: a file's or picture's absolute path, a name as it is."""
    name, split = _name_and_split(source)
    if name.startswith("image:"):
        return f"image:{os.path.abspath(name.removeprefix('image:'))}" + (f":{split}" if split else "")
    return source if name in DATASETS else files.absolute(source)


def describe() -> list[Description]:
    """List the data sets of DATASETS, in its order."""
    return [spec.describe(name) for name, spec in DATASETS.items()]


def _name_and_split(source: str) -> tuple[str, str | None]:
    head, _, tail = source.rpartition(":")
    named = head in DATASETS or head.startswith("image:")
    return (head, tail) if named and tail in SPLITS else (source, None)


def _picture(name: str) -> Toy:
    return replace(DATASETS["image"], density=partial(pictures.picture, name.removeprefix("image:")))


def _part(dataset: Dataset, split: str | None) -> Dataset:
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
    asked = suggestion(word, [*DATASETS, *IMAGE_SETS])
    return f"no data set and no file {source!r}{asked}; {known}; or give a file's path"


_UCI = "UCI repository, CC BY 4.0; carried by scikit-learn"

DATASETS: dict[str, Spec] = {
    "moons": Toy("two half circles", curves.moons),
    "circles": Toy("two circles, one inside the other", toys.circles),
    "rings": Toy("four thin circles", toys.rings),
    "8gaussians": Toy("eight Gaussians on a circle", toys.eight_gaussians),
    "pinwheel": Toy("five Gaussian arms, twisted", toys.pinwheel),
    "spirals": Toy("two spiral arms", curves.spirals),
    "swissroll": Toy("one spiral arm, denser inside", curves.swissroll),
    "checkerboard": Toy("uniform on eight squares", toys.checkerboard),
    "image": Toy(
        "the brightness of a picture: a flower, or image:PATH",
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
}
