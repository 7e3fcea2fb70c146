"""The command `plot`: pictures of a run on a table or on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ffjord_kit import metrics, plots
from ffjord_kit.cli.output import as_picture
from ffjord_kit.cli.sources import (
    LoadedData,
    complete_rows,
    held_out,
    load_fitted,
    load_for_run,
    open_run,
    parse_context,
)
from ffjord_kit.cli.sweep import PANELS, context_names, context_sweeps, density_sweep
from ffjord_kit.columns import Bounded, Category, Positive, Sphere
from ffjord_kit.estimator import DensityModel
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.report import nearest, typical
from ffjord_kit.run import Run

STRIP_TIMES = np.linspace(0.0, 1.0, 8)
GIF_TIMES = np.sin(np.linspace(0.0, np.pi / 2, 21))  # denser towards the data, where the density changes most
IMAGE_TIMES = np.sin(np.linspace(0.0, np.pi / 2, 9))
FIELD_TIMES = (0.0, 0.5, 0.9, 1.0)
GRID, GIF_GRID = 120, 48
PATHS, FRAMES = 200, 41
POINTS = 4000
DIGITS = 50  # on the sheet of a table of pixels
SHEET, STRIPS, STEPS, NEIGHBOURS = 100, 8, 9, 5
SCORED, EXTREMES = 64, 10
GONE = "pass rows to draw beside it by --data"

Records = Sequence[Mapping[str, Any]]
Draw = Callable[[Path], object]


@dataclass(frozen=True)
class TableSubject:
    """A model of a table to draw, and the data beside it.

    Attributes:
        model: The model.
        data: Rows to draw beside it.
        context: Context (c,) of every picture, or None.
        seed: Seed of the samples.
        unseen: Rows that the model was not fitted to and what they are, for the divergence from a known truth; the data
            if None.
        swept: All rows, between whose contexts a sweep moves; None for no sweep.
    """

    model: DensityModel
    data: LoadedData
    context: np.ndarray | None
    seed: int
    unseen: tuple[str, LoadedData] | None = None
    swept: LoadedData | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(getattr(self.model.domain, "all_columns", self.data.columns))

    @property
    def types(self) -> dict[tuple[str, ...], Any]:
        """Types of columns, as pictures take them; a support is one."""
        domain: Any = self.model.domain
        supports = {
            (name,): Bounded(low, high) if np.isfinite(high) else Positive()
            for name, (low, high) in zip(domain.columns, domain.bounds, strict=True)
            if np.isfinite(low)
        }
        return {**supports, **domain.all_types}

    @property
    def is_plane(self) -> bool:
        """Whether the density is one of two numbers, on the plane or with angles."""
        others = any(isinstance(kind, (Category, Sphere)) for kind in self.types.values())
        return len(self.names) == 2 and not others

    def density(self, x: np.ndarray, time: float = 1.0) -> np.ndarray:
        """Return log-densities, as precise as a picture needs.

        Args:
            x: Points, shape (n, d).
            time: Time of the flow, 1 for the data.

        Returns:
            Log-densities, shape (n,), nats.
        """
        return self.model.draft(x, context=self.contexts(len(x)), time=time)

    def samples(self, n: int) -> Any:
        """Draw samples.

        Args:
            n: Number of samples.

        Returns:
            Samples, shape (n, d); a frame where there are texts or dates.
        """
        return self.model.sample(n, context=self.contexts(n), random_state=self.seed)

    def velocity(self, time: float, x: np.ndarray) -> np.ndarray:
        """Return the velocity field.

        Args:
            time: Time of the flow.
            x: Points, shape (n, d).

        Returns:
            Velocities, shape (n, d).
        """
        return self.model.velocity(x, time, context=self.contexts(len(x)))

    def contexts(self, n: int) -> np.ndarray | None:
        """Return the context of n rows.

        Args:
            n: Number of rows.

        Returns:
            Contexts, shape (n, c), or None.
        """
        return None if self.context is None else np.broadcast_to(self.context, (n, len(self.context)))


@dataclass(frozen=True)
class ImageSubject:
    """A model of images to draw, and the data beside it.

    Attributes:
        model: The model.
        data: Images to draw beside it.
        labels: Labels that samples have in turn, shape (k,), or None.
        seed: Seed of the samples.
        fitted: Whether the model was fitted to the data.
    """

    model: DensityModel
    data: LoadedData
    labels: np.ndarray | None
    seed: int
    fitted: bool = True

    @property
    def unseen(self) -> LoadedData:
        """Images that the model was not fitted to."""
        return held_out(self.model, self.data) if self.fitted else self.data

    def contexts(self, n: int) -> np.ndarray | None:
        """Return labels of n samples.

        Args:
            n: Number of samples.

        Returns:
            Labels in turn, shape (n,), or None.
        """
        return None if self.labels is None else np.resize(self.labels, n)

    def samples(self, n: int) -> np.ndarray:
        """Draw samples.

        Args:
            n: Number of samples.

        Returns:
            Images of uint8, shape (n, c, h, w).
        """
        return self.with_channels(self.model.sample(n, context=self.contexts(n), random_state=self.seed))

    def with_channels(self, images: np.ndarray) -> np.ndarray:
        """Return images of the model with an axis of channels.

        Args:
            images: Images, shape (..., h, w) or (..., c, h, w).

        Returns:
            Images, shape (..., c, h, w).
        """
        leading = images.ndim - (3 if self.model.image_domain.channels else 2)
        return images.reshape(*images.shape[:leading], *self.model.event_shape)


def plot(
    run: str,
    out: str,
    context: str | None,
    random_state: int,
    source: str | None,
    force: bool,
    picture_format: str = "png",
) -> None:
    """Draw every picture that suits a run.

    Args:
        run: Run folder.
        out: Folder for the pictures.
        context: Values or classes; None for the median of the data, or all classes.
        random_state: Seed of the samples.
        source: Data to draw beside; None for the data of the fit.
        force: Whether to replace existing pictures.
        picture_format: Format of the pictures: png, pdf or svg.

    Raises:
        ValueError: If a picture exists, or the data or the context do not suit the run.
    """
    opened, model = open_run(run), DensityModel.load(run)
    data = load_fitted(opened, GONE) if source is None else load_for_run(opened, source)
    if model.is_image:
        images = ImageSubject(model, data, _labels(opened, context), random_state, fitted=source is None)
        paths = draw_images(images, opened.records(), Path(out), force=force, kind=picture_format)
    else:
        if data.noise is not None:
            click.echo("the data beside the model of true values have their measurement errors")
        rows = held_out(model, data) if source is None else data
        unseen = ("held-out rows" if source is None else f"rows of {source}", complete_rows(rows, "plot"))
        whole = complete_rows(replace(data, noise=None).drawn(random_state), "plot", "rows of the fit")
        subject = _table_subject(opened, model, whole, context, random_state)
        subject = replace(subject, unseen=unseen)
        paths = draw_table(subject, opened.records(), Path(out), force=force, kind=picture_format)
    for path in paths:
        click.echo(path)


def draw_table(
    subject: TableSubject, records: Records, folder: Path, *, force: bool, kind: str = "png"
) -> Iterator[Path]:
    """Draw every picture of a model of a table.

    Args:
        subject: Model and data.
        records: Log of the training.
        folder: Folder for the pictures.
        force: Whether to replace existing pictures.
        kind: Format of the pictures: png, pdf or svg.

    Yields:
        Path of each picture, once it is written.

    Raises:
        ValueError: If a picture exists, before any is drawn.
    """
    yield from _draw(_training_pictures(records) | _table_pictures(subject), folder, force=force, kind=kind)


def draw_images(
    subject: ImageSubject, records: Records, folder: Path, *, force: bool, kind: str = "png"
) -> Iterator[Path]:
    """Draw every picture of a model of images.

    Args:
        subject: Model and data.
        records: Log of the training.
        folder: Folder for the pictures.
        force: Whether to replace existing pictures.
        kind: Format of the pictures: png, pdf or svg.

    Yields:
        Path of each picture, once it is written.

    Raises:
        ValueError: If a picture exists, before any is drawn.
    """
    yield from _draw(_training_pictures(records) | _image_pictures(subject), folder, force=force, kind=kind)


def _draw(pictures: Mapping[str, Draw], folder: Path, *, force: bool, kind: str) -> Iterator[Path]:
    """Draw pictures into a folder, and yield their paths; a film keeps its own format."""
    paths = {folder / (name if "." in name else f"{name}.{kind}"): draw for name, draw in pictures.items()}
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise ValueError(f"{existing[0]} exists: choose another folder, or pass --force")
    folder.mkdir(parents=True, exist_ok=True)
    for path, draw in paths.items():
        draw(path)
        yield path


def _table_subject(run: Run, model: DensityModel, data: LoadedData, text: str | None, seed: int) -> TableSubject:
    """Return what to draw of a table; of a conditional run at one context, with the rows nearest to it."""
    context = _one_context(run, data, text)
    if context is None:
        return TableSubject(model, data, None, seed)
    near = _near(data, context)
    kinds = data.context_types
    shown = {name: kinds[name].cells(context[[i]])[0] for i, name in enumerate(context_names(model)) if name in kinds}
    named = zip(context_names(model), context, strict=True)
    values = ", ".join(f"{name} = {shown.get(name, f'{value:g}')}" for name, value in named)
    click.echo(f"pictures are at {values}, beside the {len(near.x)} rows nearest to it; those of a sweep change it")
    return TableSubject(model, near, context, seed, swept=None if data.context is None else data)


def _one_context(run: Run, data: LoadedData, text: str | None) -> np.ndarray | None:
    """Return the context of all pictures: that of the option, or the median, of texts the most frequent one."""
    if data.context is not None and text is None:
        return typical(data.context, _texts(data))
    context = parse_context(run, text, 1)
    return None if context is None else context[0]


def _near(data: LoadedData, context: np.ndarray) -> LoadedData:
    """Return the rows whose contexts are nearest."""
    if data.context is None:
        return data
    return data.take(nearest(data.context, context, _texts(data)))


def _texts(data: LoadedData) -> list[bool]:
    """Return whether each context is a text."""
    return [name in data.context_types for name in data.note["context_columns"]]


def _labels(run: Run, text: str | None) -> np.ndarray | None:
    """Return the labels of an option, or those of all classes."""
    classes = run.config["images"]["classes"]
    text = text or (",".join(map(str, range(classes))) if classes else None)
    return parse_context(run, text, max(1, (text or "").count(",") + 1))


def _training_pictures(records: Records) -> dict[str, Draw]:
    """Return the pictures of the training by their files: its curves, and what validations watched."""
    pictures: dict[str, Draw] = {}
    if records:
        pictures["training"] = lambda path: plots.save(plots.training_curves(records), path)
    watched = plots.watched_spectrum(records)
    if watched is not None:
        pictures["spectrum"] = lambda path: plots.save(plots.spectrum_errors({"spectrum": watched}), path)
    if any(record.get("condensation") for record in records):
        pictures["condensation"] = lambda path: plots.save(plots.effective_neurons(records), path)
    if any(record.get("hessian") for record in records):
        pictures["curvature"] = lambda path: plots.save(plots.watched_curvature(records), path)
    return pictures


def _table_pictures(subject: TableSubject) -> dict[str, Draw]:
    """Return the pictures of a table by their files."""
    pictures: dict[str, Draw] = {}
    if subject.data.image_shape is not None:
        pictures["sheet"] = lambda path: _draw_digits(subject, path)
    pictures |= _sweep_pictures(subject)
    if subject.is_plane:
        return pictures | _pictures_of_points(subject) | _plane_pictures(subject)
    if len(subject.names) == 2 and any(isinstance(kind, Sphere) for kind in subject.types.values()):
        return pictures | _pictures_of_points(subject)
    columns = {"columns": plots.columns, "pairs": plots.pair_plot}
    return pictures | {name: partial(_draw_columns, subject, draw) for name, draw in columns.items()}


def _sweep_pictures(subject: TableSubject) -> dict[str, Draw]:
    """Return the pictures of a sweep over the contexts by their files; none of a run without contexts."""
    rows, context, model, names = subject.swept, subject.context, subject.model, subject.names
    contexts = None if rows is None else rows.context
    if rows is None or contexts is None or context is None:
        return {}
    pictures: dict[str, Draw] = {
        "sweep": lambda path: plots.save(
            plots.context_sweep(
                context_sweeps(model, contexts[:POINTS], context, subject.seed), rows.x[:POINTS], names, subject.types
            ),
            path,
        )
    }
    if not subject.is_plane:
        return pictures
    bounds = plots.plane_bounds(rows.x, names, subject.types)
    return pictures | {
        "density_sweep": lambda path: plots.save(
            plots.density_panels(
                density_sweep(model, contexts, context, bounds, GRID // 2), bounds, per_row=PANELS, columns=names
            ),
            path,
        )
    }


def _pictures_of_points(subject: TableSubject) -> dict[str, Draw]:
    """Return the pictures of a density of two numbers, on the plane, a torus or a sphere, by their files."""
    x = subject.data.x[:POINTS]
    named: dict[str, Any] = {"columns": subject.names, "types": subject.types}
    return {
        "density": lambda path: plots.save(
            plots.density(
                x, subject.density, truth=subject.data.log_prob, size=GRID, title=_divergence_title(subject), **named
            ),
            path,
        ),
        "samples": lambda path: plots.save(plots.samples(x, subject.samples(len(x)), **named), path),
    }


def _plane_pictures(subject: TableSubject) -> dict[str, Draw]:
    """Return the pictures of a flow on the plane or a torus by their files; its field is shown on the plane alone."""
    names = subject.names
    bounds = plots.plane_bounds(subject.data.x, names, subject.types)
    pictures: dict[str, Draw] = {
        "flow": lambda path: plots.save(
            plots.density_strip(STRIP_TIMES, _densities(subject, STRIP_TIMES, bounds, GRID // 2), bounds), path
        ),
        "flow.gif": lambda path: plots.density_gif(
            path, GIF_TIMES, _densities(subject, GIF_TIMES, bounds, GIF_GRID), bounds
        ),
    }
    if subject.model.domain.curved:
        return pictures
    return pictures | {
        "trajectories": lambda path: _draw_trajectories(subject, path),
        "field": lambda path: plots.save(
            plots.vector_field(subject.velocity, FIELD_TIMES, bounds, columns=names), path
        ),
    }


def _divergence_title(subject: TableSubject) -> str | None:
    """Return the divergence from the truth as `score` prints it, over rows that the model was not fitted to."""
    name, rows = subject.unseen or ("points", subject.data)
    if rows.log_prob is None:
        return None
    kl, error = metrics.kl_divergence(rows.log_prob(rows.x), subject.model.score_samples(rows.x))
    return f"KL(truth ‖ model) = {kl:.4f} ± {error:.4f} nats over {len(rows.x):,} {name}"


def _densities(subject: TableSubject, times: np.ndarray, bounds: Bounds, size: int) -> np.ndarray:
    """Return log-densities on a grid at the times, shape (T, size, size)."""
    points = plots.grid_points(bounds, size)
    return np.stack([subject.density(points, time=float(t)).reshape(size, size) for t in times])


def _draw_trajectories(subject: TableSubject, path: Path) -> None:
    trajectory = subject.model.trajectory(
        PATHS, frames=FRAMES, context=subject.contexts(PATHS), random_state=subject.seed
    )
    figure = plots.trajectories(trajectory.times, trajectory.x, trajectory.log_prob, columns=subject.names)
    plots.save(figure, path)


def _draw_columns(subject: TableSubject, draw: Callable[..., Any], path: Path) -> None:
    """Draw the columns one by one, or in pairs."""
    x = subject.data.x[:POINTS]
    plots.save(draw(x, subject.samples(len(x)), subject.names, subject.types), path)


def _draw_digits(subject: TableSubject, path: Path) -> None:
    """Draw rows that are the pixels of an image, samples beside data."""
    shape, x = subject.data.image_shape or (), subject.data.x
    low, high = float(x.min()), float(x.max())
    samples, data = (
        np.clip((rows - low) / (high - low), 0, 1).reshape(-1, *shape) for rows in (subject.samples(DIGITS), x[:DIGITS])
    )
    plots.save(plots.image_sheet(samples, beside=data), path)


def _image_pictures(subject: ImageSubject) -> dict[str, Draw]:
    """Return the pictures of images by their files; nearest training images only beside the data of the fit."""
    pictures: dict[str, Draw] = {
        "strip": lambda path: _draw_strip(subject, path),
        "sheet": lambda path: _draw_sheet(subject, path),
        "interpolation": lambda path: _draw_interpolation(subject, path),
        "extremes": lambda path: _draw_extremes(subject, path),
    }
    return pictures | ({"nearest": lambda path: _draw_nearest(subject, path)} if subject.fitted else {})


def _draw_strip(subject: ImageSubject, path: Path) -> None:
    """Draw samples on their way from noise to images."""
    model = subject.model
    states = model.states(STRIPS, IMAGE_TIMES.tolist(), context=subject.contexts(STRIPS), random_state=subject.seed)
    levels = np.clip(subject.with_channels(states) / 2**model.image_domain.bits, 0, 1) * 255
    plots.save(plots.image_strip(IMAGE_TIMES, as_picture(levels)), path)


def _draw_sheet(subject: ImageSubject, path: Path) -> None:
    """Draw samples beside data."""
    samples, data = subject.samples(SHEET), subject.data.x[:SHEET]
    plots.save(plots.image_sheet(as_picture(samples), beside=as_picture(data)), path)


def _draw_interpolation(subject: ImageSubject, path: Path) -> None:
    """Draw interpolations between pairs of images that the model has not seen."""
    unseen, frame = subject.unseen, subject.model.domain.frame
    count = min(STRIPS, len(unseen.x) // 2)
    starts, ends = unseen.take(slice(0, 2 * count, 2)), unseen.take(slice(1, 2 * count, 2))
    contexts = None if unseen.context is None else (starts.context, ends.context)
    images = subject.model.interpolate(frame(starts.x), frame(ends.x), steps=STEPS, contexts=contexts)
    plots.save(plots.interpolation_strip(as_picture(subject.with_channels(images))), path)


def _draw_nearest(subject: ImageSubject, path: Path) -> None:
    """Draw samples beside the nearest training images."""
    samples = subject.samples(STRIPS)
    train, _ = subject.model.split(subject.data.x)
    indices, distances = metrics.nearest(samples, train, NEIGHBOURS)
    plots.save(plots.nearest_images(as_picture(samples), as_picture(train[indices]), distances), path)


def _draw_extremes(subject: ImageSubject, path: Path) -> None:
    """Draw the least and the most likely of images that the model has not seen."""
    unseen = subject.unseen.take(slice(SCORED))
    log_prob = subject.model.draft(unseen.x, context=unseen.context)
    bits = metrics.bits_per_dim(-log_prob, subject.model.n_features)
    order, count = np.argsort(-bits), min(EXTREMES, len(bits) // 2)
    least, most = order[:count], order[::-1][:count]
    x = as_picture(unseen.x)
    plots.save(plots.extreme_images(x[least], x[most], bits[least], bits[most]), path)
