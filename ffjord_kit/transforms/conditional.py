r"""ConditionalAffine: location and scale that follow the context, taken out before a flow sees the rows.

    z = (x - m(c)) / s(c),    log|det dz/dx| = -sum log s(c),    (m, log s) = A c + b + W tanh(V c + a)

A network in units of all rows hardly sees rows whose width is a thousandth of theirs. Here m and s are fitted by the
likelihood of Student's t distribution with DF degrees of freedom, which outliers pull little, by L-BFGS steps. The
weights that are best on held-out rows are kept, if they beat a constant location and scale there; else the transform
is the identity. log s stays near the range of the fit's rows for any context.

References:
    Nix and Weigend 1994, Estimating the mean and variance of the target probability distribution, ICNN.
    Liu and Nocedal 1989, On the limited memory BFGS method, Mathematical Programming 45.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.distributions import fit_student
from ffjord_kit.transforms.base import Transform
from ffjord_kit.weights import mean_and_error, resampled

HIDDEN = 32
SPAN = 1.5  # of the random V and a
DF = 10.0
FIT_ROWS, HELD_OUT, FEWEST_HELD_OUT = 4_000, 0.2, 10
ROUNDS, STEPS, PATIENCE = 20, 10, 2  # of L-BFGS steps between looks at the held-out rows; looks without progress
DECAY = 1e-3  # of W
MARGIN = 0.02  # nats a column, and standard errors of the gain, by which held-out rows must be likelier
ERRORS = 2.0
SLACK = math.log(2.0)  # by which log s may leave its range over the fit's rows
LEAST = -20.0  # log s: where rows follow from their contexts, it has no lower bound


class Weights(NamedTuple):
    """Weights of m and log s: V (c, h), a (h,), W (h, 2 d), A (c, 2 d), b (2 d,)."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    linear: Tensor
    bias: Tensor

    @classmethod
    def drawn(cls, context_dim: int, size: int) -> Weights:
        """Return weights of a constant location 0 and scale 1, to start from.

        Args:
            context_dim: Length of a context.
            size: Number of columns.

        Returns:
            The weights, in float64.
        """
        generator = torch.Generator().manual_seed(0)
        drawn = SPAN * torch.randn(context_dim + 1, HIDDEN, generator=generator, dtype=torch.float64)
        shapes = (HIDDEN, 2 * size), (context_dim, 2 * size), (2 * size,)
        rest = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        return cls(drawn[1:] / math.sqrt(context_dim), drawn[0].clone(), *rest)

    def __call__(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and log s.

        Args:
            context: Scaled contexts, shape (batch, c).

        Returns:
            m and log s, each of shape (batch, d).
        """
        hidden = torch.addmm(self.inner_bias, context, self.inner).tanh()
        location, log_scale = (context @ self.linear + hidden @ self.outer + self.bias).chunk(2, dim=1)
        return location, log_scale.clamp(min=LEAST)

    def loss(self, rows: Batch) -> Tensor:
        """Return the negative log-likelihood of rows, but for a constant.

        Args:
            rows: Rows, shape (batch, d), and scaled contexts, shape (batch, c).

        Returns:
            Nats, shape (batch,).
        """
        location, log_scale = self(cast(Tensor, rows.context))
        z = (rows.x - location) * (-log_scale).exp()
        return (0.5 * (DF + 1) * (z.square() / DF).log1p() + log_scale).sum(1)


class ConditionalAffine(Transform):
    """Shift and scale each column by what the context says.

    Args:
        centre: Centres of the columns in all rows, shape (d,).
        spread: Spreads of the columns in all rows, > 0, shape (d,).
        weights: Weights of location and log-scale in these units.
        low: Least log-scales, shape (d,).
        high: Largest log-scales, shape (d,).

    Example:
        >>> c = torch.linspace(-1, 1, 500, dtype=torch.float64)[:, None]
        >>> x = 5 * c + c.exp() * torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> z, _ = ConditionalAffine.of(x, c).to_base(x, c)
        >>> [round(float(part.std()), 1) for part in (z[:250], z[250:])]
        [1.1, 1.1]

    References:
        Nix and Weigend 1994.
    """

    event_shape: tuple[int, ...]
    centre: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, centre: Tensor, spread: Tensor, weights: Weights, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(centre.shape)
        for name, value in {"centre": centre, "spread": spread, "low": low, "high": high, **weights._asdict()}.items():
            self.register_buffer(name, value)

    @classmethod
    def of(cls, x: Tensor, context: Tensor, weight: Tensor | None = None) -> ConditionalAffine:
        """Fit the transform by maximum likelihood.

        Args:
            x: Rows in float64, shape (n, d).
            context: Scaled contexts in float64, shape (n, c).
            weight: Weights of the rows, whose sizes count, shape (n,), or None.

        Returns:
            The transform; the identity where held-out rows do not gain by it.
        """
        units = fit_student(resampled(x, weight))
        r = (x - units.loc) / units.scale
        weights = _fitted(Batch(r, context, None if weight is None else weight.abs() / weight.abs().mean()))
        if weights is None:
            return cls.identity(x.new_zeros(x.shape[1]), context.shape[1])
        log_scale = weights(context)[1]
        return cls(units.loc, units.scale, weights, log_scale.amin(0) - SLACK, log_scale.amax(0) + SLACK)

    @classmethod
    def identity(cls, zeros: Tensor, context_dim: int) -> ConditionalAffine:
        """Return the identity.

        Args:
            zeros: A tensor of the shape (d,) of a row.
            context_dim: Length of a context.

        Returns:
            The transform.
        """
        zeros = zeros.double()
        weights = Weights.drawn(context_dim, len(zeros))
        return cls(zeros, torch.ones_like(zeros), weights, zeros.clone(), zeros.clone())

    @property
    def is_identity(self) -> bool:
        """Whether the context says nothing."""
        return not bool(self.low.any() or self.high.any())

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        location, log_scale = self._location_and_log_scale(context)
        return (x - location) * (-log_scale).exp(), -log_scale.sum(1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        location, log_scale = self._location_and_log_scale(context)
        return z * log_scale.exp() + location, log_scale.sum(1)

    def _location_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return location and log-scale in the units of x, each (batch, d)."""
        if context is None:
            raise ValueError("rows of a conditional flow need their contexts; got None: pass context=")
        weights = Weights(*(getattr(self, name) for name in Weights._fields))
        location, log_scale = weights(context)
        log_scale = torch.minimum(torch.maximum(log_scale, self.low), self.high)
        return self.centre + self.spread * location, self.spread.log() + log_scale


@torch.enable_grad()
def _fitted(rows: Batch) -> Weights | None:
    """Return the weights under which held-out rows are likeliest; None if a constant location and scale suit them."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:FIT_ROWS]
    held_out = order[: int(HELD_OUT * len(order))]
    if len(held_out) < FEWEST_HELD_OUT:
        return None
    kept, judges = rows[order[len(held_out) :]], rows[held_out]
    weights = Weights.drawn(cast(Tensor, rows.context).shape[1], rows.x.shape[1])
    next(_descent(weights, [weights.bias], kept))
    constant = best = weights.loss(judges).detach()
    found, stale = None, 0
    for _ in _descent(weights, list(weights), kept):
        loss = weights.loss(judges).detach()
        if bool(judges.mean(loss) < judges.mean(best)):
            best, found, stale = loss, Weights(*(value.detach().clone() for value in weights)), 0
        else:
            stale += 1
        if stale == PATIENCE:
            break
    gain, error = mean_and_error(constant - best, judges.weight)
    return found if gain > max(MARGIN * rows.x.shape[1], ERRORS * error) else None


def _descent(weights: Weights, free: Sequence[Tensor], rows: Batch) -> Iterator[None]:
    """Fit some of the weights to rows, with a stop after each round of steps."""
    for value in free:
        value.requires_grad_()
    optimizer = torch.optim.LBFGS(free, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = rows.mean(weights.loss(rows)) + DECAY * weights.outer.square().sum()
        loss.backward()
        return loss

    for _ in range(ROUNDS):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        yield
