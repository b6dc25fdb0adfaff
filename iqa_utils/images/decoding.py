"""Read one image file as 8-bit RGB, by rules that are stated and never silent.

Accepted files are JPEG, PNG, BMP, TIFF and MPO. What does not map onto 8-bit RGB in one obvious
way is refused by name, because a quality model must not be fed pixels that nobody decided on.

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
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "MPO")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".mpo")
OTHER_ENDINGS = (".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".jxl")  # told, never read
MEGAPIXELS = float(os.environ.get("IQA_MAX_MEGAPIXELS", 64))  # a decoded pixel takes 4 bytes
if Image.MAX_IMAGE_PIXELS is not None and MEGAPIXELS * 1e6 > Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = int(MEGAPIXELS * 1e6)  # else Pillow's own limit would be met first
_EXACT_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


class BadImageError(ValueError):
    """An image that cannot be read by the stated rules; the message names the file."""


def walk_images(folder: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the images below a folder by name, and what looks like one but is not read.

    Yields:
        Path below the folder with ``/``, in the order of these names, and an empty text, or the
        reason: a format that is not read, a link to nothing, a folder of such a name or behind a
        link. One folder's names are in memory at a time.
    """
    with os.scandir(folder) as entries:
        marks = sorted(_marked(entry) for entry in entries)
    for mark in marks:
        name = mark.rstrip("/\0")
        is_image = name.lower().endswith(ENDINGS)
        if mark.endswith("/"):
            if is_image:
                yield prefix + name, "a folder"
            yield from walk_images(folder / name, prefix + mark)
        elif mark.endswith("\0") and (folder / name).is_dir():
            yield prefix + name, "a folder behind a link, which is not followed"
        elif mark.endswith("\0"):
            if is_image:
                yield prefix + name, "a link to nothing, or no ordinary file"
        elif is_image:
            yield prefix + name, ""
        elif name.lower().endswith(OTHER_ENDINGS):
            yield prefix + name, f"a format that is not read ({', '.join(FORMATS)} are)"


def _marked(entry: os.DirEntry[str]) -> str:
    """Return a name with a mark behind it: a slash for a folder, a zero for what is no file."""
    if entry.is_dir(follow_symlinks=False):
        return entry.name + "/"
    return entry.name if entry.is_file() else entry.name + "\0"


def find_images(paths: Iterable[str | Path]) -> dict[Path, str]:
    """Find image files, each once, and what looks like one but is not read.

    Args:
        paths: Files, taken whatever their ending, and folders, searched to any depth.

    Returns:
        Path to an empty text, or to the reason of :func:`walk_images`, in the order of names.

    Raises:
        FileNotFoundError: If a path does not exist, or none of them holds an image.
    """
    found: dict[Path, str] = {}
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"nothing at {path}")
        inside = walk_images(path) if path.is_dir() else [("", "")]
        found.update((path / name, why) for name, why in inside)
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(ENDINGS)}) in {', '.join(map(str, given))}")
    return found


def read_image(path: Path) -> Image.Image:
    """Decode a file to an upright 8-bit RGB image.

    Raises:
        BadImageError: If the file is truncated, corrupt, or outside the rules of this module.

    Note:
        The entropy-coded part of a JPEG carries no checksum: a flipped bit there changes pixels
        unnoticed, in every decoder.
    """
    return decode_image(path.read_bytes(), str(path))


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
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f"{name}: truncated or corrupt ({error})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width after the EXIF orientation, from the header alone."""
    with path.open("rb") as file:
        image = _open(file, str(path))
        try:
            # Pillow reports the size of a TIFF already turned
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise BadImageError(f"{path}: corrupt header ({error})") from error
    return image.size if turned else image.size[::-1]


def _open(source: bytes | io.BufferedReader, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImageError(f"{name}: not an image, or its header is corrupt") from error
    if image.format not in FORMATS:
        raise BadImageError(f"{name}: expected one of {', '.join(FORMATS)}, found {image.format}")
    if image.width * image.height > MEGAPIXELS * 1e6:
        raise BadImageError(
            f"{name}: {image.width}x{image.height} pixels are more than {MEGAPIXELS:g} million; "
            "set IQA_MAX_MEGAPIXELS to read it"
        )
    frames = getattr(image, "n_frames", 1)
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
