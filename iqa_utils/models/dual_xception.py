"""Dual-Xception, a trunk for the image and one for four numbers that describe it, and KonCept512.

KonCept512 is the network that the paper compares with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from iqa_utils.models import PooledTrunk, Pooling, Variant, architecture, scaled_score

Inputs = Literal["both", "images", "parameters"]
Fusion = Literal["dual", "linear", "plain"]
N_PARAMETERS = 4  # brightness, contrast, sharpness, bitrate
WIDTHS = (2048, 1024, 256)  # of KonCept512
DROPOUT = (0.25, 0.25, 0.5)


class DualXception(nn.Module):
    """Predict quality from an image, from four of its indicators, or from both.

    The indicators enter a convolutional trunk as four constant planes. Both trunks end in pooled
    features, which are concatenated and mapped to one score. The two controls of Fig. 5 replace the
    second trunk: by one linear neuron (``linear``) or by nothing at all (``plain``).

    Args:
        backbone: timm name of both trunks.
        inputs: ``"both"``, or one branch alone.
        fusion: What becomes of the indicators when both are used.
        variant: Construction of a trunk's feature. ``A``: its own width (2048 for Xception), as in
            the author's code. ``B``: a linear layer to ``width``, the literal reading of the paper.
            ``C``: the last separable convolution narrowed to ``width``. ``G``: ``C``, then a linear
            layer; the nearest to the paper's parameters. ``C`` and ``G`` need Xception.
        width: Feature width of ``B``, ``C`` and ``G``.
        plane_size: Side of the constant planes in pixels; None makes them as large as the image, as
            the author did, for the same numbers at many times the cost.
        pooling: As :class:`iqa_utils.models.PooledTrunk`.
        frozen: Name of a layer of the image trunk (``"blocks.4"``): it and all before it keep their
            weights and statistics, and :meth:`forward` takes their output in place of images.
        mos_mean: Score that an untrained network predicts, on the data's scale.
        mos_std: Spread of the scores: the head works in these units.
        pretrained: Weights of the image trunk, as :func:`iqa_utils.backbones.create_backbone`.

    Raises:
        ValueError: If an option is unknown, or ``variant`` does not fit the backbone.

    Note:
        The paper states 40.8 million parameters; with Xception ``A``, ``B``, ``C`` and ``G`` have
        41,618,289, 45,812,593, 38,466,417 and 40,565,617. The author also loads ImageNet weights
        into the second trunk; the paper says it was not pretrained. Standardised output is ours.

    References:
        Lehmann and Rokita, Machine Graphics & Vision 2023, section 2.2.1, Figs. 4 and 5.
    """

    def __init__(
        self,
        backbone: str = "legacy_xception",
        *,
        inputs: Inputs = "both",
        fusion: Fusion = "dual",
        variant: Variant = "A",
        width: int = 1024,
        plane_size: int | None = 64,
        pooling: Pooling = "mean",
        frozen: str | None = None,
        mos_mean: float = 0.0,
        mos_std: float = 1.0,
        pretrained: str | Path = "random",
    ) -> None:
        super().__init__()
        self.architecture = architecture("dual_xception", locals())
        allowed = {"inputs": Inputs, "fusion": Fusion, "variant": Variant, "pooling": Pooling}
        for name, literal in allowed.items():
            if self.architecture[name] not in (known := get_args(literal)):
                raise ValueError(f"{name} must be one of {known}, got {self.architecture[name]!r}")
        options = {"variant": variant, "width": width, "pooling": pooling}
        self.image_branch = self.parameter_branch = None
        n_features = 0
        if inputs != "parameters":
            self.image_branch = PooledTrunk(backbone, 3, pretrained=pretrained, **options)
            if frozen is not None:
                self.image_branch.freeze(frozen)
            n_features += self.image_branch.n_features
        if inputs == "parameters" or (inputs == "both" and fusion == "dual"):
            self.parameter_branch = PooledTrunk(backbone, N_PARAMETERS, **options)
            n_features += self.parameter_branch.n_features
        elif inputs == "both":
            linear = fusion == "linear"
            self.parameter_branch = nn.Linear(N_PARAMETERS, 1) if linear else nn.Identity()
            n_features += 1 if linear else N_PARAMETERS
        self.activation = nn.LeakyReLU(0.1)  # the author's code leaves it out
        self.head = nn.Linear(n_features, 1)
        self.plane_size = plane_size
        self.register_buffer("mos_mean", torch.tensor(float(mos_mean)))
        self.register_buffer("mos_std", torch.tensor(float(mos_std)))

    def forward(self, images: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Predict the scores, shape (B,).

        Args:
            images: Normalised RGB, shape (B, 3, H, W), or what ``image_branch.stem`` made of them;
                with ``inputs="parameters"`` they only give the size of the planes.
            parameters: Standardised indicators, shape (B, 4); not read with ``inputs="images"``.
        """
        features = self.activation(self.features(images, parameters))
        return scaled_score(self.head, features, self.mos_mean, self.mos_std)

    def features(self, images: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Return what both branches make of the arguments of :meth:`forward`, shape (B, D)."""
        parts = [] if self.image_branch is None else [self.image_branch(images)]  # (B, F)
        if self.parameter_branch is None:
            return parts[0]
        expected = (len(images), N_PARAMETERS)
        if parameters is None or tuple(parameters.shape) != expected:
            found = "none" if parameters is None else tuple(parameters.shape)
            raise ValueError(f"the network needs indicators of shape {expected}, got {found}")
        if isinstance(self.parameter_branch, PooledTrunk):
            size = images.shape[2:] if self.plane_size is None else (self.plane_size,) * 2
            parameters = parameters[:, :, None, None].expand(-1, -1, *size).contiguous()
        return torch.cat([*parts, self.parameter_branch(parameters)], dim=1)

    @torch.no_grad()
    def start_from(self, weights: Tensor, intercept: float) -> None:
        """Begin with a linear model of the image features, weights of shape (F,)."""
        n_features = self.image_branch.n_features
        self.head.weight.zero_()
        self.head.weight[0, :n_features] = weights / self.mos_std
        self.head.bias.fill_((intercept - self.mos_mean) / self.mos_std)


class KonCept(nn.Module):
    """Predict quality from a pooled trunk through three wide layers.

    Args:
        backbone: timm name of the trunk.
        widths: Widths of the three layers.
        frozen: Name of a layer of the trunk that is not trained, nor any before it, as
            in :class:`DualXception`.
        mos_mean: Score that an untrained network predicts, on the data's scale.
        mos_std: Spread of the scores: the head works in these units.
        pretrained: Weights of the trunk, as :func:`iqa_utils.backbones.create_backbone`.

    Note:
        Layers follow the released notebooks: dense, ReLU, batch normalisation, dropout; weights
        drawn as He did; the map is averaged over all places, of which their PyTorch port sees the
        top-left 8x8. 59,821,729 parameters; the "56 million" of Lehmann is InceptionResNetV2
        with its ImageNet classifier. Standardised output is ours: as released the head needs 13
        epochs to climb to the mean score.

    References:
        Hosu, Lin, Sziranyi and Saupe, IEEE Transactions on Image Processing 2020, section V.
    """

    def __init__(
        self,
        backbone: str = "inception_resnet_v2",
        *,
        widths: tuple[int, ...] = WIDTHS,
        frozen: str | None = None,
        mos_mean: float = 0.0,
        mos_std: float = 1.0,
        pretrained: str | Path = "random",
    ) -> None:
        super().__init__()
        self.architecture = architecture("koncept", locals())
        self.image_branch = PooledTrunk(backbone, 3, pretrained=pretrained)
        if frozen is not None:
            self.image_branch.freeze(frozen)
        layers, n_in = [], self.image_branch.n_features
        for n_out, dropout in zip(widths, DROPOUT, strict=True):
            dense = nn.Linear(n_in, n_out)
            nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
            nn.init.zeros_(dense.bias)
            layers += [dense, nn.ReLU(), nn.BatchNorm1d(n_out), nn.Dropout(dropout)]
            n_in = n_out
        self.head = nn.Sequential(*layers, nn.Linear(n_in, 1))
        self.register_buffer("mos_mean", torch.tensor(float(mos_mean)))
        self.register_buffer("mos_std", torch.tensor(float(mos_std)))

    def forward(self, images: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Predict the scores, shape (B,), of normalised RGB or of what the stem made of it.

        ``parameters`` are not read; they are there so that batches of dual-Xception fit.
        """
        return self.score(self.image_branch(images))

    def score(self, features: Tensor) -> Tensor:
        """Return the scores (B,) of pooled features (B, F) of the trunk."""
        return scaled_score(self.head[-1], self.head[:-1](features), self.mos_mean, self.mos_std)


class PooledHead(nn.Module):
    """The head of a KonCept network, shared with it, on features of its trunk computed before."""

    def __init__(self, network: KonCept) -> None:
        super().__init__()
        self.head, self.score = network.head, network.score

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B,) of pooled features (B, F)."""
        return self.score(features)
