"""The command `demo`: two moons and real digits, fitted, compared with two baselines, and drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from ffjord_kit import metrics
from ffjord_kit.cli.output import CONSOLE, plain_table, with_error
from ffjord_kit.cli.plot import TableSubject, draw_table
from ffjord_kit.cli.report import report
from ffjord_kit.cli.sources import LoadedData, load
from ffjord_kit.estimator import FFJORD


@dataclass(frozen=True)
class Exhibit:
    """A data set of the demo.

    Attributes:
        name: Name of the data set.
        train_rows: Number of rows to fit; None for all.
        test_rows: Number of rows to score; None for all.
    """

    name: str
    train_rows: int | None = None
    test_rows: int | None = None


ERROR_ROWS = 16  # rows that the solver's error is measured on
REPORT = "report.html"  # of the first exhibit
EXHIBITS = (Exhibit("moons", 40_000, 5_000), Exhibit("digits"))


def demo(out: str, random_state: int, force: bool) -> None:
    """Fit each data set of the demo, compare the flow with baselines, draw it, and report the first.

    Args:
        out: Folder of the runs, the pictures and the report.
        random_state: Seed of everything.
        force: Whether to replace an earlier demo.

    Raises:
        RunError: If a run is in the folder, and must not be replaced.
    """
    start, folder = time.monotonic(), Path(out)
    for exhibit in EXHIBITS:
        _show(exhibit, folder, random_state, force=force)
    click.echo(f"runs and pictures are in {folder.resolve()}   ({time.monotonic() - start:.0f} s)")
    report(str(folder / EXHIBITS[0].name), None, str(folder / REPORT), None, random_state, force)


def _show(exhibit: Exhibit, folder: Path, seed: int, *, force: bool) -> None:
    """Fit one data set, compare, and draw."""
    train = load(f"{exhibit.name}:train", rows=exhibit.train_rows, seed=seed)
    test = load(f"{exhibit.name}:test", rows=exhibit.test_rows, seed=seed)
    click.echo(f"{exhibit.name}: {len(train.x)} rows to fit, {len(test.x)} held out, {train.x.shape[1]} columns")
    estimator = FFJORD(random_state=seed, verbose=True)
    estimator.fit(train.x, columns=train.columns, run=folder / exhibit.name, force=force, data=train.note)
    _compare(estimator, train, test, seed)
    unseen = (f"rows of {exhibit.name}:test", test)
    subject, pictures = TableSubject(estimator.model_, train, None, seed, unseen), folder / f"{exhibit.name}-pictures"
    paths = list(draw_table(subject, estimator.history_.records, pictures, force=force))
    click.echo(f"{len(paths)} pictures in {pictures}\n")


def _compare(estimator: FFJORD, train: LoadedData, test: LoadedData, seed: int) -> None:
    """Print held-out log-likelihoods; the baselines have the flow's training and validation rows."""
    fitting, validation = estimator.split(train.x)
    mixture = metrics.best_gaussian_mixture(fitting, validation, seed=seed)
    kde = metrics.best_kde(fitting, validation)
    scores = {
        "ffjord_kit flow": estimator.score_samples(test.x),
        f"Gaussian mixture, {mixture.n_components} {mixture.covariance_type}": mixture.score_samples(test.x),
        f"KDE, bandwidth {kde.bandwidth:.3f} deviations": kde.score_samples(test.x),
    }
    _print_scores(scores, test)
    click.echo(f"numerical error of the flow: {estimator.solver_error(test.x[:ERROR_ROWS]):.1e} nats a row")


def _print_scores(scores: Mapping[str, np.ndarray], test: LoadedData) -> None:
    """Print a line for each model, and one for the true density where it is known."""
    truth = None if test.log_prob is None else test.log_prob(test.x)
    table = plain_table("model", "held-out log-likelihood (nats)", "bits/dim", *_divergence_titles(test.log_prob))
    for name, log_prob in {**scores, **({} if truth is None else {"the truth": truth})}.items():
        row = [name, with_error(log_prob), f"{metrics.bits_per_dim(-float(log_prob.mean()), test.x.shape[1]):.4f}"]
        if truth is not None:
            kl, error = metrics.kl_divergence(truth, log_prob)
            row.append(f"{kl:.4f} ± {error:.4f}")
        table.add_row(*row)
    CONSOLE.print(table)


def _divergence_titles(log_prob: Callable[[np.ndarray], np.ndarray] | None) -> list[str]:
    return [] if log_prob is None else ["KL(truth | model)"]
