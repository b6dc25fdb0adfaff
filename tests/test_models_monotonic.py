"""Monotone by construction, and each variant is the family of curves it is said to be."""

import pytest
import torch
from torch import nn

from iqa_utils.models import build_model
from iqa_utils.models.monotonic import (
    VARIANTS,
    BilinearRegressor,
    MonotonicIQA,
    MonotonicTransformers,
    parameter_groups,
)

GRID = torch.linspace(-6, 6, 241, dtype=torch.float64)
TINY = {"backbone": "test_resnet", "channels": 8}


def random_curves(variant, n_layers=5, *, seed=0, spread=1.0):
    torch.manual_seed(seed)
    curves = MonotonicTransformers(7, variant=variant, n_layers=n_layers).double()
    with torch.no_grad():
        for parameter in curves.parameters():
            parameter.copy_(spread * torch.randn_like(parameter))
    return curves


def bends(curves):
    values = curves.curves(GRID)
    return values[2:] - 2 * values[1:-1] + values[:-2], values.abs().max()


@pytest.mark.parametrize("n_layers", [3, 5, 7])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(5))
def test_no_weights_and_no_inputs_make_a_curve_fall(variant, n_layers, seed):
    curves = random_curves(variant, n_layers, seed=seed, spread=10.0 ** (seed - 2))
    quality = (20 * torch.randn(300, dtype=torch.float64)).sort().values
    values = curves.curves(quality)
    assert values.shape == (300, 7)
    assert torch.isfinite(values).all()
    assert (values.diff(dim=0) >= -1e-12 * values.abs().max()).all()


def test_a_negative_weight_used_as_it_is_would_fall():
    curves = random_curves("paper", 3)
    x = nn.functional.elu(GRID[:, None] @ curves.weights[0][0].mT)
    assert (x.sum(1).diff() < 0).any()  # so the property above is not an accident of the grid


@pytest.mark.parametrize("n_layers", [3, 5, 7])
def test_released_curves_are_one_gain_for_positive_quality_and_bounded_below(n_layers):
    curves = random_curves("released", n_layers)
    gain = curves.curves(torch.ones(1, dtype=torch.float64))
    positive = GRID[GRID > 0]
    torch.testing.assert_close(curves.curves(positive), positive[:, None] * gain)
    assert not curves.curves(torch.zeros(1, dtype=torch.float64)).any()
    far = curves.curves(torch.tensor([-1e3, -1e6], dtype=torch.float64))
    torch.testing.assert_close(far[0], far[1])  # saturated: as low as it gets


def test_released_biases_exist_and_are_never_used():
    curves = random_curves("released")
    curves.curves(GRID).sum().backward()
    assert all(bias.grad is None for bias in curves.biases)
    per_set = [sum(p[0].numel() for p in ps) for ps in (curves.weights, curves.biases)]
    assert per_set == [820, 61]


@pytest.mark.parametrize("seed", range(4))
def test_paper_curves_are_convex_and_not_just_lines(seed):
    second, size = bends(random_curves("paper", seed=seed))
    assert (second >= -1e-10 * size).all()
    assert (second > 1e-6).any()


def test_mixed_curves_bend_both_ways_and_can_saturate():
    second, _ = bends(random_curves("mixed", 3))
    assert (second > 1e-6).any()
    assert (second < -1e-6).any()
    curves = MonotonicTransformers(1, variant="mixed", n_layers=3).double()
    with torch.no_grad():
        for weight, bias in zip(curves.weights, curves.biases, strict=True):
            weight.fill_(1.0)
            bias.zero_()
        curves.weights[1][:, 5:] = 0  # a convex first layer, read by
        curves.weights[1][:, :, 5:] = 0
        curves.weights[2][:, :, :5] = 0  # a concave second one
        curves.weights[1][:, 5:, :5] = 1.0
    ends = curves.curves(torch.tensor([-60.0, -50.0, 50.0, 60.0], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[3])
    assert ends[0] < ends[2]


@pytest.mark.parametrize(("variant", "beats"), [("paper", False), ("mixed", True)])
def test_only_mixed_curves_can_follow_a_concave_scale(variant, beats):
    torch.manual_seed(0)
    curves = MonotonicTransformers(1, variant=variant, n_layers=3)
    x = torch.linspace(0, 1, 60)
    optimizer = torch.optim.Adam(curves.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (curves.curves(4 * x - 2)[:, 0] - x.sqrt()).square().mean()
        loss.backward()
        optimizer.step()
    design = torch.stack([x, torch.ones(60)], 1)
    line = design @ torch.linalg.lstsq(design, x.sqrt()[:, None]).solution
    ratio = loss.item() / (line[:, 0] - x.sqrt()).square().mean().item()
    assert (ratio < 0.3) if beats else (ratio > 0.99)


def test_scalar_starts_as_the_identity_and_identity_has_no_parameters():
    scalar, identity = (MonotonicTransformers(2, variant=v) for v in ("scalar", "identity"))
    for curves in (scalar, identity):
        torch.testing.assert_close(curves.curves(GRID.float()), GRID.float()[:, None].expand(-1, 2))
    assert sum(p.numel() for p in scalar.parameters()) == 4
    assert not list(identity.parameters())


def test_each_image_goes_through_the_curve_of_its_own_set():
    curves = random_curves("paper")
    source = torch.tensor([6, 0, 3])
    quality = torch.tensor([0.4, 0.4, -1.0], dtype=torch.float64)
    expected = torch.stack([curves.curves(quality)[k, s] for k, s in enumerate(source)])
    torch.testing.assert_close(curves(quality, source), expected)


def test_head_is_the_released_formula_written_out():
    torch.manual_seed(1)
    head = BilinearRegressor(4, form="full", hidden=(6, 3))
    maps = torch.randn(2, 4, 3, 5)
    expected = []
    for image in maps:
        flat = image.reshape(4, 15)
        gram = flat @ flat.T / 15
        root = gram.sign() * (gram.abs() + 1e-8).sqrt()
        vector = root.flatten() / root.norm()
        hidden = torch.relu(head.second(torch.relu(head.first(vector))))
        expected.append(head.last(hidden)[0])
    torch.testing.assert_close(head(maps), torch.stack(expected))


def test_triangle_follows_the_full_matrix_step_by_step_under_adam():
    torch.manual_seed(0)
    full = BilinearRegressor(12, form="full", hidden=(16, 8)).double()
    triangle = BilinearRegressor(12, form="triangle", hidden=(16, 8)).double().copy_full(full)
    maps, mos = torch.randn(16, 12, 3, 3).double().abs(), torch.rand(16).double()
    heads = {"full": full, "triangle": triangle}
    steps = {
        k: torch.optim.Adam(parameter_groups(h, lr_trunk=0, lr=1e-3)) for k, h in heads.items()
    }
    for _ in range(200):
        for name, head in heads.items():
            steps[name].zero_grad()
            # float64 here; forward() pools in float32
            loss = head.last(torch.relu(head.second(torch.relu(head._read(maps)))))[:, 0] - mos
            loss.square().mean().backward()
            steps[name].step()
    with torch.no_grad():
        torch.testing.assert_close(triangle._read(maps), full._read(maps), rtol=1e-6, atol=1e-6)
    size = full.first.weight.reshape(16, 12, 12)
    moved = (size + size.mT).flatten(1)[:, triangle.pairs]
    torch.testing.assert_close(triangle.off_diagonal.weight, moved, rtol=1e-6, atol=1e-6)


def test_triangle_starts_from_the_same_distribution_as_the_sum_of_two():
    torch.manual_seed(0)
    head = BilinearRegressor(64, form="triangle")
    std = (2 / 64**2) ** 0.5
    assert head.first.weight.std().item() == pytest.approx(std, rel=0.02)
    assert head.off_diagonal.weight.std().item() == pytest.approx(2**0.5 * std, rel=0.01)


def test_parameter_counts_are_those_of_the_released_model():
    with torch.device("meta"):
        model = MonotonicIQA(list("abcdef"), form="full", variant="released")
        half = MonotonicIQA(list("abcdef"), form="triangle", variant="released")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model) == 155_541_095  # 155.5 million
    assert count(model.head) == 134_251_137  # 134.3 million in the fully connected layers
    assert count(half.head) == count(model.head) - 512 * (512 * 511 // 2)


def test_quality_needs_no_data_set_and_takes_any_size():
    torch.manual_seed(0)
    model = MonotonicIQA(["a", "b"], variant="paper", **TINY).eval()
    with torch.no_grad():
        for height, width in [(64, 64), (96, 160), (65, 47)]:
            images = torch.rand(2, 3, height, width)
            assert model(images).shape == (2,)
            mapped = model(images, torch.tensor([0, 1]))
            curves = model.transformers.curves(model.quality(images))
            torch.testing.assert_close(mapped, curves.diagonal())


def test_model_is_rebuilt_from_its_architecture():
    model = MonotonicIQA(["a", "b"], variant="mixed", n_layers=7, **TINY)
    again = build_model(model.architecture)
    assert again.architecture == model.architecture
    again.load_state_dict(model.state_dict())


def test_trunk_rest_and_doubled_weights_get_their_own_rates():
    model = MonotonicIQA(["a"], variant="scalar", **TINY)
    groups = {g["lr"]: g["params"] for g in parameter_groups(model, lr_trunk=3e-5, lr=3e-4)}
    assert set(groups) == {3e-5, 3e-4, 6e-4}
    assert groups[6e-4] == [model.head.off_diagonal.weight]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    model.trunk.requires_grad_(False)
    assert len(parameter_groups(model, lr_trunk=3e-5, lr=3e-4)) == 2


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"n_sources": 0}, "got 0, 'paper', 5"),
        ({"n_sources": 1, "variant": "softplus"}, "got 1, 'softplus', 5"),
        ({"n_sources": 1, "n_layers": 4}, r"\[3, 5, 7\] layers, got 1, 'paper', 4"),
    ],
)
def test_unknown_families_of_curves_are_refused(options, fact):
    with pytest.raises(ValueError, match=fact):
        MonotonicTransformers(**options)


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="triangle or full, got 'lower'"):
        BilinearRegressor(4, form="lower")
