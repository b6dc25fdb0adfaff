"""What a run keeps on the disk: its decoded images, and which of them are there already.

:mod:`iqa_utils.workshop.jobs` and :mod:`iqa_utils.workshop.plan` both count with it. Nothing here
imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from iqa_utils.files import read_mapping

Values = Mapping[str, Any]
Tables = Mapping[str, pd.DataFrame]


class Disk(NamedTuple):
    """Bytes that a run keeps, or needs for a moment only."""

    name: str
    size: int
    kept: bool = True


def fits(stem: str, values: Values) -> list[Any]:
    """List the sizes that a notebook decodes images to.

    A size is (height, width), the longest shorter side, or None for native.
    """
    known: dict[str, Callable[[], list[Any]]] = {
        "02": lambda: [tuple(values["SIZE"]), *map(tuple, values["RESOLUTIONS"])],
        "03": lambda: [
            *([(values["SIZE"],) * 2] if values["FROZEN_TRUNK"] else values["SIDES"]),
            *([tuple(values["KONCEPT_SIZE"])] if "KonCept512" in values["METHODS"] else []),
        ],
        "04": lambda: [None, *[(side, side) for side in [values["TAP_SIZE"]] if side]],
        "05": lambda: [(values["IMAGE_SIZE"],) * 2],
        "06": lambda: [tuple(values["TEACHER_SIZE"]), values["CROP"][0]],
    }
    return list(dict.fromkeys(known.get(stem[:2], list)()))


def stores(stem: str, values: Values, tables: Tables) -> dict[str, int]:
    """Return the bytes of the decoded images by how they are fitted; a set is of one size here."""
    found = {}
    for fit in fits(stem, values):
        label = f"shorter side {fit}" if fit else "native size"
        label = "{1}x{0}".format(*fit) if isinstance(fit, tuple) else label
        sizes = [len(table) * stored_bytes(table.attrs["pixels"], fit) for table in tables.values()]
        found[f"decoded, {label}"] = sum(sizes)
    if n := n_unlabelled(stem, values):
        found["decoded, unlabelled crops"] = n * 3 * math.prod(values["CROP"])
    return found


def n_unlabelled(stem: str, values: Values) -> int:
    """Count the unlabelled images that notebook 06 keeps decoded."""
    keeps = stem[:2] == "06" and not values["STREAM"]
    return values["N_KEPT"] + values["N_UNLABELLED"][-1] if keeps else 0


def stored_bytes(pixels: tuple[int, int], fit: Any) -> int:
    """Return the bytes of one decoded image: (height, width), a longest shorter side, or native."""
    if isinstance(fit, tuple):
        return 3 * math.prod(fit)
    short = min(pixels)
    side = min(fit or short, short)
    return 3 * math.prod(length * side // short for length in pixels)


def decoded_before(stem: str, values: Values, tables: Tables, folder: Path) -> int:
    """Add up what the stores in ``folder`` hold of the images of a run at the sizes it wants.

    A store is the run's if it has the images of one of its sets, or of all, in their order, and
    sizes that fit; an unfinished one counts with what it has written.
    """
    joined = [f"{name}/{image}" for name, table in tables.items() for image in table["image"]]
    lists = [(table["image"].tolist(), table.attrs["pixels"]) for table in tables.values()]
    lists.append((joined, max((pixels for _, pixels in lists), key=min, default=(0, 0))))
    wanted = [(names, pixels, fit) for names, pixels in lists for fit in fits(stem, values)]
    n_crops, total = n_unlabelled(stem, values), 0
    for index in folder.glob("*/index.json"):
        try:
            store = read_mapping(index)
            names, sizes = store["names"], np.asarray(store["sizes"])
            pixels_file = (index.parent / "pixels.bin").stat()
        except (OSError, ValueError, KeyError):
            continue  # torn: made again, and counted as absent
        size = min(pixels_file.st_size, 512 * pixels_file.st_blocks)
        own = [one for one in wanted if one[0] == names and _is_fitted(sizes, *one[1:])]
        if own:
            wanted.remove(own[0])  # two sizes may come to the same pixels
            total += size
        elif n_crops and len(names) >= n_crops and _is_fitted(sizes, (0, 0), (*values["CROP"],)):
            total, n_crops = total + size, 0
    return total


def _is_fitted(sizes: np.ndarray, pixels: tuple[int, int], fit: Any) -> bool:
    if isinstance(fit, tuple):
        return bool((sizes == fit).all())
    short, largest = min(pixels), int(sizes.min(axis=1).max())
    return largest >= short if fit is None else largest in (fit, min(fit, short))


def folder_bytes(folder: Path) -> int:
    """Add up the files below a folder, which may be absent; one with several names counts once."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
