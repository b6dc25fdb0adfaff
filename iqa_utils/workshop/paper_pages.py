"""What our runs say about each paper: evidence for its headlines, and a page for its authors."""

from typing import Any

import pandas as pd

from iqa_utils.workshop.claims import COMPARED, audit, counts, load_claims
from iqa_utils.workshop.papers import Headline, papers

POWER = (1.96 + 0.84) / 1.96  # from the half-width of a 95 % interval to 80 % power


def evidence(headline: Headline, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find the results of real runs that a headline names, with what they say.

    Args:
        headline: Of a paper.
        runs: From `iqa_utils.workshop.runs.find_runs`.

    Returns:
        Results with ``profile``, ``says`` and ``detectable``, the smallest difference that such a
        run finds with 80 % power; equal results of a run and its published copy once.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = {"baseline": ""} | dict(headline.compare)
    for run in runs:
        for result in run["results"] if run["stem"] == headline.notebook else ():
            same = all((result.get(key) or "") == value for key, value in wanted.items())
            if same and result["data"] != "demo" and result["ci_low"] is not None:
                low, high = result["ci_low"], result["ci_high"]
                told = {"profile": run["profile"], "says": headline.says(low, high)}
                told["detectable"] = POWER * (high - low) / 2
                found.setdefault(repr((run["profile"], result)), result | told)
    return list(found.values())


def headline_table(runs: list[dict[str, Any]]) -> str:
    """Write every headline with its evidence as a Markdown table, the primary ones in bold."""
    lines = ["| paper | claim | data | ours [95 %] | runs | seen with 80 % power | says |"]
    lines.append("| --- " * 7 + "|")
    for paper in papers().values():
        title = paper.TITLE.split(":")[0]
        for headline in paper.HEADLINES:
            claim = f"**{headline.claim}**" if headline.primary else headline.claim
            for one in evidence(headline, runs) or [None]:
                cells = [title, claim, *(_cells(one) if one else ["", "no run yet", "", "", ""])]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(one: dict[str, Any]) -> list[str]:
    value = f"{one['value']:+.3f} [{one['ci_low']:+.3f}, {one['ci_high']:+.3f}]"
    data = f"{one['data']}, {one['profile']}"
    return [data, value, str(one["n_runs"]), f"{one['detectable']:.3f}", one["says"]]


def paper_page(key: str, runs: list[dict[str, Any]], board: pd.DataFrame) -> str:
    """Write what we can say about a paper, for its authors to read first.

    Args:
        key: Ledger key.
        runs: From `iqa_utils.workshop.runs.find_runs`.
        board: From `claims.compare` on the results of those runs.

    Returns:
        Markdown: headline claims with their tests and evidence, the numbers by kind and verdict,
        contradictions with their place, what was easy and difficult, how to answer.
    """
    paper, lines = papers()[key], []
    source = f", [doi:{paper.DOI}](https://doi.org/{paper.DOI})" if paper.DOI else ""
    lines += [f"# {paper.TITLE}", "", f"Notebooks {', '.join(paper.NOTEBOOKS)}{source}.", ""]
    lines += ["## Headline claims", ""]
    for headline in paper.HEADLINES:
        lines += [f"### {headline.claim}", "", headline.test(), ""]
        for one in evidence(headline, runs):
            data, value, n_runs, seen, says = _cells(one)
            lines.append(
                f"- {data}: {value}, {n_runs} run(s); **{says}**. Such a run sees differences from "
                f"{seen} on in four of five cases."
            )
        lines += [] if lines[-1].startswith("-") else ["No run has measured this yet."]
        lines.append("")
    table = counts(board[board["paper"] == key])
    part = table.droplevel("paper").loc[:, table.sum() > 0]
    lines += ["## The printed numbers", "", "Distinct quantities; repeated cells count once.", ""]
    lines += [_markdown(part.reset_index()), ""]
    trained = part[part.index == "trained here"].reindex(columns=COMPARED, fill_value=0)
    lines += [f"Numbers of trained networks compared so far: {int(trained.to_numpy().sum())}.", ""]
    lines += ["## Contradictions", "", *_contradictions(key), ""]
    lines += [
        "## Easy and difficult",
        "",
        f"Easy: {paper.EASY}",
        "",
        f"Difficult: {paper.DIFFICULT}",
    ]
    lines += ["", "## How to answer", ""]
    lines += [
        "Where we misread the paper or a cell, open an issue with the template *A paper's authors "
        f"answer*, name `{key}` and the place of the cell, and say what the number should be "
        "compared with. Splits, seeds, predictions or weights let us turn *not comparable* into a "
        "verdict; corrections enter the ledger with their source."
    ]
    return "\n".join(lines) + "\n"


def _contradictions(key: str) -> list[str]:
    """One line for each check that is not consistent: place, what, both values, meaning."""
    table, places = audit(), load_claims()["place"]
    rows = table[(table["paper"] == key) & (table["verdict"] != "consistent")]
    lines = []
    for row in rows.itertuples():
        place = places[row.cells[0]] if row.cells else row.table
        value = f"printed {row.printed:g}, recomputed {row.recomputed:.6g}"
        lines.append(f"- {place}: {row.what}; {value} (*{row.verdict}*). {row.meaning}")
    return lines or ["None found."]


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "| --- " * table.shape[1] + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in table.to_numpy())])
