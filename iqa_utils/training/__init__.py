"""The one training loop of the project.

:func:`fit` trains any network on any stream of :class:`Batch`, keeps the best epoch by a named
criterion, and can be killed at any moment: started again with the same configuration it goes on
where it stopped and, on the CPU with as many threads, ends with the same numbers to the last bit.
That holds because everything random in an epoch is a function of ``(seed, epoch)``.

Several GPUs: ``make batch`` gives each of them a training of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from iqa_utils.backbones import freeze_batch_statistics
from iqa_utils.training.batches import Batch, epoch_seed, store_batches, tensor_batches
from iqa_utils.training.checkpoints import (
    TrainingState,
    config_key,
    deferred_interrupt,
    load_model,
    save_model,
)

__all__ = [
    "Batch",
    "FitResult",
    "fit",
    "freeze_batch_statistics",
    "load_model",
    "mean_loss",
    "predict",
    "prepare_device",
    "save_model",
    "store_batches",
    "tensor_batches",
]

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECK_EVERY = 50  # batches between looks at the loss on a GPU, where each look waits for the device


def prepare_device(threads: int) -> str:
    """Choose the GPU if there is one, else so many threads of the CPU; return its name for torch.

    On a GPU float32 products may round their factors to TF32.
    """
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        print(f"trains on the CPU, threads: {threads}")
        return "cpu"
    torch.set_float32_matmul_precision("high")
    print(f"trains on {torch.cuda.get_device_name()}, TF32 on, cudnn.benchmark for full batches")
    return "cuda"


@dataclass(slots=True)
class FitResult:
    """Outcome of :func:`fit`.

    Attributes:
        history: One row per epoch: ``epoch`` (from 1), ``train_loss``, ``lr``, ``images``,
            ``seconds`` (training without evaluation), and what ``evaluate`` returned.
        best_epoch: Epoch whose weights the network holds now.
        seconds: Training time of all epochs.
        early: Epoch and weights that a training of ``read_off`` epochs would have ended with.
    """

    history: pd.DataFrame
    best_epoch: int
    seconds: float
    early: tuple[int, dict[str, Tensor]] | None = None

    @property
    def best(self) -> dict[str, float]:
        """Row of the history of the best epoch."""
        return self.history.set_index("epoch").loc[self.best_epoch].to_dict()


def mean_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """Make the usual ``loss_step`` of :func:`fit` from a function of (pred, mos), shapes (B,)."""
    return lambda model, batch: loss(model(*batch.inputs), batch.mos)


def fit(
    model: nn.Module,
    train_batches: Callable[[int], Iterable[Batch]],
    *,
    loss_step: Callable[[nn.Module, Batch], Tensor],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    schedule_each: Literal["epoch", "batch"] = "epoch",
    epochs: int,
    read_off: int = 0,
    select: str = "val_srcc",
    mode: Literal["min", "max"] = "max",
    precision: Precision = "fp32",
    channels_last: bool = False,
    compile: bool = False,  # noqa: A002 - the word users know
    checkpoint_dir: str | Path | None = None,
    save_seconds: float = 60.0,
    config: Mapping[str, Any],
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a network and leave it with the weights of its best epoch.

    Args:
        model: Network, on the device to train on.
        train_batches: Gives the batches of an epoch (counted from 0); the same ones whenever it is
            asked for the same epoch. Torch's own generator is seeded before it is asked; NumPy's
            and Python's global ones are not followed.
        loss_step: Loss of one batch, a scalar, averaged over the batch. State that it keeps between
            batches must live in ``model`` to be resumed.
        evaluate: Metrics after an epoch, computed with the network in evaluation mode.
        optimizer: Optimiser over the network's parameters.
        scheduler: Learning-rate schedule, stepped after every epoch or batch.
        schedule_each: What the schedule counts.
        epochs: Epochs to train.
        read_off: Also keep what a training of so many epochs would have ended with; 0 does not.
        select: Entry of ``evaluate`` that picks the best epoch; the first of equal ones wins.
        mode: Whether ``select`` should be small (``"min"``) or large (``"max"``).
        precision: ``"bf16"`` uses autocast.
        channels_last: Keep images and convolutions in the memory format that is faster for them.
        compile: Compile the network for full batches; with CUDA graphs on a GPU, where small
            batches otherwise wait for kernel launches. Batches of another size and the evaluation
            run eagerly, and the log says so.
        checkpoint_dir: Folder for ``<key>/last.pt`` and the best weights beside it; the key is the
            hash of ``config``, the optimiser, the schedule and the arguments here. None keeps
            nothing. A checkpoint of this configuration is gone on from; another number of threads
            than it began with warns that the last bits will differ.
        save_seconds: Time between saved states, also inside an epoch. The state is saved at the end
            and on an interrupt as well; what is kept of a finished training is its outcome.
        config: Everything else that determines the outcome: data, sizes, initial weights.
        seed: Root seed of what is random in an epoch.
        progress: Show a bar.

    Returns:
        History, best epoch and time.

    Raises:
        FloatingPointError: If a loss is not finite; names epoch, batch and images.
        KeyError: If ``evaluate`` does not return ``select``.
        ValueError: If an epoch has no batches, or ``select`` is never finite.
        KeyboardInterrupt: After Ctrl-C, once the state is saved.
    """
    device = next(model.parameters()).device
    if channels_last:
        model.to(memory_format=torch.channels_last)
    compiled = _Compiled(model) if compile else None
    state = TrainingState(model, optimizer, scheduler)
    if checkpoint_dir is not None:
        arguments = {"epochs": epochs, "seed": seed, "precision": precision, "read_off": read_off}
        arguments |= {"select": [select, mode], "schedule_each": schedule_each}
        key = config_key({"config": dict(config), **arguments, **state.describe()})
        state.open(Path(checkpoint_dir) / key / "last.pt", epochs)

    def train_one_batch(batch: Batch) -> Tensor:
        batch = batch.to(device, channels_last=channels_last)
        network = model if compiled is None else compiled.network_for(batch)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            loss = loss_step(network, batch)
        loss.backward()
        optimizer.step()
        if scheduler is not None and schedule_each == "batch":
            scheduler.step()
        return loss.detach().double() * len(batch)

    kept = "not saved: no checkpoint_dir was given" if state.path is None else "saved"
    every = 1 if device.type == "cpu" else CHECK_EVERY
    bar = tqdm(total=epochs, initial=state.epoch, unit="epoch", disable=not progress)
    with bar, deferred_interrupt() as interrupted:
        while state.epoch < epochs:
            torch.manual_seed(epoch_seed(seed, state.epoch, 0))
            model.train()
            for module in model.modules():
                if getattr(module, "frozen_statistics", False):
                    module.eval()
            full = 0  # images of the first batch
            unseen: list[tuple[int, Batch, Tensor]] = []  # losses that nobody has looked at
            started = time.perf_counter() - state.seconds
            state.rate = state.rate or optimizer.param_groups[0]["lr"]
            for number, batch in enumerate(train_batches(state.epoch)):
                full = len(batch) if number == 0 else full
                if compiled is not None and number == 0:
                    compiled.see(batch)
                if state.was_done(number, device):
                    continue
                torch.backends.cudnn.benchmark = len(batch) == full  # tries every new shape out
                loss_sum = train_one_batch(batch)
                unseen.append((number, replace(batch, inputs=()), loss_sum))
                state.count(loss_sum, len(batch))
                stops = interrupted.is_set() or state.due(save_seconds)
                if stops or len(unseen) >= every:
                    _refuse_infinite(unseen, state.epoch)
                if stops:
                    state.pause(device, time.perf_counter() - started)
                    started += state.save()  # saving is no training
                if stops and interrupted.is_set():
                    raise KeyboardInterrupt(f"training stopped in epoch {state.epoch + 1}, {kept}")
            torch.backends.cudnn.benchmark = False
            _refuse_infinite(unseen, state.epoch)
            if not state.images:
                raise ValueError(f"train_batches gave no batches for epoch {state.epoch}")
            row = {"epoch": state.epoch + 1, "train_loss": state.loss_sum.item() / state.images}
            row |= {"lr": state.rate, "images": state.images}
            row["seconds"] = time.perf_counter() - started
            if scheduler is not None and schedule_each == "epoch":
                scheduler.step()
            if compiled is not None:
                compiled.report()
            row |= {name: float(value) for name, value in evaluate(model.eval()).items()}
            if select not in row:
                raise KeyError(f"select={select!r} is not among {sorted(row)}, see evaluate")
            state.finish_epoch(row, select, mode, read_off)
            if state.due(save_seconds) or interrupted.is_set() or state.epoch == epochs:
                state.save(finished=state.epoch == epochs)
            bar.set_postfix({"loss": f"{row['train_loss']:.4g}", select: f"{row[select]:.4g}"})
            bar.update()
            if interrupted.is_set():
                raise KeyboardInterrupt(f"training stopped after epoch {state.epoch}, {kept}")
    if state.best["weights"] is None:
        raise ValueError(f"no epoch had a finite {select}, so none can be chosen")
    model.load_state_dict(state.best["weights"])
    history = pd.DataFrame(state.history)
    early = (state.early["epoch"], state.early["weights"]) if read_off else None
    return FitResult(history, state.best["epoch"], float(history["seconds"].sum()), early)


@torch.no_grad()  # not inference mode: a store reuses the memory of its batches
def predict(
    model: nn.Module, batches: Iterable[Batch], *, precision: Precision = "fp32"
) -> np.ndarray:
    """Predict a score for every image of a stream, in its order.

    Args:
        model: Network whose output has shape (B,) or (B, 1).
        batches: The images.
        precision: ``"bf16"`` uses autocast.

    Returns:
        Predictions, shape (N,), float64. The network is left in the mode it was in.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    parts = []
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        for batch in batches:
            parts.append(model(*batch.to(device).inputs).reshape(len(batch)).double())
    model.train(was_training)
    return torch.cat(parts).cpu().numpy()


class _Compiled:
    """A graph for the shape of the first batch of an epoch; everything else runs eagerly.

    Dynamo counts recompilations over all networks of a process and at its limit runs the next one
    eagerly; so it forgets here what earlier trainings compiled.
    """

    def __init__(self, model: nn.Module) -> None:
        torch._dynamo.reset()
        counters.clear()
        on_gpu = next(model.parameters()).device.type == "cuda"
        how = "reduce-overhead" if on_gpu else "default"  # the former takes CUDA graphs
        self.model, self.compiled = model, torch.compile(model, mode=how, dynamic=False)
        self.shapes: list[torch.Size] = []
        self.through_graph = self.eager = 0
        self.told = False

    def see(self, batch: Batch) -> None:
        """Note the first batch of an epoch: the shape to compile for."""
        self.shapes = [x.shape for x in batch.inputs]

    def network_for(self, batch: Batch) -> nn.Module:
        """Return what a batch goes through."""
        full = [x.shape for x in batch.inputs] == self.shapes
        self.through_graph, self.eager = self.through_graph + full, self.eager + (not full)
        return self.compiled if full else self.model

    def report(self) -> None:
        """Say once what ran eagerly by design, and whenever it happens what dynamo refused."""
        refused = counters["frames"]["total"] - counters["frames"]["ok"]
        if not self.told:
            print(
                f"compiled for batches of {self.shapes[0][0]}: {self.through_graph} ran through "
                f"the graph; {self.eager} of another size and the evaluation ran eagerly"
            )
            self.told = True
        if refused:
            why = "; ".join(reason.split("\n")[0] for reason in counters["unimplemented"])
            print(f"not compiled, runs eagerly: {refused} functions ({why or 'no reason given'})")
            counters.clear()


def _refuse_infinite(unseen: list[tuple[int, Batch, Tensor]], epoch: int) -> None:
    """Stop where one of the last losses is not finite, naming the images of its batch."""
    if unseen and not torch.stack([loss for *_, loss in unseen]).isfinite().all():
        number, batch, loss = next(one for one in unseen if not one[2].isfinite())
        raise FloatingPointError(
            f"the loss is {loss.item()} in epoch {epoch + 1}, batch {number + 1}: "
            f"images {batch.describe()}, scores {batch.mos.tolist()}"
        )
    unseen.clear()
