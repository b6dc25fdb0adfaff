"""Trainings of the cross-sampling paper: the data once, then one call a training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from iqa_utils import metrics
from iqa_utils.backbones import freeze_batch_statistics
from iqa_utils.features.frozen_stem import stem_activations, stem_batches
from iqa_utils.images import ImageStore, augment
from iqa_utils.losses import range_weighted_mse
from iqa_utils.models.branch import count_parameters
from iqa_utils.models.dual_xception import DualXception
from iqa_utils.models.koncept import KonCept
from iqa_utils.regression import Ridge, ridge_cv
from iqa_utils.samplers import MOS_EDGES, cross_sample
from iqa_utils.studies.sampling_setup import (
    INDICATORS,
    SELECT,
    Recipe,
    Runs,
    Scenario,
    Training,
    standardise,
)
from iqa_utils.training import (
    FitResult,
    constant_then_halved,
    fit,
    mean_loss,
    predict,
    save_model,
)
from iqa_utils.training.batches import Batch, store_batches
from iqa_utils.training.checkpoints import data_digest

STRONG = partial(augment, rotate=5.0, contrast=0.1, noise=2.0)  # degrees, share, grey levels


class Study:
    """Images, indicators, scores and split that all trainings of a study share.

    Args:
        store: Decoded images of one size, N of them.
        mos: Scores, shape (N,), inside ``edges``.
        indicators: Columns :data:`INDICATORS`, N rows; standardised here on the training part.
        split: ``"training"``, ``"validation"`` or ``"test"``, N values.
        recipe: How to train.
        device: Where to train.
        cache_dir: Folder for the output of frozen layers.
        checkpoint_dir: Folder for checkpoints, so that a killed study goes on.
        save_seconds: Time between saved states of a training.
        overrides: Method to what its trainings have instead: ``EPOCHS``, ``PRECISION`` and
            ``COMPILE`` of the recipe, and ``N_RUNS``.
        edges: Edges of the score ranges.

    Raises:
        ValueError: If the lengths differ, a part of the split is empty, or an indicator is not
            finite.
    """

    def __init__(
        self,
        store: ImageStore,
        mos: Sequence[float],
        indicators: pd.DataFrame,
        split: Sequence[str],
        recipe: Recipe,
        *,
        device: torch.device | str = "cpu",
        cache_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        save_seconds: float = 60.0,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        edges: Sequence[float] = MOS_EDGES,
    ) -> None:
        self.store, self.recipe, self.device = store, recipe, torch.device(device)
        self.mos, self.edges = np.asarray(mos, dtype=np.float64), tuple(edges)
        self.checkpoint_dir, self.cache_dir = checkpoint_dir, cache_dir
        self.save_seconds, self.overrides = save_seconds, overrides or {}
        split = np.asarray(split)
        lengths = {len(store), len(self.mos), len(indicators), len(split)}
        if len(lengths) > 1:
            raise ValueError(f"images, scores, indicators and split differ in number: {lengths}")
        parts = ("training", "validation", "test")
        self.rows = {part: np.flatnonzero(split == part) for part in parts}
        empty = [part for part, rows in self.rows.items() if not len(rows)]
        if empty:
            raise ValueError(f"the split has no images for {empty}")
        self.indicators = standardise(indicators, self.rows["training"])  # (N, 4)
        self._done: dict[tuple[Scenario, str, str, int], Training] = {}
        self._activations: Tensor | None = None
        self._ridge: Ridge | None = None

    def train_all(
        self,
        scenarios: Mapping[str, Scenario],
        *,
        n_runs: int,
        select: str,
        seed: int = 0,
        progress: bool = False,
    ) -> Runs:
        """Train every scenario several times; what was trained before is not trained again.

        Args:
            scenarios: Name to scenario.
            n_runs: Runs of each, with the seeds ``seed``, ``seed + 1``, ...
            select: Criterion of the best epoch, a key of :data:`SELECT`.
            seed: First seed.
            progress: Show a bar for each training.

        Returns:
            Predictions on the test part, histories and costs.
        """
        test = self.rows["test"]
        names = [self.store.names[row] for row in test]
        predictions, histories, costs = [], [], []
        for method, scenario in scenarios.items():
            recipe, own = self.recipe_of(method), self.overrides.get(method, {})
            for run in range(seed, seed + own.get("N_RUNS", n_runs)):
                key = (scenario, str(recipe), select, run)
                if key not in self._done:
                    if own:
                        print(f"{method}, seed {run}: {dict(own)}", flush=True)
                    self._done[key] = self.train(
                        scenario, seed=run, select=select, progress=progress, recipe=recipe
                    )
                done, tags = self._done[key], {"method": method, "seed": run}
                columns = {
                    "image": names,
                    "mos": self.mos[test],
                    "pred": done.pred,
                    "split": "test",
                }
                predictions.append(pd.DataFrame(columns).assign(**tags))
                histories.append(done.history.assign(**tags))
                cost = {"images": done.images, "seconds": done.seconds}
                cost |= {"parameters": done.parameters, "best_epoch": done.best_epoch}
                costs.append(
                    {**tags, "network": scenario.network, "sampler": scenario.sampler, **cost}
                )
        return Runs(
            pd.concat(predictions, ignore_index=True),
            pd.concat(histories, ignore_index=True),
            pd.DataFrame(costs),
        )

    def recipe_of(self, method: str) -> Recipe:
        """Return the recipe with what is overridden for one method."""
        own = self.overrides.get(method, {})
        return replace(
            self.recipe, **{key.lower(): value for key, value in own.items() if key != "N_RUNS"}
        )

    def train(
        self,
        scenario: Scenario,
        *,
        seed: int,
        select: str = "total",
        progress: bool = False,
        recipe: Recipe | None = None,
    ) -> Training:
        """Train one network.

        Args:
            scenario: What to train.
            seed: Initial weights, order, draws and augmentation.
            select: Criterion of the best epoch, a key of :data:`SELECT`.
            progress: Show a bar.
            recipe: Another recipe than the study's, equal but for epochs, precision and compiling.

        Returns:
            The training.

        Raises:
            ValueError: If the criterion is unknown.
        """
        recipe = recipe or self.recipe
        model, result = self._fit(scenario, seed, select, progress, recipe)
        pred = self.predict(model, self.rows["test"], recipe.precision)
        return _outcome(result, pred, count_parameters(model))

    def save(
        self,
        path: str | Path,
        method: str,
        scenario: Scenario,
        *,
        dataset: str,
        demo: bool,
        seed: int,
        select: str,
    ) -> Path:
        """Write a trained network for use; one whose checkpoint is there is not trained again.

        Args:
            path: Target, ``.safetensors``.
            method: Name that it was trained under.
            scenario: Which network.
            dataset: Name of the data set, for the header.
            demo: Whether its images are made, likewise.
            seed: Of the training.
            select: Criterion of the best epoch.

        Returns:
            The path.
        """
        recipe, rows = self.recipe_of(method), self.rows["test"]
        model, result = self._fit(scenario, seed, select, progress=False, recipe=recipe)
        pred = self.predict(model, rows, recipe.precision)
        sees = ["image"] if scenario.inputs == "images" else ["image", *INDICATORS]
        preprocessing = {"size": self.store.sizes[0].tolist(), "fit": "squash", "inputs": sees}
        preprocessing |= {"resampler": "bilinear", "scale": "MOS, 0-100"}
        preprocessing |= {"mean": list(self.recipe.mean), "std": list(self.recipe.std)}
        metadata = {
            "preprocessing": preprocessing,
            "training_data": {"dataset": dataset, "demo": demo},
            "scores_seen": [f"{dataset}: training to fit, validation to choose the epoch"],
            "metrics": {"SRCC": metrics.srcc(self.mos[rows], pred), "epoch": result.best_epoch},
        }
        return save_model(path, model, metadata)

    def _fit(
        self, scenario: Scenario, seed: int, select: str, progress: bool, recipe: Recipe
    ) -> tuple[nn.Module, FitResult]:
        if select not in SELECT:
            raise ValueError(f"select must be one of {sorted(SELECT)}, got {select!r}")
        train_rows = self.rows["training"]
        model = self.build(scenario, seed)
        optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            lr=recipe.learning_rate,
            foreach=True,  # the default on a GPU; on a CPU the same bits sooner
        )
        mos = self.mos[train_rows]

        def batches(epoch: int) -> Iterator[Batch]:
            options = {"edges": self.edges, "threshold": recipe.threshold}
            drawn = cross_sample(mos, scenario.sampler, seed=seed, epoch=epoch, **options)
            copies = STRONG if recipe.strong_copies and scenario.sampler == "method3" else None
            return self._batches(train_rows[drawn], seed=seed, epoch=epoch, copies=copies)

        criterion, mode = SELECT[select]
        result = fit(
            model, batches, loss_step=mean_loss(self._loss(scenario)),
            evaluate=lambda network: self._evaluate(network, recipe.precision),
            optimizer=optimizer, epochs=recipe.epochs, select=criterion, mode=mode, seed=seed,
            scheduler=constant_then_halved(optimizer, every=recipe.halve_every),
            precision=recipe.precision, channels_last=recipe.channels_last, compile=recipe.compile,
            checkpoint_dir=self.checkpoint_dir, save_seconds=self.save_seconds,
            config=self._config(scenario, recipe), progress=progress,
        )  # fmt: skip
        return model, result

    def build(self, scenario: Scenario, seed: int, *, plain: bool = False) -> nn.Module:
        """Build the network of a scenario at its start.

        Args:
            scenario: What to build.
            seed: Of the random weights.
            plain: Leave the head random, whatever the recipe says.

        Returns:
            The network, on the device.
        """
        torch.manual_seed(seed)
        recipe, mos = self.recipe, self.mos[self.rows["training"]]
        scale = {"mos_mean": float(mos.mean()), "mos_std": float(mos.std())}
        options = {"pretrained": recipe.pretrained, "frozen": recipe.frozen or None} | scale
        if scenario.network == "koncept":
            model = KonCept(recipe.koncept_backbone, **options)
        else:
            if scenario.inputs == "parameters":
                options["frozen"] = None
            model = DualXception(
                recipe.backbone, inputs=scenario.inputs, fusion=scenario.fusion,
                variant=recipe.variant, pooling=recipe.pooling,
                plane_size=recipe.plane_size or None, **options,
            )  # fmt: skip
            if recipe.ridge_start and scenario.inputs != "parameters" and not plain:
                model.start_from(torch.tensor(self.ridge.weights), self.ridge.intercept)
        if recipe.freeze_statistics and model.image_branch is not None:
            freeze_batch_statistics(model.image_branch)
        return model.to(self.device)

    @property
    def ridge(self) -> Ridge:
        """Ridge regression from untrained image features to the scores of the training part."""
        if self._ridge is None:
            rows = self.rows["training"]
            self._ridge = ridge_cv(self.image_features(rows), self.mos[rows])
        return self._ridge

    @torch.no_grad()
    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return what the image branch makes of images before any training.

        Args:
            rows: Images, n of them.

        Returns:
            Shape (n, F).
        """
        model = self.build(Scenario(inputs="images"), 0, plain=True)
        branch = model.to(memory_format=torch.channels_last).image_branch.eval()
        batches = (batch.to(self.device, channels_last=True) for batch in self._batches(rows))
        return torch.cat([branch(batch.inputs[0]).float().cpu() for batch in batches]).numpy()

    def predict(self, model: nn.Module, rows: np.ndarray, precision: str) -> np.ndarray:
        """Predict the scores of some images, shape (n,)."""
        return predict(model, self._batches(rows), precision=precision)

    def _batches(
        self, rows: np.ndarray, *, seed: int | None = None, epoch: int = 0, copies: Any = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Stream images and indicators; with a seed shuffled and mirrored."""
        recipe = self.recipe
        size = recipe.batch_size if seed is not None else max(recipe.batch_size, 16)
        options = {"batch_size": size, "seed": seed, "epoch": epoch, "device": self.device}
        options["extra_inputs"] = self.indicators
        if recipe.frozen:
            yield from stem_batches(
                self.activations, rows, self.mos, names=self.store.names, **options
            )
            return
        mirror = augment if seed is not None else None
        yield from store_batches(
            self.store, rows, self.mos, augment=mirror, augment_copies=copies, mean=recipe.mean,
            std=recipe.std, **options,
        )  # fmt: skip

    @property
    def activations(self) -> Tensor:
        """Output of the frozen layers, computed when it is first needed."""
        if self._activations is None:
            recipe = self.recipe
            model = DualXception(
                recipe.backbone, inputs="images", frozen=recipe.frozen, pretrained=recipe.pretrained
            ).to(self.device)
            self._activations = stem_activations(
                model.image_branch, self.store, cache_dir=self.cache_dir, mean=recipe.mean,
                std=recipe.std,
            )  # fmt: skip
        return self._activations

    def _loss(self, scenario: Scenario) -> Any:
        if scenario.loss == "mse":
            return mse_loss
        counts = np.histogram(self.mos[self.rows["training"]], self.edges)[0]
        edges = torch.tensor(self.edges, dtype=torch.float32)
        return partial(range_weighted_mse, counts=torch.tensor(counts), edges=edges)

    def _evaluate(self, model: nn.Module, precision: str) -> dict[str, float]:
        rows = self.rows["validation"]
        mos, pred = self.mos[rows], self.predict(model, rows, precision)
        by_range = metrics.per_range(mos, pred, metrics.mse, self.edges)
        return {
            "val_srcc": metrics.srcc(mos, pred),
            "val_plcc": metrics.plcc(mos, pred),
            "val_rmse": metrics.rmse(mos, pred),
            "val_range_sum": float(np.nansum(list(by_range.values()))),
        }

    def _config(self, scenario: Scenario, recipe: Recipe) -> dict[str, Any]:
        return {
            "scenario": asdict(scenario),
            "recipe": asdict(recipe),
            "pixels": self.store.key,
            "data": data_digest(self.rows, self.mos),
            "indicators": hashlib.sha256(self.indicators.numpy().tobytes()).hexdigest(),
            "edges": list(self.edges),
        }


def _outcome(result: FitResult, pred: np.ndarray, parameters: int) -> Training:
    history = result.history
    images, seconds = float(history["images"].mean()), float(history["seconds"].mean())
    return Training(history, result.best_epoch, pred, parameters, images, seconds)
