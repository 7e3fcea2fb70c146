"""Images of a report: samples beside held-out images, the flow of some, the most and the least likely."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from ffjord_kit.metrics import bits_per_dim
from ffjord_kit.report.flow import TIMES
from ffjord_kit.report.subject import Subject

SHEET, FLOWING, EXTREMES = 36, 12, 6
SCORED = 64  # held-out images
BYTES = 2_000_000  # of all images of a page
LARGEST = 3 * 64 * 64  # bytes of an image; of larger ones every second row and column is shown, or every third, ...


def images(subject: Subject) -> dict[str, Any]:
    """Return the images of a report.

    Args:
        subject: Subject of the report.

    Returns:
        Sheets of samples and of held-out images, the states of some samples by time, the extremes with their bits per
        dimension, and the number of images these were chosen from.
    """
    model = subject.model
    size = min(LARGEST, model.n_features) * (2 * SHEET + FLOWING * len(TIMES) + 2 * EXTREMES)
    sheet, flowing = (max(2, min(most, most * BYTES // size)) for most in (SHEET, FLOWING))
    contexts = subject.contexts(flowing)
    states = model.states(flowing, TIMES.tolist(), context=contexts, random_state=subject.seed)
    levels = np.clip(states / 2**model.image_domain.bits, 0, 1) * 255
    order = np.argsort(subject.log_prob)
    least, most = order[:EXTREMES], order[::-1][:EXTREMES]
    bits = bits_per_dim(-subject.log_prob, model.n_features)
    return {
        "samples": _sheet(subject, subject.draws(sheet)),
        "unseen": _sheet(subject, subject.unseen.some(sheet).x),
        "times": TIMES.tolist(),
        "states": [_sheet(subject, state) for state in levels],
        "least": {**_sheet(subject, subject.unseen.x[least]), "bits": bits[least].round(3).tolist()},
        "most": {**_sheet(subject, subject.unseen.x[most]), "bits": bits[most].round(3).tolist()},
        "scored": len(bits),
    }


def _sheet(subject: Subject, pixels: np.ndarray) -> dict[str, Any]:
    """Return images as bytes, channels last, grey or red, green and blue."""
    pixels = np.asarray(pixels).reshape(len(pixels), *subject.model.event_shape)
    pixels = pixels if pixels.shape[1] == 3 else pixels[:, :1]
    step = math.ceil(math.sqrt(pixels[0].size / LARGEST))
    shown = np.ascontiguousarray(np.moveaxis(pixels[..., ::step, ::step], 1, -1)).astype(np.uint8)
    count, height, width, channels = shown.shape
    content = base64.b64encode(shown.tobytes()).decode("ascii")
    return {"count": count, "height": height, "width": width, "channels": channels, "bytes": content}
