"""Sets of images: those with a name, NPZ files of arrays, and folders of pictures.

To add a set, write a function that reads a split, (name of the split) -> Arrays, or an `ImageOrigin` in
`fetched_images` that says where it is downloaded from, and give it a word in IMAGE_SETS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets.dataset import ImageSet, suggestion
from ffjord_kit.datasets.fetched_images import CIFAR10, FASHION_MNIST, MNIST, SVHN, ImageOrigin, read_fetched
from ffjord_kit.datasets.files import in_data_folder
from ffjord_kit.datasets.image_files import (
    Arrays,
    class_count,
    holds_images,
    holds_pictures,
    read_archive,
    read_folder,
)
from ffjord_kit.datasets.pictures import resize
from ffjord_kit.datasets.splits import SPLITS, check_numbers, split_rows, subset_rows


class ImageDescription(NamedTuple):
    """A row of the list of image sets.

    Args:
        name: Word in IMAGE_SETS.
        summary: What the images show.
        shape: Channels x height x width, as text.
        train: Number of train images.
        test: Number of test images.
        source: Author and licence.

    Example:
        >>> digits = {found.name: found for found in describe_images()}["mnist"]
        >>> digits.shape, digits.train, digits.test
        ('1 x 28 x 28', 60000, 10000)
    """

    name: str
    summary: str
    shape: str
    train: int
    test: int
    source: str


@dataclass(frozen=True)
class NamedImages:
    """A set of images that has a word in IMAGE_SETS.

    Args:
        summary: What the images show.
        shape: Shape of an image, (c, h, w).
        rows: Number of train images and of test images.
        classes: Names of the classes.
        source: Author and licence.
        read: Function that reads the split of a name.
        bits: Number of bits in use: the levels fill the highest `bits` of a byte.

    Example:
        >>> IMAGE_SETS["mnist"].shape, IMAGE_SETS["mnist"].rows
        ((1, 28, 28), (60000, 10000))
    """

    summary: str
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
    """Load images by name or from the user's files.

    Every source takes a split, as in `mnist:test`. Without one it is the train split, so that images scored later were
    not trained on. A folder has splits where it holds `train` and `test`; an NPZ file without x_test is taken whole.

    Args:
        source: A word in IMAGE_SETS, or the path of a folder of pictures or of an NPZ file with x_train.
        rows: Number of images to draw at random; None for all. They keep their order.
        seed: Seed of the draw.
        size: Side in pixels to which the square in the middle of each image is averaged; None keeps the shape.
        grey: Whether to replace colours by their luma.

    Returns:
        The images, with labels where they have classes.

    Raises:
        ValueError: If the source is unknown or damaged, `rows` exceeds the number of images, or a set must be
            downloaded and cannot be.

    Example:
        >>> load_images("digits8:test").images.shape
        (360, 1, 8, 8)
        >>> load_images("digits8", rows=5, size=4).labels.shape
        (5,)
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
    return replace(whole, images=resize(whole.images, size=size, grey=grey, bits=whole.bits))


def is_image_source(source: str) -> bool:
    """Return whether a source is one for `load_images`.

    Args:
        source: A name or a path, with or without a split.

    Returns:
        True for a word in IMAGE_SETS, a folder of pictures, or an NPZ file with x_train.

    Example:
        >>> is_image_source("mnist:test"), is_image_source("moons")
        (True, False)
    """
    if source.partition(":")[0] in IMAGE_SETS:
        return True
    path = in_data_folder(_name_and_split(source)[0])
    return holds_pictures(path) if os.path.isdir(path) else holds_images(path)


def check_image_source(source: str) -> None:
    """Check that a set of images is there, without reading it.

    Args:
        source: A name or a path, with or without a split.

    Raises:
        ValueError: If there is none.
    """
    name, _ = _name_and_split(source)
    path = in_data_folder(name)
    if name not in IMAGE_SETS and not os.path.isdir(path) and not holds_images(path):
        raise ValueError(_unknown(source))


def locate_images(source: str) -> str:
    """Return a source as `load_images` finds it from any folder.

    Args:
        source: A name or a path, with or without a split.

    Returns:
        The absolute path with its split, or the name unchanged.

    Example:
        >>> locate_images("mnist:test"), os.path.isabs(locate_images("pictures:train"))
        ('mnist:test', True)
    """
    name, split = _name_and_split(source)
    if name in IMAGE_SETS:
        return source
    return os.path.abspath(in_data_folder(name)) + (f":{split}" if split else "")


def describe_images() -> list[ImageDescription]:
    """List the sets of images, without reading them.

    Returns:
        A description of each set, in the order of IMAGE_SETS.

    Example:
        >>> [found.name for found in describe_images()]
        ['digits8', 'mnist', 'fashion_mnist', 'cifar10', 'svhn']
    """
    return [
        ImageDescription(name, images.summary, " x ".join(map(str, images.shape)), *images.rows, images.source)
        for name, images in IMAGE_SETS.items()
    ]


def _name_and_split(source: str) -> tuple[str, str | None]:
    head, _, tail = source.rpartition(":")
    return (head, tail) if tail in SPLITS and head and not os.path.exists(source) else (source, None)


def _whole(source: str, name: str, path: str, split: str | None) -> ImageSet:
    """Return all images of a split of a named set or of an NPZ file."""
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
    """Read scikit-learn's digits of 17 grey levels, split as the table `digits` is."""
    from sklearn.datasets import load_digits  # here, as scikit-learn takes seconds to load

    digits = load_digits()
    rows = split_rows(len(digits.images), split)
    return Arrays(digits.images[rows, None].astype(np.uint8) << 3, digits.target[rows].astype(np.int64))


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _fetched(summary: str, origin: ImageOrigin, classes: tuple[str, ...], source: str) -> NamedImages:
    return NamedImages(summary, origin.shape, origin.rows, classes, source, partial(read_fetched, origin))


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
    "mnist": _fetched("handwritten digits", MNIST, _DIGITS, "LeCun et al. 1998, CC BY-SA 3.0; downloaded"),
    "fashion_mnist": _fetched("clothes", FASHION_MNIST, _CLOTHES, "Zalando 2017, MIT; downloaded"),
    "cifar10": _fetched("small photographs", CIFAR10, _OBJECTS, "Krizhevsky 2009, no licence stated; downloaded"),
    "svhn": _fetched(
        "house numbers in photographs", SVHN, _DIGITS, "Netzer et al. 2011, no licence stated; downloaded"
    ),
}
