"""Sets of images: those that have a name, archives of arrays, and folders of pictures.

To add one, write a function that reads a split, (name of the split) -> Arrays, and give it a word in IMAGE_SETS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from ffjord_kit.datasets.archives import Arrays, class_count, holds_images, read_archive
from ffjord_kit.datasets.dataset import ImageSet, suggestion
from ffjord_kit.datasets.fetching import Origin, read_fetched
from ffjord_kit.datasets.files import in_data_folder
from ffjord_kit.datasets.folders import holds_pictures, read_folder
from ffjord_kit.datasets.resampling import resampled
from ffjord_kit.datasets.subsets import SPLITS, check_numbers, split_rows, subset_rows


class ImageDescription(NamedTuple):
    """A row of the list of sets of images: `shape` in words, channels x height x width, and rows of each split."""

    name: str
    what: str
    shape: str
    train: int
    test: int
    source: str


@dataclass(frozen=True)
class NamedImages:
    """How the set behind a word is read, and what is known without reading it: `shape` (c, h, w), rows by split."""

    what: str
    shape: tuple[int, int, int]
    rows: tuple[int, int]
    classes: tuple[str, ...]
    source: str
    read: Callable[[str], Arrays]
    bits: int = 8


def load_images(
    source: str | os.PathLike[str],
    *,
    rows: int | None = None,
    seed: int = 0,
    size: int | None = None,
    grey: bool = False,
) -> ImageSet:
    """Load images by a word in IMAGE_SETS, or the path of a folder of pictures or of an NPZ file with x_train.

    All take a split, as in `mnist:test`; without one it is the train split, so that what is scored later was never
    trained on. A folder has splits where it holds `train` and `test`; an NPZ without x_test is taken whole. `rows` is
    a random subset, in order. With a `size` the square in the middle of each image is averaged over areas to size x
    size pixels; `grey` makes luma of colours. Raises ValueError for a source that is unknown or wrong, for more rows
    than there are, and for a set that has to be fetched and cannot be.
    """
    source = os.fspath(source)
    check_numbers(rows=rows, seed=seed)
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1; got {size}")
    name, split = _name_and_split(source)
    path = in_data_folder(name)
    if name not in IMAGE_SETS and os.path.isdir(path):
        return read_folder(source, path, split, rows=rows, seed=seed, size=size, grey=grey)
    whole = _take(_whole(source, name, path, split), rows=rows, seed=seed)
    _check_size(source, whole.images, size)
    return replace(whole, images=resampled(whole.images, size=size, grey=grey, bits=whole.bits))


def is_image_source(source: str) -> bool:
    """Whether a source is for `load_images`: a word in IMAGE_SETS, a folder of pictures, or an NPZ with x_train."""
    if source.partition(":")[0] in IMAGE_SETS:
        return True
    path = in_data_folder(_name_and_split(source)[0])
    return holds_pictures(path) if os.path.isdir(path) else holds_images(path)


def locate_images(source: str) -> str:
    """The source as `load_images` finds it from any folder: an absolute path, or a name as it is."""
    name, split = _name_and_split(source)
    if name in IMAGE_SETS:
        return source
    return os.path.abspath(in_data_folder(name)) + (f":{split}" if split else "")


def describe_images() -> list[ImageDescription]:
    """List the sets of IMAGE_SETS, in its order, without reading them."""
    return [
        ImageDescription(name, spec.what, " x ".join(map(str, spec.shape)), *spec.rows, spec.source)
        for name, spec in IMAGE_SETS.items()
    ]


def _name_and_split(source: str) -> tuple[str, str | None]:
    head, _, tail = source.rpartition(":")
    return (head, tail) if tail in SPLITS and head and not os.path.exists(source) else (source, None)


def _whole(source: str, name: str, path: str, split: str | None) -> ImageSet:
    """All images of a split of a named set or an archive."""
    if name in IMAGE_SETS:
        spec = IMAGE_SETS[name]
        return ImageSet(source, *spec.read(split or "train"), spec.classes, spec.bits)
    if not holds_images(path):
        raise ValueError(_unknown(source))
    arrays, count = read_archive(path, split), class_count(path)
    if arrays.labels is not None and arrays.labels.max() >= count:
        raise ValueError(f"{path}: y_{split or 'train'} has the class {arrays.labels.max()}, which y_train lacks")
    return ImageSet(source, *arrays, tuple(map(str, range(count))) if arrays.labels is not None else ())


def _unknown(source: str) -> str:
    word, colon, split = source.partition(":")
    if colon and (word in IMAGE_SETS or os.path.isdir(word)):
        return f"{source!r}: the splits of {word} are {' and '.join(SPLITS)}; got {split!r}"
    known = f"the sets are {', '.join(IMAGE_SETS)}"
    path = "give the path of a folder of pictures, or of an NPZ file with x_train"
    return f"no set of images and no folder {source!r}{suggestion(word, list(IMAGE_SETS))}; {known}; or {path}"


def _take(whole: ImageSet, *, rows: int | None, seed: int) -> ImageSet:
    if rows is None:
        return whole
    chosen = subset_rows(whole.name, len(whole.images), rows=rows, seed=seed)
    labels = None if whole.labels is None else whole.labels[chosen]
    return replace(whole, images=whole.images[chosen], labels=labels)


def _check_size(source: str, images: np.ndarray, size: int | None) -> None:
    side = min(images.shape[2:])
    if size is not None and size > side:
        raise ValueError(f"size must be at most {side}, the side of {source}; got {size}")


def _digits(split: str) -> Arrays:
    """scikit-learn's digits of 17 grey levels, split as the table `digits` is."""
    digits = load_digits()
    rows = split_rows(len(digits.images), split)
    return Arrays(digits.images[rows, None].astype(np.uint8) << 3, digits.target[rows].astype(np.int64))


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MNIST = Origin(
    "mnist",
    "mnist_784",
    (1, 28, 28),
    {
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    {
        "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
        "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
    },
)
_FASHION_MNIST = Origin(
    "fashion_mnist",
    "Fashion-MNIST",
    (1, 28, 28),
    {"train": (6000,) * 10, "test": (1000,) * 10},
    {
        "train": "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
        "test": "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
    },
)
_CIFAR10 = Origin(
    "cifar10",
    "CIFAR_10",
    (3, 32, 32),
    {"train": (5000,) * 10, "test": (1000,) * 10},
    planes=True,
    parts=("cifar10_first4000.npz",),
)
_SVHN = Origin(
    "svhn",
    "SVHN",
    (3, 32, 32),
    {
        "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    },
)


def _fetched(what: str, origin: Origin, classes: tuple[str, ...], source: str) -> NamedImages:
    rows = tuple(sum(origin.counts[split]) for split in SPLITS)
    return NamedImages(what, origin.shape, rows, classes, source, partial(read_fetched, origin))


IMAGE_SETS: dict[str, NamedImages] = {
    "digits8": NamedImages(
        "handwritten digits of 17 grey levels",
        (1, 8, 8),
        (1437, 360),
        _DIGITS,
        "UCI repository, CC BY 4.0; carried by scikit-learn",
        _digits,
        bits=5,
    ),
    "mnist": _fetched("handwritten digits", _MNIST, _DIGITS, "LeCun et al. 1998, CC BY-SA 3.0; fetched from OpenML"),
    "fashion_mnist": _fetched("clothes", _FASHION_MNIST, _CLOTHES, "Zalando 2017, MIT; fetched from OpenML"),
    "cifar10": _fetched(
        "small photographs", _CIFAR10, _THINGS, "Krizhevsky 2009, no licence stated; fetched from OpenML"
    ),
    "svhn": _fetched(
        "house numbers in photographs", _SVHN, _DIGITS, "Netzer et al. 2011, no licence stated; fetched from OpenML"
    ),
}
