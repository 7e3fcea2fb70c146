"""Folders of pictures as images of one shape.

A picture is turned upright, laid over white where it is transparent, and read as 8 bits of red, green and blue. Hidden
files are passed over, and files of other endings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ffjord_kit.datasets.dataset import ImageSet, listing
from ffjord_kit.datasets.pictures import DEEP, read_picture
from ffjord_kit.datasets.resampling import resampled
from ffjord_kit.datasets.subsets import SPLITS, subset_rows

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Found(NamedTuple):
    """Pictures below a folder, in sorted order, and the first-level sub-folder of each, "" for the folder itself."""

    paths: list[Path]
    heads: list[str]


def holds_pictures(folder: str) -> bool:
    """Whether there is a picture in a folder or below it, by its ending."""
    return next(_pictures(folder), None) is not None


def read_folder(
    name: str, folder: str, split: str | None, *, rows: int | None, seed: int, size: int | None, grey: bool
) -> ImageSet:
    """The pictures in a folder, whose first-level sub-folders are the classes where it has them.

    Where it holds `train` and `test`, these are its splits, of the classes of `train`; without a split it is `train`.
    `rows` is a random subset, and no other picture is read. With a `size` the square in the middle of each is averaged
    over areas. Raises ValueError for pictures that cannot be read, or, without a `size`, differ in shape.
    """
    found, classes = _find(folder, split)
    chosen = np.arange(len(found.paths)) if rows is None else subset_rows(name, len(found.paths), rows=rows, seed=seed)
    labels = np.array([classes.index(found.heads[i]) for i in chosen], dtype=np.int64) if classes else None
    images = _read([found.paths[i] for i in chosen], size=size, grey=grey)
    return ImageSet(name, images, labels, classes)


def _find(folder: str, split: str | None) -> tuple[Found, tuple[str, ...]]:
    """The pictures of a split, and the names of the classes."""
    parts = {part: os.path.join(folder, part) for part in SPLITS}
    if not all(os.path.isdir(part) for part in parts.values()):
        if split is not None:
            raise ValueError(f"{folder} has no splits, sub-folders train and test; give the folder alone")
        return _classified(folder)
    found, classes = _classified(parts["train"])
    if split != "test":
        return found, classes
    found, others = _classified(parts["test"])
    strange = sorted(set(others) - set(classes))
    if strange or bool(classes) != bool(others):
        what = f"classes that {parts['train']} lacks: {listing(strange)}" if strange else "no classes, but train has"
        raise ValueError(f"{parts['test']} has {what}; sort both in the same way")
    return found, classes


def _classified(folder: str) -> tuple[Found, tuple[str, ...]]:
    """All pictures below a folder, and the sub-folders that hold them. Raises ValueError where some lie in none."""
    paths = sorted(_pictures(folder))
    heads = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
    alone = heads.count("")
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    if 0 < alone < len(paths):
        text = f"{alone} pictures lie in it and {len(paths) - alone} in sub-folders"
        raise ValueError(f"{folder}: {text}; sub-folders are classes: move all pictures into them, or none")
    return Found([folder / path for path in paths], heads), () if alone else tuple(sorted(set(heads)))


def _pictures(folder: str) -> Iterator[Path]:
    """Paths of pictures, relative to the folder."""
    for inside, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (name for name in files if name.lower().endswith(ENDINGS) and not name.startswith("."))
        yield from (Path(inside, name).relative_to(folder) for name in shown)


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _read(paths: list[Path], *, size: int | None, grey: bool) -> np.ndarray:
    """Images (n, c, h, w): each is written where it belongs, so that they are held once."""
    pixels = partial(_pixels, size=size, grey=grey)
    first = read_picture(paths[0], pixels)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for i, path in enumerate(paths):
        image = read_picture(path, pixels)
        if image.shape != first.shape:
            shapes = f"{_words(image)} pixels, but {paths[0]} has {_words(first)}"
            raise ValueError(f"{path} has {shapes}: give a size that all shall have (--size)")
        images[i] = image
    return images


def _words(image: np.ndarray) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _pixels(image: Image.Image, *, size: int | None, grey: bool) -> np.ndarray:
    """(c, h, w) of a picture."""
    if image.mode in DEEP:
        raise ValueError(f"mode {image.mode}, more than 8 bits a colour; save it with 8")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return resampled(pixels[None], size=size, grey=grey)[0]
