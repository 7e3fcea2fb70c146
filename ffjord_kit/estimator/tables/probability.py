"""The probability of categories, fitted one after another by scikit-learn and copied into a transform.

Of three candidates for a factor the one with the least log-loss on held-out rows is taken: the frequencies of the
levels, a logistic regression, and a network of one hidden layer, which is trained until held-out rows get no better.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from ffjord_kit.transforms.categorical import HIDDEN, Categorical, Factor, known_numbers

FIT_ROWS, HELD_OUT, FEWEST_HELD_OUT = 20_000, 0.15, 20
EPOCHS, PATIENCE, LEAST_GAIN, BATCH, RATE = 100, 5, 1e-4, 200, 5e-3
QUESTIONS, JOINT = 4, 0.5  # of a row, up to FIT_ROWS in all; share of those of a joint density
NETWORK_FROM = 500  # rows: fewer say nothing of a network
NEVER = -50.0  # logit of a level that a classifier has not seen; the share of the frequencies is left


def fit_categories(given: Tensor, codes: Tensor, sizes: Sequence[int]) -> Categorical:
    """Fit the probability of categories, column by column.

    Args:
        given: Scaled contexts u, shape (n, m).
        codes: One-hot codes of all categories, shape (n, sum of the sizes).
        sizes: Number of levels of each category.

    Returns:
        The transform.
    """
    factors, known, order = [], given, torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
    for one_hot in codes.split(list(sizes), dim=1):
        factors.append(_factor(known[order], one_hot[order]))
        known = torch.cat([known, one_hot], dim=1)
    return Categorical(factors)


def fit_asked_factors(
    values: Tensor,
    there: Tensor,
    codes: Tensor,
    observed: Tensor,
    sizes: Sequence[int],
    circles: Sequence[int] = (),
) -> list[Factor]:
    """Fit the probability of each category given any columns, on random questions of the rows.

    Args:
        values: Scaled numbers, shape (n, d).
        there: 1 where a number is observed, shape (n, d).
        codes: One-hot codes of all categories, shape (n, sum of the sizes).
        observed: 1 where a category is observed, shape (n, categories).
        sizes: Number of levels of each category.
        circles: Columns of numbers that are angles.

    Returns:
        A factor for each category, of the masks, values and codes that are known.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(codes), generator=generator)
    factors = []
    for place, size in enumerate(sizes):
        rows = order[observed[order, place] > 0]
        questions = max(1, min(QUESTIONS, FIT_ROWS // max(1, len(rows))))
        rows = rows.repeat_interleave(questions)
        known = _some_known(torch.cat([there, observed], dim=1)[rows], values.shape[1], place, generator)
        numbers, levels = known.split([values.shape[1], len(sizes)], dim=1)
        levels = levels.repeat_interleave(torch.tensor(list(sizes)), dim=1)
        given = torch.cat([known_numbers(numbers, values[rows], circles), levels * codes[rows]], dim=1)
        start = sum(sizes[:place])
        factors.append(_factor(given, codes[rows, start : start + size], questions))
    return factors


def _some_known(there: Tensor, numbers: int, place: int, generator: torch.Generator) -> Tensor:
    """Draw what questions let a category know: in half of them the categories before it, as in a joint density.

    Args:
        there: 1 where a number or a category is observed, shape (n, numbers + categories).
        numbers: Number of columns of numbers.
        place: Place of the category among the categories.
        generator: Source of the draws.

    Returns:
        1 where one is known, shape (n, numbers + categories).
    """
    rows, columns = there.shape
    position = torch.arange(columns)
    before = ((position >= numbers) & (position < numbers + place)).expand(rows, columns)
    share, draws = torch.rand(rows, 1, generator=generator), torch.rand(rows, columns, generator=generator)
    joint = torch.rand(rows, 1, generator=generator) < JOINT
    chosen = torch.where(joint, before, draws < share)
    return there * (chosen & (position != numbers + place))


def _factor(given: Tensor, one_hot: Tensor, questions: int = 0) -> Factor:
    """Return the factor of one category, fitted to rows in a random order.

    Args:
        given: f, shape (n, m).
        one_hot: Codes of the category, shape (n, K).
        questions: Number of rows that each row of the data makes, one after another; a network, whose best epoch is
            chosen among many, must then lead by its standard error. 0 where rows are as they came.

    Returns:
        The factor.
    """
    constant, rows = Factor.of_counts(one_hot.sum(0), given.shape[1]), slice(0, FIT_ROWS)
    held_out = int(HELD_OUT * len(given[rows]))
    if not given.shape[1] or held_out < FEWEST_HELD_OUT:
        return constant
    x, y = given[rows].numpy(), one_hot[rows].argmax(1).numpy()
    judges = given[:held_out], one_hot[:held_out]
    if len(np.unique(y[held_out:])) < 2:
        return constant
    best, least = constant, _loss(Factor.of_counts(one_hot[held_out:].sum(0), given.shape[1]), *judges)
    rival = constant
    trial = _regression(x[held_out:], y[held_out:], constant)
    if (loss := _loss(trial, *judges)) < least:
        best, least, rival = _regression(x, y, constant), loss, trial
    trial, loss = _network(x[held_out:], y[held_out:], constant, judges)
    margin = _error_of_lead(trial, rival, *judges) * math.sqrt(questions)
    return trial if loss < least - margin else best


def _loss(factor: Factor, given: Tensor, one_hot: Tensor) -> float:
    """Return the mean log-loss."""
    return -float((factor.log_prob(given) * one_hot).sum(1).mean())


def _error_of_lead(factor: Factor, other: Factor, given: Tensor, one_hot: Tensor) -> float:
    """Return the standard error of the difference of two mean log-losses over the same rows."""
    difference = ((factor.log_prob(given) - other.log_prob(given)) * one_hot).sum(1)
    return float(difference.std()) / math.sqrt(len(difference))


def _regression(x: np.ndarray, y: np.ndarray, constant: Factor) -> Factor:
    """Return a logistic regression as a factor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=200).fit(x, y)
    linear, bias = _for_levels(model, model.coef_.T, model.intercept_, constant)
    return constant._replace(linear=linear, bias=bias)


def _network(x: np.ndarray, y: np.ndarray, constant: Factor, judges: tuple[Tensor, Tensor]) -> tuple[Factor, float]:
    """Return the network that suits held-out rows best, and its log-loss there; infinite without a network."""
    best, least, stale = constant, math.inf, 0
    for trial in _epochs(x, y, constant):
        loss, stale = _loss(trial, *judges), stale + 1
        if loss < least:
            stale = 0 if loss < least - LEAST_GAIN else stale
            best, least = trial, loss
        if stale == PATIENCE:
            break
    return best, least


def _epochs(x: np.ndarray, y: np.ndarray, constant: Factor) -> Iterator[Factor]:
    """Yield a network as a factor after each epoch of training."""
    if len(x) < NETWORK_FROM:
        return
    model = MLPClassifier((HIDDEN,), activation="tanh", batch_size=BATCH, learning_rate_init=RATE, random_state=0)
    classes = np.unique(y)
    for _ in range(EPOCHS):
        model.partial_fit(x, y, classes=classes)
        outer, bias = _for_levels(model, model.coefs_[1], model.intercepts_[1], constant)
        inner, inner_bias = torch.tensor(model.coefs_[0]), torch.tensor(model.intercepts_[0])
        yield constant._replace(inner=inner, inner_bias=inner_bias, outer=outer, bias=bias)


def _for_levels(model: Any, weight: np.ndarray, bias: np.ndarray, constant: Factor) -> tuple[Tensor, Tensor]:
    """Return weights (m, K) and biases (K,) of all levels from those of a classifier; of two it has one column."""
    if weight.shape[1] == 1:
        weight, bias = np.concatenate([0 * weight, weight], axis=1), np.array([0.0, float(bias[0])])
    size = len(constant.frequency)
    every = torch.zeros(len(weight), size, dtype=torch.float64), torch.full((size,), NEVER, dtype=torch.float64)
    for whole, part in zip(every, (weight, bias), strict=True):
        whole[..., model.classes_] = torch.tensor(part, dtype=torch.float64)
    return every
