"""Places at the base: rows to the base and back, and ways between rows through the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.estimator.data import refuse_not_finite, tensor, to_numpy
from ffjord_kit.estimator.sampling import SamplingModel
from ffjord_kit.estimator.scoring import placed, to_data
from ffjord_kit.flow import Flow
from ffjord_kit.ode import PerRowSolver, Solver
from ffjord_kit.precision import double_precision
from ffjord_kit.rows import as_rows, frame_of, is_frame
from ffjord_kit.transforms.cnf import SolveOptions

SHARPER, FINEST = 0.01, 1e-12  # tolerance of a map to the base, in tolerances of reports, and at least


@dataclass(frozen=True, eq=False)
class BasePointModel(SamplingModel):
    """A fitted flow that maps data to its base and back; see `ffjord_kit.estimator.model.DensityModel`."""

    def transform(self, X: Any, *, context: Any = None) -> np.ndarray:
        """Map rows of a table to the base, where draws of the model follow the base distribution.

        The map is that of the density that reports: exact by few steps; else solved to a hundredth of the field
        `tolerance`.

        Args:
            X: Rows, shape (n, d).
            context: Contexts.

        Returns:
            Points at the base, shape (n, d).

        Raises:
            ValueError: If rows lie outside the support, the data are images, or columns are no real line.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(5.0, 1.0, size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> bool(np.abs(model.transform(x).mean()) < 0.2)
            True
        """
        self._require_points("transform")
        batch = self._batch_inside(X, context, "transform")
        return to_numpy(self._to_base(batch, double_precision(self.reporting_flow), self._fine_solver))

    def inverse_transform(self, Z: Any, *, context: Any = None) -> Any:
        """Map points at the base to rows of a table: the way back of `transform`.

        Args:
            Z: Points, shape (n, d).
            context: Contexts, those of the rows.

        Returns:
            Rows, shape (n, d), columns of equal steps on their grid; a frame of pandas where Z is a frame.

        Raises:
            ValueError: If the shape does not fit, the data are images, or columns are no real line.
            SolveError: If few exact steps reach no row from a point.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> np.allclose(model.inverse_transform(model.transform(x[:3])), x[:3], atol=1e-5)
            True
        """
        self._require_points("inverse_transform")
        z = np.asarray(as_rows(Z, "Z"), dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != self.domain.size or not len(z):
            raise ValueError(f"expected points of shape (n >= 1, {self.domain.size}); got {z.shape}")
        refuse_not_finite(z, "Z")
        contexts = self._contexts(context, len(z))
        place = Batch(tensor(z), None if contexts is None else tensor(contexts))
        flow = double_precision(self.reporting_flow)
        parts = [to_numpy(to_data(flow, part, self._fine_solver)) for part in place.split(self._rows_at_once)]
        rows = self.domain.restore(np.concatenate(parts))
        return frame_of(dict(zip(self.record["columns"], rows.T, strict=True))) if is_frame(Z) else rows

    def interpolate(
        self, start: Any, end: Any, *, steps: int = 9, contexts: tuple[Any, Any] | None = None
    ) -> np.ndarray:
        """Return ways between data, along great circles between their places at the base (Shoemake 1985).

        A straight line between two draws of a normal law of many dimensions would pass where it has hardly any mass.

        Args:
            start: Data, n of them.
            end: As many other data.
            steps: Number of places on a way, at least 3.
            contexts: Contexts of both ends; those between are interpolated.

        Returns:
            Data on the ways, shape (n, steps, ...), the given ones at the ends.

        Raises:
            ValueError: If there are too few steps, the data do not pair, or some lie outside the support.
        """
        self.domain.require_real("interpolate", "sample it")
        if steps < 3 or len(start) != len(end):
            raise ValueError(
                f"interpolate takes pairs of data and 3 steps or more; got {len(start)}, {len(end)}, {steps}"
            )
        pairs = zip((start, end), contexts or (None, None), strict=True)
        first, last = (self._batch_inside(x, context, "interpolate") for x, context in pairs)
        z, z_last = (self._to_base(each, self.flow, self._solver) for each in (first, last))
        between = []
        for share in np.linspace(0, 1, steps)[1:-1].tolist():
            c = first.context
            if c is not None and last.context is not None:
                c = torch.lerp(c, last.context, share)
            place = Batch(_on_great_circle(z, z_last, share), c)
            between.append(self.domain.restore(to_numpy(to_data(self.flow, place, self._solver))))
        return np.stack(np.broadcast_arrays(start, *between, end), axis=1)

    def _require_points(self, verb: str) -> None:
        """Refuse data whose rows are no points of the base's space, or not by their columns alone."""
        self.domain.require_table(verb, "map them by their flow, model.flow_.to_base")
        self.domain.require_real(verb, "map its rows by its flow, model.flow_.to_base")

    @property
    def _fine_solver(self) -> Solver:
        """The solver of reports with a hundredth of its tolerance, so that rows come back to more digits."""
        solver = self._solver
        if not isinstance(solver, PerRowSolver):
            return solver
        return replace(solver, rtol=max(SHARPER * solver.rtol, FINEST), atol=max(SHARPER * solver.atol, FINEST))

    @torch.no_grad()
    def _to_base(self, batch: Batch, flow: Flow, solver: Solver) -> Tensor:
        """Map checked rows to the base of a flow, some at a time."""
        options = SolveOptions(trace=None, solver=solver)
        parts = [placed(flow, part) for part in batch.split(self._rows_at_once)]
        return torch.cat([flow.to_base(part.x, part.context, options=options)[0] for part in parts])


def _on_great_circle(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return points between rows (n, *event), by angle and, in proportion, by length."""
    a, b = start.flatten(1).double(), end.flatten(1).double()
    lengths = [part.norm(dim=1, keepdim=True) for part in (a, b)]
    cosine = ((a / lengths[0]) * (b / lengths[1])).sum(1, keepdim=True).clamp(-1 + 1e-9, 1 - 1e-9)
    angle = cosine.acos()
    turned = ((1 - share) * angle).sin() * a / lengths[0] + (share * angle).sin() * b / lengths[1]
    length = lengths[0] ** (1 - share) * lengths[1] ** share
    return (turned / angle.sin() * length).reshape(start.shape).to(start)
