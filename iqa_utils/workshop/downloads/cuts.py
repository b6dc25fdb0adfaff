"""Cut a small set out of the full BIQ2021, the one that our real results are shown on.

`data/splits/biq2021-mini.csv` names its 2,000 images and their parts; all of them come from the
official training part. Scores are taken from the official files, line by line, so that the cut is
the same for everybody who has the public set.
"""

import csv
import os
import shutil
from pathlib import Path

from iqa_utils.images.decode_once import listed

_NAMES = Path(__file__).resolve().parents[3] / "data" / "splits" / "biq2021-mini.csv"
PARTS = {"training": "Train (Images and MOS).csv", "test": "Test (Images and MOS).csv"}


def cut_biq2021(root: str | Path, out: str | Path, *, names: Path | None = None) -> dict[str, int]:
    """Write the small set in the official layout.

    Args:
        root: Folder of the full BIQ2021, with its two score files and `Images`.
        out: Folder of the small set; made if it is missing. Images are hard links where the file
            system can, copies otherwise.
        names: Table with the columns `image` and `part`; the project's own without.

    Returns:
        Images in each part.

    Raises:
        FileNotFoundError: If a score file or the folder of images is missing; names them.
        ValueError: If `out` is `root`, or images are missing from the full set; names them.
    """
    root, out = Path(root), Path(out)
    if out.resolve() == root.resolve():
        raise ValueError(f"expected another folder than the full set's, found {out}")
    with (names or _NAMES).open(newline="") as file:
        wanted = list(csv.DictReader(file))
    absent = [name for name in (*PARTS.values(), "Images") if not (root / name).exists()]
    if absent:
        raise FileNotFoundError(
            f"BIQ2021: expected {', '.join(absent)} in {root}, found nothing of that name; "
            f"get it with: iqa data download biq2021 {root}"
        )
    lines: dict[str, bytes] = {}
    headers: dict[str, bytes] = {}
    for part, file_name in PARTS.items():
        headers[part], *rows = (root / file_name).read_bytes().splitlines(keepends=True)
        lines |= {row.decode().split(",")[0].strip().lower(): row for row in rows}
    on_disk = {path.name.lower(): path for path in (root / "Images").iterdir()}
    keys = [row["image"].lower() for row in wanted]
    missing = [key for key in keys if key not in lines or key not in on_disk]
    if missing:
        raise ValueError(f"{root}: {len(missing)} images have no file or score: {listed(missing)}")
    (out / "Images").mkdir(parents=True, exist_ok=True)
    counts = {}
    for key in keys:
        _link(on_disk[key], out / "Images" / on_disk[key].name)
    for part, file_name in PARTS.items():
        chosen = [key for key, row in zip(keys, wanted, strict=True) if row["part"] == part]
        counts[part] = len(chosen)
        # the two official files differ in stray commas: each line takes the form of its new file
        commas = headers[part].count(b",")
        rows = [_with_commas(lines[key], commas) for key in chosen]
        (out / file_name).write_bytes(b"".join([headers[part], *rows]))
    return counts


def _with_commas(line: bytes, commas: int) -> bytes:
    text = line.rstrip(b"\r\n")
    ending = line[len(text) :] or b"\n"
    fields = text.split(b",")[:2]
    return b",".join(fields) + b"," * (commas - 1) + ending


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
