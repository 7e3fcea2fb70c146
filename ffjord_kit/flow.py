r"""Flow: transforms over a base distribution.

    log p(x) = log p_base(z) + log|det dz/dx|,    z = to_base(x)

Conventions: base at t = 0, data at t = 1; continuous transforms share the time between in proportion to their
durations, and exact ones take none. States along the way are in the units of the data: p_t is the distribution of a
sample whose continuous transforms were stopped at t, so p_1 is the model, and p_0 the base seen through the exact
transforms alone. Log-densities are (batch,), nats, in the units of the data; costs are >= 0 in both directions; noise
comes from a generator, never from the global state (`FlowDistribution` alone uses it, as torch.distributions do); a
call leaves nothing behind on a module.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from ffjord_kit.accuracy import AccuracyOptions, LogDensity, log_density
from ffjord_kit.data import Batch, scoring_batch_size
from ffjord_kit.distributions import Base, StandardNormal, as_base
from ffjord_kit.flow_distribution import FlowDistribution, support_of
from ffjord_kit.ode import RowSteps, Solver
from ffjord_kit.ode.field import inside_transform
from ffjord_kit.segments import (
    Transported,
    apply_exact,
    carry,
    locate,
    path_between,
    path_into,
    path_to_base,
    reverse,
)  # fmt: skip
from ffjord_kit.trace import ExactTrace, TraceEstimator
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.transforms.contexts import ContextScaling
from ffjord_kit.transforms.preprocess import Preprocess


@dataclass(frozen=True)
class Trajectory:
    """States and their log-densities along the way.

    Attributes:
        times: Times, shape (T,).
        x: States, shape (T, batch, *event).
        log_prob: Log-densities under p_t, shape (T, batch).
        nfe: Evaluations of the dynamics.

    Example:
        >>> from ffjord_kit import CNF, Flow, ResidualDynamics
        >>> flow = Flow([CNF(ResidualDynamics((1,)), (1,))])  # untrained: nothing moves
        >>> path = flow.trajectory(torch.ones(2, 1), [0.0, 0.5, 1.0])
        >>> path.x.shape, bool((path.x == 1).all())
        (torch.Size([3, 2, 1]), True)
    """

    times: Tensor
    x: Tensor
    log_prob: Tensor
    nfe: int


class Flow(nn.Module):
    """A distribution: transforms, listed from data to base, over a base distribution.

    Args:
        transforms: Transforms, from data to base.
        base: Base distribution, any `torch.distributions` object too; standard normal if None.
        preprocess: Fitted exact transforms between the data and `transforms`, computed in float64.
        context_dim: Length of the context vectors; 0 for an unconditional flow.
        context_preprocess: Fitted scaling or transform of the context.

    Example:
        >>> from ffjord_kit import CNF, Flow, ResidualDynamics, Standardize
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> flow = Flow([CNF(ResidualDynamics((2,)), (2,))], preprocess=[Standardize.of(x)])
        >>> [round(value, 4) for value in flow.log_prob(x).tolist()]  # an untrained network is the identity
        [-3.531, -3.531]
        >>> flow().sample((3,)).shape
        torch.Size([3, 2])

    References:
        Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        *,
        base: Base | Distribution | None = None,
        preprocess: Sequence[Transform] | Preprocess = (),
        context_dim: int = 0,
        context_preprocess: Transform | ContextScaling | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(preprocess, Preprocess):
            preprocess = Preprocess(preprocess, context_preprocess)
        self.preprocess = preprocess
        self.transforms = nn.ModuleList(transforms)
        known = [*self.preprocess.transforms, *transforms]
        self.base = StandardNormal(_event_shape(cast("list[Transform]", known))) if base is None else as_base(base)
        self.context_dim = context_dim

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the flow as a `torch.distributions.Distribution`.

        Args:
            context: Contexts, shape (*batch, context_dim), or None; their leading axes are the batch shape.

        Returns:
            The distribution, given the context.
        """
        return FlowDistribution(self, context)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.base.event_shape

    @property
    def support(self) -> constraints.Constraint:
        """Set where the density is positive: the whole space, or the bounds of the transforms next to the data."""
        return support_of([*self.preprocess.transforms, *self.transforms], self.event_shape)

    @property
    def inner(self) -> Flow:
        """The flow behind its preprocessing, over preprocessed rows; modules are shared, not copied."""
        return Flow(self._path, base=self.base, context_dim=self.context_dim)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device in which the transforms compute; float64 where nothing learns."""
        parameters = itertools.chain(self.transforms.parameters(), self.base.parameters())
        device = next((buffer.device for buffer in self.base.buffers()), None)
        return next(parameters, torch.zeros((), dtype=torch.float64, device=device))

    @property
    def rows_at_once(self) -> int:
        """Number of rows whose log-densities are computed at once: as many as the caches hold with their tangents."""
        matrices = (p for p in self.transforms.parameters() if p.dim() == 2)
        width = max((min(matrix.shape) for matrix in matrices), default=1)  # of the widest hidden layer
        return scoring_batch_size(self.event_shape, self.like.device.type, width)

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        trace: TraceEstimator | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log-densities under p_time.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            time: Time of the states, in [0, 1].
            trace: Trace estimator; exact if None.
            solver: Solver of all continuous transforms; their own if None.
            generator: Source of a stochastic trace's noise.

        Returns:
            Log-densities, shape (batch,), in nats and the units of the data.

        Raises:
            ValueError: If a shape or the time does not fit.
            SolveError: If a solve cannot go on.
        """
        options = SolveOptions(trace=trace or ExactTrace(), solver=solver, generator=generator)
        return self.evaluate_log_prob(x, context, time=time, options=options)[0]

    def evaluate_log_prob(
        self, x: Tensor, context: Tensor | None = None, *, time: float = 1.0, options: SolveOptions | None = None
    ) -> tuple[Tensor, Transported]:
        """Return log-densities, and the way to the base that gave them.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            time: Time of the states, in [0, 1].
            options: Trace, solver, costs and noise.

        Returns:
            Log-densities, shape (batch,), and the events at the base with costs and counts.

        Raises:
            ValueError: If a shape or the time does not fit, or the options have no trace.
            SolveError: If a solve cannot go on.
        """
        self.check(x, context)
        _check_times([time])
        batch, log_det = self._enter(x, context)
        moved = carry(batch, path_to_base(self._path, time), options or SolveOptions())
        return _total(self.base.log_prob(moved.x) + moved.required_log_det, log_det), moved

    def evaluate(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        tolerance: float = 1e-5,
        probes: int | None = None,
        error: float | None = None,
        generator: torch.Generator | None = None,
        max_nfe: int = 10_000,
        on_failure: str = "raise",
    ) -> LogDensity:
        """Return log-densities under p_time, each with its error; no gradients.

        Each row is solved by adaptive steps of its own. Where an error is requested, tolerance and probes are refined,
        row by row, until it is met; the result says where it is not.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            time: Time of the states, in [0, 1].
            tolerance: Relative and absolute tolerance of the first solve.
            probes: Number of Hutchinson probes; None for the exact trace.
            error: Requested error of each row, nats; None for the error that the tolerance gives.
            generator: Source of the probes.
            max_nfe: Largest number of evaluations of a solve.
            on_failure: "raise" an error for a row that cannot be solved, or give it the value "nan".

        Returns:
            Log-densities and errors, nats, in the units of the data.

        Raises:
            ValueError: If the request makes no sense.
            SolveError: If a row's solve cannot go on and `on_failure` is "raise".
        """
        self.check(x, context)
        _check_times([time])
        requested = AccuracyOptions(tolerance, probes, error, max_nfe, on_failure)
        segments = path_to_base(self._path, time)

        def solve(batch: Batch, options: SolveOptions) -> tuple[Tensor, Tensor, list[RowSteps]]:
            moved = carry(batch, segments, options)
            return moved.x, moved.required_log_det, moved.row_steps

        with torch.inference_mode(False), torch.no_grad():
            batch, log_det = self._enter(x.clone(), None if context is None else context.clone())
            inner = log_density(solve, self.base, batch, requested, generator)
            return replace(inner, value=_total(inner.value, log_det))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw from p_time, without gradients.

        Args:
            n: Number of draws.
            context: One context for all, shape (context_dim,) or (1, context_dim), or one for each, (n, context_dim).
            time: Time of the states, in [0, 1].
            solver: Solver of all continuous transforms; their own if None.
            generator: Source of the noise.

        Returns:
            Draws, shape (n, *event).
        """
        return self.rsample(n, context, time=time, solver=solver, generator=generator)

    def rsample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw from p_time, with gradients of the transforms' parameters and the context.

        Args:
            n: Number of draws.
            context: One context for all, shape (context_dim,) or (1, context_dim), or one for each, (n, context_dim).
            time: Time of the states, in [0, 1].
            solver: Solver of all continuous transforms; their own if None.
            generator: Source of the noise.

        Returns:
            Draws, shape (n, *event).
        """
        _check_times([time])
        batch = self._draw(n, context, generator)
        return self.to_data(batch.x, batch.context, time=time, options=SolveOptions(trace=None, solver=solver))[0]

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw with log-densities, in one solve, with gradients.

        Their errors stay unknown; `evaluate(draws, context)` gives log-densities with errors.

        Args:
            n: Number of draws.
            context: One context for all, shape (context_dim,) or (1, context_dim), or one for each, (n, context_dim).
            solver: Solver of all continuous transforms; their own if None.
            generator: Source of the noise.

        Returns:
            Draws, shape (n, *event), and their log-densities, shape (n,).
        """
        batch = self._draw(n, context, generator)
        x, log_det = self.to_data(batch.x, batch.context, options=SolveOptions(solver=solver))
        log_prob = self.base.log_prob(batch.x)
        return x, log_prob if log_det is None else _total(log_prob, -log_det)

    def to_base(
        self, x: Tensor, context: Tensor | None = None, *, options: SolveOptions | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map data to the base.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            options: Trace, solver and noise; without a trace there is no log-determinant.

        Returns:
            z, shape (batch, *event), and log|det dz/dx|, shape (batch,), or None.
        """
        self.check(x, context)
        batch, log_det = self._enter(x, context)
        moved = carry(batch, path_to_base(self._path), options or SolveOptions())
        return moved.x, None if moved.log_det is None else _total(moved.log_det, log_det)

    def to_data(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        options: SolveOptions | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map points at the base to data, or to their states at a time.

        Args:
            z: Points at the base, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            time: Time of the states, in [0, 1].
            options: Trace, solver and noise; without a trace there is no log-determinant.

        Returns:
            x, shape (batch, *event), and log|det dx/dz|, shape (batch,), or None.
        """
        self.check(z, context)
        _check_times([time])
        batch = Batch(*self._inner_inputs(z, context))
        moved = carry(batch, reverse(path_to_base(self._path, time)), options or SolveOptions())
        x, log_det = self._leave(moved.x, context)
        return x, None if moved.log_det is None else _total(moved.log_det, log_det)

    def trajectory(
        self,
        x: Tensor,
        times: Sequence[float],
        context: Tensor | None = None,
        *,
        trace: TraceEstimator | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Trajectory:
        """Follow states through time, with log p_t along the way.

        Args:
            x: States at times[0], in the units of the data, shape (batch, *event).
            times: Times in [0, 1], T of them.
            context: Contexts, shape (batch, context_dim), or None.
            trace: Trace estimator; exact if None.
            solver: Solver of all continuous transforms; their own if None.
            generator: Source of a stochastic trace's noise.

        Returns:
            States, log-densities and the evaluations that they took.

        Raises:
            ValueError: If there is no time, or one lies outside [0, 1].
        """
        self.check(x, context)
        _check_times(times)
        options = SolveOptions(trace=trace or ExactTrace(), solver=solver, generator=generator)
        batch, log_det = self._enter(x, context)
        moved = carry(batch, path_to_base(self._path, times[0]), options)
        inner, log_prob, nfe = batch.x, self.base.log_prob(moved.x) + moved.required_log_det, moved.nfe
        states, log_probs = [x], [_total(log_prob, log_det)]
        for start, end in zip(times[:-1], times[1:], strict=True):
            moved = carry(batch.with_x(inner), path_between(self._path, start, end), options)
            inner, log_prob, nfe = moved.x, log_prob - moved.required_log_det, nfe + moved.nfe
            state, log_det = self._leave(inner, context)
            states.append(state)
            log_probs.append(_total(log_prob, None if log_det is None else -log_det))
        return Trajectory(torch.as_tensor(times), torch.stack(states), torch.stack(log_probs), nfe)

    def velocity(self, x: Tensor, time: float, context: Tensor | None = None) -> Tensor:
        """Return dx/dt of states, both in the units of the data; it carries no gradient.

        Args:
            x: States, shape (batch, *event).
            time: Time, in [0, 1].
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Velocities, shape (batch, *event).

        Raises:
            ValueError: If the flow has no continuous transform.
        """
        self.check(x, context)
        _check_times([time])
        segments, place = path_into(self._path, time, time), locate(self._path, time)
        with torch.inference_mode(False), torch.enable_grad():
            given = None if context is None else context.clone()
            batch, _ = self._enter(x.clone(), given)
            inner = apply_exact(batch, segments)
            slope = place.dynamics(torch.as_tensor(place.clock).to(inner), inner, batch.context) * place.rate

            def to_data(point: Tensor) -> Tensor:
                return self._leave(apply_exact(batch.with_x(point), reverse(segments)), given)[0]

            return torch.autograd.functional.jvp(to_data, inner, slope)[1]

    def score(
        self, x: Tensor, context: Tensor | None = None, *, solver: Solver | None = None, create_graph: bool = False
    ) -> Tensor:
        """Return the score d log p(x) / dx.

        Args:
            x: Events, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.
            solver: Solver of all continuous transforms; their own if None.
            create_graph: Whether the score is differentiable again.

        Returns:
            The score, shape (batch, *event).
        """
        if inside_transform():  # autograd's own gradient cannot look into torch.func
            return torch.func.grad(lambda y: self.log_prob(y, context, solver=solver).sum())(x)
        with torch.inference_mode(False), torch.enable_grad():
            point = x if x.requires_grad and create_graph else x.detach().clone().requires_grad_()
            total = self.log_prob(point, None if context is None else context.clone(), solver=solver).sum()
            return torch.autograd.grad(total, point, create_graph=create_graph)[0]

    def check(self, x: Tensor, context: Tensor | None) -> None:
        """Check the shapes of events and contexts.

        Args:
            x: Events, shape (batch, *event), batch >= 1.
            context: Contexts, shape (batch, context_dim); None for an unconditional flow.

        Raises:
            ValueError: If they are not tensors of these shapes.
        """
        if not all(isinstance(value, Tensor) for value in (x, x if context is None else context)):
            raise ValueError("a flow takes torch tensors: pass torch.as_tensor(...), or use FFJORD for arrays")
        if tuple(x.shape[1:]) != self.event_shape or x.dim() == 0 or len(x) == 0:
            expected = ", ".join(map(str, ("batch >= 1", *self.event_shape)))
            raise ValueError(f"expected events of shape ({expected}); got {tuple(x.shape)}")
        shape = None if context is None else tuple(context.shape)
        if not self.context_dim and shape is not None:
            raise ValueError(f"this flow takes no context; got one of shape {shape}: leave it out")
        if self.context_dim and shape != (len(x), self.context_dim):
            raise ValueError(f"context must have shape {(len(x), self.context_dim)}; got {shape}")

    @property
    def _path(self) -> list[Transform]:
        """Transforms from data to base, as a list."""
        return cast("list[Transform]", list(self.transforms))

    def _inner_inputs(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Give rows and contexts to the transforms: where there is preprocessing, in their dtype and device."""
        if self.preprocess.identity:
            return x, context
        like = self.like
        return x.to(like.device, like.dtype), self.preprocess.scale_context(context, like)

    def _enter(self, x: Tensor, context: Tensor | None) -> tuple[Batch, Tensor | None]:
        """Preprocess data; the log-determinant is None where there is nothing to do."""
        if self.preprocess.identity:
            return Batch(x, context), None
        z, log_det = self.preprocess.to_base(x, context)
        return Batch(*self._inner_inputs(z, context)), log_det

    def _leave(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Undo the preprocessing of states; the contexts are as they came."""
        return (x, None) if self.preprocess.identity else self.preprocess.to_data(x, context)

    def _draw(self, n: int, context: Tensor | None, generator: torch.Generator | None) -> Batch:
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1; got {n}")
        z = self.base.sample(n, generator)
        if context is not None and (context.dim() == 1 or len(context) == 1):
            context = context.expand(n, -1)
        self.check(z, context)
        return Batch(z, context)


def with_transforms(flow: Flow, transforms: Sequence[Transform]) -> Flow:
    """Return a flow with other transforms, and the preprocessing and base of the old one.

    Args:
        flow: Flow; it stays as it is.
        transforms: Transforms, from data to base.

    Returns:
        The new flow; modules are shared, not copied.

    Example:
        >>> from ffjord_kit import Standardize
        >>> flow = Flow([Standardize.of(torch.tensor([[1.0], [3.0]]))])
        >>> with_transforms(flow, []).log_prob(torch.zeros(1, 1))  # of the base alone: -log sqrt(2 pi)
        tensor([-0.9189])
    """
    return Flow(transforms, base=flow.base, preprocess=flow.preprocess, context_dim=flow.context_dim)


def _total(inner: Tensor, log_det: Tensor | None) -> Tensor:
    """Add the preprocessing's log-determinant, which is float64 on the CPU, to an inner value."""
    if log_det is None:
        return inner
    return inner.to(log_det.device, log_det.dtype) + (log_det[:, None] if inner.dim() == 2 else log_det)


def _check_times(times: Sequence[float]) -> None:
    if not len(times) or not all(0 <= float(time) <= 1 for time in times):
        raise ValueError(f"times must lie in [0, 1], from base to data; got {[float(time) for time in times]}")


def _event_shape(transforms: Sequence[Transform]) -> tuple[int, ...]:
    shapes = [transform.event_shape for transform in transforms if transform.event_shape is not None]
    if not shapes:
        raise ValueError("no transform knows its event_shape: pass base=, a distribution with one")
    return shapes[-1]
