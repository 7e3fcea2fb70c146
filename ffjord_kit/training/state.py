"""The tensors of a training run under the flat names that a safetensors file wants."""

from __future__ import annotations

from torch import Tensor


def numbered(tensors: dict[str, Tensor], group: str) -> list[Tensor]:
    """The tensors of one group, in order; none if the group is absent."""
    count = sum(name.startswith(f"{group}/") for name in tensors)
    return [tensors[f"{group}/{i}"] for i in range(count)]


def flattened(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """An optimizer's state, parameter by parameter, under flat names."""
    return {f"optimizer/{i}/{key}": value for i, moments in state.items() for key, value in moments.items()}


def nested(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The inverse of `flattened`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        _, number, key = name.split("/")
        state.setdefault(int(number), {})[key] = value
    return state
