r"""The evidence lower bound of latent models, as an objective, as a validation, and as a number for each series.

    ELBO = E_q[ log p(x | z) ] - KL(q || N(0, I))  <=  log p(x),
    KL = sum_j (m_j^2 + s_j^2 - 1) / 2 - log s_j          for q = N(m, s^2)

It is a bound for every q, so also for one that has read only the beginning of a series: then z must carry what
predicts the rest. Training cuts half of the series at a random row in this way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.models.latent_network import LatentNetwork
from ffjord_kit.models.series import lengths, trimmed
from ffjord_kit.noise import keyed_generator, standard_normal
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.training import Workers
from ffjord_kit.training.validation import ValidationScore


@dataclass(frozen=True)
class ELBO(Objective[LatentNetwork]):
    """Maximise the evidence lower bound, one draw of z(0) for each series and step.

    Args:
        cut: Whether the recognition reads only a beginning of each second series, so that the rest is extrapolated.

    Example:
        >>> ELBO().name
        'elbo'
    """

    cut: bool = True
    name = "elbo"

    def loss(self, model: LatentNetwork, batch: Batch, generator: torch.Generator) -> Loss:
        log_likelihood, divergence = bound_terms(model, batch, generator, cut=self.cut)
        likelihood, kl = log_likelihood.mean(), divergence.mean()
        return Loss(kl - likelihood, {"log_likelihood": likelihood, "kl": kl})


def bound_terms(
    model: LatentNetwork, batch: Batch, generator: torch.Generator, *, cut: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the two terms of the bound of each series, by one draw of z(0).

    Args:
        model: The network.
        batch: Padded series.
        generator: Source of the draw.
        cut: Whether the recognition reads only a beginning of each second series.

    Returns:
        log p(series | z(0)) and KL(q || N(0, I)), nats, shape (n,) each.
    """
    values, times = trimmed(batch)
    mean, scale = model.posterior(*(beginnings(values, times, generator) if cut else (values, times)))
    start = mean + scale * standard_normal(tuple(mean.shape), mean, generator)
    divergence = (0.5 * (mean.square() + scale.square() - 1) - scale.log()).sum(1)
    return model.log_likelihood(start, values, times), divergence


def beginnings(values: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return each series cut at a random row with the probability 1/2, else whole.

    Args:
        values: Values, shape (n, T, channels).
        times: Times, shape (n, T).
        generator: Source of the rows.

    Returns:
        Values, NaN after the cut, and times, which stand still there.
    """
    share = 2 * torch.rand(len(times), generator=generator).to(times.device)
    last = (share.clamp(max=1) * lengths(times)).long().minimum(lengths(times) - 1)[:, None]
    after = torch.arange(times.shape[1], device=times.device) > last
    return values.masked_fill(after[..., None], torch.nan), times.minimum(times.gather(1, last))


@torch.no_grad()
def elbo(model: LatentNetwork, batch: Batch, *, draws: int, seed: int = 0) -> Tensor:
    """Return the bound of each series, nats, the mean over several draws of z(0).

    Args:
        model: The network.
        batch: Padded series.
        draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Bounds in float64, shape (n,).
    """
    generator = keyed_generator(torch.device("cpu"), seed, "elbo")
    terms = [bound_terms(model, batch, generator) for _ in range(draws)]
    return torch.stack([(likelihood - kl).double() for likelihood, kl in terms]).mean(0)


@dataclass(frozen=True)
class ELBOValidation:
    """Score a network by the bound of held-out series.

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
            The mean of the negative bound with its standard error over series.
        """
        bounds = elbo(self.model, self.batch, draws=self.draws)
        return ValidationScore(-float(bounds.mean()), float(bounds.std()) / math.sqrt(len(bounds)), None)
