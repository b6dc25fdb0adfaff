"""The ledger of published numbers: load it, audit it, match our results to it, judge them.

``data/claims.csv`` holds every number the five papers print. A result is a dictionary as
`iqa_utils.runs.Run.add_result` writes it; `match` is the one place that says which result answers
which ledger row, `verdict` the one place that says what the two numbers mean together.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from iqa_utils.claims import checks as _audit
from iqa_utils.claims.checks import printed_interval
from iqa_utils.claims.coverage import coverage_table, still_needed

LEDGER = Path(__file__).resolve().parents[2] / "data" / "claims.csv"
COLUMNS = ("paper", "table", "method", "dataset", "metric", "value", "spread")
KEYS = ["paper", "table", "method", "dataset", "metric"]
PAPERS = ("lehmann2023", "feng2023", "ahmed2020", "nguyen2024", "ponomarenko2022")
VERDICTS = (
    "reproduced", "close", "better", "worse",
    "inconsistent", "implausible", "not comparable", "not run",
)  # fmt: skip
# which variant of a result stands beside the paper: the nearest to what the authors did
VARIANTS = (
    "released scores", "paper", "as written", "as_written", "released", "released_agedb", "",
    "corrected",
)  # fmt: skip
CORRELATIONS = ("SRCC", "PLCC", "KRCC", "pearson")
DATA_FREE = ("feature count", "parameters", "inference GFLOPs")  # follow from a network alone
DETERMINISTIC = ("pearson", "count", *DATA_FREE)
REPEATED = {
    "Proposed": ("Table 4", "NASNet-Large + GPR"),
    "complete architecture": ("Table 2", "NASNet-Large / predictions (fine-tuned, linear SVR)"),
    "without last 41 layers": (
        "Table 2", "NASNet-Large / normal_concat_17 (fine-tuned, linear SVR)"),
    "without last 82 layers": (
        "Table 2", "NASNet-Large / normal_concat_16 (fine-tuned, linear SVR)"),
    "Five CFCLs and Four ELUs (Proposed)": ("Table 1", "Proposed (All databases)"),
    "IMQNet pre-trained on TMP by transfer": ("Table 4", "IMQNet"),
}  # fmt: skip
SUBSTITUTED = {  # beginnings of methods whose network we had to replace
    ("ahmed2020", "ShuffleNet"): "other network: ShuffleNet v2 stands for the paper's v1",
}
SETS = {  # what a result must have been measured on, where it is not the ledger's own word
    "live1": {"live"}, "live2": {"live"},
    ("feng2023", "weighted"): {"live", "csiq", "kadid10k", "bid", "livec", "koniq10k"},
    ("ponomarenko2022", "weighted"): {"koniq10k", "flive", "nrtid", "livec", "htid"},
    ("ponomarenko2022", "average"): {"koniq10k", "flive", "livec", "nrtid", "htid", "spaq"},
}  # fmt: skip


def load_claims(path: Path = LEDGER) -> pd.DataFrame:
    """Read the ledger.

    Args:
        path: CSV with the columns of `COLUMNS`.

    Returns:
        One row a published number, indexed 0..N-1; ``printed`` holds the digits as printed,
        ``value`` and ``spread`` are float64.

    Raises:
        ValueError: If a column is missing, a value is no number or a row stands there twice.
    """
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(claims.columns) != COLUMNS:
        raise ValueError(f"{path.name} must have the columns {COLUMNS}, has {(*claims.columns,)}")
    claims["printed"] = claims["value"]
    claims["value"] = pd.to_numeric(claims["value"])
    claims["spread"] = pd.to_numeric(claims["spread"].replace("", None))
    twice = claims[claims.duplicated(KEYS)]
    if len(twice):
        raise ValueError(f"{path.name} holds {len(twice)} rows twice, first {tuple(twice.iloc[0])}")
    return claims


def audit() -> pd.DataFrame:
    """Run every check that needs no data; see `iqa_utils.claims.checks`.

    Returns:
        One row a check: paper, table, kind, what, recomputed, low, high, printed, verdict, meaning
        and the ledger rows (``cells``) that the verdict is about.
    """
    return _audit.run(load_claims())


@lru_cache(maxsize=1)
def flags() -> dict[int, tuple[str, str]]:
    """Ledger rows that cannot be right, or hardly: index to verdict and meaning."""
    table = audit()
    return {
        cell: (row.verdict, row.meaning)
        for row in table[table["verdict"] != "consistent"].itertuples()
        for cell in row.cells
    }


class Verdict(NamedTuple):
    """A word of `VERDICTS` and the reason for it."""

    verdict: str
    reason: str


def verdict(
    printed: str,
    ours: float | None,
    *,
    metric: str,
    ci_low: float | None = None,
    ci_high: float | None = None,
    deterministic: bool = False,
    obstacle: str = "",
) -> Verdict:
    """Judge one of our numbers against a published one.

    Args:
        printed: The paper's number as printed.
        ours: Our value, or None where nothing was run.
        metric: Our name of the metric; correlations are close within 0.02, the rest within 5 %.
        ci_low: Lower end of our interval, over splits or runs or bootstrapped by reference.
        ci_high: Upper end.
        deterministic: Whether the number follows from the data alone, without chance.
        obstacle: Why the two cannot be compared, if they cannot.

    Returns:
        The verdict with its reason.
    """
    if ours is None:
        return Verdict("not run", obstacle or "no result yet")
    if obstacle:
        return Verdict("not comparable", obstacle)
    target, correlation = float(printed), any(name in metric for name in CORRELATIONS)
    difference = ours - target
    near = abs(difference) <= (0.02 if correlation else 0.05 * abs(target)) + 1e-9
    shown = f"{difference:+.3f}" if correlation or not target else f"{difference / target:+.1%}"
    low, high = printed_interval(printed)
    if deterministic and low - 1e-9 <= ours <= high + 1e-9:
        return Verdict("reproduced", "equal at the printed digits")
    if not deterministic and ci_low is not None and ci_high is not None:
        half = (ci_high - ci_low) / 2
        if half > (0.03 if correlation else 0.1 * abs(ours)):
            return Verdict("not comparable", f"our interval is too wide: half-width {half:.3g}")
        if ci_low <= high and low <= ci_high:
            return Verdict("reproduced", "the paper's value lies in our interval")
    if near:
        return Verdict("close", f"differs by {shown}")
    better = (difference > 0) == correlation
    word = "better" if better and not deterministic else "worse"
    return Verdict(word, f"differs by {shown}")


def our_metrics(paper: str, metric: str) -> tuple[str, ...]:
    """Names under which a result may answer a ledger metric, the preferred first.

    The columns that lehmann2023 calls MSE hold root mean squared errors (see the audit); feng2023
    reports PLCC after a five-parameter logistic map.
    """
    name = metric.replace("SROCC", "SRCC").replace("KROCC", "KRCC")
    if paper == "lehmann2023" and metric.startswith("MSE"):
        return (f"R{name}",)
    if paper == "feng2023" and metric == "PLCC":
        return ("PLCC logistic", "PLCC")
    return (name, "MAE") if metric == "MAE all" else (name,)


def places(claim: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Keys under which a result may answer a ledger row, the preferred first.

    Args:
        claim: A row of the ledger.

    Returns:
        Tuples of paper, table, method, dataset and metric: the row's own, its mirror image in a
        correlation matrix, the same number in another table of the paper, and LIVE under the names
        that ahmed2020 gives its two releases.
    """
    paper, table, method, dataset = (claim[k] for k in KEYS[:4])
    found = [(table, method, dataset, m) for m in our_metrics(paper, claim["metric"])]
    if claim["metric"].startswith("pearson with "):
        mirror = claim["metric"].removeprefix("pearson with ")
        found.append((table, mirror, dataset, f"pearson with {method}"))
    if method in REPEATED and (paper != "ahmed2020" or table in ("Table 8", "Table 10")):
        found += [(*REPEATED[method], dataset, m) for _, _, _, m in list(found)]
    names = {"live1": ("live (jp2k + jpeg)",), "live2": ("live",), "live": ("live1", "live2")}
    if paper == "ahmed2020" and dataset in names:
        found += [(t, m, name, x) for t, m, _, x in list(found) for name in names[dataset]]
    return [(paper, *place) for place in found]


def match(results: Iterable[Mapping[str, Any]], claims: pd.DataFrame | None = None) -> pd.DataFrame:
    """Find the result that answers each ledger row.

    Several results may: a real one comes before a demo one, then the order of `places` (the same
    table before another), of `VARIANTS` (what the authors did before what is right), then more
    runs, then the later one.

    Args:
        results: Dictionaries with the keys of `iqa_utils.runs.RESULT_COLUMNS`.
        claims: Rows of `load_claims`, all by default.

    Returns:
        Indexed as the ledger: ``result`` (the dictionary or None) and ``variants`` (all real ones
        that match, the chosen first, as text).
    """
    claims = load_claims() if claims is None else claims
    pool: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
    for order, result in enumerate(results):
        pool.setdefault(tuple(result[k] for k in KEYS), []).append((order, dict(result)))

    def rank(place: int, order: int, result: Mapping[str, Any]) -> tuple[int, ...]:
        variant = result.get("variant") or ""
        known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
        runs = int(result.get("n_runs") or 1)
        return (result["data"] == "demo", place, known, -runs, -order)

    chosen, listed = [], []
    for claim in claims.to_dict("records"):
        found = [
            (rank(place, order, result), result)
            for place, key in enumerate(dict.fromkeys(places(claim)))
            for order, result in pool.get(key, [])
        ]
        found.sort(key=lambda pair: pair[0])
        found = found or _diagonal(claim, pool)
        chosen.append(found[0][1] if found else None)
        real = [r for _, r in found if r["data"] != "demo"]
        listed.append("; ".join(f"{r.get('variant') or 'ours'} {r['value']:.4g}" for r in real))
    return pd.DataFrame({"result": chosen, "variants": listed}, index=claims.index, dtype=object)


def strays(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results that name a table of the ledger but a method or data set that it does not hold.

    Further metrics of a known row are welcome; a misspelt row would otherwise never be compared.
    """
    claims = load_claims()
    known = {place[:4] for claim in claims.to_dict("records") for place in places(claim)}
    tables = {key[:2] for key in known}
    keyed = [(tuple(r[k] for k in KEYS[:4]), dict(r)) for r in results]
    return [r for key, r in keyed if key[:2] in tables and key not in known]


def _diagonal(claim: Mapping[str, Any], pool: Mapping[tuple[str, ...], Any]) -> list[Any]:
    """A variable's correlation with itself, answered by any pair that the variable is part of."""
    name = claim["method"]
    if claim["metric"] != f"pearson with {name}":
        return []
    for key, answers in pool.items():
        if key[:2] == (claim["paper"], claim["table"]) and name in (
            key[2],
            key[4].removeprefix("pearson with "),
        ):
            own = {"method": name, "metric": claim["metric"], "value": 1.0}
            bare = {"ci_low": None, "ci_high": None, "variant": "by definition"}
            return [(None, {**answers[0][1], **own, **bare})]
    return []


def _obstacle(claim: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Why a result cannot be held against its ledger row, or nothing."""
    if result["data"] == "demo":
        return "demo: made data"
    if claim["metric"].startswith("epoch seconds") and "RTX 3070" not in result.get("variant", ""):
        return "other protocol: another device"
    for (paper, method), reason in SUBSTITUTED.items():
        if claim["paper"] == paper and claim["method"].startswith(method):
            return reason
    if result["data"] == "none" and claim["metric"].startswith(DATA_FREE):
        return ""
    paper, dataset = claim["paper"], claim["dataset"]
    expected = SETS.get((paper, dataset), SETS.get(dataset, {dataset}))
    used = {name.strip() for name in result["data"].split("+")}
    return f"other data: {result['data']}" if dataset and used != expected else ""


def compare(
    results: Iterable[Mapping[str, Any]], paper: str | None = None, *, matched_only: bool = False
) -> pd.DataFrame:
    """Put every published number beside ours, with a verdict.

    A row that the audit finds inconsistent or implausible keeps that verdict whatever we measured.
    Values from demo data are left out: they say nothing about a paper.

    Args:
        results: Dictionaries with the keys of `iqa_utils.runs.RESULT_COLUMNS`.
        paper: Ledger key; all papers by default.
        matched_only: Leave out rows that no result answers.

    Returns:
        One row a ledger row, indexed as the ledger: paper, table, method, dataset, metric, paper
        value (as printed), ours, ci, n, data, verdict, reason, variant, variants.
    """
    claims = load_claims()
    if paper is not None:
        if paper not in PAPERS:
            raise ValueError(f"paper must be one of {PAPERS}, got {paper!r}")
        claims = claims[claims["paper"] == paper]
    matched = match(results, claims)
    odd, lacking = flags(), still_needed(claims)
    rows = []
    pairs = zip(claims.index, claims.to_dict("records"), matched.to_dict("records"), strict=True)
    for index, claim, found in pairs:
        result = found["result"]
        if result is None and matched_only:
            continue
        rows.append({**_judge(claim, result, odd.get(index), lacking[index]), "index": index})
        rows[-1]["variants"] = found["variants"]
    columns = [*KEYS, "paper value", "ours", "ci", "n", "data", "verdict", "reason", "variant"]
    return pd.DataFrame(rows, columns=["index", *columns, "variants"]).set_index("index")


def _judge(
    claim: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    odd: tuple[str, str] | None,
    lacking: str,
) -> dict[str, Any]:
    row = {key: claim[key] for key in KEYS} | {
        "paper value": claim["printed"],
        "ours": None,
        "ci": "",
        "n": None,
    }
    row |= {"data": "", "variant": ""}
    if result is None:
        found = verdict(claim["printed"], None, metric=claim["metric"], obstacle=lacking)
    else:
        low, high = result.get("ci_low"), result.get("ci_high")
        variant = result.get("variant") or ""
        exact = claim["metric"].startswith(DETERMINISTIC) or variant == "released scores"
        found = verdict(
            claim["printed"],
            result["value"],
            metric=result["metric"],
            ci_low=low,
            ci_high=high,
            deterministic=exact,
            obstacle=_obstacle(claim, result),
        )
        row |= {"data": result["data"], "variant": variant}
        if result["data"] != "demo":
            row |= {"ours": result["value"], "n": result.get("n")}
            row["ci"] = "" if low is None else f"[{low:.4g}, {high:.4g}]"
    if odd is not None:
        found = Verdict(odd[0], odd[1])
    return row | found._asdict()


def coverage() -> pd.DataFrame:
    """List every table of the ledger with the notebook that answers it or the reason why not."""
    return coverage_table(load_claims())
