"""Every reader on a small synthetic set in the official layout: exact scores, no other file."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from openpyxl import Workbook, load_workbook

from iqa_utils.datasets import DATASETS, load_scores
from iqa_utils.datasets.parsing import same_names
from iqa_utils.workshop.demo.layouts import _write_bid_sheet


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def write_matlab(root, name, **variables):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / name, variables)


def cells(*texts):
    return np.array([texts], dtype=object)


def write_sheet(path, rows, title):
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(path)


def koniq10k(root):
    header = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"
    rows = "b.jpg,0,0,0.25,0.75,0,100,70.5,0.435,training\na.jpg,0.5,0.5,0,0,0,100,12.25,0.5,test\n"
    write(root, "koniq10k_distributions_sets.csv", header + rows)


def live(root):
    # a folder holds as many images as its info.txt says; img2 of jp2k is an original
    folders = {"jp2k": ["a.bmp", "b.bmp"], "jpeg": ["a.bmp"], "wn": [], "gblur": [],
               "fastfading": ["b.bmp"]}  # fmt: skip
    for folder, references in folders.items():
        lines = [f"{name} img{i}.bmp 0.5\n" for i, name in enumerate(references, start=1)]
        write(root, f"{folder}/info.txt", "".join(lines))
    dmos, orgs = np.array([[100.25, 0, 11.774694, -2.5]]), np.array([[0.0, 1, 0, 0]])
    std = np.array([[3.0, 0, 1.5, 2]])
    write_matlab(root, "dmos_realigned.mat", dmos_new=dmos, dmos_std=std, orgs=orgs)
    names = cells("a.bmp", "b.bmp", "a.bmp", "b.bmp")
    write_matlab(root, "refnames_all.mat", refnames_all=names)


def csiq(root):
    head = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    rows = [[1600, 1, "noise", 1, 0.03, 0.0625], ["elk", 5, "jpeg 2000", 5, 0.1, 1.0]]
    rows = [["notes above the table"], [], *([None, None, None, *row] for row in [head, *rows])]
    write_sheet(root / "csiq.DMOS.xlsx", rows, "all_by_image")


def tid2008(root):
    write(root, "mos_with_names.txt", "5.5143 I01_01_1.bmp\r\n0.125 i25_17_4.bmp\r\n")


def tid2013(root):
    write(root, "mos_with_names.txt", "5.51429 I01_01_1.bmp\n0.24242 i25_24_5.BMP\n")


def kadid10k(root):
    rows = "I01_01_01.png,I01.png,4.57,0.496\nI81_25_05.png,I81.png,1.25,0.25\n"
    write(root, "dmos.csv", "dist_img,ref_img,dmos,var\n" + rows)


def bid(root):
    grades = [1.0, 2.0, 4.5]  # of the second image the average is not that of its grades
    rows = [[1, 2.5, 3, *grades], [3, 2.75, 3, *grades], [4, 2.5, 2, *grades]]
    root.mkdir(parents=True, exist_ok=True)
    _write_bid_sheet(root / "DatabaseGrades.xls", rows)


def livec(root):
    write_matlab(root, "Data/AllImages_release.mat",
                 AllImages_release=cells("t1.bmp", "3.bmp", "1001.JPG").T)  # fmt: skip
    write_matlab(root, "Data/AllMOS_release.mat", AllMOS_release=np.array([[80.0, 63.5, 3.42]]))
    deviations = np.array([[1.0, 19.25, 20.5]])
    write_matlab(root, "Data/AllStdDev_release.mat", AllStdDev_release=deviations)


def spaq(root):
    rows = [["Image name", "MOS", "Brightness"], ["00001.jpg", 48.86, 54], ["00002.jpg", 2, 20]]
    path = root / "Annotations" / "MOS and Image attribute scores.xlsx"
    write_sheet(path, rows, "Sheet1")


def flive(root):
    write(root, "labels_image.csv", "name,mos,is_valid\nblur/a.jpg,71.5,True\nEE371R/b.jpg,0.5,1\n")


def biq2021(root):
    write(root, "Train (Images and MOS).csv", "Image Name,MOS,,\nss01 (2).jpg,0.75,,\n")
    write(root, "Test (Images and MOS).csv", "Image Name,MOS\nss03 (1).jpg,0.125\n")


def own_csv(root):
    write(root, "scores.csv", "image,mos\nb.png,3.5\na.png,1\n")


EXPECTED = {  # images, mos and mos_std as a table has them; higher is better
    koniq10k: (["1024x768/b.jpg", "1024x768/a.jpg"], [70.5, 12.25], None),
    live: (
        ["jp2k/img1.bmp", "jpeg/img1.bmp", "fastfading/img1.bmp"],
        [111.774694 - 100.25, 100.0, 114.274694],
        [3.0, 1.5, 2.0],
    ),
    csiq: (
        ["dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/jpeg2000/elk.jpeg2000.5.png"],
        [0.9375, 0.0],
        [0.03, 0.1],
    ),
    tid2008: (
        ["distorted_images/I01_01_1.bmp", "distorted_images/i25_17_4.bmp"],
        [5.5143, 0.125],
        None,
    ),
    tid2013: (
        ["distorted_images/I01_01_1.bmp", "distorted_images/i25_24_5.BMP"],
        [5.51429, 0.24242],
        None,
    ),
    kadid10k: (
        ["images/I01_01_01.png", "images/I81_25_05.png"],
        [4.57, 1.25],
        [np.sqrt(0.496), 0.5],
    ),
    bid: (
        [f"ImageDatabase/DatabaseImage000{number}.JPG" for number in (1, 3, 4)],
        [2.5, 2.75, 2.5],
        [np.sqrt(3.25), np.nan, np.nan],  # (1.5^2 + 0.5^2 + 2^2) / (3 - 1): the sample's
    ),
    livec: (["Images/3.bmp", "Images/1001.JPG"], [63.5, 3.42], [19.25, 20.5]),
    spaq: (["TestImage/00001.jpg", "TestImage/00002.jpg"], [48.86, 2.0], None),
    flive: (["blur/a.jpg", "EE371R/b.jpg"], [71.5, 0.5], None),
    biq2021: (["Images/ss01 (2).jpg", "Images/ss03 (1).jpg"], [0.75, 0.125], None),
}
CASES = {layout.__name__: (layout, *told) for layout, told in EXPECTED.items()}
CASES |= {k: (own_csv, ["b.png", "a.png"], [3.5, 1.0], None) for k in ("htid", "nrtid", "table")}


def test_every_set_has_a_synthetic_file_of_its_layout():
    assert set(CASES) == set(DATASETS)


@pytest.mark.parametrize("name", CASES)
def test_a_reader_gives_exactly_these_scores(name: str, tmp_path: Path) -> None:
    layout, images, mos, mos_std = CASES[name]
    layout(tmp_path)
    frame = load_scores(name, tmp_path)
    assert frame["image"].tolist() == images
    np.testing.assert_allclose(frame["mos"], mos, rtol=1e-14, atol=1e-14)
    wanted = [np.nan] * len(mos) if mos_std is None else mos_std
    np.testing.assert_allclose(frame["mos_std"], wanted, rtol=1e-14)


def test_what_else_the_layouts_say_is_kept(tmp_path: Path) -> None:
    def column(layout, name):
        layout(tmp_path / layout.__name__)
        return load_scores(layout.__name__, tmp_path / layout.__name__)[name].tolist()

    assert column(live, "distortion") == ["jp2k", "jpeg", "fastfading"]
    assert column(live, "reference") == ["a", "a", "b"]
    assert column(csiq, "level") == [1, 5]
    assert column(csiq, "reference") == ["1600", "elk"]
    assert column(tid2008, "distortion") == ["additive noise", "contrast change"]
    assert column(tid2013, "distortion") == ["additive noise", "sparse sampling"]
    assert column(kadid10k, "distortion") == ["gaussian blur", "contrast change"]
    assert column(kadid10k, "level") == [1, 5]
    assert column(bid, "votes") == [3, 3, 2]
    assert column(spaq, "brightness") == [54, 20]
    assert column(biq2021, "split") == ["training", "test"]
    assert column(biq2021, "subset") == ["ss01", "ss03"]
    assert column(koniq10k, "mos_raw") == [3.75, 1.5]
    assert column(koniq10k, "c4") == [75, 0]


def test_live_without_its_info_files_needs_the_official_counts(tmp_path: Path) -> None:
    live(tmp_path)
    for info in tmp_path.glob("*/info.txt"):
        info.unlink()
    with pytest.raises(ValueError, match=r"differ in length.*'images by folder': 982"):
        load_scores("live", tmp_path)


def test_a_table_may_bring_its_own_columns(tmp_path: Path) -> None:
    text = "image,mos,mos_std,reference,level,split\na,1,0.5,r,2,test\nb,2,0.25,r,3,training\n"
    write(tmp_path, "scores.csv", text)
    frame = load_scores("table", tmp_path)
    assert frame["reference"].tolist() == ["r", "r"]
    assert frame["level"].tolist() == [2, 3]
    assert frame["split"].tolist() == ["test", "training"]
    assert frame["mos_std"].tolist() == [0.5, 0.25]
    assert pd.api.types.is_float_dtype(frame["mos"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.bmp\nb.bmp img2.bmp 0",
            r"info\.txt, line 1: expected `reference image parameter`, .*`a\.bmp`",
        ),
        (
            "a.bmp img1.bmp 0\n\nb.bmp img1.bmp 0",
            r"info\.txt, line 3: expected every .*, found img1\.bmp again",
        ),
        (
            "a.bmp img1.bmp 0\nb.bmp img3.bmp 0",
            r"info\.txt: expected img1\.bmp to img2\.bmp, .*img3.*no \['img2\.bmp'\]",
        ),
        (
            "a.bmp img1.bmp\nb.bmp img2.bmp\nc.bmp img3.bmp",
            r"refnames_all\.mat lacks, .*jp2k/img3\.bmp: c\.bmp",
        ),
        ("a.bmp img1.bmp 0", r"info\.txt lacks .*apart at jpeg/img1\.bmp: a\.bmp against b\.bmp"),
        ("a.bmp img1.bmp 0\nc.bmp img2.bmp 0", r"disagree on the reference of jp2k/img2\.bmp: c"),
        ("\xe9.bmp img1.bmp 0", r"jp2k/info\.txt: expected text in UTF-8"),
    ],
)
def test_what_is_wrong_with_an_info_file_of_live_is_named(text, message, tmp_path) -> None:
    live(tmp_path)
    (tmp_path / "jp2k" / "info.txt").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        load_scores("live", tmp_path)


def test_the_originals_of_live_must_be_marked_and_agree_with_the_older_list(tmp_path) -> None:
    live(tmp_path)
    write_matlab(tmp_path, "dmos.mat", orgs=np.array([[0.0, 1, 0, 0]]))
    assert len(load_scores("live", tmp_path)) == 3
    write_matlab(tmp_path, "dmos.mat", orgs=np.array([[0.0, 1, 0, 1]]))
    with pytest.raises(
        ValueError, match=r"dmos\.mat disagree on orgs of 1 .*img1\.bmp: 0 against 1"
    ):
        load_scores("live", tmp_path)
    write_matlab(tmp_path, "dmos.mat", orgs=np.array([[0.0, 1, 0, np.nan]]))
    with pytest.raises(ValueError, match=r"dmos\.mat: expected 0 or 1 in orgs, found \[nan\]"):
        load_scores("live", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xe9\xff", b"<html>", "half"])
@pytest.mark.parametrize("name", CASES)
def test_an_official_file_that_cannot_be_read_is_named(name, content, tmp_path) -> None:
    CASES[name][0](tmp_path)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size):
        original = path.read_bytes()
        if content == "half" and path.suffix in (".csv", ".txt"):
            continue  # may end after a whole row
        path.write_bytes(original[: len(original) // 2] if content == "half" else content)
        with pytest.raises(ValueError, match=re.escape(path.name)) as error:
            load_scores(name, tmp_path)
        assert "\n" not in str(error.value)
        path.write_bytes(original)


def test_tid2008_has_seventeen_distortions_and_no_more(tmp_path):
    write(tmp_path, "mos_with_names.txt", "5.5 I01_17_1.bmp\n5.0 I01_18_1.bmp\n")
    with pytest.raises(ValueError, match=r"I01_18_1\.bmp"):
        load_scores("tid2008", tmp_path)


def test_files_that_disagree_name_five_examples_of_each():
    left, right = (pd.Series([f"{side}{i}.png" for i in range(7)]) for side in "ab")
    with pytest.raises(ValueError, match="two files disagree: 7 images only in the first") as error:
        same_names(left, right, "two files")
    assert [str(error.value).count(f"'{side}") for side in "ab"] == [5, 5]


@pytest.mark.parametrize("name", ["koniq10k", "tid2008", "kadid10k", "flive", "biq2021", "table"])
def test_blank_lines_and_line_ends_of_windows_change_nothing(name, tmp_path) -> None:
    CASES[name][0](tmp_path)
    first = load_scores(name, tmp_path)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        lines = path.read_text().splitlines()
        blank = "," * lines[0].count(",")
        text = "\r\n".join([lines[0], "", *lines[1:], blank, "", ""])
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(load_scores(name, tmp_path), first)


@pytest.mark.parametrize(
    ("layout", "cell", "value", "message"),
    [
        (csiq, "F4", "Noise", r"expected dst_type among .*found \['Noise'\]"),
        (csiq, "F4", None, r"expected dst_type among .*found \[nan\]"),
        (csiq, "D4", None, "expected an image in every row"),
        (csiq, "G4", 1.5, r"a whole number from 1 in dst_lev of 1600, found 1\.5"),
        (csiq, "H4", "few", "a number in dmos_std of 1600, found 'few'"),
        (csiq, "D3", "name", "expected a header cell 'image'"),
        (csiq, "H3", "dmos", r"missing \['dmos_std'\]"),
        (csiq, "E3", "dmos", r"more than once \['dmos'\]"),
        (spaq, "C2", "dark", r"a number in Brightness of 00001\.jpg, found 'dark'"),
    ],
)
def test_a_wrong_cell_of_a_sheet_is_named(layout, cell, value, message, tmp_path) -> None:
    layout(tmp_path)
    path = next(tmp_path.rglob("*.xlsx"))
    book = load_workbook(path)
    book.active[cell] = value
    book.save(path)
    with pytest.raises(ValueError, match=rf"{path.name}: .*({message})"):
        load_scores(layout.__name__, tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, r"a whole number from 1 in Image Number of nan"),
        (0, 3.5, r"a whole number from 1 in Image Number of 3\.5"),
        (1, np.nan, "a number in Average Subjective Grade of 3"),
        (2, np.nan, "a whole number from 1 in Number of Grades of 3"),
    ],
)
def test_a_wrong_number_in_the_sheet_of_bid_is_named(column, value, message, tmp_path) -> None:
    rows = [[1, 2.5, 3, 1.0, 2.0, 4.5], [3, 2.75, 3, 1.0, 2.0, 4.5]]
    rows[1][column] = value
    _write_bid_sheet(tmp_path / "DatabaseGrades.xls", rows)
    with pytest.raises(ValueError, match=rf"DatabaseGrades\.xls: expected {message}"):
        load_scores("bid", tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AllMOS_release", cells("few", "63.5", "3"), "numbers in AllMOS_release"),
        ("AllMOS_release", np.array([[80.0, 63.5]]), r"differ in length.*'AllMOS_release': 2"),
        ("AllImages_release", cells("t1.bmp", "", "3.bmp"), r"a name in cell 2 .*found \[\]"),
        ("AllImages_release", cells("t1.bmp", 7.0, "3.bmp"), r"a name in cell 2 .*found \[7\.0\]"),
    ],
)
def test_a_wrong_list_of_livec_is_named(variable, value, message, tmp_path) -> None:
    livec(tmp_path)
    write_matlab(tmp_path, f"Data/{variable}.mat", **{variable: value})
    with pytest.raises(ValueError, match=message):
        load_scores("livec", tmp_path)


def test_a_negative_variance_of_kadid_is_named(tmp_path) -> None:
    write(tmp_path, "dmos.csv", "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4,-0.1\n")
    with pytest.raises(ValueError, match=r"dmos\.csv: .*from 0 in var of I01_01_01\.png, found"):
        load_scores("kadid10k", tmp_path)
