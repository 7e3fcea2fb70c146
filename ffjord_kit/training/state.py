"""The tensors that training changes: weights, their average, the best of them, and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ffjord_kit.ode import SolveError
from ffjord_kit.training.config import TrainConfig
from ffjord_kit.training.optim import MovingAverage, Optimizer, assign, snapshot

MAX_RESTORES = 3  # per phase
RATE_FACTOR = 0.3  # of the learning rate, at each restore

ADVICE = "Lower the learning rate or clip_norm, or look for outliers in the data"


class TrainingDiverged(RuntimeError):
    """Signal a loss, gradient or field that is not finite; the message says when, and what to try.

    It is raised at the fourth such failure in a phase. At the first three, the weights of the last finite validation,
    or of the start of the phase, are restored, and the learning rate is multiplied by 0.3.

    Example:
        >>> with explain_divergence(7, "in validation", checkpoint=""):
        ...     raise ZeroDivisionError("the loss is not finite")
        Traceback (most recent call last):
        ffjord_kit.training.state.TrainingDiverged: training diverged at step 7, in validation: ...
    """


@contextmanager
def explain_divergence(step: int, where: str, checkpoint: str) -> Iterator[None]:
    """Turn numerical failures into TrainingDiverged.

    Args:
        step: Number of the step.
        where: Phrase for the place in training, e.g. "in validation".
        checkpoint: Phrase for the checkpoint to resume from; may be empty.

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
    """Weights that train, their average, the last good and the best of them, and the optimizer of the present phase.

    Args:
        parameters: Parameters to train.
        config: How they are updated.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig) -> None:
        self.parameters, self.config = list(parameters), config
        self.average, self.good = MovingAverage(self.parameters), snapshot(self.parameters)
        self.best: list[Tensor] | None = None
        self._optimizer: Optimizer | None = None

    @property
    def selected(self) -> list[Tensor]:
        """Best weights on the validation data, or the average if there is no validation."""
        return self.average.values if self.best is None else self.best

    @property
    def optimizer(self) -> Optimizer:
        """Optimizer of the present phase, made at its first step."""
        if self._optimizer is None:
            self._optimizer = Optimizer(self.parameters, self.config)
        return self._optimizer

    def keep(self) -> None:
        """Keep the present weights as the last good ones."""
        self.good = snapshot(self.parameters)

    def keep_best(self) -> None:
        """Keep the average as the best weights so far."""
        self.best = snapshot(self.average.values)

    def restore(self) -> None:
        """Go back to the last good weights, with a new average and optimizer."""
        assign(self.parameters, self.good)
        self.average.reset()
        self._optimizer = None

    def begin_phase(self, weights: Sequence[Tensor]) -> None:
        """Put other weights into the model than the selected ones, which stay selected.

        Args:
            weights: One tensor for each parameter.
        """
        self.good = snapshot(weights)
        self.restore()

    def end_phase(self) -> None:
        """Put the selected weights into the model, with a new average and optimizer."""
        self.begin_phase(self.selected)

    def packed(self) -> dict[str, Tensor]:
        """Return all tensors by flat names, e.g. "average/0" and "optimizer/0/exp_avg".

        Returns:
            Tensors of the weights, their average, the good and the best weights, and the optimizer.
        """
        groups: dict[str, Sequence[Tensor]] = {
            "weights": self.parameters, "average": self.average.values, "good": self.good, "best": self.best or [],
        }  # fmt: skip
        tensors = {f"{group}/{i}": value for group, values in groups.items() for i, value in enumerate(values)}
        moments = {} if self._optimizer is None else self._optimizer.moments()
        flat = {f"optimizer/{i}/{key}": value for i, state in moments.items() for key, value in state.items()}
        return {**tensors, **flat}

    def unpack(self, tensors: dict[str, Tensor], average_steps: int) -> None:
        """Load the tensors that `packed` returned.

        Args:
            tensors: Tensors by flat names.
            average_steps: Number of updates of the average.

        Raises:
            ValueError: If one of them is no tensor of floats.
        """
        odd = next((name for name, value in tensors.items() if not value.is_floating_point()), None)
        if odd is not None:
            raise ValueError(f"{odd} must be floats; got {tensors[odd].dtype}")
        self.average.steps = average_steps
        assign(self.parameters, _numbered(tensors, "weights"))
        assign(self.average.values, _numbered(tensors, "average"))
        assign(self.good, _numbered(tensors, "good"))
        best = _numbered(tensors, "best")
        self.best = [value.to(p) for value, p in zip(best, self.parameters, strict=True)] if best else None
        moments = _moments(tensors)
        if moments:
            self.optimizer.load_moments(moments)


def _numbered(tensors: dict[str, Tensor], group: str) -> list[Tensor]:
    """Return the tensors of a group in order; an empty list if the group is absent."""
    count = sum(name.startswith(f"{group}/") for name in tensors)
    return [tensors[f"{group}/{i}"] for i in range(count)]


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's moments by parameter and name; an empty dictionary if there are none."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, number, *key = name.split("/")
        if group == "optimizer":
            state.setdefault(int(number), {})[key[0]] = value
    return state
