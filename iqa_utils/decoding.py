"""Read image files as 8-bit RGB, by rules that are stated and never silent; fill stores of them.

Accepted files are JPEG, PNG, BMP, TIFF and MPO. What does not map onto 8-bit RGB in one obvious
way is refused by name, because a quality model must not be fed pixels whose conversion is
undefined.

============================ ===================================================================
input                        rule
============================ ===================================================================
grey, 1-bit, palette         expanded to three channels, exactly
CMYK, YCbCr                  Pillow's conversion; embedded colour profiles are ignored
16 bits per channel          the high byte is kept (grey in the same way as colour)
alpha                        dropped where every pixel is opaque, refused otherwise
EXIF orientation             applied: pixels stand as a viewer sees them
MPO (stereo, depth)          first picture
several pages or animation   refused
32-bit, float, Lab           refused
truncated, failing checksum  refused
more than 64 megapixels      refused before it is decoded; set IQA_MAX_MEGAPIXELS for another limit
============================ ===================================================================

The folder of a store survives kills, twins, full disks and damage: each image is written to its own
place in one file of pixels, then its checksum to a second file. What carries the right checksum is
done; a build that died is finished, never trusted, and a store whose files changed since they were
checked is mended. The folder gets its final name only when everything is in it.
"""

import hashlib
import io
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from iqa_utils.files import FORMATS, atomic_write, listed, lock, read_mapping, sync_folder


def _limit(text: str) -> float:
    """Read IQA_MAX_MEGAPIXELS."""
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ValueError(f"IQA_MAX_MEGAPIXELS: expected a number above 0, found {text!r}")
    return limit


MEGAPIXELS = _limit(os.environ.get("IQA_MAX_MEGAPIXELS", "64"))  # a decoded pixel takes 4 bytes
if Image.MAX_IMAGE_PIXELS is not None and MEGAPIXELS * 1e6 > Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = int(MEGAPIXELS * 1e6)  # else Pillow's own limit would be met first
_EXACT_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112
RESAMPLERS = {method.name.lower(): method for method in Image.Resampling}
N_SIZES = {"squash": 2, "center_crop": 2, "short_side": 1, "shrink_short_side": 1, "native": 0}
MOST_SIDE = 8192  # px; a file that asks for more is refused before anything is resized
FILES = ("pixels.bin", "sums.bin", "index.json")  # of a store
_RULES = 1  # of this module: raise it when a rule changes, and every store is built anew
_WORKERS = min(16, getattr(os, "process_cpu_count", os.cpu_count)() or 1)
# what Pillow raises where the bytes of a file are hostile
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError)
_UNREADABLE += (LookupError, ArithmeticError, struct.error, zlib.error)
_MOST_BYTES = 8, 1 << 26  # of a file: a pixel of 4 x 16 bits that is not compressed, and the rest


class BadImageError(ValueError):
    """An image that cannot be read by the stated rules; the message names the file."""


def read_image(path: Path) -> Image.Image:
    """Decode a file to an upright 8-bit RGB image.

    Raises:
        BadImageError: If the file is truncated, corrupt, or outside the rules of this module.

    Note:
        The entropy-coded part of a JPEG carries no checksum: a flipped bit there changes pixels
        unnoticed, in every decoder.
    """
    a_pixel, more = _MOST_BYTES
    size, most = path.stat().st_size, int(MEGAPIXELS * 1e6 * a_pixel) + more
    if size > most:
        raise BadImageError(
            f"{path}: {size:,} bytes are more than {MEGAPIXELS:g} million pixels take ({most:,}); "
            "set IQA_MAX_MEGAPIXELS to read it"
        )
    with _permitted(path):
        data = path.read_bytes()
    return decode_image(data, str(path))


@contextmanager
def _permitted(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of a file, which errors call `name`; `read_image` without the disk."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise BadImageError(
            f"{name}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so a truncated image would pass "
            "as a whole one; unset it"
        )
    image = _open(data, name)
    try:
        if image.format == "PNG":  # Pillow checks the sums of the pixel chunks only here
            Image.open(io.BytesIO(data)).verify()
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, name)
    except BadImageError:
        raise
    except _UNREADABLE as error:
        raise BadImageError(f"{name}: truncated or corrupt ({error})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width after the EXIF orientation, from the header alone."""
    with _permitted(path), path.open("rb") as file:
        image = _open(file, str(path))
        try:
            # Pillow reports the size of a TIFF already turned
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
        except _UNREADABLE as error:
            raise BadImageError(f"{path}: corrupt header ({error})") from error
    return image.size if turned else image.size[::-1]


def _open(source: bytes | io.BufferedReader, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"{name}: {error}") from error
    except _UNREADABLE as error:
        raise BadImageError(f"{name}: not an image, or its header is corrupt") from error
    if image.format not in FORMATS:
        raise BadImageError(f"{name}: expected one of {', '.join(FORMATS)}, found {image.format}")
    if image.width * image.height > MEGAPIXELS * 1e6:
        raise BadImageError(
            f"{name}: {image.width}x{image.height} pixels are more than {MEGAPIXELS:g} million; "
            "set IQA_MAX_MEGAPIXELS to read it"
        )
    try:
        frames = getattr(image, "n_frames", 1)
    except _UNREADABLE as error:
        raise BadImageError(f"{name}: corrupt header ({error})") from error
    if frames > 1 and image.format != "MPO":
        raise BadImageError(f"{name}: expected one picture, found {frames} pages or frames")
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _DEEP_GREY and not image.has_transparency_data:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        if lowest < 255:
            raise BadImageError(
                f"{name}: expected opaque pixels, found alpha down to {lowest} of 255; composite "
                "it on the background that the viewers saw"
            )
    elif image.mode not in _EXACT_MODES:
        raise BadImageError(f"{name}: no rule turns mode {image.mode!r} into 8-bit RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Fit:
    """How a decoded image is brought to its size; the arguments are those of `build_store`."""

    size: tuple[int, int] | int | None
    kind: str
    resampler: str

    def __post_init__(self) -> None:
        if self.kind not in N_SIZES:
            raise ValueError(f"fit: expected one of {', '.join(N_SIZES)}, found {self.kind!r}")
        if self.resampler not in RESAMPLERS:
            known = ", ".join(RESAMPLERS)
            raise ValueError(f"resampler: expected one of {known}, found {self.resampler!r}")
        numbers = [] if self.size is None else np.atleast_1d(self.size).tolist()
        wanted = N_SIZES[self.kind]
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
        if N_SIZES[self.kind] == 2:
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
    """Hash the bytes of different files; only what changed since the last call is read again."""
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
        with (root / name).open("rb") as file:  # in pieces, whatever its size
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return [*stamp, digest.hexdigest()]

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
            fixed = N_SIZES[fit.kind] == 2
            return fit.size if fixed else fit.target(*image_size(root / names[row]))
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
        _write(sums, memoryview(_checksum(array).to_bytes(8, "little")), 8 * row)
        return True

    with ThreadPoolExecutor(_WORKERS) as pool:
        sizes = list(pool.map(measure, range(len(names))))
        lengths = [height * width * 3 for height, width in sizes]
        *starts, total = np.cumsum([0, *lengths]).tolist()
        paths = folder / "pixels.bin", folder / "sums.bin"
        held = paths[0].stat().st_blocks * 512 if paths[0].exists() else 0
        if total - held > (free := shutil.disk_usage(folder).free):
            raise OSError(f"{folder}: the store takes {total:,} bytes, the disk has {free:,} free")
        for path in paths:
            path.touch()
        with paths[0].open("r+b") as pixel_file, paths[1].open("r+b") as sum_file:
            pixels, sums = pixel_file.fileno(), sum_file.fileno()
            os.ftruncate(pixels, total)
            os.ftruncate(sums, 8 * len(names))
            rows = [row for row in range(len(names)) if row not in reasons]
            bar = {"desc": "decode", "unit": "image", "disable": None if progress else True}
            decoded = sum(tqdm(pool.map(decode, rows), total=len(rows), **bar))
            os.fsync(pixels)
            os.fsync(sums)
    if reasons:
        short = {names[r]: why.removeprefix(f"{root / names[r]}: ") for r, why in reasons.items()}
        lines = [f"{name} ({short[name]})" for name in names if name in short]
        raise BadImageError(f"{len(lines)} of {len(names)} images unreadable: {listed(lines)}")
    index = {"pillow": PIL.__version__, "fit": [fit.kind, fit.size, fit.resampler], "bytes": total}
    index |= {"names": list(names), "sizes": sizes, "starts": starts}
    with atomic_write(folder / "index.json") as partial:
        partial.write_text(json.dumps(index))
    with atomic_write(folder / "checked.json") as partial:
        partial.write_text(json.dumps(_stamps(folder)))
    return decoded


def _checksum(pixels: bytes | np.ndarray) -> int:
    return zlib.crc32(pixels) + 1  # never 0, which stands for "not yet"


def _write(descriptor: int, data: memoryview, start: int) -> None:
    # not through a map: there a full disk is a killed process instead of an error
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written
