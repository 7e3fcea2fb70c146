r"""The smallest change after which a row passes, and stays passing in a box around it.

    minimize  sum_j |s_j|   subject to   M(s) = min { m(s + u) : |u_j| <= e } >= required,   lower <= s <= upper

with the margin m of a `Judgment`, and changes s in units of the columns' scales. The worst u is sought by going to the
corner to which the gradient falls, twice; M is the soft minimum of what is found, and of points that failed before.
Around each point the constraint is replaced by its linear part, and the step by at most a radius; that program has one
constraint, and its solution is to shrink every |s_j| as far as the radius allows, and then to move the columns with the
steepest margin until the constraint holds (a continuous knapsack). The radius grows where a step lowers the exact
penalty sum |s_j| + price * max(0, required - M), and shrinks where it does not; a point that is refused while it fails
is moved back along its steepest column (sequential linear programming). Many starts go on side by side: single columns,
and parts of rows that pass.

References:
    Zhang, Solar-Lezama & Singh 2018, Interpreting neural network judgments via minimal, stable, and symbolic
    corrections, https://arxiv.org/abs/1802.07384, whose linear regions are those of a ReLU network.
    Fletcher & Sainz de la Maza 1989, Nonlinear programming and nonsmooth optimization by successive linear programming.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.diagnostics.judgment import LOWEST, Judgment

GRID = 24  # values of each column alone among the starts
PARTS = 384  # parts of reference rows among the starts
STARTS, KEPT = 24, 6  # starts of a row, and those that are followed to the end
FIRST_STEPS, LAST_STEPS = 10, 40
HOPS = 2  # from corner to corner of a box, towards the worst
SMOOTHING = 0.02  # margin below which two corners count together, so that the worst has a gradient
CLIMBING = 0.1  # the same while any change that passes is sought: along a ridge two corners fail in turn
FIRST_RADIUS, LARGEST_RADIUS, LAST_RADIUS = 0.5, 2.0, 1e-3
GROWTH, SHRINKAGE = 1.6, 0.4
LARGEST_PRICE = 1e6
INFLATION = 1.5  # of the price in each step that begins without passing
AIM = 1e-4  # margin beyond the required one that steps aim at: curvature and rounding fall short


class Candidates(NamedTuple):
    """Changes of each row, c of them, and their worst margins within e.

    Attributes:
        change: Changes in units of the scales, shape (n, c, k).
        margin: Worst margins, shape (n, c).
    """

    change: Tensor
    margin: Tensor

    def best(self, required: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest change of each row that passes; the one that comes closest where none does.

        Args:
            required: Margins to reach, shape (n,).

        Returns:
            Changes, shape (n, k), and their worst margins, shape (n,).
        """
        first = _order(self.change, self.margin, required)[:, :1]
        change, margin = _taken(self, first)
        return change[:, 0], margin[:, 0]


@dataclass(frozen=True, eq=False)
class Search:
    """A search for the smallest stable changes of rows.

    Args:
        judgment: Rows, judge and what may change.
        stable: Distance e in units of the scales.
        offsets: Points of each box that are tried beside the worst corner, each less the change, shape (k,).
    """

    judgment: Judgment
    stable: float
    offsets: tuple[Tensor, ...] = ()

    def run(self, reference: Tensor, required: Tensor, generator: torch.Generator) -> Candidates:
        """Search from many starts.

        Args:
            reference: Values of the allowed columns in rows that pass, shape (m, k).
            required: Margins to reach, shape (n,).
            generator: Source of the choice among starts.

        Returns:
            The best candidates of each row.
        """
        begun = self._starts(reference, required, generator)
        found = self.improve(begun, required, FIRST_STEPS)
        kept = _taken(found, _order(*found, required)[:, :KEPT])
        found = self.improve(kept.change, required, LAST_STEPS)
        failing = (found.margin < required[:, None]).all(1).nonzero()[:, 0]
        if len(failing):
            again = self.anew(torch.cat([found.change, begun], 1)[failing], required[failing], failing)
            found.change[failing], found.margin[failing] = again
        return found

    def anew(self, change: Tensor, required: Tensor, rows: Tensor) -> Candidates:
        """Search rows anew: first for any change that passes, then for a small one.

        Args:
            change: Changes to begin with, shape (n, c, k).
            required: Margins to reach, shape (n,).
            rows: Rows that these are changes of, shape (n,).

        Returns:
            The best candidates of each row.
        """
        climbed = self.improve(change, required, LAST_STEPS, rows, climb=True)
        kept = _taken(climbed, _order(*climbed, required)[:, :KEPT])
        found = self.improve(kept.change, required, LAST_STEPS, rows)
        both = Candidates(torch.cat([kept.change, found.change], 1), torch.cat([kept.margin, found.margin], 1))
        return _taken(both, _order(*both, required)[:, :KEPT])

    def improve(
        self,
        change: Tensor,
        required: Tensor,
        steps: int = LAST_STEPS,
        rows: Tensor | None = None,
        *,
        climb: bool = False,
    ) -> Candidates:
        """Go on from changes by sequential linear programming.

        Args:
            change: Changes to begin with, shape (n, c, k).
            required: Margins to reach, shape (n,).
            steps: Largest number of steps.
            rows: Rows that these are changes of, shape (n,); all if None.
            climb: Whether to look for a change that passes, whatever its size.

        Returns:
            The best change on the way from each.
        """
        n, c, k = change.shape
        rows = torch.arange(n) if rows is None else rows
        flat = change.reshape(-1, k), rows.repeat_interleave(c), required.repeat_interleave(c)
        found = self._descend(*flat, steps, climb)
        return Candidates(found[0].reshape(n, c, k), found[1].reshape(n, c))

    def worst(self, change: Tensor, row: Tensor, smoothing: float = SMOOTHING) -> tuple[Tensor, Tensor]:
        """Return the least margin found within e of changes, a little lower where several are as low, and its gradient.

        Args:
            change: Changes, shape (m, k).
            row: Row of each, shape (m,).
            smoothing: Margin below which two corners count together.

        Returns:
            Margins, shape (m,), and gradients, shape (m, k).
        """
        lower, upper = self.box(change, row)
        corner, (margin, slope) = change, self.judgment.slopes(change, row)
        margins, slopes = [margin], [slope]
        for _ in range(HOPS if self.stable > 0 else 0):
            before, corner = corner, torch.where(slope > 0, lower, upper)
            margin, slope = self.judgment.slopes(corner, row)
            margins.append(torch.where((corner == before).all(1), torch.inf, margin))
            slopes.append(slope)
        for offset in self.offsets:
            margin, slope = self.judgment.slopes((change + offset).clamp(lower, upper), row)
            margins.append(margin)
            slopes.append(slope)
        every = torch.stack(margins) / -smoothing
        return every.logsumexp(0) * -smoothing, (every.softmax(0)[..., None] * torch.stack(slopes)).sum(0)

    def knowing(self, offset: Tensor) -> Search:
        """Return a search that also tries another point of each box.

        Args:
            offset: The point less the change, shape (k,).

        Returns:
            The search.
        """
        return replace(self, offsets=(*self.offsets, offset))

    def box(self, change: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corners of all changes within e, and within the bounds.

        Args:
            change: Changes, shape (m, k).
            row: Row of each, shape (m,).

        Returns:
            The least and the greatest change of each column, both of shape (m, k).
        """
        lower, upper = self.judgment.lower[row], self.judgment.upper[row]
        return (change - self.stable).clamp(lower, upper), (change + self.stable).clamp(lower, upper)

    def _starts(self, reference: Tensor, required: Tensor, generator: torch.Generator) -> Tensor:
        """Return the best start of each of some random groups, by promise or among those that pass, (n, STARTS, k)."""
        n, k = self.judgment.lower.shape
        every = torch.arange(n)
        chosen = reference[torch.randint(len(reference), (PARTS,), generator=generator)]
        moved = torch.rand(PARTS, k, generator=generator) < torch.rand(PARTS, 1, generator=generator)
        moved[torch.arange(PARTS), torch.randint(k, (PARTS,), generator=generator)] = True  # one column or more
        share = torch.linspace(0, 1, GRID, dtype=torch.float64)
        pool = []
        for row in every.tolist():
            lower, upper = self.judgment.lower[row], self.judgment.upper[row]
            alone = torch.diag_embed(lower + share[:, None] * (upper - lower)).reshape(-1, k)
            pool.append(torch.cat([alone, self.judgment.changes(chosen, torch.full((PARTS,), row)) * moved]))
        size = len(pool[0]) // STARTS * STARTS
        order = torch.randperm(len(pool[0]), generator=generator)[:size]
        starts = torch.stack(pool)[:, order]
        margin, slope = self.judgment.slopes(starts.reshape(-1, k), every.repeat_interleave(size))
        lacking = (required.repeat_interleave(size) - margin).clamp(min=0)
        way = lacking / slope.abs().amax(1).clamp(min=1 / LARGEST_PRICE)  # by the linear part, along one column
        size_of = starts.abs().sum(2)
        promise = (size_of + way.reshape(n, -1)).reshape(n, STARTS, -1)
        passing = torch.where(lacking == 0, 0.0, -LOWEST + lacking).reshape(n, -1) + size_of
        passing = passing.reshape(n, STARTS, -1)
        promise = torch.cat([promise[:, : STARTS // 2], passing[:, STARTS // 2 :]], 1)
        first = promise.argmin(2)[..., None, None].expand(-1, -1, 1, k)
        return starts.reshape(n, STARTS, -1, k).gather(2, first)[:, :, 0]

    def _descend(self, change: Tensor, row: Tensor, required: Tensor, steps: int, climb: bool) -> tuple[Tensor, Tensor]:
        """Return the best changes on the way, (m, k), and their worst margins, (m,)."""
        lower, upper = self.judgment.lower[row], self.judgment.upper[row]
        change, radius = change.clone(), torch.full_like(required, FIRST_RADIUS)
        smoothing = CLIMBING if climb else SMOOTHING
        margin, slope = self.worst(change, row, smoothing)
        price = 2 / slope.abs().amax(1).clamp(min=1 / LARGEST_PRICE)
        best = Candidates(change[:, None].clone(), margin[:, None].clone())
        refused = torch.zeros_like(row, dtype=torch.bool)
        for _ in range(steps):
            on = (radius > LAST_RADIUS).nonzero()[:, 0]
            if not len(on):
                break
            lacking = required[on] - margin[on]
            low = (change[on] - radius[on, None]).maximum(lower[on])
            high = (change[on] + radius[on, None]).minimum(upper[on])
            home = change[on] if climb else torch.zeros_like(change[on])  # from which a step is measured
            trial, cost = linear_step(change[on] - home, slope[on], lacking + AIM, low - home, high - home)
            trial = trial + home
            back, near = _restored(change[on], slope[on], lacking + AIM), refused[on] & (lacking > 0)
            near &= ((back >= low) & (back <= high)).all(1)
            trial = torch.where(near[:, None], back, trial)
            price[on] = torch.maximum(price[on] * torch.where(lacking > 0, INFLATION, 1.0), 2 * cost)
            trial_margin, trial_slope = self.worst(trial, row[on], smoothing)
            weight = 0.0 if climb else 1.0
            merit = weight * change[on].abs().sum(1) + price[on] * lacking.clamp(min=0)
            trial_merit = weight * trial.abs().sum(1) + price[on] * (required[on] - trial_margin).clamp(min=0)
            better = trial_merit < merit - 1e-9
            radius[on] = torch.where(better, radius[on] * GROWTH, radius[on] * SHRINKAGE).clamp(max=LARGEST_RADIUS)
            went, refused[on] = on[better], ~better
            change[went], margin[went], slope[went] = trial[better], trial_margin[better], trial_slope[better]
            best = _better(best, on, trial, trial_margin, required)
        return best.change[:, 0], best.margin[:, 0]


def linear_step(change: Tensor, slope: Tensor, lacking: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest changes whose linear margin has grown by what lacks; where none has, the steepest.

    Args:
        change: Changes s, shape (m, k).
        slope: Gradients g of the margin, shape (m, k).
        lacking: What g (s' - s) must reach, shape (m,).
        lower: Least s', shape (m, k).
        upper: Greatest s', shape (m, k).

    Returns:
        Changes s', shape (m, k), and the size that a unit of margin costs, shape (m,).

    Example:
        >>> zeros = torch.zeros(1, 2)
        >>> linear_step(zeros, torch.tensor([[1.0, 2.0]]), torch.tensor([5.0]), zeros - 2, zeros + 2)
        (tensor([[1., 2.]]), tensor([1.]))
    """
    shrunk = torch.zeros_like(change).clamp(lower, upper)
    away = torch.where(slope > 0, upper, lower) - shrunk  # from zero, as `shrunk` is the nearest to it
    steepness, order = slope.abs().sort(dim=1, descending=True)
    gains = (slope * away).gather(1, order)
    need = lacking - (slope * (shrunk - change)).sum(1)
    left = need[:, None] - (gains.cumsum(1) - gains)
    share = torch.where(gains > 0, (left / gains.clamp(min=1e-30)).clamp(0, 1), 0.0)
    moved = shrunk + torch.zeros_like(share).scatter(1, order, share) * away
    cost = torch.where(share > 0, 1 / steepness.clamp(min=1 / LARGEST_PRICE), 0.0).amax(1)
    return moved, cost


def _restored(change: Tensor, slope: Tensor, lacking: Tensor) -> Tensor:
    """Return changes (m, k) whose linear margin has grown by what lacks, by their steepest column alone."""
    steepest = slope.abs().argmax(1, keepdim=True)
    steep = slope.gather(1, steepest)
    step = lacking[:, None] * steep.sign() / steep.abs().clamp(min=1 / LARGEST_PRICE)
    return change.scatter_add(1, steepest, step)


def _order(change: Tensor, margin: Tensor, required: Tensor) -> Tensor:
    """Return the order of candidates, (n, c): those that pass by size, then the others by what lacks."""
    lacking = required[:, None] - margin
    key = torch.where(lacking <= 0, change.abs().sum(2), -LOWEST + lacking)
    return key.argsort(dim=1)


def _taken(candidates: Candidates, places: Tensor) -> Candidates:
    """Return some of the candidates of each row, by their places (n, c)."""
    wide = places[..., None].expand(-1, -1, candidates.change.shape[2])
    return Candidates(candidates.change.gather(1, wide), candidates.margin.gather(1, places))


def _better(best: Candidates, on: Tensor, trial: Tensor, margin: Tensor, required: Tensor) -> Candidates:
    """Return the best candidates after trials of some of them."""
    both = Candidates(torch.stack([best.change[on, 0], trial], 1), torch.stack([best.margin[on, 0], margin], 1))
    change, worst = both.best(required[on])
    best.change[on, 0], best.margin[on, 0] = change, worst
    return best
