"""The receipt of a flow of explicit steps: is its exact determinant that of a density?

Each step is injective on a convex set where the symmetric part of its Jacobian is positive definite. That is measured
at the rows, at draws and at points near the rows: a check at many points, not a proof for all. Whether the steps are
onto shows in base points that nothing is mapped to, and both faults together in the integral of the density. The
condition suffices, and is not necessary: a share MOST_UNCERTIFIED of the points may miss it, which the receipt tells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import flat, preprocessed
from ffjord_kit.diagnostics.findings import BAD, GOOD, Finding
from ffjord_kit.diagnostics.integral import Integral, by_importance_sampling
from ffjord_kit.flow import Flow
from ffjord_kit.noise import standard_normal
from ffjord_kit.objectives.stepped import MOST_UNCERTIFIED, lowest_eigenvalues
from ffjord_kit.ode import SolveError
from ffjord_kit.transforms import Stepped, Transform

ROWS = 1000
SPREADS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the points near rows, in deviations of preprocessed rows
CHUNK = 4000  # points at once
CLOSE = 0.02  # distance of the integral from 1
ROUNDING = 1e-6  # of the way there and back


@dataclass(frozen=True)
class Receipt:
    """Measurements that say whether a flow of explicit steps is a density.

    Attributes:
        points: Number of points at which the steps were examined.
        lowest_eigenvalue: Lowest eigenvalue of the symmetric part of a step's Jacobian.
        lowest_singular_value: Lowest singular value of a step's Jacobian.
        uncertified: Share of the points where a step has an eigenvalue that is not positive.
        folded: Share of the points where a step's determinant is not positive.
        unreached: Share of points at the implicit end that no step reaches.
        round_trip: Largest distance of a row from itself, there and back, in preprocessed units.
        rounding: Largest difference of a row's log-density as the flow computes it from that in float64, nats.
        integral: Integral of the density, by importance sampling.
        integral_error: Its standard error.
    """

    points: int
    lowest_eigenvalue: float
    lowest_singular_value: float
    uncertified: float
    folded: float
    unreached: float
    round_trip: float
    rounding: float
    integral: float
    integral_error: float

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against a density; an integral of unknown error speaks neither for nor against it."""
        shares = max(self.uncertified, self.unreached)
        off = abs(self.integral - 1) > CLOSE + 3 * self.integral_error  # False for NaN
        return shares <= MOST_UNCERTIFIED and self.round_trip <= ROUNDING and not off

    @property
    def finding(self) -> Finding:
        """The receipt as a line of a diagnosis."""
        advice = "report by the continuous flow (density='continuous'), or train the steps anew"
        return Finding("explicit steps", GOOD if self.holds else BAD, str(self), advice)

    def record(self) -> dict[str, float | None]:
        """Return the receipt as plain values; None for what is not finite.

        Returns:
            Values by name.
        """
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Receipt:
        """Read a receipt of a record.

        Args:
            record: Values by name, as `record` returned them.

        Returns:
            The receipt.

        Raises:
            KeyError, TypeError, ValueError: If they make no sense.
        """
        names = [each.name for each in fields(cls)]
        values = {name: math.inf if record[name] is None else float(record[name]) for name in names}
        return cls(**{**values, "points": int(values["points"])})  # type: ignore[arg-type]

    def __str__(self) -> str:
        sure = math.isfinite(self.integral_error)
        integral = f"{self.integral:.3f} ± {self.integral_error:.3f}" if sure else "unknown"
        return (
            f"{'holds' if self.holds else 'FAILS: this is no density'}: lowest eigenvalue of a step "
            f"{self.lowest_eigenvalue:.3g} at {self.points} points ({self.uncertified:.2%} not positive), "
            f"{self.unreached:.2%} of draws missing, integral {integral}, there and back {self.round_trip:.1e}, "
            f"rounding {self.rounding:.1e} nats"
        )


@torch.no_grad()
def check_steps(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, rows: int = ROWS, integrate: bool = True, seed: int = 0
) -> Receipt:
    """Examine the explicit steps of a flow.

    Args:
        flow: Flow with `Stepped` transforms; it stays as it is.
        x: Rows in the units of the data, shape (n, *event).
        context: Contexts, shape (n, context_dim), or None.
        rows: Largest number of rows to use, evenly spread.
        integrate: Whether to integrate the density too, which takes the most time.
        seed: Seed of draws and of points near rows.

    Returns:
        The receipt.

    Raises:
        ValueError: If the flow has no explicit steps, or the rows do not fit it.

    Example:
        >>> from ffjord_kit import Flow, ResidualDynamics
        >>> flow = Flow([Stepped(ResidualDynamics((2,)), (2,), steps=4)])
        >>> check_steps(flow, torch.randn(200, 2, generator=torch.Generator().manual_seed(0))).holds
        True
    """
    flow.check(x, context)
    if not any(isinstance(transform, Stepped) for transform in flow.transforms):
        raise ValueError("a receipt is for a flow with transforms of explicit steps (Stepped); this one has none")
    generator = torch.Generator().manual_seed(seed)
    some = torch.linspace(0, len(x) - 1, min(len(x), rows)).long()
    double = copy.deepcopy(flow).double()
    batch, _ = preprocessed(double, Batch(x, context)[some])
    inner = double.inner
    round_trip, draws, unreached = _there_and_back(inner, batch, generator)
    points = _spread(batch, draws, generator)
    lowest, singular, folded = _steps_at(inner, points)
    integral = _integral(inner, batch, seed) if integrate else Integral(math.nan, math.inf, "")
    return Receipt(
        points=len(points), lowest_eigenvalue=float(lowest.min()), lowest_singular_value=float(singular.min()),
        uncertified=float((lowest <= 0).double().mean()), folded=float(folded.double().mean()), unreached=unreached,
        round_trip=round_trip, rounding=_rounding(flow, double, Batch(x, context)[some]),
        integral=integral.value, integral_error=integral.error,
    )  # fmt: skip


def _rounding(flow: Flow, double: Flow, batch: Batch) -> float:
    """Return the largest difference of log-densities from those in float64, nats."""
    log_probs = [each.log_prob(batch.x, batch.context).double() for each in (flow, double)]
    return float((log_probs[0] - log_probs[1]).abs().max())


def _there_and_back(inner: Flow, batch: Batch, generator: torch.Generator) -> tuple[float, Batch, float]:
    """Return the round trip's error, draws, and the share of base points that have no draw."""
    z, there = _mapped(inner.to_base, batch)
    x, back = _mapped(inner.to_data, batch[there].with_x(z))
    distance = float((x - batch.x[there][back]).abs().max()) if len(back) else math.inf
    base = inner.base.sample(len(batch), generator).to(batch.x)
    draws, reached = _mapped(inner.to_data, batch.with_x(base))
    return distance, batch[reached].with_x(draws), 1 - len(reached) / len(batch)


def _mapped(way: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Map rows, leaving out those that have no image; return the images, and the indices of the rows kept."""
    kept = torch.arange(len(batch))
    while len(kept):
        part = batch[kept]
        try:
            return way(part.x, part.context)[0], kept
        except SolveError as error:
            good = torch.ones(len(kept), dtype=torch.bool)
            good[list(error.rows)] = False
            kept = kept[good] if error.rows else kept[:0]
    return batch.x[:0], kept


def _spread(batch: Batch, draws: Batch, generator: torch.Generator) -> Batch:
    """Return rows, draws, and points near rows, each with its context."""
    near = [batch.x + spread * standard_normal(batch.x.shape, batch.x, generator) for spread in SPREADS]
    x = torch.cat([batch.x, *near, draws.x])
    if batch.context is None or draws.context is None:
        return Batch(x)
    return Batch(x, torch.cat([*[batch.context] * (1 + len(near)), draws.context]))


def _steps_at(inner: Flow, points: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return each point's lowest eigenvalue and singular value over all steps, and whether a step folds there."""
    results = [_steps_of(inner, chunk) for chunk in points.split(CHUNK)]
    lowest, singular, folded = (torch.cat(parts) for parts in zip(*results, strict=True))
    return lowest, singular, folded


def _steps_of(inner: Flow, points: Batch) -> tuple[Tensor, Tensor, Tensor]:
    x, count = points.x, len(points)
    lowest, singular = x.new_full((count,), math.inf), x.new_full((count,), math.inf)
    folded = torch.zeros(count, dtype=torch.bool)
    for transform in cast(Iterable[Transform], inner.transforms):
        z = transform.to_base(x, points.context)[0]
        if isinstance(transform, Stepped):
            for step in transform.walk(x if transform.explicit_from == "data" else z, points.context):
                lowest = torch.minimum(lowest, lowest_eigenvalues(step.jacobian))
                singular = torch.minimum(singular, torch.linalg.svdvals(step.jacobian)[:, -1])
                folded |= torch.linalg.det(step.jacobian) <= 0
        x = z
    return lowest, singular, folded


def _integral(inner: Flow, batch: Batch, seed: int) -> Integral:
    """Return the integral given the first row's context."""

    def log_density(points: Tensor) -> Tensor:
        context = None if batch.context is None else batch.context[:1].expand(len(points), -1)
        chunks = Batch(points.reshape(-1, *batch.x.shape[1:]), context).split(CHUNK)
        return torch.cat([inner.log_prob(chunk.x, chunk.context) for chunk in chunks])

    return by_importance_sampling(flat(batch.x), log_density, count=4 * ROWS, seed=seed)
