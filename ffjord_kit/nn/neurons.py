r"""Hidden neurons of a network: what feeds them, what reads them, and networks of more or fewer of them.

A neuron is a row in each layer that feeds it and a column in each layer that reads it,

    h_j = a(sum_i W_ji x_i + c_j),    y = sum_j V_j h_j + e.

In a residual network one neuron of the stream spans all layers that an identity connects: each feeds it and reads it.

* Duplicate (the embedding principle): a neuron with the same rows twice, whose columns are s V_j and (1 - s) V_j. The
  function stays, and so does every gradient of a critical point: the gradients by the new rows are s and 1 - s times
  the old one, those by the new columns are the old one. So a wide network contains the critical points of every
  narrower one.
* Merge, the way back: where h_j = sum_k T_jk h_k + b_j over the neurons k that are kept, V_k + T_jk V_j and
  e + b_j V_j take the place of the neuron.

References:
    Zhang, Zhang, Luo & Xu 2021, Embedding principle, https://arxiv.org/abs/2105.14573.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ffjord_kit.nn.mlp import ConcatDynamics, ConcatSquashDynamics, ResidualDynamics

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Slot:
    """Where neurons stand in a layer: its rows, or its columns, from an offset.

    Attributes:
        layer: Name of the layer within the network, as `get_submodule` takes it.
        offset: First row or column.
    """

    layer: str
    offset: int = 0


@dataclass(frozen=True)
class Neurons:
    """Neurons side by side, which belong to the same layers.

    Attributes:
        name: Name for reports.
        count: Number of neurons.
        feeding: Where their rows are.
        reading: Where their columns are.
    """

    name: str
    count: int
    feeding: tuple[Slot, ...]
    reading: tuple[Slot, ...]

    def rows(self, network: nn.Module) -> Tensor:
        """Return all that feeds each neuron, weights and biases, shape (count, inputs).

        Args:
            network: The network.

        Returns:
            Numbers of the layers side by side.
        """
        parts: list[Tensor] = []
        for slot in self.feeding:
            layer, chosen = _layer(network, slot), slice(slot.offset, slot.offset + self.count)
            parts.append(layer.weight[chosen].flatten(1))
            parts.extend([] if layer.bias is None else [layer.bias[chosen, None]])
        return torch.cat(parts, dim=1).detach()

    def columns(self, network: nn.Module) -> Tensor:
        """Return all weights by which each neuron is read, shape (outputs, count).

        Args:
            network: The network.

        Returns:
            Weights of the layers one below the other.
        """
        parts = [_layer(network, slot).weight[:, slot.offset : slot.offset + self.count] for slot in self.reading]
        return torch.cat(parts).detach()


def hidden_neurons(network: nn.Module) -> list[Neurons]:
    """Find the hidden neurons of all fully connected networks in a module.

    Args:
        network: Residual, concat-squash or concatenating dynamics, a chain of linear layers and functions in an
            `nn.Sequential`, or a module that contains such, e.g. a flow or an ODE-Net.

    Returns:
        Neurons of each hidden layer; empty where the module has no such network.

    Example:
        >>> chain = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> [(neurons.name, neurons.count) for neurons in hidden_neurons(chain)]
        [('0', 8)]
    """
    return list(_found(network, ""))


def select_neurons(network: Module, neurons: Neurons, index: Tensor, shares: Tensor | None = None) -> Module:
    """Return a network with some of its neurons, in a new order; one may come more than once.

    Args:
        network: Network; it stays as it is.
        neurons: Neurons of the network to select from.
        index: Numbers of those selected, shape (m,).
        shares: Factor of the columns of each, shape (m,); 1 if None.

    Returns:
        The new network.

    Raises:
        ValueError: If there is no neuron of such a number.
    """
    if not len(index) or int(index.min()) < 0 or int(index.max()) >= neurons.count:
        raise ValueError(f"index must be one or more numbers from 0 to {neurons.count - 1}; got {index.tolist()}")
    changed = copy.deepcopy(network)
    for name in dict.fromkeys(slot.layer for slot in neurons.feeding):
        _select(changed.get_submodule(name), 0, _positions(neurons.feeding, name, neurons.count), index)
    for name in dict.fromkeys(slot.layer for slot in neurons.reading):
        _select(changed.get_submodule(name), 1, _positions(neurons.reading, name, neurons.count), index)
    if shares is not None:
        for slot in neurons.reading:
            with torch.no_grad():
                _layer(changed, slot).weight[:, slot.offset : slot.offset + len(index)] *= shares
    return changed


def duplicate_neuron(network: Module, neurons: Neurons, number: int, share: float = 0.5) -> Module:
    """Return a network one neuron wider with the same function, by the embedding principle.

    Args:
        network: Network; it stays as it is.
        neurons: Neurons to widen.
        number: Number of the neuron to duplicate.
        share: Share of its columns that stays; the rest is the duplicate's.

    Returns:
        The wider network.

    Example:
        >>> chain = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> wider = duplicate_neuron(chain, hidden_neurons(chain)[0], 3, 0.2)
        >>> wider[0].out_features, torch.allclose(wider(torch.ones(1, 2)), chain(torch.ones(1, 2)))
        (9, True)
    """
    index, shares = torch.arange(neurons.count + 1), torch.ones(neurons.count + 1, dtype=torch.float64)
    index[-1], shares[number], shares[-1] = number, share, 1 - share
    return select_neurons(network, neurons, index, shares)


def merge_neurons(
    network: Module, neurons: Neurons, kept: Tensor, combinations: Sequence[tuple[Tensor, Tensor]]
) -> Module:
    """Return a network without some neurons, whose part others take over.

    Args:
        network: Network; it stays as it is.
        neurons: Neurons to merge.
        kept: Numbers of those that stay, ascending, shape (m,).
        combinations: For each slot of `neurons.reading` the factors T, shape (count, m), and constants b, shape
            (count,), with which h = T h[kept] + b.

    Returns:
        The smaller network.
    """
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for slot, (factors, constants) in zip(neurons.reading, combinations, strict=True):
            layer, chosen = _layer(changed, slot), slice(slot.offset, slot.offset + neurons.count)
            columns = layer.weight[:, chosen]
            if layer.bias is not None:
                layer.bias += columns @ constants.to(columns)
            combined = columns @ factors.to(columns)
            layer.weight[:, chosen] = 0
            layer.weight[:, slot.offset + kept] = combined
    return select_neurons(changed, neurons, kept)


def _found(network: nn.Module, prefix: str) -> Iterator[Neurons]:
    """Yield the neurons of a network, or of those that it contains."""
    finder = next((find for kind, find in FINDERS.items() if isinstance(network, kind)), None)
    found = list(finder(network)) if finder else []
    if found:
        yield from (_within(prefix, neurons) for neurons in found)
        return
    for name, child in network.named_children():
        yield from _found(child, f"{prefix}{name}.")


def _within(prefix: str, neurons: Neurons) -> Neurons:
    feeding, reading = (
        tuple(Slot(prefix + slot.layer, slot.offset) for slot in slots) for slots in (neurons.feeding, neurons.reading)
    )
    return replace(neurons, name=prefix + neurons.name, feeding=feeding, reading=reading)


def _chain(network: nn.Sequential) -> Iterator[Neurons]:
    """Find the neurons between two linear layers that functions alone separate."""
    linear = [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)]
    plain = all(isinstance(layer, nn.Linear) or not list(layer.parameters()) for layer in network.children())
    for before, after in zip(linear[:-1], linear[1:], strict=True) if plain else ():
        width = cast(nn.Linear, network.get_submodule(before)).out_features
        if cast(nn.Linear, network.get_submodule(after)).in_features == width:
            yield Neurons(before, width, (Slot(before),), (Slot(after),))


def _layered(network: ConcatDynamics | ConcatSquashDynamics) -> Iterator[Neurons]:
    """Find the neurons of plain layers, which gates and shifts may feed too."""
    gated = isinstance(network, ConcatSquashDynamics)
    for i, layer in enumerate(network.layers[:-1]):
        feeding = [f"layers.{i}", *([f"gates.{i}", f"shifts.{i}"] if gated else [])]
        yield Neurons(f"layers.{i}", layer.out_features, tuple(map(Slot, feeding)), (Slot(f"layers.{i + 1}"),))


def _residual(network: ResidualDynamics) -> Iterator[Neurons]:
    """Find the neurons of each part of the stream that identities connect."""
    context = (
        [] if network.context_embedding is None else [Slot(f"context_embedding.{len(network.context_embedding) - 1}")]
    )
    last, offset, first, feeding, reading = len(network.layers), 0, "input_layer", [Slot("input_layer"), *context], []
    for i, (layer, skip) in enumerate(zip(network.layers, network.skip_layers, strict=True)):
        feeding += [Slot("modulation.2", offset), Slot("modulation.2", offset + layer.in_features)]
        offset += 2 * layer.in_features
        reading.append(Slot(f"layers.{i}"))
        if isinstance(skip, nn.Identity):
            feeding.append(Slot(f"layers.{i}"))
            continue
        reading.append(Slot(f"skip_layers.{i}"))
        yield Neurons(first, layer.in_features, tuple(feeding), tuple(reading))
        first, feeding, reading = f"layers.{i}", [Slot(f"layers.{i}"), Slot(f"skip_layers.{i}")], []
    width = network.layers[last - 1].out_features
    yield Neurons(first, width, tuple(feeding), (*reading, Slot("output_layer")))


FINDERS: dict[type[nn.Module], Callable[[Any], Iterator[Neurons]]] = {
    nn.Sequential: _chain,
    ConcatDynamics: _layered,
    ConcatSquashDynamics: _layered,
    ResidualDynamics: _residual,
}


def _layer(network: nn.Module, slot: Slot) -> Any:
    return network.get_submodule(slot.layer)


def _positions(slots: Sequence[Slot], layer: str, count: int) -> list[range]:
    """Return the rows or columns of neurons within a layer."""
    return [range(slot.offset, slot.offset + count) for slot in slots if slot.layer == layer]


def _select(layer: nn.Module, axis: int, positions: Sequence[range], index: Tensor) -> None:
    """Select along an axis of a layer's tensors: the indices within the positions, and all of what is elsewhere."""
    size = getattr(layer, ("out_features", "in_features")[axis])
    parts, end = [], 0
    for position in sorted(positions, key=lambda each: each.start):
        parts += [torch.arange(end, position.start), position.start + index]
        end = position.stop
    chosen = torch.cat([*parts, torch.arange(end, size)])
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim > axis:
            selected = value.detach().index_select(axis, chosen.to(value.device)).clone()
            kept = nn.Parameter(selected, value.requires_grad) if isinstance(value, nn.Parameter) else selected
            setattr(layer, name, kept)
    setattr(layer, ("out_features", "in_features")[axis], len(chosen))
