"""The demo: two moons and real digits, each fitted, scored beside two baselines in the same run, and drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.table import Table

from ffjord_kit import metrics
from ffjord_kit.cli.options import PLAIN
from ffjord_kit.cli.pictures import Subject, draw_all
from ffjord_kit.cli.sources import Source, open_source
from ffjord_kit.estimator import FFJORD


@dataclass(frozen=True)
class Exhibit:
    """A data set of the demo, and the rows to fit and to hold out (None: all)."""

    name: str
    rows: int | None = None
    held_out: int | None = None


JUDGED = 16  # rows, of the solver's error
EXHIBITS = (Exhibit("moons", 40_000, 5_000), Exhibit("digits"))


@click.command()
@click.option("--out", type=click.Path(file_okay=False), default="demo", show_default=True, help="Folder to fill.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything.")
@click.option("--force", is_flag=True, help="Replace the runs of an earlier demo in the folder.")
def demo(out: str, seed: int, force: bool) -> None:
    """Fit two moons and the 8x8 digits, compare with a Gaussian mixture and a KDE, and draw everything."""
    begun, folder = time.monotonic(), Path(out)
    for exhibit in EXHIBITS:
        _show(exhibit, folder, seed, force)
    click.echo(f"runs and pictures are in {folder.resolve()}   ({time.monotonic() - begun:.0f} s)")


def _show(exhibit: Exhibit, folder: Path, seed: int, force: bool) -> None:
    train = open_source(f"{exhibit.name}:train", rows=exhibit.rows, seed=seed, context_columns=[])
    test = open_source(f"{exhibit.name}:test", rows=exhibit.held_out, seed=seed, context_columns=[])
    click.echo(f"{exhibit.name}: {len(train.x)} rows to fit, {len(test.x)} held out, {train.x.shape[1]} columns")
    model = FFJORD(random_state=seed, verbose=True)
    run = folder / exhibit.name
    model.fit(train.x, columns=train.columns, run=run, force=force, data=train.note)
    _compare(model, train, test, seed)
    subject, place = Subject(model, train, None, seed), folder / f"{exhibit.name}-pictures"
    pictures = list(draw_all(subject, model.history_.records, place, force=force))
    click.echo(f"{len(pictures)} pictures in {place}\n")


def _compare(model: FFJORD, train: Source, test: Source, seed: int) -> None:
    """Held-out log-likelihoods; the baselines are fitted to the same rows, and choose on the same validation rows."""
    kept, held_out = model.split(train.x)
    mixture = metrics.best_gaussian_mixture(kept, held_out, seed=seed)
    kernels = metrics.best_kde(kept, held_out)
    scores = {
        "ffjord_kit flow": model.score_samples(test.x),
        f"Gaussian mixture, {mixture.n_components} {mixture.covariance_type}": mixture.score_samples(test.x),
        f"KDE, bandwidth {kernels.bandwidth:.3f} deviations": kernels.score_samples(test.x),
    }
    PLAIN.print(_table(scores, None if test.log_prob is None else test.log_prob(test.x), test.x.shape[1]))
    click.echo(f"solver's error of the flow: {model.solver_error(test.x[:JUDGED]):.1e} nats a row")


def _table(scores: dict[str, np.ndarray], truth: np.ndarray | None, dimensions: int) -> Table:
    table = Table("model", "held-out log-likelihood (nats)", "bits/dim", box=None, pad_edge=False)
    if truth is not None:
        table.add_column("KL(truth | model)")
        scores = {**scores, "the truth": truth}
    for name, log_prob in scores.items():
        mean, error = metrics.mean_and_standard_error(log_prob)
        row = [name, f"{mean:.4f} ± {error:.4f}", f"{metrics.bits_per_dim(-mean, dimensions):.4f}"]
        if truth is not None:
            kl, kl_error = metrics.kl_divergence(truth, log_prob)
            row.append(f"{kl:.4f} ± {kl_error:.4f}")
        table.add_row(*row)
    return table
