"""Do published numbers agree with themselves? Checks that need no data.

Every check recomputes a printed number from other printed numbers of the same paper, or from what
is true of the network or data set it names. A number of d decimals stands for every value that
prints so, by rounding or by truncation, and only what no such value can satisfy is called
``inconsistent``; what is possible but far from anything measured is ``implausible``. This module
holds the arithmetic and the checks that run over the ledger; `checks_layers` and `checks_texts`
hold those of single places.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import product

import numpy as np
import pandas as pd

Interval = tuple[float, float]
SLACK = 1e-9  # floating-point noise at the end of an interval

TEST_COUNTS = (36, 238, 617, 1082, 42)  # KonIQ-10k official test part, ranges of 20 points
RANGES = ("0-20", "20-40", "40-60", "60-80", "80-100")
# images with scores; the upper end counts references or training images too, as a reader might
MIXED_SIZES: dict[str, Interval] = {
    "live": (779, 982), "csiq": (866, 900), "kadid10k": (10125, 10206),
    "bid": (585, 586), "livec": (1162, 1169), "koniq10k": (10073, 10073),
}  # fmt: skip
TEACHER_WEIGHTS = {"koniq10k": 0.25, "flive": 0.15, "nrtid": 0.2, "livec": 0.25, "htid": 0.15}
# sample SD of a whole set in its own units; the interval covers every scale in circulation
SCORE_SD: dict[str, Interval] = {
    "tid2008": (1.3423, 1.3423), "tid2013": (1.2399, 1.2399), "csiq": (0.2627, 0.2627),
    "live1": (16.11, 32.42), "live2": (16.11, 31.31),
}  # fmt: skip
KENDALL_BAND = 0.05  # more than twice the largest deviation of 60 released predictions, 0.022


@dataclass(frozen=True)
class Check:
    """One recomputation.

    Attributes:
        paper: Ledger key.
        table: Table, figure or section.
        kind: Family of the check.
        what: What is compared, in words.
        recomputed: Value from the other numbers, at their printed digits.
        low: Lowest value that the other numbers allow.
        high: Highest value that they allow.
        printed: The paper's number.
        verdict: ``consistent``, ``inconsistent`` or ``implausible``.
        meaning: One sentence for the reader.
        cells: Ledger rows that the verdict is about.
    """

    paper: str
    table: str
    kind: str
    what: str
    recomputed: float
    low: float
    high: float
    printed: float
    verdict: str
    meaning: str
    cells: tuple[int, ...] = ()


def printed_interval(text: str) -> Interval:
    """Return every value that prints as ``text``, by rounding or by truncation.

    Args:
        text: Number as printed: ``"0.710"`` allows [0.7095, 0.711].

    Returns:
        Lowest and highest value; half a unit of the last place on one side, a whole one on the
        other, away from zero.
    """
    value = Decimal(text)
    unit = Decimal(1).scaleb(int(value.as_tuple().exponent))
    if value.is_signed():
        return float(value - unit), float(value + unit / 2)
    return float(value - unit / 2), float(value + unit)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals share a value."""
    return a[0] <= b[1] + SLACK and b[0] <= a[1] + SLACK


def weighted_bounds(values: list[Interval], weights: list[Interval]) -> Interval:
    """Lowest and highest weighted mean over boxes of values and of weights.

    The mean is monotone in every value and, the others held, in every weight, so corners suffice.
    """
    corners = np.array(list(product(*weights)))  # (2^K, K)
    low, high = np.array(values).T
    total = corners.sum(axis=1)
    return float((corners @ low / total).min()), float((corners @ high / total).max())


def deviation_bounds(values: list[Interval], ddof: int) -> Interval:
    """Lowest and highest standard deviation over a box of values.

    The highest lies at a corner; the lowest is the distance of the box to the diagonal, a convex
    function of the common value.
    """
    low, high = np.array(values).T
    centres = np.linspace(low.min(), high.max(), 20001)[:, None]
    gaps = np.maximum(np.maximum(low - centres, centres - high), 0.0)
    smallest = np.sqrt((gaps**2).sum(axis=1).min() / (len(values) - ddof))
    largest = max(np.std(corner, ddof=ddof) for corner in product(*values))
    return float(smallest), float(largest)


def kendall_from_spearman(rho: float) -> float:
    """Kendall's tau of a bivariate normal whose Spearman correlation is ``rho``.

    References:
        Kruskal, Ordinal Measures of Association, JASA 1958.
    """
    return float(2 / np.pi * np.arcsin(2 * np.sin(np.pi * rho / 6)))


def _cells(claims: pd.DataFrame, **where: str) -> pd.DataFrame:
    rows = claims
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def _interval(claims: pd.DataFrame, row: int) -> Interval:
    return printed_interval(claims.loc[row, "printed"])


def check_weighted(claims: pd.DataFrame) -> list[Check]:
    """Recompute every weighted or plain mean over data sets from the row it stands in."""
    average = dict.fromkeys(("koniq10k", "flive", "livec", "nrtid", "htid", "spaq"), 1.0)
    plans: list[tuple[str, str, str, Mapping[str, float | Interval]]] = [
        ("feng2023", "Table 1", "weighted", MIXED_SIZES),
        ("feng2023", "Table 2", "weighted", MIXED_SIZES),
        ("ponomarenko2022", "Table 1", "weighted", TEACHER_WEIGHTS),
        ("ponomarenko2022", "Table 4", "average", average),
    ]
    found = []
    for paper, table, column, weights in plans:
        for index, cell in _cells(claims, paper=paper, table=table, dataset=column).iterrows():
            row = _cells(
                claims, paper=paper, table=table, method=cell["method"], metric=cell["metric"]
            )
            parts = row.set_index("dataset").loc[list(weights)]
            boxes = [w if isinstance(w, tuple) else (w, w) for w in weights.values()]
            low, high = weighted_bounds([printed_interval(t) for t in parts["printed"]], boxes)
            value = float(np.average(parts["value"], weights=[b[0] for b in boxes]))
            good = overlap((low, high), _interval(claims, index))
            meaning = (
                "The printed mean is the mean of its row."
                if good
                else f"The row gives {value:.3f}; no set sizes or hidden digits give the printed "
                f"{cell['printed']}."
            )
            found.append(
                Check(
                    paper, table, "weighted mean", f"{cell['method']}, {cell['metric']} over sets",
                    value, low, high, cell["value"], "consistent" if good else "inconsistent",
                    meaning, (index,),
                )
            )  # fmt: skip
    return found


def check_pooling(claims: pd.DataFrame) -> list[Check]:
    """Pool the errors of the five ranges of KonIQ-10k into the total, with the official shares.

    The papers do not list their test parts, and lehmann2023 averages ten runs: its total is given
    its printed spread, that of nguyen2024 the change that other shares of a random fifth bring.
    """
    found = []
    weights = np.array(TEST_COUNTS) / sum(TEST_COUNTS)
    for paper, table, total, power in (
        ("lehmann2023", "Tab. 4", "MSE", 2),
        ("nguyen2024", "Table 1", "MAE all", 1),
    ):
        name = total.split()[0]
        for index, cell in _cells(claims, paper=paper, table=table, metric=total).iterrows():
            row = _cells(claims, paper=paper, table=table, method=cell["method"])
            errors = row.set_index("metric")["value"][[f"{name} {r}" for r in RANGES]].to_numpy()
            value = float((weights @ errors**power) ** (1 / power))
            # share of a range in a random fifth of 10,073 images: three standard errors
            spread = 3 * np.sqrt(
                0.8 * (weights @ errors ** (2 * power) - value ** (2 * power)) / 2015
            )
            slack = spread / (power * value ** (power - 1))
            slack = slack + (0.0 if np.isnan(cell["spread"]) else cell["spread"])
            interval = (value - slack, value + slack)
            good = overlap(interval, _interval(claims, index))
            shown = "root mean squared errors" if power == 2 else "absolute errors"
            found.append(
                Check(
                    paper, table, "pooled error", f"{cell['method']}, total from five ranges",
                    value, *interval, cell["value"], "consistent" if good else "inconsistent",
                    f"Pooled as {shown} with KonIQ-10k's test shares, the ranges "
                    f"{'give' if good else 'do not give'} the printed total.",
                )
            )  # fmt: skip
    return found


def check_ranges_deviation(claims: pd.DataFrame) -> list[Check]:
    """Hold "Ranges standard deviation" to the five range errors above it.

    The mean of per-run deviations cannot lie below the deviation of the mean errors (a norm is
    convex), so a printed value below the population form is impossible under any reading.
    """
    found = []
    where = {"paper": "lehmann2023", "table": "Tab. 4"}
    for index, cell in _cells(claims, **where, metric="Ranges standard deviation").iterrows():
        row = _cells(claims, **where, method=cell["method"]).set_index("metric")
        parts = row.loc[[f"MSE {r}" for r in RANGES]]
        boxes = [printed_interval(t) for t in parts["printed"]]
        value = float(np.std(parts["value"], ddof=1))
        low, high = deviation_bounds(boxes, 0)[0], deviation_bounds(boxes, 1)[1]
        high = float(np.hypot(high, parts["spread"].max()))  # runs may scatter on top
        good = overlap((low, high), _interval(claims, index))
        meaning = (
            "The deviation of the five printed errors, rounded or cut."
            if good
            else f"The column's own deviation is {value:.2f}: the claim of even quality over the "
            "range rests on this cell."
        )
        found.append(
            Check(
                "lehmann2023", "Tab. 4", "ranges deviation", f"{cell['method']}, SD of five ranges",
                value, low, high, cell["value"], "consistent" if good else "inconsistent",
                meaning, (index,),
            )
        )  # fmt: skip
    return found


def check_error_floor(claims: pd.DataFrame) -> list[Check]:
    """Hold errors to RMSE >= SD sqrt(1 - PLCC^2), which follows from least squares.

    The SD of a data set is used only where the whole set is the test part: the cross-set tests of
    ahmed2020. For lehmann2023 the SD is bounded from below by its own class counts instead.
    """
    found = []
    paper = _cells(claims, paper="ahmed2020")
    paper = paper[paper["table"].isin(["Table 5", "Table 6", "Table 7"])]
    for index, cell in paper[paper["metric"] == "RMSE"].iterrows():
        pair = _cells(paper, table=cell["table"], dataset=cell["dataset"], metric="PLCC")
        correlation = min(1.0, _interval(claims, pair.index[0])[1])
        factor = np.sqrt(1 - correlation**2)
        sd = SCORE_SD[cell["dataset"]]
        floor = sd[0] * factor
        printed = _interval(claims, index)
        verdict = "consistent" if printed[1] >= floor - SLACK else "inconsistent"
        meaning = "The error is no smaller than the correlation allows."
        if verdict == "inconsistent":
            meaning = (
                f"In the set's own units, those of Table 4, a correlation of {correlation:.3f} "
                f"leaves an error of at least {floor:.3g}."
            )
        elif cell["dataset"] == "csiq":
            verdict = "implausible"
            meaning = "The typical error exceeds the whole range of CSIQ's scores, 0 to 1."
        found.append(
            Check(
                "ahmed2020", cell["table"], "error floor", f"{cell['dataset']}, least RMSE",
                floor, floor, float("inf"), cell["value"], verdict, meaning, (index,),
            )
        )  # fmt: skip
    return found + _check_squared_label(claims)


def _check_squared_label(claims: pd.DataFrame) -> list[Check]:
    """Can the column "MSE" of lehmann2023 be squared errors? As RMSE it can."""
    found = []
    sd = smallest_deviation(_cells(claims, paper="lehmann2023", table="Tab. 3")["value"].to_numpy())
    table = _cells(claims, paper="lehmann2023", table="Tab. 4")
    for index, cell in _cells(table, metric="MSE").iterrows():
        pair = _cells(table, method=cell["method"], metric="PLCC").iloc[0]
        mean = printed_interval(pair["printed"])[1]
        # over ten runs E[MSE] >= SD^2 (1 - E[PLCC^2]), and E[PLCC^2] = mean^2 + spread^2
        floor = sd**2 * (1 - mean**2 - pair["spread"] ** 2)
        printed = _interval(claims, index)[1]
        for label, value in (("MSE", printed), ("RMSE", printed**2 + cell["spread"] ** 2)):
            good = value >= floor - SLACK
            shown = floor if label == "MSE" else np.sqrt(floor)
            meaning = (
                f"Read as {label}, the column agrees with the correlation and the class counts."
                if good
                else "Squared errors of this size would need a correlation far above the printed "
                "one: the column holds root mean squared errors."
            )
            found.append(
                Check(
                    "lehmann2023", "Tab. 4", "error floor", f"{cell['method']}, least {label}",
                    float(shown), float(shown), float("inf"), cell["value"],
                    "consistent" if good else "inconsistent", meaning,
                )
            )  # fmt: skip
    return found


def smallest_deviation(counts: np.ndarray, width: float = 20.0) -> float:
    """Smallest standard deviation of scores with these counts in adjoining ranges.

    Args:
        counts: Scores per range, shape (K,).
        width: Width of a range, in score units.

    Returns:
        Score units: every score moved as close to a common centre as its range allows.
    """
    edges = width * np.arange(len(counts) + 1)
    centres = np.linspace(edges[0], edges[-1], 2001)[:, None]
    gaps = np.maximum(np.maximum(edges[:-1] - centres, centres - edges[1:]), 0.0)
    return float(np.sqrt((gaps**2 @ counts).min() / counts.sum()))


def check_kendall(claims: pd.DataFrame) -> list[Check]:
    """Compare every Kendall coefficient with the one its Spearman neighbour predicts.

    Sixty real prediction sets lie within 0.022 of the normal curve; gross outliers could lift
    Kendall further, so that a large excess is implausible, never impossible.
    """
    found = []
    for index, cell in _cells(claims, metric="KROCC").iterrows():
        keys = {k: cell[k] for k in ("paper", "table", "method", "dataset")}
        partner = _cells(claims, **keys, metric="SROCC").iloc[0]
        low, high = (kendall_from_spearman(r) for r in printed_interval(partner["printed"]))
        value = kendall_from_spearman(partner["value"])
        good = _interval(claims, index)[0] <= high + KENDALL_BAND
        meaning = (
            "Close to what its rank correlation predicts."
            if good
            else f"{cell['value'] - value:+.2f} above what the Spearman value predicts; measured "
            "predictions stay within 0.03."
        )
        found.append(
            Check(
                cell["paper"], cell["table"], "Kendall against Spearman",
                f"{cell['method']}, {cell['dataset']}", value, low - KENDALL_BAND,
                high + KENDALL_BAND, cell["value"], "consistent" if good else "implausible",
                meaning, (index,),
            )
        )  # fmt: skip
    return found


def run(claims: pd.DataFrame) -> pd.DataFrame:
    """Run every check on the ledger and the texts.

    Args:
        claims: From `claims.load_claims`.

    Returns:
        One row a check, with the fields of `Check`, in the order of papers and tables.
    """
    from iqa_utils.claims.checks_layers import check_features
    from iqa_utils.claims.checks_texts import check_matrix, check_same, check_texts

    steps = (
        check_weighted, check_pooling, check_ranges_deviation, check_error_floor, check_kendall,
        check_features, check_matrix, check_same, check_texts,
    )  # fmt: skip
    table = pd.DataFrame([asdict(check) for step in steps for check in step(claims)])
    order = {paper: k for k, paper in enumerate(dict.fromkeys(claims["paper"]))}
    table = table.assign(rank=table["paper"].map(order))
    return table.sort_values(["rank", "table"], kind="stable", ignore_index=True).drop(
        columns="rank"
    )
