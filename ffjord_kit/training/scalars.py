"""A listener to training that writes its numbers as scalars, for TensorBoard or any log with its interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

PLACES = ("step", "phase", "phase_index", "phase_step", "phase_share")  # where training stands: not drawn against it


class SummaryWriter(Protocol):
    """The method of torch.utils.tensorboard.SummaryWriter that is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write a number.

        Args:
            tag: Its name.
            scalar_value: The number.
            global_step: Step of the training.
        """


@dataclass(frozen=True)
class ScalarListener:
    """A listener that writes the numbers of each record of training, e.g. for TensorBoard.

    Args:
        writer: A torch.utils.tensorboard.SummaryWriter (pip install tensorboard), or any object with its `add_scalar`.

    Example:
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> listener = ScalarListener(Printer())  # model.fit(x, on_step=listener)
        >>> listener({"step": 3, "phase": "mle", "loss": 1.5, "hessian": {"loss": "mle", "top": 9.0}})
        3 mle/loss 1.5
        3 mle/hessian/top 9.0
    """

    writer: SummaryWriter

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a record.

        Args:
            record: Record of a step, or of a validation, as the history holds it.
        """
        for name, value in _numbers(record, f"{record.get('phase', 'training')}/"):
            self.writer.add_scalar(name, value, record["step"])


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif name not in PLACES and isinstance(value, Real) and not isinstance(value, bool):
            yield prefix + name, float(value)
