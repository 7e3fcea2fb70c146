r"""Training on random questions of a table: each row of a batch models some of its columns, given some others.

A row comes with its observed columns modelled and nothing given. A share of the rows stays so, which trains the joint
density; others have some columns given and model the rest, or model some and leave out the rest, or do both. Their
numbers are uniform, so that few columns are given as often as many. The loss is that of the modelled columns.

References:
    Strauss and Oliva 2021, https://arxiv.org/abs/2102.04426; Ivanov et al. 2019, https://arxiv.org/abs/1806.02382.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.nn.masked import QuestionContext
from ffjord_kit.objectives.base import Loss, Model, Objective, SolvedObjective
from ffjord_kit.ode import Solver

T = TypeVar("T", bound=Objective[Any])

JOINT, CONDITIONAL, MARGINAL = 0.5, 0.3, 0.1  # shares of the rows; the rest has all three states


@dataclass(frozen=True)
class OnQuestions(Objective[Model]):
    """An objective on random questions of the rows of a batch.

    Args:
        objective: Objective, of a flow whose contexts are questions [g, v, m, ...].
        sizes: Number of levels of each column of categories.

    Example:
        >>> import torch
        >>> x, ones = torch.randn(4, 3), torch.ones(4, 3)
        >>> batch = Batch(x, QuestionContext(0 * ones, 0 * ones, ones).context)
        >>> asked = QuestionContext.of_context(ask(batch, torch.Generator().manual_seed(0)).context)
        >>> bool((asked.given * asked.modelled).any()), bool(asked.modelled.any(1).all())
        (False, True)

    References:
        Strauss and Oliva 2021, https://arxiv.org/abs/2102.04426.
    """

    objective: Objective[Model]
    sizes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Word of the objective."""
        return self.objective.name

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> Loss:
        return self.objective.loss(model, ask(batch, generator, self.sizes), generator)


@dataclass(frozen=True)
class SolvedOnQuestions(OnQuestions[Model], SolvedObjective[Model]):
    """An objective on random questions whose loss is the result of a solve."""

    objective: SolvedObjective[Model]
    sizes: tuple[int, ...] = ()

    @property
    def solver(self) -> Solver | None:
        """Solver of the objective."""
        return self.objective.solver

    def row_losses(self, model: Model, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        return self.objective.row_losses(model, ask(batch, generator, self.sizes), generator, solver)

    def with_solver(self, solver: Solver) -> SolvedOnQuestions[Model]:
        return replace(self, objective=self.objective.with_solver(solver))


def on_questions(objective: T, sizes: Sequence[int] = ()) -> T:
    """Return an objective on random questions of the rows.

    Args:
        objective: Objective.
        sizes: Number of levels of each column of categories.

    Returns:
        The new objective.
    """
    kind = SolvedOnQuestions if isinstance(objective, SolvedObjective) else OnQuestions
    return cast(T, kind(cast(Any, objective), tuple(sizes)))


def ask(batch: Batch, generator: torch.Generator, sizes: Sequence[int] = ()) -> Batch:
    """Return rows with random questions, of which the modelled columns remain.

    Args:
        batch: Rows, shape (n, d), whose contexts model the observed columns and give none.
        generator: Source of the questions.
        sizes: Number of levels of each column of categories.

    Returns:
        The rows, 0 where nothing is modelled, and their new contexts, in which absent categories have no level.
    """
    columns = batch.x.shape[1]
    known = QuestionContext.of_context(cast(Tensor, batch.context), columns)
    codes, asked = cast(Tensor, known.categories).split([sum(sizes), len(sizes)], dim=1)
    masks = random_masks(torch.cat([known.modelled, asked], dim=1) > 0, generator)
    given, modelled = (mask.to(known.modelled) for mask in masks)
    there = (given + modelled)[:, columns:].repeat_interleave(torch.tensor(sizes, device=codes.device).long(), dim=1)
    categories = torch.cat([codes * there, modelled[:, columns:]], dim=1)
    given, modelled = given[:, :columns], modelled[:, :columns]
    question = QuestionContext(given, batch.x * given, modelled, categories)
    return replace(batch, x=batch.x * modelled, context=question.context)


def random_masks(observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which of the observed columns are given, and which are modelled.

    Args:
        observed: Whether a column is observed, shape (n, d).
        generator: Source of the draws.

    Returns:
        Two masks, shape (n, d); a row models one column at least.
    """
    rows, columns = observed.shape
    draws = torch.rand(rows, columns + 3, generator=generator, device=generator.device).to(observed.device)
    (kind, first, second), order = draws[:, :3].split(1, dim=1), draws[:, 3:] + (~observed)
    rank, count = order.argsort(1).argsort(1), observed.sum(1, keepdim=True)
    mixed = (kind >= JOINT + CONDITIONAL + MARGINAL) & (count > 2)
    marginal = (kind >= JOINT + CONDITIONAL) & (kind < JOINT + CONDITIONAL + MARGINAL)
    some = 1 + (first * (count - 1 - mixed.long())).long()  # 1 .. count - 1, or 1 .. count - 2
    given_below = torch.where(marginal, 0, some)
    more = some + 1 + (second * (count - 1 - some)).long()  # some + 1 .. count - 1
    absent_from = torch.where(mixed, more, torch.where(marginal, some, count))
    joint = (kind < JOINT) | (count < 2)
    given, modelled = observed & (rank < given_below), observed & (rank >= given_below) & (rank < absent_from)
    return given & ~joint, torch.where(joint, observed, modelled)
