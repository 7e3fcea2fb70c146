"""Scores of images: bits per dimension, and how far from what a run knows they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import numpy as np
from rich.table import Table

from ffjord_kit import metrics
from ffjord_kit.cli.options import PLAIN
from ffjord_kit.cli.sources import Source
from ffjord_kit.estimator import FFJORD, image_bits

Tell = Callable[[int, int], None]


@contextmanager
def progress(label: str) -> Iterator[Tell]:
    """A bar on a terminal's stderr, nothing elsewhere; what is to be told of the part done and of the whole."""
    if not click.get_text_stream("stderr").isatty():
        yield lambda now, whole: None
        return
    with click.progressbar(length=1, label=label, file=click.get_text_stream("stderr"), show_pos=False) as bar:
        done = 0

        def tell(now: int, whole: int) -> None:
            nonlocal done
            bar.length = whole
            bar.update(now - done)
            done = now

        yield tell


def score_images(model: FFJORD, read: Source, draws: int, probes: int | None) -> dict[str, np.ndarray]:
    """Print bits per dimension with all their errors; each image's log-likelihood and bits."""
    asked = {} if probes is None else {"probes": probes}
    with progress(f"{len(read.x)} images") as tell:
        found = image_bits(model, read.x, context=read.context, draws=draws, tell=tell, **asked)
    pixels, values = model.n_features_in_, found.values.numpy()
    mean, error = metrics.mean_and_standard_error(-values * pixels * np.log(2))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("images", f"{len(values)} of {' x '.join(map(str, model.event_shape_))}, {found.bits} bits")
    table.add_row("bits/dim", f"{found.mean:.4f} ± {found.standard_error:.4f}")
    table.add_row("log-likelihood", f"{mean:.2f} ± {error:.2f} nats an image")
    table.add_row("noise", f"{found.noise}, {found.draws} draw{'s' * (found.draws > 1)} (a bound from above)")
    table.add_row("grey levels", _scaling(model))
    table.add_row("trace", f"{found.probes} probes an image; their error is part of the standard error")
    table.add_row("solver's error", f"{found.solver_error:.1e} bits/dim an image, at tolerance {found.solver.rtol:g}")
    table.add_row("evaluations", f"{found.nfe} (most of a batch)")
    PLAIN.print(table, soft_wrap=True)
    return {"log_likelihood": -values * pixels * np.log(2), "bits_per_dim": values}


def _scaling(model: FFJORD) -> str:
    scaling = model.settled.scaling
    return f"{scaling} with alpha {model.alpha:g}" if scaling == "logit" else scaling
