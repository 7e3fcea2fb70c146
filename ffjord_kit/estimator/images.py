"""Images as an estimator takes and gives them: whole grey levels of 8 bits, (n, h, w) or (n, channels, h, w)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ffjord_kit.estimator.arrays import SMALLEST_VALIDATION_SET, shared, tensor
from ffjord_kit.images import Pixels, one_hot

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

FITTED_ELEMENTS, FITTED_IMAGES = 4_000_000, 5_000  # of the pixels that layers are fitted to
VALIDATION_ELEMENTS, VALIDATION_IMAGES = 25_000, 64  # fewer images where an image is large: each is solved for
MOST_CHANNELS, MOST_CLASSES = 4, 1000


def is_images(x: Any) -> bool:
    """Whether an array has the axes of images."""
    return getattr(x, "ndim", 2) in (3, 4)


def refuse_images(model: FFJORD, verb: str, instead: str) -> None:
    """Raise ValueError where a model of images is asked for what only tables have; it must be fitted."""
    check_is_fitted(model, "flow_")
    if model.images is not None:
        raise ValueError(f"{verb} is for tables, and this model is of images: {instead}")


class Images(NamedTuple):
    """What a model keeps of the images of its fit.

    Their shape (c, h, w); whether they came with an axis of channels; the bits of their levels; and how many classes
    they are told by (0: none).
    """

    shape: tuple[int, int, int]
    channels: bool
    bits: int = 8
    classes: int = 0

    @classmethod
    def of(cls, x: Any, bits: int, context: Any = None) -> Images:
        """What is to be kept of images x with labels, whole numbers, or a context of another kind, or none."""
        x = np.asarray(x)
        shape = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:]
        return cls(tuple(map(int, shape)), x.ndim == 4, bits, 0 if context is None else _classes(context, len(x)))

    @classmethod
    def kept(cls, content: Mapping[str, Any] | None) -> Images | None:
        """What a run keeps; None of a table. Raises ValueError where it makes no sense."""
        if content is None:
            return None
        images = cls(**{**content, "shape": tuple(map(int, content["shape"]))})
        if len(images.shape) != 3 or min(images.shape) < 1 or not 1 <= images.bits <= 8 or images.classes < 0:
            raise ValueError(f"images must have a shape (c, h, w), 1 to 8 bits and classes; got {content}")
        return images

    def checked(self, x: Any) -> Tensor:
        """Images as (n, c, h, w), sharing their memory. Raises ValueError for others than those of the fit."""
        x = np.asarray(x)
        expected = self.shape if self.channels else self.shape[1:]
        if self.shape[0] == 1 and x.ndim == (3 if self.channels else 4):  # one channel, told or not
            expected = (1, *expected) if not self.channels else expected[1:]
        if x.dtype != np.uint8:
            raise ValueError(
                f"images must be whole grey levels, uint8 of 0 to 255; got {x.dtype}: scale them to 0 .. 255, round "
                "them, and pass X.astype('uint8')"
            )
        if x.ndim != len(expected) + 1 or x.shape[1:] != expected or not x.size:
            raise ValueError(f"images must have shape (n >= 1, {', '.join(map(str, expected))}); got {x.shape}")
        if self.shape[0] > MOST_CHANNELS:
            raise ValueError(
                f"images must have shape (n, h, w) or (n, channels, h, w), up to {MOST_CHANNELS} channels; got "
                f"{x.shape}: if the channels come last, pass X.transpose(0, 3, 1, 2)"
            )
        return shared(x.reshape(-1, *self.shape) if min(x.strides) > 0 else x.reshape(-1, *self.shape).copy())

    def pixels(self, x: Any) -> Pixels:
        """Images as rows for training, which stay bytes."""
        return Pixels(self.checked(x), self.bits)

    def context(self, labels: Any, rows: int) -> np.ndarray:
        """Labels (rows,), or one for all, as contexts (rows, classes). Raises ValueError for others."""
        expected = f"context must be a label, or {rows} of them, whole numbers from 0 to {self.classes - 1}"
        if labels is None:
            raise ValueError(f"{expected}; got none")
        labels = np.asarray(labels)
        labels = labels[:, 0] if labels.shape == (rows, 1) else labels
        if labels.shape not in ((), (1,), (rows,)) or labels.dtype.kind not in "buif" or (labels % 1).any():
            raise ValueError(f"{expected}; got {labels.dtype} of shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"{expected}; got {labels.min():g} to {labels.max():g}")
        return one_hot(tensor(np.broadcast_to(labels, (rows,)).astype(np.int64)), self.classes).numpy()

    def restored(self, x: np.ndarray) -> np.ndarray:
        """Draws x (n, c, h, w) as images: whole levels in the highest bits of uint8, of the shape of the fit's."""
        levels = np.clip(np.floor(x), 0, 2**self.bits - 1).astype(np.uint8) << (8 - self.bits)
        return self.framed(levels)

    def framed(self, x: np.ndarray) -> np.ndarray:
        """Values (..., c, h, w), with their axis of channels as the fit's images had it."""
        return x if self.channels else x[..., 0, :, :]


def _classes(context: Any, rows: int) -> int:
    """How many classes a context tells of; 0 where it is none of labels. Raises ValueError for words and the like."""
    labels = np.asarray(context)
    if labels.dtype.kind not in "buif":
        raise ValueError(
            f"labels must be whole numbers from 0; got {labels.dtype}: pass np.unique(labels, return_inverse=True)[1]"
        )
    if labels.shape not in ((rows,), (rows, 1)) or not len(labels) or (labels % 1).any():
        return 0
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(f"labels must be 0 to {MOST_CLASSES - 1}; got {labels.min():g} to {labels.max():g}")
    return int(labels.max()) + 1


def split_of(count: int, size: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the images of so many pixels to train on, ascending, and of those held out, by the seed.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1); got {fraction}")
    held_out = min(int(fraction * count), max(VALIDATION_IMAGES, VALIDATION_ELEMENTS // size))
    held_out = 0 if held_out < SMALLEST_VALIDATION_SET else held_out
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order[held_out:].sort().values, order[:held_out].sort().values


def fitting_part(count: int, shape: tuple[int, ...]) -> Tensor:
    """The numbers of some images, spread over all, to fit layers to."""
    most = max(2, min(count, FITTED_IMAGES, FITTED_ELEMENTS // math.prod(shape)))
    return torch.linspace(0, count - 1, most, dtype=torch.float64).long()
