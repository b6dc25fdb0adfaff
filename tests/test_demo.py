"""Demo data: readable by the official readers, consistent, the same for one seed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_utils.datasets import check_dataset, check_images, load_scores
from iqa_utils.datasets.readers import KADID_TYPES, LIVE_FOLDERS, TID_TYPES
from iqa_utils.splits import check_disjoint, content_split, official_split
from iqa_utils.workshop import demo
from iqa_utils.workshop.demo import pictures as made_pictures
from iqa_utils.workshop.demo.distortions import ALIASES, DISTORTIONS, distort
from iqa_utils.workshop.demo.pictures import (
    KONIQ_RANGES,
    PHOTOGRAPHS,
    crop_photograph,
    dead_leaves,
    difference,
    range_qualities,
)

SCALE = 0.05


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    demo.make_demo(root, scale=SCALE)
    return root


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return crop_photograph("coffee", (96, 128), np.random.default_rng(0))


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize(
    "name", ["koniq10k", "live", "csiq", "kadid10k", "bid", "livec", "tid2013"]
)
def test_the_official_readers_read_every_made_set(name: str, small: Path) -> None:
    frame = load_scores(name, small / name)
    check_images(frame, small / name)
    assert frame.attrs["demo"]
    low, high = frame.attrs["scale"]
    assert low < frame["mos"].min() < frame["mos"].max() < high
    assert frame["mos"].std() > 0.05 * (high - low)
    split = content_split(frame, seed=0)
    check_disjoint(frame, split)
    assert set(split) == {"training", "validation", "test"}
    assert not check_dataset(name, small / name)["images_missing"]


def test_made_scores_fall_with_the_level_of_a_distortion(small: Path) -> None:
    for name in ("live", "csiq", "kadid10k", "tid2013"):
        references = json.loads((small / name / "demo.json").read_text())["references"]
        assert len(set(references.values())) >= 5
    kadid = load_scores("kadid10k", small / "kadid10k")
    assert kadid["distortion"].nunique() == 25
    by_level = kadid.groupby("level")["mos"].mean()
    assert set(by_level.index) == {1, 2, 3, 4, 5}
    assert by_level[1] > by_level[3] > by_level[5]


def test_the_koniq_of_the_demo_keeps_every_convention(small: Path) -> None:
    frame = load_scores("koniq10k", small / "koniq10k")
    assert frame["votes"].between(60, 160).all()
    assert frame["mos_raw"].between(1, 5).all()
    assert frame["mos"].corr(frame["mos_raw"]) > 0.97
    assert not np.allclose(frame["mos"], 25 * (frame["mos_raw"] - 1))
    check_disjoint(frame, official_split(frame))
    assert frame["bitrate"].between(0.05, 24).all()  # bits a pixel
    indicators = pd.read_csv(small / "koniq10k" / "koniq10k_indicators.csv")
    assert indicators["image_id"].is_monotonic_increasing  # by number; the scores by name


def test_range_shares_are_those_of_koniq() -> None:
    counts = np.histogram(100 * range_qualities(10073), [0, 20, 40, 60, 80, 100])[0]
    np.testing.assert_allclose(counts, list(KONIQ_RANGES.values()), atol=1)


def test_dead_leaves_are_shown_once() -> None:
    pictures = made_pictures.Studio(1.0, 0).authentic("koniq10k", 120, (48, 48))
    leaves = [p.reference for p in pictures if p.reference not in PHOTOGRAPHS]
    assert len(leaves) == len(set(leaves)) >= 60
    rare = [p.reference for p in pictures if not 0.2 < p.quality < 0.8]
    assert set(rare) <= set(leaves)


def test_raters_follow_quality_and_disagree() -> None:
    quality = np.linspace(0.1, 0.9, 40)
    answers = made_pictures.answers(quality, 200, np.random.default_rng(0))  # (40, 200)
    assert np.corrcoef(answers.mean(axis=1), quality)[0, 1] > 0.999
    assert answers.std(axis=1).mean() == pytest.approx(np.hypot(0.12, 0.065), abs=0.01)


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.make_demo(tmp_path / folder, scale=SCALE, seed=seed, sets=("bid", "csiq", "livec"))
    first, again, other = (content(tmp_path / folder) for folder in "abc")
    assert first == again
    assert first["bid/DatabaseGrades.xls"] != other["bid/DatabaseGrades.xls"]


def test_references_name_the_source_of_a_scene(small: Path) -> None:
    frame = load_scores("bid", small / "bid")
    sources = frame["reference"]
    assert sources.map(lambda s: s in PHOTOGRAPHS or s.startswith("leaves-bid-")).all()
    assert sources.isin(PHOTOGRAPHS).any()


def test_the_unlabelled_folder_has_upright_pictures_too(small: Path) -> None:
    sizes = []
    for path in (small / "unlabelled").glob("*.jpg"):
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert len(sizes) >= 5
    assert {width > height for width, height in sizes} == {True, False}


def test_a_set_is_made_once_and_again_when_its_version_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(root: Path, studio: made_pictures.Studio) -> dict[str, str]:
        (root / "scale.txt").write_text(str(studio.scale))
        calls.append(root)
        return {"a.jpg": "a"}

    calls: list[Path] = []
    monkeypatch.setattr(demo, "SETS", {"one": make})
    assert demo.ensure_demo(tmp_path) == tmp_path
    demo.ensure_demo(tmp_path)
    assert len(calls) == 1
    assert (tmp_path / "one" / "scale.txt").read_text() == "1.0"
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    demo.ensure_demo(tmp_path)
    assert len(calls) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "one"]


def test_a_set_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, studio: made_pictures.Studio) -> dict[str, str]:
        (root / "half.txt").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(demo, "SETS", {"one": fail})
    with pytest.raises(OSError, match="disk full"):
        demo.make_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_wrong_names_and_scales_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no demo of spaq; there are koniq10k, .*DATA_ROOT"):
        demo.make_demo(tmp_path, sets=("spaq",))
    with pytest.raises(ValueError, match=r"scale in \(0, 64\], got 0"):
        demo.make_demo(tmp_path, scale=0)


def test_the_scale_reaches_the_official_size() -> None:
    assert made_pictures.Studio(64, 0).count(10073, 240) == 10073
    assert made_pictures.Studio(64, 0).count(81, 6) == 81
    assert made_pictures.sides(768, 1024, 9) == (768, 1024)
    assert made_pictures.sides(768, 1024, 1) == (256, 342)


def test_every_distortion_of_every_set_can_be_made() -> None:
    wanted = {*KADID_TYPES, *TID_TYPES, *LIVE_FOLDERS}
    assert wanted <= set(DISTORTIONS) | set(ALIASES)
    assert set(ALIASES.values()) <= set(DISTORTIONS)
    assert len(DISTORTIONS) >= 20


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_keeps_shape_and_range_and_grows(name: str, clean: np.ndarray) -> None:
    weak, strong = (distort(clean, name, level, np.random.default_rng(0)) for level in (1, 5))
    for pixels in (weak, strong):
        assert pixels.shape == clean.shape
        assert pixels.dtype == np.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
    assert 0 < difference(clean, weak) < difference(clean, strong)


def test_an_unknown_distortion_is_refused(clean: np.ndarray) -> None:
    with pytest.raises(KeyError, match="fog"):
        distort(clean, "fog", 1, np.random.default_rng(0))


def test_a_picture_does_not_differ_from_itself(clean: np.ndarray) -> None:
    assert difference(clean, clean) == 0


def test_scenes_depend_on_their_generator_alone() -> None:
    one, again, other = (dead_leaves((48, 64), np.random.default_rng(s)) for s in (0, 0, 1))
    assert one.shape == (48, 64, 3)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 0.05
