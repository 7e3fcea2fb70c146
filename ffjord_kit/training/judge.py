"""A flow without weights to learn, which its preprocessing fits: it is validated once, and kept."""

from __future__ import annotations

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.run import Run
from ffjord_kit.training.data import preprocessed
from ffjord_kit.training.distributed import Workers
from ffjord_kit.training.history import History
from ffjord_kit.training.runtime import Timer
from ffjord_kit.training.validation import LikelihoodValidation
from ffjord_kit.transforms.cnf import SolveOptions


def judge_flow(
    flow: Flow, validation: Batch | None, evaluation: SolveOptions, seed: int, run: Run | None, timer: Timer
) -> History:
    """Validate a flow that has no weights to learn, and save it.

    Args:
        flow: Flow.
        validation: Held-out rows with all that they carry; None for no validation.
        evaluation: Trace and solver of the validation.
        seed: Seed of the fit.
        run: Run folder for the log and the model, or None.
        timer: Clocks of the fit.

    Returns:
        The history, of one record.
    """
    history, workers = History(seed), Workers.here()
    if validation is not None:
        score = LikelihoodValidation(flow.inner, preprocessed(flow, validation), evaluation)(workers, workers.size)
        history.best_nll = score.mean
        history.records.append({"step": 0, "phase": "categories", **score.record()})
    history.seconds, history.work_seconds = timer.read()
    if run is not None and workers.is_first:
        run.keep_records(0)
        for record in history.records:
            run.record({**record, "seconds": round(history.seconds, 3)})
        run.save_model(flow)
    return history
