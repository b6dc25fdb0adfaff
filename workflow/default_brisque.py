"""Fit BRISQUE's regressor on the 1,600 photographs: ``python workflow/default_brisque.py``.

An RBF support vector regression on standardised statistics, as in the paper; cost, width and tube
are chosen by five-fold cross-validation inside the training photographs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from default_model import agreement
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import SVR

from iqa_utils.datasets import load_scores
from iqa_utils.decoding import read_image
from iqa_utils.natural_scenes import BRISQUE_FILE, N_STATISTICS, brisque_score, brisque_statistics

ROOT = Path(__file__).parents[1]
GRID = {"C": [1, 3, 10, 30, 100], "gamma": [0.003, 0.01, 0.03, 0.1], "epsilon": [1, 3, 6]}


def main() -> None:
    """Fit, write the file, and measure it once on the 400 test photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "biq2021")
    root = parser.parse_args().data
    frame = load_scores("biq2021", root)
    mos = 100 * frame["mos"].to_numpy()
    training = (frame["split"] == "training").to_numpy()
    x = np.full((len(frame), N_STATISTICS), np.nan)
    for i, name in enumerate(frame["image"]):
        image = np.asarray(read_image(root / name))
        if np.ptp(image):  # one photograph is of one colour
            x[i] = brisque_statistics(image)
    varies = np.isfinite(x).all(axis=1)
    unseen, training = ~training & varies, training & varies
    x, held = x[training], x[unseen]
    mean, std = x.mean(axis=0), x.std(axis=0)
    folds = KFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(SVR(), GRID, cv=folds, scoring="neg_mean_squared_error")
    best = search.fit((x - mean) / std, mos[training]).best_estimator_
    np.savez_compressed(
        BRISQUE_FILE,
        mean=mean,
        std=std,
        gamma=best.gamma,
        vectors=best.support_vectors_.astype(np.float32),
        weights=best.dual_coef_[0],
        intercept=best.intercept_[0],
    )
    pred, test = np.array([brisque_score(row) for row in held]), mos[unseen]
    subset = frame["subset"].to_numpy(str)[unseen]
    found = {"chosen": search.best_params_, "test": agreement(test, pred, subset)}
    (ROOT / "docs" / "brisque.json").write_text(json.dumps(found, indent=1, default=float) + "\n")
    print(found)


if __name__ == "__main__":
    main()
