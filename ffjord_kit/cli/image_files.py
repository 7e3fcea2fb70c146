"""Samples of images in files: an NPZ of whole grey levels, and a sheet of them to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ffjord_kit import metrics, plots
from ffjord_kit.atomic import replacing

SHOWN = 100  # images on a sheet


def written_images(out: str) -> list[str]:
    """The files that samples of images go to: an NPZ, and a PNG beside it. Raises ValueError for another ending."""
    path = Path(out)
    if path.suffix.lower() not in (".npz", ".png"):
        raise ValueError(f"samples of images go to a .npz and a .png of one name; got {path.name!r}")
    return [str(path.with_suffix(ending)) for ending in (".npz", ".png")]


def write_images(paths: list[str], images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write images (n, c, h, w) of uint8 as x_train, channels last, and labels as y_train: they can be read as DATA."""
    archive, sheet = map(Path, paths)
    last = images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)
    arrays = {"x_train": last} | ({} if labels is None else {"y_train": labels})
    drawn = plots.image_sheet(floats(images[:SHOWN]))  # before anything is written
    archive.parent.mkdir(parents=True, exist_ok=True)
    with replacing(archive) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    plots.save(drawn, sheet)


def write_sheet(folder: Path, shape: tuple[int, ...], record: dict[str, Any], images: np.ndarray) -> None:
    """Write images of a shape (c, h, w) as a sheet that the step of training and its bits/dim name."""
    bits = metrics.bits_per_dim(record["validation_nll"], int(np.prod(shape)))
    name = f"step-{record['step']:06d}-{bits:.4f}-bits.png"
    plots.save(plots.image_sheet(floats(images.reshape(-1, *shape))), folder / name)


def floats(images: np.ndarray) -> np.ndarray:
    """Images (..., c, h, w) of uint8 as a picture takes them: floats from 0 to 1, three colours or one grey."""
    colours = images.shape[-3] == 3
    return (np.moveaxis(images, -3, -1) if colours else images[..., 0, :, :]) / 255.0
