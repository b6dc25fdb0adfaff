"""Score tables of fourteen data sets, each read from its official layout.

:func:`load_scores` is the one way in: one row an image, higher is better, validated before
anything is computed. It works without the images; :func:`check_images` names all missing ones.
"""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from iqa_utils.datasets.catalogue import CHECKED, DATASETS, DatasetInfo

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "audit",
    "check_dataset",
    "check_images",
    "fingerprint",
    "load_scores",
    "locate",
]

COLUMNS = ["image", "mos", "mos_std", "reference", "distortion", "level", "split"]
SPLITS = ("training", "validation", "test")
DEMO_MARKER = "demo.json"  # lies in the folder of a made set and maps its images to their scenes


def load_scores(name: str, root: str | Path) -> pd.DataFrame:
    """Load the score table of one data set.

    DMOS is flipped by the readers and nowhere else. The images need not be there; where they
    are, ``image`` has the spelling of the disk, so that a name whose case differs from the
    score file's still opens.

    Args:
        name: One of :data:`DATASETS`.
        root: The set's own folder. For ``table`` it may also be the CSV file itself.

    Returns:
        One row an image, indexed 0..N-1, in the order of the score file: ``image`` (relative to
        root), ``mos`` (the set's own scale, higher is better), ``mos_std`` (same scale, or NaN),
        ``reference`` (content identity), ``distortion``, ``level``, ``split``, then the set's own
        columns. ``attrs``: dataset, title, scale, kind, demo, fingerprint.

    Raises:
        KeyError: If there is no data set of that name.
        FileNotFoundError: If the folder or one of its annotation files is missing.
        ValueError: If a column is renamed, files disagree, a name is there twice (or differs
            only in case from another), or a score is missing or outside the scale.

    Note:
        KonIQ's ``mos`` is the z-score MOS on 0-100; ``mos_raw`` keeps 1-5. LIVE becomes
        111.774694 - realigned DMOS and CSIQ 1 - DMOS.
    """
    info = _info(name)
    files, root = locate(name, Path(root))
    raw = info.read(files).reset_index(drop=True)
    raw = raw.assign(**{column: np.nan for column in COLUMNS if column not in raw})
    where = f"{root}: {', '.join(path.name for path in files.values() if path.suffix != '.txt')}"
    if len(files) == 1:
        where = str(next(iter(files.values())))
    names = _checked_names(raw["image"], where)
    made = _demo_marker(root)
    table = pd.DataFrame({"image": _paths_on_disk(names, root, info.folders)})
    table["mos"] = _checked_scores(raw["mos"], names, info.scale, where)
    table["mos_std"] = pd.to_numeric(raw["mos_std"]).astype(float)
    sources = names.map(made.get("references", {})).astype(object).fillna(table["image"])
    table["reference"] = raw["reference"].astype(object).fillna(sources)
    table["distortion"] = raw["distortion"].astype(object)
    table["level"] = raw["level"].astype("Int64")
    table["split"] = raw["split"].astype(object)
    unknown = sorted(set(table["split"].dropna()) - set(SPLITS))
    if unknown:
        raise ValueError(f"{where}: expected split among {SPLITS}, found {unknown}")
    if (table["mos_std"] < 0).any():
        raise ValueError(f"{where}: expected mos_std >= 0, found {table['mos_std'].min():g}")
    table = pd.concat([table[COLUMNS], raw.drop(columns=COLUMNS)], axis=1)
    table.attrs = {
        "dataset": name,
        "title": info.title,
        "scale": info.scale or (float(table["mos"].min()), float(table["mos"].max())),
        "kind": info.kind,
        "demo": bool(made),
        "fingerprint": fingerprint(files),
    }
    return table


def check_images(frame: pd.DataFrame, root: str | Path) -> None:
    """Refuse a score table whose images are not all on disk, naming every missing one.

    Args:
        frame: A table of :func:`load_scores`, whole or a part.
        root: The set's own folder.

    Raises:
        FileNotFoundError: If an image is missing; the message counts and lists them.
    """
    missing = _missing_images(frame, Path(root))
    if missing:
        info = DATASETS.get(frame.attrs.get("dataset", ""))
        hint = f"; get the images from {info.home}" if info else ""
        listed = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise FileNotFoundError(
            f"{root}: expected {len(frame)} images, {len(missing)} are missing: {listed}{hint}"
        )


def check_dataset(name: str, root: str | Path) -> dict[str, object]:
    """Say whether a folder holds a data set whole.

    Args:
        name: One of :data:`DATASETS`.
        root: The set's own folder.

    Returns:
        ``whole`` (bool), ``rows``, ``official_rows``, ``images_missing`` (list of paths),
        ``files`` (name -> first 16 digits of its SHA-256 and how it compares with the copy that
        was checked) and ``statistics`` (name -> value).

    Raises:
        ValueError: As :func:`load_scores` does; also KeyError and FileNotFoundError.
    """
    info = _info(name)
    frame = load_scores(name, root)
    files, root = locate(name, Path(root))
    hashes = {path: _sha256(path)[:16] for path in files.values()}
    known = {path: CHECKED.get(path.name, CHECKED.get(f"{name}/{path.name}")) for path in hashes}
    demo = frame.attrs["demo"]
    verdict = {
        None: "no copy to compare with",
        True: "as checked",
        False: "synthetic" if demo else "differs from the checked copy",
    }
    same = {path: None if known[path] is None else known[path] == hashes[path] for path in hashes}
    missing = _missing_images(frame, root)
    low, high = frame.attrs["scale"]
    statistics = {
        "scale": f"{low:g} to {high:g}, higher is better",
        "MOS": f"{frame['mos'].min():.4f} to {frame['mos'].max():.4f}",
        "mean and SD": f"{frame['mos'].mean():.4f}, {frame['mos'].std():.4f}",
        "contents": frame["reference"].nunique(),
        "distortions": frame["distortion"].nunique(),
        "split": ", ".join(f"{k} {v}" for k, v in frame["split"].value_counts().items()) or "none",
        "demo": demo,
    }
    whole = len(frame) == (info.n_images or len(frame)) and not missing
    return {
        "whole": whole and (demo or False not in same.values()),
        "rows": len(frame),
        "official_rows": info.n_images,
        "images_missing": missing,
        "files": {p.name: f"{hashes[p]} ({verdict[same[p]]})" for p in hashes},
        "statistics": statistics,
    }


def report_lines(name: str, report: dict[str, object]) -> list[str]:
    """Put a report of :func:`check_dataset` into words, one finding a line.

    Args:
        name: The set.
        report: As returned.

    Returns:
        Lines for a terminal.
    """
    official, missing = report["official_rows"], report["images_missing"]
    synthetic = ", synthetic data" if report["statistics"]["demo"] else ""
    lines = [f"{name}: {'whole' if report['whole'] else 'not whole'}{synthetic}"]
    against = f" of {official} in the official release" if official else ""
    lines.append(f"  scores: {report['rows']}{against}")
    shown = f": {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}" if missing else ""
    lines.append(f"  images missing: {len(missing)}{shown}")
    return lines + [f"  {key}: {v}" for key, v in (report["files"] | report["statistics"]).items()]


def audit(data_root: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Try every data set under one root.

    Args:
        data_root: Folder that holds each set in a folder of its name.

    Returns:
        The score tables that can be read, by name, and for the others the reason why not.
    """
    tables, reasons = {}, {}
    for name in DATASETS:
        try:
            tables[name] = load_scores(name, Path(data_root) / name)
        except (FileNotFoundError, ValueError) as error:
            reasons[name] = str(error).replace(f"{data_root}{os.sep}", "")
    return tables, reasons


def _info(name: str) -> DatasetInfo:
    """Look a data set up by name."""
    if name not in DATASETS:
        raise KeyError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def locate(name: str, root: Path) -> tuple[dict[str, Path], Path]:
    """Find the annotation files where the official layout has them, or beside the images."""
    info = DATASETS[name]
    if name == "table" and root.suffix.lower() == ".csv" and root.is_file():
        return {"scores.csv": root}, root.parent
    if not root.is_dir():
        raise FileNotFoundError(
            f"{info.title}: expected a folder {root} with {', '.join(info.files)}, there is none; "
            f"get it from {info.home} (data/README.md)"
        )
    found = _files_in(root, info)
    missing = [relative for relative in info.files if relative not in found]
    if missing:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        inner = [folder for folder in folders if _files_in(folder, info).keys() >= set(missing)]
        there = sorted(path.name for path in root.iterdir())[:8]
        advice = f"get it from {info.home} (data/README.md)"
        if inner:
            advice = f"one level down, in {inner[0]}: name that folder, or move its content up"
        raise FileNotFoundError(
            f"{info.title}: expected {', '.join(missing)} in {root}, found {there}; {advice}"
        )
    return found, root


def _files_in(root: Path, info: DatasetInfo) -> dict[str, Path]:
    """Return the annotation files of a set that one folder holds, by their official place."""
    found = {}
    for relative in (*info.files, *info.optional):
        nearby = root / (PurePosixPath(relative).name if "info.txt" not in relative else relative)
        path = next((path for path in (root / relative, nearby) if path.is_file()), None)
        if path is not None:
            found[relative] = path
    return found


def _checked_names(names: pd.Series, where: str) -> pd.Series:
    """Refuse names that are missing, lead outside, or cannot be told apart."""
    if names.isna().any() or (names.astype(str).str.strip() == "").any():
        raise ValueError(f"{where}: expected a name in every row, found an empty one")
    names = names.astype(str).str.strip().str.replace("\\", "/").astype(object)
    outside = names.str.startswith("/") | names.str.contains(r"(?:^|/)\.\.(?:/|$)|^\w:")
    if outside.any():
        raise ValueError(
            f"{where}: expected names below the folder, found {names[outside].iloc[0]}"
        )
    if names.duplicated().any():
        raise ValueError(
            f"{where}: expected every image once, duplicate {names[names.duplicated()].iloc[0]} "
            f"({int(names.duplicated().sum())} in all)"
        )
    folded = names.str.casefold()
    if folded.duplicated().any():
        pair = names[folded == folded[folded.duplicated()].iloc[0]].tolist()
        raise ValueError(f"{where}: names that differ only in case cannot be told apart: {pair}")
    return names


def _checked_scores(
    mos: pd.Series, names: pd.Series, scale: tuple[float, float] | None, where: str
) -> pd.Series:
    """Refuse scores that are missing or outside the scale (mos is already flipped)."""
    mos = pd.to_numeric(mos, errors="coerce").astype(float)
    absent = ~np.isfinite(mos)
    if absent.any():
        raise ValueError(
            f"{where}: expected a finite score for every image, {int(absent.sum())} without, "
            f"first {names[absent].iloc[0]}"
        )
    low, high = scale or (-np.inf, np.inf)
    slack = 1e-6 * (high - low) if scale else 0.0  # LIVE's published maximum is rounded
    outside = (mos < low - slack) | (mos > high + slack)
    if outside.any():
        raise ValueError(
            f"{where}: expected scores on [{low:g}, {high:g}] (higher is better), "
            f"{int(outside.sum())} outside, first {names[outside].iloc[0]} with "
            f"{mos[outside].iloc[0]:g}"
        )
    return mos


def _paths_on_disk(names: pd.Series, root: Path, folders: tuple[str, ...]) -> list[str]:
    """Return each image's path below root, spelt as on disk where the folder is there."""
    for folder in folders:
        wanted = [f"{folder}/{name}" if folder else name for name in names]
        spelt = defaultdict(list)
        for parent in {path.rpartition("/")[0] for path in wanted}:
            if (root / parent).is_dir():
                for entry in os.scandir(root / parent):
                    path = f"{parent}/{entry.name}" if parent else entry.name
                    spelt[path.casefold()].append(path)
        if any(path.casefold() in spelt for path in wanted):
            return [_spelling(path, spelt.get(path.casefold(), []), root) for path in wanted]
    return [f"{folders[0]}/{name}" if folders[0] else name for name in names]


def _spelling(path: str, there: list[str], root: Path) -> str:
    """Choose the file meant by a path among those that differ from it in case at most."""
    if path in there or not there:
        return path
    if len(there) > 1:
        raise ValueError(f"{root}: {path} is not there and these differ only in case: {there}")
    return there[0]


def _missing_images(frame: pd.DataFrame, root: Path) -> list[str]:
    """List the images of a table that are not on disk."""
    return [image for image in frame["image"] if not (root / image).is_file()]


def _demo_marker(root: Path) -> dict[str, object]:
    """Read the marker that a made data set carries, empty for a real one."""
    marker = root / DEMO_MARKER
    return json.loads(marker.read_text()) if marker.is_file() else {}


def fingerprint(files: dict[str, Path]) -> str:
    """Hash the annotation files together, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(files.values(), key=lambda path: path.name):
        digest.update(f"{path.name}:{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    """Hash one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
