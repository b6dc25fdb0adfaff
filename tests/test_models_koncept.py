"""KonCept512: parameter count, the two poolings, the order of the head."""

import pytest
import torch
from torch import nn

from iqa_utils.models import build_model
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.models.shared import count_parameters

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


def test_the_pooling_of_the_port_sees_the_top_left_of_large_images_only():
    torch.manual_seed(0)
    port, whole = KonCept(SMALL, pooling="8x8").eval(), KonCept(SMALL).eval()
    whole.load_state_dict(port.state_dict())
    images = torch.randn(1, 3, 320, 448)  # a map of 10 x 14, as at 384 x 512 with the true trunk
    with torch.no_grad():
        maps = port.image_branch.trunk(images)
        assert maps.shape[2:] == (10, 14)
        expected = port.head(maps[:, :, :8, :8].mean((2, 3))).squeeze(1)
        torch.testing.assert_close(port(images), expected)
        assert not torch.allclose(whole(images), expected, rtol=1e-4)
        small = images[:, :, :256, :256]  # a map of 8 x 8: nothing is left out
        torch.testing.assert_close(port(small), whole(small))


def test_its_description_builds_it_again():
    network = KonCept(SMALL, pooling="8x8", widths=(8, 4, 2), mos_mean=59, mos_std=15)
    assert build_model(network.architecture).architecture == network.architecture


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'global' or '8x8'"):
        KonCept(SMALL, pooling="max")
