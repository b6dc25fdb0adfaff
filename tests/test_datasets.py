"""Readers against the real annotation files, and against small made files that are wrong."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from openpyxl import Workbook
from PIL import Image
from typer.testing import CliRunner

from iqa_utils import datasets
from iqa_utils.datasets import (
    DATASETS,
    audit,
    check_dataset,
    check_images,
    load_scores,
    report_lines,
)
from iqa_utils.workshop.cli import app

KONIQ_SETS = "koniq10k_distributions_sets.csv"
KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"


def write_csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def koniq(real_data: Path) -> pd.DataFrame:
    return load_scores("koniq10k", real_data / "koniq10k")


@pytest.fixture(scope="module")
def small_koniq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("koniq")
    write_csv(
        root / KONIQ_SETS,
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"
        "10.jpg,0.0,0.0,0.25,0.75,0.0,100,70.5,0.435194139889,training\n"
        "9.jpg,0.5,0.5,0.0,0.0,0.0,100,12.25,0.502518907629606,test\n",
    )
    write_csv(
        root / KONIQ_SCORES,
        '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"\n'
        '"10.jpg",0,0,25,75,0,100,3.75,0.435194139889245,70.5\n'
        '"9.jpg",50,50,0,0,0,100,1.5,0.502518907629606,12.25\n',
    )
    header = "image_id,brightness,contrast,colorfulness,sharpness,quality_factor,bitrate,hxw,"
    write_csv(
        root / "koniq10k_indicators.csv",
        f"{header}deep_feature\n9,0.1,0.2,0.3,4,80,0.5,1000,7\n10,0.6,0.7,0.8,9,90,0.4,2000,8\n",
    )
    return root


def test_a_score_table_has_the_promised_columns_and_attributes(small_koniq: Path) -> None:
    frame = load_scores("koniq10k", small_koniq)
    assert list(frame.columns[:7]) == datasets.COLUMNS
    assert frame.index.equals(pd.RangeIndex(2))
    assert frame.attrs.keys() == {"dataset", "title", "scale", "kind", "demo", "fingerprint"}
    assert (frame.attrs["dataset"], frame.attrs["kind"]) == ("koniq10k", "authentic")
    assert frame.attrs["scale"] == (0.0, 100.0)
    assert not frame.attrs["demo"]
    assert (frame["reference"] == frame["image"]).all()
    assert frame["mos_std"].isna().all()  # the z-score MOS has no spread on its own scale


def test_koniq_files_in_different_orders_are_joined_by_name(small_koniq: Path) -> None:
    frame = load_scores("koniq10k", small_koniq).set_index("image")
    assert frame.loc["1024x768/10.jpg", "brightness"] == 0.6
    assert frame.loc["1024x768/9.jpg", "brightness"] == 0.1
    assert frame.loc["1024x768/9.jpg", ["c1", "c2", "mos_raw"]].tolist() == [50, 50, 1.5]


def test_the_koniq_sets_file_alone_gives_the_same_scores(small_koniq: Path, tmp_path: Path) -> None:
    shutil.copy(small_koniq / KONIQ_SETS, tmp_path)
    alone, full = load_scores("koniq10k", tmp_path), load_scores("koniq10k", small_koniq)
    columns = ["image", "mos", "split", "c1", "c5", "mos_raw"]
    pd.testing.assert_frame_equal(alone[columns], full[columns], check_exact=False)
    assert alone["sharpness"].isna().all()


def test_koniq_files_that_disagree_are_refused(small_koniq: Path, tmp_path: Path) -> None:
    shutil.copytree(small_koniq, tmp_path / "k")
    path = tmp_path / "k" / KONIQ_SCORES
    original = path.read_text()
    path.write_text(original.replace("70.5", "71.5"))
    with pytest.raises(ValueError, match=r"MOS_zscore of 1 .*10\.jpg: 71\.5 against 70"):
        load_scores("koniq10k", tmp_path / "k")
    path.write_text(original.replace("9.jpg", "8.jpg"))
    with pytest.raises(ValueError, match=r"1 images only in the first \['8\.jpg'\]"):
        load_scores("koniq10k", tmp_path / "k")
    path.write_text(original.replace("0,0,25,75,0,100,3.75", "0,0,24,76,0,100,3.76"))
    with pytest.raises(ValueError, match="disagree on c3"):
        load_scores("koniq10k", tmp_path / "k")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            KONIQ_SCORES,
            "75,0,100",
            "75,0,101",
            r"votes disagree on c_total of 1 .*10\.jpg: 101 .*100",
        ),
        (
            KONIQ_SCORES,
            "3.75",
            "3.76",
            r"mean of its votes disagree on MOS .*10\.jpg: 3\.76 .*3\.75",
        ),
        (KONIQ_SCORES, "3.75", "3.750002", r"disagree on MOS .*10\.jpg: 3\.750002 against 3\.75"),
        (KONIQ_SCORES, "3.75,", ",", r"a number in MOS of 10\.jpg, found .*nan"),
        (KONIQ_SETS, "0.5,0.5,", "0.5,0.3,", r"votes disagree on c_total of 1 .*9\.jpg: 100 .*80"),
        (KONIQ_SETS, "0.25,0.75,0.0,100", "0.0,0.0,0.0,0", r"number from 1 in c_total of 10\.jpg"),
        (KONIQ_SETS, "0.75", "many", r"a number from 0 in c4 of 10\.jpg, found 'many'"),
        (KONIQ_SETS, ",training", ",", r"a set for every image, found none for 10\.jpg"),
        (KONIQ_SCORES, '"9.jpg",50', '"10.jpg",50', r"only in the second \['9\.jpg'\]"),
        (
            "koniq10k_indicators.csv",
            "\n9,",
            "\n10,0,0,0,0,0,0,0,0\n9,",
            r"found \['10\.jpg'\] again",
        ),
        ("koniq10k_indicators.csv", "0.2,", "", r"a number in deep_feature of 9, found .*nan"),
    ],
)
def test_what_a_koniq_file_says_of_itself_must_agree(
    file: str, old: str, new: str, message: str, small_koniq: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_koniq, tmp_path / "k")
    path = tmp_path / "k" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"{file}.* {message}"):
        load_scores("koniq10k", tmp_path / "k")


def test_real_koniq_has_its_rows_ranges_and_split(koniq: pd.DataFrame) -> None:
    assert len(koniq) == DATASETS["koniq10k"].n_images == 10073
    first = koniq.iloc[0]
    assert (first["image"], first["split"]) == ("1024x768/10004473376.jpg", "training")
    assert first[["c1", "c2", "c3", "c4", "c5", "votes"]].tolist() == [0, 0, 25, 73, 7, 105]
    assert first["mos"] == pytest.approx(77.3836206896552, abs=1e-12)
    assert koniq["split"].value_counts().to_dict() == {
        "training": 7058,
        "validation": 1000,
        "test": 2015,
    }
    assert koniq["mos"].min() == pytest.approx(3.9118, abs=5e-5)
    assert koniq["mos"].max() == pytest.approx(88.3889, abs=5e-5)
    assert koniq["mos_raw"].agg(["min", "max"]).round(4).tolist() == [1.0962, 4.31]


def test_real_koniq_range_counts_are_those_of_the_paper(koniq: pd.DataFrame) -> None:
    counts = np.histogram(koniq["mos"], [0, 20, 40, 60, 80, 100])[0]
    assert counts.tolist() == [183, 1189, 3081, 5408, 212]
    on_edges = koniq.loc[koniq["mos"].isin([20.0, 40.0, 60.0, 80.0]), "image"]
    assert set(on_edges) == {"1024x768/2350031609.jpg", "1024x768/517369320.jpg"}


def test_real_koniq_deviation_is_the_sample_one(koniq: pd.DataFrame) -> None:
    votes = koniq[["c1", "c2", "c3", "c4", "c5"]].to_numpy(float)  # (N, 5)
    n, grades = votes.sum(axis=1), np.arange(1, 6)
    variance = (votes * (grades - koniq["mos_raw"].to_numpy()[:, None]) ** 2).sum(axis=1) / (n - 1)
    np.testing.assert_allclose(koniq["sd_raw"], np.sqrt(variance), atol=1e-12)


def test_real_koniq_indicators_are_joined_by_name_not_position(koniq: pd.DataFrame) -> None:
    assert koniq["mos"].corr(koniq["sharpness"]) == pytest.approx(0.6440, abs=5e-5)
    assert koniq["mos"].corr(koniq["brightness"]) == pytest.approx(0.3499, abs=5e-5)


def test_real_tid2013_keeps_its_mixed_case(real_data: Path) -> None:
    frame = load_scores("tid2013", real_data / "tid2013")
    assert len(frame) == 3000
    assert frame["image"].iloc[:2].tolist() == [
        "distorted_images/I01_01_1.bmp",
        "distorted_images/i01_01_2.bmp",
    ]
    assert frame["image"].str.contains("/i").sum() == 2925
    assert frame["image"].str.endswith(".BMP").sum() == 50
    assert frame["reference"].value_counts().tolist() == [120] * 25
    assert frame["distortion"].value_counts().tolist() == [125] * 24
    assert frame["mos"].agg(["min", "max"]).tolist() == [0.24242, 7.21429]


def test_real_livec_drops_the_seven_training_images(real_data: Path) -> None:
    frame = load_scores("livec", real_data / "livec")
    assert len(frame) == 1162
    assert frame.loc[0, ["image", "mos", "mos_std"]].tolist() == [
        "Images/100.bmp",
        pytest.approx(32.56107532),
        pytest.approx(19.12472638),
    ]
    assert frame["image"].str.endswith(".JPG").sum() == 627
    assert not frame["image"].str.contains("/t").any()


def test_real_bid_has_gaps_and_no_spread_where_its_grades_are_off(real_data: Path) -> None:
    frame = load_scores("bid", real_data / "bid")
    assert len(frame) == 586
    numbers = frame["image"].str.extract(r"Image(\d{4})\.JPG")[0].astype(int)
    assert numbers.max() == 590
    assert sorted(set(range(1, 591)) - set(numbers)) == [2, 346, 413, 439]
    assert frame.loc[0, "mos"] == pytest.approx(4.51664, abs=5e-6)
    assert frame["mos_std"].isna().sum() == 7


def test_real_flive_and_biq2021_have_their_rows(real_data: Path) -> None:
    flive = load_scores("flive", real_data / "flive")
    assert len(flive) == 39810
    assert flive["image"].str.split("/").str[0].value_counts().to_dict() == {
        "voc_emotic_ava": 38808,
        "blur_dataset": 999,
        "EE371R": 3,
    }
    biq = load_scores("biq2021", real_data / "biq2021")
    assert biq["split"].value_counts().to_dict() == {"training": 1600, "test": 400}
    assert biq.columns.tolist() == [*datasets.COLUMNS, "subset"]  # no stray column
    check_images(biq, real_data / "biq2021")


def test_real_csiq_names_are_text_and_scores_flipped(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "csiq" / "csiq.beta.xlsx", tmp_path / "csiq.DMOS.xlsx")
    frame = load_scores("csiq", tmp_path)
    assert len(frame) == 866
    assert frame.loc[0, "image"] == "dst_imgs/awgn/1600.AWGN.1.png"
    assert frame.loc[0, "reference"] == "1600"
    assert frame.loc[0, "mos"] == pytest.approx(1 - 0.061989)
    counts = dict.fromkeys(["awgn", "blur", "fnoise", "jpeg", "jpeg2000"], 150)
    assert frame["distortion"].value_counts().to_dict() == counts | {"contrast": 116}
    assert frame["reference"].nunique() == 30


def test_real_live_is_flipped_and_without_its_originals(real_data: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(real_data / "live" / "live_all.reconstructed.csv")
    write_live(tmp_path, rows)
    frame = load_scores("live", tmp_path)
    assert len(frame) == 779
    counts = {"jp2k": 169, "jpeg": 175, "wn": 145, "gblur": 145, "fastfading": 145}
    assert frame["distortion"].value_counts().to_dict() == counts
    kept = rows[rows["is_original"] == 0]
    np.testing.assert_allclose(frame["mos"], 111.774694 - kept["dmos_realigned"])
    assert frame["image"].tolist() == kept["img"].tolist()
    assert frame["mos"].min() == pytest.approx(0, abs=1e-6)
    assert frame["mos"].max() == pytest.approx(114.414709, abs=1e-6)
    assert frame["reference"].nunique() == 29


def write_live(root: Path, rows: pd.DataFrame) -> None:
    """Write LIVE's MATLAB files as the release has them."""
    orgs = rows["is_original"].to_numpy(float)[None]
    realigned = {"dmos_new": rows["dmos_realigned"].to_numpy()[None], "orgs": orgs}
    realigned["dmos_std"] = rows["dmos_std"].to_numpy()[None]
    scipy.io.savemat(root / "dmos_realigned.mat", realigned)
    legacy = {"dmos": rows["dmos_legacy"].to_numpy()[None], "orgs": orgs}
    scipy.io.savemat(root / "dmos.mat", legacy)
    names = np.array([rows["ref"].tolist()], dtype=object)
    scipy.io.savemat(root / "refnames_all.mat", {"refnames_all": names})


def test_live_lists_that_do_not_belong_together_are_refused(
    real_data: Path, tmp_path: Path
) -> None:
    rows = pd.read_csv(real_data / "live" / "live_all.reconstructed.csv")
    write_live(tmp_path, rows)
    other = np.array([rows["ref"].tolist()[1:]], dtype=object)
    scipy.io.savemat(tmp_path / "refnames_all.mat", {"refnames_all": other})
    with pytest.raises(ValueError, match=r"differ in length.*981"):
        load_scores("live", tmp_path)
    write_live(tmp_path, rows)
    info = "\n".join(f"{r} img{i}.bmp 1" for i, r in enumerate(rows["ref"][:227], start=1))
    write_csv(tmp_path / "jp2k" / "info.txt", info)
    assert len(load_scores("live", tmp_path)) == 779
    write_csv(
        tmp_path / "jp2k" / "info.txt", info.replace("buildings.bmp img1.", "ocean.bmp img1.")
    )
    with pytest.raises(ValueError, match=r"disagree on the reference of jp2k/img1\.bmp"):
        load_scores("live", tmp_path)


def test_real_tid2008_and_spaq_in_their_official_layouts(real_data: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(real_data / "tid2008" / "TID2008.txt")
    lines = rows["score"].astype(str) + " " + rows["dis_img_path"].str.split("/").str[-1]
    write_csv(tmp_path / "tid" / "mos_with_names.txt", "\r\n".join(lines))
    frame = load_scores("tid2008", tmp_path / "tid")
    assert len(frame) == 1700
    assert frame["mos"].agg(["min", "max"]).tolist() == [0, 7.7143]
    names = dict(zip(rows["dis_type"], frame["distortion"], strict=True))
    assert (names["AWGN"], names["JP2K"], names["Contrast_Dist."]) == (
        "additive noise",
        "jpeg2000",
        "contrast change",
    )
    references = rows["ref_img_path"].str.extract(r"(I\d\d)\.BMP")[0]
    assert frame["reference"].tolist() == references.tolist()

    spaq = pd.read_csv(real_data / "spaq" / "spaq_mos.reconstructed.csv")
    sheet = tmp_path / "spaq" / "Annotations" / "MOS and Image attribute scores.xlsx"
    sheet.parent.mkdir(parents=True)
    book = Workbook(write_only=True)
    page = book.create_sheet()
    for row in [spaq.columns.tolist(), *spaq.to_numpy().tolist()]:
        page.append(row)
    book.save(sheet)
    frame = load_scores("spaq", tmp_path / "spaq")
    assert len(frame) == 11125
    assert frame.loc[0, ["image", "mos"]].tolist() == ["TestImage/00001.jpg", 48.86]
    assert frame["mos"].agg(["min", "max"]).tolist() == [2.0, 96.0]


def test_real_kadid_takes_the_root_of_its_variance(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "kadid10k" / "dmos.reconstructed.csv", tmp_path / "dmos.csv")
    frame = load_scores("kadid10k", tmp_path)
    assert len(frame) == 10125
    assert frame.loc[0, ["image", "mos"]].tolist() == ["images/I01_01_01.png", 4.57]
    assert frame.loc[0, "mos_std"] == pytest.approx(np.sqrt(0.496))
    assert frame["mos"].agg(["min", "max"]).tolist() == [1.0, 4.93]
    assert frame.groupby("level")["mos"].mean().is_monotonic_decreasing  # higher is better
    assert frame["reference"].nunique() == 81
    assert frame["distortion"].nunique() == 25


def test_the_audit_names_what_it_cannot_read(real_data: Path) -> None:
    tables, reasons = audit(real_data)
    assert set(tables) == {"koniq10k", "tid2013", "bid", "livec", "flive", "biq2021"}
    assert set(tables) | set(reasons) == set(DATASETS)
    assert "expected csiq.DMOS.xlsx" in reasons["csiq"]


@pytest.mark.parametrize("rows", ["a.png,1\n", "a.png,1\nb.png,1\n"])
def test_a_table_of_one_score_is_not_whole_and_says_why(tmp_path: Path, rows: str) -> None:
    (tmp_path / "scores.csv").write_text(f"image,mos\n{rows}")
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    report = check_dataset("table", tmp_path)
    assert not report["whole"]
    told = f"{rows.count('png')} images share one score, so no order can be learned"
    assert report["statistics"]["warning"] == told
    assert f"  warning: {told}" in report_lines("table", report)
    (tmp_path / "scores.csv").write_text("image,mos\na.png,1\nb.png,2\n")
    assert check_dataset("table", tmp_path)["whole"]


def test_a_check_compares_hashes_rows_and_images(real_data: Path) -> None:
    report = check_dataset("tid2013", real_data / "tid2013")
    assert not report["whole"]  # no images
    assert (report["rows"], report["official_rows"]) == (3000, 3000)
    assert len(report["images_missing"]) == 3000
    assert report["files"] == {"mos_with_names.txt": "531a1c4d9bafb7aa (as checked)"}
    cut = check_dataset("biq2021", real_data / "biq2021")
    assert not cut["whole"]
    assert (cut["rows"], cut["official_rows"], cut["images_missing"]) == (2000, 12000, [])
    assert all("differs from the checked copy" in told for told in cut["files"].values())


def own_table(root: Path, text: str) -> pd.DataFrame:
    write_csv(root / "scores.csv", text)
    return load_scores("table", root)


def test_an_own_table_needs_only_names_and_scores(tmp_path: Path) -> None:
    frame = own_table(tmp_path, "image,mos,camera\na.png,3,x\nb.png,5,y\n")
    assert frame.attrs["scale"] == (3.0, 5.0)
    assert frame["camera"].tolist() == ["x", "y"]
    again = load_scores("table", tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(frame, again)
    assert frame.attrs["fingerprint"] == again.attrs["fingerprint"]


@pytest.mark.parametrize("name", ["htid", "nrtid"])
def test_the_unverified_sets_read_a_documented_csv(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "scores.csv", "image,mos\na.png,3\nb.png,5\n")
    assert not DATASETS[name].verified
    assert load_scores(name, tmp_path)["mos"].tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score\na,1\n", r"scores\.csv: expected columns .*missing \['mos'\]"),
        ("image,mos\n", "found no row"),
        ("image,mos\na,1\nb,\n", "1 without, first b"),
        ("image,mos\na,1\nb,inf\n", "1 without, first b"),
        ("image,mos\na,1\nb,good\n", "1 without, first b"),
        ("image,mos\na,1\na,2\n", "every image once, duplicate a"),
        ("image,mos\nA.png,1\na.PNG,2\n", r"differ only in case .*\['A.png', 'a.PNG'\]"),
        ("image,mos\n../a,1\n", r"below the folder, found '\.\./a'"),
        ("image,mos\na\0b,1\n", r"below the folder, found 'a\\x00b'"),
        ("image,mos\n,1\n", "expected a name in every row"),
        ("image,mos\na,1,2\nb,3,4\n", r"scores\.csv: expected rows as long as the header, 2 cells"),
        ("image,mos\na,1\nb,3,4\n", r"scores\.csv: expected a CSV file .*line 3, saw 3"),
        ("image,mos,split\na,1,holdout\n", "found \\['holdout'\\]"),
        ("image,mos,mos_std\na,1,-2\n", "mos_std >= 0, found -2"),
        ("image,mos,mos_std\na,1,few\n", r"scores\.csv: .* number in mos_std of a, found 'few'"),
        ("image,mos,level\na,1,2.5\n", r"a whole number in level of a, found .*2\.5"),
        ("image,mos,level\na,1,x\n", r"a whole number in level of a, found 'x'"),
    ],
)
def test_a_bad_table_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        own_table(tmp_path, text)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_bad_table_in_another_encoding_is_refused_by_name(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes("image,mos\nü.png,1\nb.png,2\n".encode(encoding))
    with pytest.raises(ValueError, match=r"scores\.csv: expected a CSV file in UTF-8"):
        load_scores("table", tmp_path)


def test_a_score_outside_the_scale_is_refused(small_koniq: Path, tmp_path: Path) -> None:
    text = (small_koniq / KONIQ_SETS).read_text().replace("70.5", "170.5")
    write_csv(tmp_path / KONIQ_SETS, text)
    with pytest.raises(ValueError, match=r"\[0, 100\].*1 outside, first 10\.jpg with 170\.5"):
        load_scores("koniq10k", tmp_path)


def test_a_missing_set_names_folder_files_and_home(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CSIQ: expected a folder .*csiq\.DMOS\.xlsx.*smu"):
        load_scores("csiq", tmp_path / "csiq")
    (tmp_path / "csiq").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected csiq\.DMOS\.xlsx in .*found \[\]"):
        load_scores("csiq", tmp_path / "csiq")
    with pytest.raises(KeyError, match="no data set 'csiqq'"):
        load_scores("csiqq", tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "table"])
def test_a_set_in_a_folder_of_its_archive_is_found_one_level_down(
    name: str, tmp_path: Path
) -> None:
    for file in DATASETS[name].files:
        write_csv(tmp_path / name / "A_release" / file, "")
    write_csv(tmp_path / name / "readme.txt", "")
    told = rf"in {tmp_path / name}, .*one level down, in {tmp_path / name / 'A_release'}: name"
    with pytest.raises(FileNotFoundError, match=told):
        load_scores(name, tmp_path / name)


def test_renamed_columns_and_odd_names_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "dmos.csv", "dist_img,ref_img,mos,var\nI01_01_01.png,I01.png,4,0.1\n")
    with pytest.raises(ValueError, match=r"dmos\.csv: .*missing \['dmos'\]"):
        load_scores("kadid10k", tmp_path)
    write_csv(tmp_path / "dmos.csv", "dist_img,ref_img,dmos,var\nI01_26_01.png,I01.png,4,0.1\n")
    with pytest.raises(ValueError, match=r"types 1-25; found \['I01_26_01\.png'\]"):
        load_scores("kadid10k", tmp_path)
    write_csv(tmp_path / "dmos.csv", "dist_img,ref_img,dmos,var\nI01_01_01.png,I02.png,4,0.1\n")
    with pytest.raises(ValueError, match=r"I02\.png does not belong to I01_01_01\.png"):
        load_scores("kadid10k", tmp_path)
    write_csv(tmp_path / "mos_with_names.txt", "1.0 i01_01_1.bmp extra\n")
    with pytest.raises(ValueError, match=r"mos_with_names\.txt, line 1: expected `score name`"):
        load_scores("tid2013", tmp_path)


def make_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name, format="JPEG")


def test_a_name_whose_case_differs_from_the_disk_still_opens(tmp_path: Path) -> None:
    make_images(tmp_path / "Images", ["ss02 (1014).JPG", "ss01 (1).jpg"])
    write_csv(tmp_path / "Train (Images and MOS).csv", "Image Name,MOS,,\nss02 (1014).jpg,0.5,,\n")
    write_csv(tmp_path / "Test (Images and MOS).csv", "Image Name,MOS\nss01 (1).jpg,0.25\n")
    frame = load_scores("biq2021", tmp_path)
    assert frame["image"].tolist() == ["Images/ss02 (1014).JPG", "Images/ss01 (1).jpg"]
    assert frame["split"].tolist() == ["training", "test"]
    check_images(frame, tmp_path)


def test_files_that_differ_only_in_case_are_told_apart_or_refused(tmp_path: Path) -> None:
    make_images(tmp_path, ["a.JPG", "a.Jpg"])
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk does not tell the two names apart")
    with pytest.raises(ValueError, match=r"a\.jpg is not there and these differ only in case"):
        own_table(tmp_path, "image,mos\na.jpg,1\n")
    assert own_table(tmp_path, "image,mos\na.Jpg,1\n")["image"].tolist() == ["a.Jpg"]


def test_all_missing_images_are_named_at_once(tmp_path: Path) -> None:
    make_images(tmp_path, ["b.jpg"])
    frame = own_table(tmp_path, "image,mos\na.jpg,1\nb.jpg,2\nc.jpg,3\n")
    with pytest.raises(FileNotFoundError, match=r"3 images, 2 are missing: a\.jpg, c\.jpg"):
        check_images(frame, tmp_path)


def test_koniq_images_may_come_in_either_size(small_koniq: Path, tmp_path: Path) -> None:
    shutil.copytree(small_koniq, tmp_path / "k")
    make_images(tmp_path / "k" / "512x384", ["9.jpg", "10.jpg"])
    frame = load_scores("koniq10k", tmp_path / "k")
    assert frame["image"].tolist() == ["512x384/10.jpg", "512x384/9.jpg"]


def test_a_fingerprint_follows_the_content(small_koniq: Path, tmp_path: Path) -> None:
    first = load_scores("koniq10k", small_koniq).attrs["fingerprint"]
    shutil.copytree(small_koniq, tmp_path / "k")
    assert load_scores("koniq10k", tmp_path / "k").attrs["fingerprint"] == first
    (tmp_path / "k" / "koniq10k_indicators.csv").unlink()
    assert load_scores("koniq10k", tmp_path / "k").attrs["fingerprint"] != first


def test_the_commands_list_and_check(real_data: Path) -> None:
    listed = CliRunner().invoke(app, ["data", "list"]).output
    assert all(f"{name}: {info.title}" in listed for name, info in DATASETS.items())
    assert listed.count("no official layout could be seen") == 2
    checked = CliRunner().invoke(app, ["data", "check", "bid", str(real_data / "bid")])
    assert checked.exit_code == 1  # no images
    assert "scores: 586 of 586 in the official release" in checked.output
    assert "DatabaseGrades.xls: 0b051f192356b81e (as checked)" in checked.output


def test_an_empty_marker_still_says_that_a_set_is_synthetic(tmp_path):
    (tmp_path / "scores.csv").write_text("image,mos\na.png,1\nb.png,2\n")
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    assert not load_scores("table", tmp_path).attrs["demo"]
    (tmp_path / "demo.json").write_text("{}")
    assert load_scores("table", tmp_path).attrs["demo"]
