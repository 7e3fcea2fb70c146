r"""A flow made narrower: neurons that others can stand in for are merged, and the rest imitates the old fields.

1. The old flow carries rows to the base; its fields are looked at on these paths, (t, x).
2. In each hidden layer the neurons to keep are chosen by a pivoted QR decomposition of what the layer gives at these
   points, each neuron weighted by how strongly it is read: first the one that says most, then the one that says most
   beyond it, and so on. Groups of like neurons leave one.
3. Every other neuron is written as a combination of those kept, by least squares, and merged (`nn/neurons.py`).
4. The narrower field imitates the old one (`objectives/imitation.py`).

The loss is measured, not predicted: the mean increase of the negative log-likelihood of held-out rows, row by row.

References:
    Zhang et al. 2021, Embedding principle, https://arxiv.org/abs/2105.14573.
    Chee, Flynn, Damle & De Sa 2022, Model preserving compression for neural networks,
    https://arxiv.org/abs/2108.00065.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import qr
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.nn.neurons import Neurons, hidden_neurons, merge_neurons
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives.imitation import Imitation, points_to_imitate
from ffjord_kit.ode import AdaptiveSolver
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import TensorData, preprocessed
from ffjord_kit.training.loop import fit
from ffjord_kit.transforms import CNF, Transform
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.weights import mean_and_error

PATH_ROWS, CHUNKS, TIMES = 4_000, 8, 17  # rows to follow, in chunks with times of their own, and these times
MERGED_POINTS = 3_000  # at which the neurons to merge are looked at
RIDGE = 1e-6  # of the least squares, relative to the mean square of a neuron
LEARNING_RATE, EMA_DECAY, BATCH = 5e-3, 0.99, 512
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the neurons that stay, tried by bisection
PATH_SOLVE = SolveOptions(trace=None, solver=AdaptiveSolver("dopri5", 1e-4, 1e-4))

OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class FieldPoints:
    """Points at which a field is looked at.

    Attributes:
        t: Times, shape (n,).
        batch: States, shape (n, d), and contexts as the field takes them.
    """

    t: Tensor
    batch: Batch

    def take(self, index: Tensor) -> FieldPoints:
        """Return some of the points.

        Args:
            index: Their numbers.

        Returns:
            The points.
        """
        return FieldPoints(self.t[index], self.batch[index])


@dataclass(frozen=True)
class Condensed:
    """A narrower flow, and what it lost.

    Attributes:
        flow: The flow.
        share: Share of the neurons of each hidden layer that stayed.
        loss: Mean increase of the negative log-likelihood, nats.
        standard_error: Its standard error.
        rows: Number of rows on which it was measured.
    """

    flow: Flow
    share: float
    loss: float
    standard_error: float
    rows: int

    def __str__(self) -> str:
        return (
            f"condensed to {self.share:.1%} of the neurons, at a loss of {self.loss:.4f} ± {self.standard_error:.4f} "
            f"nats on {self.rows} rows"
        )


def narrowest(
    flow: Flow,
    rows: Batch,
    held_out: Batch,
    loss: float,
    *,
    options: SolveOptions | None = None,
    shares: Sequence[float] = SHARES,
    **imitation: Any,
) -> Condensed:
    """Return the narrowest flow found that keeps the loss.

    Args:
        flow: Flow with fully connected fields; it stays as it is.
        rows: Rows in the units of the data, shape (n, d), and contexts, whose paths the flow is imitated on.
        held_out: Rows, contexts and weights on which the loss is measured.
        loss: Largest mean increase of the negative log-likelihood, nats.
        options: Trace and solver of the log-likelihoods.
        shares: Shares of the neurons that may stay, ascending, which are tried by bisection.
        **imitation: Options of `condense_flow`: steps, seed, on_step.

    Returns:
        The flow and its loss.

    Raises:
        ValueError: If none keeps the loss.
    """
    before, found, least = _log_prob(flow, held_out, options), None, math.inf
    low, high = 0, len(shares)
    while low < high:
        middle = (low + high) // 2
        narrow = condense_flow(flow, rows, shares[middle], **imitation)
        lost = before - _log_prob(narrow, held_out, options)
        tried = Condensed(narrow, shares[middle], *mean_and_error(lost, held_out.weight), len(lost))
        least = min(least, tried.loss)
        found, low, high = (tried, low, middle) if tried.loss <= loss else (found, middle + 1, high)
    if found is None:
        raise ValueError(
            f"no narrower network keeps a loss of {loss:g} nats; the best one loses {least:.4f}: allow that, or "
            "imitate for more steps"
        )
    return found


def condense_flow(
    flow: Flow, rows: Batch, share: float, *, steps: int = 3_000, seed: int = 0, on_step: OnStep | None = None
) -> Flow:
    """Return a flow with a share of the hidden neurons, which imitates a given one.

    Args:
        flow: Flow with fully connected fields; it stays as it is.
        rows: Rows in the units of the data, shape (n, d), and contexts, whose paths the flow is imitated on.
        share: Share of the neurons of each hidden layer that stay, in (0, 1).
        steps: Steps of training.
        seed: Seed of all noise.
        on_step: Called with the record of each step.

    Returns:
        The narrower flow.

    Raises:
        ValueError: If the share is not in (0, 1), or a field is not fully connected.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), of the neurons that stay; got {share}")
    points = path_points(flow, rows, seed)
    transforms = [
        _condensed(transform, points.pop(0), share, steps, seed, on_step) if isinstance(transform, CNF) else transform
        for transform in flow.transforms
    ]
    return with_transforms(flow, transforms)  # type: ignore[arg-type]


@torch.no_grad()
def path_points(flow: Flow, rows: Batch, seed: int) -> list[FieldPoints]:
    """Follow rows to the base, and return the points on the way.

    Args:
        flow: Flow.
        rows: Rows in the units of the data, and contexts.
        seed: Seed of the choice of rows and times.

    Returns:
        Points of each continuous transform, in the order of the transforms.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:PATH_ROWS]
    inner = preprocessed(flow, rows[chosen]).batch
    found: dict[int, list[FieldPoints]] = {}
    for part in inner.split(math.ceil(len(inner) / CHUNKS)):
        state = part.x
        for number, transform in enumerate(flow.transforms):
            if not isinstance(transform, CNF):
                state, _ = transform.to_base(state, part.context)  # type: ignore[operator]
                continue
            inside = torch.rand(TIMES - 2, generator=generator, dtype=torch.float64).sort(descending=True).values
            clock = torch.cat([torch.ones(1), inside, torch.zeros(1)]) * transform.end_time
            path = transform.integrate(state, clock, context=part.context, options=PATH_SOLVE)
            found.setdefault(number, []).append(_points_of(path.x, clock, part.context))
            state = path.x[-1]
    return [_joined(parts) for _, parts in sorted(found.items())]


def merge_to(network: nn.Module, points: FieldPoints, share: float) -> nn.Module:
    """Return a network with a share of its neurons, into which the others are merged by least squares.

    Args:
        network: Vector field; it stays as it is.
        points: Points at which its neurons are looked at.
        share: Share of the neurons of each hidden layer that stay.

    Returns:
        The narrower network.

    Raises:
        ValueError: If it is not fully connected.
    """
    layers = len(hidden_neurons(network))
    if not layers:
        raise ValueError(
            f"condense takes fully connected fields (residual, concat_squash, concat); got {type(network).__name__}"
        )
    for number in range(layers):
        neurons = hidden_neurons(network)[number]
        given = _outputs(network, neurons, points)
        kept = _most_telling(given, _reading_norms(network, neurons), math.ceil(share * neurons.count))
        combinations = [_combination(values, kept) for values in given]
        network = merge_neurons(network, neurons, kept, combinations)
    return network


@torch.no_grad()
def _log_prob(flow: Flow, rows: Batch, options: SolveOptions | None) -> Tensor:
    return flow.evaluate_log_prob(rows.x, rows.context, options=options)[0].double().cpu()


def _condensed(
    transform: CNF, points: FieldPoints, share: float, steps: int, seed: int, on_step: OnStep | None
) -> Transform:
    """Return a continuous transform with a narrower field."""
    generator = keyed_generator(points.t.device, seed, "imitation")
    some = torch.randperm(len(points.t), generator=torch.Generator().manual_seed(seed))[:MERGED_POINTS]
    changed = copy.deepcopy(transform)
    network = merge_to(transform.dynamics, points.take(some), share).requires_grad_(True)
    data = TensorData(points_to_imitate(transform.dynamics, points.t, points.batch, generator))
    config = TrainConfig(batch_size=min(BATCH, len(points.t)), ema_decay=EMA_DECAY, seed=seed)
    fit(network, data, [Phase(Imitation(), steps, LEARNING_RATE)], config=config, on_step=on_step)
    changed.dynamics = network
    return changed


def _points_of(x: Tensor, clock: Tensor, context: Tensor | None) -> FieldPoints:
    """Return the points of paths x (T, n, d)."""
    t = clock.to(x).repeat_interleave(x.shape[1])
    return FieldPoints(t, Batch(x.flatten(0, 1), None if context is None else context.repeat(len(clock), 1)))


def _joined(parts: Sequence[FieldPoints]) -> FieldPoints:
    contexts = [part.batch.context for part in parts if part.batch.context is not None]
    states = torch.cat([part.batch.x for part in parts])
    return FieldPoints(torch.cat([part.t for part in parts]), Batch(states, torch.cat(contexts) if contexts else None))


@torch.no_grad()
def _outputs(network: nn.Module, neurons: Neurons, points: FieldPoints) -> list[Tensor]:
    """Return what neurons give to each layer that reads them, each (n, count) in float64 on the CPU."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: seen.__setitem__(name, inputs[0])

    hooks = [network.get_submodule(slot.layer).register_forward_pre_hook(watch(slot.layer)) for slot in neurons.reading]
    try:
        network(points.t, points.batch.x, points.batch.context)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[slot.layer][:, slot.offset : slot.offset + neurons.count].double().cpu() for slot in neurons.reading]


def _reading_norms(network: nn.Module, neurons: Neurons) -> list[Tensor]:
    """Return how strongly each layer reads each neuron, each (count,)."""
    sizes = [network.get_submodule(slot.layer).out_features for slot in neurons.reading]
    return [part.double().norm(dim=0).cpu() for part in neurons.columns(network).split(sizes)]  # type: ignore[arg-type]


def _most_telling(given: Sequence[Tensor], norms: Sequence[Tensor], count: int) -> Tensor:
    """Return the neurons that say most of what all of them say, ascending, shape (count,)."""
    weighted = torch.cat([(values - values.mean(0)) * norm for values, norm in zip(given, norms, strict=True)])
    (_, pivots) = qr(weighted.numpy(), mode="r", pivoting=True)
    return torch.as_tensor(pivots[:count].copy()).long().sort().values


def _combination(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return T (count, m) and b (count,) with values = values[:, kept] T^T + b, by ridge regression."""
    mean = values.mean(0)
    few, every = (values - mean)[:, kept], values - mean
    gram = few.T @ few
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(kept), dtype=values.dtype)
    factors = torch.linalg.solve(gram + ridge, few.T @ every).T
    factors[kept] = torch.eye(len(kept), dtype=values.dtype)
    return factors, mean - factors @ mean[kept]
