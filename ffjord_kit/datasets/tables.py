"""Real data that scikit-learn carries with it: nothing is fetched.

Digits are whole numbers k in 0..16. A density of whole numbers is unbounded, so each gets uniform noise u in [0, 1),
and the density of k + u averages to at most the log-probability of k (Theis, van den Oord, Bethge, "A note on the
evaluation of generative models", 2016, eq. 2). The other tables are left as they are, in their own units.
"""

from __future__ import annotations

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.utils import Bunch

from ffjord_kit.datasets.dataset import Dataset, pixel_columns


def digits(rng: np.random.Generator) -> Dataset:
    """Handwritten digits, 1797 pictures of 8 by 8, dequantised: values in [0, 17)."""
    levels = sklearn_datasets.load_digits().data
    return Dataset("digits", levels + rng.random(levels.shape), pixel_columns((8, 8)), image_shape=(8, 8))


def breast_cancer(rng: np.random.Generator) -> Dataset:
    """Measures of 569 cell nuclei, 30 columns."""
    return _table("breast_cancer", sklearn_datasets.load_breast_cancer())


def wine(rng: np.random.Generator) -> Dataset:
    """Chemical analysis of 178 wines, 13 columns."""
    return _table("wine", sklearn_datasets.load_wine())


def iris(rng: np.random.Generator) -> Dataset:
    """Sepals and petals of 150 irises, 4 columns in centimetres."""
    return _table("iris", sklearn_datasets.load_iris())


def diabetes(rng: np.random.Generator) -> Dataset:
    """Age, sex, body mass, blood pressure and serum of 442 patients, 10 columns, unscaled."""
    return _table("diabetes", sklearn_datasets.load_diabetes(scaled=False))


def _table(name: str, bunch: Bunch) -> Dataset:
    return Dataset(name, np.asarray(bunch.data, dtype=np.float64), tuple(map(str, bunch.feature_names)))
