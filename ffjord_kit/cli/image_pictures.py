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
    """What is drawn: a model of images, the data beside it (None: none at hand), labels (n,) to draw by, and a seed."""

    model: FFJORD
    data: Source | None
    labels: np.ndarray | None
    seed: int

    def told(self, n: int) -> np.ndarray | None:
        """Labels for n samples, in turn."""
        return None if self.labels is None else np.resize(self.labels, n)

    def samples(self, n: int) -> np.ndarray:
        """Draws of uint8."""
        return self.model.sample(n, context=self.told(n), random_state=self.seed)


def image_drawings(subject: ImageSubject) -> dict[str, Drawing]:
    """The pictures by the names of their files; those that need data only where there are some."""
    alone: dict[str, Drawing] = {
        "strip.png": lambda path: _strip(subject, path),
        "sheet.png": lambda path: _sheet(subject, path),
    }
    if subject.data is None:
        return alone
    return alone | {
        "interpolation.png": lambda path: _interpolation(subject, path),
        "nearest.png": lambda path: _nearest(subject, path),
        "extremes.png": lambda path: _extremes(subject, path),
    }


def _sheet(subject: ImageSubject, path: Path) -> None:
    beside = None if subject.data is None else floats(subject.data.x[:SHEET])
    plots.save(plots.image_sheet(floats(subject.samples(SHEET)), beside=beside), path)


def _strip(subject: ImageSubject, path: Path) -> None:
    model = subject.model
    levels = model.states(ROWS, TIMES.tolist(), context=subject.told(ROWS), random_state=subject.seed)
    shown = np.clip(levels / 2**model.bits, 0, 1) * 255
    plots.save(plots.image_strip(TIMES, floats(shown)), path)


def _interpolation(subject: ImageSubject, path: Path) -> None:
    x, context = held_out_of(subject.model, subject.data)
    first, last = (slice(start, 2 * min(ROWS, len(x) // 2), 2) for start in (0, 1))
    told = None if context is None else (context[first], context[last])
    way = interpolate(subject.model, x[first], x[last], steps=STEPS, contexts=told)
    plots.save(plots.interpolation_strip(floats(way)), path)


def _nearest(subject: ImageSubject, path: Path) -> None:
    drawn = subject.samples(ROWS)
    train, _ = subject.model.split(subject.data.x)
    which, distances = metrics.nearest(drawn, train, NEIGHBOURS)
    plots.save(plots.nearest_images(floats(drawn), floats(train[which]), distances), path)


def _extremes(subject: ImageSubject, path: Path) -> None:
    """Of images that were held out, the least and the most likely."""
    x, context = (None if part is None else part[:SCORED] for part in held_out_of(subject.model, subject.data))
    log_prob = subject.model.draft(x, context=context)
    bits = metrics.bits_per_dim(-log_prob, subject.model.n_features_in_)
    order, count = np.argsort(-bits), min(EXTREMES, len(bits) // 2)
    least, most = order[:count], order[::-1][:count]
    plots.save(plots.extreme_images(floats(x[least]), floats(x[most]), bits[least], bits[most]), path)
