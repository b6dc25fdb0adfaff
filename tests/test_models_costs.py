"""Multiply-accumulates against a hand count and the numbers known of the four networks."""

import pytest
import torch
from torch import nn

from iqa_utils.models import count_macs
from iqa_utils.models.monotonic import COMPARED, SIZES, cost_table


def test_one_convolution_and_one_matrix_product_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 6, 7))
    assert count_macs(network, 4, 6) == 4 * 6 * 5 * 3 * 9 + 5 * 4 * 6 * 7


def test_proposed_costs_what_is_known_at_the_quoted_and_at_the_true_size():
    table = cost_table({"224": (224, 224), "koniq10k": SIZES["koniq10k"]})
    assert table.loc["224", "Proposed"] == pytest.approx(3.81, abs=0.005)
    assert table.loc["koniq10k", "Proposed"] == pytest.approx(57.8, abs=0.06)
    assert table.loc["224", "UNIQUE"] == pytest.approx(3.68, abs=0.005)  # as printed
    saved = table.loc["224", "Proposed"] - table.loc["224", "Proposed, triangle head"]
    assert saved == pytest.approx(512 * 512 * 511 / 2 / 1e9)
    assert table.loc["parameters (M)", "Proposed"] == pytest.approx(155.5, abs=0.1)


def test_koncept512_is_dearer_at_299_and_cheaper_at_its_own_size():
    with torch.device("meta"):
        network = COMPARED["KonCept512"]()
    assert count_macs(network, 299, 299) / 1e9 == pytest.approx(13.15, abs=0.02)
    own = count_macs(network, 384, 512) / 1e9
    assert own == pytest.approx(29.7, abs=0.05)
    assert own < 57.7  # the paper's order turns round at the sizes of its test
