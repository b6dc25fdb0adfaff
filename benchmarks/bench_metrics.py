"""Time of the logistic map before a Pearson correlation, with SciPy's ``curve_fit`` as the gate."""

import statistics

import numpy as np
from common import report, time_implementations, within
from scipy.optimize import curve_fit

from iqa_utils.metrics import fit_logistic, logistic, rmse

N, SECONDS = 2015, 0.010  # the test set of KonIQ-10k; what a fit may take


def main() -> None:
    """Time one fit, which searches from four starts; a search from one must not end lower."""
    rng = np.random.default_rng(0)
    pred = rng.normal(size=N)
    mos = 50 + 40 * np.tanh(0.9 * pred) + 5 * rng.normal(size=N)
    start = [np.ptp(mos), 1 / pred.std(), pred.mean(), 0.0, mos.mean()]
    found, _ = curve_fit(lambda x, *p: logistic(x, p), pred, mos, start, maxfev=20_000)
    theirs, ours = rmse(mos, logistic(pred, found)), fit_logistic(mos, pred).rmse
    if ours > theirs * (1 + 1e-6):
        raise ValueError(f"fit_logistic leaves an RMSE of {ours}, curve_fit {theirs}")
    seconds = time_implementations({"ours": lambda: fit_logistic(mos, pred)}, repeats=25)["ours"]
    title = f"logistic map of {N} predictions, seconds"
    report([within(title, statistics.median(seconds), SECONDS)])


if __name__ == "__main__":
    main()
