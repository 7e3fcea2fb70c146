"""A user's own images: NPZ files of arrays, and folders of pictures.

An NPZ file of images holds x_train and x_test, with y_train and y_test where they have labels: x is uint8 of shape
(n, h, w) or (n, h, w, 1 or 3), y holds whole numbers from 0, shape (n,). Only the arrays of one split are read.

A folder of pictures has images of one shape. Each picture is turned upright, laid over white where it is transparent,
and read as 8 bits of red, green and blue. Hidden files and files of other extensions are ignored.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ffjord_kit.datasets.arrays import explained, open_npz
from ffjord_kit.datasets.dataset import DataWarning, ImageSet, listing
from ffjord_kit.datasets.pictures import read_picture, resize, rgb
from ffjord_kit.datasets.splits import SPLITS, split_rows, subset_rows

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Arrays(NamedTuple):
    """Images (n, c, h, w) of uint8, possibly a view, and their labels (n,) of int64, or None."""

    images: np.ndarray
    labels: np.ndarray | None


class Listing(NamedTuple):
    """Pictures below a folder in sorted order, with the first sub-folder of each, "" for the folder itself."""

    paths: list[Path]
    sub_folders: list[str]


# ---- NPZ files


def channels_first(x: np.ndarray) -> np.ndarray:
    """Move the channels of images to the second axis, without a copy.

    Args:
        x: Images, shape (n, h, w) or (n, h, w, c).

    Returns:
        A view, shape (n, c, h, w), with c = 1 where `x` has no channels.
    """
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)


def holds_images(path: str) -> bool:
    """Return whether a file is an NPZ file with an array called x_train.

    Args:
        path: Path of the file, which need not exist.

    Returns:
        True for an archive of images.
    """
    if Path(path).suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "x_train.npy" in archive.namelist()


def read_archive(path: str, split: str | None) -> Arrays:
    """Read a split of an NPZ file of images.

    Without test images the splits are 80 and 20 per cent of the train images, as those of tables are, and None is all
    of them.

    Args:
        path: Path of the file.
        split: "train", "test", or None for the train split.

    Returns:
        Images and labels.

    Raises:
        ValueError: If the file is damaged, or its arrays do not have the types and shapes above.

    Warns:
        DataWarning: If a split is taken from a file without test images.
    """
    with open_npz(path) as arrays:
        if "x_test" in arrays.files:
            return _read_split(path, arrays, split or "train")
        whole = _read_split(path, arrays, "train")
    if split is None:
        return whole
    count = len(whole.images)
    text = f"{path}: no test images (x_test): its {count} images are split 80/20 by a fixed permutation"
    warnings.warn(f"{text}; figures do not compare with those of the standard split", DataWarning, stacklevel=5)
    rows = split_rows(count, split)
    return Arrays(whole.images[rows], None if whole.labels is None else whole.labels[rows])


def class_count(path: str) -> int:
    """Return the number of classes of an NPZ file of images.

    Args:
        path: Path of the file.

    Returns:
        The largest label of y_train plus 1, or 0 without labels.

    Raises:
        ValueError: If y_train cannot be read.
    """
    with open_npz(path) as arrays:
        labels = _read_labels(path, arrays, "train")
    return 0 if labels is None or not len(labels) else int(labels.max()) + 1


def _read_split(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> Arrays:
    images, labels = _read_images(path, arrays, split), _read_labels(path, arrays, split)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{path}: {len(images)} images in x_{split}, but {len(labels)} labels in y_{split}")
    return Arrays(images, labels)


def _read_images(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray:
    key = f"x_{split}"
    if key not in arrays.files:
        raise ValueError(f"{path}: no array {key!r}; it holds {listing(arrays.files)}")
    with explained(f"{path}:{key}"):
        x = np.asarray(arrays[key])
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        expected = "uint8 of shape (n, h, w) or (n, h, w, 3), 0 to 255"
        raise ValueError(f"{path}: {key} must be {expected}; got {x.dtype} of shape {x.shape}")
    return channels_first(x)


def _read_labels(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray | None:
    key = f"y_{split}"
    if key not in arrays.files:
        return None
    with explained(f"{path}:{key}"):
        y = np.asarray(arrays[key])
    if y.dtype.kind not in "ui" or y.ndim != 1 or (len(y) and y.min() < 0):
        raise ValueError(f"{path}: {key} must be whole numbers from 0, of shape (n,); got {y.dtype} of shape {y.shape}")
    return y.astype(np.int64)


# ---- folders


def holds_pictures(folder: str) -> bool:
    """Return whether a folder, or a folder below it, holds a picture.

    Args:
        folder: Path of the folder.

    Returns:
        True where a file has one of EXTENSIONS.

    Raises:
        ValueError: If a folder cannot be read.
    """
    return next(_pictures(folder), None) is not None


def read_folder(
    name: str, folder: str, split: str | None, *, rows: int | None, seed: int, size: int | None, grey: bool
) -> ImageSet:
    """Read the pictures of a folder, whose first sub-folders are the classes where it has them.

    Where the folder holds `train` and `test`, these are its splits, with the classes of `train`.

    Args:
        name: Name of the image set.
        folder: Path of the folder.
        split: "train", "test", or None for the train split, or all of a folder without splits.
        rows: Number of pictures to draw at random; the others are not read. None for all.
        seed: Seed of the draw.
        size: Side in pixels to which the square in the middle is averaged; None keeps the shape.
        grey: Whether to replace colours by their luma.

    Returns:
        The images, with labels where there are classes.

    Raises:
        ValueError: If a picture cannot be read, the pictures differ in shape without a `size`, the sub-folders do not
            fit, or `rows` exceeds the number of pictures.
    """
    found, classes = _list_split(folder, split)
    count = len(found.paths)
    chosen = np.arange(count) if rows is None else subset_rows(name, count, rows=rows, seed=seed)
    labels = np.array([classes.index(found.sub_folders[i]) for i in chosen], dtype=np.int64) if classes else None
    images = _read_pictures([found.paths[i] for i in chosen], size=size, grey=grey)
    return ImageSet(name, images, labels, classes)


def _list_split(folder: str, split: str | None) -> tuple[Listing, tuple[str, ...]]:
    """Return the pictures of a split, and the names of the classes."""
    folders = {name: os.path.join(folder, name) for name in SPLITS}
    if not all(map(os.path.isdir, folders.values())):
        if split is not None:
            raise ValueError(f"{folder} has no splits, sub-folders train and test; give the folder alone")
        return _list_pictures(folder)
    found, classes = _list_pictures(folders["train"])
    if split != "test":
        return found, classes
    found, test_classes = _list_pictures(folders["test"])
    unknown = sorted(set(test_classes) - set(classes))
    if unknown or bool(classes) != bool(test_classes):
        lack = f"classes that {folders['train']} lacks: {listing(unknown)}" if unknown else "no classes, but train has"
        raise ValueError(f"{folders['test']} has {lack}; sort both in the same way")
    return found, classes


def _list_pictures(folder: str) -> tuple[Listing, tuple[str, ...]]:
    """Return all pictures below a folder, and the sub-folders that hold them, or () where the folder itself does."""
    paths = sorted(_pictures(folder))
    sub_folders = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
    alone = sub_folders.count("")
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(EXTENSIONS)})")
    if 0 < alone < len(paths):
        text = f"{alone} pictures lie in it and {len(paths) - alone} in sub-folders"
        raise ValueError(f"{folder}: {text}; sub-folders are classes: move all pictures into them, or none")
    classes = () if alone else tuple(sorted(set(sub_folders)))
    return Listing([folder / path for path in paths], sub_folders), classes


def _pictures(folder: str) -> Iterator[Path]:
    """Yield the paths of pictures, relative to the folder."""
    for inside, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
        yield from (Path(inside, name).relative_to(folder) for name in shown)


def _raise_unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _read_pictures(paths: list[Path], *, size: int | None, grey: bool) -> np.ndarray:
    """Read pictures into one array (n, c, h, w), so that they are held once."""
    convert = partial(_pixels, size=size, grey=grey)
    first = read_picture(paths[0], convert)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for i, path in enumerate(paths):
        image = read_picture(path, convert)
        if image.shape != first.shape:
            shapes = f"{_side_lengths(image)} pixels, but {paths[0]} has {_side_lengths(first)}"
            raise ValueError(f"{path} has {shapes}: give a size that all shall have (--size)")
        images[i] = image
    return images


def _side_lengths(image: np.ndarray) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _pixels(image: Image.Image, *, size: int | None, grey: bool) -> np.ndarray:
    return resize(rgb(image)[None], size=size, grey=grey)[0]
