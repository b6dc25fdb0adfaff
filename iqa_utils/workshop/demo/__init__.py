"""Small synthetic data sets in the official layouts, so that the very same readers run.

Scenes are crops of shipped photographs and dead leaves; ``reference`` is the photograph or the
scene, so that no split by content leaks. Scores come from the model of raters stated in
``pictures``. Nothing here says anything about a method, and every page that shows it says so.
"""

import json
from pathlib import Path

import pandas as pd

from iqa_utils.datasets import DEMO_MARKER, load_scores
from iqa_utils.files import atomic_folder, lock, read_mapping
from iqa_utils.workshop.demo.distortions import as_image, distort
from iqa_utils.workshop.demo.layouts import WRITERS
from iqa_utils.workshop.demo.pictures import Studio, generator, scene

VERSION = 2  # of the synthetic data; a folder of another version is made again
DEMO_ROOT = Path(__file__).resolve().parents[3] / "data" / "demo"
NAMES = ("koniq10k", "live", "csiq", "kadid10k", "bid", "livec", "tid2013", "unlabelled")
SETS = {name: WRITERS[name] for name in NAMES}
# of distortion, at known levels
KINDS = ("gaussian blur", "white noise", "jpeg", "contrast change")


def make_demo(
    root: str | Path = DEMO_ROOT, *, scale: float = 1.0, seed: int = 0, sets: tuple[str, ...] = ()
) -> dict[str, int]:
    """Make demo data sets, all if none is named; each appears whole or not at all.

    At scale 1 they have about a thousand images in all, a third of the real side; at 64 about their
    official number, from 9 on their real side. An image depends on seed, set and its number alone.
    Returns the number of images by set.
    """
    if not 0 < scale <= 64:
        raise ValueError(f"expected a scale in (0, 64], got {scale}")
    with lock(Path(root) / ".lock"):
        return {name: _make(Path(root), name, scale, seed) for name in sets or SETS}


def ensure_demo(root: str | Path = DEMO_ROOT, *, sets: tuple[str, ...] = ()) -> Path:
    """Make the demo sets that are not there yet, at scale 1 and seed 0; returns the folder."""
    root, names = Path(root), sets or tuple(SETS)
    if not all(_is_current(root / name) for name in names):
        with lock(root / ".lock"):
            for name in names:
                if not _is_current(root / name):
                    _make(root, name, 1.0, 0)
    return root


def _make(root: Path, name: str, scale: float, seed: int) -> int:
    if name not in SETS:
        raise KeyError(
            f"no demo of {name}; there are {', '.join(SETS)} "
            "(for real data give its folder as DATA_ROOT)"
        )
    with atomic_folder(root / name) as folder:
        references = SETS[name](folder, Studio(scale, seed))
        marker = {"made_by": "iqa demo", "version": VERSION, "seed": seed, "scale": scale}
        marker["references"] = references
        (folder / DEMO_MARKER).write_text(json.dumps(marker, indent=0))
    return len(references)


def _is_current(folder: Path) -> bool:
    marker = folder / DEMO_MARKER
    return marker.is_file() and read_mapping(marker).get("version") == VERSION


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
