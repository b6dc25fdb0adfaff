"""IMQNet: the plan, its size and cost, and what its branches may not do."""

import pytest
import torch

from iqa_utils.models.imqnet import IMQNet, ThreeWayBlock, cost

SMALL = {"width": 0.125, "high_level_side": 48, "hidden": (16, 8)}


def test_the_default_width_has_the_planned_parameters_and_cost():
    count = cost({}, 768, 1024)
    assert count["low_level"] == 1_095_336
    assert count["high_level"] == 1_803_240
    assert count["head"] == (2 * 192 * 49 + 1) * 256 + 257 * 64 + 65
    assert count["parameters"] == 7_732_241
    assert round(count["macs"] / 1e9, 1) == 6.5
    assert count["parameters"] == sum(p.numel() for p in IMQNet().parameters())


@pytest.mark.parametrize(("width", "millions"), [(0.5, 3.15), (1.5, 13.76)])
def test_width_scales_the_branches(width, millions):
    assert round(cost({"width": width}, 768, 1024)["parameters"] / 1e6, 2) == millions


def test_the_branches_have_eleven_and_sixteen_blocks():
    model = IMQNet(**SMALL)
    assert [len(model.low_level), len(model.high_level)] == [11, 16]
    assert all(isinstance(b, ThreeWayBlock) for b in [*model.low_level, *model.high_level])


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 61), (20, 20), (64, 200)])
def test_any_input_size_gives_one_score_an_image(height, width):
    scores = IMQNet(**SMALL)(torch.rand(2, 3, height, width))
    assert scores.shape == (2,)
    assert torch.isfinite(scores).all()


def test_the_second_branch_starts_at_the_given_shorter_side():
    seen = []
    model = IMQNet(**SMALL)
    model.high_level.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.rand(1, 3, 120, 240))
    model(torch.rand(1, 3, 240, 120))
    assert [tuple(shape[-2:]) for shape in seen] == [(48, 96), (96, 48)]


def test_the_first_branch_starts_at_half_the_input():
    seen = []
    model = IMQNet(**SMALL)
    model.low_level.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.rand(1, 3, 121, 240))
    assert tuple(seen[0][-2:]) == (60, 120)


def test_a_downscaling_block_strides_only_its_last_convolutions():
    block = ThreeWayBlock(6, 12, stride=2)
    strides = [[m.stride[0] for m in b if hasattr(m, "stride")] for b in block.branches]
    assert strides == [[2], [1, 2], [1, 1, 2]]
    kernels = [[m.kernel_size[0] for m in b if hasattr(m, "stride")] for b in block.branches]
    assert kernels == [[3], [1, 3], [1, 3, 3]]
    assert block(torch.rand(1, 6, 9, 9)).shape == (1, 12, 5, 5)


def test_scores_start_at_the_mean_on_the_given_scale():
    torch.manual_seed(0)
    model = IMQNet(**SMALL, mos_mean=58.7, mos_std=15.4)
    plain = IMQNet(**SMALL)
    plain.load_state_dict(
        model.state_dict() | {"mos_mean": torch.tensor(0.0), "mos_std": torch.tensor(1.0)}
    )
    images = torch.randn(4, 3, 96, 96)
    torch.testing.assert_close(model(images), 58.7 + 15.4 * plain(images))
    assert (model(images) - 58.7).abs().max() < 15.4


def test_composition_reaches_the_score():
    torch.manual_seed(0)
    model, images = IMQNet(**SMALL), torch.rand(1, 3, 96, 96)
    assert not torch.allclose(model(images), model(images.flip(-1)), atol=1e-6)


def test_every_parameter_is_trained():
    model = IMQNet(**SMALL)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_architecture_rebuilds_the_network():
    model = IMQNet(**SMALL)
    arguments = {k: v for k, v in model.architecture.items() if k != "name"}
    again = IMQNet(**arguments)
    again.load_state_dict(model.state_dict())
    assert again.architecture == model.architecture


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"multiple of 3, got 8"):
        ThreeWayBlock(3, 8)
    with pytest.raises(ValueError, match=r"mos_std must be > 0, .*, got 0, 1.0"):
        IMQNet(width=0)
    with pytest.raises(ValueError, match=r"mos_std must be > 0, .*, got 1.0, 0"):
        IMQNet(mos_std=0)
