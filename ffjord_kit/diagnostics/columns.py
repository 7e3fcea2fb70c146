"""Checks of a table's columns and contexts: where a density exists, and where its likelihood misleads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ffjord_kit.diagnostics.grid import find_step
from ffjord_kit.transforms import ContextScaling

LOOK = 10_000  # rows
FLAT = 1e-5  # the least eigenvalue of the columns' correlations
LARGEST = 1e150
FAR = 100.0
REPEATED, MOST_ROWS = 0.1, 200_000  # the share of rows; of more rows it would take long
SHOWN = 10  # equal columns, or columns with outliers
FOR_TAILS = "pass base='student' (--base student), for heavy tails"
TIED, FEW_ROWS = 0.05, 100  # the share of rows with one value; fewer rows show nothing


class DegenerateDataWarning(UserWarning):
    """Warn of data for which the likelihood has no bound, or of too few rows to trust one.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     check_columns(np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]]), ["a", "b"])
        >>> print(caught[0].message)
        columns 'a' and 'b' are equal: the likelihood has no bound; drop one of them
    """


def check_columns(
    x: np.ndarray,
    names: Sequence[str],
    *,
    heavy_tails: bool = False,
    angles: Iterable[int] = (),
    filled: bool = False,
    for_tails: str = FOR_TAILS,
    context: np.ndarray | None = None,
) -> None:
    """Refuse constant columns, and warn where the likelihood has no bound or follows too few rows.

    Each column by itself is warned of once, of what is worst about it: its cure may leave nothing else to cure.

    Args:
        x: Rows, shape (n, d).
        names: Names of the columns.
        heavy_tails: Whether rows far out are expected, so that they are no reason to warn.
        angles: Columns of angles, of which none is far out.
        filled: Whether rows hold values in the place of missing cells, so that they may be repeated by chance.
        for_tails: What to do about rows far out that are no errors.
        context: Contexts of the rows, shape (n, c), without which equal rows are no copies.

    Raises:
        ValueError: If columns are constant, or too large for floats; it names them.
    """
    if not x.shape[1]:  # a table of categories alone
        return
    _refuse_constant(x, names)
    _refuse_extreme(x, names)
    warned = _warn_of_duplicates(x, names)
    if not warned:
        _warn_of_dependence(x, names)
    tied = _warn_of_ties(x, names, warned)
    if len(tied) < x.shape[1] and not filled:  # rows of ties alone are repeated by chance
        _warn_of_repeats(x, context)
    if not heavy_tails:
        _warn_of_outliers(x, names, warned | tied | set(angles), for_tails)
    if len(x) < x.shape[1]:
        _warn(f"{len(x)} rows for {x.shape[1]} columns: the density will follow the rows, not what they came from")


def check_contexts(context: np.ndarray, names: Sequence[str]) -> None:
    """Refuse contexts that no float squares, and warn of those whose values go over orders of magnitude.

    Args:
        context: Contexts, shape (n, c).
        names: Names of their columns.

    Raises:
        ValueError: If values are too large for floats, or too close; it names the column.
    """
    varying = np.flatnonzero(np.ptp(context, axis=0) > 0).tolist()
    _refuse_extreme(context[:, varying], [names[i] for i in varying], "context column")
    curved = ContextScaling.of(torch.from_numpy(np.ascontiguousarray(context))).curved.numpy()
    for column in np.flatnonzero(curved).tolist():
        low, high = context[:, column].min(), context[:, column].max()
        _warn(
            f"context column {names[column]!r} goes over orders of magnitude, from {low:g} to {high:g}, so it counts "
            f"by its logarithm (row {int(np.abs(context[:, column]).argmax())} is the farthest from 0): drop that row "
            "if it is an error, or pass the column on an even scale"
        )


def warn_of_unlearnt_contexts(context: np.ndarray, scaling: ContextScaling, names: Sequence[str]) -> None:
    """Warn of contexts that were constant in the fit, and have other values now.

    Args:
        context: Contexts to score or draw for, shape (n, c).
        scaling: Scaling of the contexts that was fitted.
        names: Names of their columns.
    """
    value, constant = (part.numpy()[: context.shape[1]] for part in (scaling.mean, scaling.constant))
    for column in np.flatnonzero(constant & (context != value).any(axis=0)).tolist():
        _warn(
            f"context column {names[column]!r} was {value[column]:g} in all rows of the fit and has other values now: "
            "the density does not depend on it; fit again with rows in which it varies"
        )


def _refuse_constant(x: np.ndarray, names: Sequence[str]) -> None:
    constant = [names[i] for i in np.flatnonzero(np.ptp(x, axis=0) == 0).tolist()]
    if constant:
        raise ValueError(
            f"column {_listed(constant)} has one value in all rows (n_samples={len(x)}), so its density is infinite: "
            "drop it, or add noise to it"
        )


def _refuse_extreme(x: np.ndarray, names: Sequence[str], noun: str = "column") -> None:
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    extreme = (np.maximum(np.abs(low), np.abs(high)) > LARGEST) | (high - low < 1 / LARGEST)
    for column in np.flatnonzero(extreme).tolist():
        raise ValueError(
            f"{noun} {names[column]!r} goes from {low[column]:.3g} to {high[column]:.3g}, whose squares no float "
            "holds: change its unit"
        )


def _warn_of_duplicates(x: np.ndarray, names: Sequence[str]) -> set[int]:
    """Warn of equal columns; return them."""
    order = np.argsort(x[0], kind="stable").tolist()
    equal: dict[int, None] = {}
    for a, b in zip(order[:-1], order[1:], strict=True):
        if x[0, a] == x[0, b] and np.array_equal(x[:, a], x[:, b]):
            equal |= {a: None, b: None}
    if len(equal) == 2:
        a, b = sorted(equal)
        _warn(f"columns {names[a]!r} and {names[b]!r} are equal: the likelihood has no bound; drop one of them")
    elif equal:
        found = _listed([names[i] for i in sorted(equal)], SHOWN)
        _warn(f"columns {found} equal others: the likelihood has no bound; keep one of each")
    return set(equal)


def _warn_of_dependence(x: np.ndarray, names: Sequence[str]) -> None:
    """Warn of columns of which one is nearly a sum of multiples of the others: the data lie close to a plane."""
    if x.shape[1] < 2 or len(x) <= x.shape[1]:
        return
    some = x[:: max(1, len(x) // LOOK)] if len(x) > LOOK >= 10 * x.shape[1] else x
    spread = some.std(0)
    if not (spread > 0).all():  # constant among the rows looked at alone
        return
    values, vectors = np.linalg.eigh(np.corrcoef(some, rowvar=False))
    if values[0] < FLAT:
        weights = np.abs(vectors[:, 0])
        found = [names[i] for i in np.argsort(-weights) if weights[i] > weights.max() / 10]
        _warn(
            f"columns {_listed(found)} are linearly dependent, but for {max(values[0], 0.0):.1e} of their variance: "
            "the likelihood can be made as large as one likes; drop one of them"
        )


def _warn_of_ties(x: np.ndarray, names: Sequence[str], warned: set[int]) -> set[int]:
    """Warn of columns with one value in many rows, by the cure that each has; return them."""
    some = x[:: max(1, len(x) // LOOK)]
    if len(some) < FEW_ROWS:
        return set()
    shares = [float(np.unique(column, return_counts=True)[1].max() / len(some)) for column in some.T]
    tied = [i for i, share in enumerate(shares) if share > TIED and i not in warned]
    stepped = [i for i in tied if find_step(some[:, i])]
    for columns, cure in (
        (stepped, _for_steps(some, names, stepped)),
        ([i for i in tied if i not in stepped], "leave it out; its values lie on no grid, so dequantize does not help"),
    ):
        if columns:
            found = [f"{names[i]!r} ({shares[i]:.0%})" for i in columns]
            shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            _warn(
                f"one value in many rows of column {shown}: the likelihood can be made as large as one likes there; "
                f"use it as context, or {cure}"
            )
    return set(tied)


def _for_steps(x: np.ndarray, names: Sequence[str], stepped: Sequence[int]) -> str:
    """Return what to do about columns whose values have equal steps."""
    if all(np.array_equal(x[:, i], np.round(x[:, i])) for i in stepped):
        types = ",".join(f"{names[i]}=integer" for i in stepped)
        return f"give it the type integer (--columns {types}), which is for counts"
    return f"pass dequantize={[names[i] for i in stepped]}, for noise of the width of its steps"


def _warn_of_repeats(x: np.ndarray, context: np.ndarray | None) -> None:
    """Warn of rows that occur more than once, which a validation would have seen in training."""
    if not FEW_ROWS <= len(x) <= MOST_ROWS:
        return
    whole = x if context is None else np.column_stack([x, context])
    _, counts = np.unique(whole, axis=0, return_counts=True)
    share = counts[counts > 1].sum() / len(x)
    if share > REPEATED:
        _warn(
            f"{share:.0%} of the rows occur more than once: those held out are trained on too, so validation flatters "
            f"the model; drop the copies{', e.g. by numpy.unique(X, axis=0)' if context is None else ''}"
        )


def _warn_of_outliers(x: np.ndarray, names: Sequence[str], warned: set[int], for_tails: str) -> None:
    """Warn of columns with a value very far out, in widths of the column's middle half."""
    low, middle, high = np.quantile(x[:: max(1, len(x) // LOOK)], [0.25, 0.5, 0.75], axis=0)
    reach, width = np.maximum(middle - x.min(axis=0), x.max(axis=0) - middle), high - low
    far = [i for i in np.flatnonzero((width > 0) & (reach > FAR * width)).tolist() if i not in warned]
    if not far:
        return
    first, row = far[0], int(np.abs(x[:, far[0]] - middle[far[0]]).argmax())
    others = f"; others as far out: {_listed([names[i] for i in far[1:]], SHOWN)}" if len(far) > 1 else ""
    _warn(
        f"column {names[first]!r} reaches {reach[first] / width[first]:.1e} times the width of its middle half "
        f"(row {row}, counted from 0: {x[row, first]:g}){others}: drop such rows if they are errors, or {for_tails}"
    )


def _warn(text: str) -> None:
    warnings.warn(text, DegenerateDataWarning, stacklevel=4)


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + more
