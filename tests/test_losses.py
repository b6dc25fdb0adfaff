"""The losses against hand values, the published identities and the oracle of NumPy."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from iqa_utils.losses import (
    balanced_mse,
    fidelity,
    mean_over_sources,
    norm_in_norm,
    range_weighted_mse,
    weighted_l1,
    weighted_mse,
)

PRED = torch.tensor([1.0, 2.0, 4.0, 4.5, 7.0], dtype=torch.float64)
MOS = torch.tensor([0.5, 3.0, 3.5, 6.5, 6.0], dtype=torch.float64)
RHO = np.corrcoef(PRED, MOS)[0, 1]


def test_eq4_is_one_minus_the_correlation_and_the_mean_of_the_printed_formula():
    z_pred, z_mos = stats.zscore(PRED), stats.zscore(MOS)
    printed = 0.5 * np.mean((z_pred - z_mos) ** 2)
    assert norm_in_norm(PRED, MOS).item() == pytest.approx(1 - RHO, abs=1e-7)
    assert norm_in_norm(PRED, MOS).item() == pytest.approx(printed, abs=1e-7)


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        ((1.0, 0.0), (1 - RHO) / 2),
        ((0.0, 1.0), (1 - RHO**2) / 4),
        ((1.0, 1.0), ((1 - RHO) / 2 + (1 - RHO**2) / 4) / 2),  # the copy in the released code
    ],
)
def test_nin_with_both_norms_euclidean_is_a_mixture_of_two_correlations(alphas, expected):
    loss = norm_in_norm(PRED, MOS, form="nin", p=2, q=2, alphas=alphas)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("p", "q"), [(1, 2), (2, 1), (1, 1)])
def test_nin_divides_by_the_largest_value_it_can_take(p, q):
    y_hat, y = (v - v.mean() for v in (PRED.numpy(), MOS.numpy()))
    y_hat, y = (v / np.linalg.norm(v, q) for v in (y_hat, y))
    c = 2 ** max(1, 1 / q) * 5 ** max(0, 1 / p - 1 / q)
    expected = (np.linalg.norm(y_hat - y, p) / c) ** p
    loss = norm_in_norm(PRED, MOS, form="nin", p=p, q=q)
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    worst = norm_in_norm(-MOS[[0, 4]], MOS[[0, 4]], form="nin", p=p, q=q)
    assert 0 <= loss.item() < worst.item() <= 1 + 1e-9


def test_l1_is_what_the_released_code_computes():
    assert norm_in_norm(PRED, MOS, form="l1").item() == pytest.approx((PRED - MOS).abs().mean())


@pytest.mark.parametrize("form", ["eq4", "nin"])
def test_norm_in_norm_ignores_offset_and_gain(form):
    moved = norm_in_norm(3 * PRED + 11, MOS, form=form)
    assert moved.item() == pytest.approx(norm_in_norm(PRED, MOS, form=form).item(), abs=1e-7)


@pytest.mark.parametrize("form", ["eq4", "nin"])
@pytest.mark.parametrize(
    ("pred", "mos"),
    [([0.3], [4.0]), ([1.0, 2.0, 5.0], [7.1, 7.1, 7.1]), ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0])],
    ids=["one image", "constant scores", "constant predictions"],
)
def test_where_no_correlation_exists_the_loss_and_its_gradient_are_zero(form, pred, mos):
    pred = torch.tensor(pred, requires_grad=True)
    loss = norm_in_norm(pred, torch.tensor(mos), form=form, alphas=(1.0, 0.5))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_gradients_of_all_losses_agree_with_finite_differences():
    pred = PRED.clone().requires_grad_()
    for loss in (
        lambda x: norm_in_norm(x, MOS),
        lambda x: norm_in_norm(x, MOS, form="nin", alphas=(1.0, 0.1)),
        lambda x: fidelity(x, MOS, mos_std=torch.full_like(MOS, 1.3)),
    ):
        assert torch.autograd.gradcheck(loss, pred)


def test_fidelity_of_one_pair_by_hand():
    pred, mos = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 3.0])
    guess = stats.norm.cdf(1 / np.sqrt(2))
    assert fidelity(pred, mos).item() == pytest.approx(1 - np.sqrt(guess), abs=2e-4)
    truth = stats.norm.cdf(2 / np.sqrt(0.5))
    expected = 1 - np.sqrt(truth * guess) - np.sqrt((1 - truth) * (1 - guess))
    loss = fidelity(pred, mos, mos_std=torch.full((2,), 0.5))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    unsure = stats.norm.cdf(1 / np.sqrt(9 + 16))
    loss = fidelity(pred, mos, pred_std=torch.tensor([3.0, 4.0]))
    assert loss.item() == pytest.approx(1 - np.sqrt(unsure), abs=2e-4)
    with pytest.raises(ValueError, match="shape"):
        fidelity(pred, mos, pred_std=torch.ones(2, 1))


def test_fidelity_sees_the_order_only_and_one_image_has_none():
    assert fidelity(PRED, MOS).item() == pytest.approx(fidelity(PRED, MOS.exp()).item())
    assert fidelity(PRED, MOS) < fidelity(-PRED, MOS)
    assert fidelity(PRED[:1], MOS[:1]).item() == 0


def test_every_data_set_of_a_mixed_batch_counts_the_same():
    pred, mos = torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([1.5, 1.5, 1.5, 4.0])
    source = torch.tensor([3, 3, 3, 0])
    mixed = mean_over_sources(F.smooth_l1_loss, pred, mos, source)
    assert mixed.item() == pytest.approx((0.125 + 1.5) / 2)


def test_a_set_with_a_single_image_in_the_batch_counts_without_its_correlation():
    mos, source = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1])
    quality = torch.tensor([1.5, 1.0, 3.0], requires_grad=True)

    def both(pred, mos):
        return F.smooth_l1_loss(pred, mos) + norm_in_norm(pred, mos)

    loss = mean_over_sources(both, quality, mos, source)
    # set 0: smooth L1 (0.125 + 0.5) / 2 and 1 - (-1); set 1: 2 - 0.5 and no correlation
    assert loss.item() == pytest.approx(((0.3125 + 2) + 1.5) / 2, abs=1e-6)
    loss.backward()
    assert torch.isfinite(quality.grad).all()


@pytest.mark.parametrize("loss", [norm_in_norm, fidelity])
def test_a_column_against_a_vector_is_refused(loss):
    with pytest.raises(ValueError, match=r"shape \(B,\).*\(8, 1\) and \(8,\)"):
        loss(torch.zeros(8, 1), torch.zeros(8))


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="eq4, nin or l1, got 'eq5'"):
        norm_in_norm(PRED, MOS, form="eq5")


@pytest.mark.parametrize("options", [{"p": 0.5}, {"q": 0}, {"alphas": (1, -1)}, {"alphas": (0, 0)}])
def test_exponents_and_weights_without_a_norm_are_refused(options):
    with pytest.raises(ValueError, match=r"p and q must be >= 1, alphas >= 0 and not both 0"):
        norm_in_norm(PRED, MOS, form="nin", **options)


def test_weighted_errors_by_hand_and_without_weights_the_plain_ones():
    pred, mos = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0])
    weight = torch.tensor([1.5, 0.5])
    assert weighted_l1(pred, mos, weight).item() == pytest.approx((1.5 * 1 + 0.5 * 3) / 2)
    assert weighted_mse(pred, mos, weight).item() == pytest.approx((1.5 * 1 + 0.5 * 9) / 2)
    assert weighted_l1(pred, mos).item() == pytest.approx(2)
    assert weighted_mse(pred, mos).item() == pytest.approx(5)
    with pytest.raises(ValueError, match="shape"):
        weighted_l1(pred, mos, torch.ones(2, 1))


def test_balanced_mse_of_two_images_by_hand_and_of_one_is_zero():
    pred, mos = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 3.0])
    # noise 1: distances to the two scores are 1 and 4, then 9 and 0
    terms = [np.log(1 + np.exp(-(4 - 1) / 2)), np.log(1 + np.exp(-9 / 2))]
    assert balanced_mse(pred, mos, noise=1.0).item() == pytest.approx(2 * np.mean(terms))
    assert balanced_mse(pred[:1], mos[:1], noise=1.0).item() == 0


def test_balanced_mse_drives_predictions_out_of_the_crowd():
    mos = torch.tensor([0.0] + [10.0] * 9)
    pred = torch.full((10,), 9.0, requires_grad=True)
    balanced_mse(pred, mos, noise=5.0).backward()
    balanced = pred.grad.clone()
    pred.grad = None
    weighted_mse(pred, mos).backward()
    lone, crowd = 0, slice(1, None)
    assert balanced[lone] > pred.grad[lone] * 0.5  # the rare score still pulls down
    assert (balanced[crowd].abs() < pred.grad[crowd].abs()).all()  # the crowd pulls less
    with pytest.raises(ValueError, match="noise must be positive"):
        balanced_mse(pred, mos, noise=0.0)


def test_range_weights_by_hand_keep_the_scale_and_even_out_the_ranges():
    edges, counts = torch.tensor([0.0, 50, 100]), torch.tensor([1, 3])
    mos = torch.tensor([10.0, 60, 70, 100])  # one image in the lower range, three in the upper
    pred = mos + torch.tensor([2.0, 1, 1, 1])
    loss = range_weighted_mse(pred, mos, counts=counts, edges=edges)
    # weights 1 and 1/3, scaled by 4 / 2 so that the four images average 1
    torch.testing.assert_close(loss, torch.tensor((2 * 4 + 2 / 3 * 3) / 4))


def test_range_weights_refuse_scores_without_a_range():
    edges, mos = torch.tensor([0.0, 50, 100]), torch.tensor([10.0, 60])
    with pytest.raises(ValueError, match=r"scores span \[10, 60\]"):
        range_weighted_mse(mos, mos, counts=torch.tensor([0, 3]), edges=edges)
    with pytest.raises(ValueError, match=r"between edges \[0.0, 50.0\]"):
        range_weighted_mse(mos, mos, counts=torch.tensor([1, 3]), edges=edges[:2])
    with pytest.raises(ValueError, match=r"\[1.0, 3.0, 2.0\] between edges \[0.0, 50.0, 100.0\]"):
        range_weighted_mse(mos, mos, counts=torch.tensor([1, 3, 2]), edges=edges)
    beyond = torch.tensor([10.0, 110])
    with pytest.raises(ValueError, match=r"scores span \[10, 110\]"):
        range_weighted_mse(beyond, beyond, counts=torch.tensor([1, 3]), edges=edges)


def test_only_the_ratio_of_the_two_weights_counts():
    torch.testing.assert_close(
        norm_in_norm(PRED, MOS, form="nin", p=1, q=1, alphas=(1.0, 0.0)),
        norm_in_norm(PRED, MOS, form="nin", p=1, q=1, alphas=(2.0, 0.0)),
    )
