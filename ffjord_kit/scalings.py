"""Scalings: the layer next to the data, which is fitted to them before training, by its word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffjord_kit.gaussianize import Gaussianize
from ffjord_kit.heavy_tails import robust
from ffjord_kit.layers import Affine, Layer, Standardize, Whiten

# Made from data x (n, d), and blank from zeros (d,), to load weights into.
SCALINGS: dict[str, tuple[Callable[[Tensor], Layer], ...]] = {
    "standardize": (Standardize.of, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "robust": (robust, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "whiten": (Whiten.of, lambda zeros: Whiten(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "half_whiten": (Affine.half_whitening, lambda zeros: Affine(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "gaussianize": (Gaussianize.of, Gaussianize.blank),
    "none": (),
}
