r"""Categorical: the probability of categories beside a density given these, in the place of a log-determinant.

    log p(x, c | u) = log p(x | c, u) + log p(c | u),    log p(c | u) = sum_j log p(c_j | c_1 .. c_{j-1}, u)

The categories c come as one-hot codes, one after another, at the end of the contexts; u are the contexts before them. A
flow over x whose context is (u, c) has the density p(x | c, u). This transform leaves x as it is and adds log p(c | u),
so that the flow's density is that of x and c together: with respect to counting measure for c. Each factor is

    p(c_j = k | f) = (1 - s) softmax_k(A f + b + W tanh(V f + a)) + s q_k,    f = (u, c_1 .. c_{j-1}),

with q the frequencies of the levels by Laplace's rule, (n_k + 1) / (n + K), and the share s = 1e-3, so that no level
has the probability 0. A factor of nothing, f = (), is q itself. The codes must come as they are, without scaling
(`ContextScaling.of(context, plain=...)`).

Where any question is asked (`nn/masked.py`), a category is given, asked for or absent, and f of a factor is what is
known: the masks g and values v of the given numbers x_G, the codes of the given categories c_G, and those of the
categories asked for before it,

    log p(c_A | x_G, c_G) = sum over j in A of log p(c_j | x_G, c_G, c_i for i in A, i < j).

All factors are normalised, so for each question the probabilities of all combinations of levels sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffjord_kit.nn.masked import QuestionContext, held
from ffjord_kit.transforms.base import Transform

SHARE = 1e-3  # s
HIDDEN = 32  # elements of tanh
LEAST = 1e-9  # of q and its sum, in a sound file


class Factor(NamedTuple):
    """Weights of a factor: q (K,), V (m, HIDDEN), a (HIDDEN,), W (HIDDEN, K), A (m, K), b (K,), m the length of f."""

    frequency: Tensor
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    linear: Tensor
    bias: Tensor

    @classmethod
    def of_counts(cls, counts: Tensor, inputs: int) -> Factor:
        """Return the factor that says the frequencies whatever f is.

        Args:
            counts: Rows of each level, shape (K,).
            inputs: Length of f.

        Returns:
            The factor, in float64.
        """
        size, frequency = len(counts), (counts.double() + 1) / (counts.sum() + len(counts))
        shapes = (inputs, HIDDEN), (HIDDEN,), (HIDDEN, size), (inputs, size)
        inner, inner_bias, outer, linear = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return cls(frequency, inner, inner_bias, outer, linear, frequency.log())

    def log_prob(self, given: Tensor) -> Tensor:
        """Return the log-probabilities of all levels.

        Args:
            given: f, shape (batch, m).

        Returns:
            Nats, shape (batch, K).
        """
        hidden = torch.addmm(self.inner_bias, given, self.inner).tanh()
        share = (given @ self.linear + hidden @ self.outer + self.bias).softmax(1)
        return ((1 - SHARE) * share + SHARE * self.frequency).log()


class Categorical(Transform):
    """Leave rows as they are, and add the log-probability of the categories at the end of their contexts.

    Args:
        factors: A factor for each category, in the order of their codes.

    Example:
        >>> coin = Categorical([Factor.of_counts(torch.tensor([2.0, 6.0]), 0)])  # Laplace's rule: 3 of 10, 7 of 10
        >>> x, log_prob = coin.to_base(torch.zeros(2, 1).double(), torch.eye(2).double())
        >>> [round(value, 3) for value in log_prob.exp().tolist()]
        [0.3, 0.7]
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        super().__init__()
        self.sizes = tuple(len(factor.frequency) for factor in factors)
        for place, factor in enumerate(factors):
            for name, value in factor._asdict().items():
                self.register_buffer(f"{name}_{place}", value)

    @classmethod
    def blank(cls, sizes: Sequence[int], inputs: int) -> Categorical:
        """Return a transform to load values into.

        Args:
            sizes: Number of levels of each category.
            inputs: Length of u.

        Returns:
            The transform.
        """
        before = [inputs + sum(sizes[:place]) for place in range(len(sizes))]
        return cls([Factor.of_counts(torch.zeros(size), m) for size, m in zip(sizes, before, strict=True)])

    @property
    def factors(self) -> list[Factor]:
        """The factors."""
        return [
            Factor(*(getattr(self, f"{name}_{place}") for name in Factor._fields)) for place in range(len(self.sizes))
        ]

    def flaw(self) -> str:
        sound = all(
            bool((factor.frequency > LEAST).all()) and abs(float(factor.frequency.sum()) - 1) < LEAST
            for factor in self.factors
        )
        return "" if sound else "frequencies of levels that are no probabilities"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, self.log_prob(context)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z, -self.log_prob(context)

    def log_prob(self, context: Tensor | None) -> Tensor:
        """Return the log-probability of the categories.

        Args:
            context: u and the codes, shape (batch, m).

        Returns:
            Nats, shape (batch,).

        Raises:
            ValueError: If there is no context.
        """
        if context is None:
            raise ValueError("rows of a table with categories need the codes of these; got None: pass context=")
        total, start = context.new_zeros(len(context)), context.shape[1] - sum(self.sizes)
        for size, factor in zip(self.sizes, self.factors, strict=True):
            total = total + (factor.log_prob(context[:, :start]) * context[:, start : start + size]).sum(1)
            start += size
        return total

    def sample(self, given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw categories.

        Args:
            given: u, shape (batch, m).
            generator: Source of the draws.

        Returns:
            Codes, shape (batch, sum of the sizes).
        """
        known = given.double()
        for size, factor in zip(self.sizes, self.factors, strict=True):
            levels = torch.multinomial(factor.log_prob(known).exp(), 1, generator=generator)
            known = torch.cat([known, torch.nn.functional.one_hot(levels[:, 0], size).to(known)], dim=1)
        return known[:, given.shape[1] :]


class AskedCategorical(Categorical):
    """Leave rows as they are, and add the log-probability of the categories that their questions ask for.

    Args:
        factors: A factor for each category, whose f is what is known of the numbers (`known_numbers`), and the codes.
        columns: Number of columns d that are no categories.
        circles: Columns among these that are angles, in radians.

    Example:
        >>> coin = AskedCategorical([Factor.of_counts(torch.tensor([2.0, 6.0]), 2)], 0)
        >>> given, asked = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
        >>> [round(coin.log_prob(context.double()).exp().item(), 3) for context in (given, asked)]
        [1.0, 0.7]
    """

    def __init__(self, factors: Sequence[Factor], columns: int, circles: Sequence[int] = ()) -> None:
        super().__init__(factors)
        self.columns, self.circles = columns, tuple(circles)

    @classmethod
    def blank_for(cls, sizes: Sequence[int], columns: int, circles: Sequence[int] = ()) -> AskedCategorical:
        """Return a transform to load values into.

        Args:
            sizes: Number of levels of each category.
            columns: Number of columns that are no categories.
            circles: Columns among these that are angles.

        Returns:
            The transform.
        """
        inputs = 2 * columns + len(circles) + sum(sizes)
        return cls([Factor.of_counts(torch.zeros(size), inputs) for size in sizes], columns, circles)

    def log_prob(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError("rows of a table with categories need their questions; got None: pass context=")
        numbers, codes, asked = self._parts(context)
        total = context.new_zeros(len(context))
        for place, (own, factor) in enumerate(zip(codes.split(self.sizes, dim=1), self.factors, strict=True)):
            known = torch.cat([numbers, self._known(codes, asked, place)], dim=1)
            total = total + asked[:, place] * (factor.log_prob(known) * own).sum(1)
        return total

    def sample(self, given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw the categories that are asked for.

        Args:
            given: Questions [g, v, m, c, a] with scaled values, shape (batch, 3 d + k).
            generator: Source of the draws.

        Returns:
            Codes of all categories, those given as they are, shape (batch, sum of the sizes).
        """
        numbers, codes, asked = self._parts(given.double())
        for place, (size, factor) in enumerate(zip(self.sizes, self.factors, strict=True)):
            known = torch.cat([numbers, self._known(codes, asked, place)], dim=1)
            levels = torch.multinomial(factor.log_prob(known).exp(), 1, generator=generator)
            drawn = torch.nn.functional.one_hot(levels[:, 0], size).to(codes)
            parts = list(codes.split(self.sizes, dim=1))
            parts[place] = torch.where(asked[:, place : place + 1] > 0, drawn, parts[place])
            codes = torch.cat(parts, dim=1)
        return codes

    def _parts(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is known of the numbers, the codes, and which categories are asked for."""
        question = QuestionContext.of_context(context, self.columns)
        behind = context[:, 3 * self.columns :]
        codes, asked = behind.split([sum(self.sizes), len(self.sizes)], dim=1)
        return known_numbers(question.given, question.values, self.circles), codes, asked

    def _known(self, codes: Tensor, asked: Tensor, place: int) -> Tensor:
        """Return the codes that a factor is given: none of the categories asked for from its own on."""
        later = torch.arange(len(self.sizes), device=codes.device) >= place
        kept = 1 - asked * later
        return codes * kept.repeat_interleave(torch.tensor(self.sizes, device=codes.device), dim=1)


def known_numbers(given: Tensor, values: Tensor, circles: Sequence[int] = ()) -> Tensor:
    """Return what the probability of a category sees of numbers: which are known, and their values.

    Args:
        given: 1 where a number is known, shape (batch, d).
        values: Scaled values, shape (batch, d).
        circles: Columns that are angles, whose cosine and sine stand for them, as they have no end.

    Returns:
        Masks and values, 0 where a number is unknown, shape (batch, 2 d + number of circles).

    Example:
        >>> known_numbers(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]])).tolist()
        [[1.0, 0.0, 2.0, 0.0]]
    """
    line = [i for i in range(given.shape[1]) if i not in circles]
    turned, there = values[:, list(circles)], given[:, list(circles)]
    return torch.cat([given, given[:, line] * held(values[:, line]), there * turned.cos(), there * turned.sin()], dim=1)


def categorical_of(flow: nn.Module) -> Categorical:
    """Return the probability of categories among the transforms of a flow.

    Args:
        flow: Flow.

    Returns:
        The transform.
    """
    return next(each for each in flow.modules() if isinstance(each, Categorical))
