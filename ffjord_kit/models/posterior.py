r"""The posterior of the latent state of each series: normal, with the curvature of its own likelihood.

Recognition reads a series in one go, and is rough where the fit had few series. From its mean and some draws of the
prior, Gauss-Newton steps climb to the mode of the joint density, and the best of them is taken:

    z <- z + (H + D)^-1 grad,    grad = d/dz [ log p(x | z) - |z|^2 / 2 ],    H = I + J^T J,

J is the Jacobian of all that the likelihood compares with what was seen: means over the noise, and logarithms of the
intensities at events, for both of which J^T J is the information. D, a multiple of the diagonal of H, grows where a
step did not climb, and falls where it did (Levenberg and Marquardt). The posterior is N(z, H^-1), which is exact where
everything is linear. Each series has steps of its own, whatever others are in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.models.series import trimmed
from ffjord_kit.noise import keyed_generator, standard_normal

if TYPE_CHECKING:
    from ffjord_kit.data import Batch
    from ffjord_kit.models.latent_network import LatentNetwork

STARTS = 4  # of the climb: the mean of the recognition, and draws of the prior
FIRST_STEPS, LAST_STEPS = 6, 10  # from all starts, and from the best one
EASIER, HARDER = 0.2, 5.0  # factors of the damping after a step that climbed, and one that did not
MOST_SLOPE = 1e5  # noises of an observation for a latent state's unit; a path that explodes has more
LEAST_DAMPING, MOST_DAMPING = 1e-6, 1e6


class Posterior(NamedTuple):
    """A normal distribution of the latent state of each series.

    Attributes:
        mean: Mean, shape (n, latent_dim).
        factor: Triangular factor F of the covariance F F^T, shape (n, latent_dim, latent_dim).

    Example:
        >>> posterior = Posterior(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2))
        >>> posterior.divergence()
        tensor([0., 0., 0.])
    """

    mean: Tensor
    factor: Tensor

    def draw(self, draws: int, generator: torch.Generator) -> Tensor:
        """Draw latent states.

        Args:
            draws: Draws for each series.
            generator: Source of the draws.

        Returns:
            States, shape (draws, n, latent_dim).
        """
        noise = standard_normal((draws, *self.mean.shape), self.mean, generator)
        return self.mean + (self.factor @ noise[..., None])[..., 0]

    def divergence(self) -> Tensor:
        """Return KL(N(m, F F^T) || N(0, I)) of each series, nats, shape (n,)."""
        diagonal = self.factor.diagonal(dim1=1, dim2=2)
        squares = self.factor.square().sum((1, 2)) + self.mean.square().sum(1)
        return 0.5 * (squares - self.mean.shape[1]) - diagonal.log().sum(1)


@torch.no_grad()
def laplace(network: LatentNetwork, batch: Batch) -> Posterior:
    """Return the posterior of each series, by Gauss-Newton steps to its mode.

    Args:
        network: The network.
        batch: Padded series.

    Returns:
        The posterior.
    """
    values, times = trimmed(batch)
    mean = network.posterior(values, times)[0]
    prior = standard_normal((STARTS - 1, 1, mean.shape[1]), mean, keyed_generator(mean.device, "starts"))
    z = torch.cat([mean[None], prior.expand(-1, len(mean), -1)])
    many = _Climb(network, values.repeat(STARTS, 1, 1), times.repeat(STARTS, 1), z.flatten(0, 1)).run(FIRST_STEPS)
    best = many.height.unflatten(0, z.shape[:2]).argmax(0) * len(mean) + torch.arange(len(mean), device=mean.device)
    last = _Climb(network, values, times, many.z[best]).run(LAST_STEPS)
    root = torch.linalg.cholesky(last.curvature)  # H = R R^T, and H^-1 = R^-T R^-1
    inverse = torch.linalg.solve_triangular(root, torch.eye(root.shape[1]).to(root), upper=False)
    return Posterior(last.z, inverse.mT.to(last.z))


class _Climb:
    """Gauss-Newton steps of many latent states at once, each with a damping of its own."""

    def __init__(self, network: LatentNetwork, values: Tensor, times: Tensor, z: Tensor) -> None:
        self.network, self.values, self.times, self.z = network, values, times, z
        self.height, self.gradient = self._slope(z)
        self.curvature, self.damping = self._curvature(), torch.ones_like(self.height)

    def run(self, steps: int) -> _Climb:
        for _ in range(steps):
            self._step()
        return self

    def _step(self) -> None:
        diagonal = self.curvature.diagonal(dim1=1, dim2=2)
        damped = self.curvature + torch.diag_embed(self.damping[:, None] * diagonal)
        new = self.z + torch.linalg.solve(damped, self.gradient.double()).to(self.z)
        height, gradient = self._slope(new)
        higher = height > self.height
        self.z = torch.where(higher[:, None], new, self.z)
        self.gradient = torch.where(higher[:, None], gradient, self.gradient)
        self.height = torch.where(higher, height, self.height)
        factor = torch.where(higher, EASIER, HARDER)
        self.damping = (self.damping * factor).clamp(LEAST_DAMPING, MOST_DAMPING)
        self.curvature = self._curvature()

    def _slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of series and latent state, and its gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            height = self.network.log_likelihood(z, self.values, self.times) - 0.5 * z.square().sum(1)
            (gradient,) = torch.autograd.grad(height.sum(), z)
        return height.detach(), gradient

    def _curvature(self) -> Tensor:
        """Return I + J^T J of each row in float64, where its rounding stays below I."""
        slopes = self.network.slopes(self.z, self.values, self.times).double()
        slopes = slopes.nan_to_num().clamp(-MOST_SLOPE, MOST_SLOPE)
        return torch.eye(self.z.shape[1]).to(slopes) + torch.einsum("ntif,ntjf->nij", slopes, slopes)
