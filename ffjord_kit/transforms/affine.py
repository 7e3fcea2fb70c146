r"""Affine transforms, fitted to data or given.

    Standardize   z = (x - mean) / scale                       one scale for each element
    Whiten        z = L^-1 (x - mean),  L L^T = covariance     unit covariance
    Affine        z = M^-1 (x - mean)                          any regular matrix M
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ffjord_kit.distributions import fit_student
from ffjord_kit.transforms.base import Transform

LEAST_VARIANCE = 1e-10  # of a direction, as a share of the largest


class Standardize(Transform):
    """Shift and scale each element of the event.

    Shapes: mean, scale (*event); scale > 0.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """the transform that gives the rows of x (n, *event) zero mean and unit variance; a constant keeps its scale."""
        scale = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(x.amax(0) > x.amin(0), scale, torch.ones_like(scale)))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * self.scale + self.mean, self.scale.log().sum().expand(len(z))


class Whiten(Transform):
    """Shift, rotate and scale to unit covariance, by the Cholesky factor L of the covariance.

    Shapes: mean (*event); factor (D, D), lower triangular with a positive diagonal, D the event's size.
    """

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)

    @classmethod
    def of(cls, x: Tensor) -> Whiten:
        """the transform that gives the rows of x (n, *event) zero mean and the identity as covariance.

        Raises ValueError where the covariance is singular.
        """
        scale, factor = _root_of_correlation(x)
        if factor is None:
            raise ValueError("whitening needs a regular covariance: drop collinear columns, or standardize instead")
        return cls(x.mean(0), scale[:, None] * factor)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = (x - self.mean).reshape(len(x), -1)
        z = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T
        return z.reshape(x.shape), -self._log_det().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (z.reshape(len(z), -1) @ self.factor.T).reshape(z.shape) + self.mean
        return x, self._log_det().expand(len(z))

    def _log_det(self) -> Tensor:
        return self.factor.diagonal().log().sum()


class Affine(Transform):
    """Shift, and multiply by any regular matrix.

    Shapes: mean (*event); matrix (D, D), D the event's size.
    """

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    @classmethod
    def aligning(cls, z: Tensor, x: Tensor) -> Affine:
        """the transform that gives x (n, *event) mean 0 and covariance 1, and turns it as near to z (n, *event) as can be.

        Of all roots of the covariance the one for which the sum of squares of to_base(x) - z is least (the orthogonal
        Procrustes problem, Schoenemann 1966). A direction without variance is given a little.
        """
        a, b = (part.reshape(len(part), -1).double() for part in (z, x))
        mean = b.mean(0)
        variances, axes = torch.linalg.eigh(torch.atleast_2d(torch.cov(b.T, correction=0)))
        root = variances.clamp(min=LEAST_VARIANCE * max(float(variances[-1]), LEAST_VARIANCE)).sqrt()
        whitened = (b - mean) @ axes / root
        left, _, right = torch.linalg.svd(whitened.T @ a)
        matrix = (axes * root) @ left @ right
        return cls(mean.reshape(x.shape[1:]).to(x), matrix.to(x))

    @classmethod
    def half_whitening(cls, x: Tensor) -> Affine:
        """The layer whose elements are the principal components of standardised x (n, *event), half whitened.

        Each is divided by the root of its deviation: half of the way, in logarithms, from `Standardize` to `Whiten`.
        A direction without variance is given a little.
        """
        rows = x.reshape(len(x), -1)
        scale = rows.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        variances, axes = torch.linalg.eigh(_correlation(rows, scale))
        matrix = scale[:, None] * axes * variances.clamp(min=LEAST_VARIANCE) ** 0.25
        return cls(x.mean(0), matrix)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = (x - self.mean).reshape(len(x), -1)
        z = torch.linalg.solve(self.matrix, centred.T).T
        return z.reshape(x.shape), -self._log_det().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (z.reshape(len(z), -1) @ self.matrix.T).reshape(z.shape) + self.mean
        return x, self._log_det().expand(len(z))

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.matrix).logabsdet


def robust(x: Tensor) -> Standardize:
    """The layer that gives the rows of x (n, d) place 0 and width 1, by Student's laws: outliers do not widen it."""
    found = fit_student(x.flatten(1))
    return Standardize(found.place.reshape(x.shape[1:]), found.width.reshape(x.shape[1:]))


def shared_information(x: Tensor) -> float:
    """What the elements of x (n, *event) tell of each other by their correlations alone, -1/2 log det R, in nats.

    That much a Gaussian with the covariance is likelier than one without; infinite where elements are collinear.
    """
    _, factor = _root_of_correlation(x)
    return math.inf if factor is None else -float(factor.diagonal().log().sum())


def _root_of_correlation(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The scales (D,), and the Cholesky factor (D, D) of the correlation of x (n, *event): None where singular."""
    rows = x.reshape(len(x), -1)
    scale = rows.std(0, correction=0)
    factor, failed = torch.linalg.cholesky_ex(_correlation(rows, scale))
    # The square of a diagonal entry is the share of a column's variance that those before it leave unexplained.
    regular = not bool(failed) and float(factor.diagonal().min()) ** 2 > 100 * torch.finfo(x.dtype).eps
    return scale, factor if regular else None


def _correlation(rows: Tensor, scale: Tensor) -> Tensor:
    """The correlation matrix (D, D) of rows (n, D) with deviations (D,)."""
    return torch.atleast_2d(torch.cov(((rows - rows.mean(0)) / scale).T, correction=0))
