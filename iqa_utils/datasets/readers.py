"""Readers of the official annotation files, one function per data set.

A reader gets the files of its set and returns names and scores as they stand there, joined by
name; only DMOS is flipped, so that higher is better from here on. It knows nothing about folders
of images. Validation that holds for every set lives in :mod:`iqa_utils.datasets`.
"""

import io
import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import xlrd

from iqa_utils.datasets.parsing import (
    agree,
    equal_lengths,
    matlab_names,
    matlab_numbers,
    numbers,
    read_any_csv,
    read_csv,
    reading,
    same_names,
    take_columns,
    unexpected,
    words_of,
)

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


def read_koniq10k(files: Files) -> pd.DataFrame:
    """Read KonIQ-10k: the z-score MOS (0-100), the votes, the official split, the indicators.

    ``MOS`` is 0-100 in the sets file and 1-5 in the scores file, ``c1..c5`` are fractions in the
    first and counts in the second. Here ``mos`` is the z-score MOS, ``mos_raw`` and ``sd_raw`` are
    on 1-5 and ``c1..c5`` counts; (MOS - 1) / 4 * 100 has other range counts.
    """
    path = files["koniq10k_distributions_sets.csv"]
    table = read_csv(path, ["image_name", *KONIQ_COUNTS, "c_total", "MOS", "SD", "set"])
    without = table.loc[table["set"].isna(), "image_name"]
    if len(without):
        raise unexpected(path, "a set for every image", f"none for {without.iloc[0]}")
    shares = numbers(table, KONIQ_COUNTS, path, low=0)
    table["c_total"] = numbers(table, ["c_total"], path, whole=True, low=1)["c_total"]
    table[KONIQ_COUNTS] = shares.mul(table["c_total"], axis=0).round()
    table[["MOS", "SD"]] = numbers(table, ["MOS", "SD"], path, low=0)
    table["mos_raw"] = _mean_vote(table, path)
    table = table.rename(columns={"MOS": "mos", "SD": "sd_raw", "set": "split"})
    if scores_path := files.get("koniq10k_scores_and_distributions.csv"):
        table = _koniq_scores(table, scores_path, f"{scores_path} and {path.name}")
    table[KONIQ_INDICATORS] = np.nan
    if by_id_path := files.get("koniq10k_indicators.csv"):
        by_id = read_csv(by_id_path, ["image_id", *KONIQ_INDICATORS])
        values = numbers(by_id, KONIQ_INDICATORS, by_id_path)
        values = values.set_index(by_id["image_id"] + ".jpg")
        same_names(table["image_name"], values.index, f"{path} and {by_id_path.name}")
        table[KONIQ_INDICATORS] = values.loc[table["image_name"]].to_numpy()
    table = table.rename(columns={"image_name": "image", "c_total": "votes"})
    columns = ["image", "mos", "split", *KONIQ_COUNTS, "votes", "mos_raw", "sd_raw"]
    return table[[*columns, *KONIQ_INDICATORS]].astype(dict.fromkeys([*KONIQ_COUNTS, "votes"], int))


def _mean_vote(table: pd.DataFrame, path: Path) -> np.ndarray:
    """Return the mean vote (N,) on 1-5 of a KonIQ table whose total is that of its votes."""
    votes = table[KONIQ_COUNTS].to_numpy(float)  # (N, 5)
    total = pd.Series(votes.sum(axis=1))
    agree(table, "c_total", total, 0.0, f"{path}: the file and the sum of its votes")
    return votes @ np.arange(1, 6) / votes.sum(axis=1)


def _koniq_scores(table: pd.DataFrame, path: Path, both: str) -> pd.DataFrame:
    """Take the numbers of the scores file, in its order, where the sets file agrees."""
    scores = read_csv(path, ["image_name", *KONIQ_COUNTS, "c_total", "MOS", "SD", "MOS_zscore"])
    counts = [*KONIQ_COUNTS, "c_total"]
    scores[counts] = numbers(scores, counts, path, whole=True, low=0)
    scores[["MOS", "SD", "MOS_zscore"]] = numbers(scores, ["MOS", "SD", "MOS_zscore"], path)
    same_names(scores["image_name"], table["image_name"], both)
    joined = scores.merge(table, on="image_name", how="left", suffixes=("", "_sets"))
    for count in KONIQ_COUNTS:
        agree(joined, count, joined[f"{count}_sets"], 0.0, both)
    agree(joined, "MOS_zscore", joined["mos"], 1e-6, both)
    agree(joined, "SD", joined["sd_raw"], 1e-6, both)
    mean = pd.Series(_mean_vote(joined, path))
    agree(joined, "MOS", mean, 1e-6, f"{path}: the file and the mean of its votes")
    return joined.assign(mos=joined["MOS_zscore"], sd_raw=joined["SD"], mos_raw=mean)


def _originals(path: Path) -> np.ndarray:
    """Read which images of LIVE are originals, (N,)."""
    found = matlab_numbers(path, "orgs")
    if not np.isin(found, (0, 1)).all():
        raise unexpected(path, "0 or 1 in orgs", np.setdiff1d(found, (0, 1))[:5])
    return found.astype(bool)


def read_live(files: Files) -> pd.DataFrame:
    """Read LIVE release 2: realigned DMOS, flipped; the originals are left out.

    The score lists are positional: the five folders in turn, each in the order img1, img2, ... A
    folder's ``info.txt`` counts its images and names their references, which must be those of
    ``refnames_all.mat``; without it the official counts hold (982 in all).
    """
    realigned = files["dmos_realigned.mat"]
    dmos, std = matlab_numbers(realigned, "dmos_new"), matlab_numbers(realigned, "dmos_std")
    is_original = _originals(realigned)
    references = matlab_names(files["refnames_all.mat"], "refnames_all")
    lists = f"{realigned} and refnames_all.mat"
    lengths = {"dmos_new": len(dmos), "dmos_std": len(std), "orgs": len(is_original)}
    lengths["refnames_all"] = len(references)
    equal_lengths(lengths, lists)
    images = _live_images(files, references)
    equal_lengths(lengths | {"images by folder": len(images)}, lists)
    if path := files.get("dmos.mat"):
        both, older = f"{realigned} and dmos.mat", _originals(path)
        equal_lengths({"orgs": len(is_original), "orgs of dmos.mat": len(older)}, both)
        marks = pd.DataFrame({"image_name": images, "orgs": is_original.astype(int)})
        agree(marks, "orgs", pd.Series(older.astype(int)), 0, both)
    table = pd.DataFrame({"image": images, "mos": LIVE_TOP - dmos, "mos_std": std})
    table["reference"] = [Path(name).stem.lower() for name in references]
    table["distortion"] = table["image"].str.split("/").str[0]
    return table[~is_original].reset_index(drop=True)


def _live_images(files: Files, references: list[str]) -> list[str]:
    """Name LIVE's images in the order of the lists; info.txt must have the listed references."""
    told = {}  # image -> its reference by info.txt, "" where there is no such file
    for folder, official in LIVE_FOLDERS.items():
        path = files.get(f"{folder}/info.txt")
        info = _live_info(path) if path else [""] * official
        told |= {f"{folder}/img{i}.bmp": name for i, name in enumerate(info, start=1)}
    rows = zip_longest(told, told.values(), references, fillvalue="none")
    apart = [row for row in rows if row[1] and row[1].lower() != row[2].lower()]
    if apart:
        image, ours, listed = apart[0]
        what = "info.txt and refnames_all.mat disagree on the reference of"
        if len(told) > len(references):
            what = "info.txt names images that refnames_all.mat lacks, first apart at"
        elif len(told) < len(references):
            what = "info.txt lacks images that refnames_all.mat has, first apart at"
        counts = f"{len(told)} images against {len(references)}"
        place = files["refnames_all.mat"].parent
        raise ValueError(f"{place}: {what} {image}: {ours} against {listed} ({counts})")
    return list(told)


def _live_info(path: Path) -> list[str]:
    """Return the references of img1.bmp, img2.bmp, ... from lines `reference image parameter`."""
    info = {}
    for number, words in words_of(path):
        if len(words) < 2:
            raise unexpected(path, "`reference image parameter`", f"`{words[0]}`", number)
        if words[1] in info:
            raise unexpected(path, "every image once", f"{words[1]} again", number)
        info[words[1]] = words[0]
    wanted = [f"img{i + 1}.bmp" for i in range(len(info))]
    missing = [name for name in wanted if name not in info]
    if missing:
        gap = f"{sorted(set(info) - set(wanted))[:5]} and no {missing[:5]}"
        raise unexpected(path, f"img1.bmp to img{len(info)}.bmp", gap)
    return [info[name] for name in wanted]


def read_csiq(files: Files) -> pd.DataFrame:
    """Read CSIQ: DMOS of sheet ``all_by_image``, flipped as 1 - DMOS.

    The sheet's table starts where a row says ``image``; the image called 1600 arrives as a number.
    """
    path = files["csiq.DMOS.xlsx"]
    with reading(path, "an Excel workbook with the sheet all_by_image"):
        cells = pd.read_excel(path, sheet_name="all_by_image", header=None)
    header = np.argwhere((cells == "image").to_numpy())
    if len(header) == 0:
        raise unexpected(path, "a header cell 'image' in sheet all_by_image", "none")
    row, column = header[0]
    table = cells.iloc[row + 1 :, column:].set_axis(cells.iloc[row, column:].tolist(), axis=1)
    table = take_columns(table, ["image", "dst_type", "dst_lev", "dmos_std", "dmos"], path)
    unknown = sorted(set(table["dst_type"]) - set(CSIQ_TYPES), key=str)
    if unknown:
        raise unexpected(path, f"dst_type among {list(CSIQ_TYPES)}", unknown)
    if table["image"].isna().any():
        raise unexpected(path, "an image in every row", "an empty cell")
    folder, token = zip(*(CSIQ_TYPES[kind] for kind in table["dst_type"]), strict=True)
    reference = table["image"].astype(str)
    level = numbers(table, ["dst_lev"], path, whole=True, low=1)["dst_lev"].astype(int)
    scores = numbers(table, ["dmos", "dmos_std"], path, blank=True)
    parts = zip(folder, reference, token, level, strict=True)
    found = {"image": [f"{f}/{r}.{t}.{n}.png" for f, r, t, n in parts]}
    found |= {"mos": 1 - scores["dmos"], "mos_std": scores["dmos_std"], "reference": reference}
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
    lines = words_of(path)
    for number, words in lines:
        if len(words) != 2:
            raise unexpected(path, "`score name`", f"`{' '.join(words)}`", number)
    if not lines:
        raise unexpected(path, "lines `score name`", "none")
    table = pd.DataFrame([words for _, words in lines], columns=["mos", "image"])
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
    variance = numbers(table, ["var"], path, blank=True, low=0)["var"]
    scores = {"image": table["dist_img"], "mos": table["dmos"], "mos_std": np.sqrt(variance)}
    return pd.concat([pd.DataFrame(scores), names], axis=1)


def read_bid(files: Files) -> pd.DataFrame:
    """Read BID: the average grade; its spread only where the single grades bear it out.

    In a few rows the grades beside the average do not average to it, or are not as many as
    said; there ``mos_std`` is missing. Image numbers have gaps.
    """
    path = files["DatabaseGrades.xls"]
    with reading(path, "an Excel workbook of the old kind (.xls)"):
        sheet = xlrd.open_workbook(path, logfile=io.StringIO()).sheet_by_index(0)
        rows = [sheet.row_values(i) for i in range(sheet.nrows)] or [[]]
    cells = [[None if cell == "" else cell for cell in row] for row in rows[1:]]
    table = pd.DataFrame(cells, columns=rows[0])
    columns = ["Image Number", "Average Subjective Grade", "Number of Grades"]
    grade_columns = [c for c in table.columns if str(c).startswith("Grade #")]
    table = take_columns(table, [*columns, *grade_columns], path)
    whole = numbers(table, [columns[0], columns[2]], path, whole=True, low=1).astype(int)
    number, votes = whole[columns[0]], whole[columns[2]]
    mean = numbers(table, [columns[1]], path)[columns[1]]
    grades = table[grade_columns].apply(pd.to_numeric, errors="coerce")  # blanks become NaN
    sound = (grades.count(axis=1) == votes) & ((grades.mean(axis=1) - mean).abs() <= 1e-3)
    found = {"image": [f"DatabaseImage{n:04d}.JPG" for n in number], "mos": mean}
    found["mos_std"] = grades.std(axis=1, ddof=1).where(sound)
    return pd.DataFrame(found | {"votes": votes})


def read_livec(files: Files) -> pd.DataFrame:
    """Read LIVE In the Wild: three parallel lists; the training images t1, t2, ... are dropped."""
    images = matlab_names(files["Data/AllImages_release.mat"], "AllImages_release")
    mos = matlab_numbers(files["Data/AllMOS_release.mat"], "AllMOS_release")
    std = matlab_numbers(files["Data/AllStdDev_release.mat"], "AllStdDev_release")
    lengths = {"AllImages_release": len(images), "AllMOS_release": len(mos)}
    lengths["AllStdDev_release"] = len(std)
    equal_lengths(lengths, files["Data/AllMOS_release.mat"].parent)
    table = pd.DataFrame({"image": images, "mos": mos, "mos_std": std})
    training = table["image"].str.fullmatch(r"t[1-7]\.bmp", case=False)
    return table[~training].reset_index(drop=True)


def read_spaq(files: Files) -> pd.DataFrame:
    """Read SPAQ: MOS on 0-100, and the five attribute scores where the sheet has them."""
    path = files["Annotations/MOS and Image attribute scores.xlsx"]
    with reading(path, "an Excel workbook"):
        table = pd.read_excel(path)
    attributes = ["Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    kept = [column for column in attributes if column in table.columns]
    table = take_columns(table, ["Image name", "MOS", *kept], path)
    scores = ["MOS", *kept]
    table[scores] = numbers(table, scores, path, blank=True)
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
    table = read_any_csv(path)
    take_columns(table, ["image", "mos"], path)
    return table.dropna(how="all")
