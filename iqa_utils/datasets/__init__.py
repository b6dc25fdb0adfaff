"""Score tables of fourteen data sets, each read from its official layout.

:func:`load_scores` is the one way in: one row per image, higher is better, validated before
anything is computed. It works without the images; :func:`check_images` names all missing ones.
"""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import yaml

from iqa_utils.datasets import readers
from iqa_utils.datasets.parsing import numbers
from iqa_utils.files import hash_file, listed, read_mapping
from iqa_utils.splits import SPLITS

COLUMNS = ["image", "mos", "mos_std", "reference", "distortion", "level", "split"]
DEMO_MARKER = "demo.json"  # lies in the folder of a synthetic set; maps its images to their scenes


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known about a data set; ``sets.yaml`` explains the fields."""

    title: str
    kind: str
    n_images: int  # 0 where it is not known
    files: tuple[str, ...]
    home: str
    terms: str
    scale: tuple[float, float] | None = None  # None: the span of the file
    optional: tuple[str, ...] = ()
    checked: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ("",)  # image names are relative to one of them, the first preferred
    pixels: tuple[int, int] = (768, 1024)
    references: int = 0
    split_sizes: tuple[int, ...] = ()
    ranges: tuple[int, ...] = ()
    verified: bool = True


def _read_catalogue() -> dict[str, DatasetInfo]:
    sets = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text())
    return {
        name: DatasetInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        for name, entry in sets.items()
    }


DATASETS = _read_catalogue()


def load_scores(name: str, root: str | Path) -> pd.DataFrame:
    """Load the score table of one data set, whether or not its images are there.

    DMOS is flipped by the readers and nowhere else; ``image`` has the spelling of the disk.

    Args:
        name: One of :data:`DATASETS`.
        root: The set's own folder. For ``table`` it may also be the CSV file itself.

    Returns:
        One row per image, indexed 0..N-1, in the order of the score file: ``image`` (relative to
        root), ``mos`` (the set's own scale, higher is better), ``mos_std`` (same scale, or NaN),
        ``reference`` (the reference image, or the image itself), ``distortion``, ``level``,
        ``split``, then the set's own columns. ``attrs``: dataset, title, scale, kind, demo,
        fingerprint.

    Raises:
        KeyError: If there is no data set of that name.
        FileNotFoundError: If the folder or one of its annotation files is missing.
        ValueError: If a file cannot be read, a column is renamed, a cell holds no number, files
            disagree, a name is there twice (or differs only in case from another), or a score is
            missing or outside the scale. The text names the file.

    Note:
        KonIQ's ``mos`` is the z-score MOS on 0-100; ``mos_raw`` keeps 1-5. LIVE becomes
        111.774694 - realigned DMOS and CSIQ 1 - DMOS.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     scores = pd.DataFrame({"image": ["a.png"], "mos": [1.5]})
        ...     scores.to_csv(Path(folder, "scores.csv"), index=False)
        ...     load_scores("table", folder)["mos"].tolist()
        [1.5]
    """
    files, root = locate(name, Path(root))
    info = DATASETS[name]
    read = getattr(readers, f"read_{name}", readers.read_table)
    raw = read(files).reset_index(drop=True)
    raw = raw.assign(**{column: np.nan for column in COLUMNS if column not in raw})
    where = f"{root}: {', '.join(path.name for path in files.values() if path.name != 'info.txt')}"
    names = _checked_names(raw["image"], where)
    marker = root / DEMO_MARKER
    synthetic = read_mapping(marker) if marker.is_file() else {}
    table = pd.DataFrame({"image": _paths_on_disk(names, root, info.folders)})
    table["mos"] = _checked_scores(raw["mos"], names, info.scale, where)
    told = raw[["image", "mos_std", "level"]]
    table["mos_std"] = numbers(told, ["mos_std"], where, blank=True).astype(float)
    scenes = names.map(synthetic.get("references", {})).astype(object).fillna(table["image"])
    table["reference"] = raw["reference"].astype(object).fillna(scenes)
    table["distortion"] = raw["distortion"].astype(object)
    level = numbers(told, ["level"], where, blank=True, whole=True)
    table["level"] = level.astype("Int64")
    table["split"] = raw["split"].astype(object)
    unknown = sorted(set(table["split"].dropna()) - set(SPLITS))
    if unknown:
        raise ValueError(f"{where}: expected split among {SPLITS}, found {unknown}")
    if (table["mos_std"] < 0).any():
        raise ValueError(f"{where}: expected mos_std >= 0, found {table['mos_std'].min():g}")
    table = pd.concat([table[COLUMNS], raw.drop(columns=COLUMNS)], axis=1)
    scale = info.scale or (float(table["mos"].min()), float(table["mos"].max()))
    table.attrs = {"dataset": name, "title": info.title, "scale": scale, "kind": info.kind}
    table.attrs |= {"demo": marker.is_file(), "fingerprint": fingerprint(files)}
    return table


def check_images(frame: pd.DataFrame, root: str | Path) -> None:
    """Refuse a score table whose images are not all on disk, naming the missing ones."""
    missing = _missing_images(frame, Path(root))
    if missing:
        info = DATASETS.get(frame.attrs.get("dataset", ""))
        hint = f"; get the images from {info.home}" if info else ""
        raise FileNotFoundError(
            f"{root}: expected {len(frame)} images, {len(missing)} are missing: "
            f"{listed(missing)}{hint}"
        )


def check_dataset(name: str, root: str | Path) -> dict[str, object]:
    """Say whether a folder holds a data set whole, with its hashes, rows and statistics."""
    frame = load_scores(name, root)
    files, root = locate(name, Path(root))
    info, demo = DATASETS[name], frame.attrs["demo"]
    whole, told = True, {}
    for path in files.values():
        found, known = hash_file(path)[:16], info.checked.get(path.name)
        verdict = "no copy to compare with" if known is None else "as checked"
        if known not in (None, found):
            verdict = "synthetic" if demo else "differs from the checked copy"
            whole = demo and whole
        told[path.name] = f"{found} ({verdict})"
    missing, mos = _missing_images(frame, root), frame["mos"]
    low, high = frame.attrs["scale"]
    split = ", ".join(f"{k} {n}" for k, n in frame["split"].value_counts().items())
    statistics = {
        "scale": f"{low:g} to {high:g}, higher is better",
        "MOS": f"{mos.min():.4f} to {mos.max():.4f}",
        "mean and SD": f"{mos.mean():.4f}, {mos.std():.4f}",
        "reference images": frame["reference"].nunique(),
        "distortions": frame["distortion"].nunique(),
    }
    statistics |= {"split": split or "none", "demo": demo}
    if mos.nunique() < 2:
        whole = False
        statistics["warning"] = f"{len(mos)} images share one score, so no order can be learned"
    whole = whole and len(frame) == (info.n_images or len(frame)) and not missing
    counts = {"rows": len(frame), "official_rows": info.n_images, "images_missing": missing}
    return {"whole": whole, **counts, "files": told, "statistics": statistics}


def report_lines(name: str, report: dict[str, object]) -> list[str]:
    """Put a report of :func:`check_dataset` into words, one finding per line."""
    official, missing = report["official_rows"], report["images_missing"]
    synthetic = ", synthetic data" if report["statistics"]["demo"] else ""
    against = f" of {official} in the official release" if official else ""
    shown = f": {listed(missing, 5)}" if missing else ""
    return [
        f"{name}: {'whole' if report['whole'] else 'not whole'}{synthetic}",
        f"  scores: {report['rows']}{against}",
        f"  images missing: {len(missing)}{shown}",
        *(f"  {key}: {v}" for key, v in (report["files"] | report["statistics"]).items()),
    ]


def describe(name: str) -> str:
    """Describe a data set in a few lines: what it is, its files, home and terms.

    Example:
        >>> describe("csiq").split(chr(10))[0]
        'csiq: CSIQ, synthetic, 866 images, MOS 0 to 1'
    """
    info = DATASETS[name]
    size = f"{info.n_images:,} images" if info.n_images else "any number of images"
    span = "MOS {:g} to {:g}".format(*info.scale) if info.scale else "MOS on the scale of the file"
    extra = f" ({', '.join(info.optional)} if there)" if info.optional else ""
    lines = [
        f"{name}: {info.title}, {info.kind}, {size}, {span}",
        f"  files   {', '.join(info.files)}{extra}",
        f"  images  {info.folders[0] or 'beside them'}",
        f"  home    {info.home}",
        f"  terms   {info.terms}",
    ]
    if not info.verified:
        lines.append("  note    no official layout could be seen: a CSV with image,mos is read")
    return "\n".join(lines)


def audit(data_root: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return the score tables that can be read below a folder, and why the others cannot."""
    tables, reasons = {}, {}
    for name in DATASETS:
        try:
            tables[name] = load_scores(name, Path(data_root) / name)
        except (FileNotFoundError, ValueError) as error:
            reasons[name] = str(error).replace(f"{data_root}{os.sep}", "")
    return tables, reasons


def locate(name: str, root: Path) -> tuple[dict[str, Path], Path]:
    """Find the annotation files where the official layout has them, or beside the images."""
    if name not in DATASETS:
        raise KeyError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    info = DATASETS[name]
    advice = f"get it from {info.home} (data/README.md)"
    if name == "table" and root.suffix.lower() == ".csv" and root.is_file():
        return {"scores.csv": root}, root.parent
    if not root.is_dir():
        raise FileNotFoundError(
            f"{info.title}: expected a folder {root} with {', '.join(info.files)}, there is none; "
            f"{advice}"
        )
    found = _files_in(root, info)
    missing = [relative for relative in info.files if relative not in found]
    if missing:
        there = sorted(path.name for path in root.iterdir())[:8]
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            if _files_in(folder, info).keys() >= set(missing):
                advice = f"one level down, in {folder}: name that folder, or move its content up"
                break
        raise FileNotFoundError(
            f"{info.title}: expected {', '.join(missing)} in {root}, found {there}; {advice}"
        )
    return found, root


def _files_in(root: Path, info: DatasetInfo) -> dict[str, Path]:
    """Return the annotation files of a set that one folder holds, by their official place."""
    found = {}
    for relative in (*info.files, *info.optional):
        nearby = relative if "info.txt" in relative else PurePosixPath(relative).name
        for path in (root / nearby, root / relative):
            if path.is_file():
                found[relative] = path
    return found


def _checked_names(names: pd.Series, where: str) -> pd.Series:
    """Refuse names that are missing, lead outside, or cannot be told apart."""
    names = names.fillna("").astype(str).str.strip().str.replace("\\", "/").astype(object)
    if (names == "").any():
        raise ValueError(f"{where}: expected a name in every row, found an empty one")
    outside = names[names.str.contains(r"^/|(?:^|/)\.\.(?:/|$)|^\w:|\x00")]
    if len(outside):
        raise ValueError(f"{where}: expected names below the folder, found {outside.iloc[0]!r}")
    twice = names[names.duplicated()]
    if len(twice):
        raise ValueError(
            f"{where}: expected every image once, duplicate {twice.iloc[0]} ({len(twice)} in all)"
        )
    folded = names.str.casefold()
    twice = folded[folded.duplicated()]
    if len(twice):
        pair = names[folded == twice.iloc[0]].tolist()
        raise ValueError(f"{where}: names that differ only in case cannot be told apart: {pair}")
    return names


def _checked_scores(
    mos: pd.Series, names: pd.Series, scale: tuple[float, float] | None, where: str
) -> pd.Series:
    """Refuse scores that are missing or outside the scale (mos is already flipped)."""
    mos = pd.to_numeric(mos, errors="coerce").astype(float)
    absent = names[~np.isfinite(mos)]
    if len(absent):
        raise ValueError(
            f"{where}: expected a finite score for every image, {len(absent)} without, "
            f"first {absent.iloc[0]}"
        )
    low, high = scale or (-np.inf, np.inf)
    slack = 1e-6 * (high - low) if scale else 0.0  # LIVE's published maximum is rounded
    outside = mos[(mos < low - slack) | (mos > high + slack)]
    if len(outside):
        raise ValueError(
            f"{where}: expected scores on [{low:g}, {high:g}] (higher is better), {len(outside)} "
            f"outside, first {names[outside.index[0]]} with {outside.iloc[0]:g}"
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
            break
    else:  # no image is there: names as the first folder would have them
        spelt = {}
        wanted = [f"{folders[0]}/{name}" if folders[0] else name for name in names]
    for i, path in enumerate(wanted):
        there = spelt.get(path.casefold(), [])
        if len(there) > 1 and path not in there:
            raise ValueError(f"{root}: {path} is not there and these differ only in case: {there}")
        wanted[i] = path if path in there or not there else there[0]
    return wanted


def _missing_images(frame: pd.DataFrame, root: Path) -> list[str]:
    return [image for image in frame["image"] if not (root / image).is_file()]


def fingerprint(files: dict[str, Path]) -> str:
    """Hash the annotation files together, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(files.values(), key=lambda path: path.name):
        digest.update(f"{path.name}:{hash_file(path)}\n".encode())
    return digest.hexdigest()
