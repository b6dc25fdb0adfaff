"""Tests of the small BIQ2021 against a made full set and the real cut."""

import pandas as pd
import pytest

from iqa_utils.workshop.downloads.cuts import PARTS, cut_biq2021


@pytest.fixture
def full(tmp_path):
    """Six images, one of them spelt differently on disk; the test file has no stray commas."""
    root = tmp_path / "full"
    (root / "Images").mkdir(parents=True)
    rows = [f"ss01 ({i}).jpg,0.{i}00{i}" for i in range(1, 7)]
    (root / PARTS["training"]).write_bytes(
        b"Image Name,MOS,,\r\n" + "".join(f"{row},,\r\n" for row in rows[:5]).encode()
    )
    (root / PARTS["test"]).write_bytes(f"Image Name,MOS\n{rows[5]}\n".encode())
    for i in range(1, 7):
        name = f"ss01 ({i}).JPG" if i == 3 else f"ss01 ({i}).jpg"
        (root / "Images" / name).write_bytes(bytes([i]))
    names = tmp_path / "names.csv"
    names.write_text(
        "image,part\nss01 (4).jpg,training\nss01 (3).jpg,test\nss01 (1).jpg,training\n"
    )
    return root, names


def test_a_cut_keeps_order_scores_and_bytes(full, tmp_path):
    root, names = full
    out = tmp_path / "mini"
    assert cut_biq2021(root, out, names=names) == {"training": 2, "test": 1}
    training = (out / PARTS["training"]).read_bytes()
    assert training == b"Image Name,MOS,,\r\nss01 (4).jpg,0.4004,,\r\nss01 (1).jpg,0.1001,,\r\n"
    assert (out / PARTS["test"]).read_bytes() == b"Image Name,MOS\nss01 (3).jpg,0.3003\r\n"
    assert (out / "Images" / "ss01 (3).JPG").read_bytes() == b"\x03"
    assert len(list((out / "Images").iterdir())) == 3
    assert cut_biq2021(root, out, names=names) == {"training": 2, "test": 1}


def test_what_is_missing_is_named(full, tmp_path):
    root, names = full
    (root / "Images" / "ss01 (4).jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images have no file or score: ss01 \(4\)\.jpg"):
        cut_biq2021(root, tmp_path / "mini", names=names)
    with pytest.raises(ValueError, match="another folder"):
        cut_biq2021(root, root, names=names)
    (root / PARTS["test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected Test \(Images and MOS\)\.csv in "):
        cut_biq2021(root, tmp_path / "mini", names=names)
    with pytest.raises(FileNotFoundError, match=r"Images in .*nothing.*iqa data download biq2021"):
        cut_biq2021(tmp_path / "nothing", tmp_path / "mini", names=names)


def test_the_list_is_the_real_cut(real_data, tmp_path):
    root, out = real_data / "biq2021", tmp_path / "biq2021"
    assert cut_biq2021(root, out) == {"training": 1600, "test": 400}
    for file_name in PARTS.values():
        assert (out / file_name).read_bytes() == (root / file_name).read_bytes()


def test_the_list_names_each_image_once():
    from iqa_utils.workshop.downloads.cuts import _NAMES

    table = pd.read_csv(_NAMES)
    assert table["image"].is_unique
    assert table["part"].value_counts().to_dict() == {"training": 1600, "test": 400}
