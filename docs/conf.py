"""Settings of the documentation build."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from vqvae2.version import __version__  # noqa: E402

project = "vqvae2"
author = "The vqvae2 contributors"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "flag_reference",
    "public_docstrings",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds for a cell, on any machine

templates_path = ["_templates"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Fields that a docstring lists under "Attributes" are documented once, by their own docstring.
napoleon_use_ivar = True
# Argument names are no references: many classes have a field of the same name.
suppress_warnings = ["ref.python"]
napoleon_numpy_docstring = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"vqvae2 {release}"


def plain_field(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading "a: b" in the docstring of a field as "type: description"."""
    if what in ("attribute", "data"):
        # An empty comment: napoleon looks for the type in the first line only.
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Hook into autodoc ahead of napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", plain_field, priority=400)
