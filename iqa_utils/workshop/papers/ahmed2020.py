"""Ahmed and Asif: deep features of thirteen networks, support vectors and Gaussian processes."""

import numpy as np
import pandas as pd

from iqa_utils.workshop.audit import SLACK, Check, Facts, Interval, printed_interval

KEY = "ahmed2020"
TITLE = "Ahmed & Asif 2020: deep features and Gaussian processes"
DOI = "10.31577/cai_2020_3_385"
NOTEBOOKS = ("04_deep_features_gpr",)
METRICS: dict[str, tuple[str, ...]] = {}
FINAL = "NASNet-Large + GPR"
TUNED = "NASNet-Large / {} (fine-tuned, linear SVR)"
REPEATS = (
    ("Table 10", "complete architecture", "", "Table 2", TUNED.format("predictions"), ""),
    ("Table 10", "without last 41 layers", "", "Table 2", TUNED.format("normal_concat_17"), ""),
    ("Table 10", "without last 82 layers", "", "Table 2", TUNED.format("normal_concat_16"), ""),
    # LIVE in Table 8 is LIVE-I of Table 4: LIVE-II would print otherwise
    ("Table 8", "Proposed", "live", "Table 4", FINAL, "live1"),
    ("Table 8", "Proposed", "tid2013", "Table 4", FINAL, ""),
    ("Table 8", "Proposed", "csiq", "Table 4", FINAL, ""),
)
# sample SD of a whole set in its own units; the interval covers every scale in circulation
SCORE_SD: dict[str, Interval] = {
    "tid2008": (1.3423, 1.3423),
    "tid2013": (1.2399, 1.2399),
    "csiq": (0.2627, 0.2627),
    "live1": (16.11, 32.42),
    "live2": (16.11, 31.31),
}


def checks(rows: pd.DataFrame) -> list[Check]:
    """Compare errors with RMSE >= SD sqrt(1 - PLCC^2), which follows from least squares.

    The SD of a data set is used only where the whole set is the test set: the cross-set tests.
    """
    found = []
    rows = rows[rows["table"].isin(["Table 5", "Table 6", "Table 7"])]
    plcc = rows[rows["metric"] == "PLCC"].set_index(["table", "dataset"])["printed"]
    for index, cell in rows[rows["metric"] == "RMSE"].iterrows():
        correlation = min(1.0, printed_interval(plcc[cell["table"], cell["dataset"]])[1])
        floor = float(SCORE_SD[cell["dataset"]][0] * np.sqrt(1 - correlation**2))
        verdict = "consistent"
        meaning = "The error is no smaller than the correlation allows."
        if printed_interval(cell["printed"])[1] < floor - SLACK:
            verdict = "inconsistent"
            meaning = (
                f"In the set's own units, those of Table 4, a correlation of {correlation:.3f} "
                f"leaves an error of at least {floor:.3g}."
            )
        elif cell["dataset"] == "csiq":
            verdict = "implausible"
            meaning = "The typical error exceeds the whole range of CSIQ's scores, 0 to 1."
        place = (KEY, cell["table"], "error floor", f"{cell['dataset']}, least RMSE")
        ends = (floor, floor, float("inf"), cell["value"])
        found.append(Check(*place, *ends, verdict, meaning, (index,)))
    return found


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute what the text says of Tables 1 and 2, and the score SD that errors imply."""
    found: Facts = {}
    for table in ("Table 1", "Table 2"):
        names = rows[rows["table"] == table]["method"].drop_duplicates()
        found[f"networks of {table}"] = [names.str.split(" / ").str[0].nunique()]
        found[f"layers of {table}, three a network"] = [len(names)]
    two = rows[rows["table"].isin(["Table 1", "Table 2"])]
    implied = two.pivot_table(index=["table", "method"], columns="metric", values="value")
    implied = implied["RMSE"] / np.sqrt(1 - implied["PLCC"] ** 2)
    final = rows[(rows["table"] == "Table 4") & (rows["dataset"] == "tid2013")]
    rmse, plcc = (final.set_index("metric")["value"][m] for m in ("RMSE", "PLCC"))
    return found | {
        "median score SD that 63 rows imply": [implied.median()],
        "TID2013, score SD implied by RMSE and PLCC": [
            float(rmse / np.sqrt(1 - plcc**2)),
            (implied.min(), implied.max()),
        ],
    }
