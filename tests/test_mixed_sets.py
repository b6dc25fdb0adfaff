"""Several score tables side by side: loading, known maps, splits, one range."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from iqa_utils.datasets import load_scores
from iqa_utils.decoding import read_image
from iqa_utils.losses import fidelity
from iqa_utils.mixed_sets import (
    describe_sets,
    load_sets,
    rescale,
    rescaled_std,
    set_fidelity,
    split_sets,
    warp_subsets,
)
from iqa_utils.workshop.demo import KINDS, ensure_distorted


def make_frame(name, n, scale=(0.0, 1.0), seed=0):
    mos = np.random.default_rng(seed).uniform(*scale, size=n)
    images = [f"{name} ({i}).png" for i in range(n)]
    frame = pd.DataFrame({"image": images, "mos": mos, "mos_std": np.nan, "reference": images})
    frame.attrs = {"dataset": name, "title": name, "scale": scale, "kind": "authentic"}
    frame.attrs |= {"demo": True, "fingerprint": ""}
    return frame


def test_scores_are_rescaled_with_the_training_set_only():
    mos = np.array([2.0, 4.0, 6.0, 10.0])
    scaled, span = rescale(mos, np.array([0, 2]))
    np.testing.assert_allclose(scaled, [0, 5, 10, 20])
    assert span == (2.0, 6.0)
    with pytest.raises(ValueError, match="training scores are all 2"):
        rescale(np.full(4, 2.0), np.array([0, 2]))


def test_subsets_are_warped_by_known_maps_and_keep_the_original():
    parts = [make_frame(name, n).assign(subset=name) for name, n in (("ss01", 3), ("ss02", 4))]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = make_frame("x", 1).attrs
    subsets = warp_subsets(frame, {"ss02": "cube", "ss01": "square root"})
    np.testing.assert_allclose(subsets["ss02"]["mos"], subsets["ss02"]["mos_original"] ** 3)
    np.testing.assert_allclose(subsets["ss01"]["mos"] ** 2, subsets["ss01"]["mos_original"])
    assert subsets["ss02"]["row"].tolist() == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="x has no subset 'ss03'"):
        warp_subsets(frame, {"ss03": "x"})
    with pytest.raises(ValueError, match=r"got \['log'\]"):
        warp_subsets(frame, {"ss01": "log"})


def test_a_split_shares_no_image_and_one_too_small_to_rank_is_refused_by_name():
    rows = split_sets({"a": make_frame("a", 30)}, seed=0)["a"]
    assert {part: len(found) for part, found in rows.items()} == {
        "training": 18,
        "validation": 6,
        "test": 6,
    }
    assert sorted(np.concatenate(list(rows.values()))) == list(range(30))
    with pytest.raises(ValueError, match=r"a: .* need 2 images each.*'test': 1"):
        split_sets({"a": make_frame("a", 5)}, seed=0)


def test_a_missing_set_is_an_error_when_named_and_passed_over_when_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="LIVE"):
        load_sets(["live"], tmp_path, {})
    with pytest.raises(FileNotFoundError, match="no data set with its images"):
        load_sets([], tmp_path, {})


def test_known_maps_cut_one_set(real_data):
    frames, folders, _ = load_sets(["biq2021"], real_data, {"ss02": "cube"})
    assert folders == {"ss02": real_data / "biq2021"}
    assert frames["ss02"]["image"].str.contains("ss02").all()
    np.testing.assert_allclose(frames["ss02"]["mos"], frames["ss02"]["mos_original"] ** 3)


def test_sets_are_described_on_their_own_scales():
    frames = {"a": make_frame("a", 30), "b": make_frame("b", 20, (0.0, 100.0), seed=1)}
    table = describe_sets(frames, split_sets(frames, seed=0))
    assert table.loc["b", ["images", "training", "test"]].tolist() == [20, 12, 4]
    assert table.loc["b", "MOS max"] > 50 > 1 > table.loc["a", "MOS max"]


def test_deviations_are_rescaled_with_their_scores_and_unknown_ones_stay_unknown():
    frame = make_frame("a", 4).assign(mos=[1.0, 3.0, 5.0, 2.0], mos_std=[0.4, None, 1.0, 0.2])
    scaled, span = rescale(frame["mos"].to_numpy(), np.array([0, 2]))
    np.testing.assert_allclose(rescaled_std(frame, span), [1, np.nan, 2.5, 0.5])
    assert (scaled[2] - scaled[0]) / 2.5 == pytest.approx((5 - 1) / 1.0)


def test_deviations_on_another_scale_are_stretched_as_the_scores_are():
    frame = make_frame("a", 3).assign(mos=[20.0, 50.0, 80.0], mos_raw=[2.0, 3.0, 4.0])
    frame = frame.assign(sd_raw=[0.5, 1.0, 0.25])
    np.testing.assert_allclose(rescaled_std(frame, (20.0, 80.0)), [2.5, 5, 1.25])  # 30 a step
    own = frame.assign(mos_std=[np.nan, 6.0, np.nan])
    np.testing.assert_allclose(rescaled_std(own, (20.0, 80.0)), [2.5, 1, 1.25])


def test_the_deviations_of_koniq_are_known_and_those_of_bid_but_for_seven(real_data):
    for name, unknown in (("koniq10k", 0), ("bid", 7), ("biq2021", 2000)):
        frame = load_scores(name, real_data / name)
        std = rescaled_std(frame, (frame["mos"].min(), frame["mos"].max()))
        assert np.isnan(std).sum() == unknown
        if name == "koniq10k":  # 15.4 points of the one score are 0.55 of the other
            ratio = np.median(std / frame["sd_raw"]) * np.ptp(frame["mos"]) / 10
            assert ratio == pytest.approx(27.95, abs=0.01)


def test_only_pairs_with_an_unknown_deviation_have_certain_targets():
    pred, mos = torch.tensor([1.0, 2.5, 2.0, 0.0]), torch.tensor([3.0, 4.0, 4.0, 1.0])
    std, pred_std = torch.tensor([0.5, np.nan, 1.2, 0.8]), torch.tensor([1.0, 2.0, 0.5, 0.7])
    losses = []
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        gap, noise = (mos[i] - mos[j]).item(), torch.hypot(std[i], std[j]).item()
        truth = 0.5 * (1 + np.sign(gap)) if 1 in (i, j) else norm.cdf(gap / noise)
        guess = norm.cdf((pred[i] - pred[j]).item() / torch.hypot(pred_std[i], pred_std[j]).item())
        losses.append(1 - np.sqrt(truth * guess) - np.sqrt((1 - truth) * (1 - guess)))
    assert set_fidelity(pred, mos, std, pred_std).item() == pytest.approx(np.mean(losses), abs=2e-4)


@pytest.mark.parametrize("unknown", [[0, 1, 2, 3], [0, 1, 3]])
def test_a_set_with_one_known_deviation_or_none_has_certain_targets_alone(unknown):
    generator = torch.Generator().manual_seed(0)
    pred, mos, std, pred_std = torch.rand(4, 4, generator=generator)
    told = {"pred_std": pred_std}
    assert torch.equal(
        set_fidelity(pred, mos, std, pred_std), fidelity(pred, mos, mos_std=std, **told)
    )
    std[unknown] = torch.nan
    assert torch.equal(set_fidelity(pred, mos, std, pred_std), fidelity(pred, mos, **told))


def test_the_loss_of_partly_known_deviations_has_the_gradient_of_its_values():
    generator = torch.Generator().manual_seed(1)
    pred, mos, std, pred_std = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    std[2] = torch.nan
    pair = pred.requires_grad_(), (pred_std + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: set_fidelity(p, mos, std, s), pair)


def test_distorted_pictures_have_known_levels_and_are_made_once(tmp_path):
    folder = ensure_distorted(tmp_path, n_references=2, side=48)
    frame = load_scores("table", folder)
    assert len(frame) == 2 * (1 + 5 * len(KINDS))
    assert not frame.attrs["demo"]
    assert (frame["mos"] == 5 - frame["level"].astype(float)).all()
    assert frame["reference"].nunique() == 2
    noisy = frame[frame["distortion"] == "white noise"].groupby("reference")
    for _, part in noisy:
        images = [np.asarray(read_image(folder / name), float) for name in part["image"]]
        first = part["image"].iloc[0].split("-")[0]
        clean = np.asarray(read_image(folder / f"{first}-0.png"), float)
        errors = [np.abs(image - clean).mean() for image in images]
        assert errors == sorted(errors)
        assert errors[0] > 0
    stamp = (folder / "scores.csv").stat().st_mtime_ns
    assert ensure_distorted(tmp_path, n_references=2, side=48) == folder
    assert (folder / "scores.csv").stat().st_mtime_ns == stamp
