"""Lehmann and Rokita: dual-Xception and cross-sampled training on KonIQ-10k."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from iqa_utils.workshop import audit
from iqa_utils.workshop.audit import RANGES, Check, Facts, printed_interval
from iqa_utils.workshop.papers import Answer

KEY = "lehmann2023"
TITLE = "Lehmann & Rokita 2023: dual-Xception and cross-sampling"
DOI = "10.22630/MGV.2023.32.2.6"
NOTEBOOKS = ("01_dataset_analysis", "02_cross_sampling")
LEDGER = (133, "b7194494c277bf38")
# the columns that the paper calls MSE hold root mean squared errors (see the audit)
METRICS = {f"MSE{r}": (f"RMSE{r}",) for r in ("", *(f" {r}" for r in RANGES))}
METRICS["Ranges standard deviation"] = ("Ranges standard deviation", "RMSE ranges SD")
DUAL = {"network": "dual legacy_xception", "weights": "imagenet", "recipe": "paper"}
OFFICIAL = {"split": "official", "epochs": 60}
KONCEPT = {"network": "KonCept512", "weights": "imagenet", "recipe": "paper"}
KONCEPT["protocol"] = OFFICIAL  # section 2.2.4: 60 epochs, as its authors suggest
BRISQUE = {"network": "BRISQUE", "recipe": "1024x768", "protocol": {"split": "official"}}
OURS = ("without cross-sampling", "with cross-sampling")
SIZE = ("parameters",)
ANSWERS = (
    Answer("Fig. 2", {"re-tabulated": {}}),
    Answer("Tab. 3", {"re-tabulated": {}}),
    Answer("Tab. 4", {"trained here": DUAL | {"protocol": OFFICIAL | {"select": "range_sum"}}}),
    Answer("Tab. 5", {"arithmetic": {"network": "KonCept512"}}, ("KonCept512",), SIZE),
    Answer("Tab. 5", {"arithmetic": {"network": DUAL["network"]}}, metrics=SIZE),
    Answer("Tab. 5", {"trained here": {"protocol": {"device": "NVIDIA GeForce RTX 3070"}}}),
    Answer("Tab. 6", {"trained here": KONCEPT}, ("KonCept512",)),
    Answer("Tab. 6", {"trained here": BRISQUE}, ("BRISQUE",)),
    Answer("Tab. 6", {"trained here": DUAL | {"protocol": OFFICIAL | {"select": "total"}}}, OURS),
)
EASY = (
    "The class counts and the correlation matrix follow from the released tables to the last digit."
)
DIFFICULT = (
    "Cross-sampling is defined twice, the columns called MSE hold its root, no split or seed is "
    "given, and the network's parameters fit no construction that the text allows."
)


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the totals, the deviation of the ranges and the least errors."""
    pooled = audit.check_pooling(rows, "Tab. 4", "MSE", 2)
    return [*pooled, *_ranges_deviation(rows), *_squared_label(rows)]


def _ranges_deviation(rows: pd.DataFrame) -> Iterator[Check]:
    """Compare "Ranges standard deviation" with the five range errors above it.

    The mean of per-run deviations cannot lie below the deviation of the mean errors (a norm is
    convex), so a printed value below the population form is impossible under any reading.
    """
    table = rows[rows["table"] == "Tab. 4"]
    for _, cell in rows[rows["metric"] == "Ranges standard deviation"].iterrows():
        row = table[table["method"] == cell["method"]].set_index("metric")
        parts = row.loc[[f"MSE {r}" for r in RANGES]]
        boxes = [printed_interval(text) for text in parts["printed"]]
        value = float(np.std(parts["value"], ddof=1))
        low, high = audit.deviation_bounds(boxes, 0)[0], audit.deviation_bounds(boxes, 1)[1]
        high = float(np.hypot(high, parts["spread"].max()))  # runs may scatter on top
        good = audit.overlap((low, high), printed_interval(cell["printed"]))
        wrong = f"The column's own deviation is {value:.2f}."
        right = "The deviation of the five printed errors, rounded or cut."
        said = right, wrong
        place = "ranges deviation", f"{cell['method']}, SD of five ranges"
        yield audit.check_cell(cell, *place, (value, low, high), good, said)


def _squared_label(rows: pd.DataFrame) -> Iterator[Check]:
    """Ask whether the column "MSE" can hold squared errors, and whether it can hold their roots."""
    sd = audit.smallest_deviation(rows[rows["table"] == "Tab. 3"]["value"].to_numpy())
    table = rows[rows["table"] == "Tab. 4"]
    for index, cell in table[table["metric"] == "MSE"].iterrows():
        pair = table[(table["method"] == cell["method"]) & (table["metric"] == "PLCC")].iloc[0]
        # over ten runs E[MSE] >= SD^2 (1 - E[PLCC^2]), and E[PLCC^2] = mean^2 + spread^2
        least = sd**2 * (1 - printed_interval(pair["printed"])[1] ** 2 - pair["spread"] ** 2)
        printed = printed_interval(cell["printed"])[1]
        for label, value in (("MSE", printed), ("RMSE", printed**2 + cell["spread"] ** 2)):
            shown = float(least if label == "MSE" else np.sqrt(least))
            right = f"Read as {label}, the column agrees with the correlation and the class counts."
            wrong = "Squared errors of this size would need a correlation far above the printed one"
            wrong += ": the column holds root mean squared errors."
            good = value >= least - audit.SLACK
            said = ("consistent", right) if good else ("inconsistent", wrong)
            place = (KEY, "Tab. 4", "least error", f"{cell['method']}, least {label}")
            ends = (shown, shown, float("inf"), cell["value"])
            yield Check(*place, *ends, *said, named=(index,))  # the label is wrong, not the digits


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the matrix, the counts and the times that the words of the paper are about."""
    matrix = rows[rows["table"] == "Fig. 2"]
    matrix = matrix.assign(other=matrix["metric"].str.removeprefix("pearson with "))
    values = matrix.pivot_table(index="method", columns="other", values="value").to_numpy()
    upper = np.triu_indices(len(values), 1)
    counts = rows[rows["table"] == "Tab. 3"]["value"].to_numpy()
    seconds = rows[rows["metric"].str.startswith("epoch")].set_index("method")["value"]
    plain, fast, second, third = (
        seconds[method] for method in ("without cross-sampling", "method 1", "method 2", "method 3")
    )
    # seconds per image and a fixed overhead, both from the first two columns
    cost = (plain - fast) / (7058 - 645)

    def of_images(n: int) -> float:
        return plain - cost * (7058 - n)

    def saved(time: float) -> audit.Interval:
        return (plain - 0.5) / (time + 1), (plain + 1) / (time - 0.5)

    from_images = [(of_images(903), of_images(1032)), (0.8 * second, 1.2 * second)]
    return {
        "pairs equal in both orders": [(values == values.T)[upper].sum()],
        "ones on the diagonal": [(np.diag(values) == 1).sum()],
        "eigenvalues below zero": [float(np.linalg.eigvalsh(values)[0] < 0)],
        "images in all ranges": [counts.sum()],
        "largest class over smallest": [counts.max() / counts.min()],
        "epoch time saved by method 1": [saved(fast)],
        "epoch time saved by method 3": [saved(third)],
        "KonCept512 over method 1": [seconds["KonCept512"] / fast],
        "seconds of method 2, 903 to 1,032 images an epoch": from_images,
        "seconds of method 3, 2,193 images an epoch": [of_images(2193), (0.8 * third, 1.2 * third)],
        "hours of a session of method 1, 60 epochs": [fast / 60],
        "hours of a session without cross-sampling": [plain / 60],
    }
