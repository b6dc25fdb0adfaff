"""Dual-Xception: one trunk for the image, one for four numbers that describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from iqa_utils.models.pooled_trunk import PooledTrunk, Pooling, Variant
from iqa_utils.models.scores import architecture, scaled_score

Inputs = Literal["both", "images", "parameters"]
Fusion = Literal["dual", "linear", "plain"]
N_PARAMETERS = 4  # brightness, contrast, sharpness, bitrate


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
        pooling: As :class:`iqa_utils.models.pooled_trunk.PooledTrunk`.
        activation: Apply the paper's leaky ReLU (slope 0.1; the author's code leaves it out).
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
        activation: bool = True,
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
        self.activation = nn.LeakyReLU(0.1) if activation else nn.Identity()
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
        n_features = 0 if self.image_branch is None else self.image_branch.n_features
        if len(weights) != n_features:
            raise ValueError(
                f"the image branch has {n_features} features, got {len(weights)} weights"
            )
        self.head.weight.zero_()
        self.head.weight[0, :n_features] = weights / self.mos_std
        self.head.bias.fill_((intercept - self.mos_mean) / self.mos_std)
