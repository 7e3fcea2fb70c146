"""Invertible transforms; the menu SCALINGS names those that are fitted next to the data."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ffjord_kit.transforms.affine import Affine, Standardize, Whiten
from ffjord_kit.transforms.asinh import Asinh
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.bounded import IMAGE_SCALINGS, Logit, Softplus
from ffjord_kit.transforms.categorical import AskedCategorical, Categorical
from ffjord_kit.transforms.cnf import CNF
from ffjord_kit.transforms.conditional import ConditionalAffine
from ffjord_kit.transforms.contexts import ContextScaling
from ffjord_kit.transforms.gaussianize import Gaussianize
from ffjord_kit.transforms.manifold import Angles, OnColumns
from ffjord_kit.transforms.multiscale import Squeeze, multi_scale
from ffjord_kit.transforms.planar import Planar
from ffjord_kit.transforms.preprocess import Preprocess
from ffjord_kit.transforms.stepped import Stepped

# Two constructors each: fitted to data (n, d) and, if there are any, to weights of the rows (n,); and blank from zeros
# (d,), to load values into.
SCALINGS: dict[str, tuple[Callable[..., Transform], ...]] = {
    "standardize": (Standardize.of, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "robust": (Standardize.robust, lambda zeros: Standardize(zeros, torch.ones_like(zeros))),
    "whiten": (Whiten.of, lambda zeros: Whiten(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "half_whiten": (Affine.half_whitening, lambda zeros: Affine(zeros, torch.eye(len(zeros), dtype=zeros.dtype))),
    "gaussianize": (Gaussianize.of, Gaussianize.identity),
    "none": (),
}

__all__ = [
    "CNF", "IMAGE_SCALINGS", "SCALINGS", "Affine", "Angles", "AskedCategorical", "Asinh", "Categorical",
    "ConditionalAffine", "ContextScaling", "Gaussianize", "Logit", "OnColumns", "Planar", "Preprocess", "Softplus",
    "Squeeze", "Standardize", "Stepped", "Transform", "Whiten", "multi_scale",
]  # fmt: skip
