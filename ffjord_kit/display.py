"""Results as a notebook shows them: names and values as a small table, paths as a drawing; HTML without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

WIDTH, HEIGHT, MARGIN = 320, 220, 8  # of a drawing, pixels
PATHS, POINTS = 60, 21  # drawn at most; points of a path
BASE, DATA = "#888888", "#1f77b4"


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return names and values as a table.

    Args:
        title: Title, e.g. the name of a class.
        rows: Values by name, as plain text.

    Returns:
        HTML.

    Example:
        >>> html_table("Fit", {"NLL": "< 2"})
        '<table><caption>Fit</caption><tr><th>NLL</th><td>&lt; 2</td></tr></table>'
    """
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(title)}</caption>{''.join(lines)}</table>"


def svg_paths(times: np.ndarray, x: np.ndarray) -> str:
    """Draw paths from the base (grey ends) to the data (blue ends): the first two columns, or one against time.

    Args:
        times: Times, shape (T,).
        x: States, shape (T, n, d).

    Returns:
        An SVG element of at most 60 paths.
    """
    kept = np.unique(np.linspace(0, len(times) - 1, POINTS).round().astype(int))
    x = x[kept, :PATHS].astype(float)
    if x.shape[2] == 1:
        x = np.concatenate([np.broadcast_to(times[kept, None, None], x.shape), x], axis=2)
    places = _pixels(x[..., :2])
    lines = (f'<polyline points="{_points(path)}"/>' for path in places.swapaxes(0, 1))
    ends = "".join(_dots(place, colour) for place, colour in ((places[0], BASE), (places[-1], DATA)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="paths from base to data"><g fill="none" stroke="{BASE}" stroke-opacity="0.5">{"".join(lines)}</g>'
        f"{ends}</svg>"
    )


def _pixels(x: np.ndarray) -> np.ndarray:
    """Return places in the drawing, (T, n, 2); the vertical axis points up."""
    low, high = x.min((0, 1)), x.max((0, 1))
    unit = (x - low) / np.where(high > low, high - low, 1.0)
    unit[..., 1] = 1 - unit[..., 1]
    return MARGIN + unit * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)


def _points(path: np.ndarray) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in path)


def _dots(places: np.ndarray, colour: str) -> str:
    dots = (f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2"/>' for across, down in places)
    return f'<g fill="{colour}">{"".join(dots)}</g>'
