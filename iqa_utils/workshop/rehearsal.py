"""The rehearsal: every paper profile from end to end at its true counts, on two CPU cores.

``notebooks/params/rehearsal.yaml`` overlays the ``paper`` profile of each notebook and replaces
only what a small machine cannot hold: networks, pixels, epochs, repeats. Nothing it yields is ever
compared with a paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iqa_utils.workshop import notebooks
from iqa_utils.workshop.plan import sets_of, values_of
from iqa_utils.workshop.runs import ROOT, resolve, write_json

PROFILE = "rehearsal"


def rehearsals(stems: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """List the runs of a rehearsal of some notebooks, or of all that the overlay names.

    Returns:
        Pairs of a stem and, for a key ``STEM-RUN_NAME``, its values over those of ``paper``; what
        neither of them sets (``SAVE_SECONDS``) comes from ``STEM``.
    """
    overlay = notebooks.read_overlay()
    runs = [(*key.partition("-")[::2], values) for key, values in overlay.items()]
    wanted = [notebooks.find_notebook(stem).stem for stem in stems] or [stem for stem, *_ in runs]
    if absent := sorted(set(wanted) - {stem for stem, *_ in runs}):
        raise ValueError(f"no rehearsal of {', '.join(absent)}: rehearsal.yaml does not name it")
    return [
        (stem, _of_its_own(stem, name, values) if name else {})
        for stem, name, values in runs
        if stem in wanted
    ]


def _of_its_own(stem: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    paper = notebooks.read_profile(stem, "paper")
    return {**paper, **values, "PROFILE": PROFILE, "RUN_NAME": name}


def rehearse(
    stems: Sequence[str] = (), *, annotations: Path | None = None, workers: int = 2
) -> list[str]:
    """Run the notebooks of a rehearsal and add to ``runs/rehearsal/times.json`` what each took.

    Only the sets that they name are made. Real files in ``annotations`` take the place of generated
    scores. Returns one line per failure.
    """
    from iqa_utils.workshop.rehearsal_data import SETS, ensure_rehearsal_data

    jobs, root, sets = rehearsals(stems), ROOT / "data" / "rehearsal", {}
    for stem, own in jobs:
        values = values_of(stem, PROFILE) | own
        if (folder := resolve(values["DATA_ROOT"])).is_relative_to(root):
            names = [name for name in sets_of(values) if name in SETS]
            names += values.get("UNLABELLED", [])
            sets |= {str((folder / name).relative_to(root)): None for name in names}
    if sets:
        ensure_rehearsal_data(root, annotations, sets=list(sets))
    outcomes = notebooks.run_jobs(jobs, profile=PROFILE, workers=workers)
    log = ROOT / "runs" / PROFILE / "times.json"
    earlier = json.loads(log.read_text()) if log.is_file() else {}
    write_json(log, earlier | {one.name: round(one.seconds, 1) for one in outcomes})
    return [one.failure for one in outcomes if one.failure]
