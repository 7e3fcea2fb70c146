"""The tensors of a training run, and their flat names, which a safetensors file wants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ffjord_kit.training.optimization import Average, Descent, Optimization, assign, snapshot


class State:
    """The weights, their average, the last good and the best of them, and the optimizer, where a phase has begun."""

    def __init__(self, parameters: Sequence[nn.Parameter], how: Optimization) -> None:
        self.parameters, self.how = list(parameters), how
        self.average, self.good = Average(self.parameters), snapshot(self.parameters)
        self.best: list[Tensor] | None = None
        self.descent: Descent | None = None

    @property
    def favourite(self) -> list[Tensor]:
        """The best weights on the validation data, or, without such data, their average."""
        return self.average.values if self.best is None else self.best

    def begin(self, rate: float) -> None:
        """Start descending, where a phase has not yet."""
        if self.descent is None:
            self.descent = Descent(self.parameters, self.how, rate)

    def keep(self) -> None:
        """The present weights are good."""
        self.good = snapshot(self.parameters)

    def improve(self) -> None:
        """Their average is the best so far."""
        self.best = snapshot(self.average.values)

    def go_back(self, rate: float) -> None:
        """Restore the last good weights, and forget what led away from them."""
        assign(self.parameters, self.good)
        self.average.reset()
        self.descent = Descent(self.parameters, self.how, rate)

    def end(self) -> None:
        """Leave the favourite in the weights, as a phase that ends does."""
        assign(self.parameters, self.favourite)
        self.average.reset()
        self.descent = None
        self.keep()

    def packed(self) -> dict[str, Tensor]:
        """All of it, by flat names."""
        groups = {"weights": self.parameters, "average": self.average.values, "good": self.good, "best": self.best}
        tensors = {f"{group}/{i}": value for group, values in groups.items() for i, value in enumerate(values or [])}
        moments = {} if self.descent is None else self.descent.adam.state_dict()["state"]
        kept = {f"optimizer/{i}/{key}": value for i, state in moments.items() for key, value in state.items()}
        return {**tensors, **kept}

    def take_up(self, tensors: dict[str, Tensor], average_steps: int) -> None:
        """Go on from what `packed` gave."""
        self.average.steps = average_steps
        assign(self.parameters, _numbered(tensors, "weights"))
        assign(self.average.values, _numbered(tensors, "average"))
        assign(self.good, _numbered(tensors, "good"))
        best = _numbered(tensors, "best")
        self.best = [value.to(p) for value, p in zip(best, self.parameters, strict=True)] if best else None
        moments = _nested(tensors)
        if moments:
            self.descent = Descent(self.parameters, self.how, 0.0)  # each step sets its own rate
            self.descent.adam.load_state_dict({**self.descent.adam.state_dict(), "state": moments})


def _numbered(tensors: dict[str, Tensor], group: str) -> list[Tensor]:
    """The tensors of one group, in order; none if the group is absent."""
    count = sum(name.startswith(f"{group}/") for name in tensors)
    return [tensors[f"{group}/{i}"] for i in range(count)]


def _nested(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's moments, parameter by parameter; none if there are none."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, number, *key = name.split("/")
        if group == "optimizer":
            state.setdefault(int(number), {})[key[0]] = value
    return state
