"""Tests of the natural scene statistics: known distributions, invariances, hand-made cases."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter
from scipy.special import gamma
from scipy.stats import gennorm
from skimage import data

from iqa_utils import natural_scenes
from iqa_utils.indicators import luma
from iqa_utils.natural_scenes import (
    _halved,
    brisque_statistics,
    fit_aggd,
    fit_ggd,
    live_parameters,
    niqe,
    niqe_of_files,
    niqe_statistics,
    normalise,
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


def test_zeros_count_to_the_right_side():
    _, _, left, right = fit_aggd(np.array([-2.0, -2.0, 0.0, 0.0, 0.0, 1.0]))
    assert (left, right) == (4, 1 / 4)


def test_one_sided_and_empty_samples_are_defined():
    shape, mean, left, right = fit_aggd(np.array([1.0, 2.0, 3.0]))
    assert (left, right) == (0, 14 / 3)
    assert np.isfinite([shape, mean]).all()
    assert np.isnan(fit_ggd(np.zeros(5))[0])


@pytest.mark.parametrize(("border", "mode"), [("zero", "constant"), ("repeat", "nearest")])
def test_normalised_pixels_agree_with_a_plain_two_dimensional_window(border, mode):
    grey = luma(PRISTINE[0][:40, :50])
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = convolve(grey, window, mode=mode)
    spread = np.sqrt(convolve(grey**2, window, mode=mode) - mean**2)
    pixels = normalise(grey, border=border)
    np.testing.assert_allclose(pixels, (grey - mean) / (spread + 1), atol=1e-3)


def plain_fit(x):
    """Asymmetric fit of a list of numbers by the nearest shape of a fine list."""
    left, right = (np.sqrt(np.mean(side**2)) for side in (x[x < 0], x[x >= 0]))
    g = left / right
    wanted = np.abs(x).mean() ** 2 / np.mean(x**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shapes = np.arange(0.2, 10, 0.0005)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    shape = shapes[np.abs(ratios - wanted).argmin()]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    mean = (right - left) * scale * gamma(2 / shape) / gamma(1 / shape)
    return shape, mean, left, right, scale


def plain_products(pixels):
    """Products of each pixel with four neighbours, around the border, pixel by pixel."""
    height, width = pixels.shape
    products = [
        pixels[r, c] * pixels[(r + down) % height, (c + right) % width]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        for r in range(height)
        for c in range(width)
    ]
    return np.reshape(products, (4, -1))


def test_brisque_is_the_plain_formula_written_out_with_loops():
    grey, expected = np.rint(luma(PRISTINE[0][100:148, 200:256])), []
    for plane in (grey, _halved(grey)):
        pixels = normalise(plane, border="zero")
        expected += [fit_ggd(pixels.ravel())[0], np.mean(pixels**2)]
        for products in plain_products(pixels):
            shape, mean, left, right, _ = plain_fit(products)
            expected += [shape, mean, left**2, right**2]
    np.testing.assert_allclose(brisque_statistics(grey), expected, atol=1e-3)


def test_niqe_is_the_plain_formula_of_scales_written_out_with_loops():
    grey, expected = np.rint(luma(PRISTINE[0][100:150, 200:265])), []
    for plane, side in ((grey[:48, :48], 48), (_halved(grey[:48, :48]), 24)):
        pixels = normalise(plane, border="repeat")[:side, :side]
        shape, _, left, right, scale = plain_fit(pixels.ravel())
        expected += [shape, scale * (left + right) / 2]
        for products in plain_products(pixels):
            shape, mean, left, right, scale = plain_fit(products)
            expected += [shape, mean, left * scale, right * scale]
    np.testing.assert_allclose(niqe_statistics(grey, patch=48)[0], expected, atol=1e-3)


def test_colours_are_read_as_rounded_luma():
    image = PRISTINE[1][:100, :120]
    grey = np.rint(luma(image))
    np.testing.assert_array_equal(brisque_statistics(image), brisque_statistics(grey))
    assert niqe(image) == niqe(grey.astype(np.uint8))


def test_white_noise_is_gaussian_in_every_direction():
    image = noisy(np.full((256, 256, 3), 128, dtype=np.uint8), 30)
    statistics = brisque_statistics(image)
    assert statistics.shape == (36,)
    assert statistics[0] > 2  # dividing by the local spread shortens the tails
    means = statistics[[3, 7, 11, 15]]
    np.testing.assert_allclose(means, means.mean(), atol=0.02)


def test_statistics_know_mirrors_and_those_of_niqe_ignore_brightness():
    image = PRISTINE[0] // 2 + 20
    grey = np.rint(luma(image))
    np.testing.assert_allclose(niqe_statistics(grey + 60), niqe_statistics(grey), atol=1e-5)
    statistics = brisque_statistics(image)
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
    image = PRISTINE[0]
    by_blur = [niqe(image), *(niqe(blurred(image, sigma)) for sigma in (1, 2, 4))]
    by_noise = [niqe(image), *(niqe(noisy(image, sigma)) for sigma in (10, 25, 60))]
    assert by_blur == sorted(by_blur)
    assert by_noise == sorted(by_noise)
    assert all(2 < niqe(picture) < 6 for picture in PRISTINE)  # undistorted photographs


def test_whole_patches_are_cut_before_anything_is_computed():
    image = PRISTINE[2][:300, :250]
    np.testing.assert_array_equal(niqe_statistics(image), niqe_statistics(image[:288, :192]))
    assert niqe_statistics(image).shape == (6, 36)


def test_distance_by_hand_for_one_patch_and_for_many():
    mean, covariance = live_parameters()
    for image in (PRISTINE[2][:96, :96], PRISTINE[2]):
        rows = niqe_statistics(image)
        spread = np.cov(rows.T) if len(rows) > 1 else np.zeros((36, 36))
        gap = rows.mean(axis=0) - mean
        expected = np.sqrt(gap @ np.linalg.pinv((covariance + spread) / 2, hermitian=True) @ gap)
        assert niqe(image) == pytest.approx(expected)


def test_flat_and_small_images_are_refused():
    grey = np.full((64, 64, 3), 90, dtype=np.uint8)
    with pytest.raises(ValueError, match="one grey level"):
        brisque_statistics(grey)
    with pytest.raises(ValueError, match="only flat ones"):
        niqe_statistics(grey, patch=32)
    with pytest.raises(ValueError, match="found 8x64"):
        brisque_statistics(PRISTINE[0][:8, :64])
    with pytest.raises(ValueError, match="at least 96x96 pixels, found 64x64"):
        niqe_statistics(grey)
    with pytest.raises(ValueError, match="found 33"):
        niqe_statistics(grey, patch=33)


def test_a_flat_corner_is_left_out():
    image = PRISTINE[0][:64, :64].copy()
    image[:32, :32] = 255
    image[:40, :40] = 255  # the window reaches into the next patch
    assert len(niqe_statistics(image, patch=16)) < 16


def test_niqe_of_files_continues_after_a_kill_and_measures_no_image_twice(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        Image.fromarray(data.coffee()[:64, : 64 + 16 * i]).save(tmp_path / name)
    seen = []

    def counted(pixels, patch):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(pixels.shape[1])
        return niqe(pixels, patch=patch)

    def measure(rows):
        options = {"patch": 32, "save_seconds": 0.0}
        return niqe_of_files(tmp_path, names, np.array(rows), tmp_path / "cache", **options)

    monkeypatch.setattr(natural_scenes, "niqe", counted)
    with pytest.raises(KeyboardInterrupt):
        measure([0, 1])
    monkeypatch.setattr(
        natural_scenes, "niqe", lambda x, patch: seen.append(x.shape[1]) or niqe(x, patch=patch)
    )
    values = measure([0, 1, 2])
    assert seen == [64, 80, 96]
    assert np.isnan(values).tolist() == [False, False, False, True]
    np.testing.assert_array_equal(measure([2, 0]), values)
    assert len(seen) == 3
    assert values[1] == niqe(data.coffee()[:64, :80], patch=32)
    Image.fromarray(data.rocket()[:64, :64]).save(tmp_path / names[0])  # other pixels, same name
    assert measure([0])[0] != values[0]
