"""The ledger of published numbers: load it, match our results to it, judge them, count.

``data/claims.csv`` holds every number the papers print. A result is a dictionary as
``Run.add_result`` writes it. ANSWERS in ``papers/KEY.py`` says what a result must be
to answer a row, and `verdict` is the one rule for what the two numbers mean together.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from iqa_utils.workshop import audit as arithmetic
from iqa_utils.workshop.audit import Check, Interval, overlap, printed_interval
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.runs import ROOT

LEDGER = ROOT / "data" / "claims.csv"
COLUMNS = ["paper", "table", "method", "dataset", "metric", "value", "spread", "role", "place"]
KEYS = COLUMNS[:5]
PAPERS = tuple(papers())
COMPARED = ("reproduced", "close", "better", "worse")
VERDICTS = (*COMPARED, "inconsistent", "implausible", "not comparable", "not run")
KINDS = ("re-tabulated", "arithmetic", "authors' predictions", "trained here")
# which variant of a result is compared with the paper: the nearest to what the authors did
VARIANTS = ("released scores", "paper", "as written", "as_written", "released", "released_agedb")
VARIANTS += ("", "corrected")
CORRELATIONS = ("SRCC", "PLCC", "KRCC", "pearson")
LEAST_SPREAD = 0.01  # SD of predictions over that of the scores: below it they are constant


def load_claims(path: Path = LEDGER) -> pd.DataFrame:
    """Read the ledger: one row per published number.

    ``role`` is "mirrored", "diagonal", "repeated" or empty for the first place of a quantity,
    ``place`` where in the paper it stands, ``printed`` the digits as printed.

    Raises:
        ValueError: If a column is missing, a paper is unknown, a value is not finite, a row stands
            there twice, or a paper's rows are not those that its file states.
    """
    claims, name = pd.read_csv(path, dtype=str, keep_default_na=False), path.name
    if list(claims.columns) != COLUMNS:
        raise ValueError(f"{name} must have the columns {COLUMNS}, has {[*claims.columns]}")
    if unknown := sorted(set(claims["paper"]) - set(PAPERS)):
        raise ValueError(f"{name} names papers without a file in workshop/papers: {unknown}")
    texts = claims.agg(",".join, axis=1)
    claims["printed"] = claims["value"]
    claims["value"] = pd.to_numeric(claims["value"], errors="coerce")
    claims["spread"] = pd.to_numeric(claims["spread"].replace("", None))
    for row in claims[~np.isfinite(claims["value"]) | np.isinf(claims["spread"])].itertuples():
        raise ValueError(f"{name}: no finite value or spread at {row.paper}, {row.place}")
    if len(twice := claims[claims.duplicated(KEYS)]):
        raise ValueError(f"{name} holds {len(twice)} rows twice, first {tuple(twice.iloc[0])}")
    for key, paper in papers().items():
        lines = texts[claims["paper"] == key]
        found = len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        if found != paper.LEDGER:
            told = "{} rows of {} with digest {}, its file states {} with {}"
            told = told.format(found[0], key, found[1], *paper.LEDGER)
            raise ValueError(f"{name} has {told}")
    return claims


def audit() -> pd.DataFrame:
    """Run every check that needs no data on the ledger and on the texts."""
    claims, found = load_claims(), []
    for key, paper in papers().items():
        rows = claims[claims["paper"] == key]
        rows = rows.assign(what=rows["method"] + ", " + rows["metric"])
        steps = [*paper.checks(rows), *arithmetic.check_kendall(rows)]
        steps += [*arithmetic.check_features(rows), *arithmetic.check_repeats(rows)]
        steps += arithmetic.check_facts(rows, paper.facts(rows))
        found += sorted(steps, key=lambda check: check.table)
    return pd.DataFrame(found, columns=Check._fields)


@lru_cache(maxsize=1)
def flags() -> dict[int, tuple[str, str]]:
    """Ledger rows that cannot be right, or hardly: index to verdict and meaning."""
    rows = audit().query("verdict != 'consistent'").explode("cells").dropna(subset="cells")
    return dict(zip(rows["cells"], zip(rows["verdict"], rows["meaning"], strict=True), strict=True))


def verdict(
    claim: Mapping[str, Any], result: Mapping[str, Any] | None, obstacle: str = ""
) -> tuple[str, str]:
    """Judge one of our results, None where nothing was run, against a row of the ledger.

    The order: an ``obstacle``; an interval of ours that is missing, or wider than 0.03
    (correlations) or 10 % to each side; the paper's value, with its printed spread, meeting our
    interval; the paper's value inside the 95 % prediction interval for one new run of ours, or
    within 0.02 or 5 %; else better or worse. Without ``ci_low`` and ``ci_high`` the interval is
    that of the mean over at least three runs, from their ``sd``. What is not trained here follows
    from given data, without chance.

    Returns:
        A word of `VERDICTS` and the reason for it.
    """
    if result is None:
        return "not run", obstacle or "no result yet"
    if obstacle:
        return "not comparable", obstacle
    ours, printed = result["value"], claim["printed"]
    target, said = float(printed), printed_interval(printed)
    correlation = any(name in result["metric"] for name in CORRELATIONS)
    allowed, exact = 0.03 if correlation else 0.1 * abs(ours), result.get("kind") in KINDS[:3]
    if exact:
        if overlap(said, (ours, ours)):
            return "reproduced", "equal at the printed digits"
    else:
        ends = result.get("ci_low"), result.get("ci_high")
        ends = _over_runs(result, 0) if ends[0] is None else ends
        if ends is None:
            return "not comparable", "no interval of ours"
        if (half := (ends[1] - ends[0]) / 2) > allowed:
            return "not comparable", f"our interval is too wide: half-width {half:.3g}"
        if overlap(ends, said):
            return "reproduced", "the paper's value lies in our interval"
        spread = claim["spread"]
        if spread > 0 and overlap(ends, (said[0] - spread, said[1] + spread)):
            return "reproduced", "the paper's value, with its printed spread, meets our interval"
        new = _over_runs(result, 1)
        if new and new[1] - new[0] <= 2 * allowed and overlap(new, said):
            return "close", f"a new run of ours would lie in [{new[0]:.3g}, {new[1]:.3g}]"
    difference = ours - target
    shown = f"{difference:+.3f}" if correlation or not target else f"{difference / target:+.1%}"
    near = abs(difference) <= (0.02 if correlation else 0.05 * abs(target)) + 1e-9
    better = (difference > 0) == correlation and not exact
    return "close" if near else "better" if better else "worse", f"differs by {shown}"


def _over_runs(result: Mapping[str, Any], new: int) -> Interval | None:
    """95 % interval of the mean over three runs or more or, with ``new`` = 1, of one new run."""
    sd, n = result.get("sd"), result.get("n_runs") or 1
    if sd is None or n < 3:
        return None
    half = float(student.ppf(0.975, n - 1)) * sd * (new + 1 / n) ** 0.5
    return result["value"] - half, result["value"] + half


@lru_cache(maxsize=1)
def _same_quantity() -> dict[int, list[int]]:
    """Ledger rows that print the same quantity, by row, itself first."""
    claims = load_claims()
    groups = {index: {index} for index in claims.index}
    pairs = arithmetic.repeated_rows(claims)
    keys = {tuple(key): index for index, *key in claims[KEYS].itertuples()}
    for (paper, table, method, dataset, metric), index in keys.items():
        if claims.loc[index, "role"] == "mirrored":
            other = metric.removeprefix("pearson with ")
            pairs.append((index, keys[paper, table, other, dataset, f"pearson with {method}"]))
    for a, b in pairs:
        groups[a] |= groups[b]
        groups |= dict.fromkeys(groups[a], groups[a])
    return {row: [row, *sorted(group - {row})] for row, group in groups.items()}


def _places(claim: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Keys, as `KEYS`, under which a result may answer a row for itself, the preferred first."""
    paper, table, method, dataset, metric = (claim[key] for key in KEYS)
    datasets = (dataset, *getattr(papers()[paper], "ALIASES", {}).get(dataset, ()))
    own = metric.replace("SROCC", "SRCC").replace("KROCC", "KRCC")
    metrics = getattr(papers()[paper], "METRICS", {}).get(metric, (own,))
    return [(paper, table, method, d, m) for d in datasets for m in metrics]


def strays(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results that name a table of the ledger but a method or data set that it does not hold.

    Further metrics of a known row are welcome; a misspelt row would otherwise never be compared.
    """
    known = {place[:4] for claim in load_claims().to_dict("records") for place in _places(claim)}
    tables = {key[:2] for key in known}
    keyed = [(tuple(r[k] for k in KEYS[:4]), dict(r)) for r in results]
    return [r for key, r in keyed if key[:2] in tables and key not in known]


def _obstacle(claim: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """Name the first field in which a result is not the equal of its ledger row, if any.

    Of a row without a result it says what it waits for: the needs of a run, or why there is none.
    """
    if result is None:
        entry = _coverage_list()[claim["paper"], claim["table"]]
        ours = entry["notebook"] and claim["method"].startswith(entry["methods"])
        return f"{entry['notebook']} needs {entry['needs']}" if ours else entry["reason"]
    if result["data"] == "demo":
        return "demo: synthetic data"
    paper, kind, dataset = papers()[claim["paper"]], result.get("kind") or "", claim["dataset"]
    expected = getattr(paper, "DATA", {}).get(dataset, {dataset})
    used = {name.strip() for name in result["data"].split("+")}
    if dataset and used != expected and not (kind == "arithmetic" and result["data"] == "none"):
        return f"other data: {result['data']}"
    kinds = next((one.kinds for one in paper.ANSWERS if one.covers(claim)), {})
    if kind not in kinds:
        told = f"other kind: {kind}, the paper's row needs {' or '.join(kinds) or 'another'}"
        return told if kind else "the run does not say its kind"
    for field, wanted in kinds[kind].items():
        readings = wanted if field == "protocol" and isinstance(wanted, tuple) else (wanted,)
        told = [_difference(result, field, reading) for reading in readings]
        if "" not in told:  # a field that differs says more than one that is not said
            return max(told, key=lambda text: text.startswith("other"))
    return "the predictions are constant" if is_constant(result) else ""


def _difference(result: Mapping[str, Any], field: str, wanted: Any) -> str:
    """Say how a field of a result differs from what is wanted, empty where it does not."""
    for key, value in (wanted if field == "protocol" else {"": wanted}).items():
        found = (result.get(field) or {}).get(key, "") if key else result.get(field) or ""
        if found == "":
            return f"the run does not say its {f'{field}: {key}' if key else field}"
        allowed = value if isinstance(value, tuple) else (value,)
        if found not in allowed:
            asked, name = " or ".join(map(str, allowed)), f"{key} ".lstrip()
            return f"other {field}: {name}{found}, the paper's is {asked}"
    return ""


def is_constant(result: Mapping[str, Any]) -> bool:
    """Tell whether a result says that its predictions have no spread."""
    spread = result.get("pred_spread")
    return spread is not None and spread < LEAST_SPREAD


def _answers(
    index: int, claims: list[dict[str, Any]], pool: Mapping[tuple[str, ...], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Every result that answers a row, its equals first, then the nearest to what authors did."""
    claim = claims[index]
    keys = [key for row in _same_quantity()[index] for key in _places(claims[row])]
    found = [(place, result) for place, key in enumerate(keys) for result in pool.get(key, [])]
    if claim["role"] == "diagonal":  # answered by any pair that the variable is part of
        place = (claim["paper"], claim["table"])
        pair = [r for key, rs in pool.items() if key[:2] == place for r in rs]
        pair = [r for r in pair if claim["method"] in (r["method"], r["metric"][13:])]
        own = {"value": 1.0, "ci_low": None, "ci_high": None, "variant": "by definition"}
        found = [(0, r | own) for r in pair[:1]]

    def rank(item: tuple[int, dict[str, Any]]) -> tuple[Any, ...]:
        place, result = item
        variant = result.get("variant") or ""
        known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
        runs = int(result.get("n_runs") or 1)
        return (result["data"] == "demo", _obstacle(claim, result) != "", place, known, -runs)

    found.reverse()  # of equals the later
    return [result for _, result in sorted(found, key=rank)]


def compare(
    results: Iterable[Mapping[str, Any]], paper: str | None = None, *, matched_only: bool = False
) -> pd.DataFrame:
    """Put every published number of one paper or all beside ours, with a verdict.

    A row that the audit finds inconsistent or implausible keeps that verdict whatever we measured.
    Values from demo data are left out: they say nothing about a paper.

    Returns:
        One row per ledger row and kind of answer (the authors' predictions and a retraining stand
        side by side), indexed as the ledger; ``variants`` lists all real answers of that kind. With
        ``matched_only`` rows that no result answers are left out.
    """
    claims, pool = load_claims(), {}
    if paper is not None and paper not in PAPERS:
        raise ValueError(f"paper must be one of {PAPERS}, got {paper!r}")
    for result in results:
        pool.setdefault(tuple(result[k] for k in KEYS), []).append(dict(result))
    records, rows = claims.to_dict("records"), []
    for index, claim in enumerate(records):
        if paper not in (None, claim["paper"]):
            continue
        found = _answers(index, records, pool)
        real = [result for result in found if result["data"] != "demo"]
        first = {r.get("kind") or "": r for r in reversed(real)} or {"": next(iter(found), None)}
        for kind in sorted(first, key=[*KINDS, ""].index):
            if first[kind] is not None or not matched_only:
                same = [r for r in real if (r.get("kind") or "") == kind]
                told = [f"{r.get('variant') or 'ours'} {r['value']:.4g}" for r in same]
                more = {"index": index, "kind": kind, "variants": "; ".join(told)}
                rows.append(_judge(claim, first[kind], flags().get(index)) | more)
    columns = [*KEYS, "paper value", "ours", "ci", "n", "n_runs", "data", "kind", "verdict"]
    columns += ["reason", "variant", "variants", "role", "place"]
    return pd.DataFrame(rows, columns=["index", *columns]).set_index("index")


def _judge(
    claim: dict[str, Any], result: dict[str, Any] | None, odd: tuple[str, str] | None
) -> dict[str, Any]:
    """One row of `compare`; ``odd`` is what the audit says of a number that cannot be right."""
    given = result or {"data": ""}
    shown = {} if given["data"] == "demo" else given
    row = {key: shown.get(key) for key in ("ci_low", "ci_high", "n", "n_runs")}
    row["ci"] = "" if row["ci_low"] is None else "[{ci_low:.4g}, {ci_high:.4g}]".format_map(row)
    word, reason = odd or verdict(claim, result, _obstacle(claim, result))
    row |= {"paper value": claim["printed"], "ours": shown.get("value"), "data": given["data"]}
    row |= {"variant": given.get("variant") or "", "verdict": word, "reason": reason}
    return claim | row


def counts(board: pd.DataFrame) -> pd.DataFrame:
    """Count distinct quantities by paper, kind of answer and verdict.

    Mirrored, diagonal and repeated rows are the same quantity again and are left out. A quantity
    that the authors' predictions and a retraining answer counts once under each.
    """
    first = board[board["role"] == ""]
    unsaid = np.where(first["ours"].isna(), "no result", "not said")
    kind = first["kind"].where(first["kind"] != "", unsaid)
    table = pd.crosstab([first["paper"], kind], first["verdict"])
    order = [(paper, kind) for paper in PAPERS for kind in (*KINDS, "not said", "no result")]
    table = table.reindex(index=order, columns=list(VERDICTS), fill_value=0)
    table.index.names = ["paper", "kind"]
    return table[table.sum(axis=1) > 0]


def coverage() -> pd.DataFrame:
    """List every table of the ledger with the notebook that answers it or the reason why not.

    Returns:
        One row per table: paper, table, claims, covered (rows that the notebook produces),
        notebook, reason, needs.

    Raises:
        ValueError: If a table of the ledger is not listed, or one is listed that it does not hold.
    """
    tables = load_claims().groupby(["paper", "table"], sort=False)
    rows, listed = [], _coverage_list()
    if lost := set(tables.groups) ^ set(listed):
        raise ValueError(f"the ledger and its coverage differ in {sorted(lost)}")
    for key, part in tables:
        entry = listed[key]
        covered = part["method"].str.startswith(entry["methods"]).sum() if entry["notebook"] else 0
        rows.append({**entry, "claims": len(part), "covered": int(covered)})
    columns = ["paper", "table", "claims", "covered", "notebook", "reason", "needs"]
    return pd.DataFrame(rows)[columns]


@lru_cache(maxsize=1)
def _coverage_list() -> dict[tuple[str, str], dict[str, Any]]:
    """The reviewed list of who answers which table, ``data/coverage.csv``, by paper and table."""
    table = pd.read_csv(ROOT / "data" / "coverage.csv", keep_default_na=False)
    table["methods"] = table["methods"].str.split("; ").map(tuple)  # beginnings; empty means all
    return {(row["paper"], row["table"]): row for row in table.to_dict("records")}
