"""Draws of a fitted flow as arrays, all at once or chunk by chunk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch, sampling_batch_size
from ffjord_kit.display import html_table, svg_paths
from ffjord_kit.estimator.data import seed_from, tensor, to_numpy
from ffjord_kit.estimator.image import ImageDomain
from ffjord_kit.estimator.scoring import ScoringModel, to_data
from ffjord_kit.flow import Flow
from ffjord_kit.memory import check_fits
from ffjord_kit.objectives import guided
from ffjord_kit.ode import SolveError, Solver
from ffjord_kit.precision import double_precision, single_precision

MOST_REDRAWN = 0.05  # of the draws


class NumpyTrajectory(NamedTuple):
    """States along the way and their log-densities.

    Attributes:
        times: Times, shape (T,).
        x: States, shape (T, n, d).
        log_prob: Log-densities under p_t, nats, shape (T, n).

    Example:
        >>> path = NumpyTrajectory(np.linspace(0, 1, 3), np.zeros((3, 5, 2)), np.zeros((3, 5)))
        >>> path.x[-1].shape  # at time 1: data
        (5, 2)
    """

    times: np.ndarray
    x: np.ndarray
    log_prob: np.ndarray

    def _repr_html_(self) -> str:
        frames, n, d = self.x.shape
        means = (f"{values.mean():.4f} nats" for values in (self.log_prob[0], self.log_prob[-1]))
        rows = {"paths": f"{n}, in {d} columns, at {frames} times from {self.times[0]:g} to {self.times[-1]:g}"}
        rows |= dict(zip(("mean log-density at the base", "mean log-density at the data"), means, strict=True))
        return html_table("Trajectory", rows) + svg_paths(self.times, self.x)


@dataclass(frozen=True, eq=False)
class SamplingModel(ScoringModel):
    """A fitted flow that draws arrays; see `ffjord_kit.estimator.model.DensityModel`."""

    def sample(
        self,
        n_samples: int = 1,
        *,
        context: Any = None,
        random_state: Any = None,
        steps: int | None = None,
        method: str = "midpoint",
        guidance: float = 1.0,
    ) -> Any:
        """Draw new rows or images.

        Args:
            n_samples: Number of draws.
            context: One context (c,) or (1, c) for all, or one for each (n_samples, c); of images labels, one or each.
            random_state: Seed, or None.
            steps: Number of fixed steps of the continuous flow, in float32: fast, and as good as the paths are
                straight (see `FFJORD.reflow`); None for draws of the density that reports, converged or exact.
            method: Method of the fixed steps.
            guidance: Above 1, draws are further into their context than the data are; it needs `context_dropout` in
                the fit.

        Returns:
            Draws in the form of the data, columns of equal steps on their grid: an array, or, where a column is of
            texts or of dates, a frame of pandas.

        Raises:
            ValueError: If a number is out of range, or the context does not fit.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> model.sample(3, random_state=0).shape, model.sample(3, steps=4).shape  # converged; by four steps
            ((3, 2), (3, 2))
        """
        draws = self.draw(
            n_samples, context=context, random_state=random_state, steps=steps, method=method, guidance=guidance
        )
        return self.domain.presented(draws)

    def draw(self, n_samples: int, **options: Any) -> np.ndarray:
        """Draw as `sample` does, into an array, in which texts are the places of their levels and dates are days.

        Args:
            n_samples: Number of draws.
            **options: Those of `sample`.

        Returns:
            Draws, shape (n_samples, ...).

        Raises:
            ValueError: If a number is out of range, or the context does not fit.
        """
        self.check_draws(n_samples)
        draws, done = np.empty(0), 0
        for chunk in self._draw(n_samples, **options):
            if not done:
                draws = np.empty((n_samples, *chunk.shape[1:]), chunk.dtype)
            draws[done : done + len(chunk)] = chunk
            done += len(chunk)
        return draws

    def sample_chunks(self, n_samples: int, **options: Any) -> Iterator[np.ndarray]:
        """Draw new rows or images chunk by chunk, so that any number of them can be written to a file.

        Args:
            n_samples: Number of draws.
            **options: Those of `sample`.

        Returns:
            The draws of `sample`, some thousands at a time.

        Raises:
            ValueError: If a number is out of range, or the context does not fit.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> sum(len(chunk) for chunk in model.model_.sample_chunks(50))
            50
        """
        _check_count(n_samples)
        return self._draw(n_samples, **options)

    def _draw(
        self,
        n_samples: int,
        context: Any = None,
        random_state: Any = None,
        steps: int | None = None,
        method: str = "midpoint",
        guidance: float = 1.0,
    ) -> Iterator[np.ndarray]:
        context = self.domain.coded_context(context)
        one_for_all = not self.is_image and np.size(context) == self.context_dim
        contexts = self._contexts(context, 1 if one_for_all else n_samples)
        generator = torch.Generator().manual_seed(seed_from(random_state))
        solver = self._solver if steps is None else self.few_step_solver(method, steps)
        flow = self._drawing_flow(steps, guidance)
        rows = sampling_batch_size(self.event_shape, self.flow.like.device.type)
        for start in range(0, n_samples, rows):
            z = self.flow.base.sample(min(rows, n_samples - start), generator)
            part = _part(contexts, start, len(z), one_for_all)
            given = self.domain.with_drawn_categories(self.flow, part, len(z), generator)
            place = Batch(z, given)
            with self._naming_context(place):
                yield self.domain.drawn(to_numpy(self._moved(flow, place, solver, generator)), given)

    def _drawing_flow(self, steps: int | None, guidance: float) -> Flow:
        """Return the flow to draw from."""
        if guidance != 1:
            flow = self._guided(guidance)
            return flow if steps is None else single_precision(flow)
        return double_precision(self.reporting_flow) if steps is None else single_precision(self.flow)

    def _moved(self, flow: Flow, place: Batch, solver: Solver, generator: torch.Generator) -> Tensor:
        """Map points at the base to data; points that no exact step reaches are drawn again, which a warning tells."""
        again = 0
        while True:
            try:
                draws = to_data(flow, place, solver)
            except SolveError as error:
                again += len(error.rows)
                if self.density != "steps" or not error.rows or again > MOST_REDRAWN * len(place):
                    raise
                z = place.x.clone()
                z[list(error.rows)] = self.flow.base.sample(len(error.rows), generator)
                place = place.with_x(z)
                continue
            if again:
                warnings.warn(
                    f"{again} of {len(place)} base points have no draw by the exact steps, and were drawn again: that "
                    "share of the density's integral is missing (see its receipt)",
                    stacklevel=2,
                )
            return draws

    def check_draws(self, n_samples: int) -> None:
        """Check that the memory can hold some draws, before any of them is made.

        Args:
            n_samples: Number of draws.

        Raises:
            ValueError: If there is none, or there are too many.
        """
        _check_count(n_samples)
        size = n_samples * self.n_features * np.dtype(np.float64).itemsize
        check_fits(f"{n_samples} samples of {self.n_features} numbers would take", size, "draw fewer at a time")

    def _prepare_draws(self, n: int, context: Any, random_state: Any) -> tuple[torch.Generator, Tensor | None]:
        self.check_draws(n)
        contexts = self._contexts(context, n)
        generator, given = torch.Generator().manual_seed(seed_from(random_state)), None
        if contexts is not None:
            given = tensor(contexts)
        return generator, self.domain.with_drawn_categories(self.flow, given, n, generator)

    def _guided(self, guidance: float) -> Flow:
        if not guidance >= 0:
            raise ValueError(f"guidance must be at least 0, and above 1 to go further; got {guidance}")
        if not isinstance(self.domain, ImageDomain) or not self.domain.context_dropout:
            raise ValueError(
                "guidance needs a model of images that was fitted with labels and context_dropout=0.1; this one was not"
            )
        return guided(self.flow, guidance)


def _check_count(n_samples: int) -> None:
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; got {n_samples}")


def _part(contexts: np.ndarray | None, start: int, count: int, one_for_all: bool) -> Tensor | None:
    """Return the contexts of some draws, (count, c)."""
    if contexts is None:
        return None
    return tensor(np.broadcast_to(contexts, (count, contexts.shape[1])) if one_for_all else contexts[start:][:count])
