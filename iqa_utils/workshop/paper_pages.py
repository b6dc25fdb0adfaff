"""What our runs say, as Markdown: evidence for headline claims, tables, the page of a paper.

Nothing is typed by hand.
"""

import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import yaml

from iqa_utils.datasets import DATASETS
from iqa_utils.files import read_mapping
from iqa_utils.workshop import claims
from iqa_utils.workshop.claims import COMPARED, KINDS, counts, is_constant, load_claims
from iqa_utils.workshop.notebooks import (
    default_parameters,
    find_notebook,
    profiles_of,
    read_profile,
    stems_with,
)
from iqa_utils.workshop.papers import Headline, headlines, papers
from iqa_utils.workshop.plots.common import NETWORK_TITLES, plain_name
from iqa_utils.workshop.provenance import is_current
from iqa_utils.workshop.runs import NUMBERS, ROOT

POWER = (1.96 + 0.84) / 1.96  # from the half-width of a 95 % interval to 80 % power
BENCHMARKS = ROOT / "figures" / "benchmarks"
NO_SETTINGS = {"PROFILE", "DATA_ROOT", "RUN_NAME", "SEED", "THREADS"}  # of the machine, or a name
SPELT = {"pretrained": "weights", "lr": "learning rate", "n": "number of", "svr": "SVR", "c": "C"}
SPELT |= {"koncept": "KonCept512's", "mos": "MOS"}  # words of a parameter's name
LONGEST = 200  # characters of a setting
MANY = 5  # results of one run that get a row each
HOW_TO_READ = (
    "The claims were fixed in commit 36c0917 and changed in fd02849 and 71d0d9c, all before the "
    "published runs; earlier runs on the same photographs had been seen by then. Commit 1c93eea "
    "narrowed those of Nguyen et al. to runs of ten seeds, after runs of the same settings, which "
    "the published ones repeat; `data/headlines.yaml` says why. A run with other data or another "
    "network than the paper's tests a claim in that setting, not the paper's numbers. *Detectable* "
    "is computed from the published interval, after the run: the smallest difference that such a "
    "run finds four times in five. With one run the interval is over images only; another training "
    "may differ by more."
)
WORDS = (
    "*Inconsistent*: no rounding explains it. *Implausible*: far from what is measured elsewhere."
)
BOTH = "Where the run has the mean within subsets too, both intervals must say so."
STATED = {"method", "metric", "baseline"}  # fields of a comparison that a test names first
HOW_TO_ANSWER = (
    "Where we misread the paper or a cell, open an issue with the template *A paper's authors "
    "answer*, name `{key}` and the place of the cell, and say what the number should be compared "
    "with. Splits, seeds, predictions or weights let us turn *not comparable* into a verdict; "
    "corrections enter the ledger with their source.\n"
)


def address(name: str) -> str:
    """Return a public address of the project, ``repository`` or ``pages``; empty where not set."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"].get("iqa", {}).get(name, "").rstrip("/")


def markdown(table: pd.DataFrame) -> str:
    """Write a table without its index; ``|`` may not stand in a cell."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "| --- " * table.shape[1] + "|"]
    cells = table.astype(object).fillna("").to_numpy()
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in cells)])


def real_results(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results on real data, each once though a published run is found twice."""
    return _results(runs, demo=False)


def demo_results(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results that were on synthetic data, each once."""
    return _results(runs, demo=True)


def _results(runs: Iterable[dict[str, Any]], *, demo: bool) -> list[dict[str, Any]]:
    found = [r for run in runs for r in run["results"] if (r["data"] == "demo") == demo]
    return list({json.dumps(result, sort_keys=True): result for result in found}.values())


def evidence(headline: Headline, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find the results of real runs that a headline names, with what they say.

    A difference the other way round (``baseline`` minus ``method``) counts with its sign turned.
    Where the run has the same result within subsets, a claim holds only if both agree. An interval
    without width and constant predictions say nothing.

    Returns:
        Results with ``profile``, ``says`` and ``detectable``, the smallest difference that such a
        run finds with 80 % power; equal results of a run and its published copy once.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = {"baseline": ""} | dict(headline.compare)
    mirrored = wanted | {"method": wanted["baseline"], "baseline": wanted["method"]}
    for run in [run for run in runs if run["stem"] == headline.notebook]:
        for result in run["results"]:
            turned = wanted["baseline"] and _fits(result, mirrored)
            if not _is_evidence(result) or not (turned or _fits(result, wanted)):
                continue
            inside = {k: v for k, v in result.items() if k not in NUMBERS}
            inside["metric"] += " within subset"
            both = [result] + [r for r in run["results"] if inside.items() <= r.items()]
            pairs = [(one["value"], one["ci_low"], one["ci_high"]) for one in both]
            pairs = [(-v, -high, -low) for v, low, high in pairs] if turned else pairs
            value, low, high = pairs[0]
            says = {headline.says(*ends) for _, *ends in pairs}
            told = {"value": value, "ci_low": low, "ci_high": high, "within": pairs[1:]}
            told["says"] = says.pop() if len(says) == 1 else "undecided"
            told["detectable"] = POWER * (high - low) / 2
            digits = {k: f"{v:.7g}" if isinstance(v, float) else v for k, v in result.items()}
            key = repr((run["profile"], digits))  # a published copy has nine digits
            found.setdefault(key, result | told | {"profile": run["profile"]})
    return list(found.values())


def condition(headline: Headline) -> str:
    """Say in words what confirms and refutes a claim, and which results are asked."""
    asked = []
    for key, value in headline.compare.items():
        words = [str(one or "not named") for one in (value if type(value) is list else [value])]
        asked += [f"{key.replace('n_runs', 'runs')}: {' or '.join(words)}"] * (key not in STATED)
    only = f" Only results with {', '.join(asked)}." if asked else ""
    named = {k: plain_name(v) if isinstance(v, str) else v for k, v in headline.compare.items()}
    return f"{headline._replace(compare=named).test()} {BOTH}{only}"


def _is_evidence(result: Mapping[str, Any]) -> bool:
    """Tell whether a result is of real data, has an interval of some width and predicts at all."""
    wide = result["ci_low"] is not None and result["ci_low"] < result["ci_high"]
    return result["data"] != "demo" and wide and not is_constant(result)


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
            found = _rows(evidence(headline, runs))
            waiting += not found
            rows += [[paper.TITLE.split(":")[0], claim, *cells] for cells in found]
    columns = ["paper", "claim", "data", "ours [95 %]", "runs", "detectable", "says"]
    table = markdown(pd.DataFrame(rows, columns=columns))
    told = f"{waiting} more headline claims wait for a run on real data."
    return f"{table}\n\n{told}" if waiting else table


def signed(value: float, low: float, high: float) -> str:
    """Write a difference with its interval."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def readable(field: str) -> str:
    """Name data sets and networks in a field by their titles."""
    names = NETWORK_TITLES | {key: info.title for key, info in DATASETS.items()}
    return re.sub(r"\w+(\.\w+)?", lambda word: names.get(word[0], word[0]), field)


def _rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Make a row of each result; a profile of many settings gets one row that counts them."""
    rows = []
    for profile, group in itertools.groupby(found, lambda one: (one["data"], one["profile"])):
        ones = list(group)
        if len(ones) <= MANY:
            rows += map(_cells, ones)
            continue
        counted = Counter(one["says"] for one in ones).most_common()
        keys = ("value", "ci_low", "ci_high", "detectable")
        *ends, power = (np.median([one[key] for one in ones]) for key in keys)
        networks = {one["network"] for one in ones}
        which = [*profile, *(networks if len(networks) == 1 else ()), f"{len(ones)} settings"]
        data = ", ".join(dict.fromkeys(map(readable, filter(None, which))))
        says = ", ".join(f"{said} {n}" for said, n in counted)
        n_runs = str(ones[0]["n_runs"])
        rows.append([data, f"median {signed(*ends)}", n_runs, f"{power:.3f}", says])
    return rows


def _cells(one: dict[str, Any]) -> list[str]:
    inside = [f"; within subsets {signed(*ends)}" for ends in one["within"]]
    value = signed(one["value"], one["ci_low"], one["ci_high"]) + "".join(inside)
    which = [one.get(key) or "" for key in ("network", "layer", "regressor", "stage", "variant")]
    words = map(readable, filter(None, [one["data"], one["profile"], *which]))
    data, power = ", ".join(dict.fromkeys(words)), f"{one['detectable']:.3f}"
    return [data, value, str(one["n_runs"]), power, one["says"]]


def paper_page(key: str, runs: list[dict[str, Any]], board: pd.DataFrame) -> str:
    """Write as Markdown what we can say about a paper, for its authors to read first.

    ``board`` is what `claims.compare` makes of the results of ``runs``.
    """
    paper = papers()[key]
    blocks = [f"# {paper.TITLE}", f"{reference(key)}.", "## Headline claims", HOW_TO_READ]
    blocks += [told] if (told := _commits(key, runs)) else []
    for headline in headlines()[key]:
        lines = []
        for data, value, n_runs, seen, says in _rows(evidence(headline, runs)):
            counted = f"{n_runs} run{'s' * (n_runs != '1')}; **{says}**"
            lines.append(f"- {data}: {value}, {counted} (detectable: {seen})")
        told = "\n".join(lines) or "No run has measured this yet."
        blocks += [f"### {headline.claim}", condition(headline), told]
    table = counts(board[board["paper"] == key]).droplevel("paper")
    table = table.loc[:, table.any()]
    compared = table[table.index == "trained here"].filter(COMPARED).to_numpy().sum()
    blocks += ["## The printed numbers", "Distinct quantities; repeated cells count once."]
    blocks += [markdown(table.reset_index())]
    blocks += [f"Numbers of trained networks compared so far: {compared:.0f}."]
    blocks += ["## Contradictions", _contradictions(key)]
    blocks += ["## Easy and difficult", f"Easy: {paper.EASY}", f"Difficult: {paper.DIFFICULT}"]
    return "\n\n".join([*blocks, "## How to answer", HOW_TO_ANSWER.format(key=key)])


def _commits(key: str, runs: list[dict[str, Any]]) -> str:
    """Name the commits whose code made a paper's runs on real data."""
    found: dict[str, list[str]] = {}
    for run in runs:
        path = run.get("folder", ROOT) / "provenance.json"
        if run["stem"] in papers()[key].NOTEBOOKS and path.is_file():
            seen = read_mapping(path)
            names = found.setdefault(seen["commit"][:7], []) if not seen["demo"] else []
            names.append(f"{run['stem'][:2]} {run['profile']}")
    told = [f"{commit} ({', '.join(dict.fromkeys(names))})" for commit, names in found.items()]
    return f"Commits of the runs: {'; '.join(told)}." if told else ""


_checks = cache(claims.audit)  # seconds, and the same for every page


def _contradictions(key: str) -> str:
    """One line for each check that is not consistent: place, what, both values, meaning."""
    places, lines = load_claims()["place"], []
    for row in _checks().query("paper == @key and verdict != 'consistent'").itertuples():
        cells = row.cells or row.named
        place = places[cells[0]] if cells else row.table
        value = f"printed {row.printed:g}, recomputed {row.recomputed:.6g}"
        lines.append(f"- {place}: {row.what}; {value} (*{row.verdict}*). {row.meaning}")
    return "\n".join([WORDS, "", *lines]) if lines else "None found."


def compared_by_kind(board: pd.DataFrame) -> str:
    """Say how many distinct quantities were compared, by kind of answer, trained networks first."""
    table = counts(board)[list(COMPARED)].groupby("kind").sum().sum(axis=1)
    told = [f"{table.get('trained here', 0)} of trained networks"]
    told += [f"{table[kind]} {kind}" for kind in KINDS[:3] if table.get(kind, 0)]
    distinct = board.index[board["role"] == ""].nunique()
    printed = f"{distinct} distinct quantities in {board.index.nunique()} printed numbers"
    return f"{printed}. Compared so far: {', '.join(told)}."


def strays_table(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Count results of a ledger's table that answer no row of it, and name what no row has.

    A known method on another data set is plain: only a name that no row has may be misspelt.
    """
    methods = load_claims().groupby(["paper", "table"])["method"].agg(set)
    rows, key = [], itemgetter("paper", "table")
    for place, group in itertools.groupby(sorted(claims.strays(results), key=key), key):
        ones = list(group)
        ours = Counter(r["method"] for r in ones if r["method"] not in methods[place])
        sets = dict.fromkeys(r["dataset"] for r in ones if r["method"] in methods[place])
        names = ", ".join(f"{name} ({n})" for name, n in ours.items())
        rows.append([*place, len(ones) - ours.total(), ", ".join(sets), names])
    columns = ["paper", "table", "known methods", "on", "methods of no row"]
    return pd.DataFrame(rows, columns=columns)


def settings_table(run: Mapping[str, Any]) -> str:
    """Write where a run's settings differ from those of the paper's profile; empty if nowhere."""
    stem, ours = run["stem"], run["parameters"]
    if run["profile"] == "demo" or "paper" not in profiles_of(stem):
        return ""
    theirs = default_parameters(find_notebook(stem)) | read_profile(stem, "paper")
    rows = [
        [_label(key), _setting(theirs[key]), _setting(ours[key])]
        for key in theirs
        if key in ours and key not in NO_SETTINGS and ours[key] != theirs[key]
    ]
    table = pd.DataFrame(rows, columns=["setting", "the paper's profile", "this run"])
    return markdown(table) if rows else ""


def _label(name: str) -> str:
    """Name a parameter in the words of the field."""
    words = [SPELT.get(word, word) for word in name.lower().split("_")]
    return " ".join(words)


def _setting(value: Any) -> str:
    """Write the value of a parameter for a reader, cut where it is long."""
    if isinstance(value, dict):
        return _setting([f"{key}: {one}" for key, one in value.items()]) if value else "none"
    if isinstance(value, list):
        return _setting(", ".join(map(str, value)) or "none")
    if isinstance(value, bool) or value == "":
        return "yes" if value else "no" if value is False else "none"
    text = str(value) if "/" in str(value) else readable(str(value))  # a path is no name
    return shorten(text.replace("|", "/"), LONGEST, placeholder=" ...")


def has_changed(folder: Path) -> bool:
    """Tell whether code that a run depended on has changed since, other papers' files aside."""
    return not is_current(without_other_papers(read_mapping(folder / "provenance.json")))


def without_other_papers(seen: dict[str, Any]) -> dict[str, Any]:
    """Drop from the files of a paper's run those that hold only what other papers say."""
    files = {f"iqa_utils/workshop/papers/{key}.py": module for key, module in papers().items()}
    own = {name for name, module in files.items() if seen.get("stem") in module.NOTEBOOKS}
    others = set(files) - own if own else set()
    kept = {k: v for k, v in (seen.get("files") or {}).items() if k not in others}
    return {**seen, "files": kept}


def layer_table(runs: list[dict[str, Any]]) -> str:
    """Write the layer and regressor with the smallest cross-validated error, and their SRCC.

    Every profile on real data has rows of its own, with what the layers saw.
    """
    columns = ["network", "input", "state", "best layer in cross-validation", "SRCC"]
    columns += ["within subsets"]
    fields, rows = ("network", "stage", "variant", "layer", "regressor"), []
    for run in [run for run in runs if run["stem"] == "04_deep_features_gpr"]:
        size = run["parameters"].get("TAP_SIZE")
        seen = f"whole photographs, {size} px" if size else "crops of the network's own size"
        told = {(*(r[f] for f in fields), r["baseline"], r["metric"]): r for r in run["results"]}
        for *place, baseline, metric in told:
            result = told[*place, baseline, metric]
            if (baseline, metric) == ("BRISQUE", "SRCC") and result["data"] != "demo":
                network, stage, variant, layer, regressor = place
                levels = [told[*place, "", m] for m in ("SRCC", "SRCC within subset")]
                shown = ["{value:.3f} [{ci_low:.3f}, {ci_high:.3f}]".format_map(r) for r in levels]
                state = f"{stage} {variant}".strip()
                rows.append([network, seen, state, f"{layer}, {regressor}", *shown])
    return markdown(pd.DataFrame(rows, columns=columns).drop_duplicates())


def measurements(folder: Path = BENCHMARKS) -> list[dict[str, Any]]:
    """Read the published measurements of ``make bench``, one dictionary per file."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def needs_table() -> str:
    """Write what the ``paper`` profiles ask for, from official numbers."""
    from iqa_utils.workshop.plan import ASSUMED, make_plan

    plans = {stem[:2]: make_plan(stem, "paper", official=True) for stem in stems_with("paper")}
    rows, idle = [], ", ".join(number for number, plan in plans.items() if not plan["jobs"])
    for number, plan in plans.items():
        disk, moment = sum(plan["disk"].values()) / 1e9, plan["moment"] / 1e9
        row = {
            "`paper` profile of": number,
            "data": ", ".join(DATASETS[name].title for name in plan["sets"]),
            "trainings": f"{plan['trainings']:,}",
            "images seen": f"{plan['images'] / 1e6:.1f} million",
            "disk, and for a moment": f"{disk:.0f} GB" + f", {moment:.0f} GB" * bool(moment),
            "GPU memory": f"{plan['memory'] / 1e9:.1f} GB",
            "hours on one large GPU": f"{plan['hours']:.1f}, {plan['source']}",
        }
        rows += [row] if plan["jobs"] else []
    others = {"data": "annotation files, results of the others", "trainings": "none"}
    text = markdown(pd.DataFrame([*rows, {"`paper` profile of": idle} | others]))
    text += "\n\nGPU memory is that of weights, gradients, moments and activations in one step."
    computed = any("computed" in plan["source"] for plan in plans.values())
    return text + f" Computed: networks alone, with {ASSUMED}." * computed


def reference(key: str) -> str:
    """Authors, title, venue and DOI of a paper from CITATION.cff, else its short title."""
    paper = papers()[key]
    for entry in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]:
        if key == f"{entry['authors'][0]['family-names'].split()[-1].lower()}{entry['year']}":
            venue = entry.get("journal") or entry.get("conference", {}).get("name", "")
            doi = f"[doi](https://doi.org/{paper.DOI})" if paper.DOI else ""
            told = [paper.TITLE.split(":")[0], f"*{entry['title']}*", venue, doi]
            return ", ".join(filter(None, told))
    return paper.TITLE
