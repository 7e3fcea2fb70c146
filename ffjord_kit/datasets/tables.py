"""Real tables that scikit-learn carries; nothing is downloaded.

Digits are whole numbers k in 0..16. A density of whole numbers is unbounded, so each gets uniform noise u in [0, 1),
and the density of k + u averages to at most the log-probability of k (Theis, van den Oord, Bethge, "A note on the
evaluation of generative models", 2016, eq. 2). The other tables are left as they are, in their own units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ffjord_kit.datasets.dataset import Dataset, pixel_columns


def digits(rng: np.random.Generator) -> Dataset:
    """Load 1797 handwritten digits of 8 by 8 pixels with uniform noise.

    Args:
        rng: Source of the noise.

    Returns:
        Values in [0, 17), shape (1797, 64).
    """
    levels = _carried("digits").data
    return Dataset("digits", levels + rng.random(levels.shape), pixel_columns((8, 8)), image_shape=(8, 8))


def breast_cancer(rng: np.random.Generator) -> Dataset:
    """Load the measures of 569 cell nuclei.

    Args:
        rng: Not used.

    Returns:
        Values as measured, shape (569, 30).
    """
    return _dataset("breast_cancer", _carried("breast_cancer"))


def wine(rng: np.random.Generator) -> Dataset:
    """Load the chemical analysis of 178 wines.

    Args:
        rng: Not used.

    Returns:
        Values as measured, shape (178, 13).
    """
    return _dataset("wine", _carried("wine"))


def iris(rng: np.random.Generator) -> Dataset:
    """Load the lengths and widths of sepals and petals of 150 irises.

    Args:
        rng: Not used.

    Returns:
        Values in centimetres, shape (150, 4).
    """
    return _dataset("iris", _carried("iris"))


def diabetes(rng: np.random.Generator) -> Dataset:
    """Load age, sex, body mass, blood pressure and serum of 442 patients.

    Args:
        rng: Not used.

    Returns:
        Values as measured, not scaled, shape (442, 10).
    """
    return _dataset("diabetes", _carried("diabetes", scaled=False))


def _carried(name: str, **options: Any) -> Any:
    """Return a table of scikit-learn, which takes seconds to load and is loaded here alone."""
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(**options)


def _dataset(name: str, bunch: Any) -> Dataset:
    return Dataset(name, np.asarray(bunch.data, dtype=np.float64), tuple(map(str, bunch.feature_names)))
