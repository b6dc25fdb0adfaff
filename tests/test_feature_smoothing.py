"""Feature distribution smoothing against a plain loop, and the quirks of the released layer."""

import numpy as np
import pytest
import torch
from bench_fds import LoopFDS, run_epoch
from torch.nn import functional as F

from iqa_utils.imbalance import CLIPS, FDS, bucket_statistics, smoothing_kernel

EDGES = np.arange(13.0)
KERNEL = smoothing_kernel(size=5, sigma=2) / smoothing_kernel(size=5, sigma=2).sum()


def _sample(n=200, n_features=6, *, seed=0, dtype=torch.float64):
    """Scores that leave buckets 0, 4, 5, 9 and 11 empty and give bucket 10 a single image."""
    generator = torch.Generator().manual_seed(seed)
    mos = 1 + 3 * torch.rand(n - 1, generator=generator, dtype=dtype)
    mos = torch.where(torch.arange(n - 1) % 2 == 0, mos, mos + 5)  # 1..4 and 6..9
    mos = torch.cat([mos, torch.tensor([10.5], dtype=dtype)])
    spread = 1 + mos[:, None] / 5
    features = torch.randn(n, n_features, generator=generator, dtype=dtype) * spread
    return features + mos[:, None], mos


def _layer(variant="corrected", n_features=6, **options):
    return FDS(n_features, EDGES, variant=variant, **options).double()


def _epochs(layer, n, *, features=None, mos=None):
    """Outputs of n epochs in which the features drift."""
    base, scores = _sample() if features is None else (features, mos)
    return [run_epoch(layer, base + 0.3 * epoch, scores, 64) for epoch in range(n)]


@pytest.mark.parametrize("variant", CLIPS)
def test_the_layer_equals_a_plain_loop_over_buckets(variant):
    loop = LoopFDS(6, EDGES, kernel=KERNEL, variant=variant, clip=CLIPS[variant])
    ours = _epochs(_layer(variant), 6)
    for mine, reference in zip(ours, _epochs(loop, 6), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10)
    assert (ours[-1] - _epochs(_layer(variant), 6)[0]).abs().max() > 0.1


def test_single_precision_stays_within_a_millionth_of_the_loop():
    features, mos = _sample(dtype=torch.float32)
    layer, loop = FDS(6, EDGES), LoopFDS(6, EDGES, kernel=KERNEL)
    for _ in range(4):
        mine = run_epoch(layer, features, mos, 64)
        reference = run_epoch(loop, features.double(), mos, 64)
    assert (mine.double() - reference).abs().max() / reference.abs().max() < 1e-6


def test_smoothing_reflects_at_the_ends_as_torch_pads():
    layer, table = _layer(), torch.randn(12, 6, dtype=torch.float64)
    padded = F.pad(table.T[None], (2, 2), mode="reflect")[0].T  # (16, 6), end bucket not repeated
    kernel = torch.tensor(KERNEL)
    expected = torch.stack([kernel @ padded[k : k + 5] for k in range(12)])
    torch.testing.assert_close(layer.smoothing @ table, expected)


def test_calibration_by_hand():
    layer = FDS(1, [0.0, 1, 2], kernel_size=1).double()
    layer.mean[:] = torch.tensor([[1.0], [5.0]])
    layer.variance[:] = torch.tensor([[4.0], [1.0]])
    layer._calibrate(torch.tensor([[2.0], [5.0]]), torch.tensor([[1.0], [100.0]]))
    layer.epoch += 1
    x = torch.tensor([[3.0], [6.0]], dtype=torch.float64)
    # bucket 0: (3 - 1) * sqrt(1 / 4) + 2 = 3; bucket 1: ratio 100 is clipped to 10
    expected = torch.tensor([[3.0], [5 + np.sqrt(10)]], dtype=torch.float64)
    torch.testing.assert_close(layer(x, torch.tensor([0.5, 1.5])), expected)


def test_the_corrected_layer_starts_in_epoch_one_and_the_released_one_in_epoch_two():
    features, _ = _sample()
    changed = {}
    for variant in CLIPS:
        outputs = _epochs(_layer(variant), 4)
        inputs = [features + 0.3 * epoch for epoch in range(4)]
        changed[variant] = [not torch.equal(a, b) for a, b in zip(outputs, inputs, strict=True)]
    assert changed["corrected"] == [False, True, True, True]
    for variant in ("released_agedb", "released_stsb"):  # epoch 1: zeros and ones, identity
        assert changed[variant] == [False, False, True, True]


def test_the_released_layer_whitens_with_newer_statistics_than_it_recolours_with():
    features, mos = _sample()
    layer = _layer("released_stsb")
    layer.momentum = 0.0  # running statistics are those of the last epoch
    layer.end_epoch(features, mos)
    first = layer.smoothing @ layer.mean
    layer.end_epoch(features + 7.0, mos)
    bucket = int(layer.buckets(mos[:1]))
    # a feature at the mean of epoch 1 lands on the smoothed mean of epoch 0, 7 below
    out = layer(layer.mean[bucket][None], mos[:1])
    torch.testing.assert_close(out[0], first[bucket])
    corrected = _layer("corrected")
    corrected.momentum = 0.0
    for shift in (0.0, 7.0):
        corrected.end_epoch(features + shift, mos)
    out = corrected(corrected.mean[bucket][None], mos[:1])
    torch.testing.assert_close(out[0], (corrected.smoothing @ corrected.mean)[bucket])


def test_the_first_calibrated_statistics_are_those_of_the_features_that_came():
    layer = _layer(collects="calibrated")
    features, mos = _sample()
    layer.end_epoch(features, mos)
    raw = _layer()
    raw.end_epoch(features, mos)
    torch.testing.assert_close(layer.mean, raw.mean, rtol=0, atol=0)
    scale, shift, before = layer.scale.clone(), layer.shift.clone(), layer.mean.clone()
    layer.end_epoch(features, mos)
    bucket = layer.buckets(mos)
    for k in (1, 2, 6):  # a linear map of the features of a bucket is one of their mean
        mine = features[bucket == k].mean(dim=0) * scale[k] + shift[k]
        torch.testing.assert_close(layer.mean[k], 0.9 * before[k] + 0.1 * mine)


def test_the_released_layer_collects_features_that_it_has_calibrated_in_place():
    features, mos = _sample()
    layer = _layer("released_agedb")
    layer.end_epoch(features, mos)
    layer.end_epoch(features, mos)
    twin = _layer("released_agedb", collects="raw")
    twin.load_state_dict(layer.state_dict())
    calibrated, before = layer(features, mos), layer.mean.clone()
    layer.end_epoch(features, mos)
    full = [k for k in range(12) if k not in (0, 4, 5, 9, 11)]
    _, mean, _ = bucket_statistics(calibrated, layer.buckets(mos), 12)
    torch.testing.assert_close(layer.mean[full], 0.9 * before[full] + 0.1 * mean[full])
    twin.end_epoch(features, mos)  # raw features give other statistics
    _, mean, _ = bucket_statistics(features, layer.buckets(mos), 12)
    torch.testing.assert_close(twin.mean[full], 0.9 * before[full] + 0.1 * mean[full])
    assert (twin.mean[full] - layer.mean[full]).abs().max() > 1e-3


def test_scores_on_the_outer_edges_belong_to_the_outer_buckets():
    scores = torch.tensor([0.0, 1.0, 11.5, 12.0])
    assert _layer().buckets(scores).tolist() == [0, 1, 11, 11]
    for outside in (-0.01, 12.01):
        with pytest.raises(ValueError, match=r"inside \[0, 12\]"):
            _layer().end_epoch(*_sample()[:1], torch.full((len(_sample()[1]),), outside))


def test_collected_features_do_not_depend_on_the_mode_the_layer_is_in():
    features, mos = _sample()
    layers = _layer("released_agedb"), _layer("released_agedb").eval()
    for _ in range(4):
        for layer in layers:
            layer.end_epoch(features, mos)
    torch.testing.assert_close(layers[0].mean, layers[1].mean, rtol=0, atol=0)


def test_first_epoch_sets_the_statistics_and_later_ones_move_them_by_a_tenth():
    layer = FDS(1, [0.0, 1.0], kernel_size=1).double()
    for values, expected in (([1.0, 3.0], 2.0), ([11.0, 13.0], 0.9 * 2 + 0.1 * 12)):
        layer.end_epoch(torch.tensor(values)[:, None].double(), torch.tensor([0.5, 0.5]))
        assert layer.mean.item() == pytest.approx(expected)
    assert layer.variance.item() == pytest.approx(2.0)  # unbiased


def test_empty_buckets_are_interpolated_or_filled_or_left_as_each_release_does():
    features = torch.tensor([[4.0], [6.0], [10.0], [12.0]], dtype=torch.float64)
    mos = torch.tensor([1.5, 1.5, 4.5, 4.5])  # buckets 1 and 4 of six: means 5 and 11
    layer = FDS(1, np.arange(7.0), kernel_size=1).double()
    layer.end_epoch(features, mos)
    np.testing.assert_allclose(layer.mean[:, 0], [5, 5, 7, 9, 11, 11])
    # STS-B: bucket 2 averages 5 and the still untouched 0; bucket 3 then that and 11
    for release, mean, variance in (
        ("released_stsb", [5, 5, 2.5, 6.75, 11, 11], [2, 2, 1.5, 1.75, 2, 2]),
        ("released_agedb", [0, 5, 0, 0, 11, 0], [1, 2, 1, 1, 2, 1]),
    ):
        layer = FDS(1, np.arange(7.0), kernel_size=1, variant=release).double()
        layer.end_epoch(features, mos)
        np.testing.assert_allclose(layer.mean[:, 0], mean)
        np.testing.assert_allclose(layer.variance[:, 0], variance)


def test_a_single_image_borrows_its_variance_or_has_none_as_released():
    features = torch.tensor([[0.0], [2.0], [7.0], [3.0], [5.0]], dtype=torch.float64)
    mos = torch.tensor([0.5, 0.5, 1.5, 2.5, 2.5])
    for variant, expected in (("corrected", [2, 2, 2]), ("released_agedb", [2, 0, 2])):
        layer = FDS(1, [0.0, 1, 2, 3], kernel_size=1, variant=variant).double()
        layer.end_epoch(features, mos)
        np.testing.assert_allclose(layer.variance[:, 0], expected)
        np.testing.assert_allclose(layer.mean[:, 0], [1, 7, 4])


@pytest.mark.parametrize("variant", CLIPS)
def test_one_image_in_every_bucket_leaves_features_alone(variant):
    features, mos = torch.randn(4, 3), torch.tensor([0.5, 1.5, 2.5, 3.5])
    layer = FDS(3, np.arange(5.0), kernel_size=3, variant=variant)
    for _ in range(3):
        layer.end_epoch(features, mos)
    torch.testing.assert_close(layer(features, mos), features, rtol=0, atol=0)


@pytest.mark.parametrize("variant", CLIPS)
def test_features_of_zero_variance_pass_while_the_others_are_calibrated(variant):
    features, mos = _sample(n_features=2)
    features[:, 1] = 3.0
    layer = _layer(variant, n_features=2)
    for _ in range(3):
        layer.end_epoch(features, mos)
    out = layer(features, mos)
    assert torch.equal(out[:, 1], features[:, 1])
    assert (out[:-1, 0] - features[:-1, 0]).abs().median() > 1e-3
    assert torch.isfinite(out).all()


def test_evaluation_and_the_first_epoch_leave_features_alone():
    features, mos = _sample()
    layer = _layer()
    assert layer(features) is features
    layer.end_epoch(features, mos)
    assert layer.eval()(features) is features
    with pytest.raises(ValueError, match="needs the scores"):
        layer.train()(features)


def test_the_epoch_stays_in_main_memory_where_no_step_waits_for_it():
    layer = _layer().to("meta")
    assert layer.epoch.device.type == "cpu"
    assert layer.mean.device.type == "meta"
    assert "epoch" in layer.state_dict()


def test_a_column_of_scores_is_refused_before_it_broadcasts():
    features, mos = _sample()
    layer = _layer()
    layer.end_epoch(features, mos)
    with pytest.raises(ValueError, match=r"shape \(B,\), got \(200, 1\)"):
        layer(features, mos[:, None])


def test_statistics_near_known_means_are_those_of_two_passes():
    features, mos = _sample()
    bucket = _layer().buckets(mos)
    near = torch.randn(12, 6, dtype=torch.float64)
    for one, two in zip(
        bucket_statistics(features, bucket, 12, near=near),
        bucket_statistics(features, bucket, 12),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    lone = bucket_statistics(features, bucket, 12, near=near)[2][10]
    assert torch.equal(lone, torch.zeros(6, dtype=torch.float64))


def test_gradients_flow_through_the_calibration():
    features, mos = _sample()
    layer = _layer()
    layer.end_epoch(features, mos)
    features.requires_grad_()
    layer(features, mos).sum().backward()
    torch.testing.assert_close(features.grad, layer.scale[layer.buckets(mos)])


def test_a_layer_restored_in_mid_training_goes_on_the_same():
    layer, again = _layer("released_stsb"), _layer("released_stsb")
    _epochs(layer, 3)
    again.load_state_dict(layer.state_dict())
    for a, b in zip(_epochs(layer, 2), _epochs(again, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 14}, "covers 13 bins, the histogram has 12"),
        ({"variant": "released"}, "variant must be one of corrected, released_agedb"),
        ({"collects": "all"}, "collects raw or calibrated, got 'corrected' and 'all'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FDS(2, EDGES, **options)


@pytest.mark.parametrize("score", [-0.1, 12.1, float("nan")])
def test_scores_outside_the_buckets_are_refused(score):
    with pytest.raises(ValueError, match=r"inside \[0, 12\]"):
        FDS(2, EDGES).end_epoch(torch.zeros(2, 2), torch.tensor([5.0, score]))
    with pytest.raises(ValueError, match="edges must increase"):
        FDS(2, [0.0, 2.0, 1.0])
