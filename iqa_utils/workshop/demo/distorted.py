"""Pristine pictures at known levels of distortion: a second scale beside human scores."""

from pathlib import Path

import pandas as pd

from iqa_utils.datasets import load_scores
from iqa_utils.files import atomic_folder, lock
from iqa_utils.workshop.demo.distortions import as_image, distort
from iqa_utils.workshop.demo.pictures import generator, scene

KINDS = ("gaussian blur", "white noise", "jpeg", "contrast change")


def load_distorted(root: str | Path, n_references: int) -> tuple[pd.DataFrame, Path]:
    """Return the scores of :func:`ensure_distorted` and the folder of the pictures."""
    folder = ensure_distorted(root, n_references=n_references)
    frame = load_scores("table", folder)
    frame.attrs |= {"dataset": "distorted", "title": "distorted, known levels"}
    return frame, folder


def ensure_distorted(root: str | Path, *, n_references: int, side: int = 320) -> Path:
    """Make ``scores.csv`` and pictures for the reader ``table``, once; returns their folder.

    Shipped photographs and dead leaves by turns, each as it is (score 5) and with every kind of
    distortion at the levels 1 to 5 (score 5 minus level). Crops of one photograph share a
    reference. No rater stands behind these scores: only the order within a kind is known.
    """
    folder = Path(root) / f"distorted-{n_references}-{side}"
    with lock(folder.with_suffix(".lock")):
        if not (folder / "scores.csv").is_file():
            with atomic_folder(folder) as made:
                rows = [row for i in range(n_references) for row in _versions(made, i, side)]
                pd.DataFrame(rows).to_csv(made / "scores.csv", index=False)
    return folder


def _versions(folder: Path, i: int, side: int) -> list[dict[str, object]]:
    reference, clean = scene("distorted", i, (side, side), 0)
    rows = []
    for kind, level in [("", 0), *((kind, level) for kind in KINDS for level in range(1, 6))]:
        rng = generator(0, f"distorted {kind}", i, level)
        name = f"{i:03d}{'-' * bool(kind)}{kind.replace(' ', '_')}-{level}.png"
        as_image(distort(clean, kind, level, rng) if kind else clean).save(folder / name)
        row = {"image": name, "mos": 5.0 - level, "reference": reference, "distortion": kind}
        rows.append(row | {"level": level})
    return rows
