"""The networks of the five papers, and the way back from a saved description to a network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# name in a saved architecture -> (module here, class); imported only when it is asked for
MODELS = {
    "dual_xception": ("dual_xception", "DualXception"),
    "koncept": ("dual_xception", "KonCept"),
    "monotonic": ("monotonic", "MonotonicIQA"),
    "clip_head": ("clip_head", "ClipHead"),
    "imqnet": ("imqnet", "IMQNet"),
    "quality": ("quality_net", "QualityNet"),
}


def build_model(architecture: Mapping[str, Any]) -> nn.Module:
    """Build one of the project's networks, with random weights, from its ``architecture``.

    Args:
        architecture: ``name`` (a key of :data:`MODELS`) and the arguments of the constructor.

    Returns:
        The network on the CPU. Weights are the caller's to load: ``pretrained`` is refused here, so
        that reading a model file never fetches or opens another file.

    Raises:
        ValueError: If the name is unknown, ``pretrained`` is given, or the constructor does not
            accept the arguments.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name not in MODELS:
        raise ValueError(f"architecture name must be one of {sorted(MODELS)}, got {name!r}")
    if arguments.pop("pretrained", None) is not None:
        raise ValueError(f"architecture {name}: pretrained weights come from the model file itself")
    module, class_name = MODELS[name]
    network = getattr(import_module(f"{__name__}.{module}"), class_name)
    try:
        return network(**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {name}: {error}") from error
