"""Label distribution smoothing: kernels, weights, and the tables measured on the real scores."""

import numpy as np
import pytest

from iqa_utils.datasets import load_scores
from iqa_utils.imbalance import (
    describe_weights,
    label_counts,
    lds_bin_weights,
    lds_density,
    lds_weights,
    smoothing_kernel,
)

UNIT_BINS = np.arange(101.0)
RANGES = np.array([0, 20, 40, 60, 80, 100.0])


def test_smoothing_lets_a_rare_bin_borrow_from_its_neighbour():
    mos = np.array([1.5, 2.5, 2.5, 2.5])  # counts 1 and 3 become 1.25 and 1.75
    kernel = np.array([0.25, 0.5, 0.25])
    edges = np.array([1.0, 2, 3, 4])
    weights = lds_weights(mos, edges=edges, kernel=kernel, reweight="inverse")
    np.testing.assert_allclose(weights, [14 / 11, 10 / 11, 10 / 11, 10 / 11])


@pytest.mark.parametrize(
    ("reweight", "expected"), [("inverse", [2, 2 / 3, 2 / 3, 2 / 3]), ("none", [1, 1, 1, 1])]
)
def test_weights_without_smoothing_are_reciprocal_counts_with_mean_one(reweight, expected):
    weights = lds_weights([0.5, 1.5, 1.5, 1.5], edges=[0, 1, 2], reweight=reweight)
    np.testing.assert_allclose(weights, expected)
    root = lds_weights([0.5, 1.5, 1.5, 1.5], edges=[0, 1, 2])
    np.testing.assert_allclose(root[0] / root[1], np.sqrt(3))
    assert weights.mean() == pytest.approx(1) == root.mean()


def test_the_released_gaussian_is_folded_back_at_the_edges_of_its_own_window():
    np.testing.assert_allclose(smoothing_kernel(size=5, sigma=2), [0.858, 0.946, 1, 0.946, 0.858],
                               atol=5e-4)  # fmt: skip
    true = smoothing_kernel("gaussian", size=5, sigma=2)
    np.testing.assert_allclose(true, [0.607, 0.882, 1, 0.882, 0.607], atol=5e-4)
    nine = smoothing_kernel(size=9, sigma=1)
    np.testing.assert_allclose(nine, smoothing_kernel("gaussian", size=9, sigma=1), atol=2e-4)


def test_the_papers_twelve_bins_are_eleven_and_flat():
    kernel = smoothing_kernel(size=12, sigma=10)
    assert len(kernel) == 11
    np.testing.assert_array_equal(kernel, smoothing_kernel(size=11, sigma=10))
    assert np.ptp(kernel) < 1.1e-4


@pytest.mark.parametrize("shape", ["released", "gaussian"])
def test_a_window_of_one_bin_smooths_nothing_and_even_sizes_lose_a_bin(shape):
    np.testing.assert_array_equal(smoothing_kernel(shape, size=1), [1.0])
    eight, seven = (smoothing_kernel(shape, size=size) for size in (8, 7))
    np.testing.assert_array_equal(eight, seven)


def test_rooting_before_or_after_smoothing_is_a_choice():
    counts, kernel = np.array([1.0, 4, 16]), np.array([1.0, 1, 1])
    first = lds_density(counts, kernel=kernel)
    last = lds_density(counts, kernel=kernel, order="smooth_first")
    np.testing.assert_allclose(first, [3, 7, 6])  # 1, 2, 4 summed over neighbours
    np.testing.assert_allclose(last, np.sqrt([5, 21, 20]))


def test_nothing_lies_beyond_the_histogram():
    density = lds_density([2.0, 3, 4], kernel=np.array([1.0, 1, 1]), reweight="inverse")
    np.testing.assert_allclose(density, [5, 9, 7])


def test_released_counts_are_clipped_before_and_cut_to_integers_after_smoothing():
    options = {"kernel": np.array([0.25, 1, 0.25]), "reweight": "inverse"}
    np.testing.assert_allclose(lds_density([0, 7, 2000], **options), [1.75, 507, 2001.75])
    released = lds_density([0, 7, 2000], **options, released_counts=True)
    np.testing.assert_allclose(released, [6, 258, 1001])  # of 5, 7, 1000: 6.75, 258.25, 1001.75


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_the_weights_do_not_depend_on_the_units_of_the_scores(scale):
    mos = np.random.default_rng(0).normal(58, 12, 300).clip(0, 100)
    kernel = smoothing_kernel(size=12, sigma=10)
    weights = lds_weights(mos * scale, edges=UNIT_BINS * scale, kernel=kernel)
    np.testing.assert_allclose(weights, lds_weights(mos, edges=UNIT_BINS, kernel=3 * kernel))


def test_the_top_edge_belongs_to_the_last_bin_and_lower_edges_to_the_bin_above():
    np.testing.assert_array_equal(label_counts([0, 1, 2], [0, 1, 2]), [1, 2])


def test_bins_without_density_have_no_weight():
    weights = lds_bin_weights([0, 0, 4, 0], kernel=np.ones(3))
    np.testing.assert_allclose(weights, [np.nan, 1, 1, 1])


def test_the_effective_sample_size_is_the_number_of_images_that_still_count():
    for weights, left in ((np.ones(7), 7), ([1.0, 1e-9, 1e-9], 1), ([3.0, 1], 1.6)):
        described = describe_weights(weights, np.full(len(weights), 50.0), RANGES)
        assert described["effective sample size"] == pytest.approx(left)


def test_weights_are_described_by_range_with_what_they_cost():
    mos = np.array([5.0, 50.5, 50.6, 50.7])
    weights = lds_weights(mos, edges=UNIT_BINS, reweight="inverse")
    found = describe_weights(weights, mos, RANGES)
    assert found == pytest.approx(
        {
            "mean weight 0-20": 2.0,
            "mean weight 40-60": 2 / 3,
            "largest / smallest": 3.0,
            "effective sample size": 3.0,
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reweight": "sqrt"}, "reweight must be"),
        ({"order": "first"}, "order must be root_first or smooth_first, got"),
        ({"kernel": np.ones(2)}, "odd number of bins"),
        ({"kernel": np.ones(5)}, "covers 5 bins, the histogram has 4"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lds_density([1, 2, 3, 4], **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "box"}, "released or gaussian"),
        ({"size": 0}, "size >= 1"),
        ({"sigma": 0.0}, "sigma > 0"),
    ],
)
def test_impossible_kernels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        smoothing_kernel(**arguments)


def test_scores_outside_the_bins_are_refused_not_moved():
    with pytest.raises(ValueError, match=r"scores span \[50, 101\], edges only \[0, 100\]"):
        lds_weights([50.0, 101.0], edges=UNIT_BINS)


def test_a_density_that_vanishes_where_images_are_is_refused():
    with pytest.raises(ValueError, match="positive smoothed density"):
        lds_weights([0.5], edges=[0, 1, 2, 3], kernel=np.array([1.0, 0, 0]))


OFFICIAL = {"kernel": smoothing_kernel(size=12, sigma=10)}
MEASURED = {  # mean weight in five ranges, largest to smallest weight, effective sample size
    "no smoothing": ({}, [3.47, 1.58, 0.99, 0.75, 2.16], 15.8, 5372),
    "(5, 2)": ({"kernel": smoothing_kernel(size=5, sigma=2)},
               [3.57, 1.59, 0.99, 0.75, 2.11], 19.9, 5295),
    "(12, 10)": (OFFICIAL, [3.56, 1.58, 0.98, 0.76, 1.89], 19.2, 5429),
    "true Gaussian": ({"kernel": smoothing_kernel("gaussian", size=61, sigma=10)},
                      [3.16, 1.48, 0.91, 0.85, 1.45], 9.7, 6042),
    "smooth first": (OFFICIAL | {"order": "smooth_first"},
                     [3.39, 1.59, 0.99, 0.77, 1.62], 13.7, 5693),
    "literal": ({"kernel": smoothing_kernel("gaussian", size=81, sigma=10, mean=12)},
                [7.48, 1.88, 0.93, 0.64, 0.63], 54, 2916),
    "inverse": ({"reweight": "inverse"}, [10.8, 1.97, 0.76, 0.43, 4.96], 250, 836),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_weights_on_the_real_koniq_training_scores(name, real_data):
    options, per_range, ratio, effective = MEASURED[name]
    frame = load_scores("koniq10k", real_data / "koniq10k")
    mos = frame.loc[frame["split"] == "training", "mos"].to_numpy()
    weights = lds_weights(mos, edges=UNIT_BINS, **options)
    ranges = np.digitize(mos, RANGES[1:-1])
    means = [weights[ranges == k].mean() for k in range(5)]
    assert len(mos) == 7058
    np.testing.assert_allclose(means, per_range, atol=0.02, rtol=0.003)
    assert weights.max() / weights.min() == pytest.approx(ratio, rel=0.005)
    left = describe_weights(weights, mos, RANGES)["effective sample size"]
    assert left == pytest.approx(effective, abs=1.5)


def test_the_real_koniq_scores_leave_bins_empty_and_a_constant_errs_by_twelve(real_data):
    mos = load_scores("koniq10k", real_data / "koniq10k")["mos"].to_numpy()
    empty = np.flatnonzero(label_counts(mos, UNIT_BINS) == 0)
    assert empty.tolist() == [0, 1, 2, *range(89, 100)]
    assert np.abs(mos - np.median(mos)).mean() == pytest.approx(12.17, abs=0.005)
    assert ((mos < 20).sum(), (mos > 84).sum()) == (183, 21)  # not "zero-shot", as the paper says
