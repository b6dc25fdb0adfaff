"""Pictures that several notebooks share can be read."""

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from iqa_utils.features.layers import NETWORKS
from iqa_utils.workshop.plots import common


@pytest.mark.parametrize("scale", [1, -25])
def test_labels_of_small_differences_do_not_touch(scale):
    common.set_theme()
    table = pd.DataFrame({"value": [-0.039, -0.003], "ci_low": [-0.061, -0.014]})
    table = scale * table.assign(ci_high=[-0.02, 0.008])
    table["method"] = ["method1", "range-weighted loss"]
    panels = common.grid_figure(2, columns=2, size=(5.0, 3.2))
    common.plot_about_zero(panels[0], table, xlabel="difference in SRCC")
    figure = panels[0].figure
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in panels[0].get_xticklabels()]
    low, high = panels[0].get_window_extent().intervalx
    boxes = [box for box in boxes if box.x1 > low and box.x0 < high]
    gaps = [right.x0 - left.x1 for left, right in pairwise(boxes)]
    plt.close(figure)
    assert len(gaps) >= 2
    assert min(gaps) > 8


def test_intervals_of_two_groups_are_drawn_and_named():
    rows = [
        {"method": m, "state": s, "value": 0.1, "ci_low": 0.0, "ci_high": 0.2}
        for m in ("a", "b")
        for s in ("x", "y")
    ]
    axes = common.plot_intervals(plt.figure().subplots(), pd.DataFrame(rows), group="state")
    assert [line.get_label() for line in axes.lines] == ["x", "y"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ss02 (square root)", "subset 2 (square root)"),
        ("ss01 (x)", "subset 1 (unchanged)"),
        ("single:ss02", "single: subset 2"),
        ("single:koniq10k", "single: KonIQ-10k"),
        ("niqe", "NIQE"),
        ("squeezenet1_0, as_written", "SqueezeNet 1.0, as written"),
        ("KonCept512, none", "KonCept512, no sampling"),
        ("LDS + FDS, released_agedb", "LDS + FDS, as released, AgeDB"),
        ("released eq4", "released, printed loss"),
        ("block_15", "block 15"),
        ("LDS, kernel (5, 2)", "LDS, kernel (5, 2)"),
        ("class02", "class02"),
    ],
)
def test_a_reader_sees_words_in_place_of_keys(key, words):
    assert common.plain_name(key) == words


def test_every_network_of_a_notebook_has_a_title():
    assert {name for name in NETWORKS if common.plain_name(name) == name} == set()


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [((3, 60), ["1", "2", "5", "10", "20", "50"]), ((3, 6e4), ["1", "10", "100", "1,000"])],
)
def test_a_logarithmic_axis_has_decades_alone_over_more_than_two(ends, ticks):
    axes = plt.figure().subplots()
    axes.plot(ends, [0, 1])
    axes.set(xscale="log", xlim=ends)
    common.plain_log(axes.xaxis)
    written = [text.get_text() for text in axes.get_xticklabels()]
    assert written[: len(ticks)] == ticks
