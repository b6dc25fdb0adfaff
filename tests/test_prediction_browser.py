import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_utils.workshop import prediction_browser


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "data" / "table"
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{c}.png" for c in "abcd"]
    for name in names[:3]:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root / name)
    mos = [1.0, 2.0, 3.0, 4.0]
    pd.DataFrame({"image": names, "mos": mos}).to_csv(root / "scores.csv", index=False)
    folder = tmp_path / "run"
    folder.mkdir()
    pd.DataFrame(
        {
            "image": names, "dataset": "table", "split": "test", "seed": 0, "method": "m",
            "variant": "", "mos": mos, "pred": [1.1, 1.0, 3.0, 9.0],
        }
    ).to_parquet(folder / "predictions.parquet")  # fmt: skip
    return folder, tmp_path / "data"


def test_predictions_know_their_error_and_whether_the_image_is_here(run):
    table = prediction_browser.load_predictions(*run)
    np.testing.assert_allclose(table["error"], [0.1, -1.0, 0.0, 5.0], atol=1e-12)
    assert [bool(path) for path in table["path"]][3] is False


def test_a_run_without_predictions_is_named(run):
    with pytest.raises(FileNotFoundError, match=r"elsewhere holds no predictions\.parquet"):
        prediction_browser.load_predictions(run[0].with_name("elsewhere"), run[1])


@pytest.mark.parametrize(
    ("order", "images"),
    [
        ("largest error", "dbac"),
        ("smallest error", "cabd"),
        ("highest prediction", "dcab"),
        ("lowest prediction", "bacd"),
    ],
)
def test_orders(run, order, images):
    table = prediction_browser.load_predictions(*run)
    shown = prediction_browser.select(table, order, n=9)
    assert "".join(name[0] for name in shown["image"]) == images


def test_filters_by_range_and_set(run):
    table = prediction_browser.load_predictions(*run)
    assert prediction_browser.select(table, scores=(1.5, 3.5))["image"].tolist() == [
        "b.png",
        "c.png",
    ]
    assert prediction_browser.select(table, dataset="other").empty


def test_without_a_front_end_there_is_one_picture(run, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    table = prediction_browser.load_predictions(*run)
    figure = prediction_browser.browse(table, other=table.assign(pred=7.0))
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]
    titles = [title for title in titles if title]
    assert len(titles) == 4
    assert "predicted 9.00, other run 7.00" in titles[0]
    plt.close("all")


def test_with_a_front_end_the_controls_change_the_view(run, monkeypatch):
    shown = []
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    monkeypatch.setattr(prediction_browser, "display", lambda *items: shown.extend(items))
    table = prediction_browser.load_predictions(*run)
    assert prediction_browser.browse(table) is None
    controls = shown[-2] if len(shown) > 1 else shown[0]
    order = controls.children[0].children[0]
    drawn = []
    monkeypatch.setattr(
        prediction_browser, "draw", lambda rows, **_: drawn.append(rows) or plt.figure()
    )
    order.value = "highest prediction"
    assert drawn[-1]["image"].iloc[0] == "d.png"
    order.value = "smallest error"
    assert drawn[-1]["image"].iloc[0] == "c.png"
    plt.close("all")
