"""Deep features and their regressors: Gram SVR, three layers in one pass, exact GP, disk.

The naive legs are what a reader would write first: ``SVR(kernel="linear")`` on the features, one
forward pass a layer, scikit-learn's Gaussian process. Gates also hold at small size in the tests.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import compare, report
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.svm import SVR

from iqa_utils.features import pool_activation, tap_layers
from iqa_utils.features.grams import disk_use, gram_from_panels, pack
from iqa_utils.features.layers import NETWORKS, create_network, layers_of
from iqa_utils.regression import gram_svr
from iqa_utils.regression.gaussian_process import fit_gaussian_process


def bench_svr(n: int, width: int, repeats: int) -> dict[str, object]:
    """Time a linear SVR on wide float32 features against the one on their Gram matrix."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + n // 4, width)).astype(np.float32)
    mos = (x[:, :20] @ rng.normal(size=20) + rng.normal(size=len(x))).astype(np.float64)
    c = 10.0 / width
    options = {"C": c, "epsilon": float(np.subtract(*np.percentile(mos[:n], [75, 25]))) / 13.49}

    def naive() -> np.ndarray:
        return SVR(kernel="linear", **options).fit(x[:n], mos[:n]).predict(x[n:])

    def ours() -> np.ndarray:
        gram = gram_from_panels(x[:, k : k + 8192] for k in range(0, width, 8192))
        model = gram_svr(gram[:n, :n], mos[:n], c=c)
        return model.predict(gram[n:, :n])

    difference = np.abs(naive() - ours()).max() / mos.std()
    title = f"linear SVR, n = {n}, {width} features (float32; difference in score SDs)"
    legs = {"SVR(kernel='linear')": naive, "Gram SVR": ours}
    return compare(title, legs, gate=(difference, 1e-3), repeats=repeats, goal=50)


def bench_taps(n: int, repeats: int) -> dict[str, object]:
    """Time three forward passes of a layer each against one that taps three layers."""
    row = NETWORKS["mobilenet_v2"]
    torch.manual_seed(0)
    network = create_network(row.name, pretrained=None).eval()
    layers = [layer.module for layer in layers_of(row.name, "Table 1")]
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
    legs = {"three passes": naive, "one pass": ours}
    title = f"three layers of {row.model}, {n} images of {row.side} px"
    return compare(title, legs, gate=(difference, 0.0), repeats=repeats, units=n, goal=2.5)


def bench_process(n: int, width: int, repeats: int, device: str) -> dict[str, object]:
    """Time scikit-learn's Gaussian process against ours, both to the optimum of the likelihood."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, width))
    mos = np.sin(x[:, 0]) + 0.5 * x[:, 1] + 0.3 * rng.normal(size=n)

    def naive() -> float:
        kernel = ConstantKernel(1.0) * Matern(np.sqrt(width), nu=2.5) + WhiteKernel(0.1)
        model = GaussianProcessRegressor(kernel, alpha=0.0, normalize_y=True).fit(x, mos)
        return model.log_marginal_likelihood_value_ - n * np.log(mos.std())

    def ours() -> float:
        return fit_gaussian_process(cdist(x, x), mos, device=device).log_likelihood

    expected = naive()
    difference = abs(ours() - expected) / abs(expected)
    legs = {"scikit-learn": naive, f"ours ({device})": ours}
    title = f"Gaussian process, n = {n}, {width} features (relative difference of log likelihood)"
    return compare(title, legs, gate=(difference, 1e-6), repeats=repeats)


def bench_disk(n: int) -> dict[str, object]:
    """Compare the bytes of the 39 feature sets of Table 1 with those of their Gram matrices."""
    sizes = [row.size for name in NETWORKS for row in layers_of(name) if "Table 1" in row.tables]
    stated = disk_use(n, sizes)
    small = 300
    gram = pack(np.zeros((small, small)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gram.npy"
        np.save(path, gram)
        measured = path.stat().st_size
    off = abs(measured - 128 - disk_use(small, [1])["grams"]) / measured
    ratio = stated["features"] / stated["grams"]
    return {
        "title": f"disk, {len(sizes)} layers of {n} images (file size against the formula)",
        "bytes": stated,
        "ratios": {"Gram matrices": ratio},
        "goal": 30,
        "gate": {"difference": off, "allowed": 0.0},
        "passed": off == 0 and ratio >= 30,
    }


def main() -> None:
    """Run at the sizes that the goals were stated for."""
    records = [bench_svr(600, 100352, 5), bench_taps(16, 5), bench_process(2400, 64, 5, "cpu")]
    if torch.cuda.is_available():
        records.append(bench_process(2400, 64, 5, "cuda"))
    report([*records, bench_disk(3000)])


if __name__ == "__main__":
    main()
