"""Pictures of labels show the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from iqa_utils.workshop.plots import labels as plots


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_the_smoothed_density_is_drawn_with_the_area_of_the_counts(axes):
    counts, smoothed = np.array([1, 3, 0]), np.array([10.0, 10, 20])
    plots.plot_label_density(axes, counts, np.arange(4.0), smoothed=smoothed, unit="MOS")
    bars, line = (patch.get_data().values for patch in axes.patches)
    assert bars.tolist() == [1, 3, 0]
    assert line.tolist() == [1, 1, 2]
    assert axes.get_ylabel() == "images per bin of 1 MOS points"


def test_weights_are_drawn_at_the_centres_of_their_bins_on_a_logarithmic_axis(axes):
    plots.plot_weights(axes, {"LDS": np.array([2.0, np.nan, 0.5])}, np.array([0.0, 2, 4, 6]))
    np.testing.assert_array_equal(axes.lines[0].get_xydata()[:, 0], [1, 3, 5])
    assert axes.get_yscale() == "log"


def test_empty_buckets_are_crosses(axes):
    held = np.array([True, False, True])
    plots.plot_smoothed_statistics(axes, np.arange(3.0), np.ones(3), np.arange(4.0), held)
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1, 3]


def test_errors_keep_the_order_of_the_ranges_and_leave_gaps_for_missing_ones(axes):
    rows = {"method": ["a", "a", "b"], "metric": ["MAE", "MAE 0-20", "MAE"], "value": [3.0, 9, 4]}
    table = pd.DataFrame(rows).assign(ci_low=1.0, ci_high=10.0)
    plots.plot_range_errors(axes, table, ["MAE 0-20", "MAE"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0-20", "all"]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [np.nan, 4])


def test_only_differences_beyond_chance_are_filled(axes):
    table = pd.DataFrame({"method": ["a", "b"], "metric": "MAE", "value": [-1.0, 0.2]})
    table = table.assign(ci_low=-2.0, ci_high=1.0, p_holm=[0.01, 0.6])
    plots.plot_differences(axes, table, ["MAE"], baseline="vanilla")
    filled = [line for line in axes.lines if line.get_fillstyle() == "full" and line.get_label()]
    assert any(list(line.get_xdata()) == [-1.0] for line in filled)


def test_a_metric_that_no_test_image_allows_leaves_its_place_empty(axes):
    table = pd.DataFrame({"method": ["a"], "metric": "MAE", "value": [-1.0]})
    table = table.assign(ci_low=-2.0, ci_high=1.0, p_holm=0.6)
    plots.plot_differences(axes, table, ["MAE 0-20", "MAE"], baseline="vanilla")
    drawn = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata())]
    assert [-1.0] in drawn


def test_the_legend_tells_the_rank_correlation_of_error_and_density(axes):
    table = pd.DataFrame({"method": "a", "images": [1, 5, 9], "mae": [9.0, 4, 2], "n": 3})
    plots.plot_density_errors(axes, table, ["a"])
    assert axes.get_legend().get_texts()[0].get_text() == "a: -1.00"


def test_early_curves_average_seeds_and_stop_where_asked(axes):
    history = pd.DataFrame({"epoch": [1, 2, 3] * 2, "train_mae 0-20": [4.0, 2, 1, 6, 4, 3]})
    plots.plot_range_curves(axes, history, ["0-20"], part="train", epochs=2)
    assert axes.lines[0].get_ydata().tolist() == [5, 3]


def test_the_legend_of_early_curves_covers_none_of_them(axes):
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_mae 0-20": 16.0, "val_mae 20-40": 5.0})
    plots.plot_range_curves(axes, history, ["0-20", "20-40"], part="val", epochs=3)
    axes.figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1


def test_a_panel_has_a_line_per_head_and_fills_marks_of_sure_differences():
    rows = {"rate": [1e-3, 1e-1], "value": [-2.0, 1.0], "ci_low": [-3.0, -1], "ci_high": [-1.0, 3]}
    panel = pd.DataFrame(rows).assign(form="plain", size="64-1-64", targets="raw", metric="MAE")
    panel = pd.concat([panel.assign(dead=0), panel.assign(form="normalised", dead=1)])
    figure = plots.plot_panel(panel)
    line, sure, zero = figure.axes[0].lines  # of the collapsed setting nothing
    assert line.get_label() == "plain, 64-1-64, raw"
    np.testing.assert_array_equal(line.get_ydata(), [-2, 1])
    np.testing.assert_array_equal(sure.get_ydata(), [-2])
    assert set(zero.get_ydata()) == {0}
    plt.close(figure)
