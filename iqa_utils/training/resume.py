"""What a killed training needs to go on, and a Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from iqa_utils.training.checkpoints import load_checkpoint, save_checkpoint


class TrainingState:
    """What a killed training needs to go on."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None
    ) -> None:
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.epoch, self.history = 0, []
        self.best: dict[str, Any] = {"epoch": 0, "value": None, "weights": None}
        self.early = self.best  # the best of the first epochs, once they are over
        self.random: dict[str, Tensor]
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.batches, self.images, self.loss_sum, self.seconds = 0, 0, torch.zeros(()), 0.0
        self.random, self.rate = {}, 0.0  # the learning rate that the epoch began with

    def describe(self) -> dict[str, Any]:
        """Tell apart trainings that differ in what they train and how."""
        model, optimizer = self.parts["model"], self.parts["optimizer"]
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        scheduler = self.parts.get("scheduler")
        options = {} if scheduler is None else scheduler.state_dict()
        schedule = {k: v for k, v in options.items() if isinstance(v, int | float | str | list)}
        return {
            "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
            "trained": [name for name, value in model.named_parameters() if value.requires_grad],
            "optimizer": [type(optimizer).__name__, groups],
            "scheduler": [type(scheduler).__name__, schedule],
        }

    def count(self, loss_sum: Tensor, images: int) -> None:
        """Note a finished batch."""
        self.loss_sum = self.loss_sum.to(loss_sum) + loss_sum
        self.batches, self.images = self.batches + 1, self.images + images

    def pause(self, device: torch.device, seconds: float) -> None:
        """Keep what the rest of the epoch depends on."""
        self.seconds, self.random = seconds, {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            self.random["cuda"] = torch.cuda.get_rng_state(device)

    def was_done(self, number: int, device: torch.device) -> bool:
        """Tell whether a batch was done; the last such batch restores the random state."""
        if self.random and number == self.batches - 1:
            torch.set_rng_state(self.random["cpu"])
            if "cuda" in self.random:
                torch.cuda.set_rng_state(self.random["cuda"], device)
            self.random = {}
        return number < self.batches

    def finish_epoch(self, row: dict[str, float], select: str, mode: str, read_off: int) -> None:
        """Note an epoch and keep its weights if it is the best so far, or of the first ones."""
        self.history.append(row)
        self.epoch += 1
        value, best = row[select], self.best["value"]
        better = best is None or (value < best if mode == "min" else value > best)
        if np.isfinite(value) and better:
            state = self.parts["model"].state_dict()
            weights = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}
            self.best = {"epoch": self.epoch, "value": value, "weights": weights}
        if self.epoch == read_off:
            self.early = self.best
        self._start_epoch()

    def to_dict(self, *, finished: bool) -> dict[str, Any]:
        """Return the state without the best weights; a finished training keeps only its outcome."""
        best, early = ({**one, "weights": None} for one in (self.best, self.early))
        outcome = {"epoch": self.epoch, "history": self.history, "best": best, "early": early}
        if finished:
            return outcome
        position = {
            k: getattr(self, k)
            for k in ("batches", "images", "loss_sum", "seconds", "random", "rate")
        }
        position["threads"] = torch.get_num_threads()
        return outcome | position | {k: part.state_dict() for k, part in self.parts.items()}

    def load(self, saved: dict[str, Any], epochs: int) -> None:
        """Take over a state that was saved."""
        if saved["epoch"] < epochs:
            then, now = saved.pop("threads"), torch.get_num_threads()
            if then != now:
                warnings.warn(
                    f"this training began with {then} threads and goes on with {now}: sums are "
                    "rounded in another order, so its numbers are not those of one "
                    "uninterrupted run to the last bit",
                    stacklevel=4,
                )
            for name, part in self.parts.items():
                part.load_state_dict(saved.pop(name))
        for name, value in saved.items():
            setattr(self, name, value)


class Saver:
    """Writes a state once enough time has passed, and the best weights only when they changed.

    The weights of epoch E lie in ``best-E.pt`` beside ``last.pt``, which names E: they are written
    before it and those of earlier epochs deleted after it, so the two always belong together.

    Args:
        path: Of ``last.pt``; None saves nothing.
        seconds: Time between saved states.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.saved_at, self.written = time.monotonic(), set()

    def due(self) -> bool:
        """Tell whether it is time to save."""
        return self.path is not None and time.monotonic() - self.saved_at >= self.seconds

    def save(self, state: TrainingState, *, finished: bool = False) -> float:
        """Write a state; return the seconds that this took."""
        started = time.perf_counter()
        if self.path is None:
            return 0.0
        kept = {self._best(one["epoch"]): one["weights"] for one in (state.best, state.early)}
        for path, weights in kept.items():
            if weights is not None and path not in self.written:
                save_checkpoint(path, weights)
        save_checkpoint(self.path, state.to_dict(finished=finished))
        for path in set(self.path.parent.glob("best-*.pt")) - set(kept):
            path.unlink()
        self.saved_at, self.written = time.monotonic(), set(kept)
        return time.perf_counter() - started

    def load(self, state: TrainingState, epochs: int) -> None:
        """Take over the state that was saved, and say where an unfinished training goes on."""
        saved = load_checkpoint(self.path)
        for one in (saved["best"], saved["early"]):
            if one["epoch"]:
                one["weights"] = load_checkpoint(self._best(one["epoch"]))
                self.written.add(self._best(one["epoch"]))
        state.load(saved, epochs)
        if state.epoch < epochs:
            print(f"resumed at epoch {state.epoch}, step {state.batches}", flush=True)

    def _best(self, epoch: int) -> Path:
        return self.path.with_name(f"best-{epoch}.pt")


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that it never falls into the middle of a step.

    A second one interrupts at once. Outside the main thread signals cannot be caught and an
    interrupt falls where it falls; the last checkpoint remains.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    earlier = signal.getsignal(signal.SIGINT)

    def handle(*_: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, earlier)

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, earlier)
