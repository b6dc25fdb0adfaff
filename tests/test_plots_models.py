"""Pictures of models: what stands where, not how it looks."""

import matplotlib.pyplot as plt
import pandas as pd

from iqa_utils.workshop.plots import models as plots


def test_one_failed_evaluation_does_not_squeeze_the_search_of_the_noise():
    loss = [0.012, 0.9, 0.011, 0.0105, 0.0106]
    trials = pd.DataFrame({"noise_sd": [0.01, 0.02, 0.1, 0.2, 0.3], "loss": loss})
    trials["best"] = trials["loss"].cummin()
    left, right = plt.figure().subplots(1, 2)
    plots.plot_noise_search(left, right, trials, likelihood_sd=0.1, unit="MOS")
    assert right.get_ylim()[1] < 0.02
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert "above this axis, up to 0.9" in labels


def test_a_table_of_better_than_has_square_cells_and_titles_of_networks():
    names = ["squeezenet1_0, fire7, ridge", "BRISQUE, 36 statistics, GPR"]
    axes = plt.figure().subplots()
    plots.plot_better_than(axes, pd.DataFrame([[0, 1], [-1, 0]], names, names))
    assert axes.get_aspect() == 1
    assert axes.get_yticklabels()[0].get_text() == "SqueezeNet 1.0, fire7, ridge  1"
