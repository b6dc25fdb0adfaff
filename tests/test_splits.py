"""Splits: the sizes of the released ones, the same on every machine, no reference image twice."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from iqa_utils.datasets import load_scores
from iqa_utils.splits import (
    check_disjoint,
    content_split,
    official_or_content_split,
    official_split,
)


def table(n_references: int, n_images: int = 1, dataset: str = "made") -> pd.DataFrame:
    references = [f"content{i}" for i in range(n_references) for _ in range(n_images)]
    images = [f"images/{c}_{k}.png" for k, c in enumerate(references)]
    frame = pd.DataFrame({"image": images, "reference": references if n_images > 1 else images})
    frame["split"] = None
    frame.attrs = {"dataset": dataset, "title": dataset}
    return frame


def split_digest(frame: pd.DataFrame, split: pd.Series) -> str:
    """Hash which image is in which set; row order and image folder do not matter."""
    names = frame["image"].map(lambda path: Path(path).name.casefold())
    lines = sorted(f"{name}\t{part}\n" for name, part in zip(names, split, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def sizes(frame: pd.DataFrame, split: pd.Series) -> list[int]:
    counts = split.groupby(frame["reference"]).first().value_counts()
    return [int(counts.get(part, 0)) for part in ("training", "validation", "test")]


@pytest.mark.parametrize(
    ("n_references", "n_images", "expected"),
    [
        (29, 2, [18, 6, 5]),  # LIVE, references
        (30, 2, [18, 6, 6]),  # CSIQ
        (81, 2, [49, 16, 16]),  # KADID-10k
        (586, 1, [352, 117, 117]),  # BID, images
        (1162, 1, [698, 232, 232]),  # LIVE In the Wild
        (10073, 1, [6043, 2015, 2015]),  # KonIQ-10k
    ],
)
def test_sixty_twenty_twenty_has_the_sizes_of_the_released_splits(
    n_references: int, n_images: int, expected: list[int]
) -> None:
    frame = table(n_references, n_images)
    assert sizes(frame, content_split(frame, seed=3)) == expected


def test_eighty_twenty_has_no_validation_set() -> None:
    frame = table(29, 2)
    split = content_split(frame, fractions=(0.8, 0.2), seed=0)
    assert sizes(frame, split) == [23, 0, 6]
    assert split.equals(content_split(frame, fractions=(0.8, 0.0, 0.2), seed=0))


def test_a_split_is_the_same_for_ever() -> None:
    frame = table(50)
    assert split_digest(frame, content_split(frame, seed=0)) == "5647184f1e843296"
    assert split_digest(frame, content_split(frame, seed=1)) == "4720591f9ae310a8"
    other = table(50, dataset="other")
    assert split_digest(other, content_split(other, seed=0)) == "363bda7fd8707913"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("koniq10k", "72eeee5867870466"),
        ("tid2013", "25732cec8a66429e"),
        ("bid", "71a7590e91e11933"),
        ("livec", "81f18a3ebf300984"),
        ("biq2021", "1b3fdda2ebbe3364"),
    ],
)
def test_the_splits_of_the_real_sets_are_the_same_for_ever(
    name: str, digest: str, real_data: Path
) -> None:
    frame = load_scores(name, real_data / name)
    split = content_split(frame, seed=0)
    check_disjoint(frame, split)
    assert split_digest(frame, split) == digest


def test_order_of_rows_and_folder_of_images_do_not_matter() -> None:
    frame = table(40)
    split = content_split(frame, seed=5)
    shuffled = frame.sample(frac=1, random_state=0)
    assert content_split(shuffled, seed=5).sort_index().equals(split)
    moved = frame.replace({"images/": "512x384/"}, regex=True)
    moved.attrs = frame.attrs
    assert content_split(moved, seed=5).equals(split)


def test_all_images_of_a_reference_are_in_one_set() -> None:
    frame = table(12, 7)
    split = content_split(frame, seed=0)
    check_disjoint(frame, split)
    assert len(set(zip(frame["reference"], split, strict=True))) == 12
    assert set(split) == {"training", "validation", "test"}


def test_a_reference_in_two_sets_is_refused() -> None:
    frame = table(6, 2)
    split = content_split(frame, seed=0)
    split.iloc[0] = "test" if split.iloc[0] != "test" else "training"
    with pytest.raises(
        ValueError, match=r"1 reference images are in more than one set: \['content0'\]"
    ):
        check_disjoint(frame, split)
    with pytest.raises(ValueError, match="a set for each of 12 rows, got 11"):
        check_disjoint(frame, split.iloc[1:])


@pytest.mark.parametrize("name", ["train", None])
def test_a_row_in_no_known_set_is_refused(name: str | None) -> None:
    frame = table(6, 2)
    split = content_split(frame, seed=0).astype(object)
    split.iloc[0] = name
    with pytest.raises(ValueError, match=rf"one of \('training'.*found \['?{name}'?\]"):
        check_disjoint(frame, split)


@pytest.mark.parametrize("fractions", [(0.6, 0.2), (0.6, 0.2, 0.1, 0.1), (1.2, -0.4, 0.2)])
def test_shares_that_are_none_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares that sum to 1"):
        content_split(table(9), fractions=fractions, seed=0)


def test_too_few_references_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 reference images, found 2"):
        content_split(table(2, 9), seed=0)
    assert sizes(table(3, 2), content_split(table(3, 2), seed=0)) == [1, 1, 1]


def test_koniq_keeps_its_official_split(real_data: Path) -> None:
    frame = load_scores("koniq10k", real_data / "koniq10k")
    assert official_split(frame).value_counts().to_dict() == {
        "training": 7058,
        "validation": 1000,
        "test": 2015,
    }


def test_a_fifth_of_training_is_validation_where_there_is_none(real_data: Path) -> None:
    frame = load_scores("biq2021", real_data / "biq2021")
    split = official_split(frame)
    assert split.value_counts().to_dict() == {"training": 1280, "validation": 320, "test": 400}
    assert (split[frame["split"] == "test"] == "test").all()
    assert split.equals(official_split(frame))


def test_a_set_without_an_official_split_says_so() -> None:
    with pytest.raises(ValueError, match="made: expected an official split, 9 of 9 images"):
        official_split(table(9))


def test_a_set_without_an_official_split_gets_the_seeded_one() -> None:
    frame = table(9)
    assert official_or_content_split(frame, seed=3).equals(content_split(frame, seed=3))
    halves = frame.assign(split=["training"] * 5 + ["test"] * 4)
    assert official_or_content_split(halves, seed=3).equals(official_split(halves))
