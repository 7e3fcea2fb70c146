"""Pictures of the gallery: run notebooks, and keep one picture of each in docs/gallery.

    python notebooks/thumbnails.py [08_muon_pairs ...]

The picture is that of the cell with the tag "thumbnail", or else the first one.
"""

from __future__ import annotations

import base64
import sys
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "gallery"
SIZE, COLOURS = (480, 360), 128  # largest width and height, pixels; colours of the palette


def run(name: str) -> nbformat.NotebookNode:
    """Run a notebook, and return it with its outputs."""
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(HERE)}}).execute()
    return notebook


def write_picture(name: str, notebook: nbformat.NotebookNode) -> Path:
    """Write the picture of a notebook that has run, and return its path."""
    cells = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", ()))
    found = [output.data["image/png"] for cell in cells for output in cell.get("outputs", ())
             if "image/png" in output.get("data", {})]  # fmt: skip
    if not found:
        raise ValueError(f"{name} draws no picture: end a cell with a figure")
    image = Image.open(BytesIO(base64.b64decode(found[0]))).convert("RGB")
    image.thumbnail(SIZE, Image.Resampling.LANCZOS)
    path = FOLDER / f"{name}.png"
    image.quantize(COLOURS).save(path, optimize=True)
    return path


def main() -> None:
    """Write a thumbnail of each notebook that is named, or of all."""
    FOLDER.mkdir(exist_ok=True)
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb"))
    for name in names:
        print(write_picture(name, run(name)), flush=True)


if __name__ == "__main__":
    main()
