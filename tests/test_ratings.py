"""Ranges, correlations and the noise of raters, against hand counts and the real scores."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_utils import ratings
from iqa_utils.datasets import load_scores
from iqa_utils.workshop import runs
from iqa_utils.workshop.claims import compare
from iqa_utils.workshop.notebooks import find_notebook
from iqa_utils.workshop.plots import labels as plots


@pytest.fixture(scope="module")
def koniq(real_data: Path) -> pd.DataFrame:
    return load_scores("koniq10k", real_data / "koniq10k")


def votes_table(n_images: int, n_votes: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Make votes whose noise-free means are known."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet([1, 2, 3, 2, 1], n_images)  # (N, 5)
    counts = np.stack([rng.multinomial(n_votes, p) for p in chances])
    frame = pd.DataFrame(counts, columns=["c1", "c2", "c3", "c4", "c5"])
    grades = np.arange(1, 6)
    frame["mos_raw"] = counts @ grades / n_votes
    squares = (counts * (grades - frame["mos_raw"].to_numpy()[:, None]) ** 2).sum(axis=1)
    frame["sd_raw"], frame["votes"] = np.sqrt(squares / (n_votes - 1)), n_votes
    frame["mos"] = 25 * (frame["mos_raw"] - 1)
    return frame, chances @ grades


def test_an_image_on_an_edge_goes_to_the_range_that_is_closed_there() -> None:
    mos = [0, 20, 39.9, 40, 60, 100]
    assert ratings.range_counts(mos).tolist() == [1, 2, 1, 1, 1]
    assert ratings.range_counts(mos, right=True).tolist() == [2, 2, 1, 0, 1]
    with pytest.raises(ValueError, match=r"edges only \[0, 100\]"):
        ratings.range_counts([101.0])


def test_the_real_counts_tell_the_conventions_apart(koniq: pd.DataFrame) -> None:
    table = ratings.conventions(koniq)
    assert table.iloc[0].tolist() == [183, 1189, 3081, 5408, 212]
    assert table.iloc[1].tolist() == [183, 1190, 3081, 5407, 212]
    assert table.iloc[2, [0, 4]].tolist() == [208, 3]


def test_every_correlation_of_the_paper_is_reproduced(koniq: pd.DataFrame) -> None:
    pairs = ratings.pair_results(ratings.correlations(koniq))
    assert len(pairs) == 28
    shared = {"paper": "lehmann2023", "table": "Fig. 2", "dataset": "koniq10k", "data": "koniq10k"}
    shared["kind"] = "re-tabulated"
    board = compare([pair | shared for pair in pairs], "lehmann2023", matched_only=True)
    assert board["verdict"].value_counts().to_dict() == {"reproduced": 64}


def test_raw_scores_would_miss_a_printed_correlation(koniq: pd.DataFrame) -> None:
    raw = ratings.correlations(koniq.assign(mos=koniq["mos_raw"]))
    assert round(raw.loc["MOS Z-Score", "Resolution"], 2) == 0.16  # printed 0.17


def test_missing_indicators_are_named(koniq: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"missing values in \['hxw'\]"):
        ratings.correlations(koniq.assign(hxw=np.nan))


def test_the_median_alone_reaches_twelve_points(koniq: pd.DataFrame) -> None:
    baseline = ratings.constant_baseline(koniq)
    assert baseline["all"] == pytest.approx(12.17, abs=0.005)
    assert baseline.idxmax() == "0-20"


def test_sentences_about_the_labels_are_held_against_the_scores(koniq: pd.DataFrame) -> None:
    table = ratings.label_regimes(koniq["mos"]).set_index("sentence")
    assert table["holds"].tolist() == [True, True, False, False, False, False]
    assert table.loc["no sample from 0 to 1", "measured"] == "183 images"
    assert table.loc["no sample above about 4.2", "measured"] == "21 images"


def test_the_ceiling_is_the_correlation_with_the_true_scores() -> None:
    frame, truth = votes_table(2000, 20, seed=0)
    actual = np.corrcoef(truth, frame["mos_raw"])[0, 1]
    assert ratings.rater_noise(frame)["plcc_ceiling"] == pytest.approx(actual, abs=0.01)
    mean, low, high = ratings.split_half_ceiling(frame, n_splits=5, seed=0)["PLCC"]
    assert low <= mean <= high
    assert mean == pytest.approx(actual, abs=0.01)
    points = ratings.rater_noise(frame)["noise_points"]
    assert points == pytest.approx(25 * np.std(truth - frame["mos_raw"]), rel=0.05)


def test_drawn_votes_are_votes_of_the_image() -> None:
    counts = np.array([[3, 0, 2, 0, 5], [0, 10, 0, 0, 0]])
    drawn = ratings.draw_votes(counts, 4, np.random.default_rng(0))
    assert drawn.sum(axis=1).tolist() == [4, 4]
    assert (drawn <= counts).all()
    assert ratings.draw_votes(counts, 10, np.random.default_rng(0)).tolist() == counts.tolist()
    with pytest.raises(ValueError, match="at least 11 votes per image, found 10"):
        ratings.draw_votes(counts, 11, np.random.default_rng(0))


def test_more_votes_predict_better() -> None:
    frame, _ = votes_table(400, 30, seed=1)
    curve = ratings.vote_curve(frame, [1, 3, 10, 29], seed=0)
    assert curve["votes"].tolist() == [1, 3, 10]  # 29 leave too few to compare with
    assert curve["srcc"].is_monotonic_increasing


def test_the_page_of_all_sets_counts_rows_and_images(real_data: Path) -> None:
    frame = load_scores("biq2021", real_data / "biq2021")
    page = ratings.audit_table({"biq2021": frame}, real_data).loc["biq2021"]
    assert page[["scores", "official", "images"]].tolist() == [2000, 12000, 2000]
    assert page["split"] == "1600/0/400"


def test_indicators_are_compared_image_by_image(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        pixels = rng.integers(0, 40 * (i + 1), (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "brightness": 20.0 * (i + 1)})
    frame = pd.DataFrame(rows)
    frame[["contrast", "colorfulness", "sharpness", "bitrate"]] = rng.normal(size=(6, 4))
    table = ratings.indicator_agreement(frame, tmp_path, 6)
    assert table.loc["brightness", "pearson"] > 0.999
    assert abs(table.loc["contrast", "pearson"]) < 0.999
    assert (table["n"] == 6).all()


def test_the_pictures_draw_what_they_are_given(koniq: pd.DataFrame) -> None:
    figure, axes = plt.subplots()
    counts = ratings.range_counts(koniq["mos"])
    plots.plot_range_counts(axes, counts, counts)
    assert [line.get_ydata().tolist() for line in axes.lines] == [counts.tolist()] * 2
    axes.clear()
    plots.plot_label_histogram(axes, koniq["mos"].to_numpy())
    assert sum(p.get_height() for p in axes.patches[5:]) == pytest.approx(10073)
    axes.clear()
    plots.plot_sets(axes, {"koniq10k": koniq})
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["KonIQ-10k (10,073)"]
    plt.close(figure)


def run_notebook(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[dict[str, object]]:
    """Run the cells of notebook 01 on the sets below a folder and return its results."""
    monkeypatch.setattr(runs, "ROOT", root / "repository")
    names = {"__name__": "__main__"}
    for cell in nbformat.read(find_notebook("01"), as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names["DATA_ROOT"] = str(root)
    plt.close("all")
    return names["run"].results


def test_notebook_01_runs_with_any_one_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nrtid").mkdir()
    (tmp_path / "nrtid" / "scores.csv").write_text("image,mos\na.png,3\nb.png,5\nc.png,9\n")
    results = run_notebook(monkeypatch, tmp_path)
    assert [(row["table"], row["dataset"], row["value"]) for row in results] == [
        ("data audit", "nrtid", 3)
    ]
    assert capsys.readouterr().out.count("left out: KonIQ-10k is not below") == 1
    assert list((tmp_path / "repository" / "runs").rglob("metrics.json"))


def test_notebook_01_says_that_there_is_no_set_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data set below .*, in a folder of its name"):
        run_notebook(monkeypatch, tmp_path)


def test_notebook_01_stops_at_a_koniq_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "koniq10k").mkdir()
    (tmp_path / "nrtid").mkdir()
    (tmp_path / "nrtid" / "scores.csv").write_text("image,mos\na.png,3\nb.png,5\n")
    with pytest.raises(FileNotFoundError, match=r"expected koniq10k_distributions_sets\.csv"):
        run_notebook(monkeypatch, tmp_path)
