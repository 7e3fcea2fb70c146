"""The command that draws, and what is drawn of which model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from ffjord_kit import plots
from ffjord_kit.cli.image_pictures import Drawing, ImageSubject, image_drawings
from ffjord_kit.cli.sources import Source, context_rows, rows_like, source_of
from ffjord_kit.estimator import FFJORD
from ffjord_kit.runs import Run

STRIP_TIMES = np.linspace(0.0, 1.0, 8)
GIF_TIMES = np.sin(np.linspace(0.0, np.pi / 2, 21))  # slower towards the data, where most happens
GRID, GIF_GRID = 120, 48
PATHS, FRAMES = 200, 41
POINTS = 4000
SHEET = 50


@dataclass(frozen=True)
class Subject:
    """What is drawn: a model, the data that it was fitted to, and one context (c,) if it is conditional."""

    model: FFJORD
    data: Source
    context: np.ndarray | None
    seed: int

    def density(self, x: np.ndarray, time: float = 1.0) -> np.ndarray:
        """The model's log-density at points (n, d), to a picture's precision."""
        return self.model.draft(x, context=self.contexts(len(x)), time=time)

    def samples(self, n: int) -> np.ndarray:
        """Draws (n, d)."""
        return self.model.sample(n, context=self.contexts(n), random_state=self.seed)

    def velocity(self, time: float, x: np.ndarray) -> np.ndarray:
        """The field at points (n, d)."""
        return self.model.velocity(x, time, context=self.contexts(len(x)))

    def contexts(self, n: int) -> np.ndarray | None:
        """The context for n rows, (n, c)."""
        return None if self.context is None else np.broadcast_to(self.context, (n, len(self.context)))


@click.command()
@click.argument("run", type=click.Path())
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the pictures.")
@click.option(
    "--context", help="For a conditional run: values 1.0,2.5 (default: the median), or classes (default: all)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the samples.")
@click.option("--data", "source", help="Data to draw beside it (default: those that it was fitted to).")
@click.option("--force", is_flag=True, help="Replace pictures that are there.")
def plot(run: str, out: str, context: str | None, seed: int, source: str | None, force: bool) -> None:
    """Draw a RUN: its training, its density, samples, trajectories and field, or sheets and pairs."""
    opened, model = Run.open(run), FFJORD.load(run)
    data = source_of(opened) if source is None else rows_like(opened, source)
    if model.images is not None:
        count = model.images.classes
        every = ",".join(map(str, range(count))) if count else None
        labels = context_rows(opened, context or every, max(1, (context or every or "").count(",") + 1))
        _tell(
            draw_images(
                ImageSubject(model, data, labels, seed, fitted=source is None), opened.records(), Path(out), force=force
            )
        )
        return
    given = _one_context(opened, data, context)
    subject = Subject(model, data if given is None else _near(data, given), given, seed)
    if given is not None:
        names = opened.config["data"].get("context_columns", [])
        values = ", ".join(f"{name} = {value:g}" for name, value in zip(names, given, strict=True))
        click.echo(f"every picture is given {values}; the data beside are the {len(subject.data.x)} rows nearest to it")
    _tell(draw_all(subject, opened.records(), Path(out), force=force))


def draw_all(subject: Subject, records: list[dict], folder: Path, *, force: bool) -> Iterator[Path]:
    """Draw every picture that suits the model into the folder; the paths come as they are written.

    Raises ValueError, before any is drawn, where one is there already and `force` does not allow to replace it.
    """
    return _drawn(_drawings(subject, records), folder, force)


def draw_images(subject: ImageSubject, records: list[dict], folder: Path, *, force: bool) -> Iterator[Path]:
    """The same of a model of images."""
    return _drawn(_training(records) | image_drawings(subject), folder, force)


def _tell(paths: Iterator[Path]) -> None:
    for path in paths:
        click.echo(path)


def _drawn(drawings: dict[str, Drawing], folder: Path, force: bool) -> Iterator[Path]:
    there = [folder / name for name in drawings if (folder / name).exists()]
    if there and not force:
        raise ValueError(f"{there[0]} exists: choose another folder, or pass --force")
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        draw(folder / name)
        yield folder / name


def _near(data: Source, context: np.ndarray) -> Source:
    """The tenth of the rows (at least 200) whose contexts are nearest, in deviations, and all that are as near."""
    scale = np.where(np.ptp(data.context, axis=0) > 0, data.context.std(axis=0), 1.0)
    distance = np.linalg.norm((data.context - context) / scale, axis=1)
    count = min(len(distance), max(200, len(distance) // 10))
    kept = distance <= np.partition(distance, count - 1)[count - 1]
    return replace(data, x=data.x[kept], context=data.context[kept])


def _one_context(run: Run, data: Source, text: str | None) -> np.ndarray | None:
    if data.context is not None and text is None:
        return np.median(data.context, axis=0)
    given = context_rows(run, text, 1)
    return None if given is None else given[0]


def _drawings(subject: Subject, records: list[dict]) -> dict[str, Drawing]:
    drawings = _training(records)
    if subject.data.image_shape is not None:
        drawings["sheet.png"] = lambda path: _sheet(subject, path)
    if subject.data.x.shape[1] == 2:
        return drawings | _plane(subject)
    return drawings | {"pairs.png": lambda path: _pairs(subject, path)}


def _training(records: list[dict]) -> dict[str, Drawing]:
    return {"training.png": lambda path: plots.save(plots.training_curves(records), path)} if records else {}


def _plane(subject: Subject) -> dict[str, Drawing]:
    """The pictures of a density on the plane."""
    data = subject.data
    x, bounds = data.x[:POINTS], plots.robust_bounds(data.x)
    return {
        "density.png": lambda path: plots.save(
            plots.density(x, subject.density, truth=data.log_prob, bounds=bounds, size=GRID), path
        ),
        "samples.png": lambda path: plots.save(plots.samples(x, subject.samples(len(x)), data.columns), path),
        "trajectories.png": lambda path: _trajectories(subject, path),
        "field.png": lambda path: plots.save(plots.vector_field(subject.velocity, [0.0, 0.5, 0.9, 1.0], bounds), path),
        "flow.png": lambda path: plots.save(
            plots.density_strip(STRIP_TIMES, _film(subject, STRIP_TIMES, GRID // 2), bounds), path
        ),
        "flow.gif": lambda path: plots.density_gif(path, GIF_TIMES, _film(subject, GIF_TIMES, GIF_GRID), bounds),
    }


def _film(subject: Subject, times: np.ndarray, size: int) -> np.ndarray:
    """Log-densities on a grid at the times, (T, size, size)."""
    points = plots.grid_points(plots.robust_bounds(subject.data.x), size)
    return np.stack([subject.density(points, time=float(t)).reshape(size, size) for t in times])


def _trajectories(subject: Subject, path: Path) -> None:
    way = subject.model.trajectory(PATHS, frames=FRAMES, context=subject.contexts(PATHS), random_state=subject.seed)
    plots.save(plots.trajectories(way.times, way.x, way.log_prob), path)


def _pairs(subject: Subject, path: Path) -> None:
    x = subject.data.x[:POINTS]
    plots.save(plots.pair_plot(x, subject.samples(len(x)), subject.data.columns), path)


def _sheet(subject: Subject, path: Path) -> None:
    shape, x = subject.data.image_shape, subject.data.x
    low, high = float(x.min()), float(x.max())
    real, drawn = x[:SHEET], subject.samples(SHEET)
    grey = [np.clip((rows - low) / (high - low), 0, 1).reshape(-1, *shape) for rows in (drawn, real)]
    plots.save(plots.image_sheet(grey[0], beside=grey[1]), path)
