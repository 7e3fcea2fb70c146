"""Scores of outliers on the command line: of one set, or of two with how well each score tells them apart."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.table import Table

from ffjord_kit import metrics, plots
from ffjord_kit.cli.image_score import progress
from ffjord_kit.cli.options import PLAIN
from ffjord_kit.cli.sources import Source, held_out_of, source_of
from ffjord_kit.estimator import FFJORD, outlier_scores
from ffjord_kit.runs import Run

CAUTION = (
    "raw likelihood alone may rate data of another kind higher than the run's own, where they are simpler (Nalisnick "
    "et al. 2019): look at the other scores too"
)


def score_outliers(run: Run, model: FFJORD, sets: dict[str, Source], picture: Path | None) -> dict[str, np.ndarray]:
    """Print the scores of each set, and AUROCs of two; each row's scores of the first set."""
    reference = _reference(run, model, next(iter(sets.values())))
    found = {}
    for name, read in sets.items():
        with progress(name) as tell:
            found[name] = outlier_scores(model, read.x, context=read.context, reference=reference, tell=tell)
    table = Table(box=None, pad_edge=False)
    for title in ("score (higher: further)", *(f"median of {name}" for name in sets), *["AUROC"] * (len(sets) > 1)):
        table.add_column(title)
    inside, *others = found.values()
    areas = {}
    for word, values in inside.items():
        medians = [f"{np.median(scores[word]):.2f}" for scores in found.values()]
        areas[word] = [metrics.auroc(values, scores[word]) for scores in others]
        table.add_row(word, *medians, *(f"{area:.3f} ± {error:.3f}" for area, error in areas[word]))
    PLAIN.print(table, soft_wrap=True)
    if any(area < 0.5 for area, _ in areas["likelihood"]):
        click.echo(f"by its likelihood {list(sets)[1]} is MORE likely than {list(sets)[0]}: the known failure")
    click.echo(CAUTION)
    if picture is not None and others:
        both = {word: (values, others[0][word]) for word, values in inside.items()}
        areas = {word: area[0][0] for word, area in areas.items()}
        plots.save(plots.outlier_histograms(both, areas, names=tuple(sets)), picture)
        click.echo(f"picture: {picture}")
    return inside


def _reference(run: Run, model: FFJORD, first: Source) -> float:
    """The mean log-density of rows that the run held out; where it does not name its data, of the first set."""
    fitted = source_of(run) if "source" in run.config["data"] else first
    x, context = held_out_of(model, fitted) if fitted is not first else first.pair
    return model.score(x, context=context)
