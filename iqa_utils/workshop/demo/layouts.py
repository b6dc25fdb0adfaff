"""Writers of synthetic data sets in their official layouts, quirks included.

Each takes an empty folder and the :class:`~iqa_utils.workshop.demo.pictures.Studio` that makes the
pictures, writes one set, and returns the scene of every image by the name that stands in its
annotation files. Votes, means, deviations and z-scores follow from the raters' answers.
"""

import io
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
import scipy.io
from openpyxl import Workbook

from iqa_utils.datasets import readers
from iqa_utils.workshop.demo import pictures as made
from iqa_utils.workshop.demo.pictures import PHOTOGRAPHS, Picture, Studio

SIDES = (768, 1024)  # height, width of most photographs
KONIQ_MEAN, KONIQ_SD = 58.73, 15.43  # of the official z-score MOS
KONIQ_PARTS = {  # images of the official split in each MOS range
    "training": (129, 833, 2157, 3790, 149),
    "validation": (18, 118, 307, 536, 21),
    "test": (36, 238, 617, 1082, 42),
}


def _quality(pictures: list[Picture]) -> np.ndarray:
    return np.array([picture.quality for picture in pictures])


def _answers(
    studio: Studio, name: str, pictures: list[Picture], n: int, noise: float = 0.12
) -> np.ndarray:
    """Let n raters answer; shape (N, n)."""
    rng = made.generator(studio.seed, f"{name} raters")
    return made.answers(_quality(pictures), n, rng, noise)


def _save_all(
    studio: Studio, folder: Path, names: Sequence[str], pictures: list[Picture], **options: int
) -> dict[str, str]:
    """Save pictures under their names; returns their scenes by name."""
    named = dict(zip(names, pictures, strict=True))
    for name, picture in named.items():
        studio.save(picture, folder / name, **options)
    return {name: picture.reference for name, picture in named.items()}


def make_koniq10k(root: Path, studio: Studio) -> dict[str, str]:
    """Write KonIQ-10k: three CSV files that agree, each with its own convention and order."""
    rng = made.generator(studio.seed, "koniq10k raters")
    n = studio.count(10073, 240)
    pictures = studio.authentic("koniq10k", n, SIDES)
    ids = np.sort(rng.choice(10**10, n, replace=False))
    answers = 1 + 4 * made.answers(_quality(pictures), 160, rng, 0.15)  # (N, R)
    answers = np.clip(np.rint(answers), 1, 5)
    asked = rng.permuted(np.tile(np.arange(160), (n, 1)), axis=1) < rng.integers(93, 158, (n, 1))
    answers = np.where(asked, answers, np.nan)
    counts = np.stack([(answers == k).sum(axis=1) for k in range(1, 6)], axis=1)  # (N, 5)
    total = counts.sum(axis=1)
    by_rater = (answers - np.nanmean(answers, 0)) / np.nanstd(answers, 0, ddof=1)
    z_score = np.nanmean(by_rater, axis=1)
    z_score = KONIQ_MEAN + KONIQ_SD * (z_score - z_score.mean()) / z_score.std(ddof=1)
    table = pd.DataFrame({"image_name": [f"{number}.jpg" for number in ids]})
    table[readers.KONIQ_COUNTS] = counts
    table["c_total"] = total
    table["MOS"] = counts @ np.arange(1, 6) / total
    table["SD"] = np.nanstd(answers, axis=1, ddof=1)
    table["MOS_zscore"] = np.clip(z_score, 0, 100)
    indicators, references = [], {}
    for name, picture in zip(table["image_name"], pictures, strict=True):
        factor = int(rng.integers(71, 101))
        path, references[name] = root / "1024x768" / name, picture.reference
        studio.save(picture, path, quality=factor)
        row = studio.measure(picture, path) | {"quality_factor": factor}
        row["hxw"] = int(rng.choice([3145728, 5038848, 10036224, 14732784]))  # of the original
        indicators.append(row | {"deep_feature": int(rng.integers(1, 201))})
    table["set"] = _parts_by_scene(table, references)
    if studio.official:
        table["MOS_zscore"], table["set"] = _official_ranges(table["MOS_zscore"], rng)
    sets = table.sort_values("image_name")
    by_name = sets.drop(columns="set")
    by_name.to_csv(root / "koniq10k_scores_and_distributions.csv", index=False, quoting=2)
    sets["MOS"] = sets["MOS_zscore"]
    sets[readers.KONIQ_COUNTS] = sets[readers.KONIQ_COUNTS].div(sets["c_total"], axis=0)
    sets.drop(columns="MOS_zscore").to_csv(root / "koniq10k_distributions_sets.csv", index=False)
    by_id = pd.DataFrame(indicators).assign(image_id=ids)  # in the order of the numbers
    by_id = by_id[["image_id", *readers.KONIQ_INDICATORS]]
    by_id.to_csv(root / "koniq10k_indicators.csv", index=False)
    return references


def _official_ranges(scores: pd.Series, rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
    """Move scores, in their order, so that each MOS range has its official share of each set."""
    official = np.array(list(KONIQ_PARTS.values())).T  # (5 ranges, 3 sets)
    upto = np.rint(np.cumsum(official) * len(scores) / official.sum()).astype(int)
    counts = np.diff(upto, prepend=0).reshape(official.shape)
    lows = [[low] * n for low, n in zip((4, 20, 40, 60, 80), counts.sum(axis=1), strict=True)]
    low = np.concatenate(lows)
    steps = np.concatenate([np.arange(len(one)) / max(1, len(one)) for one in lows])
    width = np.array([16, 20, 20, 20, 8])[np.searchsorted([20, 40, 60, 80], low, side="right")]
    parts = [rng.permutation(np.repeat(list(KONIQ_PARTS), row)) for row in counts]
    rising = scores.sort_values().index
    return pd.Series(low + width * steps, rising), pd.Series(np.concatenate(parts), rising)


def _parts_by_scene(table: pd.DataFrame, references: dict[str, str]) -> pd.Series:
    """Deal scenes to the sets, 70/10/20, so that every MOS range is in every set it can be."""
    pattern = ["training", "test", "validation", *["training"] * 2, "test", *["training"] * 4]
    scene = table["image_name"].map(references)
    by_photograph = dict.fromkeys(PHOTOGRAPHS, "training")
    by_photograph |= dict.fromkeys(PHOTOGRAPHS[4::6], "test") | {PHOTOGRAPHS[3]: "validation"}
    part = scene.map(by_photograph)
    free = table[part.isna()].sort_values("MOS_zscore")
    place = free.groupby((free["MOS_zscore"] // 20).clip(upper=4)).cumcount()
    return part.fillna(place.map(lambda i: pattern[i % 10]))


def make_live(root: Path, studio: Studio) -> dict[str, str]:
    """Write LIVE release 2: five folders with originals among the images, realigned DMOS."""
    pictures = studio.synthetic("live", list(readers.LIVE_FOLDERS), (512, 768), (29, 8, 3))
    answers = 100 * (1.02 - _answers(studio, "live", pictures, 23))
    dmos = np.clip(answers.mean(axis=1), readers.LIVE_TOP - 114.4, readers.LIVE_TOP)
    std = answers.std(axis=1, ddof=1) / 23**0.5
    rows, references = [], {}
    for folder in readers.LIVE_FOLDERS:
        judged = zip(pictures, dmos, std, strict=True)
        images = [(p, (mean, sd, 0)) for p, mean, sd in judged if p.distortion == folder]
        originals = studio.originals("live", folder, (512, 768))
        images[1:1] = [(picture, (0.0, 0.0, 1)) for picture in originals]  # as the real folders
        info = []
        for number, (picture, row) in enumerate(images, start=1):
            name = f"{folder}/img{number}.bmp"
            studio.save(picture, root / name)
            rows.append(row)
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


def make_csiq(root: Path, studio: Studio) -> dict[str, str]:
    """Write CSIQ: a sheet that starts in the fourth row and column, a scene called 1600."""
    known = enumerate(readers.CSIQ_TYPES.items(), start=1)
    types = {folder: (i, kind, token) for i, (kind, (folder, token)) in known}
    pictures = studio.synthetic("csiq", list(types), (512, 512), (30, 8, 2))
    answers = 1 - _answers(studio, "csiq", pictures, 25)
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
        index, kind, token = types[folder]
        file = f"{folder}/{name}.{token}.{picture.level}.png"
        studio.save(picture, root / "dst_imgs" / file)
        rows.append([name, index, kind, picture.level, answers[i].std(ddof=1), dmos[i]])
        references[file] = picture.reference
    for r, row in enumerate(rows, start=4):
        for c, value in enumerate(row, start=4):
            sheet.cell(r, c, value)
    _write_book(root / "csiq.DMOS.xlsx", book)
    return references


def make_kadid10k(root: Path, studio: Studio) -> dict[str, str]:
    """Write KADID-10k: whole answers from 1 to 5, their mean called dmos and their variance."""
    pictures = studio.synthetic("kadid10k", readers.KADID_TYPES, (384, 512), (81, 6, 1))
    answers = np.clip(np.rint(1 + 4 * _answers(studio, "kadid10k", pictures, 30)), 1, 5)
    coded = _coded(pictures, readers.KADID_TYPES)
    table = pd.DataFrame({"dist_img": [f"I{i:02d}_{j:02d}_{k:02d}.png" for i, j, k in coded]})
    table["ref_img"] = [f"I{i:02d}.png" for i, _, _ in coded]
    table["dmos"] = answers.mean(axis=1).round(2)
    table["var"] = answers.var(axis=1).round(3)
    table.to_csv(root / "dmos.csv", index=False)
    return _save_all(studio, root / "images", table["dist_img"], pictures)


def make_tid(root: Path, studio: Studio, name: str, types: list[str]) -> dict[str, str]:
    """Write TID2008 or TID2013: lines `score name`, spelt in mixed case as the real files are."""
    pictures = studio.synthetic(name, types, (384, 512), (25, 6, 1))
    mos = np.clip(0.3 + 7 * _answers(studio, name, pictures, 20).mean(axis=1), 0, 9)
    lines, references = [], {}
    for (i, j, k), picture, score in zip(_coded(pictures, types), pictures, mos, strict=True):
        stem = f"{'I' if j == 1 else 'i'}{i:02d}_{j:02d}_{k}"
        written = f"{stem}.{'BMP' if j == 2 else 'bmp'}"
        studio.save(picture, root / "distorted_images" / f"{stem}.bmp")
        lines.append(f"{score:.5f} {written}\r\n")
        references[written] = picture.reference
    (root / "mos_with_names.txt").write_bytes("".join(lines).encode())
    return references


def _coded(pictures: list[Picture], types: list[str]) -> list[tuple[int, int, int]]:
    """Number scenes and types from 1, as TID and KADID name their files."""
    scenes = list(dict.fromkeys(picture.reference for picture in pictures))
    number = {name: i for names in (scenes, types) for i, name in enumerate(names, start=1)}
    return [(number[p.reference], number[p.distortion], p.level) for p in pictures]


def make_bid(root: Path, studio: Studio) -> dict[str, str]:
    """Write BID: grades on 0-5 from 10 to 20 raters, padded with blanks; numbers with gaps."""
    rng = made.generator(studio.seed, "bid raters")
    n = studio.count(586, 80)
    pictures = studio.authentic("bid", n, (960, 1280))
    grades = np.clip(5 * made.answers(_quality(pictures), 20, rng), 0, 5)
    numbers = [number for number in range(1, n + 5) if number not in (2, 7, 11, 13)][:n]
    n_grades = rng.integers(10, 21, n)
    given = [row[:k] for row, k in zip(grades, n_grades, strict=True)]
    rows = [[i, g.mean(), len(g), *g] for i, g in zip(numbers, given, strict=True)]
    _write_bid_sheet(root / "DatabaseGrades.xls", rows)
    names = [f"DatabaseImage{number:04d}.JPG" for number in numbers]
    return _save_all(studio, root / "ImageDatabase", names, pictures, quality=92)


def make_livec(root: Path, studio: Studio) -> dict[str, str]:
    """Write LIVE In the Wild: three MATLAB lists that start with seven training images."""
    n = studio.count(1162, 96)
    pictures = studio.authentic("livec", n + 7, (500, 500))
    answers = np.clip(100 * _answers(studio, "livec", pictures, 175, 0.17), 0, 100)
    names = [f"t{i + 1}.bmp" for i in range(7)]
    names += [f"{100 + i}.{'JPG' if i % 2 else 'bmp'}" for i in range(n)]
    (root / "Data").mkdir()
    columns = {"Images": np.array(names, dtype=object)[:, None]}
    columns |= {"MOS": answers.mean(axis=1)[None], "StdDev": answers.std(axis=1, ddof=1)[None]}
    for part, values in columns.items():
        name = f"All{part}_release"
        _write_matlab(root / "Data" / f"{name}.mat", {name: values})
    training = _save_all(studio, root / "Images/trainingImages", names[:7], pictures[:7])
    return training | _save_all(studio, root / "Images", names[7:], pictures[7:])


def make_spaq(root: Path, studio: Studio) -> dict[str, str]:
    """Write SPAQ: one sheet with the mean score and the scores of five attributes."""
    names = [f"{i + 1:05d}.jpg" for i in range(studio.count(11125, 100))]
    pictures = studio.authentic("spaq", len(names), SIDES)
    answers = np.clip(100 * _answers(studio, "spaq", pictures, 6), 0, 100)
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    attributes = ["Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    sheet.append(["Image name", "MOS", *attributes])
    for name, row in zip(names, answers.round(2), strict=True):
        sheet.append([name, row.mean().round(2), *row[:5]])
    (root / "Annotations").mkdir()
    _write_book(root / "Annotations" / "MOS and Image attribute scores.xlsx", book)
    return _save_all(studio, root / "TestImage", names, pictures)


def make_table(root: Path, studio: Studio, name: str, official: int) -> dict[str, str]:
    """Write one CSV file of names and scores on 0-100; the layout of HTID and NRTID is unknown."""
    n, file, column = studio.count(official, 100), "scores.csv", "image"
    names = [f"images/{i:04d}.{'jpg' if name == 'htid' else 'bmp'}" for i in range(n)]
    if name == "flive":  # three folders of very different size
        file, column = "labels_image.csv", "name"
        folders = ["EE371R"] * 3 + ["blur_dataset"] * round(n * 999 / official)
        folders += ["voc_emotic_ava"] * (n - len(folders))
        names = [f"{folder}/{i:06d}.jpg" for i, folder in enumerate(folders)]
    pictures = studio.authentic(name, n, SIDES)
    mos = np.clip(100 * _answers(studio, name, pictures, 35).mean(axis=1), 0, 100)
    table = pd.DataFrame({column: names, "mos": mos.round(4)})
    table.to_csv(root / file, index=False, lineterminator="\r\n")
    return _save_all(studio, root, names, pictures)


def make_unlabelled(root: Path, studio: Studio) -> dict[str, str]:
    """Write photographs without scores, upright ones among them."""
    n, scale = studio.count(360_000, 160), studio.scale
    pictures = studio.authentic("unlabelled", n if scale > 1 else max(5, round(160 * scale)), SIDES)
    for i in range(4, len(pictures), 5):
        pictures[i] = pictures[i]._replace(pixels=np.swapaxes(pictures[i].pixels, 0, 1))
    names = [f"{i:06d}.jpg" for i in range(len(pictures))]
    return _save_all(studio, root, names, pictures, quality=90)


WRITERS: dict[str, Callable[[Path, Studio], dict[str, str]]] = {
    "koniq10k": make_koniq10k,
    "live": make_live,
    "csiq": make_csiq,
    "tid2013": partial(make_tid, name="tid2013", types=readers.TID_TYPES),
    "tid2008": partial(make_tid, name="tid2008", types=readers.TID_TYPES[:17]),
    "kadid10k": make_kadid10k,
    "bid": make_bid,
    "livec": make_livec,
    "spaq": make_spaq,
    "flive": partial(make_table, name="flive", official=39810),
    "htid": partial(make_table, name="htid", official=2880),
    "nrtid": partial(make_table, name="nrtid", official=500),
    "unlabelled": make_unlabelled,
}


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
    path.write_bytes(b"MATLAB 5.0 MAT-file, synthetic data".ljust(116) + stream.getvalue()[116:])


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
