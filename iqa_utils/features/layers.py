"""The layers of Tables 1 and 2 of ahmed2020, by the paper's names, as modules of public networks.

The paper used MATLAB, whose layer names appear in its tables. Each row of :data:`LAYERS` says which
module of a torchvision or timm network gives the same activation, and how many values it holds for
one crop at the network's own input size. Where the printed size is impossible, or the paper's
network has no public counterpart, the row says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from iqa_utils.backbones import HUB, create_backbone, load_weights
from iqa_utils.features import tap_layers
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD


@dataclass(frozen=True)
class Network:
    """A network that features are tapped from.

    Attributes:
        name: Our name.
        library: ``"torchvision"`` or ``"timm"``.
        model: The library's name.
        side: Native input height and width, pixels.
        titles: Table of the paper to the name it prints there; empty for networks of our own.
        options: Constructor arguments.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.
        note: What differs from the paper's network.
    """

    name: str
    library: str
    model: str
    side: int
    titles: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    note: str = ""


@dataclass(frozen=True)
class Layer:
    """One place to tap.

    Attributes:
        network: Key of :data:`NETWORKS`.
        name: The paper's name of the layer, or ours for our own networks.
        module: Name for :func:`iqa_utils.features.tap_layers`.
        size: Values in the activation of one image at the native input size.
        tables: Tables of the paper that print this layer.
        printed: The size printed there; equal to ``size`` unless the paper errs or substitutes.
        note: Why they differ.
    """

    network: str
    name: str
    module: str
    size: int
    tables: tuple[str, ...] = ()
    printed: int | None = None
    note: str = ""

    @property
    def is_vector(self) -> bool:
        """Whether the layer has no places: a fully connected layer, or logits."""
        return self.size in (1000, 4096)


_HALF = {"mean": INCEPTION_MEAN, "std": INCEPTION_STD}
_PLAIN = {"aux_logits": False, "init_weights": False, "transform_input": False}


def _both(title: str, second: str = "") -> dict[str, str]:
    return {"Table 1": title, "Table 2": second or title}


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "alexnet", "torchvision", "alexnet", 224, {"Table 1": "AlexNet"},
            note="MATLAB has Caffe's two-column network with LRN at 227 px; this is the "
            "single-column one at 224 px: same sizes, other weights",
        ),
        Network("vgg16", "torchvision", "vgg16", 224, _both("Vgg16", "VGG16")),
        Network(
            "googlenet", "torchvision", "googlenet", 224, {"Table 1": "GoogleNet"}, _PLAIN, **_HALF,
            note="with batch normalisation, which the paper's has not",
        ),
        Network("squeezenet", "torchvision", "squeezenet1_1", 227, {"Table 1": "SqueezeNet"}),
        Network(
            "shufflenet", "torchvision", "shufflenet_v2_x1_0", 224, _both("ShuffleNet"),
            note="substitution: the paper's ShuffleNet v1 is in neither library; this is v2",
        ),
        Network(
            "inception_v3", "torchvision", "inception_v3", 299, {"Table 1": "InceptionV3"},
            _PLAIN, **_HALF,
        ),
        Network("densenet201", "torchvision", "densenet201", 224, _both("DenseNet201")),
        Network(
            "mobilenet_v2", "torchvision", "mobilenet_v2", 224,
            _both("MobileNetV2", "MobileNet-V2"),
        ),
        Network("resnet50", "torchvision", "resnet50", 224, _both("ResNet50")),
        Network("resnet101", "torchvision", "resnet101", 224, {"Table 1": "ResNet101"}),
        Network(
            "inception_resnet_v2", "timm", "inception_resnet_v2", 299,
            _both("Inception-ResNet-V2"), **_HALF,
        ),
        Network("xception", "timm", "legacy_xception", 299, _both("Xception"), **_HALF),
        Network(
            "nasnetalarge", "timm", "nasnetalarge", 331, _both("NASNet", "NASNet-Large"), **_HALF,
        ),
        # networks of our own, for which small real weights can be had
        Network(
            "squeezenet1_0", "torchvision", "squeezenet1_0", 227,
            note="wider than the paper's SqueezeNet 1.1: never compared with its rows",
        ),
        Network("mobilenetv2_100", "timm", "mobilenetv2_100", 224),
    )
}  # fmt: skip

_1, _2, _12 = ("Table 1",), ("Table 2",), ("Table 1", "Table 2")
_V2 = "ShuffleNet v2 (464 channels) in place of v1 (544)"
_STAGE = "7 x 7 x 2048 is 100352; the printed 200704 is the size of the stage before"
_POOLED = "10 x 10 x 1024 is 102400; the printed 1000 is the size of the classifier"

LAYERS = (
    Layer("alexnet", "fc6", "classifier.1", 4096, _1, 4096),
    Layer("alexnet", "fc7", "classifier.4", 4096, _1, 4096),
    Layer("alexnet", "fc8", "classifier.6", 1000, _1, 1000),
    Layer("vgg16", "conv5_1", "features.24", 100352, _1, 100352),
    Layer("vgg16", "conv5_2", "features.26", 100352, _1, 100352),
    Layer("vgg16", "conv5_3", "features.28", 100352, _1, 100352),
    Layer("vgg16", "fc6", "classifier.0", 4096, _2, 4096),
    Layer("vgg16", "fc7", "classifier.3", 4096, _2, 4096),
    Layer("vgg16", "fc8", "classifier.6", 1000, _2, 1000),
    Layer("googlenet", "Inception4eOutput", "inception4e", 163072, _1, 163072),
    Layer("googlenet", "Inception5bOutput", "inception5b", 50176, _1, 50176),
    Layer("googlenet", "loss3-classifier", "fc", 1000, _1, 1000),
    Layer("squeezenet", "fire6-connect", "features.9", 75264, _1, 75264),
    Layer("squeezenet", "fire7-concat", "features.10", 75264, _1, 75264),
    Layer("squeezenet", "fire8-concat", "features.11", 100352, _1, 100352),
    Layer("shufflenet", "node_174", "stage4.1", 22736, _1, 26656, _V2),
    Layer("shufflenet", "node_186", "stage4.2", 22736, _2, 26656, _V2),
    Layer("shufflenet", "node_198", "stage4.3", 22736, _12, 26656, _V2),
    Layer("shufflenet", "node_202", "fc", 1000, _12, 1000, "ShuffleNet v2 in place of v1"),
    Layer("inception_v3", "mixed6", "Mixed_6d", 221952, _1, 221952),
    Layer("inception_v3", "mixed8", "Mixed_7a", 81920, _1, 81920),
    Layer("inception_v3", "mixed9", "Mixed_7b", 131072, _1, 131072),
    Layer(
        "densenet201", "conv5_block30_concat", "features.denseblock4.denselayer31:input", 90944,
        _12, 90944,
    ),
    Layer(
        "densenet201", "conv5_block31_concat", "features.denseblock4.denselayer32:input", 92512,
        _1, 92512,
    ),
    Layer("densenet201", "conv5_block32_concat", "features.denseblock4", 94080, _12, 94080),
    Layer("densenet201", "fc1000", "classifier", 1000, _2, 1000),
    Layer("mobilenet_v2", "block_15_add", "features.16", 7840, _1, 7840),
    Layer("mobilenet_v2", "block_16_project", "features.17.conv.2", 15680, _12, 15680),
    Layer("mobilenet_v2", "Conv_1", "features.18.0", 62720, _12, 62720),
    Layer("mobilenet_v2", "Logits", "classifier.1", 1000, _2, 1000),
    Layer("resnet50", "add_12", "layer3.4", 200704, _1, 200704),
    Layer("resnet50", "add_14", "layer4.0", 100352, _1, 200704, _STAGE),
    Layer("resnet50", "add_15", "layer4.1", 100352, _12, 100352),
    Layer("resnet50", "add_16", "layer4.2", 100352, _2, 100352),
    Layer("resnet50", "fc1000", "fc", 1000, _2, 1000),
    Layer("resnet101", "res4b21", "layer3.21", 200704, _1, 200704),
    Layer("resnet101", "res5a", "layer4.0", 100352, _1, 200704, _STAGE),
    Layer("resnet101", "res5b", "layer4.1", 100352, _1, 200704, _STAGE),
    Layer("inception_resnet_v2", "block8_7", "repeat_2.6", 133120, _12, 133120),
    Layer("inception_resnet_v2", "block8_8", "repeat_2.7", 133120, _12, 133120),
    Layer("inception_resnet_v2", "block8_9", "repeat_2.8", 133120, _12, 133120),
    Layer("xception", "add_10", "block10", 262808, _12, 262808),
    Layer("xception", "add_11", "block11", 262808, _1, 262808),
    Layer("xception", "add_12", "block12", 102400, _12, 1000, _POOLED),
    Layer("xception", "predictions", "fc", 1000, _2, 1000),
    Layer("nasnetalarge", "reduction_concat_reduce12", "reduction_cell_1", 325248, _1, 325248),
    Layer("nasnetalarge", "normal_concat_13", "cell_12", 487872, _1, 487872),
    Layer("nasnetalarge", "normal_concat_16", "cell_15", 487872, _2, 487872),
    Layer("nasnetalarge", "normal_concat_17", "cell_16", 487872, _2, 487872),
    Layer("nasnetalarge", "predictions", "last_linear", 1000, _12, 1000),
    Layer("squeezenet1_0", "fire3", "features.4", 387200),
    Layer("squeezenet1_0", "fire7", "features.9", 279936),
    Layer("squeezenet1_0", "fire9", "features.12", 86528),
    Layer("squeezenet1_0", "logits", "classifier", 1000),
    Layer("mobilenetv2_100", "block_2", "blocks.1.1", 75264),
    Layer("mobilenetv2_100", "block_9", "blocks.3.3", 12544),
    Layer("mobilenetv2_100", "block_12", "blocks.4.2", 18816),
    Layer("mobilenetv2_100", "block_15", "blocks.5.2", 7840),
    Layer("mobilenetv2_100", "conv_head", "conv_head", 62720),
    Layer("mobilenetv2_100", "logits", "classifier", 1000),
)  # fmt: skip


def layers_of(network: str, table: str | None = None) -> tuple[Layer, ...]:
    """List the layers of a network from its input to its output.

    Args:
        network: Key of :data:`NETWORKS`.
        table: ``"Table 1"`` or ``"Table 2"`` for those printed there; None for all.

    Raises:
        ValueError: If the network is unknown, or the table does not print it.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {network!r}")
    found = [row for row in LAYERS if row.network == network and (not table or table in row.tables)]
    if not found:
        raise ValueError(f"{table} prints no layer of {network}")
    return tuple(found)


def ledger_method(layer: Layer, table: str) -> str:
    """Spell a layer as the ledger's rows of Tables 1 and 2 do."""
    how = {"Table 1": "pre-trained", "Table 2": "fine-tuned"}[table]
    return f"{NETWORKS[layer.network].titles[table]} / {layer.name} ({how}, linear SVR)"


def create_network(name: str, *, pretrained: str | Path | None) -> nn.Module:
    """Build one of :data:`NETWORKS` with its 1000-way classifier and the weights asked for.

    Args:
        name: Key of :data:`NETWORKS`.
        pretrained: As in :func:`iqa_utils.backbones.create_backbone`.

    Returns:
        The network, in training mode, on the CPU (on the meta device under ``torch.device``).

    Raises:
        ValueError: If the name is unknown, or the file holds another architecture or lacks the
            1000-way classifier.
        FileNotFoundError: If the file is missing.
        ConnectionError: If ``"hub"`` was asked for and the download failed.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {name!r}")
    row = NETWORKS[name]
    if row.library == "timm":
        if pretrained in (None, HUB):
            return create_backbone(row.model, pretrained=pretrained, **row.options)
        network = create_backbone(row.model, pretrained=None, **row.options)
        return load_weights(network, pretrained)  # the classifier too: its logits are features
    network = torchvision.models.get_model(row.model, weights=None, **row.options)
    if pretrained is None:
        return network
    if pretrained == HUB:
        weights = torchvision.models.get_model_weights(row.model).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ConnectionError(
                f"pretrained='hub' could not fetch {weights.url}: {error}. Fetch it on a machine "
                f"with a network, put it at data/weights/{name}-imagenet.pth and pass that folder"
            ) from error
        own = network.state_dict()
        network.load_state_dict({k: v for k, v in state.items() if k in own})
        return network
    return load_weights(network, pretrained, classifier=("aux1", "aux2", "AuxLogits"))


def weights_of(name: str, pretrained: str | Path | None) -> str | Path | None:
    """Find the weights of one network where a folder holds those of several.

    Args:
        name: Key of :data:`NETWORKS`.
        pretrained: None, ``"hub"``, or a folder with ``NAME-imagenet.pth`` or ``.safetensors``.

    Returns:
        None, ``"hub"``, or the file.

    Raises:
        FileNotFoundError: If the folder has no such file; says which name was looked for.
    """
    if pretrained is None or str(pretrained) == HUB:
        return pretrained and HUB
    for ending in (".safetensors", ".pth"):
        if (path := Path(pretrained) / f"{name}-imagenet{ending}").is_file():
            return path
    raise FileNotFoundError(
        f"{Path(pretrained).name}: expected {name}-imagenet.pth or .safetensors in this folder"
    )


def feature_sizes(name: str) -> dict[str, int]:
    """Measure the activation sizes of all layers of a network without computing anything.

    Args:
        name: Key of :data:`NETWORKS`.

    Returns:
        Layer name to values an image, from one forward pass on the meta device.
    """
    row, layers = NETWORKS[name], layers_of(name)
    with torch.device("meta"), torch.no_grad():
        network = create_network(name, pretrained=None).eval()
        with tap_layers(network, [layer.module for layer in layers]) as taps:
            network(torch.empty(1, 3, row.side, row.side))
    return {layer.name: taps[layer.module].numel() for layer in layers}
