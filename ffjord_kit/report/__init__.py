"""A report of a fitted model: one page in one file, which a browser shows without a network."""

from ffjord_kit.report.page import write_report
from ffjord_kit.report.subject import Rows, nearest, typical

__all__ = ["Rows", "nearest", "typical", "write_report"]
