"""The pictures of a model of images: sheets, ways from noise, ways between data, neighbours, and extremes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffjord_kit import metrics, plots
from ffjord_kit.cli.image_files import floats
from ffjord_kit.cli.sources import Source, held_out_of
from ffjord_kit.estimator import FFJORD, interpolate

TIMES = np.sin(np.linspace(0.0, np.pi / 2, 9))  # slower towards the data, where most happens
SHEET, ROWS, STEPS, NEIGHBOURS = 100, 8, 9, 5
SCORED, EXTREMES = 64, 10

Drawing = Callable[[Path], None]


@dataclass(frozen=True)
class ImageSubject:
    """What is drawn: a model of images, the data beside it, labels (n,) to draw by, and a seed.

    The data are those that it was `fitted` to, of whom some were held out, or others.
    """

    model: FFJORD
    data: Source
    labels: np.ndarray | None
    seed: int
    fitted: bool = True

    @property
    def unseen(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Images that the model was not fitted to, and their labels."""
        return held_out_of(self.model, self.data) if self.fitted else self.data.pair

    def told(self, n: int) -> np.ndarray | None:
        """Labels for n samples, in turn."""
        return None if self.labels is None else np.resize(self.labels, n)

    def samples(self, n: int) -> np.ndarray:
        """Draws of uint8."""
        return _channelled(self.model, self.model.sample(n, context=self.told(n), random_state=self.seed))


def image_drawings(subject: ImageSubject) -> dict[str, Drawing]:
    """The pictures by the names of their files; the nearest training images where those are the data."""
    drawings: dict[str, Drawing] = {
        "strip.png": lambda path: _strip(subject, path),
        "sheet.png": lambda path: _sheet(subject, path),
        "interpolation.png": lambda path: _interpolation(subject, path),
        "extremes.png": lambda path: _extremes(subject, path),
    }
    return drawings | ({"nearest.png": lambda path: _nearest(subject, path)} if subject.fitted else {})


def _sheet(subject: ImageSubject, path: Path) -> None:
    drawn, beside = subject.samples(SHEET), subject.data.x[:SHEET]
    plots.save(plots.image_sheet(floats(drawn), beside=floats(beside)), path)


def _channelled(model: FFJORD, images: np.ndarray) -> np.ndarray:
    """Images (..., c, h, w), whether the model gives them with an axis of channels or without."""
    lead = images.ndim - 3 + (not model.images.channels)
    return images.reshape(*images.shape[:lead], *model.event_shape_)


def _strip(subject: ImageSubject, path: Path) -> None:
    model = subject.model
    levels = model.states(ROWS, TIMES.tolist(), context=subject.told(ROWS), random_state=subject.seed)
    shown = np.clip(_channelled(model, levels) / 2**model.bits, 0, 1) * 255
    plots.save(plots.image_strip(TIMES, floats(shown)), path)


def _interpolation(subject: ImageSubject, path: Path) -> None:
    x, context = subject.unseen
    first, last = (slice(start, 2 * min(ROWS, len(x) // 2), 2) for start in (0, 1))
    told = None if context is None else (context[first], context[last])
    given = [_given(subject.model, x[part]) for part in (first, last)]
    way = interpolate(subject.model, *given, steps=STEPS, contexts=told)
    plots.save(plots.interpolation_strip(floats(_channelled(subject.model, way))), path)


def _given(model: FFJORD, images: np.ndarray) -> np.ndarray:
    """Images (n, c, h, w) as the model was given those of its fit."""
    return model.images.framed(images)


def _nearest(subject: ImageSubject, path: Path) -> None:
    drawn = subject.samples(ROWS)
    train, _ = subject.model.split(subject.data.x)
    which, distances = metrics.nearest(drawn, train, NEIGHBOURS)
    plots.save(plots.nearest_images(floats(drawn), floats(train[which]), distances), path)


def _extremes(subject: ImageSubject, path: Path) -> None:
    """Of images that the model has not seen, the least and the most likely."""
    x, context = (None if part is None else part[:SCORED] for part in subject.unseen)
    log_prob = subject.model.draft(x, context=context)
    bits = metrics.bits_per_dim(-log_prob, subject.model.n_features_in_)
    order, count = np.argsort(-bits), min(EXTREMES, len(bits) // 2)
    least, most = order[:count], order[::-1][:count]
    plots.save(plots.extreme_images(floats(x[least]), floats(x[most]), bits[least], bits[most]), path)
