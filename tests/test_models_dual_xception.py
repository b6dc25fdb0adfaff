"""Dual-Xception: the constructions by their parameter counts, and what each input does."""

import pytest
import torch
from torch import nn

from iqa_utils.models import PooledTrunk, count_parameters
from iqa_utils.models.dual_xception import DualXception

SMALL = "test_efficientnet"
IMAGES = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))

COUNTS = {
    "A": 41_618_289,  # the author's 41,618,353 less the 64 of his extra normalisation
    "B": 45_812_593,
    "C": 38_466_417,
    "G": 40_565_617,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("variant", COUNTS)
def test_parameters_of_the_constructions(variant):
    with torch.device("meta"):
        assert count_parameters(DualXception(variant=variant)) == COUNTS[variant]


def test_parameters_of_single_branches_and_controls():
    with torch.device("meta"):
        images = count_parameters(DualXception(inputs="images"))
        assert images == 20_806_952 + 2048 + 1
        assert count_parameters(DualXception(inputs="parameters")) == images + 288
        assert count_parameters(DualXception(fusion="plain")) == images + 4
        assert count_parameters(DualXception(fusion="linear")) == images + 5 + 1


def test_features_of_the_variants_have_the_width_they_are_named_for():
    with torch.device("meta"):
        assert DualXception(variant="A").head.in_features == 4096
        for variant in "BCG":
            assert DualXception(variant=variant).head.in_features == 2048


@pytest.mark.parametrize("fusion", ["dual", "linear", "plain"])
def test_both_inputs_matter_when_both_are_used(fusion):
    network = DualXception(SMALL, fusion=fusion, plane_size=32).eval()
    with torch.no_grad():
        pred = network(IMAGES, NUMBERS)
        assert pred.shape == (2,)
        assert not torch.allclose(network(IMAGES + 1, NUMBERS), pred, rtol=1e-6)
        assert not torch.allclose(network(IMAGES, NUMBERS + 1), pred, rtol=1e-6)


def test_a_branch_alone_ignores_the_other_input():
    images = DualXception(SMALL, inputs="images").eval()
    numbers = DualXception(SMALL, inputs="parameters", plane_size=32).eval()
    with torch.no_grad():
        assert torch.equal(images(IMAGES), images(IMAGES, NUMBERS))
        assert torch.equal(numbers(IMAGES, NUMBERS), numbers(IMAGES + 1, NUMBERS))


def test_planes_are_constant_and_of_the_size_asked_for():
    for size, expected in ((32, (32, 32)), (None, (40, 48))):
        network = DualXception(SMALL, inputs="parameters", plane_size=size)
        seen = []
        network.parameter_branch.trunk.register_forward_pre_hook(
            lambda _, x, s=seen: s.append(x[0])
        )
        network.eval()(IMAGES, NUMBERS)
        assert seen[0].shape == (2, 4, *expected)
        assert torch.equal(seen[0], NUMBERS[:, :, None, None].expand_as(seen[0]))


def test_an_untrained_head_predicts_around_the_mean_score():
    network = DualXception(SMALL, inputs="images", mos_mean=59.0, mos_std=15.0).eval()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    assert network(IMAGES).tolist() == [59.0, 59.0]


def test_the_activation_comes_between_the_branches_and_the_head():
    network = DualXception(SMALL, fusion="plain").eval()
    with torch.no_grad():
        features = torch.cat([network.image_branch(IMAGES), NUMBERS], dim=1)
        leaky = torch.where(features > 0, features, 0.1 * features)
        torch.testing.assert_close(network(IMAGES, NUMBERS), network.head(leaky).squeeze(1))


def test_mean_and_spread_are_pooled_over_positions():
    branch = PooledTrunk(SMALL, 3, pooling="mean_std").eval()
    with torch.no_grad():
        maps = branch.trunk(IMAGES)
        pooled = branch(IMAGES)
    half = maps.shape[1]
    torch.testing.assert_close(pooled[:, :half], maps.mean((2, 3)))
    spread = maps.flatten(2).var(2, correction=0)
    torch.testing.assert_close(pooled[:, half:] ** 2, spread + 1e-6)


def test_a_frozen_stem_can_be_applied_beforehand():
    network = DualXception(SMALL, inputs="images", frozen="blocks.2").eval()
    with torch.no_grad():
        maps = network.image_branch.stem(IMAGES)
        assert maps.shape[1] != 3
        assert torch.equal(network(maps), network(IMAGES))


def test_frozen_layers_neither_learn_nor_count_what_they_see():
    network = DualXception(SMALL, inputs="images", frozen="blocks.2").train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(IMAGES).sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    early = tuple(f"image_branch.trunk.{x}" for x in ("conv_stem", "bn1", "blocks.0", "blocks.2"))
    assert not any(key.startswith(early) for key in changed)
    assert any(key.startswith("image_branch.trunk.blocks.3") for key in changed)


def test_a_linear_model_of_the_image_features_can_be_the_start():
    network = DualXception(SMALL, plane_size=32, mos_mean=50.0, mos_std=7.0).eval()
    network.activation = nn.Identity()
    weights = torch.linspace(-1, 1, network.image_branch.n_features)
    network.start_from(weights, 3.0)
    with torch.no_grad():
        expected = network.image_branch(IMAGES) @ weights + 3.0
        torch.testing.assert_close(network(IMAGES, NUMBERS), expected, rtol=1e-4, atol=1e-4)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="inputs must be one of"):
        DualXception(SMALL, inputs="image")
    with pytest.raises(ValueError, match="which test_efficientnet does not have"):
        DualXception(SMALL, variant="G")
    with pytest.raises(ValueError, match="frozen must be one of"):
        DualXception(SMALL, frozen="layer9")


def test_only_a_chain_of_layers_can_be_frozen_in_part():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return images + self.second(self.first(images))

    network = DualXception(SMALL, inputs="images")
    network.image_branch.trunk = Residual()
    with pytest.raises(ValueError, match="Residual is not a chain of its layers"):
        network.image_branch.freeze("first")


def test_missing_or_misshapen_numbers_are_named():
    network = DualXception(SMALL, plane_size=32)
    with pytest.raises(ValueError, match=r"indicators of shape \(2, 4\), got none"):
        network(IMAGES)
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        network(IMAGES, NUMBERS[:, :3])


def test_real_weights_reach_the_image_trunk_only(real_weights):
    path = real_weights / "mobilenetv2_100-imagenet.pth"
    network = DualXception("mobilenetv2_100", pretrained=path)
    state = torch.load(path, weights_only=True)
    image, number = network.image_branch.trunk, network.parameter_branch.trunk
    assert torch.equal(image.conv_stem.weight, state["conv_stem.weight"])
    assert number.conv_stem.weight.shape[1] == 4
    assert not torch.equal(number.conv_head.weight, state["conv_head.weight"])


# Keras's batch normalisation


def test_xception_normalises_with_the_epsilon_that_its_weights_were_trained_with():
    norms = [
        m for m in PooledTrunk("legacy_xception", 3).modules() if isinstance(m, nn.BatchNorm2d)
    ]
    norm = norms[0].eval()
    values, mean, variance = [-2.0, 0.5, 3.0], 0.5, 0.0015
    with torch.no_grad():
        norm.running_mean[0], norm.running_var[0] = mean, variance
        norm.weight[0], norm.bias[0] = 3.0, -1.0
        maps = torch.zeros(3, norm.num_features, 1, 1)
        maps[:, 0, 0, 0] = torch.tensor(values)
        found = norm(maps)[:, 0, 0, 0]
    # 3 (x - 0.5) / sqrt(0.0015 + 0.001) - 1 = 60 (x - 0.5) - 1
    torch.testing.assert_close(found, torch.tensor([-151.0, -1.0, 149.0]))
    assert {norm.eps for norm in norms} == {1e-3}


def test_the_whole_xception_is_that_of_keras(real_weights):
    path = real_weights / "legacy_xception-imagenet-trunk-fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the weights of Xception in {path}, which are not there")
    # from an independent run: epsilon 1e-5 and 0.00099 added to every stored variance
    stored = {1388: 1.7696006, 1292: 1.2868942, 461: 1.2859826, 684: 1.2811843, 1311: 1.2193688}
    trunk = PooledTrunk("legacy_xception", 3, pretrained=path).eval()
    ramp = torch.linspace(-1, 1, 72 * 72).view(1, 1, 72, 72)
    with torch.no_grad():
        features = trunk(torch.cat([ramp, ramp.mT, -ramp], 1))[0]
    expected = torch.tensor(list(stored.values()))
    torch.testing.assert_close(features[list(stored)], expected, rtol=1e-4, atol=0)
