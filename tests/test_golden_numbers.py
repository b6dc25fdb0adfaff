"""Today's code against numbers of public code; `tests/golden/README.md` says where they are from.

Every comparison leaves a row `golden | ours | difference` in the summary of the test run.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fds import LoopFDS, run_epoch
from PIL import Image
from skimage import data
from torch.nn.functional import smooth_l1_loss

from iqa_utils.imbalance import CLIPS, FDS, lds_weights, smoothing_kernel
from iqa_utils.losses import fidelity, mean_over_sources, norm_in_norm
from iqa_utils.metrics import fit_logistic, logistic, plcc, rmse
from iqa_utils.models.monotonic import BilinearRegressor, MonotonicTransformers
from iqa_utils.natural_scenes import (
    brisque_statistics,
    live_parameters,
    niqe,
    niqe_statistics,
)

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def hold(record_property):
    """Assert that two arrays agree and keep their largest difference for the summary."""

    def check(name, golden, ours, *, atol=0.0, rtol=0.0):
        golden, ours = (np.asarray(x, dtype=np.float64) for x in (golden, ours))
        assert golden.shape == ours.shape
        gap = np.abs(ours - golden)
        worst = np.unravel_index(np.argmax(gap - rtol * np.abs(golden)), gap.shape)
        record_property("golden", [name, float(golden[worst]), float(ours[worst])])
        np.testing.assert_allclose(ours, golden, rtol=rtol, atol=atol)

    return check


# Feature distribution smoothing

FDS_EDGES = {"agedb": np.arange(101.0), "stsb": np.round(np.linspace(0, 5, 51), 9)}


@pytest.mark.parametrize("release", FDS_EDGES)
@pytest.mark.parametrize("case", ["full", "holes"])
def test_the_layer_calibrates_and_collects_as_the_released_one_over_six_epochs(release, case, hold):
    golden = load(f"fds_{release}")
    features, mos = (torch.from_numpy(golden[f"{case}_{k}"]) for k in ("features", "labels"))
    layer = FDS(4, FDS_EDGES[release], variant=f"released_{release}")
    counts = np.bincount(layer.buckets(mos), minlength=len(layer.mean))
    np.testing.assert_array_equal(counts, golden[f"{case}_counts"])
    found = {f"{name}_{m}": [] for name in ("running", "smoothed") for m in ("mean", "var")}
    found["out"] = []
    for epoch in range(6):
        tables = layer.mean.clone(), layer.variance.clone()
        for name, table in zip(("smoothed_mean", "smoothed_var"), tables, strict=True):
            found[name].append(layer.smoothing.float() @ table)
        found["out"] += [layer(features[epoch], mos)] if epoch else []
        layer.end_epoch(features[epoch], mos)
        found["running_mean"].append(layer.mean.clone())
        found["running_var"].append(layer.variance.clone())
    for key, ours in found.items():
        hold(f"FDS {release} {case} {key}", golden[f"{case}_{key}"], torch.stack(ours), atol=1e-5)


@pytest.mark.parametrize("release", FDS_EDGES)
@pytest.mark.parametrize("case", ["full", "holes"])
def test_the_loop_of_the_benchmark_calibrates_as_the_released_one(release, case, hold):
    golden = load(f"fds_{release}")
    features, mos = (torch.from_numpy(golden[f"{case}_{k}"]) for k in ("features", "labels"))
    variant = f"released_{release}"
    kernel = smoothing_kernel(size=5, sigma=2) / smoothing_kernel(size=5, sigma=2).sum()
    options = {"kernel": kernel, "clip": CLIPS[variant], "variant": variant}
    loop = LoopFDS(4, FDS_EDGES[release], dtype=torch.float32, **options)
    found = [run_epoch(loop, x, mos, 64) for x in features]
    hold(f"loop {release} {case} out", golden[f"{case}_out"], torch.stack(found[1:]), atol=1e-5)
    hold(
        f"FDS loop {release} {case} mean", golden[f"{case}_running_mean"][-1], loop.mean, atol=1e-5
    )


@pytest.mark.parametrize("release", FDS_EDGES)
@pytest.mark.parametrize("case", ["full", "holes"])
def test_the_layer_collects_raw_features_as_the_released_class_alone_does(release, case, hold):
    golden = load(f"fds_{release}")
    features, mos = (torch.from_numpy(golden[f"{case}_{k}"]) for k in ("features", "labels"))
    layer = FDS(4, FDS_EDGES[release], variant=f"released_{release}", collects="raw").double()
    for x in features.double():
        before = layer.mean.clone(), layer.variance.clone()
        layer.end_epoch(x, mos)
    tables = {"running": (layer.mean, layer.variance)}
    tables["smoothed"] = [layer.smoothing @ table for table in before]
    for name, pair in tables.items():
        for kind, ours in zip(("mean", "var"), pair, strict=True):
            key = f"{case}_uncalibrated_{name}_{kind}_last"
            hold(f"FDS {release} {case} raw {name}_{kind}", golden[key], ours, atol=1e-6)


@pytest.mark.parametrize("release", FDS_EDGES)
@pytest.mark.parametrize("case", ["full", "holes"])
def test_the_window_of_the_layer_is_the_released_one_scaled_to_sum_one(release, case, hold):
    window = smoothing_kernel(size=5, sigma=2)
    golden = load(f"fds_{release}")[f"{case}_kernel"]
    hold(f"FDS window (5, 2), {release} {case}", golden, window / window.sum(), atol=1e-8)


# Label distribution smoothing


@pytest.mark.parametrize(("size", "sigma"), [(5, 2), (9, 1), (11, 10), (12, 10)])
def test_smoothing_windows_are_the_released_ones(size, sigma, hold):
    golden = load("lds")[f"window_gaussian_{size}_{sigma}"]
    ours = smoothing_kernel(size=size, sigma=sigma)
    hold(f"LDS window ({size}, {sigma})", golden, ours, atol=1e-12)


@pytest.mark.parametrize("top", [100, 121])
@pytest.mark.parametrize(
    ("reweight", "width"),
    [
        ("sqrt_inv", None),
        ("sqrt_inv", (5, 2)),
        ("sqrt_inv", (9, 1)),
        ("sqrt_inv", (12, 10)),
        ("inverse", None),
        ("inverse", (5, 2)),
        ("inverse", (9, 1)),
        ("inverse", (12, 10)),
    ],
)
def test_label_weights_are_the_released_ones(top, reweight, width, hold):
    golden = load("lds")
    name = f"{reweight}_gaussian_{width[0]}_{width[1]}" if width else f"{reweight}_none"
    kernel = smoothing_kernel(size=width[0], sigma=width[1]) if width else None
    options = {"reweight": reweight, "released_counts": reweight == "inverse"}
    edges = np.arange(top + 1.0)
    ours = lds_weights(golden["labels"], edges=edges, kernel=kernel, **options)
    rtol = 1e-12 if top == 100 else 3e-7  # the weights of 121 bins were kept in float32 only
    hold(f"LDS weights {top} {name}", golden[f"weights{top}_{name}"], ours, rtol=rtol)
    if top == 100:
        single = golden[f"weights{top}_{name}_float32"]
        hold(f"LDS weights {top} {name}, float32", single, ours, rtol=3e-7)


# Monotonic transformers and the bilinear head


def released_curves():
    golden, curves = load("monotonic"), MonotonicTransformers(6, variant="released").double()
    with torch.no_grad():
        for layer, pair in enumerate(zip(curves.weights, curves.biases, strict=True)):
            for kind, parameter in zip(("weight", "bias"), pair, strict=True):
                states = [golden[f"state_nlm{s}.{2 * layer}.fc.{kind}"] for s in range(1, 7)]
                parameter.copy_(torch.from_numpy(np.stack(states)))
    return golden, curves


def test_released_curves_have_the_released_values_and_slopes(hold):
    golden, curves = released_curves()
    quality = torch.from_numpy(golden["cfcl_input"]).requires_grad_()
    values = curves.curves(quality).T  # (6, 961)
    slopes = [torch.autograd.grad(row.sum(), quality, retain_graph=True)[0] for row in values]
    for name, ours in (("output", values), ("slope", torch.stack(slopes))):
        reference = golden[f"cfcl_{name}"]
        scale = 1 + np.abs(reference)
        hold(
            f"CFCL {name} / (1 + |{name}|)",
            reference / scale,
            ours.detach().numpy() / scale,
            atol=1e-12,
        )


@pytest.mark.parametrize("form", ["full", "triangle"])
def test_the_bilinear_head_is_the_released_one(form, hold):
    golden = load("monotonic")
    head = BilinearRegressor(8, form="full")
    layers = (head.first, head.second, head.last)
    for layer, number in zip(layers, (0, 2, 4), strict=True):
        state = {k: torch.from_numpy(golden[f"state_fc.{number}.{k}"]) for k in ("weight", "bias")}
        layer.load_state_dict(state)
    if form == "triangle":
        head = BilinearRegressor(8, form="triangle").copy_full(head)
    maps = torch.from_numpy(golden["head_maps"]).requires_grad_()
    output = head(maps)
    output.sum().backward()
    hold(f"bilinear head, {form}", golden["head_output"], output.detach(), atol=1e-6)
    hold(f"its gradient, {form}", golden["head_maps_gradient"], maps.grad, atol=1e-5)


def test_the_pooled_products_are_the_released_ones(hold):
    golden = load("monotonic")
    head = BilinearRegressor(8, form="full", hidden=(64, 1)).double()
    with torch.no_grad():
        head.first.weight.copy_(torch.eye(64))  # bias 0: what is read is what was pooled
        pooled = head._read(torch.from_numpy(golden["head_maps"]).double())
    hold("bilinear pooling", golden["head_pooled"], pooled, atol=1e-12)


# Losses


def value_and_gradient(loss, pred):
    pred = torch.from_numpy(pred).requires_grad_()
    value = loss(pred)
    return value.item(), torch.autograd.grad(value, pred)[0].numpy()


def hold_losses(hold, name, golden, prefix, losses, *, atol):
    """Compare one loss per row of predictions, its value and its gradient."""
    found = [value_and_gradient(*pair) for pair in losses]
    for part, ours in zip(("value", "gradient"), zip(*found, strict=True), strict=True):
        hold(f"{name}, {part}", golden[f"{prefix}_{part}"], np.stack(ours), atol=atol)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", range(4))
def test_norm_in_norm_is_that_of_its_authors(row, column, hold):
    golden = load("losses")
    mos, (p, q) = torch.from_numpy(golden["mos"]), golden["pq"][row]
    alphas = tuple(golden["alphas"][column])
    own = {f"nin_{k}": golden[f"nin_{k}"][:, row, column] for k in ("value", "gradient")}

    def loss(pred):
        return norm_in_norm(pred, mos, form="nin", p=p, q=q, alphas=alphas)

    name = f"norm-in-norm p={p:g} q={q:g} alphas={alphas[0]:g},{alphas[1]:g}"
    hold_losses(hold, name, own, "nin", [(loss, x) for x in golden["pred"]], atol=1e-7)


def test_equation_four_is_twice_the_linearity_loss(hold):
    golden = load("losses")
    mos = torch.from_numpy(golden["mos"])
    pairs = [(lambda pred: norm_in_norm(pred, mos) / 2, x) for x in golden["pred"]]
    hold_losses(hold, "Eq. (4) / 2", golden, "zscore", pairs, atol=1e-7)
    hold("1 - Eq. (4)", golden["plcc"], [1 - 2 * value_and_gradient(*p)[0] for p in pairs],
         atol=1e-7)  # fmt: skip


def test_the_released_loss_is_a_plain_absolute_error_until_it_gets_columns(hold):
    golden = load("losses")
    mos = torch.from_numpy(golden["mos"])
    pairs = [(lambda pred: norm_in_norm(pred, mos, form="l1"), x) for x in golden["pred"]]
    hold_losses(hold, "released norm-in-norm", golden, "released", pairs, atol=1e-12)
    columns = [
        norm_in_norm(torch.from_numpy(x), mos, form="nin", p=2, q=2, alphas=(1, 1))
        for x in golden["pred"]
    ]
    hold("the same on columns", golden["released_column_value"], torch.stack(columns), atol=1e-7)


def test_the_loss_of_a_mixed_batch_is_the_released_mean_of_six(hold):
    golden = load("losses")
    mos = torch.from_numpy(golden["mixed_mos"]).flatten()
    source = torch.arange(6).repeat(8)

    def loss(pred):
        def both(p, m):
            return smooth_l1_loss(p, m) + norm_in_norm(p, m, form="l1")

        return mean_over_sources(both, pred.flatten(), mos, source)

    value, gradient = value_and_gradient(loss, golden["mixed_pred"])
    hold("mixed loss, value", golden["mixed_value"], value, atol=1e-12)
    hold("mixed loss, gradient", golden["mixed_gradient"], gradient, atol=1e-12)


@pytest.mark.parametrize("case", ["hard_unit", "unique_unit", "unique_learned"])
def test_fidelity_is_that_of_unique(case, hold):
    golden = load("losses")
    mos, mos_std = (torch.from_numpy(golden[k]) for k in ("mos", "mos_std"))
    options = {} if case == "hard_unit" else {"mos_std": mos_std}
    if case == "unique_learned":
        options["pred_std"] = torch.from_numpy(golden["pred_std"])
    pairs = [(lambda pred: fidelity(pred, mos, **options), x) for x in golden["pred"]]
    hold_losses(hold, f"fidelity {case}", golden, case, pairs, atol=1e-7)


@pytest.mark.parametrize("case", ["hard_unit", "unique_unit", "unique_learned"])
def test_fidelity_compares_the_probabilities_of_unique_pair_by_pair(case, hold):
    golden = load("losses")
    target = golden["hard_target" if case == "hard_unit" else "unique_target"]
    guess = golden[f"unique_{case.split('_')[1]}_probability"]  # (3, 496)
    agreement = np.sqrt(target * guess + 1e-8) + np.sqrt((1 - target) * (1 - guess) + 1e-8)
    arrays = {"mos_std": golden["mos_std"], "pred_std": golden["pred_std"]}
    arrays = {key: torch.from_numpy(value) for key, value in arrays.items()}
    if case != "unique_learned":
        del arrays["pred_std"]
    if case == "hard_unit":
        del arrays["mos_std"]
    mos, pairs = torch.from_numpy(golden["mos"]), torch.from_numpy(golden["pairs"]).long().T
    ours = [
        [
            fidelity(pred[i], mos[i], **{key: value[i] for key, value in arrays.items()})
            for i in pairs
        ]
        for pred in torch.from_numpy(golden["pred"])
    ]
    hold(f"fidelity of 3 x 496 pairs, {case}", 1 - agreement, ours, atol=1e-7)


# Logistic maps


@pytest.mark.parametrize("name", ["bid1", "clive1", "live3"])
@pytest.mark.parametrize(("n_parameters", "atol"), [(4, 1e-9), (5, 1e-9)])
def test_the_logistic_fit_finds_the_best_bounded_optimum(name, n_parameters, atol, hold):
    golden = load("logistic")
    fit = fit_logistic(golden[f"{name}_mos"], golden[f"{name}_pred"], n_parameters)
    key = f"{name}_{n_parameters}"
    hold(f"PLCC, logistic of {n_parameters}, {name}", golden[f"{key}_plcc"], fit.plcc, atol=atol)
    hold(f"its RMSE, {name}", golden[f"{key}_rmse"], fit.rmse, rtol=1e-6)
    mirrored = fit_logistic(golden[f"{name}_mos"], -golden[f"{name}_pred"], n_parameters)
    hold(f"the same of -pred, {name}", golden[f"{key}_plcc"], mirrored.plcc, atol=atol)
    assert fit.converged
    assert mirrored.converged
    assert fit.at_bound == (n_parameters == 5)  # slope of 10 per SD twice, centre once


@pytest.mark.parametrize("name", ["bid1", "clive1", "live3"])
@pytest.mark.parametrize("n_parameters", [4, 5])
def test_the_map_of_the_golden_parameters_has_their_quality_and_is_the_one_found(
    name, n_parameters, hold
):
    golden, key = load("logistic"), f"{name}_{n_parameters}"
    mos, pred = golden[f"{name}_mos"], golden[f"{name}_pred"]
    mapped = logistic(pred, golden[f"{key}_parameters"])
    hold(f"raw PLCC, {name}", golden[f"{name}_raw_plcc"], plcc(mos, pred), atol=1e-12)
    hold(f"PLCC of its map, {key}", golden[f"{key}_plcc"], plcc(mos, mapped), atol=1e-9)
    hold(f"RMSE of its map, {key}", golden[f"{key}_rmse"], rmse(mos, mapped), rtol=1e-9)
    fit = fit_logistic(mos, pred, n_parameters)
    found = logistic(pred, fit.parameters) / mos.std()
    hold(f"the map found / SD, {key}", mapped / mos.std(), found, atol=1e-6)
    slope = fit.parameters[1] if n_parameters == 5 else 1 / fit.parameters[3]
    place = [slope * pred.std(), (fit.parameters[2] - pred.mean()) / pred.std()]
    flat = key == "bid1_5"  # its centre moves 5e-3 SD for 2e-11 of the PLCC
    where = f"its slope and centre, {key}"
    hold(where, golden[f"{key}_slope_centre_in_sd"], place, atol=0.01 if flat else 1e-5)


@pytest.mark.parametrize("name", ["bid1", "clive1", "live3"])
@pytest.mark.parametrize("n_parameters", [4, 5])
def test_no_end_of_the_golden_searches_is_better_than_ours(name, n_parameters, hold):
    golden, key = load("logistic"), f"{name}_{n_parameters}"
    fit = fit_logistic(golden[f"{name}_mos"], golden[f"{name}_pred"], n_parameters)
    hold(f"lowest RMSE of all ends, {key}", golden[f"{key}_all_rmse"].min(), fit.rmse, rtol=1e-9)
    assert fit.plcc > golden[f"{key}_curve_fit_plcc"] - 1e-9
    assert golden[f"{key}_all_rmse"].min() == golden[f"{key}_rmse"]


# Natural scenes


@pytest.fixture(scope="module")
def pictures(real_data):
    """The six photographs as RGB, where they decode to the pixels of the golden file."""
    found = []
    golden = load("brisque_niqe")
    for name, digest in zip(golden["files"], golden["rgb_sha256"], strict=True):
        path = real_data / "biq2021/Images" / str(name)
        if not path.is_file():
            pytest.skip(f"needs {path.name} of BIQ2021, which is not on this machine")
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"))
        if hashlib.sha256(rgb.tobytes()).hexdigest() != digest:
            pytest.skip(f"this machine decodes {path.name} to other pixels")
        found.append(rgb)
    return found


@pytest.fixture(scope="module")
def greys(pictures):
    """The same as grey levels, by the formula of the golden file."""
    golden, weights = load("brisque_niqe"), [299, 587, 114]
    found = [((rgb.astype(np.int64) @ weights + 500) // 1000).astype(np.uint8) for rgb in pictures]
    for grey, digest in zip(found, golden["grey_sha256"], strict=True):
        assert hashlib.sha256(grey.tobytes()).hexdigest() == digest
    return found


def test_brisque_lies_within_three_hundredths_of_both_references(greys, hold):
    golden = load("brisque_niqe")
    ours = np.stack([brisque_statistics(grey) for grey in greys])
    for name in (
        "skvideo_1_3_0_brisque",
        "skvideo_1_1_11_brisque",
        "piq_0_8_0_brisque",
        "piq_0_8_0_brisque_float32",
    ):
        hold(f"BRISQUE, {name}", golden[name], ours, atol=0.03)


def test_brisque_of_colours_lies_within_three_hundredths_of_piq(pictures, hold):
    golden = load("brisque_niqe")["piq_0_8_0_brisque_from_rgb"]
    ours = np.stack([brisque_statistics(rgb) for rgb in pictures])
    hold("BRISQUE, piq of RGB", golden, ours, atol=0.03)


def test_niqe_is_that_of_scikit_video(greys, hold):
    golden = load("brisque_niqe")
    features = np.stack([niqe_statistics(grey).mean(axis=0) for grey in greys])
    hold("NIQE features", golden["skvideo_1_3_0_niqe_features"], features, atol=0.002)
    hold("NIQE", golden["skvideo_1_3_0_niqe"], [niqe(grey) for grey in greys], atol=0.05)


def test_the_shipped_parameters_of_niqe_are_the_published_ones(hold):
    golden = load("brisque_niqe")
    for name, ours in zip(("mu", "cov"), live_parameters(), strict=True):
        hold(f"NIQE parameters, {name}", golden[f"skvideo_1_3_0_pop_{name}"], ours)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_pictures_of_scikit_image_keep_the_statistics_they_had(name, hold):
    kept, picture = load("natural_scenes"), getattr(data, name)()
    assert hashlib.sha256(picture.tobytes()).hexdigest() == kept[f"{name}_sha256"]
    for what, measure in (("brisque", brisque_statistics), ("niqe", niqe)):
        hold(f"{what} of {name}, kept", kept[f"{name}_{what}"], measure(picture), rtol=1e-6)
