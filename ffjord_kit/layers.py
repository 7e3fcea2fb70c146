r"""Layers: invertible maps with their log-determinants; here the exact, non-continuous ones.

A layer maps data x towards the base, z = to_base(x), and back, x = to_data(z); each map comes with the log of the
absolute determinant of its Jacobian, so that log p(x) = log p(z) + log|det dz/dx|.

    Standardize   z = (x - mean) / scale                       one scale for each element
    Whiten        z = L^-1 (x - mean),  L L^T = covariance     unit covariance
    Affine        z = M^-1 (x - mean)                          any regular matrix M
    Logit         z = log(x - lower) - log(upper - x)          data in (lower, upper)
    Softplus      z = log(exp(x - lower) - 1)                  data above `lower`; softplus(z) + lower = x
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_VARIANCE = 1e-10  # of a direction, as a share of the largest


class Layer(nn.Module, ABC):
    """An invertible map between data and base; every log_det is (batch,)."""

    event_shape: tuple[int, ...] | None = None

    @abstractmethod
    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z and log|det dz/dx| for x (batch, *event), context (batch, context_dim)."""

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log|det dx/dz| for z (batch, *event), context (batch, context_dim)."""


class Standardize(Layer):
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
        """The layer that gives the rows of x (n, *event) zero mean and unit variance; a constant keeps its scale."""
        scale = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(x.amax(0) > x.amin(0), scale, torch.ones_like(scale)))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * self.scale + self.mean, self.scale.log().sum().expand(len(z))


class Whiten(Layer):
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
        """The layer that gives the rows of x (n, *event) zero mean and the identity as covariance.

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


class Affine(Layer):
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
        """The layer that gives x (n, *event) mean 0 and covariance 1, and turns it as near to z (n, *event) as can be.

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


class Logit(Layer):
    """Open bounded elements of the event to the whole line; elements with infinite bounds pass unchanged.

    Shapes: lower, upper (*event), both finite or both infinite for each element.
    Raises ValueError for data outside its bounds.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(lower.shape)
        bounded = lower.isfinite()
        if not bool((lower < upper).all()):
            raise ValueError("every lower bound must be below its upper one")
        self.register_buffer("bounded", bounded)
        self.register_buffer("lower", torch.where(bounded, lower, 0.0))
        self.register_buffer("upper", torch.where(bounded, upper, 1.0))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = torch.where(self.bounded, x, (self.lower + self.upper) / 2)
        _check_inside((inner > self.lower) & (inner < self.upper), "strictly between the bounds")
        z = torch.where(self.bounded, (inner - self.lower).log() - (self.upper - inner).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _inside(torch.lerp(self.lower, self.upper, z.sigmoid()), self.lower, self.upper)
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        """log|dx/dz| = log width + log sigmoid(z) + log sigmoid(-z), which neither over- nor underflows."""
        slope = (self.upper - self.lower).log() + F.logsigmoid(z) + F.logsigmoid(-z)
        return torch.where(self.bounded, slope, 0.0).reshape(len(z), -1).sum(1)


class Softplus(Layer):
    """Open elements above a lower bound to the whole line; elements with an infinite bound pass unchanged.

    Shapes: lower (*event), finite or -inf for each element.
    Raises ValueError for data at or below its bound.
    """

    def __init__(self, lower: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(lower.shape)
        self.register_buffer("bounded", lower.isfinite())
        self.register_buffer("lower", torch.where(lower.isfinite(), lower, 0.0))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = torch.where(self.bounded, x - self.lower, 1.0)
        _check_inside(above > 0, "above the lower bound")
        z = torch.where(self.bounded, above + (-torch.expm1(-above)).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _inside(
            self.lower + torch.logaddexp(z, torch.zeros_like(z)), self.lower, torch.full_like(self.lower, torch.inf)
        )
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        return torch.where(self.bounded, F.logsigmoid(z), 0.0).reshape(len(z), -1).sum(1)


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


def _inside(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """x, where rounding took it to an open bound, a last digit inside it: a sample can be mapped back."""
    return torch.clamp(x, torch.nextafter(lower, upper), torch.nextafter(upper, lower))


def _check_inside(inside: Tensor, where: str) -> None:
    if not bool(inside.all()):
        row, *element = (~inside).nonzero()[0].tolist()
        raise ValueError(f"data must lie {where}; row {row}, element {tuple(element)} does not")
