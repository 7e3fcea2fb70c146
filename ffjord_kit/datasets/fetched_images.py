"""Image sets that are too large to carry: their original files, and what is known of them.

Each set is an NPZ file (see `image_files`), which `fetching` finds on this machine or downloads. The checksums of the
original files are those of TensorFlow Datasets. What is read is checked too: the shape, the classes, and the SHA-256 of
the levels where it is known.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ffjord_kit.datasets.fetching import Origin, check_digest, fetch, find
from ffjord_kit.datasets.image_files import Arrays, channels_first, read_archive
from ffjord_kit.datasets.splits import SPLITS


class LabelledImages(NamedTuple):
    """A split in the original files: images (n, h, w) or (n, h, w, c) and labels (n,), both uint8."""

    x: np.ndarray
    y: np.ndarray


Unpack = Callable[[Sequence[Path]], dict[str, LabelledImages]]  # both splits, by name


@dataclass(frozen=True)
class ImageOrigin(Origin):
    """Where a set of images comes from, and how it is recognised.

    Args:
        name: Name of the set; its file is `name.npz`.
        files: SHA-256 of each original file by its URL, in the order that `unpack` takes them.
        unpack: Function that reads both splits out of the original files.
        shape: Shape of an image, (c, h, w).
        counts: Number of images of each class, by split.
        digests: SHA-256 of the bytes of all images (n, c, h, w), then all labels, by split, where it is known.
        partial_files: Files that serve where the whole set is not on this machine.

    Example:
        >>> MNIST.file, MNIST.rows
        ('mnist.npz', (60000, 10000))
    """

    unpack: Unpack
    shape: tuple[int, int, int]
    counts: Mapping[str, tuple[int, ...]]
    digests: Mapping[str, str] = field(default_factory=dict)
    partial_files: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[int, int]:
        """Number of train images and of test images."""
        train, test = (sum(self.counts[split]) for split in SPLITS)
        return train, test


def read_fetched(origin: ImageOrigin, split: str) -> Arrays:
    """Read a split of a set, which is downloaded where it is not on this machine.

    Args:
        origin: The set.
        split: "train" or "test".

    Returns:
        Images and labels.

    Raises:
        ValueError: If the set can neither be found nor downloaded, or its file holds something else.
    """
    path = find(origin.file, *origin.partial_files) or fetch(origin, partial(_pack, origin))
    arrays = read_archive(str(path), split)
    _check_split(str(path), arrays, origin, split)
    return arrays


def _pack(origin: ImageOrigin, paths: Sequence[Path], file: BinaryIO) -> None:
    """Write what the original files hold, after all checks."""
    splits = origin.unpack(paths)
    for split in SPLITS:
        _check_download(f"{origin.name} of {origin.hosts}", splits[split], origin, split)
    train, test = (splits[split] for split in SPLITS)
    np.savez(file, x_train=train.x, y_train=train.y, x_test=test.x, y_test=test.y)


# ---- the original files


def read_idx_files(paths: Sequence[Path]) -> dict[str, LabelledImages]:
    """Read images and labels in MNIST's format.

    Args:
        paths: Compressed IDX files: train images, train labels, test images, test labels.

    Returns:
        The splits: images (n, h, w), labels (n,).
    """
    train_images, train_labels, test_images, test_labels = map(_read_idx, paths)
    return {
        "train": LabelledImages(train_images, train_labels),
        "test": LabelledImages(test_images, test_labels),
    }


def _read_idx(path: Path) -> np.ndarray:
    """Read unsigned bytes of any shape: a magic number whose last byte counts the axes, the shape, then the bytes."""
    with gzip.open(path) as file:
        content = file.read()
    shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def read_cifar_files(paths: Sequence[Path]) -> dict[str, LabelledImages]:
    """Read images and labels in the binary format of CIFAR-10.

    Args:
        paths: The compressed archive alone, with five files of train images and one of test images.

    Returns:
        The splits: images (n, 32, 32, 3), labels (n,).
    """
    with tarfile.open(paths[0]) as archive:
        train = np.concatenate([_read_cifar_batch(archive, f"data_batch_{i}.bin") for i in range(1, 6)])
        test = _read_cifar_batch(archive, "test_batch.bin")
    return {"train": _split_cifar_records(train), "test": _split_cifar_records(test)}


def _read_cifar_batch(archive: tarfile.TarFile, name: str) -> np.ndarray:
    member = archive.extractfile(f"cifar-10-batches-bin/{name}")
    if member is None:
        raise ValueError(f"{name} of CIFAR-10 is not a file")
    return np.frombuffer(member.read(), dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)


def _split_cifar_records(records: np.ndarray) -> LabelledImages:
    """Divide records of a label and the levels of red, green and blue, one after the other."""
    return LabelledImages(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0])


def read_svhn_files(paths: Sequence[Path]) -> dict[str, LabelledImages]:
    """Read images and labels in SVHN's format of cropped digits.

    Args:
        paths: MATLAB files: train, then test.

    Returns:
        The splits: images (n, 32, 32, 3), labels (n,); the class 10 becomes the digit 0.
    """
    from scipy.io import loadmat

    train, test = map(loadmat, paths)
    return {"train": _from_matlab(train["X"], train["y"]), "test": _from_matlab(test["X"], test["y"])}


def _from_matlab(x: np.ndarray, y: np.ndarray) -> LabelledImages:
    return LabelledImages(x.transpose(3, 0, 1, 2), (y.ravel() % 10).astype(np.uint8))


# ---- checks


def _check_download(label: str, images: LabelledImages, origin: ImageOrigin, split: str) -> None:
    """Check all that is known of a split before it is kept."""
    counts = tuple(np.bincount(images.y, minlength=len(origin.counts[split])).tolist())
    if counts != origin.counts[split]:
        expected = f"images of each class {counts}; expected {origin.counts[split]}"
        raise ValueError(f"{label}: not the standard {split} split: {expected}")
    _check_split(label, Arrays(channels_first(images.x), images.y), origin, split)


def _check_split(label: str, arrays: Arrays, origin: ImageOrigin, split: str) -> None:
    """Check the shape, the classes and, where it is known, the SHA-256 of a split."""
    (images, labels), classes = arrays, len(origin.counts["train"])
    if images.shape[1:] != origin.shape:
        raise ValueError(f"{label}: images of {origin.name} have shape {origin.shape}; got {images.shape[1:]}")
    if labels is None or labels.max() >= classes:
        raise ValueError(f"{label}: {origin.name} needs labels 0 .. {classes - 1} (y_train, y_test); got others")
    expected = origin.digests.get(split)
    if expected is not None:
        check_digest(label, f"x_{split} and y_{split}", [images, labels.astype(np.uint8)], expected)


# ---- the sets

_MNIST_FOLDER = "https://storage.googleapis.com/cvdf-datasets/mnist"
_FASHION_FOLDER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_SVHN_FOLDER = "http://ufldl.stanford.edu/housenumbers"

MNIST = ImageOrigin(
    "mnist",
    {
        f"{_MNIST_FOLDER}/train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        f"{_MNIST_FOLDER}/train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        f"{_MNIST_FOLDER}/t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        f"{_MNIST_FOLDER}/t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
    read_idx_files,
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
FASHION_MNIST = ImageOrigin(
    "fashion_mnist",
    {
        f"{_FASHION_FOLDER}/train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        f"{_FASHION_FOLDER}/train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        f"{_FASHION_FOLDER}/t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        f"{_FASHION_FOLDER}/t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
    read_idx_files,
    (1, 28, 28),
    {"train": (6000,) * 10, "test": (1000,) * 10},
    {
        "train": "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
        "test": "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
    },
)
CIFAR10 = ImageOrigin(
    "cifar10",
    {
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": (
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        )
    },
    read_cifar_files,
    (3, 32, 32),
    {"train": (5000,) * 10, "test": (1000,) * 10},
    partial_files=("cifar10_first4000.npz",),
)
SVHN = ImageOrigin(
    "svhn",
    {
        f"{_SVHN_FOLDER}/train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        f"{_SVHN_FOLDER}/test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    },
    read_svhn_files,
    (3, 32, 32),
    {
        "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    },
)
