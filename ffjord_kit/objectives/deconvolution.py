r"""Rows with measurement errors of known size: the likelihood of what was observed, of a density of true values.

    log p_obs(y) = log E[p(y - s n)],   n ~ N(0, 1)   ~   log 1/K sum_k p(y - s n_k)

The mean over K draws makes the estimate too low by about its variance / 2 K. Draws are antithetic pairs of quasi-random
points (Sobol), scrambled by the generator, which fill the normal distribution evenly.

References:
    Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519 (the bound).
    Owen 1998, Scrambling Sobol' and Niederreiter-Xing points, Journal of Complexity 14.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ffjord_kit.data import Batch

EDGE = 1e-6  # of the uniform numbers, whose normal quantile must be finite


def noise_removed(batch: Batch, draws: int, generator: torch.Generator) -> Batch:
    """Return rows less draws of their measurement errors, all rows for one draw after another.

    Args:
        batch: Rows, shape (n, *event), and the deviations of their errors.
        draws: Number K of draws of each row.
        generator: Source of the draws.

    Returns:
        K n rows; the batch itself where rows have no errors.
    """
    if batch.noise is None:
        return batch
    many = batch.repeat(draws)
    noise = normal_draws(len(batch), batch.x[0].numel(), draws, generator).to(batch.x)
    return many.with_x(many.x - many.noise * noise.reshape(many.x.shape))  # type: ignore[operator]


def mean_over_draws(log_prob: Tensor, rows: int) -> Tensor:
    """Return the log of the mean density over the draws of each row.

    Args:
        log_prob: Log-densities of all rows for one draw after another, shape (K n,).
        rows: Number n of rows.

    Returns:
        Logarithms, shape (n,).
    """
    if len(log_prob) == rows:
        return log_prob
    draws = len(log_prob) // rows
    return log_prob.reshape(draws, rows).logsumexp(0) - math.log(draws)


def normal_draws(rows: int, columns: int, draws: int, generator: torch.Generator) -> Tensor:
    """Return draws of the standard normal distribution, antithetic in pairs, evenly spread for each row.

    Args:
        rows: Number n of rows.
        columns: Number d of columns.
        draws: Number K of draws of each row.
        generator: Source of the scrambling.

    Returns:
        Draws in float64, shape (K, n, d).
    """
    half = (draws + 1) // 2
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    points = torch.quasirandom.SobolEngine(columns, scramble=True, seed=seed).draw(half, dtype=torch.float64)
    shift = torch.rand(rows, columns, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    uniform = (points[:, None] + shift).remainder(1.0).clamp(EDGE, 1 - EDGE)
    normal = torch.special.ndtri(uniform)
    return torch.cat([normal, -normal])[:draws]
