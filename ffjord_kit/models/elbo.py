r"""The evidence lower bound of latent models, as an objective, as a validation, and as a number for each series.

ELBO = E_q[ log p(x | z) ] - KL(q || N(0, I))  <=  log p(x),
KL = sum_j (m_j^2 + s_j^2 - 1) / 2 - log s_j          for q = N(m, s^2)

In training q is that of the recognition network; a series is scored with its own posterior (`posterior.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.models.latent_network import LatentNetwork
from ffjord_kit.models.posterior import Posterior, laplace
from ffjord_kit.models.series import lengths, tails, trimmed
from ffjord_kit.noise import keyed_generator, standard_normal
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.training import Workers
from ffjord_kit.training.validation import ValidationScore

NOISE_STEPS = 3  # of EM
# Of the rows of a series that recognition reads in training. On 1,000 spirals of 30 points the extrapolation has an
# error of 0.19 after 100 s; where all rows are read, the bound of held-out series falls after half of the time: 0.24.
LEAST_SHARE, CONSISTENCY = 0.3, 0.1
LEFT_OUT = 0.1  # share of the held-out series that do not judge


@dataclass(frozen=True)
class ELBO(Objective[LatentNetwork]):
    """Maximise the evidence lower bound, one draw of z(0) for each series and step.

    Recognition reads a random part of each series, and the bound is that of the whole series, as any q gives one. A
    network that reads the same values again and again learns their noise by heart.

    The loss also has a small multiple of

        -E[ log q(z(t_j) | x_j, x_{j+1}, ...) ],    j a random row:

    recognition, which reads the rest of a series from a row on, should find the state that is on the way there. So a
    path stays among the states at which other series begin, from where the dynamics are known, and goes on beyond the
    last row as they do.

    Args:
        least_share: Least share of the rows that recognition reads, above 0; 1 for all of them.
        consistency: Multiple of the second term; 0 for none. A prior with a flow has none.

    Raises:
        ValueError: If the share is not above 0, or above 1, or the multiple is negative.

    Example:
        >>> ELBO().name
        'elbo'
    """

    least_share: float = LEAST_SHARE
    consistency: float = CONSISTENCY
    name = "elbo"

    def __post_init__(self) -> None:
        if not 0 < self.least_share <= 1 or self.consistency < 0:
            raise ValueError(
                f"least_share must be above 0 and at most 1, and consistency not negative; got {self.least_share} and "
                f"{self.consistency}"
            )

    def loss(self, model: LatentNetwork, batch: Batch, generator: torch.Generator) -> Loss:
        values, times = trimmed(batch)
        mean, scale = model.posterior(thinned(values, self.least_share, generator), times)
        start = mean + scale * standard_normal(tuple(mean.shape), mean, generator)
        likelihoods, path = model.log_likelihood_and_path(start, values, times)
        likelihood = likelihoods.mean()
        kl = (0.5 * (mean.square() + scale.square() - 1) - scale.log()).sum(1).mean()
        terms = {"log_likelihood": likelihood, "kl": kl}
        if not self.consistency or model.prior is not None:
            return Loss(kl - likelihood, terms)
        surprise = self._surprise(model, path, values, times, generator)
        return Loss(kl - likelihood + self.consistency * surprise, {**terms, "surprise": surprise})

    def _surprise(
        self, model: LatentNetwork, path: Tensor, values: Tensor, times: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return -log q of the state at a random row, given the series from there on; the mean, but for a constant."""
        share = torch.rand(len(values), generator=generator, device=generator.device).to(times)
        row = (1 + share * (lengths(times) - 2)).long()
        rest, clock = tails(values, times, row)
        mean, scale = model.posterior(thinned(rest, self.least_share, generator), clock)
        z = path[torch.arange(len(path), device=path.device), row]
        return (0.5 * ((z - mean) / scale).square() + scale.log()).sum(1).mean()


def thinned(values: Tensor, least_share: float, generator: torch.Generator) -> Tensor:
    """Return series without some of their rows; the first one stays.

    Args:
        values: Values, NaN where missing, shape (n, T, channels).
        least_share: Least share of the rows that stay; it is drawn for each series, up to 1.
        generator: Source of the draws.

    Returns:
        Values, NaN in the rows that are gone, shape (n, T, channels).
    """
    n, rows, _ = values.shape
    share, place = (torch.rand(n, size, 1, generator=generator, device=generator.device) for size in (1, rows))
    gone = (place > least_share + (1 - least_share) * share).to(values.device)
    gone[:, 0] = False
    return torch.where(gone, torch.nan, values)


@torch.no_grad()
def elbo(model: LatentNetwork, batch: Batch, posterior: Posterior, *, draws: int, seed: int = 0) -> Tensor:
    """Return the bound of each series, nats, the mean over several draws of z(0).

    Args:
        model: The network.
        batch: Padded series.
        posterior: The distribution q of z(0) of each series.
        draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Bounds in float64, shape (n,).
    """
    values, times = trimmed(batch)
    starts = posterior.draw(draws, keyed_generator(torch.device("cpu"), seed, "elbo"))
    likelihoods = torch.stack([model.log_likelihood(start, values, times).double() for start in starts])
    return likelihoods.mean(0) - posterior.divergence().double()


@torch.no_grad()
def fit_noise(model: LatentNetwork, batch: Batch, *, draws: int = 32) -> None:
    """Set the noise of the channels to the mean square error of other series than those of the fit.

    These are the M-steps of the EM algorithm for the noise. A fit of few series learns some of their noise by heart,
    and its own estimate is then too small. A channel without values keeps its own.

    Args:
        model: The network; its noise is changed.
        batch: Padded series.
        draws: Draws of z(0) for each.
    """
    generator = keyed_generator(torch.device("cpu"), "noise")
    for _ in range(NOISE_STEPS):
        errors = _errors(model, batch, draws, generator) / model.scale
        log_noise = 0.5 * errors.square().nanmean((0, 1, 2)).log()
        model.log_noise.copy_(torch.where(log_noise.isnan(), model.log_noise, log_noise))


@torch.no_grad()
def fit_residual(model: LatentNetwork, batch: Batch, *, draws: int = 8) -> None:
    """Fit what the dynamics leave over, if the network has a residual.

    Args:
        model: The network; its residual is changed.
        batch: Padded series.
        draws: Draws of z(0) for each.
    """
    if model.residual is not None:
        errors = _errors(model, batch, draws, keyed_generator(torch.device("cpu"), "residual"))
        model.residual.fit(trimmed(batch)[1], errors.double())


def _errors(model: LatentNetwork, batch: Batch, draws: int, generator: torch.Generator) -> Tensor:
    """Return what draws of z leave over, in the units of the data, shape (draws, n, T, channels)."""
    values, times = trimmed(batch)
    starts = laplace(model, batch).draw(draws, generator)
    return torch.stack([values - model.decode(model.path(start, times)) for start in starts])


@dataclass(frozen=True)
class ELBOValidation:
    """Score a network by the bound of held-out series, without the worst tenth of them.

    A few series of which the network knows nothing yet have bounds that are off by hundreds of nats. Their mean would
    choose the weights by these alone.

    Args:
        model: The network.
        batch: Padded held-out series.
        draws: Draws of z(0) for each.
    """

    model: LatentNetwork
    batch: Batch
    draws: int = 4

    def __call__(self, workers: Workers, pieces: int) -> ValidationScore:
        """Score all series.

        Args:
            workers: Workers of the fit; each scores all series.
            pieces: Not used: all series are scored at once.

        Returns:
            The mean of the negative bound with its standard error over the series that count.
        """
        bounds = elbo(self.model, self.batch, laplace(self.model, self.batch), draws=self.draws)
        bounds = bounds.sort(descending=True).values[: len(bounds) - int(LEFT_OUT * len(bounds))]
        return ValidationScore(-float(bounds.mean()), float(bounds.std()) / math.sqrt(len(bounds)), None)
