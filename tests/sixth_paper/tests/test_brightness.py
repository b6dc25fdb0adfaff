import numpy as np
from PIL import Image

from iqa_utils.brightness import brightness


def test_brightness_of_black_grey_and_white(tmp_path):
    paths = [tmp_path / f"{level}.png" for level in (0, 51, 255)]
    for path in paths:
        Image.new("RGB", (4, 3), (int(path.stem),) * 3).save(path)
    np.testing.assert_allclose(brightness(paths), [[0.0], [0.2], [1.0]])
