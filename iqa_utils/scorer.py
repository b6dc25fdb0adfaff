"""A trained network with everything that decides its scores: how pixels come in, scores go out.

The header of a model file says what its network was trained on. It is followed here and nowhere
else: by ``iqa score``, by teachers of unlabelled images and by the tests of their students.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from iqa_utils.backbones import weights_hash
from iqa_utils.decoding import Fit
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, to_float
from iqa_utils.training.checkpoints import load_model

AS_IS = Fit(None, "native", "bilinear")  # pixels go in as they are


@dataclass(frozen=True)
class Scorer:
    """A network that scores 8-bit images."""

    model: nn.Module  # takes normalised RGB (B, 3, H, W), returns (B,) or (B, 1); higher is better
    fit: Fit = AS_IS  # how images are brought to the network's size
    mean: Sequence[float] = IMAGENET_MEAN  # of the normalisation, for pixels in [0, 1]
    std: Sequence[float] = IMAGENET_STD
    saw: tuple[str, ...] = ()  # scores it was trained on, as "dataset/training"
    gain: float = 1.0  # output * gain + offset is on the scale of the scores
    offset: float = 0.0
    range: str = ""  # of the scores, in words
    # scores at 0, 1, ... 100 % of what models like it, trained on other photographs, gave the
    # training photographs
    percentiles: Sequence[float] = ()
    far: float | None = None  # distance to them beyond which an image is unlike them
    # 16 digits of weights, architecture, pixels and scale, computed here
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        facts = [weights_hash(self.model), getattr(self.model, "architecture", None)]
        facts += [asdict(self.fit), list(self.mean), list(self.std), self.gain, self.offset]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        object.__setattr__(self, "hash", digest)

    @classmethod
    def load(cls, path: str | Path) -> Scorer:
        """Read a file of :func:`iqa_utils.training.checkpoints.save_model`.

        Refused: what was altered, does not say how its pixels were made, or needs more than pixels.

        Example:
            >>> from iqa_utils.backbones import SHIPPED_FILE
            >>> Scorer.load(SHIPPED_FILE).scale
            '0 to 100, higher is better'
        """
        model, facts = load_model(path)
        name, given = Path(path).name, facts["preprocessing"]
        if absent := [k for k in ("size", "fit", "resampler", "mean", "std") if k not in given]:
            raise ValueError(f"model {name}: its preprocessing does not tell {', '.join(absent)}")
        if (inputs := given.get("inputs", ["image"])) != ["image"]:
            needs = f"model {name} needs {', '.join(inputs)}"
            raise ValueError(f"{needs}; only models of pixels alone score files")
        size, saw = given["size"], facts["scores_seen"]
        fit = Fit(tuple(size) if isinstance(size, list) else size, given["fit"], given["resampler"])
        saw = (saw,) if isinstance(saw, str) else tuple(saw)
        more = {key: given[key] for key in ("gain", "offset", "range") if key in given}
        more |= {key: facts[key] for key in ("percentiles", "far") if key in facts}
        return cls(model, fit, given["mean"], given["std"], saw, **more)

    @property
    def scale(self) -> str:
        """Range and direction of the scores."""
        return f"{self.range or 'that of the training scores'}, higher is better"

    def percentile(self, score: float) -> float:
        """Return the share of training photographs below a score, 0 to 100; NaN if not known."""
        if not self.percentiles:
            return float("nan")
        return float(np.interp(score, self.percentiles, np.linspace(0, 100, len(self.percentiles))))

    @torch.inference_mode()
    def score(self, images: Tensor, *, device: str = "cpu", precision: str = "fp32") -> Tensor:
        """Score uint8 RGB (B, 3, H, W) on the network's device; float64, (B,).

        What has not its size yet is resized there, antialiased; ``"bf16"`` is autocast.
        """
        images = self._ready(images.to(device))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = self.model(images).reshape(-1)
        return output.double() * self.gain + self.offset

    @torch.inference_mode()
    def look(self, images: Tensor, *, device: str = "cpu") -> tuple[list[float], list[bool]]:
        """Score a batch as :meth:`score` does, and tell which images are unlike the training."""
        if self.far is None:
            return self.score(images, device=device).tolist(), [False] * len(images)
        output, distance = self.model.with_distance(self._ready(images.to(device)))
        scores = output.double() * self.gain + self.offset
        return scores.tolist(), (distance > self.far).tolist()

    def _ready(self, images: Tensor) -> Tensor:
        """Resize, where that is still to be done, and normalise."""
        size = self.fit.target(*images.shape[-2:]) if self.fit.resamples else images.shape[-2:]
        if tuple(size) != images.shape[-2:]:
            how = InterpolationMode(self.fit.resampler)
            images = tv.resize(images, list(size), interpolation=how, antialias=True)
        return to_float(images, mean=self.mean, std=self.std)

    def score_store(
        self, store: ImageStore, rows: np.ndarray, *, batch_size: int = 16, device: str = "cpu"
    ) -> np.ndarray:
        """Score whole images of a store, whatever their sizes, in the order of ``rows``."""
        self.model.to(device).eval()
        sizes, pred = np.asarray(store.sizes)[rows], np.empty(len(rows))
        for part in same_size(sizes, batch_size):
            crops = store.crops(rows[part], tuple(sizes[part[0]].tolist()))
            pred[part] = self.score(crops, device=device).cpu()
        return pred

    def knows(self, dataset: str, split: str = "test") -> str:
        """Call a test on scores of a split ``"leaky"`` if any was trained on, else ``"held-out"``.

        The split ``"all"`` is every score of the data set.
        """
        seen = {known.rpartition("/")[2] for known in self.saw if known.startswith(f"{dataset}/")}
        return "leaky" if seen and (split in seen or "all" in (split, *seen)) else "held-out"


def same_size(sizes: Sequence[Sequence[int]], batch_size: int) -> Iterator[np.ndarray]:
    """Yield the positions of images that may share a batch: at most so many, of one size."""
    kinds, kind = np.unique(np.asarray(sizes), axis=0, return_inverse=True)
    for number in range(len(kinds)):
        same = np.flatnonzero(kind.reshape(-1) == number)
        yield from np.split(same, range(batch_size, len(same), batch_size))
