"""Tables in HDF5 files, by h5py. An attribute that pandas or PyTables pickled is never read.

A table is a dataset (n, d), a dataset (n,) with named fields, or a group whose datasets (n,) are the columns. The names
of the columns of a dataset (n, d) may stand in a dataset beside it called `columns`, or in an attribute of that name.
Tables that pandas wrote are read too, without their index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ffjord_kit.datasets.arrays import choose_table
from ffjord_kit.datasets.damage import explained_by
from ffjord_kit.datasets.dataset import default_columns
from ffjord_kit.datasets.extras import import_extra
from ffjord_kit.datasets.frame import SMALLER, Frame, columns_of, make_frame
from ffjord_kit.memory import check_fits

Columns = list[tuple[str, np.ndarray]]


def read_hdf5(path: str, key: str | None = None) -> Frame:
    """Read a table of an HDF5 file.

    Args:
        path: Path of the file.
        key: Name of the dataset or group; None for the only table, or the one called x.

    Returns:
        The table.

    Raises:
        ValueError: If the file is damaged, or has no such table.
        ImportError: If h5py is missing.
    """
    h5py = import_extra("h5py", path)
    with explained_by(path, "an HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with explained_by(path, "an HDF5 file"):
            tables = dict(_tables(h5py, file))
        name = choose_table(path, list(tables), None if key is None else key.strip("/") or "/")
        group, members = tables[name]
        for member in members:
            check_fits(f"{path}: {member} would take", 8 * int(np.prod(group[member].shape)), SMALLER)
        with explained_by(path, "an HDF5 file"):
            columns = _columns(group, members)
    label = path if key is None else f"{path}:{key}"
    return make_frame(label, columns, found=f"table {name!r}" if len(tables) > 1 else "")


def _tables(h5py: Any, file: Any) -> Iterator[tuple[str, tuple[Any, list[str]]]]:
    """Yield the name of each table, with its group and its datasets there."""
    groups = [file]
    file.visititems(lambda _, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    for group in groups:
        shapes = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
        if _is_fixed_frame(shapes):
            yield _name(group), (group, [name for name in shapes if name.endswith("_values")])
            continue
        for name, item in shapes.items():
            if item.ndim == 2 or (item.ndim == 1 and item.dtype.names):
                own = _name(group) if name == "table" and group.name != "/" else f"{group.name}/{name}".strip("/")
                yield own, (group, [name])
        flat = [name for name, item in shapes.items() if item.ndim == 1 and not item.dtype.names]
        columns = [] if any(item.ndim == 2 for item in shapes.values()) else flat
        if columns and len({shapes[name].shape for name in columns}) == 1:
            yield _name(group), (group, columns)


def _name(group: Any) -> str:
    return group.name.strip("/") or "/"


def _is_fixed_frame(shapes: Mapping[str, Any]) -> bool:
    """Return whether a group is a frame as `DataFrame.to_hdf` writes it by default."""
    return "axis0" in shapes and "block0_values" in shapes


def _columns(group: Any, members: list[str]) -> Columns:
    if all(member.startswith("block") and member.endswith("_values") for member in members) and "axis0" in group:
        return _columns_of_blocks(group, members)
    if len(members) > 1 or (group[members[0]].ndim == 1 and not group[members[0]].dtype.names):
        return [(member, group[member][()]) for member in members]
    (member,) = members
    array = group[member][()]
    if array.dtype.names:
        index = _text(group.attrs.get("pandas_type", "")) == "frame_table"
        return [(name, values) for name, values in columns_of(member, array) if not (index and name == "index")]
    return list(zip(_stored_names(group, member, array.shape[1]), array.T, strict=True))


def _columns_of_blocks(group: Any, members: list[str]) -> Columns:
    """Return the columns of a frame, whose blocks are of one type each, in the frame's order."""
    columns: dict[str, np.ndarray] = {}
    for member in members:
        names = map(_text, group[member.replace("_values", "_items")][()])
        columns |= dict(zip(names, group[member][()].T, strict=True))
    return [(name, columns[name]) for name in map(_text, group["axis0"][()])]


def _stored_names(group: Any, member: str, count: int) -> tuple[str, ...]:
    beside = group["columns"][()] if "columns" in group else group[member].attrs.get("columns", ())
    names = tuple(map(_text, np.ravel(beside)))
    return names if len(names) == count else default_columns(count)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
