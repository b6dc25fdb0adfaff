"""How Sphinx builds the site: nothing is executed, and no page asks another machine for anything.

`iqa report` copies this folder, adds what it writes from the runs, and calls Sphinx.
"""

import latex2mathml.converter
from docutils.nodes import Node, NodeVisitor, SkipNode
from sphinx.application import Sphinx

project = "Five image-quality papers, number by number"
copyright = "the iqa-utils maintainers, Apache-2.0"  # noqa: A001 - Sphinx's name
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["generated", "*.py"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "autodoc"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["scoreboard.js"]
html_math_renderer = "mathml"
html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True


def _write(translator: NodeVisitor, node: Node, display: str) -> None:
    latex = node.astext()
    translator.body.append(latex2mathml.converter.convert(latex, display=display))
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Draw formulas as MathML, which browsers know by themselves."""
    app.add_html_math_renderer(
        "mathml",
        (lambda translator, node: _write(translator, node, "inline"), None),
        (lambda translator, node: _write(translator, node, "block"), None),
    )
