"""Readers of the official annotation files, one function per data set.

A reader gets the files of its set and returns names and scores as they stand there, joined by
name; only DMOS is flipped, so that higher is better from here on. It knows nothing about folders
of images. Validation that holds for every set lives in :mod:`iqa_utils.datasets`.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
import xlrd

Files = Mapping[str, Path]

LIVE_TOP = 111.774694  # largest realigned DMOS of LIVE release 2
LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
KONIQ_COUNTS = ["c1", "c2", "c3", "c4", "c5"]
KONIQ_INDICATORS = (  # noqa: SIM905
    "brightness contrast colorfulness sharpness quality_factor bitrate hxw deep_feature"
).split()
CSIQ_TYPES = {  # type in the sheet -> folder, spelling in the file name
    "noise": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}
TID_TYPES = (  # noqa: SIM905
    "additive noise|colour noise|spatially correlated noise|masked noise|high frequency noise|"
    "impulse noise|quantisation noise|gaussian blur|denoising|jpeg|jpeg2000|"
    "jpeg transmission errors|jpeg2000 transmission errors|non-eccentricity pattern|"
    "block-wise distortion|mean shift|contrast change|colour saturation|multiplicative noise|"
    "comfort noise|lossy compression of noise|dithered colour quantisation|"
    "chromatic aberration|sparse sampling"
).split("|")
KADID_TYPES = (  # noqa: SIM905
    "gaussian blur|lens blur|motion blur|colour diffusion|colour shift|colour quantisation|"
    "saturation 1|saturation 2|jpeg2000|jpeg|white noise|colour noise|impulse noise|"
    "multiplicative noise|denoising|brighten|darken|mean shift|jitter|non-eccentricity patch|"
    "pixelate|quantisation|colour block|sharpen|contrast change"
).split("|")


def read_csv(path: Path, columns: list[str], **options: object) -> pd.DataFrame:
    """Read the named columns of a CSV file, in the order asked for."""
    return _columns(pd.read_csv(path, skipinitialspace=True, **options), columns, path)


def _columns(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    """Take the named columns, or say which are missing and what is there instead."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = [str(column) for column in table.columns]
        raise ValueError(f"{path}: expected columns {columns}, found {found}; missing {missing}")
    if table.empty:
        raise ValueError(f"{path}: expected one row per image, found no row")
    return table[columns].copy()


def _same_names(left: pd.Series, right: pd.Series, files: str) -> None:
    """Refuse two files of one set that do not list the same images."""
    first, second = sorted(set(left) - set(right)), sorted(set(right) - set(left))
    if first or second:
        raise ValueError(
            f"{files} disagree: {len(first)} images only in the first {first[:5]}, "
            f"{len(second)} only in the second {second[:5]}"
        )


def read_koniq10k(files: Files) -> pd.DataFrame:
    """Read KonIQ-10k: the z-score MOS (0-100), the votes, the official split, the indicators.

    ``MOS`` is 0-100 in the sets file and 1-5 in the scores file, ``c1..c5`` are fractions in the
    first and counts in the second. Here ``mos`` is the z-score MOS, ``mos_raw`` and ``sd_raw`` are
    on 1-5 and ``c1..c5`` counts; (MOS - 1) / 4 * 100 has other range counts.
    """
    sets_path = files["koniq10k_distributions_sets.csv"]
    wanted = ["image_name", *KONIQ_COUNTS, "c_total", "MOS", "SD", "set"]
    table = read_csv(sets_path, wanted, dtype={"image_name": str})
    table[KONIQ_COUNTS] = table[KONIQ_COUNTS].mul(table["c_total"], axis=0).round()
    table = table.rename(columns={"MOS": "mos", "SD": "sd_raw", "set": "split"})
    if scores_path := files.get("koniq10k_scores_and_distributions.csv"):
        table = _koniq_scores(table, scores_path)
    votes = table[KONIQ_COUNTS].to_numpy(float)  # (N, 5)
    table["mos_raw"] = votes @ np.arange(1, 6) / votes.sum(axis=1)
    table[KONIQ_INDICATORS] = np.nan
    if path := files.get("koniq10k_indicators.csv"):
        by_id = read_csv(path, ["image_id", *KONIQ_INDICATORS], dtype={"image_id": str})
        by_id = by_id.set_index(by_id.pop("image_id") + ".jpg")
        _same_names(table["image_name"], by_id.index, f"the scores and {path.name}")
        table[KONIQ_INDICATORS] = by_id.loc[table["image_name"]].to_numpy()
    table = table.rename(columns={"image_name": "image", "c_total": "votes"})
    columns = ["image", "mos", "split", *KONIQ_COUNTS, "votes", "mos_raw", "sd_raw"]
    return table[[*columns, *KONIQ_INDICATORS]].astype(dict.fromkeys([*KONIQ_COUNTS, "votes"], int))


def _koniq_scores(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Take the numbers of the scores file, in its order, where the sets file agrees."""
    wanted = ["image_name", *KONIQ_COUNTS, "c_total", "SD", "MOS_zscore"]
    scores = read_csv(path, wanted, dtype={"image_name": str})
    _same_names(scores["image_name"], table["image_name"], f"{path.name} and the sets file")
    joined = scores.merge(table, on="image_name", how="left", suffixes=("", "_sets"))
    pairs = {count: (f"{count}_sets", 0.0) for count in KONIQ_COUNTS}
    pairs |= {"MOS_zscore": ("mos", 1e-6), "SD": ("sd_raw", 1e-6)}
    for column, (other, tolerance) in pairs.items():
        apart = joined[~((joined[column] - joined[other]).abs() <= tolerance)]
        if len(apart):
            first = apart.iloc[0]
            raise ValueError(
                f"{path}: files disagree on {column} of {len(apart)} images, first "
                f"{first['image_name']}: {first[column]:g} against {first[other]:g}"
            )
    return joined.assign(mos=joined["MOS_zscore"], sd_raw=joined["SD"])


def _matlab(path: Path, name: str) -> np.ndarray:
    """Return one variable of a MATLAB file, flat."""
    content = scipy.io.loadmat(path)
    if name not in content:
        found = sorted(key for key in content if not key.startswith("__"))
        raise ValueError(f"{path}: expected variable {name!r}, found {found}")
    return content[name].ravel()


def _strings(cells: np.ndarray) -> list[str]:
    """Turn a flat MATLAB cell array of strings into a list."""
    return [str(np.asarray(cell).ravel()[0]) for cell in cells]


def _equal_lengths(lengths: Mapping[str, int], folder: Path) -> None:
    """Refuse lists that belong together but differ in length."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{folder}: lists of one set differ in length: {dict(lengths)}")


def read_live(files: Files) -> pd.DataFrame:
    """Read LIVE release 2: realigned DMOS, flipped; the originals are left out.

    The score lists are positional: the five folders in turn, each in the order img1, img2, ... A
    folder's ``info.txt`` counts its images and names their references, which must be those of
    ``refnames_all.mat``; without it the official counts hold (982 in all).
    """
    realigned = files["dmos_realigned.mat"]
    dmos, std = _matlab(realigned, "dmos_new"), _matlab(realigned, "dmos_std")
    is_original = _matlab(realigned, "orgs").astype(bool)
    references = _strings(_matlab(files["refnames_all.mat"], "refnames_all"))
    infos = {}  # image -> reference by folder, from lines `reference image parameter`
    for folder in LIVE_FOLDERS:
        if path := files.get(f"{folder}/info.txt"):
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            infos[folder] = {line[1]: line[0] for line in lines}
    counts = {folder: len(infos.get(folder, range(n))) for folder, n in LIVE_FOLDERS.items()}
    images = [f"{folder}/img{i + 1}.bmp" for folder, n in counts.items() for i in range(n)]
    lengths = {"dmos_new": len(dmos), "dmos_std": len(std), "orgs": len(is_original)}
    lengths |= {"refnames_all": len(references), "images by folder": len(images)}
    _equal_lengths(lengths, realigned.parent)
    for image, reference in zip(images, references, strict=True):
        folder, name = image.split("/")
        told = infos[folder].get(name, "none") if folder in infos else reference
        if told.lower() != reference.lower():
            raise ValueError(
                f"{folder}/info.txt and refnames_all.mat disagree on the reference of {image}: "
                f"{told} against {reference}"
            )
    table = pd.DataFrame({"image": images, "mos": LIVE_TOP - dmos, "mos_std": std})
    table["reference"] = [Path(name).stem.lower() for name in references]
    table["distortion"] = table["image"].str.split("/").str[0]
    return table[~is_original].reset_index(drop=True)


def read_csiq(files: Files) -> pd.DataFrame:
    """Read CSIQ: DMOS of sheet ``all_by_image``, flipped as 1 - DMOS.

    The sheet's table starts where a row says ``image``; the image called 1600 arrives as a number.
    """
    path = files["csiq.DMOS.xlsx"]
    cells = pd.read_excel(path, sheet_name="all_by_image", header=None)
    header = np.argwhere((cells == "image").to_numpy())
    if len(header) == 0:
        raise ValueError(f"{path}: sheet all_by_image has no header cell 'image'")
    row, column = header[0]
    table = cells.iloc[row + 1 :, column:].set_axis(cells.iloc[row, column:].tolist(), axis=1)
    table = _columns(table, ["image", "dst_type", "dst_lev", "dmos_std", "dmos"], path)
    unknown = sorted(set(table["dst_type"]) - set(CSIQ_TYPES))
    if unknown:
        raise ValueError(f"{path}: expected dst_type among {list(CSIQ_TYPES)}, found {unknown}")
    folder, token = zip(*(CSIQ_TYPES[kind] for kind in table["dst_type"]), strict=True)
    reference, level = table["image"].astype(str), table["dst_lev"].astype(int)
    numbers = table[["dmos", "dmos_std"]].apply(pd.to_numeric, errors="coerce")
    parts = zip(folder, reference, token, level, strict=True)
    found = {"image": [f"{f}/{r}.{t}.{n}.png" for f, r, t, n in parts]}
    found |= {"mos": 1 - numbers["dmos"], "mos_std": numbers["dmos_std"], "reference": reference}
    return pd.DataFrame(found | {"distortion": folder, "level": level})


def _coded_names(names: pd.Series, pattern: str, types: list[str], path: Path) -> pd.DataFrame:
    """Split names such as I01_24_5.bmp into reference, distortion and level."""
    parts = names.str.extract(pattern, flags=re.IGNORECASE)
    known = pd.to_numeric(parts[1], errors="coerce").between(1, len(types))
    if not known.all():
        bad = names[~known].tolist()[:5]
        raise ValueError(f"{path}: expected names like I01_01_1, types 1-{len(types)}; found {bad}")
    distortion = [types[int(code) - 1] for code in parts[1]]
    found = {"reference": parts[0].str.upper(), "distortion": distortion}
    return pd.DataFrame(found | {"level": parts[2].astype(int)})


def _read_tid(files: Files, n_types: int) -> pd.DataFrame:
    """Read `mos_with_names.txt`, lines `score name`; the case of the names is mixed."""
    path = files["mos_with_names.txt"]
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    bad = [line for line in lines if len(line) != 2]
    if bad or not lines:
        raise ValueError(f"{path}: expected lines `score name`, found {bad[:1] or 'none'}")
    table = pd.DataFrame(lines, columns=["mos", "image"])
    names = _coded_names(table["image"], r"^(I\d+)_(\d+)_(\d)\.bmp$", TID_TYPES[:n_types], path)
    return pd.concat([table[["image", "mos"]], names], axis=1)


def read_tid2008(files: Files) -> pd.DataFrame:
    """Read TID2008: 25 references, 17 distortions, 4 levels; higher is better."""
    return _read_tid(files, 17)


def read_tid2013(files: Files) -> pd.DataFrame:
    """Read TID2013: 25 references, 24 distortions, 5 levels; higher is better."""
    return _read_tid(files, 24)


def read_kadid10k(files: Files) -> pd.DataFrame:
    """Read KADID-10k: its ``dmos`` is higher-is-better in spite of the name; ``var`` a variance."""
    path = files["dmos.csv"]
    table = read_csv(path, ["dist_img", "ref_img", "dmos", "var"])
    names = _coded_names(table["dist_img"], r"^(I\d+)_(\d+)_(\d+)\.png$", KADID_TYPES, path)
    told = table["ref_img"].str.rsplit(".", n=1).str[0].str.upper()
    wrong = table[told != names["reference"]]
    if len(wrong):
        row = wrong.iloc[0]
        raise ValueError(f"{path}: reference {row['ref_img']} does not belong to {row['dist_img']}")
    scores = {"image": table["dist_img"], "mos": table["dmos"], "mos_std": np.sqrt(table["var"])}
    return pd.concat([pd.DataFrame(scores), names], axis=1)


def read_bid(files: Files) -> pd.DataFrame:
    """Read BID: the average grade; its spread only where the single grades bear it out.

    In a few rows the grades beside the average do not average to it, or are not as many as
    said; there ``mos_std`` is missing. Image numbers have gaps.
    """
    path = files["DatabaseGrades.xls"]
    sheet = xlrd.open_workbook(path, logfile=io.StringIO()).sheet_by_index(0)
    header, *rows = [sheet.row_values(i) for i in range(sheet.nrows)] or [[]]
    table = pd.DataFrame(rows, columns=header)
    columns = ["Image Number", "Average Subjective Grade", "Number of Grades"]
    grade_columns = [c for c in table.columns if str(c).startswith("Grade #")]
    table = _columns(table, [*columns, *grade_columns], path)
    table = table.apply(pd.to_numeric, errors="coerce")  # blanks become NaN
    grades = table[grade_columns]
    number, mean, votes = (table[column] for column in columns)
    sound = (grades.count(axis=1) == votes) & ((grades.mean(axis=1) - mean).abs() <= 1e-3)
    found = {"image": [f"DatabaseImage{int(n):04d}.JPG" for n in number], "mos": mean}
    found["mos_std"] = grades.std(axis=1, ddof=1).where(sound)
    return pd.DataFrame(found | {"votes": votes.astype(int)})


def read_livec(files: Files) -> pd.DataFrame:
    """Read LIVE In the Wild: three parallel lists; the training images t1, t2, ... are dropped."""
    images = _strings(_matlab(files["Data/AllImages_release.mat"], "AllImages_release"))
    mos = _matlab(files["Data/AllMOS_release.mat"], "AllMOS_release")
    std = _matlab(files["Data/AllStdDev_release.mat"], "AllStdDev_release")
    lengths = {"images": len(images), "mos": len(mos), "std": len(std)}
    _equal_lengths(lengths, files["Data/AllMOS_release.mat"].parent)
    table = pd.DataFrame({"image": images, "mos": mos, "mos_std": std})
    training = table["image"].str.fullmatch(r"t[1-7]\.bmp", case=False)
    return table[~training].reset_index(drop=True)


def read_spaq(files: Files) -> pd.DataFrame:
    """Read SPAQ: MOS on 0-100, and the five attribute scores where the sheet has them."""
    path = files["Annotations/MOS and Image attribute scores.xlsx"]
    table = pd.read_excel(path)
    attributes = ["Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    kept = [column for column in attributes if column in table.columns]
    table = _columns(table, ["Image name", "MOS", *kept], path)
    return table.rename(
        columns={"Image name": "image", "MOS": "mos"} | {c: c.lower() for c in kept}
    )


def read_flive(files: Files) -> pd.DataFrame:
    """Read FLIVE (PaQ-2-PiQ): picture scores, names relative to the folder of its parts."""
    table = read_csv(files["labels_image.csv"], ["name", "mos"])
    return table.rename(columns={"name": "image"})


def read_biq2021(files: Files) -> pd.DataFrame:
    """Read BIQ2021: training file, then test file; stray empty columns are left behind."""
    parts = []
    for stem, split in (("Train", "training"), ("Test", "test")):
        part = read_csv(files[f"{stem} (Images and MOS).csv"], ["Image Name", "MOS"])
        parts.append(part.assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    table["subset"] = table["Image Name"].str.extract(r"^(ss\d+)", expand=False)
    return table.rename(columns={"Image Name": "image", "MOS": "mos"})


def read_table(files: Files) -> pd.DataFrame:
    """Read any CSV with ``image,mos`` and, if present, the other columns of a score table."""
    path = files["scores.csv"]
    table = pd.read_csv(path, dtype={"image": str, "reference": str}, skipinitialspace=True)
    _columns(table, ["image", "mos"], path)
    return table
