"""Checkpoint files: one to resume a training, one to use a trained model.

``last.pt`` holds everything a training needs to go on as if it had never stopped. A
``.safetensors`` file holds a finished network and, in its header, what a user must know about it.
Both are written to a temporary name and moved, and reading either never executes code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from iqa_utils.backbones import load_tensors, weights_hash
from iqa_utils.files import atomic_write
from iqa_utils.models import build_model

HEADER = "iqa_utils"
REQUIRED_METADATA = ("preprocessing", "training_data", "scores_seen", "metrics")


def config_key(config: Mapping[str, Any]) -> str:
    """Hash what determines the outcome of a training, to 12 digits; the order of keys is free.

    Values are JSON types, paths and NumPy scalars; what could not be written down the same way
    twice (an object, a function) raises a TypeError.
    """
    text = json.dumps(config, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def data_digest(rows_by_part: Mapping[str, np.ndarray], mos: np.ndarray) -> str:
    """Hash a split (rows of a table by name, in order) and all its scores, shape (N,).

    One row that changes place or one bit of a score changes the 64 digits.
    """
    digest = hashlib.sha256(np.asarray(mos, dtype=np.float64).tobytes())
    for part in sorted(rows_by_part):
        digest.update(f"{part}:{len(rows_by_part[part])}:".encode())
        digest.update(np.asarray(rows_by_part[part], dtype=np.int64).tobytes())
    return digest.hexdigest()


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state of nested dictionaries, tensors and plain values in one move."""
    with atomic_write(path) as partial:
        torch.save(dict(state), partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; what is damaged or would run code is refused."""
    try:
        return load_tensors(path)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path.name} is damaged or not one of ours; delete {path.parent} to start "
            f"again: {error}"
        ) from error


def save_model(
    path: str | Path, model: nn.Module, metadata: Mapping[str, Any], *, half: bool = False
) -> Path:
    """Write a network for use: weights, and in the header how it was made.

    Args:
        path: Target, ``.safetensors``.
        model: Network with ``architecture``: its name in :func:`iqa_utils.models.build_model` and
            the arguments of its constructor.
        metadata: JSON types. Must tell ``preprocessing`` (size, mean, std), ``training_data`` (a
            mapping with at least ``dataset`` and ``demo``, whether its images are made),
            ``scores_seen`` (data set and part whose human scores it was fitted to) and ``metrics``.
        half: Round matrices and kernels to float16, in the network too; half the size.

    Returns:
        The path.

    Raises:
        ValueError: If a required entry is missing.
        AttributeError: If the network does not know its architecture.
    """
    path = Path(path)
    _check_metadata(path, metadata)
    if half:
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(value.half()) if value.ndim > 1 else None
    header = {"architecture": dict(model.architecture), **metadata}
    header["weights_hash"] = weights_hash(model)
    state = {k: v.detach().to("cpu").contiguous().clone() for k, v in model.state_dict().items()}
    if half:
        matrices = {key for key, value in model.named_parameters() if value.ndim > 1}
        state = {k: v.half() if k in matrices else v for k, v in state.items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={HEADER: json.dumps(header, default=_plain)})
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_model` was told about a network, and its ``architecture``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model {path.name}: nothing at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
    except SafetensorError as error:
        raise ValueError(f"model {path.name} is not a safetensors file: {error}") from error
    if header is None:
        raise ValueError(f"model {path.name} has no {HEADER!r} header: save_model did not write it")
    metadata = json.loads(header)
    _check_metadata(path, metadata)
    return metadata


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a model that does not tell how its pixels were made and what it was trained on."""
    if absent := [key for key in REQUIRED_METADATA if key not in metadata]:
        wanted = ", ".join(REQUIRED_METADATA)
        raise ValueError(f"model {path.name} must tell {wanted}; missing {absent}")
    told = metadata["training_data"]
    if not (isinstance(told, Mapping) and {"dataset", "demo"} <= set(told)):
        raise ValueError(
            f"model {path.name} must tell the data set it was trained on and whether that is "
            f"synthetic, found training_data {told!r}"
        )


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a network from the file that :func:`save_model` wrote.

    Args:
        path: ``.safetensors`` file.

    Returns:
        The network in evaluation mode on the CPU, and the metadata (``architecture`` included).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, not one of ours, its weights do not fit the
            architecture it names, or they are not those it was saved with.
    """
    path, metadata = Path(path), read_metadata(path)
    state = load_file(path)
    model = build_model(metadata["architecture"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"model {path.name}: weights do not fit {metadata['architecture']}: {error}"
        ) from error
    if weights_hash(model) != metadata.get("weights_hash"):
        raise ValueError(
            f"model {path.name} was altered: its weights are not those it was saved with"
        )
    return model.eval(), metadata


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | torch.Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"a configuration holds plain values, got {type(value).__name__}")
