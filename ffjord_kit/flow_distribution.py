"""A flow as a distribution of `torch.distributions`, and the support of its density."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from ffjord_kit.ode import Solver
from ffjord_kit.transforms.bounded import Logit, Softplus
from ffjord_kit.transforms.manifold import Angles
from ffjord_kit.transforms.subsets import SubsetScaling


class ConditionalDensity(Protocol):
    """A density that may depend on a context; `Flow` is one.

    Attributes:
        context_dim: Length of the context vectors; 0 for none.
    """

    context_dim: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""

    @property
    def support(self) -> constraints.Constraint:
        """Set where the density is positive."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, solver: Solver | None = None) -> Tensor:
        """Return log-densities; see `Flow.log_prob`.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            solver: Solver of the continuous transforms.

        Returns:
            Log-densities, shape (batch,).
        """

    def rsample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw with gradients; see `Flow.rsample`.

        Args:
            n: Number of draws.
            context: Contexts, shape (n, context_dim), or None.
            solver: Solver of the continuous transforms.
            generator: Source of the noise.

        Returns:
            Draws, shape (n, *event).
        """


class FlowDistribution(Distribution):
    """A flow, given a context, as a `torch.distributions.Distribution`.

    It serves as a guide or a prior in Pyro, inside `Independent` and `TransformedDistribution`, or as another flow's
    base. Draws use torch's global random state, as those of every such distribution.

    Args:
        flow: The flow, or anything with its methods.
        context: Contexts, shape (*batch, context_dim), or None.
        solver: Solver of all continuous transforms; their own if None.
        batch_shape: Batch shape; the leading axes of the context if None.

    Raises:
        ValueError: If the context's length is not the flow's.

    Example:
        >>> from ffjord_kit import CNF, ConcatDynamics, FixedSolver, Flow
        >>> flow = Flow([CNF(ConcatDynamics((2,), context_dim=1), (2,), solver=FixedSolver("rk4", 4))], context_dim=1)
        >>> posterior = flow(torch.zeros(5, 1))
        >>> posterior.batch_shape, posterior.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> posterior.log_prob(posterior.sample((7,))).shape
        torch.Size([7, 5])
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        flow: ConditionalDensity,
        context: Tensor | None = None,
        *,
        solver: Solver | None = None,
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        shape = None if context is None else tuple(context.shape)
        if (shape[-1] if shape else 0) != flow.context_dim:
            wanted = f"have shape (..., {flow.context_dim})" if flow.context_dim else "be None for this flow"
            raise ValueError(f"context must {wanted}; got {'none' if shape is None else f'shape {shape}'}")
        self.flow, self.context, self.solver = flow, context, solver
        batch = (shape or ())[:-1] if batch_shape is None else batch_shape
        super().__init__(torch.Size(batch), torch.Size(flow.event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Set where the density is positive: the whole space, or the bounds of the preprocessing."""
        return self.flow.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Return the distribution with a larger batch shape.

        Args:
            batch_shape: Shape that the present batch shape broadcasts to.

        Returns:
            The expanded distribution.
        """
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, self.flow.context_dim)
        return FlowDistribution(self.flow, context, solver=self.solver, batch_shape=shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients, by torch's global random state.

        Args:
            sample_shape: Shape of independent draws.

        Returns:
            Draws, shape (*sample_shape, *batch_shape, *event_shape).
        """
        return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, by torch's global random state.

        Args:
            sample_shape: Shape of independent draws.

        Returns:
            Draws, shape (*sample_shape, *batch_shape, *event_shape).
        """
        lead = torch.Size((*sample_shape, *self.batch_shape))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        draws = self.flow.rsample(lead.numel(), self._contexts(lead), solver=self.solver, generator=generator)
        return draws.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities.

        Args:
            value: Events; their leading axes broadcast against the batch shape.

        Returns:
            Log-densities, nats, of the broadcast shape.

        Raises:
            ValueError: If the last axes are not those of an event.
        """
        axes = value.dim() - len(self.event_shape)
        if axes < 0 or value.shape[axes:] != self.event_shape:
            raise ValueError(
                f"expected events of shape (..., {', '.join(map(str, self.event_shape))}); got {tuple(value.shape)}"
            )
        lead = torch.broadcast_shapes(value.shape[:axes], self.batch_shape)
        rows = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        return self.flow.log_prob(rows, self._contexts(lead), solver=self.solver).reshape(lead)

    def _contexts(self, lead: torch.Size) -> Tensor | None:
        if self.context is None:
            return None
        return self.context.expand(*lead, self.flow.context_dim).reshape(-1, self.flow.context_dim)


def support_of(transforms: Iterable[nn.Module], event_shape: Sequence[int]) -> constraints.Constraint:
    """Return the set of data that transforms can map.

    Args:
        transforms: Transforms, from data to base; those next to the data may bound its elements.
        event_shape: Shape of an event.

    Returns:
        A constraint on events.

    Example:
        >>> from ffjord_kit.transforms import Logit
        >>> unit_interval = Logit(torch.zeros(1), torch.ones(1))
        >>> support_of([unit_interval], (1,)).check(torch.tensor([[0.5], [2.0]]))
        tensor([ True, False])
    """
    return constraints.independent(_constraint(*_bounds(transforms, event_shape)), len(event_shape))


def _bounds(transforms: Iterable[nn.Module], event_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the bounds of the data, infinite where there are none, each (*event,)."""
    upper = torch.full(tuple(event_shape), torch.inf, dtype=torch.float64)
    lower = -upper
    for transform in _one_by_one(transforms):
        if isinstance(transform, Angles):
            continue  # which any angle has
        if not isinstance(transform, (Logit, Softplus)):
            break
        low, high = (bound.to(lower) for bound in transform.bounds)
        free = lower.isinf() & upper.isinf()  # elements that an earlier transform has opened stay as they are
        lower, upper = torch.where(free, low, lower), torch.where(free, high, upper)
    return lower, upper


def _one_by_one(transforms: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield transforms, and in the place of a scaling of questions those that it is made of."""
    for transform in transforms:
        if isinstance(transform, SubsetScaling):
            yield from cast("Iterable[nn.Module]", transform.scaling.transforms)
        else:
            yield transform


def _constraint(lower: Tensor, upper: Tensor) -> constraints.Constraint:
    """Return the constraint of elements; for a mixture of kinds, one for each element of a vector."""
    if bool(lower.isinf().all()) and bool(upper.isinf().all()):
        return constraints.real
    if bool(lower.isfinite().all()) and bool(upper.isinf().all()):
        return constraints.greater_than(lower)
    if lower.dim() != 1 or bool((lower.isfinite() & upper.isfinite()).all()):
        return constraints.interval(lower, upper)
    elements = [_constraint(low, high) for low, high in zip(lower.split(1), upper.split(1), strict=True)]
    return constraints.cat(elements, dim=-1, lengths=[1] * len(elements))
