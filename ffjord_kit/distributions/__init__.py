"""Base distributions, where a flow is at t = 0, by their words.

The standard normal is the default; `DistributionBase` holds any `torch.distributions` object and moves with the flow.
Beside circles and spheres the base is a product: any of these for the real elements, and uniform ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ffjord_kit.distributions.base import Base, DistributionBase, StandardNormal, as_base
from ffjord_kit.distributions.kernels import SphereKernels, fit_kernels
from ffjord_kit.distributions.mixture import GaussianMixture, fit_mixture
from ffjord_kit.distributions.product import ProductBase
from ffjord_kit.distributions.student import (
    AsinhStudentT,
    StudentFit,
    StudentT,
    fit_student,
    fit_tails,
    outliers_inflate_scale,
)

# Two constructors each: fitted to rows at the base (n, *event) and, if there are any, to their weights (n,); and blank
# for an event shape, to load values into.
BASES: dict[str, tuple[Callable[..., Base], Callable[[Sequence[int]], Base]]] = {
    "normal": (lambda z, weight=None: StandardNormal(z.shape[1:]), StandardNormal),
    "mixture": (GaussianMixture.of, GaussianMixture),
    "student": (AsinhStudentT.of, AsinhStudentT),
    "kernels": (SphereKernels.of, SphereKernels),
}

__all__ = [
    "BASES", "AsinhStudentT", "Base", "DistributionBase", "GaussianMixture", "ProductBase", "SphereKernels",
    "StandardNormal", "StudentFit", "StudentT", "as_base", "fit_kernels", "fit_mixture", "fit_student", "fit_tails",
    "outliers_inflate_scale",
]  # fmt: skip
