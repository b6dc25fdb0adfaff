"""What the shipped model must do. Levels, seeds, pictures and the bound were fixed before it was
trained; none of these pictures was trained on or looked at for a choice.
"""

import default_model as recipe
import pytest

from iqa_utils.scorer import Scorer

PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
LEVELS = {
    "gaussian blur": (0.8, 1.4, 2.2, 3.5, 5.5),  # standard deviation, pixels
    "white noise": (6, 12, 22, 38, 60),  # standard deviation, grey levels
    "jpeg": (50, 28, 16, 9, 5),  # quality
    "down and up": (1.5, 2.0, 3.0, 4.5, 7.0),  # factor, bicubic both ways
}


@pytest.fixture(scope="module")
def falls():
    assert recipe.LEVELS == LEVELS
    assert recipe.TEST_PICTURES == PICTURES
    scorer = Scorer.load(recipe.MODEL)
    return recipe.falling_pairs(scorer, recipe.photographs(PICTURES), seed=0)


def test_the_score_falls_between_neighbouring_levels_of_distorted_photographs(falls):
    assert len(falls) == 6 * 4 * 5  # from the original to level 1, to level 2, ...
    assert falls["falls"].mean() >= 0.95, falls[~falls["falls"]]
