"""The shipped lists of splits: what the function gives on the real sets, without shared content."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from iqa_utils.datasets import load_scores
from iqa_utils.splits import SPLITS, content_split

FOLDER = Path(__file__).parents[1] / "data" / "splits"
# reference images in training, validation and test; those of the first three as released
SIZES = {
    "live": (18, 6, 5),
    "csiq": (18, 6, 6),
    "kadid10k": (49, 16, 16),
    "bid": (352, 117, 117),
    "livec": (698, 232, 232),
    "koniq10k": (6043, 2015, 2015),
}
UNDER_ANOTHER_NAME = {  # where the real annotations here do not bear the official file's name
    "csiq": ("csiq.beta.xlsx", "csiq.DMOS.xlsx"),
    "kadid10k": ("dmos.reconstructed.csv", "dmos.csv"),
}


def read(name):
    return pd.read_csv(FOLDER / f"feng2023-{name}.csv", dtype=str)


def real_scores(name, root, folder):
    if name == "live":  # names of references are all that a split depends on
        rows = pd.read_csv(root / "live" / "live_all.reconstructed.csv").query("is_original == 0")
        frame = pd.DataFrame({"reference": rows["ref"].map(lambda ref: Path(ref).stem.lower())})
        frame.attrs["dataset"] = "live"
        return frame
    if name in UNDER_ANOTHER_NAME:
        theirs, official = UNDER_ANOTHER_NAME[name]
        shutil.copy(root / name / theirs, folder / official)
        return load_scores(name, folder)
    return load_scores(name, root / name)


@pytest.mark.parametrize("name", SIZES)
def test_ten_splits_of_every_set_are_shipped_with_the_papers_shares(name):
    table = read(name)
    assert table["reference"].is_unique
    splits = table.drop(columns="reference")
    assert splits.shape == (sum(SIZES[name]), 10)
    for column in splits:
        counts = splits[column].value_counts()
        assert tuple(counts[["0", "1", "2"]]) == SIZES[name]
    assert len({tuple(splits[column]) for column in splits}) == 10


@pytest.mark.parametrize("name", SIZES)
def test_shipped_splits_are_those_of_the_real_sets(name, real_data, tmp_path):
    frame = real_scores(name, real_data, tmp_path)
    numbers = {split: str(number) for number, split in enumerate(SPLITS)}
    columns = {f"split_{k}": content_split(frame, seed=k).map(numbers) for k in range(10)}
    ours = frame[["reference"]].assign(**columns).drop_duplicates("reference")
    ours = ours.sort_values("reference", ignore_index=True).astype(str)
    pd.testing.assert_frame_equal(ours, read(name))
