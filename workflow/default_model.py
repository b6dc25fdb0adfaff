"""Make the default quality model again, with its card: ``python workflow/default_model.py``.

The 1,600 training photographs of the small BIQ2021 set are all it learns from; the 400 test
photographs are scored once, at the end. What is finished (under ``runs/default_model``) is not
done again, so a killed run goes on. One thread, so that another machine comes close.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from iqa_utils.datasets import load_scores
from iqa_utils.images.decoding import read_image
from iqa_utils.models.quality_net import QualityNet
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import save_checkpoint

ROOT = Path(__file__).parents[1]
TRUNK_FILE = Path("/work/shared/weights/tf_efficientnet_lite0-imagenet-fp16.safetensors")
MODEL = ROOT / "iqa_utils" / "weights" / "quality.safetensors"
WORK = ROOT / "runs" / "default_model"

LEVELS = {
    "gaussian blur": (0.8, 1.4, 2.2, 3.5, 5.5),  # standard deviation, pixels
    "white noise": (6, 12, 22, 38, 60),  # standard deviation, grey levels
    "jpeg": (50, 28, 16, 9, 5),  # quality
    "down and up": (1.5, 2.0, 3.0, 4.5, 7.0),  # factor, bicubic both ways
}
TRAINED = {  # mildest and strongest in training, levels between on a logarithmic scale
    "gaussian blur": (0.5, 6.5),
    "white noise": (3, 70),
    "jpeg": (75, 4),
    "down and up": (1.25, 8),
}
TEST_PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
CHOICE_PICTURES = ("coffee", "brick", "coins", "moon", "hubble_deep_field", "gravel")


def distorted(
    pixels: np.ndarray, kind: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Blur, add noise to, compress, or scale down and up uint8 RGB (H, W, 3)."""
    image = Image.fromarray(pixels)
    if kind == "gaussian blur":
        image = image.filter(ImageFilter.GaussianBlur(strength))
    elif kind == "jpeg":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=round(strength))
        image = Image.open(stream)
    elif kind == "down and up":
        size = (round(image.width / strength), round(image.height / strength))
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    elif kind == "white noise":
        noise = rng.standard_normal(pixels.shape, np.float32) * strength
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    else:
        raise ValueError(f"no distortion {kind!r}")
    return np.asarray(image)


def photographs(names: Sequence[str], side: int = 384) -> dict[str, np.ndarray]:
    """Open photographs that ship with scikit-image, as RGB, and cut out the middle."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    found = {}
    for name in names:
        image = read_image(next(folder.glob(f"{name}.*")))
        width, height = min(side, image.width), min(side, image.height)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        found[name] = np.asarray(image)[top : top + height, left : left + width]
    return found


def falling_pairs(
    scorer: Scorer, pictures: Mapping[str, np.ndarray], *, seed: int
) -> pd.DataFrame:
    """Compare each level with the one below it; level 0 is the picture itself.

    Returns:
        One row a pair: ``picture``, ``distortion``, ``level``, ``score``, ``falls``.
    """
    rows = []
    for name, clean in pictures.items():
        for kind, strengths in LEVELS.items():
            rng = np.random.default_rng(seed)
            versions = [clean, *(distorted(clean, kind, value, rng) for value in strengths)]
            batch = torch.from_numpy(np.stack(versions)).permute(0, 3, 1, 2)
            scores = scorer.score(batch).tolist()
            for level, (above, score) in enumerate(zip(scores, scores[1:], strict=False), 1):
                rows.append((name, kind, level, score, score < above))
    return pd.DataFrame(rows, columns=["picture", "distortion", "level", "score", "falls"])


TRUNK_STEPS, FOLD_STEPS, BATCH, CHAINS = 1400, 600, 8, 3
START_SIDE, SIDE, CHAIN_SIDE = 384, 288, 224  # pixels: of the linear start, of crops
FROZEN_BLOCKS = 2  # stay as ImageNet left them


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bring uint8 RGB to a square."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def as_batch(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack uint8 images and normalise them as the trunk wants: (B, 3, H, W) in [-1, 1]."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return batch.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def outputs(net: QualityNet, images: Sequence[np.ndarray], side: int, *, what: str) -> np.ndarray:
    """Run a method of the network over images brought to a square, one at a time."""
    run = getattr(net, what)
    return np.stack([run(as_batch([resized(one, side)]))[0].numpy() for one in images])


def linear_start(net: QualityNet, features: np.ndarray, mos: np.ndarray) -> None:
    """Set the standardisation, and the head to ridge regression on the features of the trunk."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-3
    z, target = (features - mean) / std, np.log(mos / (1 - mos))
    weight = ridge(z, target - target.mean())
    for own, new in (
        (net.mean, mean), (net.std, std), (net.head.weight, weight), (net.head.bias, target.mean()),
    ):
        own.data.copy_(torch.as_tensor(new, dtype=torch.float32).reshape(own.shape))


def ridge(z: np.ndarray, target: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Solve ridge regression; the penalty is a share of N times the number of features."""
    gram = z @ z.T + penalty * z.shape[1] * np.eye(len(z))
    return z.T @ np.linalg.solve(gram, target)


def crops(rng: np.random.Generator, pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale a photograph to 60 to 100 %, mirror half of them, and cut a square out."""
    pixels = resized(pixels, max(side, round(pixels.shape[0] * rng.uniform(0.6, 1.0))))
    top, left = rng.integers(0, pixels.shape[0] - side + 1, 2)
    pixels = pixels[top : top + side, left : left + side]
    return pixels[:, :: rng.choice([-1, 1])]


def chain(rng: np.random.Generator, pixels: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    """Return a crop, a distorted and a more distorted copy, and how far they lie apart, 0 to 1."""
    clean = np.ascontiguousarray(crops(rng, pixels, CHAIN_SIDE))
    kind = rng.choice(list(TRAINED))
    first = rng.uniform(0, 0.85)
    places = [first, rng.uniform(first + 0.12, 1.0)]
    low, high = np.log(TRAINED[kind])
    copies = [distorted(clean, kind, float(np.exp(low + (high - low) * p)), rng) for p in places]
    return [clean, *copies], [places[0] + 0.1, places[1] - places[0]]


def train(
    images: Sequence[np.ndarray], mos: np.ndarray, features: np.ndarray, *, steps: int, name: str
) -> QualityNet:
    """Train on human scores of crops and on the order of distorted copies; resumes.

    Scores: squared error of the score. Copies: a hinge, the logit must fall by 3 times their gap.
    """
    torch.manual_seed(0)
    net = QualityNet(pretrained=TRUNK_FILE).to(memory_format=torch.channels_last)
    linear_start(net, features, mos)
    frozen = [net.trunk.conv_stem, net.trunk.bn1, *net.trunk.blocks[:FROZEN_BLOCKS]]
    for layer in frozen:
        layer.requires_grad_(False)
    tuned = [p for p in net.trunk.parameters() if p.requires_grad]
    groups = [{"params": tuned, "lr": 2e-4}, {"params": net.head.parameters(), "lr": 2e-5}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * s / steps))
    )
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    rng, good, start = np.random.default_rng(0), np.flatnonzero(mos > 0.4), 0
    parts = {"net": net, "average": average, "optimiser": optimiser, "rate": rate}
    file = WORK / f"{name}.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        start, rng.bit_generator.state = state["step"], state["rng"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    spread = float(mos.std())
    order = np.concatenate([np.random.default_rng(1 + e).permutation(len(mos)) for e in range(50)])
    for step in range(start, steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        batch = as_batch([crops(rng, images[i], SIDE) for i in rows])
        target = torch.tensor(mos[rows], dtype=torch.float32)
        loss = F.mse_loss(net(batch) / spread, target / spread)
        chains = [chain(rng, images[i]) for i in rng.choice(good, CHAINS, replace=False)]
        logits = net.logits(as_batch([one for versions, _ in chains for one in versions])).view(-1, 3)
        gaps = torch.tensor([gap for _, gap in chains], dtype=torch.float32)
        ranking = F.relu(3 * gaps - (logits[:, :-1] - logits[:, 1:])).mean()
        optimiser.zero_grad()
        (loss + ranking).backward()
        optimiser.step()
        rate.step()
        average.update_parameters(net)
        if step % 20 == 0:
            print(f"{name} {step}/{steps}: scores {loss:.3f}, order {ranking:.3f}", flush=True)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            state = {key: part.state_dict() for key, part in parts.items()}
            save_checkpoint(file, {**state, "step": step + 1, "rng": rng.bit_generator.state})
    return average.module.eval()


def main() -> None:
    """Make the model and its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "biq2021")
    parser.add_argument("parts", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    frame = load_scores("biq2021", options.data)
    frame = frame[frame["split"] == "training"].reset_index(drop=True)
    mos = frame["mos"].to_numpy()
    images = [resized(np.asarray(read_image(options.data / name)), 512) for name in frame["image"]]
    cache = WORK / "frozen.npy"
    if not cache.exists():
        net = QualityNet(pretrained=TRUNK_FILE).eval().to(memory_format=torch.channels_last)
        np.save(cache, outputs(net, images, START_SIDE, what="pooled"))
    features = np.load(cache)
    fold = np.random.default_rng(0).permutation(len(mos)) % 2
    for name in options.parts:
        rows = np.flatnonzero(fold != int(name[-1])) if name.startswith("fold") else np.arange(1600)
        steps = FOLD_STEPS if name.startswith("fold") else TRUNK_STEPS
        train([images[i] for i in rows], mos[rows], features[rows], steps=steps, name=name)


if __name__ == "__main__":
    main()
