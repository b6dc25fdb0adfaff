"""The README's rows, written from the published runs: one per paper, one per notebook, the speed.

A notebook's row answers the notebook's own question: its primary claim with numbers, what it costs,
and a word on every secondary claim.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iqa_utils.workshop.claims import audit, compare, counts
from iqa_utils.workshop.notebooks import notebook_head, notebook_stems
from iqa_utils.workshop.paper_pages import (
    BENCHMARKS,
    address,
    compared_by_kind,
    evidence,
    has_changed,
    markdown,
    measurements,
    readable,
    real_results,
    reference,
    signed,
)
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.plots.common import plain_name
from iqa_utils.workshop.runs import ROOT, find_runs

DECIDES = "biq2021"  # the profile whose runs decide where there are several
LINE = "<br>"  # between the claims in a cell
FEW = 2  # values of one profile that are all shown
SCOREBOARD = "07_scoreboard"
AT_EQUAL_COST = "at equal steps"  # the claim shown with a paper's first one
Runs = list[dict[str, Any]]


def paper_rows(runs: Runs) -> str:
    """One row per paper: what it is, its first headline claim, what our runs say, where to look.

    Our runs' word on the first claim stands before that on the same at equal cost.
    """
    rows = []
    for key, paper in papers().items():
        headline = next(h for h in headlines()[key] if h.primary)
        links = [f"**[page](docs/papers/{key}.md)**"]
        for stem in paper.NOTEBOOKS:
            executed = [f"{stem[:2]} {_executed(run)}" for run in runs if run["stem"] == stem]
            links += executed or [f"[{stem[:2]}](notebooks/{stem}.ipynb)"]
        others = [h for h in headlines()[key] if h.short == AT_EQUAL_COST]
        told = [_verdict(headline, runs), *(f"{h.short}: {_verdict(h, runs)}" for h in others)]
        what = reference(key)
        what += ", venue unknown to us" * what.endswith("*")  # the title is the last that is known
        rows.append([what, headline.claim, LINE.join(told), ", ".join(links)])
    return markdown(pd.DataFrame(rows, columns=["paper", "headline claim", "our runs", "executed"]))


def notebook_rows(runs: Runs) -> str:
    """One row per notebook that answers a question of its own; the scoreboard's counts below."""
    board, rows = compare(real_results(runs)), []
    checks = audit()["verdict"].value_counts()
    odd = ", ".join(f"{checks.get(k, 0)} {k}" for k in ("inconsistent", "implausible"))
    row = counts(board).groupby("kind").sum().reindex(["re-tabulated"], fill_value=0).iloc[0]
    same = f"{row['reproduced']} of {row.sum()} counts and correlations reproduced"
    said = {"00": f"{checks.sum()} checks, not distinct errors: {odd}", "01": same}
    said["08"] = _loss_across_subsets(runs)
    for stem in notebook_stems():
        if stem != SCOREBOARD:
            title, question = notebook_head(stem)
            links = ", ".join(_executed(run) for run in runs if run["stem"] == stem)
            text = said.get(stem[:2]) or _answer(stem, runs)
            rows.append([f"[{title}](notebooks/{stem}.ipynb)", question, text, links])
    table = markdown(pd.DataFrame(rows, columns=["notebook", "question", "so far", "executed"]))
    published = f"figures/{SCOREBOARD}/paper/{SCOREBOARD}.ipynb"
    place = published if (ROOT / published).is_file() else f"notebooks/{SCOREBOARD}.ipynb"
    return f"{table}\n\n[Scoreboard]({place}): {compared_by_kind(board)}"


def _by_profile(found: Runs) -> list[tuple[str, Runs]]:
    """Group evidence by profile, the one that decides first."""
    found = sorted(found, key=lambda one: (one["profile"] != DECIDES, one["profile"]))
    groups = itertools.groupby(found, key=lambda one: one["profile"])
    return [(profile, list(ones)) for profile, ones in groups]


def _said(found: Runs) -> str:
    """Say what pieces of evidence say, in words, counted where there are several."""
    says = [one["says"] for one in found]
    if len(says) < 2:
        return says[0] if says else "no run"
    words = [word for word in ("confirmed", "refuted", "undecided") if word in says]
    first, *others = (f"{word} in {says.count(word)}" for word in words)
    return ", ".join([f"{first} of {len(says)}", *others])


def _n_runs(found: Iterable[dict[str, Any]]) -> str:
    n = sorted({int(one["n_runs"]) for one in found})
    return f"{n[0]} to {n[-1]} runs" if len(n) > 1 else f"{n[0]} run{'s' * (n[0] > 1)}"


def _verdict(headline: Headline, runs: Runs) -> str:
    """Say what our runs say of a claim, by profile, and how many runs are behind each number."""
    groups = _by_profile(evidence(headline, runs))
    told = [_said(ones) + f" ({profile})" * (len(groups) > 1) for profile, ones in groups]
    every = [one for _, ones in groups for one in ones]
    return f"{'; '.join(told)}; {_n_runs(every)}" if every else "not run yet"


def _answer(stem: str, runs: Runs) -> str:
    """Answer a notebook's question: its primary claim, the price, a word on the other claims."""
    own = [h for found in headlines().values() for h in found if h.notebook == stem]
    primary = next((h for h in own if h.primary), None)
    groups = _by_profile(evidence(primary, runs)) if primary else []
    if primary is None or not groups:
        return "no run on real data yet"
    told, several = [_numbers(primary, groups)], len(groups) > 1
    counted = _n_runs(one for _, ones in groups for one in ones)
    paid, words = [], []
    for metric in primary.price:
        other = primary._replace(compare=primary.compare | {"metric": metric})
        found = _by_profile(evidence(other, runs))[:1]
        paid += [f"{plain_name(metric)} {_values(ones)}" for _, ones in found]
    told += [f"at the price of {', '.join(paid)}"] if paid else []
    for headline in (h for h in own if not h.primary):
        found = _by_profile(evidence(headline, runs))[:1]
        ones = found[0][1] if found and found[0][0] == groups[0][0] else []
        text = _values(ones) + ", " if headline.numbers and ones else ""
        behind = _n_runs(ones) if ones else ""
        text += f"{_said(ones)}" + f" ({behind})" * (behind not in ("", counted))
        words.append(f"{headline.short or headline.claim}: {text}")
    told += [f"in {groups[0][0]}:"] * (several and bool(words))
    return LINE.join([*told, *words])


def _numbers(headline: Headline, groups: list[tuple[str, Runs]]) -> str:
    """Write a claim's comparison with its values in every profile."""
    named = {key: plain_name(word) for key, word in headline.compare.items()}
    versus = f" minus {named['baseline']}" if "baseline" in named else ""
    pair = headline.short or f"{named['method']}{versus}"
    told = [_values(groups[0][1]), *(_brief(ones) for _, ones in groups[1:])]
    if len(groups) > 1:
        told = [f"{text} ({profile})" for text, (profile, _) in zip(told, groups, strict=True)]
    counted = _n_runs(one for _, ones in groups for one in ones)
    return f"{named['metric']}, {pair}: {', '.join(told)}; {counted}"


def _brief(ones: Runs) -> str:
    """Write what a further profile says: its value, or how its values are judged."""
    return _values(ones) if len(ones) == 1 else _said(ones)


def _values(ones: Runs) -> str:
    if len(ones) == 1:
        return signed(ones[0]["value"], ones[0]["ci_low"], ones[0]["ci_high"])
    if len(ones) > FEW:
        middle = pd.DataFrame(ones)[["value", "ci_low", "ci_high"]].median()
        return f"median {signed(*middle)} of {len(ones)} settings"
    return ", ".join(f"{readable(one['network'] or '')} {_values([one])}".strip() for one in ones)


def _loss_across_subsets(runs: Runs) -> str:
    """Say what notebook 08 measured: training on other subsets, minus training on the same."""
    wanted = {"table": "loss", "metric": "SRCC"}
    found = [
        result
        for run in runs
        if run["stem"][:2] == "08" and run["profile"] == DECIDES
        for result in run["results"]
        if wanted.items() <= result.items() and result["method"] == f"all but {result['baseline']}"
    ]
    if not found:
        return "no run on real data yet"
    ends = ((plain_name(r["dataset"]), r["value"], r["ci_low"], r["ci_high"]) for r in found)
    told = [f"{subset} {signed(*values)}" for subset, *values in ends]
    return f"SRCC, trained on other subsets minus on its own: {', '.join(told)}; {_n_runs(found)}"


def _executed(run: dict[str, Any]) -> str:
    place = f"figures/{run['stem']}/{run['profile']}"
    notebook = f"{place}/{run['stem']}.ipynb"
    old = (ROOT / place / "provenance.json").is_file() and has_changed(ROOT / place)
    link = f"[{run['profile']}]({notebook if (ROOT / notebook).is_file() else place})"
    return link + " (code changed since)" * old


def speed_line(folder: Path = BENCHMARKS) -> str:
    """Say in one line what the published measurements of ``make bench`` are, and what they miss."""
    records = [record for file in measurements(folder) for record in file["results"]]
    timed = [r for r in records if r.get("seconds_per_unit") and _equal(r["gate"])]
    ratios = sorted(ratio for record in timed for ratio in record["ratios"].values())
    if not ratios:
        return "No measurements are published."
    jobs = f"{len(timed)} jobs timed against a straightforward implementation, with equal results"
    middle = float(np.median(ratios))
    missed = [record["title"] for record in records if not record["passed"]]
    names = "; ".join(dict.fromkeys(re.split(r"[,:(]", title)[0].strip() for title in missed))
    told = f"{len(missed)} goal{'s' * (len(missed) != 1)} missed" + f" ({names})" * bool(missed)
    return f"{jobs}: {ratios[0]:.1f}x to {ratios[-1]:.0f}x, median {middle:.0f}x; {told}."


def _equal(gate: Mapping[str, float]) -> bool:
    return gate["difference"] <= gate["allowed"]


def _badges() -> str:
    """Links that need public addresses; nothing where pyproject.toml names none."""
    found = {"pages": "the site", "repository": "the repository"}
    return " · ".join(f"[{text}]({address(name)})" for name, text in found.items() if address(name))


def update_readme(path: Path = ROOT / "README.md") -> bool:
    """Put the current rows between the README's markers; returns whether anything changed."""
    old = text = path.read_text(encoding="utf-8")
    runs = find_runs(ROOT / "figures")
    parts = {"papers": paper_rows(runs), "notebooks": notebook_rows(runs)}
    for part, rows in (parts | {"speed": speed_line(), "badges": _badges()}).items():
        start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{path.name} must hold {start} and {end} once each")
        before, rest = text.split(start)
        text = f"{before}{start}\n{rows}\n{end}{rest.split(end)[1]}"
    path.write_text(text, encoding="utf-8")
    return text != old
