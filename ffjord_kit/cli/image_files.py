"""Samples of images in files: an NPZ of whole grey levels, and a sheet of them to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ffjord_kit import plots
from ffjord_kit.atomic import replacing

SHOWN = 100  # images on a sheet


def written_images(out: str) -> list[str]:
    """The files that samples of images go to: an NPZ, and a PNG beside it. Raises ValueError for another ending."""
    path = Path(out)
    if path.suffix.lower() not in (".npz", ".png"):
        raise ValueError(f"samples of images go to a .npz and a .png of one name; got {path.name!r}")
    return [str(path.with_suffix(ending)) for ending in (".npz", ".png")]


def write_images(paths: list[str], images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write images of uint8 as x_train, channels last, and their labels as y_train: they can be read as DATA."""
    archive, sheet = map(Path, paths)
    arrays = {"x_train": pictures_of(images)} | ({} if labels is None else {"y_train": labels})
    archive.parent.mkdir(parents=True, exist_ok=True)
    with replacing(archive) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    plots.save(plots.image_sheet(floats(images[:SHOWN])), sheet)


def write_sheet(folder: Path, step: int, images: np.ndarray) -> None:
    """Write images as a sheet that is named by the step of training that they are of."""
    plots.save(plots.image_sheet(floats(images)), folder / f"step-{step:06d}.png")


def floats(images: np.ndarray) -> np.ndarray:
    """Images of uint8 as a picture takes them: floats from 0 to 1, channels last or none."""
    return pictures_of(images) / 255.0


def pictures_of(images: np.ndarray) -> np.ndarray:
    """Images (..., c, h, w) as (..., h, w, 3), or (..., h, w) of the first channel where there are not three."""
    return np.moveaxis(images, -3, -1) if images.shape[-3] == 3 else images[..., 0, :, :]
