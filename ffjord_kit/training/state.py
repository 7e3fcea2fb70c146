"""The tensors of a training run, by flat names for a safetensors file, and the way back when training diverges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ffjord_kit.ode import SolveError
from ffjord_kit.training.config import TrainConfig
from ffjord_kit.training.optim import MovingAverage, Optimizer, assign, snapshot

MAX_RESTORES = 3  # of a phase
RATE_FACTOR = 0.3  # of the learning rate, at each restore

ADVICE = "Lower the learning rate or clip_norm, or look for outliers in the data"


class TrainingDiverged(RuntimeError):
    """Signal a loss, gradient or field that is not finite; the message says when, and what to try.

    It is raised when that happens for the fourth time in a phase: three times the weights of the last finite validation,
    or those that the phase began with, are restored, and the learning rate is multiplied by 0.3.
    """


@contextmanager
def explain_divergence(step: int, where: str, checkpoint: str) -> Iterator[None]:
    """Turn numerical failures into TrainingDiverged.

    Args:
        step: Number of the step.
        where: Phrase that says where training was.
        checkpoint: Phrase that says what there is to go back to.

    Yields:
        Nothing.

    Raises:
        TrainingDiverged: If a solve or the arithmetic fails.
    """
    try:
        yield
    except (SolveError, ArithmeticError) as error:
        raise TrainingDiverged(f"training diverged at step {step}, {where}: {error}. {ADVICE}{checkpoint}") from error


class TrainState:
    """The weights, their average, the last good and the best of them, and the optimizer of a phase under way.

    Args:
        parameters: Parameters to train.
        config: How they are updated.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig) -> None:
        self.parameters, self.config = list(parameters), config
        self.average, self.good = MovingAverage(self.parameters), snapshot(self.parameters)
        self.best: list[Tensor] | None = None
        self.optimizer: Optimizer | None = None

    @property
    def selected(self) -> list[Tensor]:
        """The best weights on the validation data, or, without such data, their average."""
        return self.average.values if self.best is None else self.best

    def begin_phase(self, rate: float) -> None:
        """Make an optimizer, unless the phase has one.

        Args:
            rate: Learning rate of its first step.
        """
        if self.optimizer is None:
            self.optimizer = Optimizer(self.parameters, self.config, rate)

    def keep(self) -> None:
        """Remember the present weights as good."""
        self.good = snapshot(self.parameters)

    def keep_best(self) -> None:
        """Remember the average as the best so far."""
        self.best = snapshot(self.average.values)

    def restore(self, rate: float) -> None:
        """Go back to the last good weights, and forget what led away from them.

        Args:
            rate: Learning rate of the next step.
        """
        assign(self.parameters, self.good)
        self.average.reset()
        self.optimizer = Optimizer(self.parameters, self.config, rate)

    def end_phase(self) -> None:
        """Leave the selected weights in the model."""
        assign(self.parameters, self.selected)
        self.average.reset()
        self.optimizer = None
        self.keep()

    def packed(self) -> dict[str, Tensor]:
        """Return all tensors by flat names.

        Returns:
            Tensors of weights, average, good and best weights, and the optimizer.
        """
        groups = {"weights": self.parameters, "average": self.average.values, "good": self.good, "best": self.best}
        tensors = {f"{group}/{i}": value for group, values in groups.items() for i, value in enumerate(values or [])}
        moments = {} if self.optimizer is None else self.optimizer.adam.state_dict()["state"]
        kept = {f"optimizer/{i}/{key}": value for i, state in moments.items() for key, value in state.items()}
        return {**tensors, **kept}

    def unpack(self, tensors: dict[str, Tensor], average_steps: int) -> None:
        """Go on from what `packed` gave.

        Args:
            tensors: Tensors by flat names.
            average_steps: Steps of the average.
        """
        self.average.steps = average_steps
        assign(self.parameters, _numbered(tensors, "weights"))
        assign(self.average.values, _numbered(tensors, "average"))
        assign(self.good, _numbered(tensors, "good"))
        best = _numbered(tensors, "best")
        self.best = [value.to(p) for value, p in zip(best, self.parameters, strict=True)] if best else None
        moments = _moments(tensors)
        if moments:
            self.optimizer = Optimizer(self.parameters, self.config, 0.0)  # each step sets its own rate
            self.optimizer.adam.load_state_dict({**self.optimizer.adam.state_dict(), "state": moments})


def _numbered(tensors: dict[str, Tensor], group: str) -> list[Tensor]:
    """Return the tensors of one group, in order; none if the group is absent."""
    count = sum(name.startswith(f"{group}/") for name in tensors)
    return [tensors[f"{group}/{i}"] for i in range(count)]


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's moments, parameter by parameter; none if there are none."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, number, *key = name.split("/")
        if group == "optimizer":
            state.setdefault(int(number), {})[key[0]] = value
    return state
