"""The logistic map before a Pearson correlation: SciPy's ``curve_fit`` against ours."""

import numpy as np
from common import compare, report, within
from scipy.optimize import curve_fit

from iqa_utils.metrics import fit_logistic, logistic, rmse

N, SECONDS = 2015, 0.010  # the test set of KonIQ-10k; what a fit may take


def main() -> None:
    """Time one fit; the gate is that ours leaves no larger error."""
    rng = np.random.default_rng(0)
    pred = rng.normal(size=N)
    mos = 50 + 40 * np.tanh(0.9 * pred) + 5 * rng.normal(size=N)

    def naive() -> float:
        start = [np.ptp(mos), 1 / pred.std(), pred.mean(), 0.0, mos.mean()]
        found, _ = curve_fit(lambda x, *p: logistic(x, p), pred, mos, start, maxfev=20_000)
        return rmse(mos, logistic(pred, found))

    def ours() -> float:
        return fit_logistic(mos, pred).rmse

    excess = max(ours() / naive() - 1, 0.0)
    legs = {"curve_fit": naive, "fit_logistic": ours}
    title = f"logistic map of {N} predictions (relative excess of the RMSE)"
    record = compare(title, legs, gate=(excess, 1e-6), repeats=25)
    median = record["seconds_per_unit"]["fit_logistic"]["median"]
    report([record, within(f"logistic map of {N} predictions, seconds", median, SECONDS)])


if __name__ == "__main__":
    main()
