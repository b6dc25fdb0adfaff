"""Executed notebooks as web pages that need no network: formulas as MathML, no scripts fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

_REMOTE_SCRIPT = re.compile(
    r"<script[^>]*\bsrc=\"(?:|https?:[^\"]*)\"[^>]*>\s*</script>|<link[^>]*href=\"https?:[^>]*>"
)
_REMOTE_MODULE = re.compile(
    r"<script type=\"(?:module|text/x-mathjax-config)\">.*?</script>|"
    r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->",
    re.DOTALL,
)
_HEAD = """<style>
 main, .jp-Notebook { max-width: 1100px; margin: 0 auto }
 .iqa-back { font: 15px system-ui, sans-serif; margin: 1rem auto; max-width: 1100px }
 img { max-width: 100%; height: auto }
 @media (max-width: 700px) { .jp-InputPrompt, .jp-OutputPrompt { display: none } }
</style></head>"""


class _Renderer(IPythonRenderer):
    """Markdown renderer that writes formulas as MathML, which browsers draw themselves."""

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body, display="block")


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


def write_notebook_page(notebook: Path, page: Path) -> None:
    """Turn an executed notebook into one self-contained HTML file with a link to the index."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    exporter = _Exporter(config=Config({"HTMLExporter": {"embed_images": True}}))
    for address in ("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url"):
        setattr(exporter, address, "")
    body, _ = exporter.from_notebook_node(content, {"metadata": {"name": notebook.stem}})
    body = _REMOTE_MODULE.sub("", _REMOTE_SCRIPT.sub("", body))
    body = body.replace("</head>", _HEAD, 1)
    link = '<p class="iqa-back"><a href="index.html">&larr; all papers and notebooks</a></p>'
    body = re.sub(r"(<body[^>]*>)", lambda match: match[0] + link, body, count=1)
    page.write_text(body, encoding="utf-8")
