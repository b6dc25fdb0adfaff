"""Tests of the indicators: synthetic images and the published wavelet filters."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter
from skimage import data

from iqa_utils.indicators import (
    NAMES,
    _lift,
    brightness,
    colorfulness,
    contrast,
    load_or_measure,
    luma,
    measure,
    measure_all,
    sharpness,
    standardise,
)

PHOTO = data.astronaut()


def flat(red, green, blue, shape=(16, 16)):
    return np.full((*shape, 3), (red, green, blue), dtype=np.uint8)


def test_black_white_and_grey_have_known_brightness():
    assert brightness(flat(0, 0, 0)) == 0
    assert brightness(flat(255, 255, 255)) == pytest.approx(1)
    assert brightness(flat(0, 255, 0)) == pytest.approx(0.587)


def test_half_black_half_white_has_the_largest_contrast():
    image = flat(0, 0, 0)
    image[:8] = 255
    assert contrast(image) == pytest.approx(0.5)
    assert contrast(flat(90, 90, 90)) == pytest.approx(0, abs=1e-12)


def test_colorfulness_by_hand():
    assert colorfulness(flat(70, 70, 70)) == 0
    # pure red: red - green = 1, yellow - blue = 1/2, no spread
    assert colorfulness(flat(255, 0, 0)) == pytest.approx(0.3 * np.hypot(1, 0.5))
    # half red, half green: red - green is +-1 (spread 1, mean 0), yellow - blue is 1/2
    image = flat(255, 0, 0)
    image[:8] = (0, 255, 0)
    assert colorfulness(image) == pytest.approx(1 + 0.3 * 0.5)


def test_indicators_do_not_care_about_mirrors():
    mirrored = PHOTO[:, ::-1]
    for indicator in (brightness, contrast, colorfulness):
        assert indicator(mirrored) == pytest.approx(indicator(PHOTO), rel=1e-12)
    assert sharpness(mirrored) == pytest.approx(sharpness(PHOTO), rel=0.01)


def test_the_lifting_steps_are_the_published_9_7_filters():
    low_half = [0.602949018236, 0.266864118443, -0.078223266529, -0.016864118443, 0.026748757411]
    high_half = [0.557543526229, -0.295635881557, -0.028771763114, 0.045635881557]
    low_filter = np.sqrt(2) * np.array(low_half[:0:-1] + low_half)
    high_filter = np.sqrt(2) * np.array(high_half[:0:-1] + high_half)
    x = np.random.default_rng(0).normal(size=(3, 64))
    low, high = _lift(x)
    inside = slice(4, -4)
    expected = convolve1d(x, low_filter, axis=1)[:, ::2][:, inside]
    np.testing.assert_allclose(low[:, inside], expected, atol=1e-7)
    expected = convolve1d(x, high_filter, axis=1)[:, 1::2][:, inside]
    np.testing.assert_allclose(np.abs(high[:, inside]), np.abs(expected), atol=1e-7)


def test_sharpness_falls_with_blur_and_is_zero_for_a_flat_image():
    blurred = [
        sharpness(gaussian_filter(PHOTO, (sigma, sigma, 0))) if sigma else sharpness(PHOTO)
        for sigma in (0, 1, 2, 4)
    ]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[0] > 2 * blurred[-1]
    assert sharpness(flat(90, 90, 90)) == pytest.approx(0, abs=1e-12)


def test_a_file_is_measured_with_its_bits_a_pixel(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PHOTO[:40, :50]).save(path)
    row = measure(path)
    assert row["hxw"] == 2000
    assert row["bitrate"] == pytest.approx(8 * path.stat().st_size / 2000)
    assert row["brightness"] == brightness(PHOTO[:40, :50])
    assert list(row) == ["brightness", "contrast", "colorfulness", "sharpness", "bitrate", "hxw"]
    table = measure_all(tmp_path, ["a.png", "a.png"])
    assert table["image"].tolist() == ["a.png", "a.png"]
    assert table.iloc[1].drop("image").to_dict() == row


def test_what_is_not_8_bit_rgb_is_refused():
    with pytest.raises(ValueError, match=r"found float64 of \(8, 8, 3\)"):
        luma(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="found 7x16"):
        sharpness(flat(0, 0, 0, (7, 16)))


def test_real_photographs_lie_in_the_span_of_the_official_columns(real_data):
    names = [f"Images/ss01 ({number}).jpg" for number in (1000, 1003, 102, 1020)]
    table = measure_all(real_data / "biq2021", names)
    assert table["brightness"].between(0.02, 0.95).all()
    assert table["contrast"].between(0.02, 0.45).all()
    assert table["colorfulness"].between(0, 0.6).all()
    assert table["sharpness"].between(3, 26).all()


def test_indicators_are_standardised_on_the_training_set():
    table = np.random.default_rng(1).uniform(0.1, 1, (24, len(NAMES)))
    table = pd.DataFrame(table, columns=list(NAMES))
    numbers = standardise(table, np.arange(16))
    np.testing.assert_allclose(numbers[:16].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(numbers[:16].std(0), 1, rtol=1e-6)
    order = numbers[:, NAMES.index("sharpness")]
    assert np.corrcoef(np.log(table["sharpness"]), order)[0, 1] == pytest.approx(1)
    table.loc[5, "contrast"] = np.nan
    with pytest.raises(ValueError, match="first row 5"):
        standardise(table, np.arange(9))


def test_indicators_are_taken_from_the_table_or_measured_once(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    frame = pd.DataFrame({"image": ["a.png"]})
    frame.attrs.update(dataset="any", fingerprint="0" * 16)
    found = load_or_measure(frame, tmp_path, tmp_path / "cache")
    assert found["sharpness"][0] == sharpness(PHOTO)
    (tmp_path / "a.png").unlink()  # measured before
    assert load_or_measure(frame, tmp_path, tmp_path / "cache").equals(found)
    given = frame.assign(**dict.fromkeys(NAMES, 0.5))
    assert (load_or_measure(given, tmp_path, tmp_path / "none") == 0.5).all(axis=None)
