"""What our runs say: evidence for headline claims, a page per paper, the rows of the README."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iqa_utils.workshop.claims import COMPARED, audit, compare, counts, load_claims
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.result_tables import (
    address,
    compared_by_kind,
    markdown,
    real_results,
    speed_line,
)
from iqa_utils.workshop.runs import NUMBERS, ROOT, find_runs

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
            inside = {k: v for k, v in result.items() if k not in NUMBERS}
            inside["metric"] += " within subset"
            both = [result] + [r for r in results if inside.items() <= r.items()]
            pairs = [(one["value"], one["ci_low"], one["ci_high"]) for one in both]
            pairs = [(-v, -high, -low) for v, low, high in pairs] if turned else pairs
            value, low, high = pairs[0]
            says = {headline.says(*ends) for _, *ends in pairs}
            told = {"value": value, "ci_low": low, "ci_high": high, "profile": run["profile"]}
            told |= {"says": says.pop() if len(says) == 1 else "undecided", "within": pairs[1:]}
            told |= {"detectable": POWER * (high - low) / 2}
            found.setdefault(repr((run["profile"], result)), result | told)
    return list(found.values())


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


def paper_rows(runs: list[dict[str, Any]]) -> str:
    """One row per paper: what it is, its first headline claim, what our runs say, its page."""
    published, rows = "figures/07_scoreboard/paper/07_scoreboard.ipynb", []
    page = published if (ROOT / published).is_file() else "notebooks/07_scoreboard.ipynb"
    for key in papers():
        headline = next(h for h in headlines()[key] if h.primary)
        own = f"{address('pages')}/papers/{key}.html" if address("pages") else page
        rows.append([_reference(key), headline.claim, _verdict(headline, runs), f"[page]({own})"])
    return markdown(pd.DataFrame(rows, columns=["paper", "headline claim", "our runs", "more"]))


def _reference(key: str) -> str:
    """Authors, title, venue and DOI of a paper from CITATION.cff, else its short title."""
    paper = papers()[key]
    for entry in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]:
        if key == f"{entry['authors'][0]['family-names'].split()[-1].lower()}{entry['year']}":
            venue = entry.get("journal") or entry.get("conference", {}).get("name", "")
            doi = f"[doi](https://doi.org/{paper.DOI})" if paper.DOI else ""
            told = [paper.TITLE.split(":")[0], f"*{entry['title']}*", venue, doi]
            return ", ".join(filter(None, told))
    return paper.TITLE


def _verdict(headline: Headline, runs: list[dict[str, Any]]) -> str:
    found = [one["says"] for one in evidence(headline, runs)]
    if not found:
        return "not run yet"
    said = {word: found.count(word) for word in ("confirmed", "refuted", "undecided")}
    words = [word if len(found) == 1 else f"{word} in {n}" for word, n in said.items() if n]
    return ", ".join(words) + f" of {len(found)} settings" * (len(found) > 1)


def notebook_rows(runs: list[dict[str, Any]]) -> str:
    """One row per notebook that answers a question of its own; the scoreboard's counts below."""
    from iqa_utils.workshop.notebooks import notebook_head, notebook_stems

    board, rows = compare(real_results(runs)), []
    by_notebook = {h.notebook: h for found in headlines().values() for h in found if h.primary}
    for stem in notebook_stems():
        if stem == "07_scoreboard":
            continue
        title, question = notebook_head(stem)
        links = [_executed(run) for run in runs if run["stem"] == stem]
        said = {"00": _audit_line, "01": _counts_line}.get(stem[:2])
        text = said(board) if said else _numbers(by_notebook.get(stem), runs)
        if stem not in by_notebook and not said and links:
            text = "in the executed notebook"
        cells = [f"[{title}](notebooks/{stem}.ipynb)", question, text, ", ".join(links)]
        rows.append(cells)
    table = markdown(pd.DataFrame(rows, columns=["notebook", "question", "so far", "executed"]))
    return f"{table}\n\n[Scoreboard](notebooks/07_scoreboard.ipynb): {compared_by_kind(board)}"


def _audit_line(board: pd.DataFrame) -> str:
    n = audit()["verdict"].value_counts()
    return f"{n.sum()} checks: {n['inconsistent']} inconsistent, {n['implausible']} implausible"


def _counts_line(board: pd.DataFrame) -> str:
    row = counts(board).groupby("kind").sum().loc["re-tabulated"]
    return f"{row['reproduced']} of {row.sum()} counts and correlations reproduced"


def _numbers(headline: Headline | None, runs: list[dict[str, Any]]) -> str:
    found = evidence(headline, runs) if headline else []
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


def _badges() -> str:
    """Links that need public addresses; nothing where pyproject.toml names none."""
    found = {"pages": "the site", "repository": "the repository"}
    return " · ".join(f"[{text}]({address(name)})" for name, text in found.items() if address(name))


def update_readme(path: Path | None = None) -> bool:
    """Put the current rows between the README's markers; returns whether anything changed."""
    path = path or ROOT / "README.md"
    old = text = path.read_text(encoding="utf-8")
    runs = find_runs(ROOT / "figures")
    parts = {"papers": paper_rows(runs), "notebooks": notebook_rows(runs)}
    for part, rows in (parts | {"speed": speed_line(), "badges": _badges()}).items():
        start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{path.name} must hold {start} and {end} once each")
        before, rest = text.split(start)
        text = f"{before}{start}\n{rows}\n{end}{rest.split(end)[1]}"
    if text != old:
        path.write_text(text, encoding="utf-8")
    return text != old
