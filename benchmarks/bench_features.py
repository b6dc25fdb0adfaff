"""Deep features and their regressors: Gram SVR, three layers in one pass, exact GP, disk.

The naive implementations are what a reader would write first: ``SVR(kernel="linear")`` on the
features, a forward pass for each layer, scikit-learn's Gaussian process. The SVR is also compared
with what a competent user writes: one product of all features, and a precomputed kernel. Both
of such a record run in a process that was started with its number of threads; published values of
the project are taken at one. Gates also hold at small size in the tests.
"""

import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from common import call_alone, clock, compare, judge, report, threads_here, within
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVR

from iqa_utils.features import pool_activation, tap_layers
from iqa_utils.features.grams import PANEL, disk_use, gram_from_panels, pack, unpack
from iqa_utils.features.layers import NETWORKS, create_network, layers_of
from iqa_utils.regression import fold_numbers, gaussian_process, gram_svr
from iqa_utils.regression.gaussian_process import fit_gaussian_process

REPEATS, NAIVE_REPEATS = 5, 3  # timed calls; a naive one takes up to half a minute


def synthetic_features(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features, rectified as those of most layers, and scores of a few of them."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((n, width), dtype=np.float32), 0)
    return x, x[:, :20] @ rng.normal(size=20) + rng.normal(size=n)


def tube(mos: np.ndarray) -> float:
    """Return MATLAB's default half-width of the tube, in units of the scores."""
    return float(np.subtract(*np.percentile(mos, [75, 25]))) / 13.49


def bench_svr(n: int, width: int) -> list[dict[str, object]]:
    """Time a linear SVR on wide float32 features against the one on their Gram matrix.

    Both fit ``n`` images and predict a quarter as many others. The first record is of the fit
    alone. The naive one takes half a minute, so it runs three times and its fit is timed as the
    first half of the same call; ours takes its product anew, without the others.
    """
    n_new = n // 4
    x, mos = synthetic_features(n + n_new, width)
    c = 10.0 / width
    naive = SVR(kernel="linear", C=c, epsilon=tube(mos[:n]))

    def ours(n_new: int) -> np.ndarray:
        own = x[: n + n_new]
        gram = gram_from_panels(own[:, k : k + PANEL] for k in range(0, width, PANEL))
        model = gram_svr(gram[:n, :n], mos[:n], c=c).model
        return model.predict(gram[n:, :n]) if n_new else np.empty(0)

    fits: dict[str, list[float]] = {"SVR(kernel='linear')": [], "Gram SVR": []}
    both: dict[str, list[float]] = {name: [] for name in fits}
    for repeat in range(REPEATS):
        if repeat < NAIVE_REPEATS:
            _, fit = clock(naive.fit, x[:n], mos[:n])
            expected, prediction = clock(naive.predict, x[n:])
            fits["SVR(kernel='linear')"].append(fit)
            both["SVR(kernel='linear')"].append(fit + prediction)
        fits["Gram SVR"].append(clock(ours, 0)[1])
        found, seconds = clock(ours, n_new)
        both["Gram SVR"].append(seconds)
    gate = (float(np.abs(expected - found).max() / mos.std()), 1e-3)
    rest = f"{width} features, {threads_here()} (float32; difference in score SDs)"
    return [
        judge(f"linear SVR, {what}, {rest}", seconds, gate=gate, goal=60)
        for what, seconds in (
            (f"fit of {n} images", fits),
            (f"fit of {n} images, prediction of {n_new}", both),
        )
    ]


def bench_svr_by_hand(n: int, width: int) -> list[dict[str, object]]:
    """Time what a competent user writes, one product and a precomputed kernel, against ours.

    Both take half of the products: NumPy sees that ``x @ x.T`` is symmetric. Ours first takes away
    what all images share, whose size would set the rounding of float32 products. That is one more
    pass over the features on the same thread; the record tells the errors of both kernels.
    """
    x, mos = synthetic_features(n + n // 4, width)
    c, epsilon = 10.0 / width, tube(mos[:n])

    def by_hand() -> np.ndarray:
        gram = x @ x.T
        model = SVR(kernel="precomputed", C=c, epsilon=epsilon).fit(gram[:n, :n], mos[:n])
        return model.predict(gram[n:, :n])

    def ours() -> np.ndarray:
        gram = gram_from_panels(x[:, k : k + PANEL] for k in range(0, width, PANEL))
        return gram_svr(gram[:n, :n], mos[:n], c=c).model.predict(gram[n:, :n])

    difference = np.abs(by_hand() - ours()).max() / mos.std()
    title = f"linear SVR of {n} images, {width} features, {threads_here()}, a kernel by hand"
    implementations = {"x @ x.T, SVR(kernel='precomputed')": by_hand, "Gram SVR": ours}
    gate = (difference, 1e-3)
    record = compare(title, implementations, gate=gate, repeats=REPEATS, goal=1, warm_up=False)
    exact = x.astype(np.float64)
    exact -= exact.mean(axis=0)
    exact = exact @ exact.T
    plain = (x @ x.T).astype(np.float64)
    plain -= plain.mean(axis=0)
    plain -= plain.mean(axis=1, keepdims=True)
    own = gram_from_panels(x[:, k : k + PANEL] for k in range(0, width, PANEL))
    kernels = {"by hand": plain, "ours": own}
    unit = np.diagonal(exact).mean()
    errors = {how: float(np.abs(kernel - exact).max() / unit) for how, kernel in kernels.items()}
    return [record | {"largest error of the kernel, of a squared norm": errors}]


def bench_svr_search(n: int, width: int, n_constraints: int) -> list[dict[str, object]]:
    """Time the choice of the box constraint in five folds: one Gram matrix serves all fits."""
    x, mos = synthetic_features(n + n // 4, width)
    constraints = (10.0 / width) * np.logspace(-1, 1, n_constraints)
    epsilon, folds = tube(mos[:n]), PredefinedSplit(fold_numbers(n))

    def naive() -> np.ndarray:
        search = GridSearchCV(
            SVR(kernel="linear", epsilon=epsilon),
            {"C": constraints},
            scoring="neg_mean_squared_error",
            cv=folds,
        )
        return search.fit(x[:n], mos[:n]).predict(x[n:])

    def ours() -> np.ndarray:
        gram = gram_from_panels(x[:, k : k + PANEL] for k in range(0, width, PANEL))
        return gram_svr(gram[:n, :n], mos[:n], c=constraints).model.predict(gram[n:, :n])

    difference = np.abs(naive() - ours()).max() / mos.std()
    title = (
        f"linear SVR, n = {n}, {width} features, best of {n_constraints} constraints in 5 folds, "
        f"{threads_here()} (float32; difference in score SDs)"
    )
    implementations = {"GridSearchCV of SVR(kernel='linear')": naive, "Gram SVR": ours}
    gate = (difference, 1e-3)
    counts = {"repeats": REPEATS, "naive_repeats": NAIVE_REPEATS}
    return [compare(title, implementations, gate=gate, **counts, goal=60, warm_up=False)]


def bench_taps(n: int) -> dict[str, object]:
    """Time three forward passes of a layer each against one that taps three layers."""
    row = NETWORKS["mobilenet_v2"]
    torch.manual_seed(0)
    network = create_network("mobilenet_v2", pretrained="random").eval()
    layers = [layer.module for layer in layers_of("mobilenet_v2", "Table 1")]
    images = torch.randn(n, 3, row.side, row.side)

    @torch.inference_mode()
    def tap(names: list[str]) -> list[torch.Tensor]:
        with tap_layers(network, names) as taps:
            network(images)
        return [pool_activation(taps[name], "flatten") for name in names]

    def naive() -> list[torch.Tensor]:
        return [tap([name])[0] for name in layers]

    def ours() -> list[torch.Tensor]:
        return tap(layers)

    difference = max(float((a - b).abs().max()) for a, b in zip(naive(), ours(), strict=True))
    implementations = {"three passes": naive, "one pass": ours}
    title = f"three layers of {row.model}, {n} images of {row.side} px"
    return compare(
        title, implementations, gate=(difference, 0.0), repeats=REPEATS, units=n, goal=2.5
    )


def bench_process(n: int, width: int, device: str) -> list[dict[str, object]]:
    """Time scikit-learn's Gaussian process against ours, both to the optimum of the likelihood.

    The second record counts how often ours evaluates the likelihood of all images; its title tells
    how often that of the few images that it tries everything on first.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, width))
    mos = np.sin(x[:, 0]) + 0.5 * x[:, 1] + 0.3 * rng.normal(size=n)

    def naive() -> float:
        kernel = ConstantKernel(1.0) * Matern(np.sqrt(width), nu=2.5) + WhiteKernel(0.1)
        model = GaussianProcessRegressor(kernel, alpha=0.0, normalize_y=True).fit(x, mos)
        return model.log_marginal_likelihood_value_ - n * np.log(mos.std())

    def ours() -> float:
        options = {"constant": "sample_mean", "device": device}  # as scikit-learn's
        return fit_gaussian_process(cdist(x, x), mos, **options).log_likelihood

    expected = naive()
    evaluate, sizes = gaussian_process._evaluate, []

    def counted(distances: torch.Tensor, *others: object) -> object:
        sizes.append(len(distances))
        return evaluate(distances, *others)

    with patch.object(gaussian_process, "_evaluate", counted):
        difference = abs(ours() - expected) / abs(expected)
    implementations = {"scikit-learn": naive, f"ours ({device})": ours}
    job = f"Gaussian process, n = {n}, {width} features, {threads_here()}"
    gate, title = (difference, 1e-6), f"{job} (relative difference of log likelihood)"
    counts = {"repeats": REPEATS, "naive_repeats": NAIVE_REPEATS}
    record = compare(title, implementations, gate=gate, **counts, goal=3, warm_up=False)
    few = min(sizes)
    title = f"Gaussian process, evaluations on all {n} images ({sizes.count(few)} more on {few})"
    return [record, within(title, sizes.count(n), 15)]


def bench_disk(n: int) -> dict[str, object]:
    """Compare the bytes of the 39 feature sets of Table 1 with those of their Gram matrices.

    The gate: an SVR from a matrix that was stored and read predicts as one on the features does,
    and the file has the size that the comparison counts with.
    """
    sizes = {
        name: [row.size for row in layers_of(name, "Table 1")]
        for name, network in NETWORKS.items()
        if "Table 1" in network.titles
    }
    stated = disk_use(n, sizes)
    small, train = 300, 240
    x, mos = synthetic_features(small, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gram.npy"
        np.save(path, pack(gram_from_panels([x[:, :PANEL], x[:, PANEL:]])))
        measured, gram = path.stat().st_size, unpack(np.load(path))
    if measured != 128 + disk_use(small, {"one": [1]})["grams"]:  # NumPy's header is 128 bytes
        raise ValueError(f"the file has {measured} bytes, another size than the formula's")
    options = {"C": 1e-3, "epsilon": tube(mos[:train])}
    expected = SVR(kernel="linear", **options).fit(x[:train], mos[:train]).predict(x[train:])
    svr = gram_svr(gram[:train, :train], mos[:train], c=options["C"]).model
    off = float(np.abs(svr.predict(gram[train:, :train]) - expected).max() / mos.std())
    ratio, n_layers = stated["features"] / stated["grams"], sum(map(len, sizes.values()))
    return {
        "title": f"disk, {n_layers} layers of {n} images (predictions, in score SDs)",
        "bytes": stated,
        "ratios": {"Gram matrices": ratio},
        "goal": 30,
        "gate": {"difference": off, "allowed": 1e-3},
        "passed": off <= 1e-3 and ratio >= 30,
    }


def main() -> None:
    """Run at the sizes that the goals were stated for."""
    records = [bench_taps(16)]
    for threads in dict.fromkeys((1, os.cpu_count())):
        records += call_alone(bench_svr, 600, 100352, threads=threads)
    records += call_alone(bench_svr_by_hand, 600, 100352, threads=1)
    records += call_alone(bench_svr_search, 300, 25088, 3, threads=1)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        records += call_alone(bench_process, 1000, 64, device, threads=1)
    report([*records, bench_disk(3000)])


if __name__ == "__main__":
    main()
