"""What is known about each data set: official layout, size, scale, home and terms.

The terms are a reminder in a few words, never the licence; what binds is what stands at home.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from iqa_utils.datasets import readers

CHECKED = {  # first 16 digits of the SHA-256 of the official files that were seen
    "koniq10k_distributions_sets.csv": "d0bd1ad54a60bc36",
    "koniq10k_scores_and_distributions.csv": "a5173fb66831b204",
    "koniq10k_indicators.csv": "2285fedd5ac5d2b1",
    "tid2013/mos_with_names.txt": "531a1c4d9bafb7aa",
    "DatabaseGrades.xls": "0b051f192356b81e",
    "AllImages_release.mat": "9dca4ac80b008c83",
    "AllMOS_release.mat": "94d4034cb420f319",
    "AllStdDev_release.mat": "f0679b6455dda520",
    "labels_image.csv": "667a9de3ba2633bf",
    "Train (Images and MOS).csv": "1f0c28a28d78903c",
    "Test (Images and MOS).csv": "2f8579d5e9647015",
}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known about a data set.

    Attributes:
        title: The name in print.
        scale: Lowest and highest possible ``mos``; None where it is the span of the file.
        kind: "authentic" or "synthetic".
        n_images: Images with a score in the official release; 0 where that is not known.
        files: Annotation files it needs, in the official layout.
        optional: Annotation files that are read when they are there.
        folders: Folders the image names may be relative to, the preferred one first.
        home: Where the set comes from.
        terms: Its terms of use in a few words.
        pixels: Height and width of most images.
        contents: Reference images; 0 where every image is a content of its own.
        parts: Images of the official training, validation and test set, where there is one.
        ranges: Official training images with scores in each fifth of the scale, where known.
        read: The reader of the annotation files.
        verified: False where no official layout could be seen.
    """

    title: str
    scale: tuple[float, float] | None
    kind: str
    n_images: int
    files: tuple[str, ...]
    read: Callable[[readers.Files], pd.DataFrame]
    home: str
    terms: str
    optional: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("",)
    pixels: tuple[int, int] = (768, 1024)
    contents: int = 0
    parts: tuple[int, ...] = ()
    ranges: tuple[int, ...] = ()
    verified: bool = True


DATASETS: dict[str, DatasetInfo] = {
    "koniq10k": DatasetInfo(
        title="KonIQ-10k",
        scale=(0.0, 100.0),
        kind="authentic",
        n_images=10073,
        files=("koniq10k_distributions_sets.csv",),
        optional=("koniq10k_scores_and_distributions.csv", "koniq10k_indicators.csv"),
        folders=("1024x768", "512x384"),
        parts=(7058, 1000, 2015),
        ranges=(129, 833, 2157, 3790, 149),
        read=readers.read_koniq10k,
        home="https://database.mmsp-kn.de/koniq-10k-database.html",
        terms="research; the photographs keep their Creative Commons licences",
    ),
    "live": DatasetInfo(
        title="LIVE release 2",
        scale=(0.0, 114.42),
        kind="synthetic",
        n_images=779,
        files=("dmos_realigned.mat", "refnames_all.mat"),
        optional=("dmos.mat", *(f"{folder}/info.txt" for folder in readers.LIVE_FOLDERS)),
        pixels=(512, 768),
        contents=29,
        read=readers.read_live,
        home="https://live.ece.utexas.edu/research/quality/subjective.htm",
        terms="free with the laboratory's notice; cite",
    ),
    "csiq": DatasetInfo(
        title="CSIQ",
        scale=(0.0, 1.0),
        kind="synthetic",
        n_images=866,
        files=("csiq.DMOS.xlsx",),
        folders=("dst_imgs",),
        pixels=(512, 512),
        contents=30,
        read=readers.read_csiq,
        home="https://s2.smu.edu/~eclarson/csiq.html",
        terms="research; cite",
    ),
    "tid2008": DatasetInfo(
        title="TID2008",
        scale=(0.0, 9.0),
        kind="synthetic",
        n_images=1700,
        files=("mos_with_names.txt",),
        folders=("distorted_images",),
        pixels=(384, 512),
        contents=25,
        read=readers.read_tid2008,
        home="https://www.ponomarenko.info/tid2008.htm",
        terms="free for research; cite",
    ),
    "tid2013": DatasetInfo(
        title="TID2013",
        scale=(0.0, 9.0),
        kind="synthetic",
        n_images=3000,
        files=("mos_with_names.txt",),
        folders=("distorted_images",),
        pixels=(384, 512),
        contents=25,
        read=readers.read_tid2013,
        home="https://www.ponomarenko.info/tid2013.htm",
        terms="free for research; cite",
    ),
    "kadid10k": DatasetInfo(
        title="KADID-10k",
        scale=(1.0, 5.0),
        kind="synthetic",
        n_images=10125,
        files=("dmos.csv",),
        folders=("images",),
        pixels=(384, 512),
        contents=81,
        read=readers.read_kadid10k,
        home="https://database.mmsp-kn.de/kadid-10k-database.html",
        terms="research; source photographs under the Pixabay licence",
    ),
    "bid": DatasetInfo(
        title="BID",
        scale=(0.0, 5.0),
        kind="authentic",
        n_images=586,
        files=("DatabaseGrades.xls",),
        folders=("ImageDatabase", ""),
        pixels=(960, 1280),
        read=readers.read_bid,
        home="https://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm",
        terms="research; cite",
    ),
    "livec": DatasetInfo(
        title="LIVE In the Wild",
        scale=(0.0, 100.0),
        kind="authentic",
        n_images=1162,
        files=tuple(f"Data/All{part}_release.mat" for part in ("Images", "MOS", "StdDev")),
        folders=("Images",),
        pixels=(500, 500),
        read=readers.read_livec,
        home="https://live.ece.utexas.edu/research/ChallengeDB/index.html",
        terms="free with the laboratory's notice; cite",
    ),
    "spaq": DatasetInfo(
        title="SPAQ",
        scale=(0.0, 100.0),
        kind="authentic",
        n_images=11125,
        files=("Annotations/MOS and Image attribute scores.xlsx",),
        folders=("TestImage",),
        pixels=(3000, 4000),
        read=readers.read_spaq,
        home="https://github.com/h4nwei/SPAQ",
        terms="research, non-commercial; cite",
    ),
    "flive": DatasetInfo(
        title="FLIVE (PaQ-2-PiQ)",
        scale=(0.0, 100.0),
        kind="authentic",
        n_images=39810,
        files=("labels_image.csv",),
        folders=("", "database"),
        pixels=(480, 640),
        read=readers.read_flive,
        home="https://github.com/baidut/PaQ-2-PiQ",
        terms="CC BY-NC 4.0",
    ),
    "biq2021": DatasetInfo(
        title="BIQ2021",
        scale=(0.0, 1.0),
        kind="authentic",
        n_images=12000,
        files=("Train (Images and MOS).csv", "Test (Images and MOS).csv"),
        folders=("Images",),
        pixels=(512, 512),
        parts=(10000, 0, 2000),
        read=readers.read_biq2021,
        home="https://github.com/nisarahmedrana/BIQ2021",
        terms="no licence stated; cite",
    ),
    "htid": DatasetInfo(
        title="HTID",
        scale=None,
        kind="authentic",
        n_images=2880,
        files=("scores.csv",),
        pixels=(1024, 1536),
        read=readers.read_table,
        home="https://www.ponomarenko.info",
        terms="ask its authors",
        verified=False,
    ),
    "nrtid": DatasetInfo(
        title="NRTID",
        scale=None,
        kind="authentic",
        n_images=0,
        files=("scores.csv",),
        read=readers.read_table,
        home="https://www.ponomarenko.info",
        terms="ask its authors",
        verified=False,
    ),
    "table": DatasetInfo(
        title="own table",
        scale=None,
        kind="authentic",
        n_images=0,
        files=("scores.csv",),
        read=readers.read_table,
        home="data/README.md",
        terms="one's own",
    ),
}


def describe(name: str) -> str:
    """Describe a data set in a few lines: what it is, its files, home and terms.

    Args:
        name: One of :data:`DATASETS`.

    Returns:
        Five lines; one more where the layout could not be verified.
    """
    info = DATASETS[name]
    size = f"{info.n_images:,} images" if info.n_images else "any number of images"
    span = "MOS {:g} to {:g}".format(*info.scale) if info.scale else "MOS on the scale of the file"
    extra = ", ".join(info.optional)
    lines = [
        f"{name}: {info.title}, {info.kind}, {size}, {span}",
        f"  files   {', '.join(info.files)}{f' ({extra} if there)' if extra else ''}",
        f"  images  {info.folders[0] or 'beside them'}",
        f"  home    {info.home}",
        f"  terms   {info.terms}",
    ]
    if not info.verified:
        lines.append("  note    no official layout could be seen: a CSV with image,mos is read")
    return "\n".join(lines)
