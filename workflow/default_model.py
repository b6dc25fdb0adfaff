"""Make the default quality model again, with its card: ``python workflow/default_model.py``.

The 1,600 training photographs of the small BIQ2021 set are all it learns from; the 400 test
photographs are scored at the end. The trunk stays as ImageNet left it, and one linear layer reads
its maps: ridge regression of the scores, which must also fall from a photograph to its distorted
copies. The maps that were computed (under ``runs/default_model``, named by a digest of the trunk)
are not computed again. One thread, so that another machine comes close.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from distortion_levels import distorted, falling_pairs, photographs, share_of_falls
from model_card import DOCS, METHODS, ROOT, write_card
from PIL import Image
from tqdm import tqdm

from iqa_utils.backbones import SHIPPED_FILE, weights_hash
from iqa_utils.datasets import load_scores
from iqa_utils.decoding import read_image
from iqa_utils.evaluate import compare, score
from iqa_utils.files import atomic_write, hash_file
from iqa_utils.models.quality_net import QualityNet
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import save_model
from iqa_utils.workshop.demo.distortions import as_image
from iqa_utils.workshop.demo.pictures import dead_leaves

MODEL, WORK = SHIPPED_FILE, ROOT / "runs" / "default_model"
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
    "Gaussian blur": (0.5, 6.5),
    "White noise": (3, 70),
    "JPEG": (75, 4),
    "Down and up": (1.25, 8),
}
SHARES = (0.2, 0.2, 0.3, 0.3)  # of the four in training
N_CLEAN, N_COPIES = 900, 5  # photographs that are distorted, and levels of each
GOOD = 0.4  # a photograph of a lower score is not distorted further
SIDES = (256, 320, 384, 512)  # pixels, of the squares that are distorted
WHOLE_SIDE = 512  # of the photographs of BIQ2021
LAST_LAYER = 1280  # maps
FALL = 3.0  # of the log odds, between the mildest and the strongest level
ORDER = 2.0  # weight of the order of copies, beside that of human scores: see ``chosen_order``
ORDERS, IN_ORDER = (1.0, 2.0, 3.0, 5.0, 10.0), 0.98  # what it was chosen from, and by
TEST_PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
CHOICE_PICTURES = ("coffee", "brick", "coins", "moon", "hubble_deep_field", "gravel")


class Copies(NamedTuple):
    """Maps of squares, each with its ever more distorted copies."""

    maps: np.ndarray  # (n, 1 + N_COPIES, F)
    gaps: np.ndarray  # (n, N_COPIES), distance of a level to the one before; 1 is the whole range
    source: np.ndarray  # (n,), photograph that a square is cut from


class Head(NamedTuple):
    """A linear layer on standardised maps, (F,); its output is the log odds of the score."""

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    bias: float

    def scores(self, maps: np.ndarray) -> np.ndarray:
        """Score maps (N, F) between 0 and 1."""
        return 1 / (1 + np.exp(-((maps - self.mean) / self.std @ self.weight + self.bias)))


def fit_head(
    maps: np.ndarray, mos: np.ndarray, copies: Copies | None = None, order: float = ORDER
) -> Head:
    """Fit scores (N,) by ridge regression, alone or together with the order of distorted copies.

    The penalty on the weights equals their number. Each step from a level to the next adds the
    square of what its fall lacks to ``FALL`` times its gap; all steps together weigh ``order``
    times as much as all photographs. The problem is convex: its solution depends on no seed.
    """
    mean, std = maps.mean(axis=0), maps.std(axis=0) + 1e-3
    z, target = torch.tensor((maps - mean) / std).double(), torch.tensor(np.log(mos / (1 - mos)))
    centred, n_features = target - target.mean(), z.shape[1]
    gram = z @ z.T + n_features * torch.eye(len(z))
    weight = z.T @ torch.linalg.solve(gram, centred)
    if copies is not None:
        steps = torch.tensor((copies.maps[:, :-1] - copies.maps[:, 1:]) / std).double()
        steps, gaps = steps.reshape(-1, n_features), torch.tensor(copies.gaps.reshape(-1))
        weight.requires_grad_()
        how = {"max_iter": 300, "history_size": 20, "line_search_fn": "strong_wolfe"}
        optimiser = torch.optim.LBFGS([weight], **how, tolerance_grad=1e-6, tolerance_change=1e-10)

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            lacking = torch.relu(FALL * gaps - steps @ weight)
            total = (z @ weight - centred).square().mean() + order * lacking.square().mean()
            total = total + n_features / len(z) * weight.square().sum()
            total.backward()
            return total

        optimiser.step(loss)
    return Head(mean, std, weight.detach().numpy(), float(target.mean()))


def order_table(
    maps: np.ndarray, mos: np.ndarray, copies: Copies, held: np.ndarray
) -> list[dict[str, float]]:
    """For each weight of the order, what held-out photographs and their copies say of the fit."""
    used, unseen = ~held, part_of(copies, np.flatnonzero(held))
    rows = []
    for order in ORDERS:
        head = fit_head(maps[used], mos[used], part_of(copies, np.flatnonzero(used)), order)
        share = float((np.diff(head.scores(unseen.maps), axis=1) < 0).mean())
        srcc = agreement(mos[held], head.scores(maps[held]), np.full(held.sum(), "all"))
        rows.append({"order": order, "share": share, "SRCC": srcc["all"]["SRCC"][0]})
    return rows


def chosen_order(rows: list[dict[str, float]]) -> float:
    """Choose the smallest weight with which 98 % of the held-out steps fall."""
    return min(row["order"] for row in rows if row["share"] >= IN_ORDER)


def part_of(copies: Copies, used: np.ndarray) -> Copies:
    """Keep the squares of some photographs."""
    return Copies(*(column[np.isin(copies.source, used)] for column in copies))


@torch.inference_mode()
def maps_of(net: QualityNet, images: Iterable[np.ndarray]) -> np.ndarray:
    """Pool the maps of uint8 RGB images, one at a time: (N, F)."""
    found = []
    for image in images:
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
        found.append(net.pooled(pixels.div(127.5).sub(1))[0].numpy())
    return np.stack(found)


def distort(net: QualityNet, images: list[np.ndarray], chosen: np.ndarray) -> Copies:
    """Cut a square out of each chosen photograph and distort it, ever more, in one of four ways."""
    rng, maps, gaps = np.random.default_rng(0), [], []
    for i in tqdm(chosen, unit="photograph"):
        side = rng.choice(SIDES)
        top, left = rng.integers(0, WHOLE_SIDE - side + 1, 2)
        clean = np.ascontiguousarray(images[i][top : top + side, left : left + side])
        kind = rng.choice(list(TRAINED), p=SHARES)
        places = (np.arange(N_COPIES) + rng.uniform(0.1, 0.9, N_COPIES)) / N_COPIES  # 0 to 1
        low, high = np.log(TRAINED[kind])
        strengths = np.exp(low + (high - low) * places)
        versions = [clean, *(distorted(clean, kind, float(s), rng) for s in strengths)]
        maps.append(maps_of(net, versions))
        gaps.append(np.diff(places, prepend=-0.1))  # the mildest level lies .1 from the photograph
    return Copies(np.stack(maps), np.stack(gaps), chosen)


def whole_photographs(root: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Decode photographs and bring them to one square."""
    side = (WHOLE_SIDE, WHOLE_SIDE)
    images = (read_image(root / name) for name in names)
    return [np.asarray(image.resize(side, Image.Resampling.BICUBIC)) for image in images]


def cached(file: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read arrays that an earlier call left, or make them."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial, partial.open("wb") as opened:
            np.savez(opened, **make())
    with np.load(file) as found:
        return dict(found)


def set_head(net: QualityNet, head: Head, maps: np.ndarray) -> float:
    """Put a head into the network, and remember what the photographs look like.

    Mean, spread and main axes are those of one half, so that the others tell what is usual.

    Returns:
        The distance that 0.5 % of the other photographs exceed.
    """
    half = np.random.default_rng(1).permutation(len(maps)) % 2 == 0
    mean, std = maps[half].mean(axis=0), maps[half].std(axis=0) + 1e-3
    z, n = (maps - mean) / std, net.axes.shape[1]
    _, sizes, axes = np.linalg.svd(z[half], full_matrices=False)
    left = (z**2).sum(axis=1) - ((z @ axes[:n].T) ** 2).sum(axis=1)
    axes = axes[:n].T / (sizes[:n] / np.sqrt(half.sum()))
    new = {"mean": mean, "std": std, "axes": axes, "left": left[half].mean()}
    weight = head.weight / head.std * std  # of values standardised by one half
    new |= {"head.weight": weight, "head.bias": head.bias + weight @ ((mean - head.mean) / std)}
    state = net.state_dict()
    for name, value in new.items():
        state[name] = torch.as_tensor(value).float().reshape(state[name].shape)
    net.load_state_dict(state)
    distance = np.sqrt(((z @ axes) ** 2).sum(axis=1) + left / left[half].mean())
    return float(np.quantile(distance[~half], 0.995))


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


def across(
    maps: np.ndarray, mos: np.ndarray, subset: np.ndarray, copies: Copies
) -> dict[str, dict[str, Any]]:
    """Fit without one subset and test on it: the whole recipe, ridge alone, ridge on one layer."""
    found = {}
    for name in np.unique(subset):
        test, used = subset == name, subset != name
        own = part_of(copies, np.flatnonzero(used))
        last = maps[:, -LAST_LAYER:]
        heads = {
            METHODS[0]: fit_head(maps[used], mos[used], own).scores(maps[test]),
            METHODS[1]: fit_head(maps[used], mos[used]).scores(maps[test]),
            METHODS[2]: fit_head(last[used], mos[used]).scores(last[test]),
        }
        table = pd.DataFrame({"image": np.flatnonzero(test), "mos": mos[test], "seed": 0})
        rows = pd.concat([table.assign(method=key, pred=pred) for key, pred in heads.items()])
        values = score(rows, ["method"], ["SRCC"]).set_index("method")
        gains = compare(rows, {"method": METHODS[1]}, ["SRCC"]).set_index("method")
        ends = ["value", "ci_low", "ci_high"]
        found[str(name)] = {"n": int(test.sum()), "n_training": int(used.sum())}
        found[str(name)] |= {key: values.loc[key, ends].tolist() for key in METHODS}
        found[str(name)]["difference"] = gains.loc[METHODS[0], ends].tolist()
    return found


def scores_of(scorer: Scorer, root: Path, names: Iterable[str]) -> np.ndarray:
    """Score files as ``iqa score`` does."""
    pixels = (scorer.fit.apply(read_image(root / name)) for name in names)
    return np.array([scorer.score(torch.tensor(p.transpose(2, 0, 1))[None]).item() for p in pixels])


def main() -> None:
    """Make the model, measure it once, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "biq2021")
    parser.add_argument("--trunk", default="hub", help="weights of the trunk: hub, or a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frame = load_scores("biq2021", options.data)
    unseen, frame = frame[frame["split"] == "test"], frame[frame["split"] == "training"]
    mos, subset = frame["mos"].to_numpy(), frame["subset"].to_numpy(str)
    net = QualityNet(pretrained=options.trunk).eval().to(memory_format=torch.channels_last)
    key, images = weights_hash(net.trunk)[:8], whole_photographs(options.data, frame["image"])
    maps = cached(
        WORK / f"photographs-{key}.npz",
        lambda: {"maps": maps_of(net, tqdm(images, unit="photograph"))},
    )["maps"]
    good = np.random.default_rng(0).permutation(np.flatnonzero(mos > GOOD))[:N_CLEAN]
    copies = Copies(
        **cached(WORK / f"copies-{key}.npz", lambda: distort(net, images, np.sort(good))._asdict())
    )
    held = np.random.default_rng(0).permutation(len(mos)) % 2 == 0
    orders = order_table(maps, mos, copies, held)
    if chosen_order(orders) != ORDER:
        raise ValueError(f"the rule gives {chosen_order(orders)}, the recipe has {ORDER}: {orders}")
    fold = fit_head(maps[~held], mos[~held], part_of(copies, np.flatnonzero(~held)))
    out_of_fold = 100 * fold.scores(maps[held])
    facts = {
        "preprocessing": PREPROCESSING,
        "training_data": {"dataset": "BIQ2021", "demo": False, "images": len(mos)},
        "scores_seen": ["biq2021/training"],
        "metrics": {"out-of-fold": agreement(100 * mos[held], out_of_fold, subset[held])},
        "percentiles": np.quantile(out_of_fold, np.linspace(0, 1, 101)),
        "far": set_head(net, fit_head(maps, mos, copies), maps),
    }
    save_model(MODEL, net, facts, half=True)
    scorer = Scorer.load(MODEL)
    leaves = np.random.default_rng(0)
    scenes = {f"scene {i}": np.asarray(as_image(dead_leaves((384, 384), leaves))) for i in range(6)}
    pictures = {"test": photographs(TEST_PICTURES), "choice": photographs(CHOICE_PICTURES)}
    pictures["procedural"] = scenes
    falls = {name: falling_pairs(scorer, own, seed=0) for name, own in pictures.items()}
    pred = scores_of(scorer, options.data, unseen["image"])
    write_card(
        {
            "sha256": hash_file(MODEL),
            "bytes": MODEL.stat().st_size,
            "test": agreement(100 * unseen["mos"].to_numpy(), pred, unseen["subset"].to_numpy(str)),
            "out_of_fold": facts["metrics"]["out-of-fold"],
            "orders": orders,
            "across": across(maps, mos, subset, copies),
            "falls": {name: share_of_falls(table) for name, table in falls.items()},
            "brisque": json.loads((DOCS / "brisque.json").read_text()),
        }
    )


if __name__ == "__main__":
    main()
