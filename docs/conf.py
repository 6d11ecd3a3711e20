"""The site: `sphinx-build -W docs site` makes it, without a network, as a test does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import commands
import draw

import lpfs

project = "lpfs"
author = copyright = "the lpfs developers"
release = lpfs.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["pictures"]
# In docstrings as in Markdown, what stands between two backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 80

html_theme = "furo"
html_title = "lpfs"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_baseurl = ""


def _formula(display: str):  # type: ignore[no-untyped-def]
    """Formulas as MathML, which browsers draw by themselves: no script, no font to fetch."""

    def visit(self, node: nodes.Element) -> None:  # type: ignore[no-untyped-def]
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def _escape_bars(app, what, name, obj, options, lines: list[str]) -> None:  # type: ignore[no-untyped-def]
    """|x| outside code is a magnitude in the docstrings, and no reference to a substitution."""
    lines[:] = [re.sub(r"`[^`]*`|>>>.*|\|", _escape_bar, line) for line in lines]


def _escape_bar(found: re.Match[str]) -> str:
    return r"\|" if found[0] == "|" else found[0]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape_bars)
    app.add_html_math_renderer("mathml", _formula("inline"), _formula("block"))
    # To a lexer of shells, `select` is a keyword.
    app.add_lexer("sh", TextLexer)
    app.add_directive("commands", commands.Commands)
    draw.everything(Path(__file__).parent / "pictures")
