"""Columns of tables: their types, and rows brought from a user's form into that of the flow and back."""

from ffjord_kit.columns.base import ColumnType, ColumnTypeWarning
from ffjord_kit.columns.categories import Category, Date
from ffjord_kit.columns.circles import Circle, Season
from ffjord_kit.columns.types import Bounded, Integer, Positive, Real, Sphere

__all__ = [
    "Bounded", "Category", "Circle", "ColumnType", "ColumnTypeWarning", "Date", "Integer", "Positive", "Real", "Season",
    "Sphere",
]  # fmt: skip
