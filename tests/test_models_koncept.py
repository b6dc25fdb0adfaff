"""KonCept512: parameter count, the order of the head."""

import torch
from torch import nn

from iqa_utils.models import build_model, count_parameters
from iqa_utils.models.dual_xception import KonCept

SMALL = "test_efficientnet"


def test_parameters_of_trunk_and_head():
    with torch.device("meta"):
        network = KonCept()
    assert count_parameters(network) == 59_821_729
    assert count_parameters(network.image_branch.trunk) == 54_306_464


def test_the_head_is_dense_relu_normalisation_dropout_three_times():
    head = KonCept(SMALL).head
    block = [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout]
    assert [type(layer) for layer in head] == block * 3 + [nn.Linear]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [
        2048,
        1024,
        256,
        1,
    ]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.25, 0.25, 0.5]


def test_its_description_builds_it_again():
    network = KonCept(SMALL, widths=(8, 4, 2), mos_mean=59, mos_std=15)
    assert build_model(network.architecture).architecture == network.architecture
