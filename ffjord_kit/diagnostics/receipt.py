"""The receipt of a flow of explicit steps: is its exact determinant that of a density?

The integral of the density is the mean number of preimages of a base point. So base points are drawn, and it is counted
how many of them nothing is mapped to, and to how many a second point is mapped, which Newton's method looks for from
places around the first. Besides, each step is injective on a convex set where the symmetric part of its Jacobian is
positive definite, which is measured at rows, at draws and around the rows. These are checks at many points, not a proof
for all. Steps on a sphere are examined in the space around it, and those on a circle on the line; see
`ffjord_kit.geometry`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import flat, preprocessed
from ffjord_kit.diagnostics.findings import BAD, GOOD, Finding
from ffjord_kit.diagnostics.integral import GRID_FIRST, Integral, by_grid, by_importance_sampling, over_turns
from ffjord_kit.flow import Flow
from ffjord_kit.noise import standard_normal
from ffjord_kit.objectives.stepped import lowest_eigenvalues
from ffjord_kit.ode import SolveError
from ffjord_kit.run import finite_or_none, number_or_infinity
from ffjord_kit.transforms import Stepped, Transform

ROWS = 1000
SPREADS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the points near rows, in deviations of preprocessed rows
LOOK_AROUND = (0.3, 3.0)  # distances from a known preimage at which the search for another one begins
DEFECT = 0.005  # share of the mass that may be missing or counted twice: it shifts log-densities by as many nats
ROUNDING = 1e-6  # of the way there and back
ANOTHER_POINT = 1e-3  # a row that returns farther away than this is at another preimage of its base point


@dataclass(frozen=True)
class Receipt:
    """Measurements that say whether a flow of explicit steps is a density.

    Attributes:
        points: Number of rows and draws at which the steps were examined.
        lowest_eigenvalue: Lowest eigenvalue of the symmetric part of a step's Jacobian there.
        lowest_singular_value: Lowest singular value of a step's Jacobian there.
        uncertified: Share of these points where a step has an eigenvalue that is not positive.
        folded: Share of these points where a step's determinant is not positive.
        nearby: Share of points around rows, at distances of every order, where an eigenvalue is not positive.
        unreached: Share of base points to which nothing is mapped: mass that is missing.
        excess: Share of base points to which a second point is mapped, or of rows that return to another point, where
            that is more: mass that is counted twice.
        round_trip: Largest distance of a row from itself, there and back, in preprocessed units; rows that return to
            another point are part of `excess`.
        rounding: Largest difference of a row's log-density as the flow computes it from that in float64, nats.
        integral: Integral of the density, by a grid or importance sampling; NaN where it was not computed.
        integral_error: Its standard error.

    Example:
        >>> from dataclasses import replace
        >>> receipt = Receipt(1000, 0.5, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-12, 1e-7, integral=1.0, integral_error=1e-4)
        >>> receipt.holds, replace(receipt, unreached=0.02).holds
        (True, False)
    """

    points: int
    lowest_eigenvalue: float
    lowest_singular_value: float
    uncertified: float
    folded: float
    nearby: float
    unreached: float
    excess: float
    round_trip: float
    rounding: float
    integral: float
    integral_error: float

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against a density: no more mass than DEFECT is missing, or counted twice."""
        shares = max(self.uncertified, self.unreached, self.excess)
        off = abs(self.integral - 1) > DEFECT + 3 * self.integral_error  # False for NaN
        return shares <= DEFECT and self.round_trip <= ROUNDING and not off

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
        return {name: finite_or_none(value) for name, value in vars(self).items()}

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
        values = {each.name: number_or_infinity(record[each.name]) for each in fields(cls)}
        return cls(**{**values, "points": int(values["points"])})  # type: ignore[arg-type]

    def __str__(self) -> str:
        known = math.isfinite(self.integral_error)
        integral = f"integral {self.integral:.4f} ± {self.integral_error:.4f}, " if known else ""
        return (
            f"{'holds' if self.holds else 'FAILS: this is no density'}: {self.unreached:.2%} of the mass missing, "
            f"{self.excess:.2%} counted twice, {integral}lowest eigenvalue of a step {self.lowest_eigenvalue:.3g} at "
            f"{self.points} rows and draws ({self.uncertified:.2%} not positive; around rows {self.nearby:.2%}), "
            f"there and back {self.round_trip:.1e}, rounding {self.rounding:.1e} nats"
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
    round_trip, elsewhere, draws, unreached = _there_and_back(inner, batch, generator)
    here = _examined(inner, _joined(batch, draws))
    near = _around(batch, generator)
    around = _examined(inner, near.with_x(inner.base.project(near.x))).lowest
    integral = _integral(inner, _joined(batch, draws), seed) if integrate else Integral(math.nan, math.inf, "")
    return Receipt(
        points=len(here.lowest), lowest_eigenvalue=float(here.lowest.min()),
        lowest_singular_value=float(here.singular.min()), uncertified=_share(here.lowest <= 0),
        folded=_share(here.folded), nearby=_share(around <= 0), unreached=unreached,
        excess=max(elsewhere, _share(_examined(inner, draws, look_around=True).excess)), round_trip=round_trip,
        rounding=_rounding(flow, double, Batch(x, context)[some]), integral=integral.value,
        integral_error=integral.error,
    )  # fmt: skip


def _share(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0


def _rounding(flow: Flow, double: Flow, batch: Batch) -> float:
    """Return the largest difference of log-densities from those in float64, nats."""

    def log_prob(each: Flow) -> Tensor:
        rows = batch.to(each.like) if each.preprocess.identity else batch
        return each.log_prob(rows.x, rows.context).double()

    return float((log_prob(flow) - log_prob(double)).abs().max())


def _there_and_back(inner: Flow, batch: Batch, generator: torch.Generator) -> tuple[float, float, Batch, float]:
    """Return the round trip's error, the share of rows that return elsewhere, draws, and of base points without one."""
    z, there = _mapped(inner.to_base, batch)
    x, back = _mapped(inner.to_data, batch[there].with_x(z))
    distance = (x - batch.x[there][back]).abs().flatten(1).amax(1)
    same = distance < ANOTHER_POINT
    error = float(distance[same].max()) if bool(same.any()) else math.inf
    base = inner.base.sample(len(batch), generator).to(batch.x)
    draws, reached = _mapped(inner.to_data, batch.with_x(base))
    return error, _share(~same), batch[reached].with_x(draws), 1 - len(reached) / len(batch)


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


def _around(batch: Batch, generator: torch.Generator) -> Batch:
    """Return points around rows, each with its context."""
    near = [batch.x + spread * standard_normal(batch.x.shape, batch.x, generator) for spread in SPREADS]
    return Batch(torch.cat(near), None if batch.context is None else batch.context.repeat(len(near), 1))


def _joined(first: Batch, second: Batch) -> Batch:
    contexts = [batch.context for batch in (first, second) if batch.context is not None]
    return Batch(torch.cat([first.x, second.x]), torch.cat(contexts) if contexts else None)


class _Examined(NamedTuple):
    """Measurements at points, each of shape (batch,).

    Attributes:
        lowest: Lowest eigenvalue over all steps.
        singular: Lowest singular value over all steps.
        folded: Whether a step's determinant is not positive.
        excess: Whether another point was found that a step maps to the same end.
    """

    lowest: Tensor
    singular: Tensor
    folded: Tensor
    excess: Tensor


def _examined(inner: Flow, points: Batch, *, look_around: bool = False) -> _Examined:
    """Examine all steps on the way of points; other preimages are looked for on request."""
    empty, rows = points.x.new_zeros(0), inner.rows_at_once
    results = [_examined_chunk(inner, chunk, look_around) for chunk in points.split(rows)] if len(points) else []
    return (
        _Examined(*(torch.cat(parts) for parts in zip(*results, strict=True))) if results else _Examined(*[empty] * 4)
    )


def _examined_chunk(inner: Flow, points: Batch, look_around: bool) -> _Examined:
    x, context = points.x, points.context
    lowest, singular = x.new_full((len(x),), math.inf), x.new_full((len(x),), math.inf)
    folded, excess = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for transform in cast(Iterable[Transform], inner.transforms):
        z = transform.to_base(x, context)[0]
        if isinstance(transform, Stepped):
            steps = list(transform.walk(x if transform.explicit_from == "data" else z, context))
            for step in steps:
                lowest = torch.minimum(lowest, lowest_eigenvalues(step.jacobian))
                singular = torch.minimum(singular, torch.linalg.svdvals(step.jacobian)[:, -1])
                folded |= torch.linalg.det(step.jacobian) <= 0
            for spread in LOOK_AROUND if look_around else ():
                excess |= transform.other_preimages(steps, spread, context)
        x = z
    return _Examined(lowest, singular, folded, excess)


def _integral(inner: Flow, batch: Batch, seed: int) -> Integral:
    """Return the integral given the first row's context."""

    def log_density(points: Tensor) -> Tensor:
        context = None if batch.context is None else batch.context[:1].expand(len(points), -1)
        chunks = Batch(points.reshape(-1, *batch.x.shape[1:]), context).split(inner.rows_at_once)
        return torch.cat([inner.log_prob(chunk.x, chunk.context) for chunk in chunks])

    rows, geometry = flat(batch.x), inner.base.geometry
    if not geometry.is_flat:
        return over_turns(geometry, log_density)
    if rows.shape[1] <= GRID_FIRST:
        return by_grid(rows, log_density)
    return by_importance_sampling(rows, log_density, count=4 * ROWS, seed=seed)
