r"""A vector field for any question of a table: some columns are modelled, some are given, the others are absent.

With m the mask of the modelled columns, g that of the given ones, and v the values of these,

    dx/dt = m f(t, m x + g v, [g, m]),    tr J = sum_i m_i df_i/dx_i.

Columns that are not modelled stand still, so for each pair of masks the flow of this field is a flow on the modelled
columns alone, and its trace is exact. The masks and values of a row are its context, [g, v, m]. Beside columns of
categories it is [g, v, m, c, a]: c the one-hot codes of the levels that are known, which f is given with the masks, and
a which categories are asked for (`transforms/categorical.py`).

References:
    Strauss and Oliva 2021, arbitrary conditional distributions with energy, https://arxiv.org/abs/2102.04426.
    Ivanov et al. 2019, VAEAC, https://arxiv.org/abs/1806.02382.
    Gloeckler et al. 2024, Simformer, https://arxiv.org/abs/2404.09636.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.nn.base import VectorField, check_velocity

EDGE = 10.0  # given values, scaled, count as little beyond it where they are farther out


class QuestionContext(NamedTuple):
    """A question to each row of a table.

    Attributes:
        given: 1 where a column is given, else 0, shape (batch, d).
        values: Values of the given columns, 0 elsewhere, shape (batch, d).
        modelled: 1 where a column is modelled, else 0, shape (batch, d).
        categories: Codes of categories, and which of these are asked for, shape (batch, k); None for none.
    """

    given: Tensor
    values: Tensor
    modelled: Tensor
    categories: Tensor | None = None

    @classmethod
    def of_context(cls, context: Tensor, columns: int | None = None) -> QuestionContext:
        """Read the question of a context.

        Args:
            context: Contexts [g, v, m, ...], shape (batch, 3 d + k).
            columns: Number of columns d; None where there are no categories behind them.

        Returns:
            The question.
        """
        size = context.shape[1] // 3 if columns is None else columns
        return cls(*context.split([size, size, size, context.shape[1] - 3 * size], dim=1))

    @property
    def context(self) -> Tensor:
        """The context [g, v, m, ...], shape (batch, 3 d + k)."""
        return torch.cat([part for part in self if part is not None], dim=1)


class MaskedField(VectorField):
    """A field that moves the modelled columns alone, and sees the values of the given ones.

    Args:
        dynamics: Vector field f of d columns, whose contexts are the two masks and the codes of categories, shape
            (batch, 2 d + codes).
        codes: Number of elements of these codes.

    Example:
        >>> from ffjord_kit.nn import ResidualDynamics
        >>> field = MaskedField(ResidualDynamics((2,), context_dim=4, hidden=(8,)))
        >>> _ = torch.nn.init.ones_(field.dynamics.output_layer.weight)
        >>> given, modelled = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> context = QuestionContext(given, 3.0 * given, modelled).context
        >>> (field(torch.tensor(0.5), torch.randn(1, 2), context) != 0).tolist()  # the first column stands still
        [[False, True]]

    References:
        Strauss and Oliva 2021, https://arxiv.org/abs/2102.04426.
    """

    def __init__(self, dynamics: VectorField, codes: int = 0) -> None:
        super().__init__()
        self.dynamics, self.codes = dynamics, codes

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, 0 of columns that are not modelled.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, d).
            context: Contexts [g, v, m, ...], shape (batch, 3 d + k); None to model all columns.

        Returns:
            dx/dt, shape (batch, d).
        """
        question = _question(x, context)
        return question.modelled * self.dynamics(t, *self._seen(x, question))

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        question = _question(x, context)
        seen, masks = self._seen(x, question)
        dx, products = self.dynamics.jvp(t, seen, question.modelled * tangents, masks)
        return question.modelled * dx, question.modelled * products

    def divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        question = _question(x, context)
        seen, masks = self._seen(x, question)
        basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        dx, columns = self.dynamics.jvp(t, seen, basis[:, None], masks)
        check_velocity(dx, x)
        return question.modelled * dx, (question.modelled * columns.diagonal(dim1=0, dim2=2)).sum(1)

    def _seen(self, x: Tensor, question: QuestionContext) -> tuple[Tensor, Tensor]:
        """Return what the network sees: states with the given values in their places, and masks with known levels."""
        known = [] if question.categories is None else [question.categories[:, : self.codes]]
        masks = torch.cat([question.given, question.modelled, *known], dim=1)
        return question.modelled * x + question.given * held(question.values), masks


def _question(x: Tensor, context: Tensor | None) -> QuestionContext:
    """Return the question of a context; without one, all columns are modelled."""
    if context is None:
        return QuestionContext(torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x))
    return QuestionContext.of_context(context, x.shape[1])


def held(values: Tensor) -> Tensor:
    """Return scaled values that count as little beyond the edge where they are farther out.

    Args:
        values: Values, of any shape.

    Returns:
        Values within the edge and 1 more.
    """
    inside = values.clamp(-EDGE, EDGE)
    return inside + (values - inside).tanh()
