"""The generated rows of the README, from what is published under ``figures``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iqa_utils.workshop.claims import audit, compare, counts
from iqa_utils.workshop.notebooks import notebook_stems
from iqa_utils.workshop.paper_pages import evidence
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.result_tables import (
    address,
    compared_by_kind,
    markdown,
    notebook_head,
    real_results,
    speed_line,
)
from iqa_utils.workshop.runs import ROOT, find_runs


def paper_rows(runs: Sequence[dict[str, Any]]) -> str:
    """One row per paper: what it is, its first headline claim, what our runs say, its page."""
    rows = []
    for key in papers():
        headline = next(h for h in headlines()[key] if h.primary)
        page = f"{address('pages')}/papers/{key}.html" if address("pages") else _page_of_papers()
        rows.append([_reference(key), headline.claim, _verdict(headline, runs), f"[page]({page})"])
    return markdown(pd.DataFrame(rows, columns=["paper", "headline claim", "our runs", "more"]))


def _page_of_papers() -> str:
    published = "figures/07_scoreboard/paper/07_scoreboard.ipynb"
    return published if (ROOT / published).is_file() else "notebooks/07_scoreboard.ipynb"


def _reference(key: str) -> str:
    """Authors, title, venue and DOI of a paper from CITATION.cff, else its short title."""
    paper = papers()[key]
    for entry in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]:
        if key == f"{entry['authors'][0]['family-names'].split()[-1].lower()}{entry['year']}":
            venue = entry.get("journal") or entry.get("conference", {}).get("name", "")
            venue = f", {venue}" if venue else ""
            doi = f", [doi](https://doi.org/{paper.DOI})" if paper.DOI else ""
            return f"{paper.TITLE.split(':')[0]}, *{entry['title']}*{venue}{doi}"
    return paper.TITLE


def _verdict(headline: Headline, runs: Sequence[dict[str, Any]]) -> str:
    found = [one["says"] for one in evidence(headline, list(runs))]
    if not found:
        return "not run yet"
    said = {word: found.count(word) for word in ("confirmed", "refuted", "undecided")}
    words = [word if len(found) == 1 else f"{word} in {n}" for word, n in said.items() if n]
    return ", ".join(words) + f" of {len(found)} settings" * (len(found) > 1)


def notebook_rows(runs: Sequence[dict[str, Any]]) -> str:
    """One row per notebook: its question, and the headline number of its published runs."""
    board, rows = compare(real_results(runs)), []
    by_notebook = {h.notebook: h for found in headlines().values() for h in found if h.primary}
    for stem in notebook_stems():
        title, question = notebook_head(stem)
        said = {"00": _audit_line, "01": _counts_line, "07": compared_by_kind}.get(stem[:2])
        text = said(board) if said else _numbers(by_notebook.get(stem), runs)
        links = [_executed(run) for run in runs if run["stem"] == stem]
        cells = [f"[{title}](notebooks/{stem}.ipynb)", question, text, ", ".join(links)]
        rows.append(cells)
    return markdown(pd.DataFrame(rows, columns=["notebook", "question", "so far", "executed"]))


def _audit_line(board: pd.DataFrame) -> str:
    n = audit()["verdict"].value_counts()
    return f"{n.sum()} checks: {n['inconsistent']} inconsistent, {n['implausible']} implausible"


def _counts_line(board: pd.DataFrame) -> str:
    row = counts(board).groupby("kind").sum().loc["re-tabulated"]
    return f"{row['reproduced']} of {row.sum()} counts and correlations reproduced"


def _numbers(headline: Headline | None, runs: Sequence[dict[str, Any]]) -> str:
    found = evidence(headline, list(runs)) if headline else []
    if not found:
        return "no run on real data yet"
    compare, n = headline.compare, sorted({one["n_runs"] for one in found})
    values = [f"{r['value']:+.3f} [{r['ci_low']:+.3f}, {r['ci_high']:+.3f}]" for r in found[:2]]
    more = f" and {len(found) - 2} more" * (len(found) > 2)
    counted = f"{' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))} run{'s' * (n[-1] > 1)}"
    versus = f" minus {compare['baseline']}" if "baseline" in compare else ""
    said = f"{compare['metric']}, {compare['method']}{versus}: {'; '.join(values)}{more}"
    return f"{said}; {counted}"


def _executed(run: dict[str, Any]) -> str:
    place = f"figures/{run['stem']}/{run['profile']}"
    notebook = f"{place}/{run['stem']}.ipynb"
    return f"[{run['profile']}]({notebook if (ROOT / notebook).is_file() else place})"


PARTS = {
    "papers": paper_rows,
    "notebooks": notebook_rows,
    "speed": lambda runs: speed_line(),
    "badges": lambda runs: _badges(),
}


def _badges() -> str:
    """Links that need public addresses; nothing where pyproject.toml names none."""
    found = {"pages": "the site", "repository": "the repository"}
    return " · ".join(f"[{text}]({address(name)})" for name, text in found.items() if address(name))


def update_readme(path: Path | None = None) -> bool:
    """Put the current rows between the README's markers; returns whether anything changed."""
    path = path or ROOT / "README.md"
    old = text = path.read_text(encoding="utf-8")
    runs = find_runs(ROOT / "figures")
    for part, write in PARTS.items():
        start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{path.name} must hold {start} and {end} once each")
        before, rest = text.split(start)
        text = f"{before}{start}\n{write(runs)}\n{end}{rest.split(end)[1]}"
    if text != old:
        path.write_text(text, encoding="utf-8")
    return text != old
