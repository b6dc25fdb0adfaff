"""Write files whole or not at all, lock and hash them, read names and values, find images."""

import functools
import hashlib
import json
import os
import re
import reprlib
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "MPO")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".mpo")
OTHER_ENDINGS = (".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".jxl")  # told, never read


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path, of the same ending, whose file takes the place of `path` at the end.

    A reader sees the old file or the new one, never half of it, also after a power cut; an error
    leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers that share a disk have the same process numbers
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut, as far as its disk can."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network disks cannot
        os.fsync(handle)
    os.close(handle)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` at the end; its callers hold a lock."""
    path = Path(path)
    partial = path.with_name(f".making-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def lock(path: str | Path) -> FileLock:
    """Return a lock on a file, for `with`; the file stays, the lock ends with its process."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all, ``results`` one on a line; NaN is refused."""
    plain = functools.partial(json.dumps, allow_nan=False, default=np.generic.item)
    text = plain({k: v for k, v in content.items() if k != "results"}, indent=1)
    if "results" in content:
        rows = ",\n".join(plain(row, separators=(",", ":")) for row in content["results"])
        text = f'{text[:-2]},\n "results": [\n{rows}\n ]\n}}'
    with atomic_write(path) as file:
        file.write_text(text + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file whole, with a checksum behind it that NumPy itself does not read."""
    with atomic_write(path) as partial:
        np.save(partial, array)
        checksum = zlib.crc32(partial.read_bytes())
        with partial.open("ab") as file:
            file.write(checksum.to_bytes(4, "little"))


def load_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Read what :func:`save_array` wrote; None where it is absent, damaged or of another shape.

    None in ``shape`` stands for any length. The caller computes again what is not there.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) < 5 or zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        print(f"{path} is damaged and is made again", flush=True)
        return None
    array = np.load(path, allow_pickle=False)
    fits = array.ndim == len(shape)
    fits = fits and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    return array if fits else None


def sweep(folder: Path) -> None:
    """Delete what killed processes left in a cache and nobody has touched for a day.

    That is half-written files (``.PID-HEX-NAME``), and the activations of a Gram pass
    (``pass-KEY``), which a rerun within the day still goes on from. What a process holds the lock
    of stays.
    """
    for path in folder.iterdir():
        if not re.match(r"pass-[0-9a-f]+$|\.\d+-", path.name):
            continue
        try:
            times = [p.lstat().st_mtime for p in (path, *path.rglob("*"))]
        except FileNotFoundError:  # its process is alive and has just put it in its place
            continue
        if time.time() - max(times) > 86400:
            with suppress(Timeout), lock(path.with_suffix(".lock")).acquire(timeout=0):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read names and values from a JSON or YAML file; an error names the file and what it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, damaged, gives a name twice, or holds something other than
            names and values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        is_json = path.suffix == ".json"
        content = json.loads(text, object_pairs_hook=_once) if is_json else yaml.load(text, _Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind, reason = path.suffix[1:].upper(), " ".join(str(error).split())
        raise ValueError(f"{path}: expected {kind} with names and values: {reason}") from error
    is_empty = not content and not (content == {} and path.suffix == ".json")
    if is_empty or not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        shown = content if isinstance(content, str) else _SHORT.repr(content)
        found = "nothing" if is_empty else f"{type(content).__name__} {shown[:60]!r}"
        raise ValueError(f"{path}: expected names and values, found {found}")
    return content


_SHORT = reprlib.Repr()  # YAML's references can stand for more text than a memory holds
_SHORT.maxlevel = 2


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping of names and values; a name that is there twice is refused."""
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"{name} is there twice")
        mapping[name] = value
    return mapping


class _Loader(yaml.SafeLoader):
    """Refuse a name that is there twice, where YAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _once([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
        return super().construct_mapping(node, deep=deep)


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder in the place of another, which a reader sees until then.

    A kill between the two renames leaves nothing there: :func:`restore_folder` then helps.
    """
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    sync_folder(old.parent)
    shutil.rmtree(aside, ignore_errors=True)


def restore_folder(aside: Path) -> Path:
    """Bring ``.NAME.old`` back where a kill left no NAME; return the folder that now is there."""
    folder = aside.with_name(aside.name[1:].removesuffix(".old"))
    if aside.is_dir() and not folder.exists():
        with suppress(Timeout, OSError), lock(aside.with_suffix(".lock")).acquire(timeout=0):
            return aside.rename(folder)  # its writer is gone: the lock was free
    return aside


def listed(items: Sequence[str], most: int = 20) -> str:
    """Join up to 20 items for a message and count the rest."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


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
