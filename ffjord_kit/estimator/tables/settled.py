"""Fields of the training of tables that need no trial: the numbers of rows and columns settle them."""

from __future__ import annotations

# Where contexts tell rows apart: decay up to these rows; beyond as 1 / rows.
WITH_CONTEXTS, ROWS_WITH_CONTEXTS = 0.3, 9000
# Of few rows: decay up to so many; beyond as 1 / rows^2. A fit learns rows by heart after some 500 epochs. With a decay
# of 1 the NLL of digits (1,293 rows) is lower by 0.5 nats after 45 s, and that of wine_red by 0.07 after 100 s; that of
# kin8nm (7,300) is higher by 0.27 after 200 s, and of 3,000 of its rows lower by 0.03, by 0.3 of decay lower by 0.10
# (one run each).
OF_FEW_ROWS, FEW_ROWS, LEAST = 1.0, 1500, 0.05
# Columns up to which, and from which, base points and rows are paired by optimal transport. On the 5 of power_plant it
# gains 0.12 nats after 33 s, and on the 63 of BSDS300 and the 64 of digits 0.7 after 100 s; on the 9 of protein it
# makes steps that fold more far from the rows, after 300 s, and on those of kin8nm and wine_red it loses 0.1 nats.
COUPLED, COUPLED_FROM = 5, 33
# Columns, rows and seconds from which networks are 256 wide. BSDS300 (63 columns, 110,000 rows) has a validation NLL of
# -22.6 after 300 s, where 128 have -21.2 and 512 -21.8; after 60 s -15.5, where 128 have -16.4.
WIDE_FROM, ROWS_OF_WIDTH, SECONDS_OF_WIDTH = 33, 20_000, 120.0

# Columns at least and at most, and rows from which Muon trains in AdamW's place. Protein has an NLL of -4.15 after 60 s
# (AdamW -3.51) and of -5.86 after 300 s (-5.55), power_plant (7,750 rows) 3.46 (3.56) and 3.02 (3.15). Few rows are
# learnt by heart: kin8nm (6,640) has 10.18 after 300 s (10.17), and wine_red (1,300) 7.16 (6.91). Wide networks pay for
# the products of their matrices: BSDS300 has 1.70 after 300 s (-0.45). With contexts five parameters given eight
# observations have 3.45 after 60 s (3.26). Two columns learn no sooner (one run each).
COLUMNS_OF_MUON, ROWS_OF_MUON = (4, 32), 7_000


def weight_decay(rows: int, *, contexts: bool) -> float:
    """Return the weight decay of a fit.

    Args:
        rows: Number of rows to fit.
        contexts: Whether they have contexts.

    Returns:
        The decay; 0 for none.
    """
    if contexts:
        return WITH_CONTEXTS * min(1.0, ROWS_WITH_CONTEXTS / rows)
    decay = OF_FEW_ROWS * min(1.0, FEW_ROWS / rows) ** 2
    return decay if decay > LEAST else 0.0


def takes_muon(columns: int, rows: int, *, contexts: bool) -> bool:
    """Return whether Muon trains a fit.

    Args:
        columns: Number of columns.
        rows: Number of rows to fit.
        contexts: Whether they have contexts.

    Returns:
        Whether it does.
    """
    least, most = COLUMNS_OF_MUON
    return least <= columns <= most and rows >= ROWS_OF_MUON and not contexts


def is_paired(columns: int) -> bool:
    """Return whether base points and rows of so many columns are paired by optimal transport.

    Args:
        columns: Number of columns.

    Returns:
        Whether they are.
    """
    return not COUPLED < columns < COUPLED_FROM


def needs_width(columns: int, rows: int, seconds: float) -> bool:
    """Return whether wide networks pay: of many columns, with many rows and the time to learn them.

    Args:
        columns: Number of columns.
        rows: Number of rows.
        seconds: Seconds allowed; may be infinite.

    Returns:
        Whether they do.
    """
    return columns >= WIDE_FROM and rows >= ROWS_OF_WIDTH and seconds >= SECONDS_OF_WIDTH
