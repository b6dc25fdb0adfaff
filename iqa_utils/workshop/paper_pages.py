"""What our runs say about each paper: evidence for its headlines, and a page for its authors."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from iqa_utils.workshop.claims import COMPARED, audit, counts, load_claims
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.result_tables import markdown
from iqa_utils.workshop.runs import NUMBERS

POWER = (1.96 + 0.84) / 1.96  # from the half-width of a 95 % interval to 80 % power


def evidence(headline: Headline, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find the results of real runs that a headline names, with what they say.

    A difference the other way round (``baseline`` minus ``method``) counts with its sign turned.

    Where the run has the same result within subsets, a claim holds only if both agree.

    Returns:
        Results with ``profile``, ``says`` and ``detectable``, the smallest difference that such a
        run finds with 80 % power; equal results of a run and its published copy once.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = {"baseline": ""} | dict(headline.compare)
    mirrored = wanted | {"method": wanted["baseline"], "baseline": wanted["method"]}
    for run in runs:
        results = run["results"] if run["stem"] == headline.notebook else []
        for result in results:
            same, turned = _fits(result, wanted), wanted["baseline"] and _fits(result, mirrored)
            if result["data"] == "demo" or result["ci_low"] is None or not (same or turned):
                continue
            pairs = [_interval(one, turned) for one in (result, *_within_subsets(result, results))]
            value, low, high = pairs[0]
            says = {headline.says(*ends) for _, *ends in pairs}
            told = {"value": value, "ci_low": low, "ci_high": high, "profile": run["profile"]}
            told |= {"says": says.pop() if len(says) == 1 else "undecided", "within": pairs[1:]}
            told |= {"detectable": POWER * (high - low) / 2}
            found.setdefault(repr((run["profile"], result)), result | told)
    return list(found.values())


def _interval(result: dict[str, Any], turned: bool) -> tuple[float, float, float]:
    """Return value and ends, of the difference the other way round where it is turned."""
    value, low, high = result["value"], result["ci_low"], result["ci_high"]
    return (-value, -high, -low) if turned else (value, low, high)


def _within_subsets(result: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find the same result as a mean within subsets."""
    same = {k: v for k, v in result.items() if k not in NUMBERS}
    same["metric"] = f"{result['metric']} within subset"
    return [one for one in results if {k: one.get(k) for k in same} == same]


def _fits(result: dict[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        (result.get(key) or "") in (value if isinstance(value, list) else [value])
        for key, value in wanted.items()
    )


def headline_table(runs: list[dict[str, Any]]) -> str:
    """Write the headlines that a run speaks to as a Markdown table, the primary ones in bold."""
    rows, waiting = [], 0
    for key, paper in papers().items():
        for headline in headlines()[key]:
            claim = f"**{headline.claim}**" if headline.primary else headline.claim
            found = evidence(headline, runs)
            waiting += not found
            rows += [[paper.TITLE.split(":")[0], claim, *_cells(one)] for one in found]
    columns = ["paper", "claim", "data", "ours [95 %]", "runs", "seen with 80 % power", "says"]
    table = markdown(pd.DataFrame(rows, columns=columns))
    told = f"{waiting} more headline claims wait for a run on real data."
    return f"{table}\n\n{told}" if waiting else table


def _cells(one: dict[str, Any]) -> list[str]:
    value = f"{one['value']:+.3f} [{one['ci_low']:+.3f}, {one['ci_high']:+.3f}]"
    for inside, low, high in one["within"]:
        value += f"; within subsets {inside:+.3f} [{low:+.3f}, {high:+.3f}]"
    which = [one.get(key) or "" for key in ("network", "layer", "regressor", "stage", "variant")]
    data = ", ".join(dict.fromkeys(filter(None, [one["data"], one["profile"], *which])))
    return [data, value, str(one["n_runs"]), f"{one['detectable']:.3f}", one["says"]]


def paper_page(key: str, runs: list[dict[str, Any]], board: pd.DataFrame) -> str:
    """Write as Markdown what we can say about a paper, for its authors to read first.

    ``board`` is what `claims.compare` makes of the results of ``runs``.
    """
    paper, lines = papers()[key], []
    source = f", [doi:{paper.DOI}](https://doi.org/{paper.DOI})" if paper.DOI else ""
    lines += [f"# {paper.TITLE}", "", f"Notebooks {', '.join(paper.NOTEBOOKS)}{source}.", ""]
    lines += ["## Headline claims", ""]
    for headline in headlines()[key]:
        lines += [f"### {headline.claim}", "", headline.test(), ""]
        for one in evidence(headline, runs):
            data, value, n_runs, seen, says = _cells(one)
            counted = f"{n_runs} run{'s' * (n_runs != '1')}"
            lines.append(
                f"- {data}: {value}, {counted}; **{says}**. Such a run sees differences from "
                f"{seen} on in four of five cases."
            )
        lines += [] if lines[-1].startswith("-") else ["No run has measured this yet."]
        lines.append("")
    table = counts(board[board["paper"] == key])
    part = table.droplevel("paper").loc[:, table.sum() > 0]
    lines += ["## The printed numbers", "", "Distinct quantities; repeated cells count once.", ""]
    lines += [markdown(part.reset_index()), ""]
    trained = part[part.index == "trained here"].reindex(columns=COMPARED, fill_value=0)
    lines += [f"Numbers of trained networks compared so far: {int(trained.to_numpy().sum())}.", ""]
    lines += ["## Contradictions", "", *_contradictions(key), ""]
    lines += ["## Easy and difficult", "", f"Easy: {paper.EASY}", ""]
    lines += [f"Difficult: {paper.DIFFICULT}", "", "## How to answer", ""]
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
