"""Watching a flow while it trains: numbers of each validation, at a limited share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.condensation import network_condensation
from ffjord_kit.diagnostics.hessian import top_eigenvalues
from ffjord_kit.diagnostics.spectrum import density_spectrum
from ffjord_kit.diagnostics.weight_loss import WeightLoss
from ffjord_kit.flow import Flow
from ffjord_kit.nn.neurons import hidden_neurons
from ffjord_kit.objectives import FlowMatching, MaximumLikelihood, Objective
from ffjord_kit.ode import FixedSolver
from ffjord_kit.trace import ExactTrace

SHARE = 0.05  # of the time, at most
SAMPLES = 2_000
QUICK_SOLVER = FixedSolver("midpoint", 8, grading=2.0)
CURVED_ROWS, LIKELIHOOD_ROWS, CURVATURE_ERROR = 200, 50, 0.01  # rows of the Hessian; relative error of its eigenvalue

Watched = Callable[[Flow, Batch, str], Mapping[str, Any]]


@dataclass
class Watch:
    """A listener to validations that looks at the flow, at most for a share of the time since it began.

    Args:
        flow: Flow in training.
        rows: Rows in the units of the data, and contexts, to compare the flow with.
        words: Words of WATCHES.
        share: Largest share of the time.

    Raises:
        ValueError: If a word is unknown.
    """

    flow: Flow
    rows: Batch
    words: Sequence[str]
    share: float = SHARE
    spent: float = field(default=0.0, init=False)
    begun: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        self.words = watch_words(self.words)

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the flow, unless looks have had their share of the time.

        Args:
            record: Record of the validation, with the phase.

        Returns:
            Numbers for the log, by the words; nothing where it was too early to look again.
        """
        start = time.perf_counter()
        if self.spent > self.share * (start - self.begun):
            return {}
        phase = record.get("phase", "")
        found = {word: dict(WATCHES[word](self.flow, self.rows, phase)) for word in self.words}
        self.spent += time.perf_counter() - start
        return found


def watch_words(words: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return what to watch, checked.

    Args:
        words: Words of WATCHES, in a sequence or separated by commas; None for nothing.

    Returns:
        The words.

    Raises:
        ValueError: If a word is unknown.

    Example:
        >>> watch_words("spectrum, condensation")
        ('spectrum', 'condensation')
    """
    listed = words.split(",") if isinstance(words, str) else list(words or ())
    found = tuple(word.strip() for word in listed if word.strip())
    for word in found:
        if word not in WATCHES:
            raise ValueError(f"watch must be some of {', '.join(WATCHES)}; got {word!r}")
    return found


def _spectrum(flow: Flow, rows: Batch, phase: str) -> dict[str, Any]:
    """Return the relative errors of the spectrum by frequency."""
    return density_spectrum(flow, rows.x, rows.context, samples=SAMPLES, solver=QUICK_SOLVER).record()


def _condensation(flow: Flow, rows: Batch, phase: str) -> dict[str, Any]:
    """Return the width and the effective number of neurons of each hidden layer; nothing where there is none."""
    layers = network_condensation(flow) if hidden_neurons(flow) else []
    return {layer.name: [layer.width, layer.effective] for layer in layers}


def _hessian(flow: Flow, rows: Batch, phase: str) -> dict[str, Any]:
    """Return the largest eigenvalue of the Hessian and its error, of flow matching in its phase, else of likelihood."""
    objective: Objective[Flow] = MaximumLikelihood(ExactTrace(), solver=QUICK_SOLVER)
    some = rows[:LIKELIHOOD_ROWS]
    if phase == "flow_matching":
        objective, some = FlowMatching(), rows[:CURVED_ROWS]
    top = top_eigenvalues(WeightLoss.of(flow, some, objective), tolerance=CURVATURE_ERROR, check=False)
    return {"loss": objective.name, "top": float(top.values[0]), "error": float(top.errors[0])}


WATCHES: dict[str, Watched] = {"spectrum": _spectrum, "condensation": _condensation, "hessian": _hessian}
