"""Do published numbers agree with themselves? Checks that need no data.

Every check recomputes a printed number from other printed numbers of the same paper, or from what
is true of the network or data set it names. A number of d decimals stands for every value that
prints so, by rounding or by truncation, and only what no such value can satisfy is called
``inconsistent``; what is possible but far from anything measured is ``implausible``. What one paper
alone has is checked in its file under `papers`; this module holds the arithmetic and the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from iqa_utils.workshop import ROOT

Interval = tuple[float, float]
# what is recomputed for a number of the prose and, where it is computed too, what is printed
Facts = dict[str, list[float | Interval]]
SLACK = 1e-9  # floating-point noise at the end of an interval
TEST_COUNTS = (36, 238, 617, 1082, 42)  # KonIQ-10k official test set, ranges of 20 points
RANGES = ("0-20", "20-40", "40-60", "60-80", "80-100")
KENDALL_BAND = 0.05  # more than twice the largest deviation of 60 released predictions, 0.022


class Check(NamedTuple):
    """One recomputation: ``low`` to ``high`` is what the other numbers allow the printed one."""

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
    cells: tuple[int, ...] = ()  # ledger rows that the verdict is about
    named: tuple[int, ...] = ()  # rows where it stands, whose digits are not in doubt


def check_cell(
    cell: pd.Series,
    kind: str,
    what: str,
    bounds: tuple[float, float, float],
    good: bool,
    meanings: tuple[str, str],
    otherwise: str = "inconsistent",
) -> Check:
    """Judge a ledger row by its recomputed value and bounds; ``meanings`` if they agree, if not."""
    verdict, meaning = ("consistent", meanings[0]) if good else (otherwise, meanings[1])
    place = (cell["paper"], cell["table"], kind, what)
    return Check(*place, *bounds, cell["value"], verdict, meaning, (cell.name,))


def printed_interval(text: str) -> Interval:
    """Return every value that prints as ``text``, by rounding or by truncation."""
    value = Decimal(text)
    unit = Decimal(1).scaleb(int(value.as_tuple().exponent))
    if value.is_signed():
        return float(value - unit), float(value + unit / 2)
    return float(value - unit / 2), float(value + unit)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals share a value."""
    return a[0] <= b[1] + SLACK and b[0] <= a[1] + SLACK


def weighted_bounds(values: Sequence[Interval], weights: Sequence[Interval]) -> Interval:
    """Lowest and highest weighted mean over boxes of values and of weights.

    The mean is monotone in every value and, the others held, in every weight, so corners suffice.
    """
    corners = np.array(list(product(*weights)))  # (2^K, K)
    low, high = np.array(values).T
    total = corners.sum(axis=1)
    return float((corners @ low / total).min()), float((corners @ high / total).max())


def deviation_bounds(values: Sequence[Interval], ddof: int) -> Interval:
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


def smallest_deviation(counts: np.ndarray) -> float:
    """Smallest standard deviation of scores with these counts in adjoining ranges of 20 points.

    Every score is moved as close to a common centre as its range allows.
    """
    edges = 20.0 * np.arange(len(counts) + 1)
    centres = np.linspace(edges[0], edges[-1], 2001)[:, None]
    gaps = np.maximum(np.maximum(edges[:-1] - centres, centres - edges[1:]), 0.0)
    return float(np.sqrt((gaps**2 @ counts).min() / counts.sum()))


def kendall_from_spearman(rho: float) -> float:
    """Kendall's tau of a bivariate normal whose Spearman correlation is ``rho``.

    References:
        Kruskal, Ordinal Measures of Association, JASA 1958.
    """
    return float(2 / np.pi * np.arcsin(2 * np.sin(np.pi * rho / 6)))


def check_mean(
    rows: pd.DataFrame, table: str, column: str, weights: Mapping[str, float | Interval]
) -> Iterator[Check]:
    """Recompute every weighted mean over data sets from the row it stands in."""
    rows = rows[rows["table"] == table]
    boxes = [w if isinstance(w, tuple) else (w, w) for w in weights.values()]
    for _, cell in rows[rows["dataset"] == column].iterrows():
        row = rows[(rows["method"] == cell["method"]) & (rows["metric"] == cell["metric"])]
        parts = row.set_index("dataset").loc[list(weights)]
        low, high = weighted_bounds([printed_interval(t) for t in parts["printed"]], boxes)
        value = float(np.average(parts["value"], weights=[b[0] for b in boxes]))
        good = overlap((low, high), printed_interval(cell["printed"]))
        wrong = f"The row gives {value:.3f}; no set sizes or hidden digits give the printed "
        said = ("The printed mean is the mean of its row.", f"{wrong}{cell['printed']}.")
        what = f"{cell['method']}, {cell['metric']} over sets"
        yield check_cell(cell, "weighted mean", what, (value, low, high), good, said)


def check_pooling(rows: pd.DataFrame, table: str, total: str, power: int) -> Iterator[Check]:
    """Pool the errors of the five ranges of KonIQ-10k into the total, with the official shares.

    The papers do not list their test images, and lehmann2023 averages ten runs: a total is given
    its printed spread and the change that other shares of a random fifth bring.
    """
    rows, name = rows[rows["table"] == table], total.split()[0]
    weights = np.array(TEST_COUNTS) / sum(TEST_COUNTS)
    for _, cell in rows[rows["metric"] == total].iterrows():
        row = rows[rows["method"] == cell["method"]].set_index("metric")["value"]
        errors = row[[f"{name} {r}" for r in RANGES]].to_numpy()
        value = float((weights @ errors**power) ** (1 / power))
        # share of a range in a random fifth of 10,073 images: three standard errors
        scatter = 0.8 * (weights @ errors ** (2 * power) - value ** (2 * power)) / 2015
        slack = 3 * np.sqrt(scatter) / (power * value ** (power - 1))
        slack += 0.0 if np.isnan(cell["spread"]) else cell["spread"]
        good = overlap((value - slack, value + slack), printed_interval(cell["printed"]))
        shown = "root mean squared errors" if power == 2 else "absolute errors"
        pooled = f"Pooled as {shown} with KonIQ-10k's test shares, the ranges"
        said = (f"{pooled} give the printed total.", f"{pooled} do not give the printed total.")
        bounds = (value, value - slack, value + slack)
        what = f"{cell['method']}, total from five ranges"
        yield check_cell(cell, "pooled error", what, bounds, good, said)


def check_kendall(rows: pd.DataFrame) -> Iterator[Check]:
    """Compare every Kendall coefficient with the one its Spearman neighbour predicts.

    Sixty real prediction sets lie within 0.022 of the normal curve; gross outliers could lift
    Kendall further, so that a large excess is implausible, never impossible.
    """
    spearman = rows[rows["metric"] == "SROCC"].set_index(["table", "method", "dataset"])
    for _, cell in rows[rows["metric"] == "KROCC"].iterrows():
        partner = spearman.loc[(cell["table"], cell["method"], cell["dataset"])]
        low, high = (kendall_from_spearman(r) for r in printed_interval(partner["printed"]))
        value = kendall_from_spearman(partner["value"])
        good = printed_interval(cell["printed"])[0] <= high + KENDALL_BAND
        gap = f"{cell['value'] - value:+.2f} above what the Spearman value predicts"
        wrong = f"{gap}; measured predictions stay within 0.03."
        said = "Close to what its rank correlation predicts.", wrong
        place = "Kendall against Spearman", f"{cell['method']}, {cell['dataset']}"
        bounds = (value, low - KENDALL_BAND, high + KENDALL_BAND)
        yield check_cell(cell, *place, bounds, good, said, "implausible")


def layer_shapes() -> pd.DataFrame:
    """Activation shape of each layer at its network's own input size, by the paper's name."""
    return pd.read_csv(ROOT / "data" / "layer_shapes.csv", keep_default_na=False).set_index("layer")


def check_features(rows: pd.DataFrame) -> Iterator[Check]:
    """Multiply out every layer's activation and compare the printed feature count with it."""
    shapes = layer_shapes()["shape"]
    for _, cell in rows[rows["metric"] == "feature count"].iterrows():
        layer = cell["method"].split(" (")[0]
        shape, size = shapes[layer], float(prod(map(int, shapes[layer].split(" x "))))
        wrong = f"The layer gives {shape} = {size:,.0f}; the printed size belongs to another."
        said, good = (f"{shape}, as printed.", wrong), size == cell["value"]
        yield check_cell(cell, "feature size", layer, (size, size, size), good, said)


def repeated_rows(claims: pd.DataFrame) -> list[tuple[int, int]]:
    """Pair ledger rows with the row whose number they repeat, as ``data/repeats.csv`` lists them.

    There an empty data set or metric stands for any, an empty first data set for the same.
    """
    keys = ["paper", "table", "method", "dataset", "metric"]
    rows, found = {tuple(key): index for index, *key in claims[keys].itertuples()}, []
    table = pd.read_csv(ROOT / "data" / "repeats.csv", keep_default_na=False)
    for *place, dataset, metric, table_1, method_1, dataset_1 in table.to_numpy():
        for (*own, d, x), index in rows.items():
            source = rows.get((place[0], table_1, method_1, dataset_1 or d, x))
            if own == place and dataset in ("", d) and metric in ("", x) and source is not None:
                found.append((index, source))
    return found


def check_repeats(rows: pd.DataFrame) -> Iterator[Check]:
    """Compare cells that a paper prints twice; the coarser one may be rounded or cut."""
    for index, source in repeated_rows(rows):
        cell, other = rows.loc[index], rows.loc[source]
        ends = printed_interval(other["printed"])
        good = overlap(ends, printed_interval(cell["printed"]))
        said = "The same number in both places.", "The two places differ."
        what = f"{cell['method']}, {other['dataset']}, {cell['metric']}, as in {other['table']}"
        yield check_cell(cell, "repeated cell", what, (other["value"], *ends), good, said)


def check_facts(rows: pd.DataFrame, computed: Facts) -> Iterator[Check]:
    """Compare the numbers of the prose with what the network, the set or arithmetic makes of them.

    The papers' texts are not part of the repository: ``data/audit_facts.csv`` holds each number
    taken from one, with the section it stands in. Numbers left empty there are ``computed``.
    """
    table = pd.read_csv(ROOT / "data" / "audit_facts.csv", keep_default_na=False)
    for row in table[table["paper"] == rows["paper"].iloc[0]].itertuples():
        values = computed.get(row.what, [])
        ours = _ends((row.low, row.high) if row.low else values[0])
        said = _ends((row.printed_low, row.printed_high) if row.printed_low else values[-1])
        verdict = "consistent" if overlap(ours, said) else row.otherwise
        cells = rows.index[(rows["table"] == row.table) & (rows["what"] == row.cell)]
        named = rows.index[rows["place"] == row.named]
        place, middle = (row.paper, row.table, row.kind, row.what), float(np.mean(ours))
        told = float(np.mean(said)), verdict, row.meaning
        yield Check(*place, middle, *ours, *told, tuple(cells), tuple(named))


def _ends(value: float | tuple[float | str, float | str]) -> Interval:
    low, high = value if isinstance(value, tuple) else (value, value)
    return float(low), float(high)
