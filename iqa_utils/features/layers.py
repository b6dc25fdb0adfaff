"""The layers of Tables 1 and 2 of ahmed2020, by the paper's names, as modules of public networks.

The paper used MATLAB, whose layer names appear in its tables. Each row of ``layers.csv``, beside
this file, says which module of a torchvision or timm network gives the same activation, and how
many values it holds for one crop at the network's own input size. Where the printed size is
impossible, or the paper's network has no public counterpart, the row says so.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from iqa_utils.backbones import HUB, RANDOM, SHIPPED, create_backbone, load_weights
from iqa_utils.features import tap_layers
from iqa_utils.images import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
)


@dataclass(frozen=True)
class Network:
    """A network that features are tapped from."""

    library: str  # torchvision or timm
    model: str  # the library's name
    side: int  # native input height and width, pixels
    titles: Mapping[str, str] = field(default_factory=dict)  # by table of the paper; ours have none
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the normalisation, RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD
    weights: str = "imagenet"  # what it learnt from, in the names of files and in results
    classes: int = 1000  # of its classifier; 0: a trunk, whose weights come without one

    @property
    def normalisation(self) -> dict[str, tuple[float, float, float]]:
        """Mean and standard deviation as keyword arguments."""
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class Layer:
    """One place to tap."""

    network: str  # key of NETWORKS
    name: str  # the paper's, or ours for our own networks
    module: str  # for iqa_utils.features.tap_layers
    size: int  # values of one image at the native input size
    tables: tuple[str, ...] = ()  # of the paper that print this layer
    printed: int | None = None  # the size there: another one where the paper errs or substitutes
    note: str = ""  # why they differ

    @property
    def is_vector(self) -> bool:
        """Whether the layer has no places: a fully connected layer, a class token, or logits."""
        return self.size in (768, 1000, 4096)

    def in_ledger(self, table: str) -> str:
        """Spell the layer as the ledger's rows of Table 1 or 2 do."""
        how = {"Table 1": "pre-trained", "Table 2": "fine-tuned"}[table]
        return f"{NETWORKS[self.network].titles[table]} / {self.name} ({how}, linear SVR)"


def _read_layers() -> tuple[Layer, ...]:
    with Path(__file__).with_name("layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["tables"] = tuple(f"Table {k}" for k in row["tables"].split("+") if k)
        row["size"], row["printed"] = int(row["size"]), int(row["printed"] or 0) or None
    return tuple(Layer(**row) for row in rows)


def _network(
    library: str, model: str, side: int, *titles: str, half: bool = False, classes: int = 1000
) -> Network:
    """Describe a network; ``titles`` are its names in Tables 1 and 2, ``half`` means 0.5 +- 0.5."""
    own = {f"Table {k}": title for k, title in enumerate(titles, 1)}
    scale = (INCEPTION_MEAN, INCEPTION_STD) if half else (IMAGENET_MEAN, IMAGENET_STD)
    return Network(library, model, side, own, *scale, classes=classes)


AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers that help training only
CLIP = "vit_base_patch16_clip_quickgelu_224"
CHOICES = ("paper", "after", "depth")
LAYERS = _read_layers()
NETWORKS = {
    # MATLAB has Caffe's two-column AlexNet with LRN at 227 px; this is the single-column one
    "alexnet": _network("torchvision", "alexnet", 224, "AlexNet"),
    "vgg16": _network("torchvision", "vgg16", 224, "Vgg16", "VGG16"),
    # with batch normalisation, which the paper's has not
    "googlenet": _network("torchvision", "googlenet", 224, "GoogleNet", half=True),
    "squeezenet": _network("torchvision", "squeezenet1_1", 227, "SqueezeNet"),
    # the paper's ShuffleNet v1 is in neither library; this is v2
    "shufflenet": _network("torchvision", "shufflenet_v2_x1_0", 224, *["ShuffleNet"] * 2),
    "inception_v3": _network("torchvision", "inception_v3", 299, "InceptionV3", half=True),
    "densenet201": _network("torchvision", "densenet201", 224, *["DenseNet201"] * 2),
    "mobilenet_v2": _network("torchvision", "mobilenet_v2", 224, "MobileNetV2", "MobileNet-V2"),
    "resnet50": _network("torchvision", "resnet50", 224, "ResNet50", "ResNet50"),
    "resnet101": _network("torchvision", "resnet101", 224, "ResNet101"),
    "inception_resnet_v2": _network(
        "timm", "inception_resnet_v2", 299, *["Inception-ResNet-V2"] * 2, half=True
    ),
    "xception": _network("timm", "legacy_xception", 299, "Xception", "Xception", half=True),
    "nasnetalarge": _network("timm", "nasnetalarge", 331, "NASNet", "NASNet-Large", half=True),
    # networks of our own, for which small real weights can be had; SqueezeNet 1.0 is wider than the
    # paper's 1.1 and never compared with its rows
    "squeezenet1_0": _network("torchvision", "squeezenet1_0", 227),
    "mobilenetv2_100": _network("timm", "mobilenetv2_100", 224),
    "tf_efficientnet_lite0": _network("timm", "tf_efficientnet_lite0", 224, half=True),
    "legacy_xception": _network("timm", "legacy_xception", 299, half=True, classes=0),
    CLIP: Network("timm", CLIP, 224, {}, CLIP_MEAN, CLIP_STD, weights="openai", classes=0),
}


def layers_of(
    network: str, table: str | None = None, *, choice: str = "paper"
) -> tuple[Layer, ...]:
    """List layers of a network from its input to its output.

    Args:
        network: Key of :data:`NETWORKS`.
        table: Only those that this table of the paper prints.
        choice: ``"paper"`` (its additions are tapped before the ReLU that follows), ``"after"``
            (behind that ReLU) or ``"depth"`` (every block, before and after its activation).
    """
    if choice not in CHOICES:
        raise ValueError(f"the choice of layers must be one of {CHOICES}, got {choice!r}")
    if choice == "depth":
        return depth_layers(network)
    found = [row for row in LAYERS if row.network == network and (not table or table in row.tables)]
    if not found:
        known = f"networks are {sorted(NETWORKS)}"
        raise ValueError(f"{table or 'the paper'} prints no layer of {network!r}; {known}")
    for i, row in enumerate(found if choice == "after" else ()):
        block = row.module.removesuffix(".relu:input")
        if block != row.module:  # the output of the block, which no table prints
            found[i] = Layer(network, f"{row.name}, after ReLU", block, row.size)
    return tuple(found)


@cache
def depth_layers(name: str) -> tuple[Layer, ...]:
    """Find every block of a network and its taps before and after the last activation.

    One pass on the meta device shows which activation makes or takes the output of a block. A block
    whose activation is no module, or that has none, is tapped once, at its output.
    """
    calls: list[tuple[str, nn.Module, Any, Any]] = []  # the tensors are kept: identity is compared

    def keep(own: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((own, module, inputs[0], output))

    with torch.device("meta"), torch.no_grad():
        network = create_network(name, pretrained="random").eval()
        for own, module in network.named_modules():
            module.register_forward_hook(partial(keep, own))
        network(torch.empty(1, 3, NETWORKS[name].side, NETWORKS[name].side))
    last = {own: call for call in calls for own in [call[0]]}  # a shared activation's last use
    acts = [call for call in last.values() if type(call[1]).__module__ == nn.ReLU.__module__]
    taps = {}
    convolutions = [own for own, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    for block in _blocks(network) or convolutions:
        _, module, _, output = last[block]
        makes = [own for own, _, _, made in acts if made is output]
        takes = [own for own, _, taken, _ in acts if taken is output]
        if hasattr(module, "expand3x3"):  # SqueezeNet joins two activations
            taps[f"{block}, before"] = f"{block}.expand1x1+{block}.expand3x3"
            taps[f"{block}, after"] = block
        elif makes and makes[0].startswith(f"{block}."):
            taps |= {f"{block}, before": f"{makes[0]}:input", f"{block}, after": block}
        elif takes:
            taps |= {f"{block}, before": block, f"{block}, after": takes[0]}
        else:
            taps[block] = block
    sizes = _sizes(name, taps.values())
    return tuple(Layer(name, tap, module, sizes[module]) for tap, module in taps.items())


def _blocks(module: nn.Module, prefix: str = "") -> list[str]:
    """Name the parts of a network that hold convolutions or products, containers opened."""
    found, products = [], (nn.Conv2d, nn.Linear)
    for own, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            found += _blocks(child, f"{prefix}{own}.")
        elif any(isinstance(part, products) for part in child.modules() if part is not child):
            found.append(prefix + own)
    return found


def create_network(name: str, *, pretrained: str | Path) -> nn.Module:
    """Build one of :data:`NETWORKS`, with its classifier if it has one and the weights asked for.

    ``pretrained`` is as in :func:`iqa_utils.backbones.create_backbone`, or a folder with
    ``NAME-imagenet.safetensors`` or ``.pth`` (CLIP: ``NAME-openai``); a file of another
    architecture, or without the classifier that the network has, is refused. The shipped trunk has
    none: its logits are a random projection of the trunk's features. The network is in training
    mode, on the CPU (on the meta device under ``torch.device``).
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {name!r}")
    row, is_timm = NETWORKS[name], NETWORKS[name].library == "timm"
    if is_timm:
        start = HUB if pretrained == HUB else RANDOM
        trunk = {} if row.classes else {"num_classes": 0}
        network = create_backbone(row.model, pretrained=start, **trunk)
    else:
        bare = {"aux_logits": False, "init_weights": False, "transform_input": False}
        options = bare if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(row.model, weights=None, **options)
        if pretrained == HUB:
            _load_from_hub(network, name)
    if pretrained == SHIPPED:
        trunk = create_backbone(name, pretrained=SHIPPED, num_classes=0)
        network.load_state_dict(trunk.state_dict(), strict=False)
    if pretrained in (RANDOM, HUB, SHIPPED):
        return network
    path = Path(pretrained)
    if path.is_dir():
        path = path / f"{name}-{row.weights}.safetensors"
        path = path if path.is_file() else path.with_suffix(".pth")
    spare = ("fc", "head") if not row.classes else () if is_timm else AUXILIARY
    return load_weights(network, path, classifier=spare)  # its classifier too: logits are used


def _load_from_hub(network: nn.Module, name: str) -> None:
    weights = torchvision.models.get_model_weights(NETWORKS[name].model).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ConnectionError(
            f"pretrained='hub' could not fetch {weights.url}: {error}. Fetch it on a machine "
            f"with a network, put it at data/weights/{name}-imagenet.pth and pass that folder"
        ) from error
    own = network.state_dict()
    network.load_state_dict({k: v for k, v in state.items() if k in own})


def feature_sizes(name: str, choice: str = "paper") -> dict[str, int]:
    """Measure a network's activation sizes, layer name to values per image, on the meta device."""
    layers = layers_of(name, choice=choice)
    sizes = _sizes(name, [layer.module for layer in layers])
    return {layer.name: sizes[layer.module] for layer in layers}


def _sizes(name: str, taps: Iterable[str]) -> dict[str, int]:
    with torch.device("meta"), torch.no_grad():
        network = create_network(name, pretrained="random").eval()
        with tap_layers(network, list(taps)) as found:
            network(torch.empty(1, 3, NETWORKS[name].side, NETWORKS[name].side))
    return {tap: value.numel() for tap, value in found.items()}
