"""Make the default quality model again, with its card: ``python workflow/default_model.py``.

The 1,600 training photographs of the small BIQ2021 set are all it learns from; the 400 test
photographs are scored at the end. What is finished (under ``runs/default_model``, in files named
by a digest of the trunk) is not done again, so a killed run goes on. One thread, so that another
machine comes close.

``--leave-out ss01`` trains the same recipe without one subset, on a GPU where there is one, and
leaves its agreement on that subset in ``runs/default_model/ss01.json``; the shipped file is not
touched. ``python workflow/model_card.py`` takes the three into the card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from distortion_levels import distorted, falling_pairs, photographs, share_of_falls
from model_card import CARD, DOCS, RECIPE_STEPS, ROOT, WORK, write_card
from PIL import Image
from torch.nn import functional as F

from iqa_utils.backbones import SHIPPED_FILE, weights_hash
from iqa_utils.datasets import load_scores
from iqa_utils.decoding import read_image
from iqa_utils.evaluate import compare, score
from iqa_utils.files import atomic_write, hash_file
from iqa_utils.metrics import srcc
from iqa_utils.models.quality_net import QualityNet
from iqa_utils.scorer import Scorer
from iqa_utils.training import prepare_device
from iqa_utils.training.checkpoints import save_checkpoint, save_model
from iqa_utils.workshop.demo.distortions import as_image
from iqa_utils.workshop.demo.pictures import dead_leaves

MODEL = SHIPPED_FILE
PREPROCESSING = {
    "size": 512,
    "fit": "shrink_short_side",
    "resampler": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "gain": 100.0,
    "range": "0 to 100",
}
TRAINED = {  # mildest and strongest in training, levels between on a logarithmic scale
    "gaussian blur": (0.5, 6.5),
    "white noise": (3, 70),
    "jpeg": (75, 4),
    "down and up": (1.25, 8),
}
SHARES = (0.2, 0.2, 0.3, 0.3)  # of the four in training
TEST_PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
CHOICE_PICTURES = ("coffee", "brick", "coins", "moon", "hubble_deep_field", "gravel")

STEPS = {"fold": 350, "whole": RECIPE_STEPS}  # 3.5 times through 800 photographs, 3 through all
BATCH, CHAINS = 8, 3  # photographs with scores, photographs with two distorted copies, per step
WHOLE_SIDE, SIDE, CHAIN_SIDE = 512, 288, 192  # pixels: photographs as they are, crops
FROZEN_BLOCKS = 2  # stay as ImageNet left them


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bring uint8 RGB to a square."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def as_batch(images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Stack uint8 images and normalise them as the trunk wants: (B, 3, H, W) in [-1, 1]."""
    batch = to_device(torch.from_numpy(np.stack(images)), device)
    batch = batch.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return batch.contiguous(memory_format=torch.channels_last)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device without waiting for what it computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


@torch.inference_mode()
def outputs(net: QualityNet, images: Sequence[np.ndarray], *, what: str) -> np.ndarray:
    """Run a method of the network over images, one at a time."""
    run, device = getattr(net, what), net.mean.device
    return np.stack([run(as_batch([one], device))[0].cpu().numpy() for one in images])


def scores_of(scorer: Scorer, root: Path, names: Iterable[str]) -> np.ndarray:
    """Score files as ``iqa score`` does."""
    pixels = (scorer.fit.apply(read_image(root / name)) for name in names)
    return np.array([scorer.score(torch.tensor(p.transpose(2, 0, 1))[None]).item() for p in pixels])


def linear_start(net: QualityNet, features: np.ndarray, mos: np.ndarray) -> None:
    """Set the standardisation, and the head to ridge regression on the features of the trunk."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-3
    z, target = (features - mean) / std, np.log(mos / (1 - mos))
    weight = ridge(z, target)
    for own, new in (
        (net.mean, mean),
        (net.std, std),
        (net.head.weight, weight),
        (net.head.bias, target.mean()),
    ):
        own.data.copy_(torch.as_tensor(new, dtype=torch.float32).reshape(own.shape))


def ridge(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve ridge regression of centred scores; the penalty equals the number of features."""
    gram = z @ z.T + z.shape[1] * np.eye(len(z))
    return z.T @ np.linalg.solve(gram, target - target.mean())


def crops(rng: np.random.Generator, pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale a photograph to 70 to 100 %, mirror half of them, and cut a square out."""
    pixels = resized(pixels, max(side, round(pixels.shape[0] * rng.uniform(0.7, 1.0))))
    top, left = rng.integers(0, pixels.shape[0] - side + 1, 2)
    pixels = pixels[top : top + side, left : left + side]
    return pixels[:, :: rng.choice([-1, 1])]


def chain(rng: np.random.Generator, pixels: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    """Return a crop, a distorted and a more distorted copy, and how far they lie apart, 0 to 1."""
    clean = np.ascontiguousarray(crops(rng, pixels, CHAIN_SIDE))
    kind = rng.choice(list(TRAINED), p=SHARES)
    first = rng.uniform(0, 0.89) ** 1.3
    places = [first, rng.uniform(first + 0.12, 1.0)]
    low, high = np.log(TRAINED[kind])
    copies = [distorted(clean, kind, float(np.exp(low + (high - low) * p)), rng) for p in places]
    return [clean, *copies], [places[0] + 0.1, places[1] - places[0]]


def train(
    images: Sequence[np.ndarray],
    mos: np.ndarray,
    features: np.ndarray,
    *,
    trunk: str,
    name: str,
    steps: int,
    device: torch.device,
) -> QualityNet:
    """Train on human scores of crops and on the order of distorted copies; resumes by ``name``.

    Scores: squared error of the score. Copies: a hinge, the logit must fall by 3 times their gap.
    """
    torch.manual_seed(0)
    net = QualityNet(pretrained=trunk).to(device, memory_format=torch.channels_last)
    linear_start(net, features, mos)
    frozen = [net.trunk.conv_stem, net.trunk.bn1, *net.trunk.blocks[:FROZEN_BLOCKS]]
    for layer in frozen:
        layer.requires_grad_(False)
    tuned = [p for p in net.trunk.parameters() if p.requires_grad]
    groups = [{"params": tuned, "lr": 1.5e-4}, {"params": net.head.parameters(), "lr": 2e-5}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * s / steps))
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
        batch = as_batch([crops(rng, images[i], SIDE) for i in rows], device)
        target = to_device(torch.tensor(mos[rows], dtype=torch.float32), device)
        loss = F.mse_loss(net(batch) / spread, target / spread)
        chains = [chain(rng, images[i]) for i in rng.choice(good, CHAINS, replace=False)]
        copies = as_batch([one for versions, _ in chains for one in versions], device)
        logits = net.logits(copies).view(-1, 3)
        gaps = to_device(torch.tensor([gap for _, gap in chains], dtype=torch.float32), device)
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


def finished(name: str) -> QualityNet:
    """Read the averaged network of a finished training."""
    net = QualityNet().to(memory_format=torch.channels_last)
    state = torch.load(WORK / f"{name}.pt", weights_only=True)["average"]
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if "module." in k})
    return net.eval()


def remember_training(net: QualityNet, features: np.ndarray) -> float:
    """Standardise by 800 photographs' features, keep their main axes, and find what is far.

    Scores stay as they are.

    Returns:
        The distance that 0.5 % of the other photographs exceed.
    """
    mean, std = features[:800].mean(axis=0), features[:800].std(axis=0) + 1e-3
    with torch.no_grad():
        new, shift = torch.tensor(std, dtype=torch.float32), torch.tensor(mean) - net.mean
        net.head.bias += net.head.weight[0] @ (shift / net.std)
        net.head.weight *= new / net.std
        net.mean.copy_(torch.tensor(mean))
        net.std.copy_(new)
    z = (features - mean) / std
    _, sizes, axes = np.linalg.svd(z[:800], full_matrices=False)
    n = net.axes.shape[1]
    net.axes.copy_(torch.tensor(axes[:n].T / (sizes[:n] / np.sqrt(800))))
    left = (z**2).sum(axis=1) - ((z @ axes[:n].T) ** 2).sum(axis=1)
    net.left.fill_(float(left[:800].mean()))
    along = ((z @ net.axes.numpy()) ** 2).sum(axis=1)
    return float(np.quantile(np.sqrt(along + left / left[:800].mean())[800:], 0.995))


def cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Read an array that an earlier call left, or make it."""
    file = WORK / f"{name}.npy"
    if not file.exists():
        np.save(WORK / f".{name}.npy", make())
        (WORK / f".{name}.npy").replace(file)
    return np.load(file)


def agreement(mos: np.ndarray, pred: np.ndarray, subset: np.ndarray) -> dict[str, Any]:
    """SRCC and PLCC with 95 % intervals over images, in total and within each subset."""
    own = pd.DataFrame({"mos": mos, "pred": pred, "photographs": subset, "seed": 0})
    own["image"] = np.arange(len(own))
    rows = pd.concat([own.assign(photographs="all"), own])
    found: dict[str, Any] = {}
    for row in score(rows, ["photographs"], ["SRCC", "PLCC"]).itertuples():
        entry = found.setdefault(row.photographs, {"n": int(row.n)})
        entry[row.metric] = [row.value, row.ci_low, row.ci_high]
    return found


def linear_scores(features: np.ndarray, mos: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Train the linear start on all photographs but some, and score those."""
    mean, std = features[~test].mean(axis=0), features[~test].std(axis=0) + 1e-3
    z, target = (features - mean) / std, np.log(mos[~test] / (1 - mos[~test]))
    return 1 / (1 + np.exp(-z[test] @ ridge(z[~test], target) - target.mean()))


def across_subsets(features: np.ndarray, mos: np.ndarray, subset: np.ndarray) -> dict[str, Any]:
    """Train the linear start on two subsets and test it on the third; the trunk stays as it was."""
    found = {}
    for name in np.unique(subset):
        test = subset == name
        found[str(name)] = {"n": int(test.sum())}
        for what, x in (("all maps", features), ("the last layer", features[:, -1280:])):
            found[str(name)][what] = srcc(mos[test], linear_scores(x, mos, test))
    return found


def leave_out(name: str, frame: pd.DataFrame, root: Path, *, trunk: str, steps: int) -> None:
    """Train the whole recipe without one subset and score it, beside ridge; writes JSON."""
    device, began = torch.device(prepare_device(1)), time.perf_counter()
    mos, test = frame["mos"].to_numpy(), (frame["subset"] == name).to_numpy()
    images = whole_photographs(root, frame["image"])
    start = QualityNet(pretrained=trunk).eval().to(device, memory_format=torch.channels_last)
    key = f"without_{name}-{weights_hash(start.trunk)[:8]}"
    features = cached(f"frozen-{key}", lambda: outputs(start, images, what="pooled"))
    used = np.flatnonzero(~test)
    net = train(
        [images[i] for i in used],
        mos[used],
        features[used],
        trunk=trunk,
        name=f"{key}-{steps}",
        steps=steps,
        device=device,
    )
    unseen = [images[i] for i in np.flatnonzero(test)]
    pred = {
        "whole recipe": outputs(net, unseen, what="forward"),
        "ridge on all maps": linear_scores(features, mos, test),
        "ridge on the last layer": linear_scores(features[:, -1280:], mos, test),
    }
    own = pd.DataFrame({"image": frame["image"][test], "mos": mos[test], "seed": 0})
    rows = pd.concat([own.assign(method=method, pred=value) for method, value in pred.items()])
    columns, metrics = ["value", "ci_low", "ci_high"], ["SRCC", "PLCC"]
    scores = score(rows, ["method"], metrics).set_index(["method", "metric"])[columns]
    gains = compare(rows, {"method": "ridge on all maps"}, metrics)
    gains = gains.set_index(["method", "metric"])[columns].loc["whole recipe"]
    is_gpu = device.type == "cuda"
    found = {
        "n": int(test.sum()),
        "n_training": len(used),
        **{method: {m: scores.loc[(method, m)].tolist() for m in metrics} for method in pred},
        "whole recipe minus ridge on all maps": {m: gains.loc[m].tolist() for m in metrics},
        "steps": steps,
        "passes": round(BATCH * steps / len(used), 1),
        "seed": 0,
        "device": torch.cuda.get_device_name() if is_gpu else "one CPU thread",
        "seconds of this call": round(time.perf_counter() - began, 1),
    }
    with atomic_write(WORK / f"{name}.json") as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found}), flush=True)


def whole_photographs(root: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Decode photographs and bring them to the side that training knows."""
    return [resized(np.asarray(read_image(root / name)), WHOLE_SIDE) for name in names]


def main() -> None:
    """Make the model, measure it once, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "biq2021")
    parser.add_argument("--trunk", default="hub", help="weights of the trunk: hub, or a file")
    parser.add_argument("--leave-out", choices=("ss01", "ss02", "ss03"), help="test on this subset")
    parser.add_argument(
        "--steps", type=int, default=STEPS["whole"], help="with --leave-out; others are a trial"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    frame = load_scores("biq2021", options.data)
    unseen, frame = frame[frame["split"] == "test"], frame[frame["split"] == "training"]
    if options.leave_out:
        leave_out(options.leave_out, frame, options.data, trunk=options.trunk, steps=options.steps)
        return
    mos, subset = frame["mos"].to_numpy(), frame["subset"].to_numpy(str)
    images = whole_photographs(options.data, frame["image"])
    start = QualityNet(pretrained=options.trunk).eval().to(memory_format=torch.channels_last)
    key = weights_hash(start.trunk)[:8]
    features = cached(f"frozen-{key}", lambda: outputs(start, images, what="pooled"))
    held = np.random.default_rng(0).permutation(len(mos)) % 2 == 0
    for name, rows in (("fold", np.flatnonzero(~held)), ("whole", np.arange(len(mos)))):
        part = [images[i] for i in rows]
        own = {"trunk": options.trunk, "name": f"{name}-{key}", "steps": STEPS[name]}
        train(part, mos[rows], features[rows], device=torch.device("cpu"), **own)
    held = np.flatnonzero(held)
    out_of_fold = 100 * cached(
        f"out_of_fold-{key}",
        lambda: outputs(finished(f"fold-{key}"), [images[i] for i in held], what="forward"),
    )
    net = finished(f"whole-{key}")
    some = np.random.default_rng(1).permutation(len(mos))[:1200]
    far = remember_training(
        net, cached(f"tuned-{key}", lambda: outputs(net, [images[i] for i in some], what="pooled"))
    )
    facts = {
        "preprocessing": PREPROCESSING,
        "training_data": {"dataset": "BIQ2021", "demo": False, "images": len(mos)},
        "scores_seen": ["biq2021/training"],
        "metrics": {"out-of-fold": agreement(100 * mos[held], out_of_fold, subset[held])},
        "percentiles": np.quantile(out_of_fold, np.linspace(0, 1, 101)),
        "far": far,
    }
    save_model(MODEL, net, facts, half=True)
    scorer = Scorer.load(MODEL)
    pred = cached(f"test-{key}", lambda: scores_of(scorer, options.data, unseen["image"]))
    leaves = np.random.default_rng(0)
    scenes = {f"scene {i}": np.asarray(as_image(dead_leaves((384, 384), leaves))) for i in range(6)}
    falls = {
        name: falling_pairs(scorer, pictures, seed=0)
        for name, pictures in (
            ("test", photographs(TEST_PICTURES)),
            ("choice", photographs(CHOICE_PICTURES)),
            ("procedural", scenes),
        )
    }
    write_card(
        {
            "sha256": hash_file(MODEL),
            "bytes": MODEL.stat().st_size,
            "test": agreement(100 * unseen["mos"].to_numpy(), pred, unseen["subset"].to_numpy(str)),
            "out_of_fold": facts["metrics"]["out-of-fold"],
            "across": across_subsets(features, mos, subset),
            "falls": {name: share_of_falls(table) for name, table in falls.items()},
            "brisque": json.loads((DOCS / "brisque.json").read_text()),
            "left_out": json.loads(CARD.read_text()).get("left_out", {}),
        }
    )


if __name__ == "__main__":
    main()
