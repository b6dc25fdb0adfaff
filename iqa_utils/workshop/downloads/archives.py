"""Unpack an archive that somebody else made without letting it reach beyond its folder.

Every entry is checked before a byte is written. Files appear under their names only when the
whole archive has been read and its checksums hold.
"""

import filecmp
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

MOST_EXPANSION = 50  # times the archive; photographs barely shrink, tables tenfold
_ALWAYS_ALLOWED = 100 * 2**20  # bytes


class ArchiveError(ValueError):
    """An archive that is broken or not safe to unpack; the message names the entry."""


def extract_zip(archive: Path, root: Path, *, strip: str = "") -> int:
    """Unpack a zip archive into a folder.

    Args:
        archive: The zip file.
        root: Folder that receives the files; made if it is missing.
        strip: Leading folder that is cut from every name; entries outside of it are refused.

    Returns:
        Files unpacked.

    Raises:
        ArchiveError: If the archive is damaged or encrypted, or an entry has an absolute path, a
            `..`, a link, a device, a name twice, or if it expands beyond reason.
        FileExistsError: If another file of that name is there already.
        OSError: If the disk cannot hold the files.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked(opened, archive, strip)
            return _unpack(opened, entries, root, root / ".downloads" / f"{archive.name}.unpacked")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{archive}: damaged, or not a zip archive ({error})") from error


def _checked(
    opened: zipfile.ZipFile, archive: Path, strip: str
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Target -> entry of every file; refuses the archive as a whole."""
    entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
    total = 0
    for info in opened.infolist():
        where = f"{archive}: entry {info.filename!r}"
        path, mode = PurePosixPath(info.filename), info.external_attr >> 16
        kind = stat.S_IFMT(mode)
        if path.is_absolute() or "\\" in info.filename or ":" in info.filename:
            raise ArchiveError(f"{where} has an absolute path, a drive or a foreign separator")
        if ".." in path.parts:
            raise ArchiveError(f"{where} climbs out of its folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"{where} is a link or a device")
        if info.flag_bits & 1:
            raise ArchiveError(f"{where} is encrypted")
        if info.is_dir():
            continue
        if not info.filename.startswith(strip):
            raise ArchiveError(f"{where} is outside of {strip!r}")
        target = PurePosixPath(info.filename.removeprefix(strip))
        if target in entries:
            raise ArchiveError(f"{where} is there twice")
        entries[target] = info
        total += info.file_size
    most = max(MOST_EXPANSION * archive.stat().st_size, _ALWAYS_ALLOWED)
    if total > most:
        raise ArchiveError(f"{archive}: expands to {total:,} bytes, more than {most:,}")
    if not entries:
        raise ArchiveError(f"{archive}: holds no files")
    return entries


def _unpack(
    opened: zipfile.ZipFile, entries: dict[PurePosixPath, zipfile.ZipInfo], root: Path, work: Path
) -> int:
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir(parents=True)
    total, free = sum(info.file_size for info in entries.values()), shutil.disk_usage(work).free
    if total > free:
        raise OSError(f"{root}: the files take {total:,} bytes, the disk has {free:,} free")
    for target, info in entries.items():
        (work / target).parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, (work / target).open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    for target in entries:
        place = root / target
        if place.exists() and not filecmp.cmp(work / target, place, shallow=False):
            raise FileExistsError(f"{place}: there is another file of this name; move it away")
    for target in entries:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (work / target).replace(root / target)
    shutil.rmtree(work)
    return len(entries)
