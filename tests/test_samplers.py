"""Cross-sampling: exact counts, draws that change with the epoch and with nothing else."""

import numpy as np
import pandas as pd
import pytest

from iqa_utils.samplers import METHODS, cross_sample, range_quotas

KONIQ_TRAINING = [129, 833, 2157, 3790, 149]
CENTRES = np.array([10.0, 30.0, 50.0, 70.0, 90.0])
MOS = CENTRES.repeat(KONIQ_TRAINING)
EXPECTED = {
    "none": [129, 833, 2157, 3790, 149],
    "method1": [129, 129, 129, 129, 129],
    "method2": [129, 129, 258, 258, 129],
    "method3": [387, 387, 516, 516, 387],
    "rule": [129, 516, 516, 516, 149],
}


def drawn_per_range(mos, method, **options):
    rows = cross_sample(mos, method, seed=0, epoch=0, **options)
    return np.histogram(np.asarray(mos)[rows], [0, 20, 40, 60, 80, 100])[0].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_counts_on_the_official_training_part(method):
    assert range_quotas(KONIQ_TRAINING, method).tolist() == EXPECTED[method]
    assert drawn_per_range(MOS, method) == EXPECTED[method]


def test_the_default_ranges_are_fifths_of_the_scale_closed_on_the_left():
    for edge in (20, 40, 60, 80):
        below, at, above = edge - 0.5, float(edge), edge + 0.5
        rows = cross_sample([below, at, above, above], "method1", seed=0, epoch=0)
        assert sorted(rows)[:1] == [0]  # one image below and one of three from the edge on
        assert len(rows) == 2


def test_images_per_epoch_as_the_facts_have_them():
    images = {method: int(range_quotas(KONIQ_TRAINING, method).sum()) for method in METHODS}
    assert images == {"none": 7058, "method1": 645, "method2": 903, "method3": 2193, "rule": 1826}


def test_counts_on_the_official_file(real_data):
    table = pd.read_csv(real_data / "koniq10k" / "koniq10k_distributions_sets.csv")
    mos = table.loc[table["set"] == "training", "MOS"]
    for method, expected in EXPECTED.items():
        assert drawn_per_range(mos, method) == expected


def test_the_threshold_of_method_2_is_a_parameter():
    assert range_quotas(KONIQ_TRAINING, "method2", threshold=832).sum() == 129 * 8
    assert range_quotas(KONIQ_TRAINING, "method2", threshold=2157).sum() == 129 * 6


@pytest.mark.parametrize(
    ("count", "quota"), [(10, 10), (15, 15), (20, 20), (21, 20), (39, 20), (40, 30), (59, 30),
                         (60, 40), (500, 40)]
)  # fmt: skip
def test_the_rule_at_its_borders(count, quota):
    assert range_quotas([10, count], "rule").tolist() == [10, quota]


def test_an_epoch_depends_on_seed_and_epoch_only():
    draws = [
        cross_sample(MOS, "method1", seed=s, epoch=e) for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


def test_many_epochs_see_every_image():
    seen = {
        i for epoch in range(100) for i in cross_sample(MOS[:500], "method1", seed=0, epoch=epoch)
    }
    assert seen == set(range(500))


def test_undersampling_never_repeats_and_oversampling_repeats_evenly():
    for method in ("method1", "method2", "rule"):
        rows = cross_sample(MOS, method, seed=0, epoch=0)
        assert len(np.unique(rows)) == len(rows)
    rows = cross_sample(MOS, "method3", seed=0, epoch=0)
    times = np.bincount(rows, minlength=len(MOS))
    assert (times[:129] == 3).all()  # 387 places for 129 images
    assert set(times[-149:]) == {2, 3}  # 387 places for 149
    assert times[129:-149].max() == 1


def test_an_empty_range_stays_empty_and_is_not_the_smallest():
    assert range_quotas([0, 5, 100], "method1").tolist() == [0, 5, 5]
    assert range_quotas([0, 5, 100, 7], "method3").tolist() == [0, 15, 20, 20]
    assert range_quotas([1, 5, 9], "method3").tolist() == [3, 4, 4]


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"scores span \[10, 90\], edges only \[0, 80\]"):
        cross_sample(MOS, "rule", edges=[0, 40, 80], seed=0, epoch=0)
    with pytest.raises(ValueError, match="method must be one of"):
        range_quotas([1, 2], "method4")
    with pytest.raises(ValueError, match="at least one of them"):
        range_quotas([0, 0], "rule")
    with pytest.raises(ValueError, match="three ranges"):
        range_quotas([5, 0, 6], "method3")
