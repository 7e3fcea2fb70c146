"""The tensors of a training run under the flat names that a safetensors file wants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ffjord_kit.training.optimization import Descent


def packed(
    weights: Sequence[Tensor],
    average: Sequence[Tensor],
    good: Sequence[Tensor],
    best: Sequence[Tensor] | None,
    descent: Descent | None,
) -> dict[str, Tensor]:
    """Weights, their average, the last good and the best of them, and the optimizer's moments."""
    groups = {"weights": weights, "average": average, "good": good, "best": best or []}
    tensors = {f"{group}/{i}": value for group, values in groups.items() for i, value in enumerate(values)}
    moments = {} if descent is None else descent.adam.state_dict()["state"]
    kept = {f"optimizer/{i}/{key}": value for i, state in moments.items() for key, value in state.items()}
    return {**tensors, **kept}


def numbered(tensors: dict[str, Tensor], group: str) -> list[Tensor]:
    """The tensors of one group, in order; none if the group is absent."""
    count = sum(name.startswith(f"{group}/") for name in tensors)
    return [tensors[f"{group}/{i}"] for i in range(count)]


def nested(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's moments, parameter by parameter; none if there are none."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, number, *key = name.split("/")
        if group == "optimizer":
            state.setdefault(int(number), {})[key[0]] = value
    return state
