r"""Affine transforms, with stated parameters or fitted to data.

    Standardize   z = (x - mean) / scale                       one scale for each element
    Whiten        z = L^-1 (x - mean),  L L^T = covariance     unit covariance
    Affine        z = M^-1 (x - mean)                          any regular matrix M

Below, D is the number of elements of an event.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ffjord_kit.distributions import fit_student
from ffjord_kit.transforms.base import Transform
from ffjord_kit.weights import mean_and_deviation, resampled

MIN_VARIANCE = 1e-10  # of a direction, relative to the largest


class Standardize(Transform):
    """Shift and scale each element of the event, z = (x - mean) / scale.

    Args:
        mean: Means, shape (*event).
        scale: Scales, > 0, shape (*event).

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> transform = Standardize.of(4 * x)
        >>> transform.mean.item(), transform.scale.item()
        (8.0, 4.0)
        >>> z, log_det = transform.to_base(4 * x)
        >>> z.flatten().tolist()
        [-1.0, 1.0]
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None = None) -> Standardize:
        """Fit the transform that gives data zero mean and unit variance.

        Args:
            x: Data, shape (n, *event).
            weight: Weights of the rows, shape (n,), or None.

        Returns:
            The transform; the scale of a constant element is 1.
        """
        mean, scale = mean_and_deviation(x, weight)
        counted = x if weight is None else x[weight != 0]
        return cls(mean, torch.where(counted.amax(0) > counted.amin(0), scale, torch.ones_like(scale)))

    @classmethod
    def robust(cls, x: Tensor, weight: Tensor | None = None) -> Standardize:
        """Fit location and scale of Student's t distribution to each element, which outliers do not inflate.

        Args:
            x: Data, shape (n, *event).
            weight: Weights of the rows, by which they are drawn for the fit, shape (n,), or None.

        Returns:
            The transform; the scale of a constant element is 1.
        """
        fit = fit_student(resampled(x, weight).flatten(1))
        return cls(fit.loc.reshape(x.shape[1:]), fit.scale.reshape(x.shape[1:]))

    def flaw(self) -> str:
        return "" if bool((self.scale > 0).all()) else "a scale that is not positive"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * self.scale + self.mean, self.scale.log().sum().expand(len(z))


class Whiten(Transform):
    """Shift and map to unit covariance by the Cholesky factor of the covariance, z = L^-1 (x - mean).

    Args:
        mean: Means, shape (*event).
        factor: Factor L, lower triangular with a positive diagonal, shape (D, D).

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 4.0], [3.0, 4.0]])
        >>> z, _ = Whiten.of(x).to_base(x)
        >>> torch.allclose(torch.cov(z.T, correction=0), torch.eye(2), atol=1e-5)
        True
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None = None) -> Whiten:
        """Fit the transform that gives data zero mean and the identity as covariance.

        Args:
            x: Data, shape (n, *event).
            weight: Weights of the rows, shape (n,), or None.

        Returns:
            The transform.

        Raises:
            ValueError: If the covariance is singular.
        """
        scale, factor = _root_of_correlation(x, weight)
        if factor is None:
            raise ValueError("whitening needs a regular covariance: drop collinear columns, or standardize instead")
        return cls(mean_and_deviation(x, weight)[0], scale[:, None] * factor)

    def flaw(self) -> str:
        triangular = bool((self.factor.tril() == self.factor).all()) and bool((self.factor.diagonal() > 0).all())
        return "" if triangular else "a factor that is not lower triangular with a positive diagonal"

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
    """Shift, and multiply by the inverse of a regular matrix, z = M^-1 (x - mean).

    Args:
        mean: Means, shape (*event).
        matrix: Matrix M, shape (D, D).

    Example:
        >>> transform = Affine(torch.zeros(2), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        >>> z, log_det = transform.to_base(torch.tensor([[2.0, 3.0]]))
        >>> z, log_det
        (tensor([[3., 1.]]), tensor([-0.6931]))
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    @classmethod
    def aligning(cls, z: Tensor, x: Tensor) -> Affine:
        """Fit the whitening transform of x whose results are nearest to given points z.

        Among all M with M M^T = covariance it takes the one that minimises the mean of |to_base(x) - z|^2 (the
        orthogonal Procrustes problem, Schoenemann 1966). A direction without variance gets a small one.

        Args:
            z: Points to approach, shape (n, *event).
            x: Data, shape (n, *event); row i is the partner of row i of z.

        Returns:
            The transform, which gives x mean 0 and the identity as covariance.
        """
        a, b = (rows.reshape(len(rows), -1).double() for rows in (z, x))
        mean = b.mean(0)
        variances, axes = torch.linalg.eigh(torch.atleast_2d(torch.cov(b.T, correction=0)))
        root = variances.clamp(min=MIN_VARIANCE * max(float(variances[-1]), MIN_VARIANCE)).sqrt()
        whitened = (b - mean) @ axes / root
        left, _, right = torch.linalg.svd(whitened.T @ a)
        matrix = (axes * root) @ left @ right
        return cls(mean.reshape(x.shape[1:]).to(x), matrix.to(x))

    @classmethod
    def half_whitening(cls, x: Tensor, weight: Tensor | None = None) -> Affine:
        """Fit the transform to principal components of standardised data, each divided by the root of its deviation.

        In logarithms that is half of the way from `Standardize` to `Whiten`. A direction without variance gets a
        small one.

        Args:
            x: Data, shape (n, *event).
            weight: Weights of the rows, shape (n,), or None.

        Returns:
            The transform.
        """
        rows = x.reshape(len(x), -1)
        _, scale = mean_and_deviation(rows, weight)
        scale = torch.where(scale > 0, scale, 1.0)
        variances, axes = torch.linalg.eigh(_correlation(rows, scale, weight))
        matrix = scale[:, None] * axes * variances.clamp(min=MIN_VARIANCE) ** 0.25
        return cls(mean_and_deviation(x, weight)[0], matrix)

    def flaw(self) -> str:
        return "" if bool(self._log_det().isfinite()) else "a matrix that is not regular"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = (x - self.mean).reshape(len(x), -1)
        z = torch.linalg.solve(self.matrix, centred.T).T
        return z.reshape(x.shape), -self._log_det().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (z.reshape(len(z), -1) @ self.matrix.T).reshape(z.shape) + self.mean
        return x, self._log_det().expand(len(z))

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.matrix).logabsdet


def gaussian_total_correlation(x: Tensor) -> float:
    """Return the total correlation of the elements of an event if they were Gaussian, -1/2 log det R.

    R is the correlation matrix. By that much, per row, a Gaussian with the full covariance is likelier than one with a
    diagonal covariance.

    Args:
        x: Data, shape (n, *event).

    Returns:
        Total correlation, nats; infinite where elements are collinear.

    Example:
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> gaussian_total_correlation(torch.cat([x, x.flip(0)], dim=1)) < 0.01  # nearly independent
        True
    """
    _, factor = _root_of_correlation(x)
    return math.inf if factor is None else -float(factor.diagonal().log().sum())


def _root_of_correlation(x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the deviations (D,) of x (n, *event), and the Cholesky factor (D, D) of its correlation, or None."""
    rows = x.reshape(len(x), -1)
    _, scale = mean_and_deviation(rows, weight)
    factor, failed = torch.linalg.cholesky_ex(_correlation(rows, scale, weight))
    # The square of a diagonal entry is the part of a column's variance that the columns before it do not explain.
    regular = not bool(failed) and float(factor.diagonal().min()) ** 2 > 100 * torch.finfo(x.dtype).eps
    return scale, factor if regular else None


def _correlation(rows: Tensor, scale: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the correlation matrix (D, D) of rows (n, D) with deviations (D,)."""
    sizes = None if weight is None else weight.abs().to(rows)
    return torch.atleast_2d(torch.cov(((rows - rows.mean(0)) / scale).T, correction=0, aweights=sizes))
