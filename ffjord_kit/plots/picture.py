"""A figure that a notebook shows without pyplot. The only module that imports matplotlib at its head: load it late."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure

from ffjord_kit.plots.canvas import style


class Picture(Figure):
    """A matplotlib figure in the style of the package, which displays itself where IPython asks for a PNG."""

    def _repr_png_(self) -> bytes:
        page = BytesIO()
        with style():
            self.savefig(page, format="png", dpi=self.dpi)
        return page.getvalue()
