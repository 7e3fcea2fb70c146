"""The commands of `series`: fit a latent ODE to irregular series, predict them, and draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np

from ffjord_kit import plots
from ffjord_kit.cli.checks import check_replaceable
from ffjord_kit.cli.info import best_validation
from ffjord_kit.datasets.files import absolute
from ffjord_kit.datasets.series import SeriesTable, read_series, select_channels, write_series
from ffjord_kit.models import Bands, LatentODE, Series
from ffjord_kit.models.fields import LatentODEFields
from ffjord_kit.models.latent_ode import unfitted
from ffjord_kit.models.latent_runs import open_run

DRAWN, POINTS = 4, 200  # series of a picture, and times of a line


def fit_series(options: Mapping[str, Any]) -> None:
    """Fit a latent ODE to series, and keep it in a run folder, or go on with one.

    Args:
        options: Parameters of the command.

    Raises:
        ValueError: If the data or an option cannot be used.
    """
    if options["resume"] is not None:
        path, source, model = options["resume"], source_of(options["resume"]), unfitted(options["resume"])
        model.verbose = options["verbose"]
    else:
        path, source = options["out"], options["source"]
        model = LatentODE(**{each.name: options[each.name] for each in fields(LatentODEFields)})
    table, resume = read_series(source), options["resume"] is not None
    note = {"source": source if source == "spirals" else absolute(source)}
    try:
        model.fit(_named(table), channels=table.channels, run=path, force=options["force"], resume=resume, data=note)
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"go on with: ffjord-kit series fit --resume {path}", err=True)
        raise
    history = model.history_
    click.echo(f"done after {history.step} steps, {history.work_seconds:.1f} CPU seconds, {len(table.series)} series")
    click.echo(f"validation, negative evidence bound without the worst tenth: {best_validation(history.records, None)}")
    click.echo(f"run: {path}   seed: {history.seed}")


def predict_series(
    run: str, source: str, out: str, times: Sequence[float] | None, ahead: float | None, level: float, force: bool
) -> None:
    """Predict series, and write the mean and the ends of the bands of each channel.

    Args:
        run: Run folder.
        source: Series.
        out: File.
        times: Times; None for the series' own.
        ahead: Time to go on after the last one of each series, at the mean gap of its rows; None for none.
        level: Probability of the bands.
        force: Whether to replace an existing file.

    Raises:
        ValueError: If the run, the series or the times cannot be used.
    """
    check_replaceable(out, force=force)
    model = LatentODE.load(run)
    table = select_channels(read_series(source), model.channels_)
    series = _named(table)
    asked = [_asked(item, times, ahead) for item in series]
    bands = model.extrapolate(asked, series, level=level)
    write_series(out, _as_table(table, bands))
    click.echo(f"{sum(len(each.times) for each in bands)} predictions of {len(series)} series in {out}")


def plot_series(run: str, source: str | None, out: str, ahead: float | None, level: float, force: bool) -> None:
    """Draw the training, and some series with their reconstruction and extrapolation.

    Args:
        run: Run folder.
        source: Series; None for those of the fit.
        out: Folder.
        ahead: Time to go on after the last one of each series; None for half of its duration.
        level: Probability of the bands.
        force: Whether to replace existing files.

    Raises:
        ValueError: If the run or the series cannot be used.
    """
    paths = [Path(out) / name for name in ("series.png", "training.png")]
    for path in paths:
        check_replaceable(path, force=force)
    model = LatentODE.load(run)
    table = select_channels(read_series(source or source_of(run)), model.channels_)
    series = _named(table)[:DRAWN]
    ends = [item.times[-1] + (0.5 * item.duration if ahead is None else ahead) for item in series]
    times = [np.linspace(item.times[0], end, POINTS) for item, end in zip(series, ends, strict=True)]
    bands = model.extrapolate(times, series, level=level)
    drawn = [plots.PredictedSeries(s.name, s.times, s.values, *b) for s, b in zip(series, bands, strict=True)]
    plots.save(plots.series_bands(drawn, model.channels_, level=level), paths[0])
    plots.save(plots.training_curves(model.history_.records), paths[1])
    for path in paths:
        click.echo(path)


def source_of(run: str) -> str:
    """Return where the series of a run's fit come from.

    Args:
        run: Run folder.

    Returns:
        The path of the file, or a name.

    Raises:
        ValueError: If the run was fitted in Python.
    """
    note = open_run(run).config.get("data", {})
    if not isinstance(note, dict) or "source" not in note:
        raise ValueError(
            f"{run} does not say where its series are: it was fitted in Python; give DATA, or resume it there"
        )
    return str(note["source"])


def _named(table: SeriesTable) -> list[Series]:
    return [Series(t, x, name) for name, (t, x) in zip(table.names, table.series, strict=True)]


def _asked(item: Series, times: Sequence[float] | None, ahead: float | None) -> np.ndarray:
    """Return the times of a prediction: those given, or the series' own, with those ahead."""
    if times is not None:
        return np.array(times)
    gap = item.duration / (len(item.times) - 1)
    return np.r_[item.times, item.times[-1] + np.arange(gap, (ahead or 0.0) + gap / 2, gap)]


def _as_table(table: SeriesTable, bands: Sequence[Bands]) -> SeriesTable:
    """Return predictions as series, whose channels are the mean and the ends of the band of each channel."""
    names = tuple(f"{name}{end}" for name in table.channels for end in ("", "_low", "_high"))
    columns = [np.stack([b.mean, b.low, b.high], axis=2).reshape(len(b.times), -1) for b in bands]
    return SeriesTable(names, table.names, [(b.times, x) for b, x in zip(bands, columns, strict=True)])
