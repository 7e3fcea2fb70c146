"""Fits to rows with weights: which fits can take them."""

from __future__ import annotations

from ffjord_kit.diagnostics.watch import watch_words
from ffjord_kit.estimator.fields import TableFields


def refuse_beside_weights(fields: TableFields) -> None:
    """Refuse what would take weighted rows for draws of the density.

    Args:
        fields: Fields of the fit.

    Raises:
        ValueError: If there is such a field.
    """
    if fields.coupling not in ("auto", "independent"):
        raise ValueError(
            f"coupling={fields.coupling!r} pairs rows that count alike: with sample_weight leave it at 'auto'"
        )
    if "spectrum" in watch_words(fields.watch):
        raise ValueError("watch='spectrum' compares with rows that count alike: with sample_weight leave it out")
