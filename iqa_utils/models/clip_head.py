"""A frozen image encoder and the residual MLP that regresses quality from its vectors.

The encoder is CLIP's image tower (or any timm trunk in its place), never trained; the head is small
enough to train on cached vectors in seconds. Feature distribution smoothing sits before the last
linear layer and acts only while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor, nn

from iqa_utils.backbones import HUB, by_places, create_backbone, load_weights, normalisation
from iqa_utils.images import CLIP_MEAN, CLIP_STD
from iqa_utils.imbalance import FDS
from iqa_utils.models import architecture, scaled_score

PAPER_ENCODER = "vit_base_patch32_clip_224.laion2b"
OLD_NAMES = {"vit_base_patch32_224_clip_laion2b": PAPER_ENCODER}  # as the paper spells it
OPEN_CLIP_TAGS = {"ViT-B-32": "laion2b_s34b_b79k"}  # the same weights under open_clip's name


class ImageEncoder(nn.Module):
    """A frozen trunk that turns normalised images into one vector each.

    Args:
        name: timm model name (the paper's old name is accepted), or open_clip's with that library.
        library: ``timm`` or ``open_clip``. Both give the 768 values of CLIP's class token before
            the projection into the space shared with text (which would leave 512).
        pooling: ``own`` is the trunk's own pooling (CLIP: the class token); ``mean_std`` takes mean
            and deviation of the last activation over places, timm only.
        pretrained: As in :func:`iqa_utils.backbones.create_backbone`.

    Attributes:
        n_features: Length D of a vector.
        mean: Channel means that images are normalised with, and ``std`` their deviations.

    References:
        Nguyen et al., Imbalance problem in image quality assessment, 2024, section 3.1.
    """

    def __init__(
        self,
        name: str = PAPER_ENCODER,
        *,
        library: Literal["timm", "open_clip"] = "timm",
        pooling: Literal["own", "mean_std"] = "own",
        pretrained: str | Path = "random",
    ) -> None:
        super().__init__()
        allowed = {"timm": ("own", "mean_std"), "open_clip": ("own",)}
        if pooling not in allowed.get(library, ()):
            raise ValueError(f"library and pooling: {allowed}, got {library!r} and {pooling!r}")
        name = OLD_NAMES.get(name, name)
        self.settings = {"name": name, "library": library, "pooling": pooling}
        self.pooling = pooling
        if library == "open_clip":
            self.trunk = open_clip_tower(name, pretrained=pretrained)
            self.n_features = self.trunk.ln_post.normalized_shape[0]
        else:
            self.trunk = create_backbone(name, pretrained=pretrained, num_classes=0)
            self.n_features = self.trunk.num_features * (2 if pooling == "mean_std" else 1)
        is_clip = library == "open_clip" or "clip" in name
        own = {"mean": CLIP_MEAN, "std": CLIP_STD} if is_clip else normalisation(self.trunk)
        self.mean, self.std = own["mean"], own["std"]
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return vectors (B, D) of normalised images (B, 3, H, W)."""
        if self.pooling == "own":
            return self.trunk(images)
        places = by_places(self.trunk.forward_features(images).float())
        return torch.cat([places.mean(2), places.std(2, correction=0)], dim=1)

    def extra_repr(self) -> str:
        """Tell encoders of equal weights and other pooling apart, in caches too."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stay in evaluation mode: a frozen encoder gives the same vectors at any time."""
        return super().train(False)


def open_clip_tower(name: str, *, pretrained: str | Path) -> nn.Module:
    """Return open_clip's image tower (B, 3, H, W) -> (B, D) without its projection."""
    if pretrained == HUB and name not in OPEN_CLIP_TAGS:
        raise ValueError(f"weights are known for {sorted(OPEN_CLIP_TAGS)}, got {name!r}")
    tag = OPEN_CLIP_TAGS[name] if pretrained == HUB else None
    try:
        model = open_clip.create_model(name, pretrained=tag, device=torch.get_default_device())
    except Exception as error:
        if tag is None:
            raise
        raise ConnectionError(
            f"pretrained='hub' could not fetch the weights {tag} of {name}: {error}. Fetch them on "
            "a machine with a network and pass the path of a state dict of the image tower"
        ) from error
    tower = model.visual
    if not isinstance(getattr(tower, "proj", None), nn.Parameter):
        raise ValueError(f"the image tower of {name} is not a vision transformer with projection")
    tower.proj = None
    return tower if pretrained in ("random", HUB) else load_weights(tower, pretrained)


class ResidualBlock(nn.Module):
    """Add a linear layer's activation to its input, (B, width) to (B, width)."""

    def __init__(self, width: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normalised else nn.Identity()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + relu(W norm(x) + b)."""
        return x + torch.relu(self.linear(self.norm(x)))


class ClipHead(nn.Module):
    """Residual MLP from encoder vectors to quality, optionally with the encoder in front.

    A linear layer to ``width``, ``depth`` residual blocks, a linear layer to ``neck``, feature
    distribution smoothing, and one last linear layer. Vectors are standardised first, see
    :meth:`standardise`. Predictions are ``mos_mean + mos_std * output``: with the moments of the
    training scores the network works on standardised targets, with a deviation of 1 on raw ones.

    Args:
        n_features: Length D of an encoder vector.
        width: Width of the residual blocks.
        depth: Number of residual blocks, >= 0.
        neck: Features that are smoothed and enter the last layer.
        form: ``normalised`` normalises what enters and leaves each block and the neck, which is
            linear; ``plain`` normalises nothing and has a ReLU behind the neck.
        mos_mean: Mean of the training scores, on their scale, where predictions start.
        mos_std: Standard deviation of the training scores, > 0; 1 for raw targets.
        fds: Keyword arguments of :class:`~iqa_utils.imbalance.FDS`, or None for none.
        encoder: Settings of an :class:`ImageEncoder` (built with random weights), a ready one, or
            None for a head that takes vectors.

    Note:
        The paper draws its head in a figure that the text does not describe: form, width, depth and
        neck are ours. At its setting, Adam at 0.1 on raw 0-100 targets, 15 of 18 trainings of
        ``plain`` heads on real photographs died, and none of 48 of ``normalised`` ones (notebook
        05, profiles ``sensitivity`` and ``biq2021_raw``). On synthetic vectors, standardised inputs
        with a bias at the mean score leave 5 of 10 plain heads dead, and either layer
        normalisation or a neck without ReLU none; without inputs and bias, both leave all 10 dead.

    References:
        Nguyen et al., Imbalance problem in image quality assessment, 2024, Figure 2.
    """

    def __init__(
        self,
        n_features: int = 768,
        *,
        width: int = 768,
        depth: int = 2,
        neck: int = 256,
        form: Literal["normalised", "plain"] = "normalised",
        mos_mean: float = 0.0,
        mos_std: float = 1.0,
        fds: Mapping[str, Any] | None = None,
        encoder: Mapping[str, Any] | ImageEncoder | None = None,
    ) -> None:
        super().__init__()
        if min(n_features, width, neck) < 1 or depth < 0 or not mos_std > 0:
            raise ValueError(
                f"head sizes and mos_std must be positive, got n_features {n_features}, width "
                f"{width}, depth {depth}, neck {neck}, mos_std {mos_std}"
            )
        if form not in ("normalised", "plain"):
            raise ValueError(f"form must be normalised or plain, got {form!r}")
        if isinstance(encoder, Mapping):
            encoder = ImageEncoder(**encoder)
        self.mos_mean, self.mos_std = mos_mean, mos_std = float(mos_mean), float(mos_std)
        self.architecture = architecture("clip_head", locals())
        self.architecture["encoder"] = None if encoder is None else encoder.settings
        if fds is not None:
            self.architecture["fds"] = {**fds, "edges": [float(edge) for edge in fds["edges"]]}
        self.encoder = encoder
        self.register_buffer("input_mean", torch.zeros(n_features))
        self.register_buffer("input_std", torch.ones(n_features))
        normalised = form == "normalised"
        self.body = nn.Sequential(
            nn.Linear(n_features, width),
            *[ResidualBlock(width, normalised=normalised) for _ in range(depth)],
            nn.LayerNorm(width) if normalised else nn.Identity(),
            nn.Linear(width, neck),
            nn.LayerNorm(neck) if normalised else nn.ReLU(),
        )
        self.fds = None if fds is None else FDS(neck, **fds)
        self.last = nn.Linear(neck, 1)

    def standardise(self, vectors: Tensor) -> ClipHead:
        """Centre and scale inputs by the training vectors (N, D); constants are only centred."""
        self.input_mean.copy_(vectors.mean(0))
        std = vectors.std(0, correction=0)
        self.input_std.copy_(torch.where(std > 1e-6 * vectors.abs().amax(0), std, 1.0))
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Return the features (B, neck) that smoothing acts on; ``x`` as in :meth:`forward`."""
        vectors = x if self.encoder is None else self.encoder(x)
        return self.body((vectors - self.input_mean) / self.input_std)

    def forward(self, x: Tensor, mos: Tensor | None = None) -> Tensor:
        """Return predicted quality (B,); ``mos`` (B,) is needed while training with smoothing.

        ``x`` are encoder vectors (B, D), or normalised images (B, 3, H, W) with an encoder.
        """
        features = self.embed(x)  # (B, neck)
        if self.fds is not None:
            features = self.fds(features, mos)
        return scaled_score(self.last, features, self.mos_mean, self.mos_std)

    @torch.no_grad()
    def end_epochs(self, n: int, x: Tensor, mos: Tensor) -> None:
        """Show the training set, inputs (N, ...) and scores (N,), to the smoothing layer.

        Call it at the start of epoch ``n`` (from 0): what has been shown already, before a training
        was interrupted, is not shown again. Nothing happens without smoothing.
        """
        if self.fds is not None and self.fds.epoch < n:
            self.fds.end_epoch(torch.cat([self.embed(part) for part in x.split(1024)]), mos)

    def with_encoder(self, encoder: ImageEncoder) -> ClipHead:
        """Return a copy that takes images, without smoothing: the network to save and to use."""
        settings = {k: v for k, v in self.architecture.items() if k != "name"}
        whole = ClipHead(**(settings | {"fds": None, "encoder": encoder}))
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("fds.")}
        whole.load_state_dict(own, strict=False)
        return whole.eval()
