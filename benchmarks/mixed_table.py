"""A census-like table of numbers and categories: held-out log-likelihood, and classifiers that tell draws from rows.

    pip install sdv
    python benchmarks/mixed_table.py [--seconds 60] [--rows 5000] [--seed 0]

The table is synthetic, so its log-density is known: age, income (positive), hours (whole numbers), city, married, and
education (5 levels), each of which depends on others. Beside the flow, with the defaults on one thread, stands a
Gaussian for each combination of the categories, of age, log income and hours, with the frequencies of these
combinations; its covariances are drawn towards the common one by as many rows as columns. Where SDV is installed, its
GaussianCopula and CTGAN stand there too, with their defaults; they draw rows and give no likelihood. The classifier is
that of `ffjord_kit.metrics.classifier_test`: 0.5 is chance. It sees all columns, and then one at a time: draws pass in
a column if p is at least 0.05, as 95 % of true draws do.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from command import run
from scipy.special import expit, log_expit, log_softmax
from scipy.stats import multivariate_normal, norm, poisson

from ffjord_kit import FFJORD, Integer, Positive
from ffjord_kit.metrics import classifier_test

HELD_OUT = 5_000
LEVEL = 0.05  # of the tests of single columns
CITIES = np.array(["Bergen", "Oslo", "Tromso"], dtype=object)
CITY_SHARE = np.log([0.3, 0.5, 0.2])
DEGREES = np.array(["doctor", "master", "none", "primary", "secondary"], dtype=object)
WORTH = np.array([0.9, 0.6, -0.4, -0.2, 0.1])  # of a degree, in log income
MEAN_AGE, SPREAD_AGE = np.array([45.0, 38.0, 52.0]), np.array([15.0, 11.0, 17.0])
CATEGORIES, NUMBERS = ["city", "married", "education"], ["age", "income", "hours"]


def education_logits(age: np.ndarray, city: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of the degrees, (n, 5)."""
    young, capital = (age - 40) / 15, (city == 1) * 1.0
    columns = [
        -1.5 + 0.5 * capital,
        0.2 - 0.4 * young + 0.6 * capital,
        -1.0 + 0.8 * young,
        0.7 * young,
        0.8 - 0.2 * young,
    ]
    return log_softmax(np.stack([part + 0 * age for part in columns], axis=1), axis=1)


def married_logit(age: np.ndarray, city: np.ndarray) -> np.ndarray:
    """Return the logit of being married."""
    return 2.5 - ((age - 48) / 14) ** 2 - 0.8 * (city == 1)


def income_law(age: np.ndarray, degree: np.ndarray, married: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of log income."""
    return 10.2 + WORTH[degree] + 0.02 * (age - 40) - 0.0012 * (age - 45) ** 2 + 0.1 * married, 0.3 + 0.15 * (
        degree < 2
    )


def hours_mean(age: np.ndarray, married: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """Return the mean of the hours."""
    return 36 - 8 * expit((age - 64) / 3) * 3.5 - 3 * married + 4 * (degree < 2)


def draw(rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw a table."""
    city = rng.choice(3, rows, p=np.exp(CITY_SHARE))
    age = MEAN_AGE[city] + SPREAD_AGE[city] * rng.normal(size=rows)
    shares = np.exp(education_logits(age, city)).cumsum(axis=1)
    degree = (rng.random(rows)[:, None] > shares[:, :-1]).sum(axis=1)
    married = rng.random(rows) < expit(married_logit(age, city))
    mean, spread = income_law(age, degree, married)
    return pd.DataFrame({
        "age": age, "income": np.exp(mean + spread * rng.normal(size=rows)),
        "hours": rng.poisson(hours_mean(age, married, degree)), "city": CITIES[city], "married": married,
        "education": DEGREES[degree],
    })  # fmt: skip


def log_prob(table: pd.DataFrame) -> np.ndarray:
    """Return the true log-density of rows, nats; with counting measure for hours and categories."""
    city, degree = np.searchsorted(CITIES, table.city), np.searchsorted(DEGREES, table.education)
    age, married, income = table.age.to_numpy(), table.married.to_numpy(), table.income.to_numpy()
    mean, spread = income_law(age, degree, married)
    logit = married_logit(age, city)
    return (
        CITY_SHARE[city] + norm.logpdf(age, MEAN_AGE[city], SPREAD_AGE[city])
        + education_logits(age, city)[np.arange(len(age)), degree] + log_expit(np.where(married, logit, -logit))
        + norm.logpdf(np.log(income), mean, spread) - np.log(income)
        + poisson.logpmf(table.hours.to_numpy(), hours_mean(age, married, degree))
    )  # fmt: skip


class Gaussians:
    """A Gaussian for each combination of the categories, and their frequencies."""

    def __init__(self, table: pd.DataFrame) -> None:
        x, cell = as_numbers(table), cells(table)
        self.levels, self.cells = len(CITIES) * 2 * len(DEGREES), {}
        common, size = np.cov(x.T), x.shape[1]
        for key in range(self.levels):
            own = x[cell == key]
            mean = (own.sum(0) + x.mean(0)) / (len(own) + 1)
            spread = (own - mean).T @ (own - mean)
            covariance = (spread + size * common) / (len(own) + size)
            self.cells[key] = (len(own) + 1) / (len(x) + self.levels), mean, covariance

    def log_prob(self, table: pd.DataFrame) -> np.ndarray:
        """Return log-densities, nats."""
        x, cell, result = as_numbers(table), cells(table), np.empty(len(table))
        for key, (share, mean, covariance) in self.cells.items():
            rows = cell == key
            if rows.any():
                result[rows] = math.log(share) + multivariate_normal.logpdf(x[rows], mean, covariance)
        return result - x[:, 1]  # log income's density to that of income

    def sample(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows as numbers, categories by their places."""
        shares = np.array([share for share, _, _ in self.cells.values()])
        keys = rng.choice(self.levels, rows, p=shares / shares.sum())
        x = np.stack([rng.multivariate_normal(*self.cells[key][1:]) for key in keys])
        x[:, 2] = np.maximum(np.round(x[:, 2]), 0)
        return np.column_stack([x, keys // 10, keys // 5 % 2, keys % 5])


def as_numbers(table: pd.DataFrame) -> np.ndarray:
    """Return age, log income and hours."""
    return np.column_stack([table.age, np.log(table.income), table.hours]).astype(np.float64)


def cells(table: pd.DataFrame) -> np.ndarray:
    """Return the number of the combination of categories."""
    city, degree = np.searchsorted(CITIES, table.city), np.searchsorted(DEGREES, table.education)
    return 10 * city + 5 * table.married.to_numpy().astype(int) + degree


def coded(table: pd.DataFrame) -> np.ndarray:
    """Return rows as numbers, categories by their places."""
    keys = cells(table)
    return np.column_stack([as_numbers(table), keys // 10, keys // 5 % 2, keys % 5])


def synthesizers(train: pd.DataFrame) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield name, CPU seconds of training and draws of SDV's synthesizers; nothing where SDV is missing."""
    try:
        from sdv.metadata import Metadata
        from sdv.single_table import CTGANSynthesizer, GaussianCopulaSynthesizer
    except ImportError:
        return
    metadata = Metadata.detect_from_dataframe(train)
    for name, kind in (("SDV GaussianCopula", GaussianCopulaSynthesizer), ("SDV CTGAN", CTGANSynthesizer)):
        begun, model = time.process_time(), kind(metadata)
        model.fit(train)
        yield name, time.process_time() - begun, coded(model.sample(HELD_OUT))


def with_error(values: np.ndarray) -> str:
    """Return the mean with its standard error."""
    return f"{values.mean():.4f} ± {values.std() / math.sqrt(len(values)):.4f}"


def told_apart(x: np.ndarray, y: np.ndarray) -> str:
    """Return the cells of a table that say how well classifiers tell two sets of rows apart."""
    result = classifier_test(x, y)
    names = ["age", "income", "hours", *CATEGORIES]
    failed = [name for j, name in enumerate(names) if classifier_test(x[:, [j]], y[:, [j]]).p_value < LEVEL]
    passed = f"{len(names) - len(failed)} of {len(names)}" + (f" (not {', '.join(failed)})" if failed else "")
    return f"{result.statistic:.3f} (p = {result.p_value:.2g}) | {passed}"


def main() -> None:
    """Fit both models, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=5_000, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the fit; the data do not change")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    train, test = draw(given.rows, rng), draw(HELD_OUT, rng)
    begun = time.process_time()
    fields = {"columns": {"income": Positive(), "hours": Integer()}, "max_seconds": given.seconds}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FFJORD(**fields, random_state=given.seed).fit(train)
    spent = time.process_time() - begun
    draws, gaussians, rows = model.sample(HELD_OUT, random_state=0), Gaussians(train), coded(test)
    score, other, truth = model.score_samples(test), gaussians.log_prob(test), log_prob(test)
    print(f"{given.rows} rows, {HELD_OUT} held out; the {model.model_.density} report")
    print("| | seconds | held-out log-likelihood | below the truth | told from held-out rows | columns that pass |")
    print("|---|---|---|---|---|---|")
    half = HELD_OUT // 2
    print(f"| truth | | {with_error(truth)} | | {told_apart(rows[:half], rows[half:])} |")
    apart = told_apart(rows, coded(draws))
    print(f"| flow | {spent:.0f} | {with_error(score)} | {with_error(truth - score)} | {apart} |")
    apart = told_apart(rows, gaussians.sample(HELD_OUT, np.random.default_rng(0)))
    print(f"| Gaussians | | {with_error(other)} | {with_error(truth - other)} | {apart} |")
    for name, seconds, drawn in synthesizers(train):
        print(f"| {name} | {seconds:.0f} | | | {told_apart(rows, drawn)} |")


if __name__ == "__main__":
    run(main)
