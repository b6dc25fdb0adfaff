"""Tests of the natural scene statistics: known distributions, invariances, hand-made cases."""

import numpy as np
import pytest
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import gennorm
from skimage import data

from iqa_utils.indicators import luma
from iqa_utils.natural_scenes import (
    _shape_statistics,
    brisque_statistics,
    fit_aggd,
    fit_ggd,
    fit_niqe,
    niqe,
    normalise,
    patch_statistics,
)

PRISTINE = [data.astronaut(), data.chelsea(), data.coffee()]


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def blurred(image, sigma):
    return gaussian_filter(image, (sigma, sigma, 0))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 5.0])
def test_a_generalised_gaussian_gives_its_shape_and_variance_back(shape):
    x = gennorm.rvs(shape, scale=2, size=200_000, random_state=0)
    found, variance = fit_ggd(x)
    assert found == pytest.approx(shape, rel=0.02)
    assert variance == pytest.approx(gennorm.var(shape, scale=2), rel=0.03)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0])
def test_two_joined_halves_give_their_shape_and_spreads_back(shape):
    rng = np.random.default_rng(1)
    half = np.abs(gennorm.rvs(shape, size=300_000, random_state=2))
    x = np.where(rng.random(half.size) < 3 / 4, 3 * half, -half)  # mass goes with the scale
    found, mean, left, right = fit_aggd(x)
    assert found == pytest.approx(shape, rel=0.02)
    assert mean == pytest.approx(x.mean(), rel=0.02)
    assert left == pytest.approx(gennorm.var(shape), rel=0.03)
    assert right == pytest.approx(9 * gennorm.var(shape), rel=0.03)


def test_mirroring_the_samples_swaps_the_sides():
    x = np.random.default_rng(3).normal(size=(4, 1000)) + 0.2
    shape, mean, left, right = fit_aggd(x)
    np.testing.assert_allclose(fit_aggd(-x), [shape, -mean, right, left], rtol=1e-12)
    np.testing.assert_allclose(fit_aggd(2 * x)[0], shape)


def test_one_sided_and_empty_samples_are_defined():
    shape, mean, left, right = fit_aggd(np.array([1.0, 2.0, 3.0]))
    assert (left, right) == (0, 14 / 3)
    assert np.isfinite([shape, mean]).all()
    assert np.isnan(fit_ggd(np.zeros(5))[0])


def test_normalised_pixels_agree_with_a_plain_two_dimensional_window():
    grey = luma(PRISTINE[0][:40, :50])
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = convolve(grey, window, mode="nearest")
    spread = np.sqrt(convolve(grey**2, window, mode="nearest") - mean**2)
    pixels, found = normalise(grey)
    np.testing.assert_allclose(found, spread, atol=1e-6)
    np.testing.assert_allclose(pixels, (grey - mean) / (spread + 1), atol=1e-3)


def test_products_pair_each_pixel_with_its_neighbour_by_hand():
    pixels = np.arange(12.0).reshape(3, 4) - 5
    statistics = _shape_statistics(pixels)
    pairs = {
        2: [pixels[r, c] * pixels[r, c + 1] for r in range(3) for c in range(3)],
        6: [pixels[r, c] * pixels[r + 1, c] for r in range(2) for c in range(4)],
        10: [pixels[r, c] * pixels[r + 1, c + 1] for r in range(2) for c in range(3)],
        14: [pixels[r, c] * pixels[r + 1, c - 1] for r in range(2) for c in range(1, 4)],
    }
    for start, products in pairs.items():
        expected = fit_aggd(np.array(products))
        np.testing.assert_allclose(statistics[start : start + 4], expected)


def test_white_noise_is_gaussian_in_every_direction():
    image = noisy(np.full((256, 256, 3), 128, dtype=np.uint8), 30)
    statistics = brisque_statistics(image)
    assert statistics.shape == (36,)
    assert statistics[0] > 2  # dividing by the local spread shortens the tails
    means = statistics[[3, 7, 11, 15]]
    np.testing.assert_allclose(means, means.mean(), atol=0.02)


def test_statistics_ignore_brightness_and_know_mirrors():
    image = PRISTINE[0] // 2 + 20
    statistics = brisque_statistics(image)
    np.testing.assert_allclose(brisque_statistics(image + 60), statistics, atol=1e-5)
    mirrored = brisque_statistics(np.ascontiguousarray(image[:, ::-1]))
    order = np.r_[0:10, 14:18, 10:14, 18:28, 32:36, 28:32]  # the diagonals change places
    np.testing.assert_allclose(mirrored[order], statistics, atol=1e-5)
    turned = brisque_statistics(np.ascontiguousarray(image.swapaxes(0, 1)))
    order = np.r_[0:2, 6:10, 2:6, 10:20, 24:28, 20:24, 28:36]  # right and below change places
    np.testing.assert_allclose(turned[order], statistics, atol=1e-5)


def test_blur_and_noise_move_the_shape_in_opposite_ways():
    shape = brisque_statistics(PRISTINE[0])[0]
    assert brisque_statistics(blurred(PRISTINE[0], 2))[0] < shape
    assert brisque_statistics(noisy(PRISTINE[0], 25))[0] > shape


def test_distance_grows_with_blur_and_with_noise():
    model = fit_niqe(PRISTINE[1:], patch=48, sharpest=0.3)
    image = PRISTINE[0]
    by_blur = [niqe(image, model), *(niqe(blurred(image, sigma), model) for sigma in (1, 2, 4))]
    by_noise = [niqe(image, model), *(niqe(noisy(image, sigma), model) for sigma in (10, 25, 60))]
    assert by_blur == sorted(by_blur)
    assert by_noise == sorted(by_noise)


def test_the_model_is_the_normal_distribution_of_its_patches():
    model = fit_niqe(PRISTINE, patch=64, sharpest=0.0)
    rows = np.concatenate([patch_statistics(image, patch=64) for image in PRISTINE])
    assert model.n_patches == len(rows) == 64 + 4 * 7 + 6 * 9
    np.testing.assert_allclose(model.mean, rows.mean(axis=0))
    # an image made of exactly the model's patches is at distance zero from it
    lone = fit_niqe([PRISTINE[0]], patch=64, sharpest=0.0)
    assert niqe(PRISTINE[0], lone) == pytest.approx(0, abs=1e-6)


def test_only_sharp_patches_teach():
    image = PRISTINE[0].copy()
    image[:, :256] = blurred(image, 6)[:, :256]
    everything = patch_statistics(image, patch=64)
    sharp = patch_statistics(image, patch=64, sharpest=0.75)
    assert 0 < len(sharp) <= len(everything) / 2


def test_distance_by_hand_for_one_patch():
    model = fit_niqe(PRISTINE, patch=64, sharpest=0.0)
    patch = PRISTINE[2][:64, :64]
    gap = patch_statistics(patch, patch=64)[0] - model.mean
    expected = np.sqrt(gap @ np.linalg.pinv(model.covariance / 2, hermitian=True) @ gap)
    assert niqe(patch, model) == pytest.approx(expected)


def test_flat_and_small_images_are_refused():
    grey = np.full((64, 64, 3), 90, dtype=np.uint8)
    with pytest.raises(ValueError, match="one grey level"):
        brisque_statistics(grey)
    with pytest.raises(ValueError, match="only flat ones"):
        patch_statistics(grey, patch=32)
    with pytest.raises(ValueError, match="found 8x64"):
        brisque_statistics(PRISTINE[0][:8, :64])
    with pytest.raises(ValueError, match="at least 96x96 pixels, found 64x64"):
        patch_statistics(grey)
    with pytest.raises(ValueError, match="found 33"):
        patch_statistics(grey, patch=33)
    with pytest.raises(ValueError, match="at least 37 patches, found 4"):
        fit_niqe([PRISTINE[0][:64, :64]], patch=32, sharpest=0.0)


def test_a_flat_corner_is_left_out():
    image = PRISTINE[0][:64, :64].copy()
    image[:32, :32] = 255
    image[:40, :40] = 255  # the window reaches into the next patch
    assert len(patch_statistics(image, patch=16)) < 16
