"""Find image files in folders, and what only looks like one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "MPO")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".mpo")
OTHER_ENDINGS = (".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".jxl")  # told, never read


def walk_images(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the images below a folder in the order of their names, each with an empty text.

    What only looks like one (another format, a link to nothing, a folder of such a name), and a
    folder that cannot be opened, come with the reason why they are not read. One folder's names are
    read at a time.
    """
    waiting = [("/", "")]  # the next one last; a folder's name ends with a slash
    while waiting:
        mark, kind = waiting.pop()
        name = mark.strip("/")
        is_image = name.lower().endswith(ENDINGS)
        if mark.endswith("/"):
            if is_image:
                yield name, "a folder"
            try:
                waiting += reversed(_names_in(folder / name, mark.lstrip("/")))
            except OSError as error:  # also a path that is longer than the system takes
                yield name, f"a folder that cannot be read ({error.strerror})"
        elif kind == "folder":
            yield name, "a folder behind a link, which is not followed"
        elif is_image:
            yield name, "" if kind else "a link to nothing, or no ordinary file"
        elif kind and name.lower().endswith(OTHER_ENDINGS):
            yield name, f"a format that is not read ({', '.join(FORMATS)} are)"


def _names_in(folder: Path, prefix: str) -> list[tuple[str, str]]:
    """List a folder in order, folders with a slash, and what is there or behind a link."""
    found = []
    with os.scandir(folder) as entries:  # a folder sorts as its files do, by its name and a slash
        for entry in entries:
            try:
                kind = "file" if entry.is_file() else "folder" if entry.is_dir() else ""
            except OSError:  # a link to itself
                kind = ""
            slash = "/" * entry.is_dir(follow_symlinks=False)
            found.append((f"{prefix}{entry.name}{slash}", kind))
    return sorted(found)


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
        found |= {path / name: why for name, why in inside}
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(ENDINGS)}) in {', '.join(map(str, given))}")
    return found
