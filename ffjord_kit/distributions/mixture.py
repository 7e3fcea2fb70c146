r"""A mixture of normal distributions with full covariances, fitted by EM.

The number of components minimises the BIC.

References:
    Schwarz 1978, Estimating the dimension of a model, Annals of Statistics 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.distributions.base import Base
from ffjord_kit.noise import fresh_generator, standard_normal
from ffjord_kit.weights import resampled

FIT_ROWS = 20_000
MIXTURE_COMPONENTS, ROWS_OF_A_COMPONENT = 8, 10
MIXTURE_RIDGE = 1e-3  # added to the variances
EM_STARTS = 3  # EM ends in local optima


class GaussianMixture(Base):
    r"""A mixture of normal distributions, p(z) = sum_k w_k N(z; m_k, C_k), which training leaves as it is.

    Args:
        event_shape: Shape of an event of d elements.
        weights: Weights w, shape (k,), k <= MIXTURE_COMPONENTS; one standard normal distribution if None.
        means: Means m, shape (k, d).
        covariances: Covariances C, shape (k, d, d).

    Raises:
        ValueError: If there are too many components.

    Example:
        >>> base = GaussianMixture((1,), torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(2, 1, 1))
        >>> print(f"{base.log_prob(torch.full((1, 1), 2.0)).item():.4f}")
        -1.6118
    """

    weights: Tensor
    means: Tensor
    factors: Tensor  # L^-1 with C = L L^T

    def __init__(
        self,
        event_shape: Sequence[int],
        weights: Tensor | None = None,
        means: Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> None:
        super().__init__()
        size, most = math.prod(event_shape), MIXTURE_COMPONENTS
        self.event_shape = tuple(event_shape)
        if weights is None or means is None or covariances is None:
            weights, means, covariances = torch.ones(1), torch.zeros(1, size), torch.eye(size)[None]
        if len(weights) > most:
            raise ValueError(f"a mixture has at most {most} components; got {len(weights)}")
        eye = torch.eye(size, dtype=means.dtype).repeat(most, 1, 1)
        unused = (0, most - len(weights))  # weight 0: a state of one shape for every number of components
        self.register_buffer("weights", nn.functional.pad(weights, unused))
        self.register_buffer("means", nn.functional.pad(means, (0, 0, *unused)))
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), eye[: len(weights)], upper=False)
        self.register_buffer("factors", torch.cat([inverse, eye[len(weights) :]]))

    @classmethod
    def of(cls, z: Tensor, weight: Tensor | None = None) -> GaussianMixture:
        """Fit a mixture to rows by the EM algorithm, with the number and kind of components of lowest BIC.

        Args:
            z: Rows, shape (n, *event).
            weight: Weights of the rows, by which they are drawn for the fit, shape (n,), or None.

        Returns:
            The mixture.
        """
        z = resampled(z, weight)
        return cls(z.shape[1:], *(part.to(torch.get_default_dtype()) for part in fit_mixture(z.flatten(1))))

    def log_prob(self, z: Tensor) -> Tensor:
        offsets = z.reshape(len(z), 1, -1) - self.means
        whitened = (self.factors @ offsets[..., None]).squeeze(-1)
        log_dets = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = 0.5 * whitened.shape[-1] * math.log(2 * math.pi)
        parts = self.weights.log() + log_dets - 0.5 * whitened.square().sum(-1) - constant
        return parts.logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator = generator or fresh_generator()
        which = self.weights.to(generator.device).multinomial(n, replacement=True, generator=generator)
        which = which.to(self.means.device)
        noise = standard_normal((n, self.means.shape[1], 1), self.means, generator)
        scaled = torch.linalg.solve_triangular(self.factors[which], noise, upper=False).squeeze(-1)
        return (self.means[which] + scaled).reshape(n, *self.event_shape)


def fit_mixture(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normal distributions by EM, of lowest BIC among full and diagonal covariances.

    Args:
        x: Rows, shape (n, d), of a scale near 1.

    Returns:
        Weights (k,), means (k, d) and covariances (k, d, d).

    Example:
        >>> x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> weights, means, _ = fit_mixture(torch.cat([x / 10 - 1, x / 10 + 1]))
        >>> [round(weight, 3) for weight in weights.tolist()], means.flatten().sort().values.round(decimals=1).tolist()
        ([0.5, 0.5], [-1.0, 1.0])
    """
    from sklearn.mixture import GaussianMixture as Mixture  # only here: torch alone starts faster
    from threadpoolctl import threadpool_limits

    rows = x[:: max(1, -(-len(x) // FIT_ROWS))].double().cpu().numpy()
    most = min(MIXTURE_COMPONENTS, max(1, len(rows) // ROWS_OF_A_COMPONENT))
    with threadpool_limits(1):
        fits = [
            Mixture(k, covariance_type=kind, reg_covar=MIXTURE_RIDGE, n_init=EM_STARTS, random_state=0).fit(rows)
            for k in range(1, most + 1)
            for kind in ("full", "diag")
        ]
    best = min(fits, key=lambda fit: fit.bic(rows))
    spread = best.covariances_ if best.covariances_.ndim == 3 else np.stack([np.diag(c) for c in best.covariances_])
    weights, means, covariances = (torch.as_tensor(part).to(x) for part in (best.weights_, best.means_, spread))
    return weights, means, covariances
