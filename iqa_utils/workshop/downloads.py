"""Say which data is here, fetch what is openly served, and say how to get the rest.

Only addresses that public documentation confirms stand here. pooch fetches: it compares length and
hash, where one was published, and tries again where a connection broke. Archives come from others:
every entry is checked before a byte is written, and files appear only when all could be read.
"""

import filecmp
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pandas as pd
import pooch

from iqa_utils.datasets import DATASETS, DEMO_MARKER, describe, locate
from iqa_utils.files import atomic_write, hash_file, listed, lock, sync_folder
from iqa_utils.workshop import ROOT

MOST_EXPANSION = 50  # times the archive; photographs barely shrink, tables tenfold
_ALWAYS_ALLOWED = 100 * 2**20  # bytes
BIQ2021_FILES = {"training": "Train (Images and MOS).csv", "test": "Test (Images and MOS).csv"}
BIQ2021_CUT = ROOT / "data" / "splits" / "biq2021-mini.csv"
NOTES = ".downloads"  # folder of what is being fetched, and of what was unpacked
_KONSTANZ = "https://datasets.vqa.mmsp-kn.de/archives"
_SETS = "koniq10k_distributions_sets.csv"
_SETS_URL = f"https://raw.githubusercontent.com/subpic/koniq/master/metadata/{_SETS}"
_SETS_SHA256 = "d0bd1ad54a60bc36fe172049e46ac76c83554e50ab84acebfd47b82b3e698a0a"
_KADID_SHA256 = "fe59ace86a2525d5785ff011a2119fa88839e0329f5029f7b23994727efd185c"
_KONIQ_ARCHIVES = ("scores_and_distributions", "indicators", "512x384", "1024x768")
_BIQ2021 = "https://github.com/nisarahmedrana/BIQ2021/archive/refs/heads/main.zip"


# what zipfile raises where an archive is damaged; bz2 raises an OSError without a number
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_DAMAGED += (RuntimeError, ValueError, LookupError, struct.error, OSError)


class Source(NamedTuple):
    """One file that a data set is served as."""

    url: str
    target: str | None = None  # name in the data set's folder; None: an archive to unpack there
    strip: str = ""  # folder inside an archive that holds everything, cut from its names
    sha256: str | None = None  # where it is known

    @property
    def name(self) -> str:
        """Name of the file that is fetched."""
        return self.target or Path(urlsplit(self.url).path).name


SOURCES: dict[str, tuple[Source, ...]] = {
    "koniq10k": (
        Source(_SETS_URL, _SETS, sha256=_SETS_SHA256),
        *(Source(f"{_KONSTANZ}/koniq10k_{name}.zip") for name in _KONIQ_ARCHIVES),
    ),
    "kadid10k": (Source(f"{_KONSTANZ}/kadid10k.zip", strip="kadid10k/", sha256=_KADID_SHA256),),
    "biq2021": (Source(_BIQ2021, strip="BIQ2021-main/"),),
}


class ArchiveError(ValueError):
    """An archive that is broken or not safe to unpack; the message names the entry."""


def describe_data(data_root: Path) -> list[str]:
    """Say in lines of text which data sets and weights are here."""
    here = [name for name in DATASETS if is_here(name, data_root)]
    absent = [name for name in SOURCES if name not in here]
    texts = [f"data sets below {data_root}", f"  here      {', '.join(here) or 'none'}"]
    texts += [f"  download  {', '.join(absent) or 'none'}", "  others    iqa data list", "weights"]
    return texts + [f"  {line}" for line in _weights()]


def catalogue(data_root: Path) -> list[str]:
    """Describe every data set, and whether it is here, served openly, or fetched by hand."""
    texts = []
    for name in DATASETS:
        where = f"{data_root / name}"
        if is_here(name, data_root):
            where += ", synthetic" * (data_root / name / DEMO_MARKER).is_file()
        else:
            how = f"iqa data download {name}" if name in SOURCES else "by hand to"
            where = f"no; {how} {where}"
        texts.append(f"{describe(name)}\n  here    {where}")
    return texts


def is_here(name: str, data_root: Path) -> bool:
    """Tell whether the annotation files of a data set are in its folder."""
    try:
        return bool(locate(name, data_root / name))
    except FileNotFoundError:
        return False


def _weights() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    shipped = ("shipped", Path(__file__).parents[1] / "weights", "quality.safetensors")
    files = ("file", ROOT / "data" / "weights", "*.*")
    found, hub = [], ("hub", Path(HF_HUB_CACHE), "models--*")
    for word, folder, pattern in (shipped, files, hub):
        for path in sorted(folder.glob(pattern)):
            found.append(f"{word:9} {path.name.removeprefix('models--').replace('--', '/')}")
    return found or ["none; `hub` fetches them, or put files into data/weights"]


def download(name: str, root: str | Path, *, mirror: str = "") -> bool:
    """Bring a data set into its official layout, or return False and say how the user can.

    What was fetched and unpacked before is not fetched again. ``mirror`` is the address of a folder
    with files of the same names, in place of the official server.
    """
    if name not in DATASETS:
        raise KeyError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    if mirror and urlsplit(mirror).scheme not in ("http", "https"):
        raise ValueError(f"expected a mirror as http(s)://..., got {mirror!r}")
    info, root = DATASETS[name], Path(root)
    print(f"{info.title}: {info.home}; terms: {info.terms}")
    if name not in SOURCES:
        folders = " or ".join(folder or "the folder itself" for folder in info.folders)
        print(
            f"No open address of {info.title} could be confirmed. Get it from {info.home}, unpack\n"
            f"it into {root}, so that it holds {', '.join(info.files)}\n"
            f"and the images in {folders}; then: iqa data check {name} {root}"
        )
        return False
    work = root / NOTES
    with lock(work / "lock"):
        for stray in work.glob("tmp*"):  # pooch's, of a process that was killed
            stray.unlink()
        for source in SOURCES[name]:
            file_name = source.name
            if mirror:
                source = source._replace(url=f"{mirror.rstrip('/')}/{file_name}")
            done = work / f"{file_name}.done"
            if source.target:
                fetch(source, root / file_name)
            elif not done.exists():
                archive = fetch(source, work / file_name)
                try:
                    print(f"{file_name}: {extract_zip(archive, root, strip=source.strip)} files")
                except ArchiveError:
                    archive.unlink()  # the next call fetches it anew
                    raise
                with atomic_write(done) as note:
                    note.write_text(f"{source.url} {hash_file(archive)}\n")
                archive.unlink()
    print(f"check it with: iqa data check {name} {root}")
    return True


def fetch(source: Source, path: Path, *, timeout: float = 30.0, retries: int = 4) -> Path:
    """Download one file whole or not at all, unless it is there; a web page is not kept."""
    if path.exists():
        if source.sha256 not in (None, hash_file(path)):
            raise ValueError(f"{path}: there is another file of this name; move it away")
        return path
    known, urls = {path.name: source.sha256}, {path.name: source.url}
    shop = pooch.create(path.parent, "", registry=known, urls=urls, retry_if_failed=retries)
    how = {"progressbar": sys.stderr.isatty(), "chunk_size": 1 << 18, "timeout": timeout}
    client = pooch.HTTPDownloader(**how)

    def get(url: str, file: str, shop: pooch.Pooch) -> None:
        client(url, file, shop)
        with Path(file).open("rb") as opened:
            start = opened.read(512).lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")  # marks, blanks
        if start.startswith(b"<"):  # no table or archive does
            raise OSError(f"{url} answered with a web page, perhaps a log-in; fetch it by hand")

    return Path(shop.fetch(path.name, downloader=get))


def extract_zip(archive: Path, root: Path, *, strip: str = "") -> int:
    """Unpack a zip archive into a folder, all of it or nothing; returns the number of files.

    Entries outside of ``strip`` are refused, as is another file of the same name in the folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked_entries(opened, archive, strip)
            work = root / NOTES / f"{archive.name}.unpacked"
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
            for target, info in entries.items():
                (work / target).parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, (work / target).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())  # a power cut must not leave a note and no image
    except ArchiveError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of bz2
            raise
        raise ArchiveError(f"{archive}: damaged, or not a zip archive ({error})") from error
    for target in entries:
        place = root / target
        if place.exists() and not filecmp.cmp(work / target, place, shallow=False):
            raise FileExistsError(f"{place}: there is another file of this name; move it away")
    for target in entries:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (work / target).replace(root / target)
    for folder in {(root / target).parent for target in entries}:
        sync_folder(folder)
    shutil.rmtree(work)
    return len(entries)


def _checked_entries(opened: zipfile.ZipFile, archive: Path, strip: str) -> dict[Path, Any]:
    """Target -> entry of every file; refuses the archive as a whole."""
    entries: dict[Path, Any] = {}
    for info in opened.infolist():
        name, is_file = info.filename, not info.is_dir()
        target, kind = Path(name.removeprefix(strip)), stat.S_IFMT(info.external_attr >> 16)
        first = str(target).lower().split("/")[0]
        own = first == NOTES or target.name.lower() == DEMO_MARKER
        wrong = {
            "has an absolute path, a drive or a foreign separator": re.search(r"^/|[\\:]", name),
            "climbs out of its folder": ".." in name.split("/"),
            "is a link or a device": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
            "is encrypted": info.flag_bits & 1,
            f"is outside of {strip!r}": is_file and not name.startswith(strip),
            "is there twice": is_file and target in entries,
            "has a name that this program gives its own notes": is_file and own,
        }
        for reason in filter(wrong.get, wrong):
            raise ArchiveError(f"{archive}: entry {name!r} {reason}")
        if is_file:
            entries[target] = info
    for target in entries:
        if both := entries.keys() & set(target.parents):
            raise ArchiveError(f"{archive}: {both.pop()} is a file and a folder of {target}")
    total = sum(info.file_size for info in entries.values())
    if total > (most := max(MOST_EXPANSION * archive.stat().st_size, _ALWAYS_ALLOWED)):
        raise ArchiveError(f"{archive}: expands to {total:,} bytes, more than {most:,}")
    return entries


def cut_biq2021(root: str | Path, out: str | Path, *, names: Path = BIQ2021_CUT) -> dict[str, int]:
    """Cut the 2,000 images that our real results are shown on out of the full BIQ2021.

    Scores are taken from the official files, line by line, so that the cut is the same for all.
    Returns the number of training and of test images, as in the table ``names``.
    """
    root, out = Path(root), Path(out)
    if out.resolve() == root.resolve():
        raise ValueError(f"expected another folder than the full set's, found {out}")
    wanted = [*BIQ2021_FILES.values(), "Images"]
    for name in wanted:
        if (out / name).exists() and (root / name).exists() and (out / name).samefile(root / name):
            raise ValueError(f"{out / name} is that of the full set, which a cut would overwrite")
    if absent := [name for name in wanted if not (root / name).exists()]:
        told = f"expected {', '.join(absent)} in {root}, found nothing of that name"
        raise FileNotFoundError(f"BIQ2021: {told}; get it with: iqa data download biq2021 {root}")
    parts = pd.read_csv(names, index_col="image")["part"]
    split = parts.rename(str.lower).to_dict()
    headers, lines = {}, {}
    for part, file_name in BIQ2021_FILES.items():
        headers[part], *rows = (root / file_name).read_bytes().splitlines(keepends=True)
        lines |= {row.decode().split(",")[0].strip().lower(): row for row in rows}
    on_disk = {path.name.lower(): path for path in (root / "Images").iterdir()}
    if missing := [image for image in split if image not in lines or image not in on_disk]:
        raise ValueError(f"{root}: {len(missing)} images have no file or score: {listed(missing)}")
    for image in split:
        link_or_copy(on_disk[image], out / "Images" / on_disk[image].name)
    for part, file_name in BIQ2021_FILES.items():
        # the two official files differ in stray commas: each line takes the form of its new file
        stray, rows = b"," * (headers[part].count(b",") - 1), [headers[part]]
        for image in split:
            if split[image] == part:
                name, score, *_ = (text := lines[image].rstrip(b"\r\n")).split(b",")
                ending = lines[image][len(text) :] or b"\n"
                rows.append(b"%s,%s%s%s" % (name, score, stray, ending))
        (out / file_name).write_bytes(b"".join(rows))
    return {part: int((parts == part).sum()) for part in BIQ2021_FILES}


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links to spare."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
