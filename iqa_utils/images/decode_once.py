"""Fill the folder of an image store so that it survives kills, twins, full disks and damage.

Each image is written to its own place in one file of pixels, then its checksum to a second file.
What carries the right checksum is done; a build that died is therefore finished, never trusted, and
a store whose files changed since they were checked is mended. The folder gets its final name only
when everything is in it.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from iqa_utils.files import atomic_write, lock, read_mapping, sync_folder
from iqa_utils.images.decoding import BadImageError, image_size, read_image

RESAMPLERS = {method.name.lower(): method for method in Image.Resampling}
SIZE_NUMBERS = {
    "squash": 2,
    "center_crop": 2,
    "short_side": 1,
    "shrink_short_side": 1,
    "native": 0,
}
MOST_SIDE = 8192  # px; a file that asks for more is refused before anything is resized
FILES = ("pixels.bin", "sums.bin", "index.json")
_RULES = 1  # of decoding.py: raise it when a rule changes, and every store is built anew
_WORKERS = min(16, getattr(os, "process_cpu_count", os.cpu_count)() or 1)


@dataclass(frozen=True)
class Fit:
    """How a decoded image is brought to its size; the arguments are those of `build_store`."""

    size: tuple[int, int] | int | None
    kind: str
    resampler: str

    def __post_init__(self) -> None:
        for what, value, known in (
            ("fit", self.kind, SIZE_NUMBERS),
            ("resampler", self.resampler, RESAMPLERS),
        ):
            if value not in known:
                raise ValueError(f"{what}: expected one of {', '.join(known)}, found {value!r}")
        numbers = [] if self.size is None else np.atleast_1d(self.size).tolist()
        wanted = SIZE_NUMBERS[self.kind]
        if len(numbers) != wanted or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(
                f"size: fit {self.kind!r} takes {wanted} positive integers, found {self.size!r}"
            )
        if max(numbers, default=0) > MOST_SIDE:
            raise ValueError(f"size: at most {MOST_SIDE} px a side, found {self.size!r}")
        if wanted:  # Python's own integers, whatever came in
            object.__setattr__(self, "size", tuple(numbers) if wanted == 2 else numbers[0])

    @property
    def resamples(self) -> bool:
        """Whether the resampler has a say in the pixels."""
        return self.kind not in ("center_crop", "native")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the result for an image of this height and width."""
        short = min(height, width)
        if SIZE_NUMBERS[self.kind] == 2:
            return self.size
        if self.kind == "native" or (self.kind == "shrink_short_side" and short <= self.size):
            return height, width
        return height * self.size // short, width * self.size // short

    def apply(self, image: Image.Image) -> np.ndarray:
        """Return the fitted image, uint8, shape (height, width, 3)."""
        height, width = self.target(image.height, image.width)
        if self.resamples:
            image = image.resize((width, height), RESAMPLERS[self.resampler])
        top, left = (image.height - height) // 2, (image.width - width) // 2
        if top < 0 or left < 0:
            found = f"{image.height}x{image.width}"
            raise BadImageError(f"expected at least {height}x{width} to crop, found {found}")
        return np.ascontiguousarray(np.asarray(image)[top : top + height, left : left + width])


def finished_folder(
    root: Path, names: Sequence[str], store_dir: Path, fit: Fit, *, progress: bool
) -> Path:
    """Return the folder of this store, filled by this process or by whoever came first."""
    digests = hash_files(root, names, store_dir)
    treatment = [fit.kind, fit.size, fit.resampler if fit.resamples else None]
    recipe = json.dumps([_RULES, treatment, list(names), digests])
    folder = store_dir / hashlib.blake2b(recipe.encode(), digest_size=20).hexdigest()
    with lock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            _fill(partial, root, names, fit, progress=progress)
            partial.rename(folder)
            sync_folder(store_dir)
        elif _note(folder / "checked.json") != _stamps(folder):
            damaged = _fill(folder, root, names, fit, progress=progress)
            if damaged:
                print(f"{folder}: {damaged} damaged images are decoded again", flush=True)
    return folder


def _note(path: Path) -> Any:
    """Read a note that can be made again; None where it is absent or torn."""
    try:
        return read_mapping(path)
    except (FileNotFoundError, ValueError):
        return None


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return length and time of the files of a store, which tell whether they have changed."""
    stats = {name: (folder / name).stat() for name in FILES if (folder / name).is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def hash_files(root: Path, names: Sequence[str], store_dir: Path) -> list[str]:
    """Hash the bytes of N different files; only those whose time or length changed are read again.

    Args:
        root: Folder that the names are relative to.
        names: Files.
        store_dir: Where the hashes are remembered.
    """
    if not names:
        raise ValueError("expected image names, found none")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"expected different image names, found more than once: {listed(twice)}")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(names)}"
        raise FileNotFoundError(f"{root}: {count} images missing: {listed(missing)}")
    where = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    memory = store_dir / f"files-{where}.json"
    known = _note(memory) or {}

    def entry(name: str) -> list:
        stat = (root / name).stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if name in known and known[name][:2] == stamp:
            return known[name]
        return [*stamp, hashlib.blake2b((root / name).read_bytes(), digest_size=16).hexdigest()]

    with ThreadPoolExecutor(_WORKERS) as pool:
        entries = dict(zip(names, pool.map(entry, names), strict=True))
    if any(known.get(name) != value for name, value in entries.items()):
        with atomic_write(memory) as partial:
            partial.write_text(json.dumps(known | entries))
    return [entries[name][2] for name in names]


def _fill(folder: Path, root: Path, names: Sequence[str], fit: Fit, *, progress: bool) -> int:
    """Decode what a folder lacks or holds damaged, write its index; return how many it decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[int, str] = {}

    def measure(row: int) -> tuple[int, int]:
        try:
            if SIZE_NUMBERS[fit.kind] == 2:
                return fit.size
            return fit.target(*image_size(root / names[row]))
        except BadImageError as error:
            reasons[row] = str(error)
            return 0, 0

    def decode(row: int) -> bool:
        start, length = int(starts[row]), int(lengths[row])
        recorded = int.from_bytes(os.pread(sums, 8, 8 * row), "little")
        if recorded and recorded == _checksum(os.pread(pixels, length, start)):
            return False
        try:
            array = fit.apply(read_image(root / names[row]))
            if array.shape[:2] != tuple(sizes[row]):
                raise BadImageError(f"header says {sizes[row]}, pixels are {array.shape[:2]}")
        except BadImageError as error:
            reasons[row] = str(error)
            return False
        _write(pixels, memoryview(array).cast("B"), start)
        _write(sums, _checksum(array).to_bytes(8, "little"), 8 * row)
        return True

    with ThreadPoolExecutor(_WORKERS) as pool:
        sizes = list(pool.map(measure, range(len(names))))
        lengths = [height * width * 3 for height, width in sizes]
        *starts, total = np.cumsum([0, *lengths]).tolist()
        _refuse_small_disk(folder, total)
        with _opened(folder / "pixels.bin") as pixels, _opened(folder / "sums.bin") as sums:
            os.ftruncate(pixels, total)
            os.ftruncate(sums, 8 * len(names))
            rows = [row for row in range(len(names)) if row not in reasons]
            bar = {"desc": "decode", "unit": "image", "disable": None if progress else True}
            decoded = sum(tqdm(pool.map(decode, rows), total=len(rows), **bar))
            os.fsync(pixels)
            os.fsync(sums)
    if reasons:
        lines = [
            f"{names[row]} ({reasons[row].removeprefix(f'{root / names[row]}: ')})"
            for row in sorted(reasons)
        ]
        raise BadImageError(f"{len(lines)} of {len(names)} images unreadable: {listed(lines)}")
    index = {
        "pillow": PIL.__version__,
        "fit": [fit.kind, fit.size, fit.resampler],
        "bytes": total,
        "names": list(names),
        "sizes": sizes,
        "starts": starts,
    }
    with atomic_write(folder / "index.json") as partial:
        partial.write_text(json.dumps(index))
    with atomic_write(folder / "checked.json") as partial:
        partial.write_text(json.dumps(_stamps(folder)))
    return decoded


def listed(items: Sequence[str], most: int = 20) -> str:
    """Join up to 20 items for a message and count the rest."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _checksum(pixels: bytes | np.ndarray) -> int:
    return zlib.crc32(pixels) + 1  # never 0, which stands for "not yet"


def _refuse_small_disk(folder: Path, total: int) -> None:
    file = folder / "pixels.bin"
    held = file.stat().st_blocks * 512 if file.exists() else 0
    free = shutil.disk_usage(folder).free
    if total - held > free:
        raise OSError(f"{folder}: the store takes {total:,} bytes, the disk has {free:,} free")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes | memoryview, start: int) -> None:
    # not through a map: there a full disk is a killed process instead of an error
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written
