"""Images in an NPZ file: x_train and x_test, with y_train and y_test where they are of classes.

x is uint8, (n, h, w) or (n, h, w, 1 or 3); y holds whole numbers from 0, (n,). Only the arrays of one split are read.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets.dataset import DataWarning, listing
from ffjord_kit.datasets.files import explained, open_npz
from ffjord_kit.datasets.subsets import split_rows


class Arrays(NamedTuple):
    """Images (n, c, h, w) of uint8, a view of what was read, and their labels (n,) of int64, or None."""

    images: np.ndarray
    labels: np.ndarray | None


def channels_first(x: np.ndarray) -> np.ndarray:
    """Images (n, h, w) or (n, h, w, c) as (n, c, h, w), without a copy."""
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)


def holds_images(path: str) -> bool:
    """Whether a file is an archive with an array called x_train."""
    if Path(path).suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "x_train.npy" in archive.namelist()


def read_archive(path: str, split: str | None) -> Arrays:
    """Read a split; None is the train one.

    Where there are no test images None is all, and the splits are 80/20, as those of tables are, with a DataWarning.
    Raises ValueError for what is wrong with the file.
    """
    with open_npz(path) as arrays:
        if "x_test" in arrays.files:
            return _read(path, arrays, split or "train")
        whole = _read(path, arrays, "train")
    if split is None:
        return whole
    count = len(whole.images)
    text = f"{path}: no test images (x_test): its {count} images are split 80/20 by a fixed permutation"
    warnings.warn(f"{text}; figures do not compare with those of the standard split", DataWarning, stacklevel=5)
    rows = split_rows(count, split)
    return Arrays(whole.images[rows], None if whole.labels is None else whole.labels[rows])


def class_count(path: str) -> int:
    """How many classes the labels of an archive tell of, by the largest of y_train; 0 without labels."""
    with open_npz(path) as arrays:
        labels = _labels(path, arrays, "train")
    return 0 if labels is None or not len(labels) else int(labels.max()) + 1


def _read(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> Arrays:
    images, labels = _images(path, arrays, split), _labels(path, arrays, split)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{path}: {len(images)} images in x_{split}, but {len(labels)} labels in y_{split}")
    return Arrays(images, labels)


def _images(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray:
    key = f"x_{split}"
    if key not in arrays.files:
        raise ValueError(f"{path}: no array {key!r}; it holds {listing(arrays.files)}")
    with explained(f"{path}:{key}"):
        x = np.asarray(arrays[key])
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        expected = "uint8 of shape (n, h, w) or (n, h, w, 3), 0 to 255"
        raise ValueError(f"{path}: {key} must be {expected}; got {x.dtype} of shape {x.shape}")
    return channels_first(x)


def _labels(path: str, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray | None:
    key = f"y_{split}"
    if key not in arrays.files:
        return None
    with explained(f"{path}:{key}"):
        y = np.asarray(arrays[key])
    if y.dtype.kind not in "ui" or y.ndim != 1 or (len(y) and y.min() < 0):
        raise ValueError(f"{path}: {key} must be whole numbers from 0, of shape (n,); got {y.dtype} of shape {y.shape}")
    return y.astype(np.int64)
