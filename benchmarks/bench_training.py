"""Epochs of training: a plain fp32 loop on a DataLoader against `fit` on an image store.

From the same weights both show the same images in the same order, with batch statistics frozen, so
they must end at the same loss; when timed, both train networks that are there already.
On a GPU the second uses bf16 and a compiled network, and the record tells images a second and the
share of the operation roofline: the least time that the operations of the network could take
one after the other, each bound by arithmetic or by memory. A cross-sampled epoch is compared with
its limit, the share of the images that it shows; a frozen encoder that runs once with one that runs
in every epoch.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from bench_images import make_photographs
from common import compare, report
from PIL import Image
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from iqa_utils.backbones import freeze_batch_statistics
from iqa_utils.features import encoder
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, build_store
from iqa_utils.metrics import range_index
from iqa_utils.samplers import cross_sample
from iqa_utils.training import fit, mean_loss, store_batches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
BACKBONE = "legacy_xception" if ON_GPU else "mobilenetv2_100"
SIZE, BATCH = ((384, 512), 4) if ON_GPU else ((96, 128), 8)
N_IMAGES = 48
MOS = np.linspace(20, 80, N_IMAGES, dtype=np.float32)
COUNTS = (6, 42, 108, 190, 7)  # of KonIQ-10k's training set in five ranges, a twentieth
SHARE_OF_LIMIT = 0.85  # of the speed-up that the number of images allows
HEAD_EPOCHS = 10
EPOCHS = 2  # of a timed call
LOSS_GATE = 0.02 if ON_GPU else 1e-3  # relative; bf16 on a GPU, the order of additions on a CPU


class Photographs(Dataset):
    """Decode, resize and normalise one image at a time, as most training scripts do."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, float]:
        image = Image.open(self.folder / self.names[row]).convert("RGB")
        pixels = np.asarray(image.resize(SIZE[::-1], Image.Resampling.BILINEAR), dtype=np.float32)
        pixels = (pixels / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        return torch.from_numpy(pixels).permute(2, 0, 1), MOS[row]


class Score(nn.Module):
    """A trunk with one output, of shape (B,)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = freeze_batch_statistics(timm.create_model(BACKBONE, num_classes=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Predict scores."""
        return self.trunk(images).squeeze(1)


def start() -> nn.Module:
    """Return the same network every time."""
    return Score().to(DEVICE)


def naive_epochs(loader: DataLoader, network: nn.Module, *, epochs: int = 1) -> float:
    """Train in fp32, ask for the loss after every step; return the mean loss of the last epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    network.eval()  # keeps batch statistics as they are; nothing else depends on the mode
    for _ in range(epochs):
        total = 0.0
        for images, mos in loader:
            optimizer.zero_grad()
            loss = mse_loss(network(images.to(DEVICE)), mos.to(DEVICE).float())
            loss.backward()
            optimizer.step()
            total += loss.item() * len(mos)
    return total / N_IMAGES


def fit_epochs(
    store: ImageStore,
    network: nn.Module,
    rows: Sequence[int] | np.ndarray = range(N_IMAGES),
    *,
    epochs: int = 1,
) -> float:
    """Train with `fit` on some rows; return the mean loss of the last epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    result = fit(
        network,
        lambda epoch: store_batches(store, rows, MOS, batch_size=BATCH, device=DEVICE),
        loss_step=mean_loss(mse_loss),
        evaluate=lambda _: {"nothing": 0.0},
        optimizer=optimizer,
        epochs=epochs,
        select="nothing",
        config={},
        channels_last=True,
        progress=False,
        precision="bf16" if ON_GPU else "fp32",
    )
    return result.history["train_loss"].iloc[-1]


def measured_peaks() -> tuple[float, float]:
    """Return the operations and the bytes a second that this device reaches."""
    dtype, n = (torch.bfloat16, 8192) if ON_GPU else (torch.float32, 1024)
    a = torch.randn(n, n, device=DEVICE, dtype=dtype)
    big = torch.empty(2**28 if ON_GPU else 2**25, device=DEVICE, dtype=torch.uint8)
    best = []
    for work in (lambda: a @ a, lambda: big.clone()):
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            work()
            if ON_GPU:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        best.append(min(seconds))
    return 2 * n**3 / best[0], 2 * big.numel() / best[1]


def roofline_seconds(network: nn.Module, images: torch.Tensor) -> float:
    """Return the least time of a training step: three forward passes, operation by operation."""
    peak, bandwidth = measured_peaks()
    bytes_each = 2 if ON_GPU else 4
    bound = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        operations = 0
        if isinstance(layer, nn.Conv2d | nn.Linear):
            operations = 2 * layer.weight[0].numel() * output.numel()
        moved = inputs[0].numel() + output.numel() + sum(p.numel() for p in layer.parameters())
        bound.append(max(operations / peak, moved * bytes_each / bandwidth))

    leaves = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(note) for layer in leaves]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    return 3 * sum(bound)


def bench_cross_sampling(store: ImageStore, method: str) -> dict[str, object]:
    """Time an epoch of a cross-sampler against one of all images; the goal is near its limit.

    The gate: the draw shows the same number of images of every range, and none twice.
    """
    mos = np.repeat([10.0, 30.0, 50.0, 70.0, 90.0], COUNTS)
    drawn = cross_sample(mos, method, seed=0, epoch=0)
    counts = np.bincount(range_index(mos[drawn], (0, 20, 40, 60, 80, 100)), minlength=5)
    off = float(np.ptp(counts) + len(drawn) - len(np.unique(drawn)))
    every, network = np.arange(len(mos)) % N_IMAGES, start()
    epochs = {"all images": 1, method: 3}  # an epoch of all images is long enough to be timed
    implementations = {
        "all images": partial(fit_epochs, store, network, every),
        method: partial(fit_epochs, store, network, drawn % N_IMAGES, epochs=3),
    }
    limit = len(mos) / len(drawn)
    title = f"cross-sampling, epoch of {len(mos)} or {len(drawn)} images (limit {limit:.1f}x)"
    goal = SHARE_OF_LIMIT * limit
    return compare(title, implementations, gate=(off, 0), goal=goal, units=epochs, warm_up=ON_GPU)


def bench_frozen(store: ImageStore) -> dict[str, object]:
    """Time epochs of a linear head whose frozen encoder runs once, or in every epoch."""
    torch.manual_seed(0)
    encode = encoder("mobilenetv2_100", device=str(DEVICE))
    mos = torch.from_numpy(MOS)

    def step(weights: torch.Tensor, features: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(features) / features.std()
        return weights - 1e-3 * x.T @ (x @ weights - mos) / N_IMAGES

    def naive() -> torch.Tensor:
        weights = torch.zeros(1280)
        for _ in range(HEAD_EPOCHS):
            weights = step(weights, encode(store))
        return weights

    def ours() -> torch.Tensor:
        weights = torch.zeros(1280)
        with tempfile.TemporaryDirectory() as cache:
            for _ in range(HEAD_EPOCHS):
                weights = step(weights, encode(store, cache_dir=cache))
        return weights

    difference = (naive() - ours()).abs().max().item()
    implementations = {"encode in every epoch": naive, "encode once": ours}
    title = f"frozen encoder, {HEAD_EPOCHS} epochs of its head"
    gate = (difference, 0)
    return compare(
        title, implementations, gate=gate, goal=HEAD_EPOCHS / 2, units=HEAD_EPOCHS, warm_up=False
    )


def main() -> None:
    """Time input and training apart."""
    if not ON_GPU:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = make_photographs(folder)
        store = build_store(folder, names, folder / "stores", size=SIZE, progress=False)
        loader = DataLoader(Photographs(folder, names), batch_size=BATCH)

        def ours() -> list[torch.Tensor]:
            stream = store_batches(store, range(N_IMAGES), MOS, batch_size=BATCH, device=DEVICE)
            return [batch.inputs[0] for batch in stream]

        pairs = zip(loader, ours(), strict=True)
        pixels = max((a.to(DEVICE) - b).abs().max().item() for (a, _), b in pairs)
        gate, records = (pixels, 1e-5), []
        workers = DataLoader(
            Photographs(folder, names), BATCH, num_workers=2, persistent_workers=True
        )
        for name, one in {"DataLoader": loader, "DataLoader, 2 workers": workers}.items():
            implementations = {name: lambda one=one: [images for images, _ in one], "store": ours}
            title = f"epoch input against a {name}, per image"
            records.append(compare(title, implementations, gate=gate, units=N_IMAGES, goal=5))
        naive, other = naive_epochs(loader, start()), fit_epochs(store, start())
        plain = partial(naive_epochs, loader, start(), epochs=EPOCHS)
        network = torch.compile(start(), mode="reduce-overhead") if ON_GPU else start()
        record = compare(
            "training epoch, per image",
            {
                "loop on a DataLoader": plain,
                "fit": partial(fit_epochs, store, network, epochs=EPOCHS),
            },
            gate=(abs(naive - other) / naive, LOSS_GATE),
            units=EPOCHS * N_IMAGES,
            goal=1,
            warm_up=ON_GPU,  # what a compiled network needs; the gate has called both
        )
        seconds = record["seconds_per_unit"]["fit"]["median"]
        record["images a second"] = 1 / seconds
        if ON_GPU:  # on a CPU activations stay in caches that the bound does not know
            images = torch.randn(BATCH, 3, *SIZE, device=DEVICE)
            least = roofline_seconds(start(), images) / BATCH
            record["share of the operation roofline"] = least / seconds
            record["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        records += [record, bench_cross_sampling(store, "method1"), bench_frozen(store)]
        report(records)


if __name__ == "__main__":
    main()
