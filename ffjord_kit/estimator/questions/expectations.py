r"""Expectations under a fitted density by independent draws, E[f(x)] = 1/n sum_i f(x_i), with their standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.estimator.sampling import SamplingModel


class Expectation(NamedTuple):
    """A mean over draws.

    Attributes:
        value: The mean of f, a float, or an array of the shape of one value of f.
        standard_error: Its standard error, of the same shape.
        n: Number of draws.

    Example:
        >>> p = Expectation(0.25, 0.0433, 100)
        >>> print(f"{p.value:.2f} ± {p.standard_error:.2f} from {p.n} draws")
        0.25 ± 0.04 from 100 draws
    """

    value: Any
    standard_error: Any
    n: int


@dataclass(frozen=True, eq=False)
class ExpectationModel(SamplingModel):
    """A fitted flow that answers for means; see `ffjord_kit.estimator.model.DensityModel`."""

    def expectation(
        self, f: Callable[[Any], Any], *, n: int = 10_000, context: Any = None, random_state: Any = None
    ) -> Expectation:
        """Return the mean of a function over draws of the density that reports, with its standard error.

        Args:
            f: Function of the draws as `sample` returns them, with a value, a truth value or an array for each, e.g.
                `lambda x: x[:, 0] > 1` for a probability.
            n: Number of draws, at least 2.
            context: Contexts, as in `sample`.
            random_state: Seed, or None.

        Returns:
            The mean, and its standard error: the deviation of f over the draws, divided by the root of n.

        Raises:
            ValueError: If there are fewer than two draws, or f does not give a finite value for each.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> p = model.expectation(lambda x: x[:, 0] > 0, n=200, random_state=0)
            >>> 0 < p.value < 1, p.n
            (True, 200)
        """
        if n < 2:
            raise ValueError(f"n must be at least 2, for a standard error; got {n}")
        values = _checked(f(self.sample(n, context=context, random_state=random_state)), n)
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(n)
        return Expectation(float(mean), float(error), n) if values.ndim == 1 else Expectation(mean, error, n)


def _checked(values: Any, n: int) -> np.ndarray:
    """Return the values of a function as numbers, the first axis being that of the draws."""
    array = np.asarray(values, dtype=np.float64)
    if not array.ndim or len(array) != n:
        raise ValueError(f"f must give a value for each of the {n} draws, shape ({n}, ...); got shape {array.shape}")
    finite = np.isfinite(array.reshape(n, -1)).all(1)
    if not finite.all():
        raise ValueError(
            f"f gives NaN or infinity at {(~finite).sum()} of {n} draws (first: draw {(~finite).argmax()}): its mean "
            "does not exist, or f needs mending there"
        )
    return array
