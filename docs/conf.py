"""Settings of the documentation: Sphinx with MyST pages, furo's theme, and an API made from docstrings."""

import re

from sphinx.application import Sphinx

from ffjord_kit.version import __version__

project = "ffjord_kit"
author = "the ffjord_kit developers"
copyright = f"2026, {author}"  # noqa: A001 (Sphinx's name)
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # one class under two names: where it lives, and where it is imported from
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"  # attributes of a record are told once
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\$ |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"ffjord_kit {version}"
html_show_sphinx = False
html_sidebars = {  # furo's own, and the menu of versions
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

MARKS = re.compile(r"(?<!\\)[*|]")  # as in shape (batch, *event) and |x|: mathematics, no emphasis or substitution


def escape_marks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the stars and bars of the mathematics in docstrings."""
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else MARKS.sub(r"\\\g<0>", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the changes of docstrings, before napoleon reads them."""
    app.connect("autodoc-process-docstring", escape_marks, priority=100)
