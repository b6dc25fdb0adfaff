"""Writers of the demo data sets in their official layouts, quirks included.

Each takes an empty folder, the scale and the seed of ``demo.make_demo``, writes one set, and
returns the scene of every image by the name that stands in its annotation files. Votes,
means, deviations and z-scores follow from the raters' answers and from nothing else.
"""

import io
import re
import struct
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
import scipy.io
from openpyxl import Workbook

from iqa_utils.datasets.readers import (
    CSIQ_TYPES,
    KADID_TYPES,
    KONIQ_COUNTS,
    KONIQ_INDICATORS,
    LIVE_FOLDERS,
    LIVE_TOP,
    TID_TYPES,
)
from iqa_utils.demo import pictures as made
from iqa_utils.demo.distortions import as_image
from iqa_utils.demo.pictures import Picture
from iqa_utils.demo.scenes import PHOTOGRAPHS
from iqa_utils.indicators import measure

KONIQ_MEAN, KONIQ_SD = 58.73, 15.43  # of the official z-score MOS


def make_koniq10k(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write KonIQ-10k: three CSV files that agree, each with its own convention and order."""
    rng = made.generator(seed, "koniq10k raters")
    n = made.count(10073, 240, scale)
    pictures = list(made.authentic("koniq10k", n, (768, 1024), scale, seed))
    ids = np.sort(rng.choice(10**10, n, replace=False))
    quality = np.array([picture.quality for picture in pictures])
    answers = np.clip(np.rint(1 + 4 * made.answers(quality, 160, rng, 0.15)), 1, 5)  # (N, R)
    asked = rng.permuted(np.tile(np.arange(160), (n, 1)), axis=1) < rng.integers(93, 158, (n, 1))
    answers = np.where(asked, answers, np.nan)
    counts = np.stack([(answers == k).sum(axis=1) for k in range(1, 6)], axis=1)  # (N, 5)
    total = counts.sum(axis=1)
    by_rater = (answers - np.nanmean(answers, 0)) / np.nanstd(answers, 0, ddof=1)
    z_score = np.nanmean(by_rater, axis=1)
    z_score = KONIQ_MEAN + KONIQ_SD * (z_score - z_score.mean()) / z_score.std(ddof=1)
    table = pd.DataFrame({"image_name": [f"{number}.jpg" for number in ids]})
    table[KONIQ_COUNTS] = counts
    table["c_total"] = total
    table["MOS"] = counts @ np.arange(1, 6) / total
    table["SD"] = np.nanstd(answers, axis=1, ddof=1)
    table["MOS_zscore"] = np.clip(z_score, 0, 100)
    indicators = []
    for name, picture in zip(table["image_name"], pictures, strict=True):
        factor = int(rng.integers(71, 101))
        path = root / "1024x768" / name
        _save(picture.pixels, path, quality=factor)
        indicators.append(_indicators(path, factor, rng))
    references = {n: p.reference for n, p in zip(table["image_name"], pictures, strict=True)}
    by_name = table.sort_values("image_name")
    by_name.to_csv(root / "koniq10k_scores_and_distributions.csv", index=False, quoting=2)
    sets = by_name.assign(MOS=by_name["MOS_zscore"], set=_official_parts(by_name, references))
    sets[KONIQ_COUNTS] = sets[KONIQ_COUNTS].div(sets["c_total"], axis=0)
    sets.drop(columns="MOS_zscore").to_csv(root / "koniq10k_distributions_sets.csv", index=False)
    by_id = pd.DataFrame(indicators).assign(image_id=ids)  # in the order of the numbers
    by_id = by_id[["image_id", *KONIQ_INDICATORS]]
    by_id.to_csv(root / "koniq10k_indicators.csv", index=False)
    return references


def _official_parts(table: pd.DataFrame, references: dict[str, str]) -> pd.Series:
    """Deal scenes to the parts, 70/10/20, so that every MOS range is in every part it can be."""
    pattern = ["training", "test", "validation", "training", "training", "test"]
    pattern += ["training"] * 4
    scene = table["image_name"].map(references)
    by_photograph = dict.fromkeys(PHOTOGRAPHS, "training")
    by_photograph |= dict.fromkeys(PHOTOGRAPHS[4::6], "test") | {PHOTOGRAPHS[3]: "validation"}
    part = scene.map(by_photograph)
    free = table[part.isna()].sort_values("MOS_zscore")
    place = free.groupby((free["MOS_zscore"] // 20).clip(upper=4)).cumcount()
    return part.fillna(place.map(lambda i: pattern[i % 10]))


def _indicators(path: Path, factor: int, rng: np.random.Generator) -> dict[str, float]:
    """Measure what the official table of indicators holds; the last two are drawn."""
    measured = measure(path)
    measured["quality_factor"] = factor
    measured["hxw"] = int(rng.choice([3145728, 5038848, 10036224, 14732784]))  # of the original
    measured["deep_feature"] = int(rng.integers(1, 201))
    return measured


def make_live(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write LIVE release 2: five folders with originals among the images, realigned DMOS."""
    rng = made.generator(seed, "live raters")
    layout = {"official": 29, "scenes": 8, "per_pair": 3}
    pictures = list(made.synthetic("live", list(LIVE_FOLDERS), (512, 768), scale, seed, **layout))
    quality = np.array([picture.quality for picture in pictures])
    answers = 100 * (1.02 - made.answers(quality, 23, rng))
    dmos = np.clip(answers.mean(axis=1), LIVE_TOP - 114.4, LIVE_TOP)
    std = answers.std(axis=1, ddof=1) / 23**0.5
    rows, references = [], {}
    for folder in LIVE_FOLDERS:
        images = [i for i, picture in enumerate(pictures) if picture.distortion == folder]
        images.insert(1, -1 - list(LIVE_FOLDERS).index(folder))  # an original, as the real folders
        info = []
        for number, i in enumerate(images, start=1):
            name = f"{folder}/img{number}.bmp"
            picture = pictures[i] if i >= 0 else _original("live", -1 - i, scale, seed)
            _save(picture.pixels, root / name)
            rows.append((dmos[i], std[i], 0) if i >= 0 else (0.0, 0.0, 1))
            references[name] = picture.reference
            info.append(f"{picture.reference}.bmp img{number}.bmp {picture.level}")
        (root / folder / "info.txt").write_text("\n".join(info) + "\n")
    dmos_new, dmos_std, orgs = np.array(rows).T[:, None]  # (1, N) each
    realigned = {"dmos_new": dmos_new, "dmos_std": dmos_std, "orgs": orgs}
    _write_matlab(root / "dmos_realigned.mat", realigned)
    legacy = 100 / (1 + np.exp((50 - dmos_new) / 24)) * (1 - orgs)
    _write_matlab(root / "dmos.mat", {"dmos": legacy, "orgs": orgs})
    cells = np.array([[f"{scene}.bmp" for scene in references.values()]], dtype=object)
    _write_matlab(root / "refnames_all.mat", {"refnames_all": cells})
    return references


def _original(name: str, i: int, scale: float, seed: int) -> Picture:
    """Return the clean scene itself."""
    reference, pixels = made.scene(name, i, made.sides(512, 768, scale), seed)
    return Picture(reference, "", 0, pixels, 1.0)


def make_csiq(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write CSIQ: a sheet that starts in the fourth row and column, a scene called 1600."""
    rng = made.generator(seed, "csiq raters")
    types = {folder: (kind, token) for kind, (folder, token) in CSIQ_TYPES.items()}
    layout = {"official": 30, "scenes": 8, "per_pair": 2}
    pictures = list(made.synthetic("csiq", list(types), (512, 512), scale, seed, **layout))
    answers = 1 - made.answers(np.array([picture.quality for picture in pictures]), 25, rng)
    dmos = np.clip(answers.mean(axis=1), 0, 1)
    scenes = list(dict.fromkeys(picture.reference for picture in pictures))
    names = {scene: 1600 if i == 0 else scene for i, scene in enumerate(scenes)}
    book = Workbook()
    book.active.title = "z_crit"
    sheet = book.create_sheet("all_by_image")
    header = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    rows, references = [header], {}
    for i, picture in enumerate(pictures):
        folder, name = picture.distortion, names[picture.reference]
        kind, token = types[folder]
        file = f"{folder}/{name}.{token}.{picture.level}.png"
        _save(picture.pixels, root / "dst_imgs" / file)
        index = list(types).index(folder) + 1
        rows.append([name, index, kind, picture.level, answers[i].std(ddof=1), dmos[i]])
        references[file] = picture.reference
    for r, row in enumerate(rows, start=4):
        for c, value in enumerate(row, start=4):
            sheet.cell(r, c, value)
    _write_book(root / "csiq.DMOS.xlsx", book)
    return references


def make_kadid10k(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write KADID-10k: whole answers from 1 to 5, their mean called dmos and their variance."""
    rng = made.generator(seed, "kadid10k raters")
    layout = {"official": 81, "scenes": 6, "per_pair": 1}
    pictures = list(made.synthetic("kadid10k", KADID_TYPES, (384, 512), scale, seed, **layout))
    quality = np.array([picture.quality for picture in pictures])
    answers = np.clip(np.rint(1 + 4 * made.answers(quality, 30, rng)), 1, 5)
    coded = _coded(pictures, KADID_TYPES)
    table = pd.DataFrame({"dist_img": [f"I{i:02d}_{j:02d}_{k:02d}.png" for i, j, k in coded]})
    table["ref_img"] = [f"I{i:02d}.png" for i, _, _ in coded]
    table["dmos"] = answers.mean(axis=1).round(2)
    table["var"] = answers.var(axis=1).round(3)
    table.to_csv(root / "dmos.csv", index=False)
    for name, picture in zip(table["dist_img"], pictures, strict=True):
        _save(picture.pixels, root / "images" / name)
    return {n: p.reference for n, p in zip(table["dist_img"], pictures, strict=True)}


def make_tid2013(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write TID2013: lines `score name`, spelt in mixed case as the real file is."""
    rng = made.generator(seed, "tid2013 raters")
    layout = {"official": 25, "scenes": 6, "per_pair": 1}
    pictures = list(made.synthetic("tid2013", TID_TYPES, (384, 512), scale, seed, **layout))
    quality = np.array([picture.quality for picture in pictures])
    mos = np.clip(0.3 + 7 * made.answers(quality, 20, rng).mean(axis=1), 0, 9)
    lines, references = [], {}
    for (i, j, k), picture, score in zip(_coded(pictures, TID_TYPES), pictures, mos, strict=True):
        name = f"{'I' if j == 1 else 'i'}{i:02d}_{j:02d}_{k}"
        written = f"{name}.{'BMP' if j == 2 else 'bmp'}"
        _save(picture.pixels, root / "distorted_images" / f"{name}.bmp")
        lines.append(f"{score:.5f} {written}\r\n")
        references[written] = picture.reference
    (root / "mos_with_names.txt").write_bytes("".join(lines).encode())
    return references


def _coded(pictures: list[Picture], types: list[str]) -> list[tuple[int, int, int]]:
    """Number scenes and types from 1, as TID and KADID name their files."""
    scenes = list(dict.fromkeys(picture.reference for picture in pictures))
    number = {name: i for names in (scenes, types) for i, name in enumerate(names, start=1)}
    return [(number[p.reference], number[p.distortion], p.level) for p in pictures]


def make_bid(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write BID: grades on 0-5 from 10 to 20 raters, padded with blanks; numbers with gaps."""
    rng = made.generator(seed, "bid raters")
    n = made.count(586, 80, scale)
    pictures = list(made.authentic("bid", n, (960, 1280), scale, seed))
    quality = np.array([picture.quality for picture in pictures])
    grades = np.clip(5 * made.answers(quality, 20, rng), 0, 5)
    numbers = [number for number in range(1, n + 5) if number not in (2, 7, 11, 13)][:n]
    n_grades = rng.integers(10, 21, n)
    rows, references = [], {}
    for i, number in enumerate(numbers):
        given = grades[i, : n_grades[i]]
        rows.append([number, given.mean(), int(n_grades[i]), *given])
        name = f"DatabaseImage{number:04d}.JPG"
        _save(pictures[i].pixels, root / "ImageDatabase" / name, quality=92)
        references[name] = pictures[i].reference
    _write_bid_sheet(root / "DatabaseGrades.xls", rows)
    return references


def make_livec(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write LIVE In the Wild: three MATLAB lists that start with seven training images."""
    rng = made.generator(seed, "livec raters")
    n = made.count(1162, 96, scale)
    pictures = list(made.authentic("livec", n + 7, (500, 500), scale, seed))
    quality = np.array([picture.quality for picture in pictures])
    answers = np.clip(100 * made.answers(quality, 175, rng, 0.17), 0, 100)
    names = [f"t{i + 1}.bmp" for i in range(7)]
    names += [f"{100 + i}.{('bmp', 'JPG')[i % 2]}" for i in range(n)]
    for name, picture in zip(names, pictures, strict=True):
        folder = root / "Images" / ("trainingImages" if name[0] == "t" else "")
        _save(picture.pixels, folder / name)
    (root / "Data").mkdir()
    columns = {
        "Images": np.array(names, dtype=object)[:, None],
        "MOS": answers.mean(axis=1)[None],
        "StdDev": answers.std(axis=1, ddof=1)[None],
    }
    for part, values in columns.items():
        path = root / "Data" / f"All{part}_release.mat"
        _write_matlab(path, {f"All{part}_release": values})
    return {n: p.reference for n, p in zip(names, pictures, strict=True)}


def make_unlabelled(root: Path, scale: float, seed: int) -> dict[str, str]:
    """Write photographs without scores, upright ones among them."""
    n = made.count(360_000, 160, scale) if scale > 1 else max(5, round(160 * scale))
    references = {}
    for i, picture in enumerate(made.authentic("unlabelled", n, (768, 1024), scale, seed)):
        name = f"{i:06d}.jpg"
        upright = np.swapaxes(picture.pixels, 0, 1) if i % 5 == 4 else picture.pixels
        _save(upright, root / name, quality=90)
        references[name] = picture.reference
    return references


def _save(pixels: np.ndarray, path: Path, **options: object) -> None:
    """Write pixels (H, W, 3) in [0, 1] as the file's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(pixels).save(path, **options)


def _write_bid_sheet(path: Path, rows: list[list[float]]) -> None:
    """Write numbers under the official header as a one-sheet workbook of Excel 2 (BIFF2)."""
    header = ["Image Number", "Average Subjective Grade", "Number of Grades"]
    header += [f"Grade #{i}" for i in range(1, 21)]
    records = [struct.pack("<HHHH", 0x0009, 4, 0x0002, 0x0010)]  # begin of a sheet
    records.append(struct.pack("<HHH", 0x0042, 2, 0x8001))  # code page 1252
    for column, text in enumerate(header):
        cell = struct.pack("<HH3xB", 0, column, len(text)) + text.encode()
        records.append(struct.pack("<HH", 0x0004, len(cell)) + cell)
    for row, values in enumerate(rows, start=1):
        for column, value in enumerate(values):
            records.append(struct.pack("<HHHH3xd", 0x0003, 15, row, column, value))
    records.append(struct.pack("<HH", 0x000A, 0))  # end
    path.write_bytes(b"".join(records))


def _write_matlab(path: Path, variables: dict[str, np.ndarray]) -> None:
    """Write a MATLAB file without the time of writing in its header."""
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    path.write_bytes(b"MATLAB 5.0 MAT-file, made data".ljust(116) + stream.getvalue()[116:])


def _write_book(path: Path, book: Workbook) -> None:
    """Write a workbook without the time of writing in it."""
    stream = io.BytesIO()
    book.save(stream)
    with ZipFile(stream) as packed, ZipFile(path, "w", ZIP_DEFLATED) as fixed:
        for name in packed.namelist():
            part = packed.read(name)
            if name == "docProps/core.xml":
                part = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+", b"2000-01-01T00:00:00", part)
            fixed.writestr(ZipInfo(name), part, ZIP_DEFLATED)
