"""The rehearsal: every paper profile from end to end at its true counts, on two CPU cores.

``notebooks/params/rehearsal.yaml`` overlays the ``paper`` profile of each notebook and replaces
only what a small machine cannot hold: networks, pixels, epochs, repeats. Its data sets have their
official layouts and counts, and link to tiny pictures. A picture is blurred and darkened as its
score is low, so that something can be learned. Score files are synthetic, or the real ones where
they are given; either way every folder carries the marker of synthetic data, and no result on it
can pass for a real one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from scipy import ndimage

from iqa_utils.datasets import DEMO_MARKER, fingerprint, load_scores, locate
from iqa_utils.datasets.readers import LIVE_FOLDERS
from iqa_utils.files import atomic_folder, atomic_write, lock, read_mapping, write_json
from iqa_utils.indicators import measure
from iqa_utils.workshop import notebooks, provenance
from iqa_utils.workshop.demo import pictures as made
from iqa_utils.workshop.demo.distortions import as_image
from iqa_utils.workshop.demo.layouts import WRITERS
from iqa_utils.workshop.demo.pictures import Picture, Studio, dead_leaves, generator
from iqa_utils.workshop.disk import folder_bytes
from iqa_utils.workshop.downloads import link_or_copy
from iqa_utils.workshop.plan import TRAINED_BY, preflight, score_table, sets_of, values_of
from iqa_utils.workshop.runs import ROOT, resolve, run_dir

PROFILE = "rehearsal"
WORKERS = 2  # notebooks at a time
VERSION = 2  # of what is made here; a folder of another version is made again
SIDES, NETWORK_SIDES = (72, 96), (128, 128)  # height and width of a labelled picture, px
N_SCENES, N_LEVELS = 8, 64  # of the pool
# unlabelled images: 3,420 to learn from, 180 kept aside, and what the crop leaves out
OPEN_SHAPES = {(48, 64): 3640, (43, 64): 40, (64, 48): 20, (30, 40): 1}
SETS = {name: write for name, write in WRITERS.items() if name != "unlabelled"}
NETWORK_SETS = ("tid2013", "tid2008", "csiq", "live")
LEVELS = {"tid2008": 4}  # of a distortion; 5 elsewhere
UNEVEN = {  # images of a distortion where not every reference has every level
    "live": {"jp2k": 169, "jpeg": 175, "wn": 145, "gblur": 145, "fastfading": 145},
    "csiq": {"contrast": 116},
}


def rehearsals(stems: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """List the runs of a rehearsal of some notebooks, or of all that the overlay names.

    A key ``STEM-RUN_NAME`` gives its values over those of ``paper``; the rest is that of ``STEM``.
    """
    overlay = notebooks.read_overlay()
    runs = [(*key.partition("-")[::2], values) for key, values in overlay.items()]
    wanted = [notebooks.find_notebook(stem).stem for stem in stems] or [stem for stem, *_ in runs]
    if absent := sorted(set(wanted) - {stem for stem, *_ in runs}):
        raise ValueError(f"no rehearsal of {', '.join(absent)}: rehearsal.yaml does not name it")
    found = []
    for stem, name, values in runs:
        named = {**values, "PROFILE": PROFILE, "RUN_NAME": name}
        own = notebooks.read_profile(stem, "paper") | named if name else {}
        found += [(stem, own)] if stem in wanted else []
    return found


def rehearse(
    stems: Sequence[str] = (), *, annotations: Path | None = None, keep_times: bool = False
) -> list[str]:
    """Run the notebooks of a rehearsal and write to ``runs/rehearsal/times.json`` what each took.

    Only the sets that they name are made. Real files in ``annotations`` take the place of generated
    scores. Where all runs of the overlay have finished, ``keep_times`` copies the times, and
    nothing else, to ``figures/rehearsal/times.json``. Returns one line per failure.
    """
    started = time.perf_counter()
    conditions = _conditions() | {"annotations": annotations is not None}
    jobs, root, folders = rehearsals(stems), ROOT / "data" / "rehearsal", []
    for stem, own in jobs:
        values = values_of(stem, PROFILE) | own
        names = [name for name in sets_of(values) if name in SETS] + values.get("UNLABELLED", [])
        folders += [resolve(values["DATA_ROOT"]) / name for name in names]
    if sets := [str(f.relative_to(root)) for f in folders if f.is_relative_to(root)]:
        ensure_rehearsal_data(root, annotations, sets=list(dict.fromkeys(sets)))
    made = time.perf_counter() - started
    outcomes = notebooks.run_jobs(jobs, profile=PROFILE, workers=WORKERS, check=preflight)
    log = ROOT / "runs" / PROFILE / "times.json"
    content = conditions | {"calls": [], "data": {"seconds": 0.0}, "runs": {}}
    if log.is_file() and conditions["clean"]:  # else the code may have changed since
        earlier = read_mapping(log)
        content = earlier if conditions.items() <= earlier.items() else content
    for (stem, own), (name, seconds, failure) in zip(jobs, outcomes, strict=True):
        content["runs"][name] = _times(stem, values_of(stem, PROFILE) | own, seconds, not failure)
    made += content["data"]["seconds"]  # by earlier calls; what was there is not made again
    content["data"] = {"seconds": round(made, 1), "bytes": folder_bytes(root)}
    content["calls"].append(round(time.perf_counter() - started, 1))
    write_json(log, content)
    failures = [failure for *_, failure in outcomes if failure]
    if keep_times:
        failures += _keep_times(content)
    return failures


def _conditions() -> dict[str, Any]:
    """Say what times depend on: the commit, the processor, its cores, torch."""
    (commit, clean), seen = provenance.commit(), provenance.environment()
    machine = {name: seen["machine"][name] for name in ("cpu", "cores")}
    versions = {"torch": seen["packages"]["torch"], "workers": WORKERS}
    return {"commit": commit, "clean": clean} | machine | versions


def _times(stem: str, values: dict[str, Any], seconds: float, finished: bool) -> dict[str, Any]:
    """Return what a run took: seconds of all its attempts, and trainings by kind of network."""
    attempts = None
    if finished:
        folder = run_dir(stem, PROFILE, values["RUN_NAME"])
        seen = read_mapping(folder / "provenance.json")
        seconds, attempts = max(seconds, seen["seconds"]), seen["killed_attempts"] + 1
    trainings: Counter[str] = Counter()
    if stem[:2] in TRAINED_BY:
        from iqa_utils.workshop.jobs import JOBS, Job

        root = resolve(values["DATA_ROOT"])
        tables = {name: score_table(name, root) for name in sets_of(values)}
        for job in JOBS[stem[:2]](values, tables):
            if isinstance(job, Job) and job.steps:
                trainings[job.network] += job.count
    told = {"seconds": round(seconds, 1), "finished": finished, "attempts": attempts}
    return told | {"threads": values.get("THREADS", 1), "trainings": dict(trainings)}


def _keep_times(content: dict[str, Any]) -> list[str]:
    """Copy the times of a whole rehearsal to ``figures``; returns why not."""
    names = ["-".join(filter(None, (s, own.get("RUN_NAME", "")))) for s, own in rehearsals()]
    done = {name for name, run in content["runs"].items() if run["finished"]}
    if absent := [name for name in names if name not in done]:
        told = f"times are not kept: at this commit {', '.join(absent)} did not finish"
        print(told)
        return [told]
    write_json(ROOT / "figures" / PROFILE / "times.json", content)
    return []


def ensure_rehearsal_data(
    root: str | Path,
    annotations: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    share: float = 1.0,
) -> dict[str, int]:
    """Make the sets that are not there yet, or were made otherwise; returns their image counts.

    ``open_images`` has no scores, ``networks`` 60 images of five references for each set of
    notebook 04. Score files below ``annotations``, one folder per set, are used.
    """
    root = Path(root)
    names = sets or (*SETS, *(f"networks/{name}" for name in NETWORK_SETS), "open_images")
    counts = {}
    with lock(root / ".lock"):
        for name in names:
            real, marker = {}, root / name / DEMO_MARKER
            with suppress(FileNotFoundError):
                if annotations and name in SETS:
                    real = locate(name, Path(annotations) / name)[0]
            wanted = {"version": VERSION, "share": share}
            wanted["annotations"] = fingerprint(real) if real else ""
            known = json.loads(marker.read_text()) if marker.is_file() else {}
            if wanted.items() <= known.items():
                counts[name] = known["images"]
                continue
            few = name.startswith("networks/")
            linker = Linker(pool=root / f".pool-{VERSION}", share=share, few=few)
            with atomic_folder(root / name) as folder:
                if name == "open_images":
                    n = _make_open_images(folder, root / "koniq10k", share)
                elif real:
                    n = _link_real(name, folder, real, linker)
                else:
                    n = len(SETS[name.removeprefix("networks/")](folder, linker))
                content = {"made_by": "iqa rehearse", **wanted, "images": n}
                (folder / DEMO_MARKER).write_text(json.dumps(content))
            counts[name] = n
            scores = "real" if real else "no" if name == "open_images" else "synthetic"
            print(f"{name}: {n:,} images, {scores} scores")
    return counts


@dataclass(frozen=True)
class Linker(Studio):
    """Links the pictures of a set to those of a pool, by scene and quality; `few` are 60 images."""

    scale: float = 64.0
    seed: int = 0
    pool: Path = Path()
    share: float = 1.0
    few: bool = False
    official = True

    def count(self, official: int, small: int) -> int:
        """Return the official number of images, or its share."""
        return max(5, round(official * self.share))

    def authentic(self, name: str, n: int, size: tuple[int, int]) -> list[Picture]:
        """Draw qualities from KonIQ-10k's range counts; every image is a scene of its own."""
        qualities = generator(self.seed, name).permutation(made.range_qualities(n))
        return [Picture(f"{name}-{i}", "", 0, None, float(q)) for i, q in enumerate(qualities)]

    def synthetic(
        self, name: str, types: Sequence[str], size: tuple[int, int], layout: tuple[int, int, int]
    ) -> list[Picture]:
        """Describe the official number of images of each distortion; quality falls with level."""
        rng, official = generator(self.seed, name), layout[0]
        n_references = 5 if self.few else self.count(official, 0)
        types, levels, pictures = types[: 12 if self.few else None], LEVELS.get(name, 5), []
        for i in range(n_references):
            for j, kind in enumerate(types):
                whole = UNEVEN.get(name, {}).get(kind, official * levels)
                n = 60 // len(types) if self.few else round(whole * n_references / official)
                each, rest = divmod(n, n_references)
                n_here = each + ((i - j * rest) % n_references < rest)
                n_levels = max(levels, n_here)
                for step in range(n_here):
                    level = (i + j + step) % n_levels + 1
                    quality = np.clip(1.05 - 0.16 * level + rng.normal(0, 0.06), 0, 1)
                    pictures.append(Picture(f"scene{i:02d}", kind, level, None, float(quality)))
        return pictures

    def originals(self, name: str, folder: str, size: tuple[int, int]) -> list[Picture]:
        """Describe the official number of clean images in a folder of LIVE."""
        n = round((LIVE_FOLDERS[folder] - UNEVEN[name][folder]) * self.share)
        n, scenes = (5, 5) if self.few else (n, self.count(29, 8))
        return [Picture(f"scene{i % scenes:02d}", "", 0, None, 1.0) for i in range(n)]

    def save(self, picture: Picture, path: Path, **options: object) -> None:
        """Link a file to the pool's picture of this scene and quality."""
        link_or_copy(self._source(picture, path.suffix), path)

    def measure(self, picture: Picture, path: Path) -> dict[str, float]:
        """Measure the indicators of a picture of the pool, once."""
        return _measured(self._source(picture, path.suffix))

    def _source(self, picture: Picture, suffix: str) -> Path:
        """Return the picture's file in the pool, made where it is not there."""
        size, scene = NETWORK_SIDES if self.few else SIDES, crc32(picture.reference.encode())
        place, level = scene % N_SCENES, min(N_LEVELS - 1, int(picture.quality * N_LEVELS))
        source = self.pool / f"{size[0]}-{place}-{level:02d}{suffix.lower()}"
        if not source.exists():
            with atomic_write(source) as partial:
                as_image(_spoilt(_scene(place, size), (level + 0.5) / N_LEVELS)).save(partial)
        return source


_measured = cache(measure)


@cache
def _scene(place: int, size: tuple[int, int]) -> np.ndarray:
    return dead_leaves(size, generator(0, "rehearsal", place))


def _spoilt(pixels: np.ndarray, quality: float) -> np.ndarray:
    """Blur and darken pixels (H, W, 3), the more the lower the quality."""
    sigma = 3 * (1 - quality)
    return (0.3 + 0.7 * quality) * ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def _link_real(name: str, folder: Path, real: dict[str, Path], linker: Linker) -> int:
    """Copy real score files to their official places, and link a picture for each score."""
    for relative, path in real.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / relative)
    frame = load_scores(name, folder)
    quality = frame["mos"].rank(pct=True)  # FLIVE's scores fill a tenth of their scale
    rows = list(zip(frame["image"], frame["reference"], quality, strict=True))
    unscored = {
        "live": [f"{f}/img{i + 1}.bmp" for f, n in LIVE_FOLDERS.items() for i in range(n)],
        "livec": [f"Images/trainingImages/t{i + 1}.bmp" for i in range(7)],
    }
    rest = sorted(set(unscored.get(name, [])) - set(frame["image"]))
    for image, scene, q in rows + [(image, image, 1.0) for image in rest]:
        linker.save(Picture(scene, "", 0, None, q), folder / image)
    return len(frame) + len(rest)


def _make_open_images(root: Path, koniq: Path, share: float) -> int:
    """Write unlabelled images as they come: most of them fit the crop, some files are bad."""
    rng = generator(0, "open_images")
    scenes = [dead_leaves((200, 260), rng) for _ in range(6)]
    folder, whole = root / "train_0", None
    folder.mkdir()

    def fresh() -> Path:
        return folder / f"{rng.integers(2**63):016x}.jpg"

    for (height, width), n in OPEN_SHAPES.items():
        for _ in range(max(1, round(n * share))):
            pixels = scenes[rng.integers(len(scenes))]
            top, left = rng.integers(200 - height), rng.integers(260 - width)
            crop = pixels[top : top + height, left : left + width]
            path = fresh()
            as_image(_spoilt(crop, rng.uniform())).save(path, quality=90)
            whole = whole or path
    whole.write_bytes(whole.read_bytes()[:-400])  # truncated: its header is fine
    fresh().touch()
    shutil.copyfile(min((koniq / "1024x768").iterdir()), fresh())  # a labelled image
    return sum(1 for _ in folder.iterdir())
