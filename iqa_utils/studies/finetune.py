"""Fine-tune an ImageNet network on opinion scores, as ahmed2020 did before tapping it again.

The classifier keeps its 1000 outputs, which are later used as features; one neuron after it
predicts the score. Training sees random crops of the network's input size and nothing else:
resizing would change the quality that is to be learnt.

Two answers to which images: ``strict`` (training contents of the training set) and ``as_written``
(all images of all sets, the test images among them: leaky, and what section 3.2 describes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from iqa_utils.backbones import freeze_batch_statistics, weights_hash
from iqa_utils.features.layers import NETWORKS, Layer, Network, layers_of
from iqa_utils.metrics import rmse, srcc
from iqa_utils.models.scores import scaled_score
from iqa_utils.training import FitResult, fit, mean_loss, predict
from iqa_utils.training.batches import Batch, store_batches
from iqa_utils.training.checkpoints import data_digest
from iqa_utils.workshop.parameters import wrong_types

if TYPE_CHECKING:
    import pandas as pd

    from iqa_utils.images import ImageStore

MODES = ("strict", "as_written")
OVERRIDES = {"EPOCHS": int, "N_STEPS": int, "PRECISION": str, "COMPILE": bool}


class ScoreNetwork(nn.Module):
    """A classifier followed by one neuron that reads a score from its 1000 logits.

    Args:
        network: Images (B, 3, H, W) to logits (B, 1000).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.score = nn.Linear(1000, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores, shape (B,), standardised units."""
        return scaled_score(self.score, self.network(images), 0.0, 1.0)


def freeze_until(network: nn.Module, module: str) -> int:
    """Keep every parameter up to and including a module as it is.

    Args:
        network: Any network whose modules are listed in the order they run.
        module: Name of the last module to freeze, or "" for none.

    Returns:
        Number of parameter tensors frozen.

    Raises:
        ValueError: If the network has no such module, or nothing would be left to train.
    """
    if not module:
        return 0
    if module not in dict(network.named_modules()):
        raise ValueError(f"{type(network).__name__} has no module {module!r} to freeze up to")
    names = [name for name, _ in network.named_parameters()]
    inside = [i for i, name in enumerate(names) if name.startswith(f"{module}.")]
    if not inside or inside[-1] + 1 == len(names):
        raise ValueError(f"freezing up to {module!r} must leave parameters on both sides")
    for _, parameter in list(network.named_parameters())[: inside[-1] + 1]:
        parameter.requires_grad_(False)
    return inside[-1] + 1


def fine_tune(
    network: nn.Module,
    description: Network,
    store: ImageStore,
    scores: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    side: int,
    epochs: int = 30,
    n_steps: int = 0,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    frozen_until: str = "",
    freeze_batch_norm: bool = False,
    precision: str = "fp32",
    compile: bool = False,  # noqa: A002 - the word users know
    device: torch.device | str = "cpu",
    checkpoint_dir: str | Path | None = None,
    save_seconds: float = 60.0,
    seed: int = 0,
    progress: bool = False,
) -> tuple[nn.Module, FitResult]:
    """Train a network on random crops and leave it with the weights of its best epoch.

    Args:
        network: Network of :func:`iqa_utils.features.layers.create_network`.
        description: Its row of :data:`iqa_utils.features.layers.NETWORKS`: normalisation.
        store: Decoded images, of any sizes.
        scores: Standardised scores of the whole store, shape (N,).
        train: Rows to train on.
        validation: Rows that pick the best epoch by SRCC on their central crops.
        side: Crop height and width, pixels.
        epochs: Passes; every image gives one random crop a pass.
        n_steps: Optimiser steps in place of ``epochs``, the last pass being cut short; 0: none.
        learning_rate: Of Adam.
        batch_size: Images a step.
        frozen_until: Module for :func:`freeze_until`.
        freeze_batch_norm: Keep the stored statistics of batch normalisation.
        precision: For :func:`iqa_utils.training.fit`.
        compile: For :func:`iqa_utils.training.fit`.
        device: Where to train; the returned network stays there.
        checkpoint_dir: Folder to resume from, or None.
        save_seconds: For :func:`iqa_utils.training.fit`.
        seed: Of the crops, their order and the new neuron.
        progress: Show a bar.

    Returns:
        The trained network without the added neuron, and the training's history with columns
        ``val_srcc`` and ``val_rmse`` (standardised units).

    Raises:
        ValueError: If training and validation rows overlap, or a crop does not fit an image.

    Note:
        Section 3.2 trains 30 epochs at 1e-4, section 3.3 says 1,000 iterations at 3e-3, section 4.5
        30 epochs of batches of 16: the first and last agree and are the defaults.
    """
    train, validation = np.asarray(train), np.asarray(validation)
    shared = np.intersect1d(train, validation)
    if len(shared):
        raise ValueError(f"{len(shared)} images are in training and validation, row {shared[0]}")
    weights = weights_hash(network)
    torch.manual_seed(seed)
    model = ScoreNetwork(network).to(device)
    freeze_until(model.network, frozen_until)
    if freeze_batch_norm:
        freeze_batch_statistics(model)
    common = {"crop": (side, side), "mean": description.mean, "std": description.std}
    common |= {"batch_size": batch_size, "device": device}

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = store_batches(store, validation, scores, **common)
        pred, mos = predict(model, batches, precision=precision), scores[validation]
        return {"val_srcc": srcc(mos, pred), "val_rmse": rmse(mos, pred)}

    epoch_steps = max(1, len(train) // batch_size + (len(train) % batch_size > 1))
    if n_steps:
        epochs = -(-n_steps // epoch_steps)

    def train_batches(epoch: int) -> Iterator[Batch]:
        batches = store_batches(store, train, scores, seed=seed, epoch=epoch, **common)
        return islice(batches, n_steps - epoch * epoch_steps if n_steps else None)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    result = fit(
        model,
        train_batches,
        loss_step=mean_loss(mse_loss),
        evaluate=evaluate,
        optimizer=torch.optim.Adam(trainable, lr=learning_rate),
        epochs=epochs,
        precision=precision,
        channels_last=True,
        compile=compile,
        checkpoint_dir=checkpoint_dir,
        save_seconds=save_seconds,
        config={
            "network": description.name,
            "weights": weights,
            "pixels": store.key,
            "data": data_digest({"training": train, "validation": validation}, scores),
            "side": side,
            "steps": n_steps,
            "batch_size": batch_size,
            "frozen": [frozen_until, freeze_batch_norm],
        },
        seed=seed,
        progress=progress,
    )
    model.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
    return network.requires_grad_(True), result


def tuning_rows(
    frame: pd.DataFrame, parts: np.ndarray, mode: str, datasets: Sequence[str], *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images that a network is fine-tuned on, and those that pick its best epoch.

    Args:
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        parts: Part of each row, from :func:`iqa_utils.studies.deep_quality.split_sets`.
        mode: ``"strict"`` or ``"as_written"``.
        datasets: Training sets; all sets in mode ``"as_written"``, whatever is given.
        whole: Whether the test part of the training sets is trained on as well: so where the test
            is on other sets.

    Returns:
        Training and validation rows.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    leaky = mode == "as_written"
    inside = np.full(len(frame), True) if leaky else frame["dataset"].isin(datasets).to_numpy()
    chosen = parts != "validation" if leaky or whole else parts == "training"
    return np.flatnonzero(inside & chosen), np.flatnonzero(inside & (parts == "validation"))


def check_choices(
    *,
    tapped: Sequence[str],
    tuned: Sequence[str],
    final: Sequence[str],
    modes: Sequence[str],
    frozen_until: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, int | str | bool]],
) -> Layer:
    """Refuse choices of networks, layers and modes that would fail hours later, or do nothing.

    Args:
        tapped: Networks whose layers are compared.
        tuned: Networks that are fine-tuned; each is tapped as well.
        final: Network and layer of the final method.
        modes: Out of :data:`MODES`.
        frozen_until: Network to the module for :func:`freeze_until`.
        overrides: Network to values of :data:`OVERRIDES` for its fine-tunings.

    Returns:
        The final layer.

    Raises:
        ValueError: If a list is empty or names something twice, a network, layer, mode or override
            is unknown, the final layer gives no vector, or a network that is not fine-tuned is
            frozen or overridden.
    """
    lists = {"networks tapped": tapped, "networks fine-tuned": tuned, "modes": modes}
    for what, names in lists.items():
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{what}: expected at least one and none twice, got {list(names)}")
    known = {"networks tapped": NETWORKS, "networks fine-tuned": tapped, "modes": MODES}
    for what, names in lists.items():
        if unknown := [name for name in names if name not in known[what]]:
            raise ValueError(f"{what}: {unknown} are not among {sorted(known[what])}")
    if len(final) != 2 or final[0] not in NETWORKS:
        raise ValueError(f"final must be a network of the map and a layer, got {list(final)}")
    layers = {layer.name: layer for layer in layers_of(final[0])}
    vectors = [name for name, layer in layers.items() if layer.is_vector]
    if final[1] not in vectors:
        raise ValueError(f"final layer of {final[0]} must be one of {vectors}, got {final[1]!r}")
    for what, names in {"frozen_until": frozen_until, "overrides": overrides}.items():
        if idle := sorted(set(names) - {*tuned, final[0]}):
            raise ValueError(f"{what} names {idle}, which are not fine-tuned")
    for name, values in overrides.items():
        kinds = {key: kind for key, kind in OVERRIDES.items() if key in values}
        if wrong := wrong_types(kinds, values) + sorted(set(values) - set(kinds)):
            raise ValueError(f"overrides of {name}: {wrong}; there are {list(OVERRIDES)}")
    return layers[final[1]]


class Tuner:
    """Fine-tunes networks on demand, never twice on the same images, and holds one at a time.

    Args:
        build: Makes the pre-trained network of a key of
            :data:`iqa_utils.features.layers.NETWORKS`.
        store: Images of ``frame``, in its order.
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        parts: Part of each row.
        checkpoint_dir: Where finished networks wait: the last one asked for stays in memory.
        side: Crop height and width in pixels; 0 is each network's own.
        frozen_until: Key of network to the module for :func:`freeze_until`.
        overrides: Key of network to values of :data:`OVERRIDES` that replace ``options``.
        **options: For :func:`fine_tune`.

    Attributes:
        histories: One table a training, with ``network``, ``mode`` and ``trained on``.
    """

    def __init__(
        self,
        build: Callable[[str], nn.Module],
        store: ImageStore,
        frame: pd.DataFrame,
        parts: np.ndarray,
        *,
        checkpoint_dir: str | Path,
        side: int = 0,
        frozen_until: Mapping[str, str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self.build, self.store, self.frame, self.parts = build, store, frame, parts
        self.side, self.frozen_until, self.overrides = side, frozen_until or {}, overrides or {}
        self.options = {**options, "checkpoint_dir": checkpoint_dir}
        self.histories: list[pd.DataFrame] = []
        self._trained: set[tuple[str, bytes]] = set()
        self._last: tuple[tuple[str, bytes], nn.Module] | None = None

    def __call__(
        self, name: str, mode: str, datasets: Sequence[str], *, whole: bool = False
    ) -> nn.Module:
        """Return the network fine-tuned on the images of :func:`tuning_rows`."""
        rows = tuning_rows(self.frame, self.parts, mode, datasets, whole=whole)
        key = (name, rows[0].tobytes())
        if self._last is None or self._last[0] != key:
            self._last = None  # freed before the next one is built
            description = NETWORKS[name]
            changed = {k.lower(): value for k, value in self.overrides.get(name, {}).items()}
            trained_on = "all sets" if mode == "as_written" else "+".join(datasets)
            if key not in self._trained:
                told = "".join(f", {k} {value}" for k, value in changed.items())
                print(f"{name}, {mode}, {trained_on}: {len(rows[0])} images{told}", flush=True)
            network, result = fine_tune(
                self.build(name),
                description,
                self.store,
                self.frame["mos_z"].to_numpy(),
                *rows,
                side=self.side or description.side,
                frozen_until=self.frozen_until.get(name, ""),
                **{**self.options, **changed},
            )
            self._last = (key, network)
            if key not in self._trained:
                self._trained.add(key)
                labels = {"network": name, "mode": mode, "trained on": trained_on}
                self.histories.append(result.history.assign(**labels))
        return self._last[1]
