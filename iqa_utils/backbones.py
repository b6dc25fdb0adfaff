"""Trunks by name: the only module that loads weights; never a silent fallback."""

from __future__ import annotations

import hashlib
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

RANDOM, HUB, SHIPPED = ("random", "hub", "shipped")
SHIPPED_BACKBONE = "tf_efficientnet_lite0"
SHIPPED_FILE = Path(__file__).parent / "weights" / "quality.safetensors"
# of Keras, where its weights come from; with timm's 1e-5 pooled features differ by 4 %
BATCH_NORM_EPSILON = {"legacy_xception": 1e-3}


def create_backbone(name: str, *, pretrained: str | Path, **options: Any) -> nn.Module:
    """Build a timm network and load the weights that were asked for, or raise.

    Args:
        name: timm model name, for example ``"legacy_xception"`` or ``"mobilenetv2_100"``.
        pretrained: ``"random"``, ``"hub"`` to download through timm, ``"shipped"`` for the trunk of
            the quality model in this package, or the path of a state dict (``.pth``/``.pt``, loaded
            with ``weights_only=True``, or ``.safetensors``).
        **options: Passed on to ``timm.create_model`` (``num_classes=0``, ``global_pool=""``, ...).

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        ValueError: If timm does not know the name, the file holds another architecture, or the
            shipped trunk is asked for under another name.
        FileNotFoundError: If the file is missing.
        ConnectionError: If a download failed; says which weights to fetch and where to put them.
            There is no fallback to random weights.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone must be a timm model name, got {name!r}")
    if pretrained == SHIPPED and name != SHIPPED_BACKBONE:
        raise ValueError(f"pretrained='shipped' is a {SHIPPED_BACKBONE}, got backbone {name!r}")
    make = _from_hub if pretrained == HUB else partial(timm.create_model, pretrained=False)
    network = make(name, **options)
    for module in network.modules() if name in BATCH_NORM_EPSILON else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = BATCH_NORM_EPSILON[name]
    if pretrained == SHIPPED:  # the trunk of the quality model; a classifier has no weights there
        state, trunk = read_state_dict(SHIPPED_FILE), "trunk."
        state = {key.removeprefix(trunk): v for key, v in state.items() if key.startswith(trunk)}
        own = network.state_dict()
        _load(network, {k: v for k, v in state.items() if k in own}, SHIPPED_FILE.name)
    elif pretrained not in (RANDOM, HUB):
        names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
        load_weights(network, pretrained, classifier=(names,) if isinstance(names, str) else names)
    return network


def _from_hub(name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        config = timm.get_pretrained_cfg(name)
        where = (config and (config.hf_hub_id or config.url)) or "no public weights are listed"
        raise ConnectionError(
            f"pretrained='hub' could not fetch the weights of {name} ({where}): {error}. Fetch "
            "them on a machine with a network, put them at "
            f"data/weights/{name}.safetensors and pass that path as pretrained"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read parameter names and tensors from ``.safetensors`` or ``.pth``, executing no code."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path.name}: expected a file, found nothing at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = load_tensors(path)
    except Exception as error:
        raise ValueError(f"weights {path.name}: not a plain state dict: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"weights {path.name}: expected parameter names and tensors only")
    return state


def load_tensors(path: Path) -> Any:
    """Read a file of ``torch.save`` without running code; PyTorch's advice to run it is dropped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = re.search(r"Unsupported (?:global|class|operand)[^.\n]*", str(error))
        found = f" ({said[0].strip()})" if said else ""
        raise ValueError(f"it is damaged, or would run code when loaded{found}") from error


def load_weights(
    network: nn.Module, path: str | Path, *, classifier: tuple[str, ...] | list[str] = ()
) -> nn.Module:
    """Copy a file of :func:`read_state_dict` into a network, and return the network.

    Parameters named by ``classifier``, as timm names ImageNet's, may be left over in the file. A
    ValueError names whatever else is missing, left over or of another shape, the network's own
    classifier too: a random one would look like a poor one.
    """
    state, own = read_state_dict(path), network.state_dict()
    spare = tuple(f"{prefix}." for prefix in classifier)
    state = {key: value for key, value in state.items() if key in own or not key.startswith(spare)}
    return _load(network, state, Path(path).name)


def _load(network: nn.Module, state: dict[str, torch.Tensor], name: str) -> nn.Module:
    """Copy a state dict that must be that of the network."""
    own = network.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    if wrong or missing or extra:
        raise ValueError(
            f"weights {name} are of another architecture than {type(network).__name__}: "
            f"{len(missing)} parameters missing {missing[:3]}, {len(extra)} unknown {extra[:3]}, "
            f"{len(wrong)} of another shape {wrong[:3]}"
        )
    network.load_state_dict(state, strict=False)
    return network


def freeze_batch_statistics(network: nn.Module) -> nn.Module:
    """Keep every batch normalisation on its stored mean and variance in training.

    Scale and shift stay trainable. Each layer is marked; :func:`iqa_utils.training.fit` reads it.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.frozen_statistics = True
    return network


def normalisation(network: nn.Module) -> dict[str, tuple[float, ...]]:
    """Return ``mean`` and ``std``, for pixels in [0, 1], that a timm network was trained with."""
    return {key: tuple(network.pretrained_cfg[key]) for key in ("mean", "std")}


def by_places(activation: torch.Tensor) -> torch.Tensor:
    """Bring maps (B, C, H, W) or tokens (B, T, C) to the shape (B, C, places)."""
    return activation.flatten(2) if activation.ndim == 4 else activation.transpose(1, 2)


def weights_hash(network: nn.Module) -> str:
    """Hash every parameter and buffer of a network to 16 hexadecimal digits, for caches."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        array = value.detach().to("cpu").contiguous()
        digest.update(f"{key}|{array.dtype}|{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
