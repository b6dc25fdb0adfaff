"""Fetch the data sets that are openly served, and say what to do about the others.

Only addresses that public documentation confirms stand here. A download survives what servers do:
it resumes after a stall or a broken connection, starts over when the file has changed meanwhile,
and is trusted only when length and hash are right. Hashes are known where somebody published them.
"""

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from iqa_utils.datasets.catalogue import DATASETS
from iqa_utils.images.decode_once import lock
from iqa_utils.workshop.downloads.archives import ArchiveError, extract_zip

_CHUNK = 1 << 18
_SLOWEST = 1024  # bytes in one timeout; below that a connection counts as stalled


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file that a data set is served as.

    Attributes:
        url: Where it is served.
        target: Its name under the data set's folder, or None for an archive to be unpacked there.
        strip: Folder inside an archive that holds everything, cut from its names.
        size: Length in bytes, where it is known.
        sha256: Hash, where it is known.
    """

    url: str
    target: str | None = None
    strip: str = ""
    size: int | None = None
    sha256: str | None = None


_KONSTANZ = "https://datasets.vqa.mmsp-kn.de/archives"
SOURCES: dict[str, tuple[Source, ...]] = {
    "koniq10k": (
        Source(
            url="https://raw.githubusercontent.com/subpic/koniq/master/metadata/"
            "koniq10k_distributions_sets.csv",
            target="koniq10k_distributions_sets.csv",
            sha256="d0bd1ad54a60bc36fe172049e46ac76c83554e50ab84acebfd47b82b3e698a0a",
        ),
        Source(url=f"{_KONSTANZ}/koniq10k_scores_and_distributions.zip"),
        Source(url=f"{_KONSTANZ}/koniq10k_indicators.zip"),
        Source(url=f"{_KONSTANZ}/koniq10k_512x384.zip"),
        Source(url=f"{_KONSTANZ}/koniq10k_1024x768.zip"),
    ),
    "kadid10k": (
        Source(
            url=f"{_KONSTANZ}/kadid10k.zip",
            strip="kadid10k/",
            size=3_067_408_471,
            sha256="fe59ace86a2525d5785ff011a2119fa88839e0329f5029f7b23994727efd185c",
        ),
    ),
    "biq2021": (
        Source(
            url="https://github.com/nisarahmedrana/BIQ2021/archive/refs/heads/main.zip",
            strip="BIQ2021-main/",
        ),
    ),
}


class DownloadError(OSError):
    """A download that could not be completed or is not what it should be."""


def download(name: str, root: str | Path, *, tell: Callable[[str], None] = print) -> bool:
    """Bring a data set into its official layout, or say how the user can.

    What was fetched and unpacked before is not fetched again; whatever was interrupted goes on.

    Args:
        name: A data set of `catalogue.DATASETS`.
        root: Folder of this data set; made if it is missing.
        tell: Receives each line meant for the user.

    Returns:
        Whether the data set was fetched; False if the user has to act.

    Raises:
        KeyError: If there is no such data set.
        DownloadError: If a server does not deliver what it should.
        ArchiveError: If an archive is not safe to unpack.
    """
    if name not in DATASETS:
        raise KeyError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    root = Path(root)
    tell(f"{DATASETS[name].title}: {DATASETS[name].home}; terms: {DATASETS[name].terms}")
    if name not in SOURCES:
        tell(instructions(name, root))
        return False
    for source in SOURCES[name]:
        _obtain(source, root, tell)
    tell(f"check it with: iqa data check {name} {root}")
    return True


def instructions(name: str, root: str | Path) -> str:
    """Say what the user must do for a set that is not served openly at a confirmed address.

    Args:
        name: A data set of `catalogue.DATASETS`.
        root: Where its files are expected.

    Returns:
        A few lines of text.
    """
    info = DATASETS[name]
    folders = " or ".join(folder or "the folder itself" for folder in info.folders)
    return (
        f"No open address of {info.title} could be confirmed. Get it from {info.home}, unpack it\n"
        f"into {root}, so that it holds {', '.join(info.files)}\n"
        f"and the images in {folders}; then: iqa data check {name} {root}"
    )


def fetch(
    source: Source,
    path: Path,
    *,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Download one file completely or not at all.

    Bytes go to a file beside `path` that is continued by the next call. `path` appears only when
    the length, and the hash if one is known, are right.

    Args:
        source: What to fetch.
        path: Where it goes.
        timeout: Seconds without 1 KiB after which a connection is given up.
        attempts: Connections in a row that may bring nothing new before the download fails.
        pause: Seconds before the next connection, doubled each time nothing came.

    Returns:
        The path.

    Raises:
        DownloadError: If the server refuses, keeps failing, announces another length than the
            known one, or delivers another content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, state = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    failures, problem, resumed, most = 0, "", False, _length(part)
    while failures < attempts:
        try:
            complete, continued = _continue(source, part, state, timeout)
            resumed |= continued
        except _RETRY as error:
            complete, problem = False, str(error) or type(error).__name__
        if complete:
            found = _sha256(part)
            if source.sha256 in (None, found):
                part.replace(path)
                state.unlink(missing_ok=True)
                return path
            part.unlink()
            state.unlink(missing_ok=True)
            problem = f"expected SHA-256 {source.sha256}, found {found}"
            if not resumed:  # else two versions may have been joined: once more, from the start
                break
            resumed, most = False, 0
            continue
        failures = 0 if _length(part) > most else failures + 1
        most = max(most, _length(part))
        time.sleep(pause * 2**failures if failures < attempts else 0)
    raise DownloadError(f"{source.url}: {problem}")


class _Incomplete(Exception):
    """The connection brought less than the whole file."""


_RETRY = (
    _Incomplete,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
    urllib.error.URLError,
    http.client.HTTPException,
)


def _continue(source: Source, part: Path, state: Path, timeout: float) -> tuple[bool, bool]:
    """Fetch what is missing over one connection; say whether all is there, and if it resumed."""
    known = json.loads(state.read_text()) if state.exists() and part.exists() else {}
    done = part.stat().st_size if known.get("validator") and known["url"] == source.url else 0
    if done and done == known.get("total"):
        return True, True
    headers = {"Accept-Encoding": "identity", "User-Agent": "iqa-utils"}
    if done:  # only a server with the very same file may send the rest
        headers |= {"Range": f"bytes={done}-", "If-Range": known["validator"]}
    request = urllib.request.Request(source.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # it has no more bytes than we hold
            part.unlink()
            raise _Incomplete("the server announced more than it has") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Incomplete(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(f"{source.url}: HTTP {error.code} {error.reason}") from error
    with response:
        start, total = _range_of(response)
        if source.url.startswith("https:") and urlsplit(response.url).scheme != "https":
            raise DownloadError(f"{source.url}: redirected to an open connection, {response.url}")
        if source.size is not None and total not in (None, source.size):
            raise DownloadError(
                f"{source.url}: expected {source.size} bytes, the server announces {total}"
            )
        validator = _validator(response)
        if start and (start != done or (validator, total) != (known["validator"], known["total"])):
            part.unlink()
            raise _Incomplete("the file changed between two connections")
        state.write_text(json.dumps({"url": source.url, "validator": validator, "total": total}))
        held = part.stat().st_blocks * 512 if start else 0
        free = shutil.disk_usage(part.parent).free
        if (total or 0) - held > free:
            raise DownloadError(f"{part}: the file takes {total:,} bytes, the disk has {free:,}")
        _receive(response, part, start, total, source.size, timeout)
    return True, bool(start)


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    most: int | None,
    timeout: float,
) -> None:
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, desc=part.stem)
    done, mark, since = start, start, time.monotonic()
    with part.open("r+b" if start else "wb") as file, bar:
        file.seek(start)
        while chunk := response.read1(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
            if most is not None and done > most:
                raise DownloadError(f"{response.url}: expected {most} bytes, the server sent more")
            if time.monotonic() - since > timeout:
                if done - mark < _SLOWEST:
                    raise _Incomplete(f"stalled: {done - mark} bytes in {timeout:g} s")
                mark, since = done, time.monotonic()
    wanted = total if total is not None else most
    if wanted is not None and done < wanted:
        raise _Incomplete(f"the server announced {wanted} bytes and ended after {done}")


def _range_of(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte that this response sends, and the length of the whole file if announced."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return 0, int(length) if length and length.isdecimal() else None
    try:
        unit, numbers = response.headers["Content-Range"].split()
        span, total = numbers.split("/")
        first, last = map(int, span.split("-"))
        if unit != "bytes" or last + 1 != int(total):
            raise ValueError(unit)
    except (AttributeError, ValueError) as error:
        found = response.headers.get("Content-Range")
        raise _Incomplete(f"unusable Content-Range {found!r}") from error
    return first, int(total)


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of the file from another; weak tags do not."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _obtain(source: Source, root: Path, tell: Callable[[str], None]) -> None:
    """Fetch and unpack one source unless that was done before."""
    name = Path(urlsplit(source.url).path).name
    if source.target and (root / source.target).exists():
        if source.sha256 not in (None, _sha256(root / source.target)):
            raise DownloadError(f"{root / source.target}: there is another file of this name")
        tell(f"{source.target}: there")
        return
    work = root / ".downloads"
    marker = work / f"{name}.done"
    with lock(work / f"{name}.lock"):
        if marker.exists():
            tell(f"{name}: unpacked before; delete {marker} to fetch it again")
            return
        archive = work / name
        if not archive.exists():
            tell(f"{name}: from {source.url}")
            fetch(source, archive)
        if source.target:
            os.replace(archive, root / source.target)
            return
        tell(f"{name}: unpacking")
        try:
            count = extract_zip(archive, root, strip=source.strip)
        except ArchiveError:
            archive.unlink()  # the next call fetches it anew
            raise
        marker.write_text(json.dumps({"url": source.url, "sha256": _sha256(archive)}))
        archive.unlink()
        tell(f"{name}: {count} files")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
