"""Invertible transforms; the fitted ones next to the data by their words in SCALINGS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffjord_kit.transforms.affine import Affine, Standardize, Whiten, robust
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.bounded import IMAGE_SCALINGS, Logit, Softplus
from ffjord_kit.transforms.cnf import CNF
from ffjord_kit.transforms.gaussianize import Gaussianize
from ffjord_kit.transforms.multiscale import Squeeze, multi_scale
from ffjord_kit.transforms.preprocess import Preprocess

# Made from data x (n, d), and blank from zeros (d,), to load weights into.
SCALINGS: dict[str, tuple[Callable[[Tensor], Transform], ...]] = {
    "standardize": (Standardize.of, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "robust": (robust, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "whiten": (Whiten.of, lambda zeros: Whiten(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "half_whiten": (Affine.half_whitening, lambda zeros: Affine(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "gaussianize": (Gaussianize.of, Gaussianize.blank),
    "none": (),
}

__all__ = [
    "CNF", "IMAGE_SCALINGS", "SCALINGS", "Affine", "Gaussianize", "Logit", "Preprocess", "Softplus", "Squeeze",
    "Standardize", "Transform", "Whiten", "multi_scale",
]  # fmt: skip
