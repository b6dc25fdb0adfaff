"""Write files whole or not at all, lock them, hash them, and read names and values."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` at the end, and goes on an error.

    A reader sees the old file or the new one, never half of it, also after a power cut.

    Args:
        path: Target; its folder is made. The temporary name keeps its ending.

    Yields:
        Path to write to, in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    """Return a lock on a file, for `with`; it ends with its process, however that ends.

    Args:
        path: Lock file; its folder is made. It stays when the lock is released.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read names and values from a JSON or YAML file; an error names the file and what it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, damaged, or holds something other than names and values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        kind, reason = path.suffix[1:].upper(), " ".join(str(error).split())
        raise ValueError(f"{path}: expected {kind} with names and values: {reason}") from error
    if content == {} and path.suffix == ".json":
        return content
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        found = "nothing" if not content else f"{type(content).__name__} {str(content)[:60]!r}"
        raise ValueError(f"{path}: expected names and values, found {found}")
    return content


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
