"""Which images of several data sets share a batch: epoch length, visits, order."""

import numpy as np
import pytest

from iqa_utils.samplers import MIXINGS, mixed_batches, visits_per_epoch

SIX = [494, 540, 6125, 352, 698, 6043]  # training parts of the paper's six sets


def counts(batches, sizes):
    """Return the visits of every image, one array a set."""
    drawn = np.concatenate(batches)
    return [np.bincount(drawn[drawn[:, 0] == s, 1], minlength=n) for s, n in enumerate(sizes)]


def test_released_batch_of_32_holds_192_images_of_six_sets():
    batches = mixed_batches(SIX, "released", batch_size=32, seed=0, epoch=0)
    assert len(batches) == 192  # 6,125 indices: 191 full batches and 13 left over
    assert {len(b) for b in batches[:-1]} == {192}
    assert len(batches[-1]) == 6 * 13
    for batch in batches:
        assert len(set(np.bincount(batch[:, 0], minlength=6))) == 1


def test_released_epoch_shows_the_largest_set_once_and_cycles_through_the_others():
    visits = counts(mixed_batches(SIX, "released", batch_size=32, seed=0, epoch=0), SIX)
    assert (visits[2] == 1).all()
    for n, seen in zip(SIX, visits, strict=True):
        assert seen.sum() == 6125
        assert set(seen) <= {6125 // n, -(-6125 // n)}
    expected = visits_per_epoch(SIX, "released")
    np.testing.assert_allclose([v.mean() for v in visits], expected)
    assert expected[0] == pytest.approx(12.4, abs=0.01)


def test_released_index_takes_image_i_modulo_n_of_every_set():
    batches = mixed_batches([3, 7], "released", batch_size=7, seed=5, epoch=0)
    (batch,) = batches
    small, large = batch[batch[:, 0] == 0, 1], batch[batch[:, 0] == 1, 1]
    np.testing.assert_array_equal(small, large % 3)
    assert sorted(large) == list(range(7))
    assert list(large) != list(range(7))  # shuffled


def test_proportional_epoch_shows_every_image_once():
    sizes = [5, 60, 35]
    batches = mixed_batches(sizes, "proportional", batch_size=20, seed=1, epoch=2)
    assert [len(b) for b in batches] == [20] * 5
    assert all((v == 1).all() for v in counts(batches, sizes))
    np.testing.assert_array_equal(visits_per_epoch(sizes, "proportional"), [1, 1, 1])
    first = [np.bincount(b[:, 0], minlength=3)[1] for b in batches]
    assert 6 <= min(first) <= max(first) <= 18  # about 12 of 20


@pytest.mark.parametrize("mixing", MIXINGS)
def test_order_is_a_function_of_seed_and_epoch(mixing):
    draw = lambda seed, epoch: np.concatenate(  # noqa: E731
        mixed_batches([9, 20], mixing, batch_size=4, seed=seed, epoch=epoch)
    )
    np.testing.assert_array_equal(draw(3, 1), draw(3, 1))
    assert (draw(3, 1) != draw(3, 2)).any()
    assert (draw(3, 1) != draw(4, 1)).any()


def test_one_set_alone_is_an_ordinary_epoch():
    batches = mixed_batches([10], "released", batch_size=4, seed=0, epoch=0)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert (counts(batches, [10])[0] == 1).all()


@pytest.mark.parametrize("mixing", ["released", "proportional"])
def test_sets_of_one_image_and_batches_of_one_place_are_taken(mixing):
    batches = mixed_batches([1, 2], mixing, batch_size=1, seed=0, epoch=0)
    seen = {tuple(place) for batch in batches for place in batch.tolist()}
    assert seen == {(0, 0), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("sizes", "mixing", "batch_size", "fact"),
    [
        ([4, 0], "released", 2, r"sizes \[4, 0\]"),
        ([], "proportional", 2, r"sizes \[\]"),
        ([4], "proportional", 0, "batch_size 0"),
        ([4], "equal", 2, "mixing must be one of .*'equal'"),
    ],
)
def test_empty_sets_empty_batches_and_unknown_mixings_are_refused(sizes, mixing, batch_size, fact):
    with pytest.raises(ValueError, match=fact):
        mixed_batches(sizes, mixing, batch_size=batch_size, seed=0, epoch=0)
