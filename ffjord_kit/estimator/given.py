"""What a fit is given: rows of a table, or images, checked at the edge, and what a run remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.utils.validation import validate_data

from ffjord_kit.estimator.arrays import check_context, facts, is_streamed
from ffjord_kit.estimator.checks import column_names
from ffjord_kit.estimator.dequantize import grid_of
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.images import Images, is_images

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

OF_TABLES = {"support": "real", "dequantize": "", "base": "normal", "layers": ""}
OF_IMAGES = {"bits": 8, "alpha": 1e-6, "scales": 1, "flip": False, "channels_last": False}


class Given(NamedTuple):
    """Rows (n, d) with the names of their columns, or images of uint8 (n, c, h, w); contexts (n, k) or None.

    With `stream` rows stay where they are.
    """

    x: np.ndarray
    context: np.ndarray | None
    names: tuple[str, ...]
    images: Images | None = None
    stream: bool = False

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a row or an image."""
        return tuple(self.x.shape[1:])


def given(model: FFJORD, x: Any, context: Any, columns: Sequence[str] | None) -> tuple[Given, dict[str, Any]]:
    """Data checked, and what a run remembers of them; the model's scikit-learn attributes are set.

    Raises ValueError for data that no flow can be fitted to, or fields that are not for such data.
    """
    refuse_strangers(model, OF_TABLES if is_images(x) else OF_IMAGES, "images" if is_images(x) else "tables")
    return _images(model, x, context) if is_images(x) else _rows(model, x, context, columns)


def refuse_strangers(fields: Fields, defaults: dict[str, Any], kind: str) -> None:
    """Raise ValueError for the first of the fields that is not at its default, and has no meaning for such data."""
    for name, default in defaults.items():
        if getattr(fields, name) != default:
            raise ValueError(f"{name} is not for {kind}; got {name}={getattr(fields, name)!r}: leave it out")


def _rows(model: FFJORD, x: Any, context: Any, columns: Sequence[str] | None) -> tuple[Given, dict[str, Any]]:
    stream = is_streamed(x)
    x = validate_data(model, x, dtype=[np.float64, np.float32] if stream else np.float64, ensure_min_samples=2)
    context = check_context(context, len(x))
    named = getattr(model, "feature_names_in_", None)  # scikit-learn sets it where X carries names
    names = column_names(columns if named is None else named, x.shape[1])
    about = {"columns": names, "named": named is not None, **facts(x, context)}
    return Given(x, context, names, None, stream), {**about, "grid": grid_of(model.dequantize, x, names)._asdict()}


def _images(model: FFJORD, x: Any, context: Any) -> tuple[Given, dict[str, Any]]:
    images = Images.of(x, model.bits, context)
    x = images.checked(x).numpy()
    if len(x) < 2:
        raise ValueError("images must be 2 or more; got 1")
    context = images.context(context, len(x)) if images.classes else check_context(context, len(x))
    model.n_features_in_ = x[0].size
    about = {"columns": (), "named": False, "images": images._asdict(), **facts(x, context)}
    return Given(x, context, (), images), about
