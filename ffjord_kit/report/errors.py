"""Every number of a report with its error, and where the error comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.metrics import bits_per_dim, kl_divergence, mean_and_standard_error
from ffjord_kit.report.subject import Subject
from ffjord_kit.training.history import of_density

IMAGE_ERROR = 1e-3  # bits/dim of an image, by the solver
JUDGED = 64  # rows at which the numerical error is measured

LogProb = Callable[[np.ndarray], np.ndarray]


class Number(NamedTuple):
    """A number of the report.

    Attributes:
        name: Name.
        value: Value with its unit and error.
        source: How it was measured, and what the error is.
    """

    name: str
    value: str
    source: str


def numbers(subject: Subject, truth: LogProb | None, sections: Mapping[str, Any]) -> list[Number]:
    """Return the numbers of a report.

    Args:
        subject: Subject of the report.
        truth: True log-density, from rows (n, d) to nats (n,), or None.
        sections: Sections that are done.

    Returns:
        The numbers, the held-out likelihood first.
    """
    measured = _of_images(subject) if subject.model.is_image else _of_table(subject, truth, sections)
    return [*measured, *_validation(subject), *_receipt(subject)]


def _of_table(subject: Subject, truth: LogProb | None, sections: Mapping[str, Any]) -> Iterator[Number]:
    model, count, dimensions = subject.model, len(subject.log_prob), len(subject.columns)
    mean, error = mean_and_standard_error(subject.log_prob)
    given = "" if subject.at is None else ", each given its own context"
    rows = f"{count:,} held-out rows{given}; ± is the standard error over rows, not over fits"
    yield Number("log-likelihood", f"{mean:.4f} ± {error:.4f} nats a row", rows)
    if subject.impossible:
        left = f"{subject.impossible} rows beyond the support, or of a level that the fit has not seen; left out"
        yield Number("density 0", f"{subject.impossible} rows", left)
    bits = [bits_per_dim(value, dimensions) for value in (-mean, error)]
    yield Number("bits per dimension", f"{bits[0]:.4f} ± {bits[1]:.4f}", "the same in bits, for each column")
    few = subject.unseen.some(JUDGED)
    kind = "rounding of the exact steps" if model.density == "steps" else "error of the solver"
    yield Number(
        "numerical error",
        f"{model.solver_error(few.x, context=few.context):.1e} nats a row",
        f"{kind}: mean over {len(few.x)} rows, against a dearer computation",
    )
    if truth is not None:
        kl, error = kl_divergence(truth(subject.unseen.x), subject.log_prob)
        yield Number("KL(truth | model)", f"{kl:.4f} ± {error:.4f} nats", f"from the known density, over {rows}")
    grid = sections.get("density")
    if grid is not None:
        at = f"the largest difference from the reported log-density at {JUDGED} held-out rows at most"
        yield Number("error of the density's picture", f"{grid['error']:.1e} nats", at)


def _of_images(subject: Subject) -> Iterator[Number]:
    unseen = subject.unseen
    result = subject.model.bits_per_dim(unseen.x, context=unseen.context, max_error=IMAGE_ERROR)
    images = f"{len(result.values)} held-out images; ± is the standard error over images, not over fits"
    yield Number("bits per dimension", f"{result.mean:.4f} ± {result.standard_error:.4f}", images)
    noise = f"{result.draws} draw of {result.noise} noise, {result.probes} probes of the trace"
    yield Number("numerical error", f"{result.solver_error:.1e} bits/dim an image", f"{result.setting}; {noise}")


def _validation(subject: Subject) -> Iterator[Number]:
    """Yield the best validation of the density that reports."""
    records = of_density(subject.model.history.records, subject.model.density)
    validations = [record for record in records if "validation_nll" in record]
    if validations:
        best = min(validations, key=lambda record: record["validation_nll"])
        value = f"{best['validation_nll']:.4f} ± {best['validation_standard_error']:.4f} nats"
        yield Number("best validation NLL", value, f"at step {best['step']:,}; the fit chose its weights by it")


def _receipt(subject: Subject) -> Iterator[Number]:
    """Yield the receipt of the few steps."""
    if subject.model.density != "steps" or subject.model.note is None:
        return
    receipt = subject.model.note.receipt
    examined = f"of the exact steps, at {receipt.points:,} rows and draws"
    yield Number("receipt", "holds" if receipt.holds else "FAILS: this is no density", examined)
    yield Number("mass missing", f"{receipt.unreached:.2%}", "share of base points to which no row is mapped")
    yield Number("mass counted twice", f"{receipt.excess:.2%}", "share of points to which two rows are mapped")
    if math.isfinite(receipt.integral_error):
        integral = f"{receipt.integral:.4f} ± {receipt.integral_error:.4f}"
        yield Number("integral of the density", integral, "by a grid or importance sampling; ± is the standard error")
    yield Number("there and back", f"{receipt.round_trip:.1e}", "largest distance of a row from itself, preprocessed")
