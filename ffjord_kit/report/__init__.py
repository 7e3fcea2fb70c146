"""A report of a fitted model: one page in one file, which a browser shows without a network."""

from ffjord_kit.report.page import write_report
from ffjord_kit.report.subject import Rows, nearest

__all__ = ["Rows", "nearest", "write_report"]
