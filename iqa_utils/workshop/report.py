"""The offline site: every claim against every result, one page a run, tables to take away.

Everything is drawn from ``metrics.json``, ``provenance.json``, the figures and the executed
notebooks; nothing is computed again and nothing is fetched.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import latex2mathml.converter
import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from great_tables import GT, loc, style
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from iqa_utils.workshop.claims import COMPARED, KINDS, PAPERS, VERDICTS, compare, counts, coverage
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.plots.common import VERDICT_COLOURS, plot_verdicts, set_theme
from iqa_utils.workshop.provenance import is_current
from iqa_utils.workshop.runs import ROOT, find_runs

TITLES = {key: paper.TITLE for key, paper in papers().items()}
SHOWN = ["table", "method", "dataset", "metric", "paper value", "ours", "ci", "n", "data", "kind"]


def real_results(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results on real data, each once though a published run is found twice."""
    return _unique(result for run in runs for result in run["results"] if result["data"] != "demo")


def demo_results(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results that were on synthetic data, each once."""
    return _unique(result for run in runs for result in run["results"] if result["data"] == "demo")


def _unique(results: Any) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for result in results:
        seen.setdefault(json.dumps(result, sort_keys=True), result)
    return list(seen.values())


def compared_by_kind(board: pd.DataFrame) -> str:
    """Say how many distinct quantities were compared, by kind of answer, trained networks first."""
    table = counts(board)[list(COMPARED)].groupby("kind").sum().sum(axis=1)
    trained = int(table.get("trained here", 0))
    rest = ", ".join(f"{table[k]} {k}" for k in KINDS[:3] if table.get(k, 0))
    return (
        f"{(board['role'] == '').groupby(board.index).first().sum()} distinct quantities in "
        f"{board.index.nunique()} printed numbers. Compared so far: {trained} of trained networks"
        f"{', ' + rest if rest else ''}."
    )


def draw_scoreboard(board: pd.DataFrame) -> plt.Figure:
    """Draw where each paper stands: a bar per paper and kind of answer, a colour per verdict."""
    set_theme()
    table = counts(board)
    table.index = [f"{TITLES[paper].split(':')[0]}, {kind}" for paper, kind in table.index]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.34 * len(table)))
    plot_verdicts(axes, table.loc[:, table.sum() > 0])
    axes.set(title="Verdicts on distinct published quantities", xlabel="distinct quantities")
    return figure


def build_report(folder: Path | None = None, *, runs: list[dict[str, Any]] | None = None) -> Path:
    """Write the site, by default of all runs and to ``runs/report``; returns its ``index.html``."""
    folder = folder or ROOT / "runs" / "report"
    runs = find_runs() if runs is None else runs
    runs = [run for run in runs if folder not in run["folder"].parents]
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "tables").mkdir(parents=True)
    board = compare(real_results(runs))
    figure = draw_scoreboard(board)
    figure.savefig(partial / "scoreboard.png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    sections = [_paper_section(paper, board, partial) for paper in PAPERS]
    pages = [_run_card(run, partial) for run in runs]
    demo = _demo_section(demo_results(runs), partial)
    index = _PAGE.format(
        compared=compared_by_kind(board),
        counts=_counts_line(board),
        papers="\n".join(sections),
        waiting=_waiting(board),
        runs="\n".join(pages) or "<p>No finished run yet: <code>make demo</code>.</p>",
        demo=demo,
    )
    (partial / "index.html").write_text(index, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / "index.html"


def _counts_line(board: pd.DataFrame) -> str:
    first = board[board["role"] == ""]
    counts = first["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)


def _paper_section(paper: str, board: pd.DataFrame, folder: Path) -> str:
    part = board[board["paper"] == paper]
    part.to_csv(folder / "tables" / f"{paper}.csv", index=False)
    answered = part[part["ours"].notna() | part["verdict"].isin(["inconsistent", "implausible"])]
    answered = answered[[*SHOWN, "verdict", "reason"]]
    _write_latex(answered, folder / "tables" / f"{paper}.tex")
    links = f'<a href="tables/{paper}.csv">CSV, all {len(part)}</a>'
    links += f' · <a href="tables/{paper}.tex">LaTeX</a>'
    table = ""
    if len(answered):
        title = (
            f"<summary>The {len(answered)} with a result of ours or a mark of the audit</summary>"
        )
        wide = f'<div class="wide">{_verdict_table(answered)}</div>'
        table = f"<details>{title}{wide}</details>"
    return (
        f'<section id="{paper}"><h2>{html.escape(TITLES[paper])}</h2>'
        f"<p>{(part['role'] == '').sum()} distinct quantities: {_counts_line(part)}. {links}</p>"
        f"{table}</section>"
    )


def _verdict_table(rows: pd.DataFrame) -> str:
    shown = rows.astype(object).where(rows.notna(), None)
    table = GT(shown).fmt_number(columns="ours", n_sigfig=4).sub_missing(missing_text="")
    for verdict in VERDICTS:
        chosen = [i for i, v in enumerate(rows["verdict"]) if v == verdict]
        if chosen:
            colour = matplotlib.colors.to_hex(VERDICT_COLOURS[verdict]) + "55"
            table = table.tab_style(style.fill(colour), loc.body(columns="verdict", rows=chosen))
    table = table.tab_options(table_font_size="13px", table_width="100%", data_row_padding="2px")
    return table.as_raw_html(inline_css=False)


def _write_latex(rows: pd.DataFrame, path: Path) -> None:
    styler = rows.style.hide(axis="index").format(escape="latex", precision=4, na_rep="")
    text = styler.format_index(escape="latex", axis=1).to_latex(hrules=True)
    path.write_text(text, encoding="utf-8")


def _waiting(board: pd.DataFrame) -> str:
    table = coverage().merge(
        board[board["verdict"] == "not run"].groupby(["paper", "table"]).size().rename("not run"),
        on=["paper", "table"],
        how="inner",
    )
    if table.empty:
        return "<p>Every number has been answered.</p>"
    columns = ["paper", "table", "not run", "claims", "notebook", "needs", "reason"]
    shown = GT(table[columns]).tab_options(table_font_size="13px", table_width="100%")
    return shown.as_raw_html(inline_css=False)


def _run_card(run: dict[str, Any], folder: Path) -> str:
    name = _page_name(run)
    target = folder / name
    target.mkdir()
    source = run["folder"]
    figures = sorted([*source.glob("*.png"), *source.glob("figures/*.png")])
    for figure in figures:
        shutil.copy(figure, target)
    results = pd.DataFrame(run["results"])
    results.to_csv(target / "results.csv", index=False)
    _write_latex(results, target / "results.tex")
    links = [f'<a href="{name}/results.csv">CSV</a>', f'<a href="{name}/results.tex">LaTeX</a>']
    notebook = source / f"{run['stem']}.ipynb"
    if notebook.is_file():
        write_notebook_page(notebook, folder / f"{name}.html")
        links.insert(0, f'<a href="{name}.html">executed notebook</a>')
    images = "".join(
        f'<a href="{name}/{f.name}"><img src="{name}/{f.name}" alt="{f.stem}" loading="lazy"></a>'
        for f in figures
    )
    return (
        f"<article><h3>{html.escape(name.replace('--', ' · '))}</h3>"
        f"<p>{_provenance_line(source)} {' · '.join(links)}</p>"
        f'<div class="figures">{images}</div></article>'
    )


def _page_name(run: dict[str, Any]) -> str:
    folder, where = run["folder"], "published" if "figures" in run["folder"].parts else "run"
    suffix = "" if where == "published" else folder.name.removeprefix(run["stem"])
    return re.sub(r"[^\w.-]", "_", f"{run['stem']}--{run['profile']}{suffix}--{where}")


def _provenance_line(folder: Path) -> str:
    path = folder / "provenance.json"
    if not path.is_file():
        return ""
    seen = json.loads(path.read_text())
    data = (
        "synthetic data" if seen["demo"] and seen["data"] else ", ".join(seen["data"]) or "no data"
    )
    text = f"{data}; {seen['seconds']:.0f} s on {seen['device']}, commit {seen['commit']}; "
    text += "its code is unchanged." if is_current(seen) else "its code has changed since."
    return html.escape(text)


def _demo_section(results: list[dict[str, Any]], folder: Path) -> str:
    if not results:
        return "<p>None.</p>"
    table = pd.DataFrame(results)
    table.to_csv(folder / "tables" / "demo.csv", index=False)
    counts = table.groupby("paper").size()
    lines = "".join(f"<li>{html.escape(str(p))}: {n} values</li>" for p, n in counts.items())
    return f'<ul>{lines}</ul><p><a href="tables/demo.csv">CSV</a></p>'


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


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Five image-quality papers, number by number</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1100px }}
 body {{ padding: 1rem }}
 h1 {{ line-height: 1.15 }} h2 {{ margin-top: 2.2rem }} a {{ color: #0b5cad }}
 img {{ max-width: 100%; height: auto }} summary {{ cursor: pointer }}
 .wide {{ overflow-x: auto }}
 .figures {{ display: grid; gap: .8rem }}
 .figures {{ grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)) }}
 .figures img {{ border: 1px solid #ddd; background: #fff; aspect-ratio: 4/3; object-fit: contain }}
 article {{ border-top: 1px solid #ddd; padding: .4rem 0 1rem }} h3 {{ overflow-wrap: anywhere }}
</style></head><body>
<h1>Five papers on no-reference image quality, rebuilt, with a verdict on every number</h1>
<p>{compared} None from synthetic data. Verdicts: {counts}.</p>
<a href="scoreboard.png"><img src="scoreboard.png" alt="Verdicts by paper"></a>
{papers}
<h2>What nothing has tested yet</h2>
<div class="wide">{waiting}</div>
<h2>Runs</h2>
{runs}
<h2>Demo results</h2>
<p>Synthetic data, small networks, random weights: these show that the machinery works, and are
never compared with a paper.</p>
{demo}
</body></html>
"""
