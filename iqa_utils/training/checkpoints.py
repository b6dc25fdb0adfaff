"""Files of trainings: one to go on after a kill, one to use a trained model.

A Ctrl-C waits for the checkpoint.

``last.pt`` holds everything a training needs to go on as if it had never stopped. A
``.safetensors`` file holds a finished network and, in its header, what a user must know about it.
Both are written to a temporary name and moved, and reading either never executes code.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from iqa_utils.backbones import load_tensors, weights_hash
from iqa_utils.files import atomic_write
from iqa_utils.models import build_model

HEADER = "iqa_utils"
REQUIRED_METADATA = ("preprocessing", "training_data", "scores_seen", "metrics")
POSITION = ("batches", "images", "loss_sum", "seconds", "random", "rate")  # inside an epoch


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


class TrainingState:
    """What a killed training needs to go on, and the files that it lies in.

    The weights of epoch E lie in ``best-E.pt`` beside ``last.pt``, which names E: they are written
    before it and those of earlier epochs deleted after it, so the two always belong together.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None
    ) -> None:
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.path: Path | None = None
        self.saved_at, self.written = time.monotonic(), set()
        self.epoch, self.history = 0, []
        self.best: dict[str, Any] = {"epoch": 0, "value": None, "weights": None}
        self.early = self.best  # the best of the first epochs, once they are over
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.batches, self.images, self.loss_sum, self.seconds = 0, 0, torch.zeros(()), 0.0
        self.random: dict[str, Tensor] = {}
        self.rate = 0.0  # the learning rate that the epoch began with

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

    def due(self, save_seconds: float) -> bool:
        """Tell whether it is time to save."""
        return self.path is not None and time.monotonic() - self.saved_at >= save_seconds

    def save(self, *, finished: bool = False) -> float:
        """Write the state, of a finished training only its outcome; return the seconds it took."""
        started = time.perf_counter()
        if self.path is None:
            return 0.0
        kept = {self._weights_of(one): one["weights"] for one in (self.best, self.early)}
        for path, weights in kept.items():
            if weights is not None and path not in self.written:
                save_checkpoint(path, weights)
        best, early = ({**one, "weights": None} for one in (self.best, self.early))
        saved = {"epoch": self.epoch, "history": self.history, "best": best, "early": early}
        if not finished:
            saved |= {name: getattr(self, name) for name in POSITION}
            saved["threads"] = torch.get_num_threads()
            saved |= {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(self.path, saved)
        for path in set(self.path.parent.glob("best-*.pt")) - set(kept):
            path.unlink()
        self.saved_at, self.written = time.monotonic(), set(kept)
        return time.perf_counter() - started

    def open(self, path: Path, epochs: int) -> None:
        """Use this ``last.pt``; go on from what it holds and say where."""
        self.path = path
        if not path.is_file():
            return
        saved = load_checkpoint(path)
        for one in (saved["best"], saved["early"]):
            if one["epoch"]:
                one["weights"] = load_checkpoint(self._weights_of(one))
                self.written.add(self._weights_of(one))
        if saved["epoch"] < epochs:
            then, now = saved.pop("threads"), torch.get_num_threads()
            if then != now:
                warnings.warn(
                    f"this training began with {then} threads and goes on with {now}: sums are "
                    "rounded in another order, so its numbers are not those of one "
                    "uninterrupted run to the last bit",
                    stacklevel=3,
                )
            for name, part in self.parts.items():
                part.load_state_dict(saved.pop(name))
            print(f"resumed at epoch {saved['epoch']}, step {saved['batches']}", flush=True)
        for name, value in saved.items():
            setattr(self, name, value)

    def _weights_of(self, one: dict[str, Any]) -> Path:
        return self.path.with_name(f"best-{one['epoch']}.pt")


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
    for value in model.parameters():
        if half and value.ndim > 1:
            value.data.copy_(value.half())
    header = {"architecture": dict(model.architecture), **metadata}
    header["weights_hash"] = weights_hash(model)
    rounded = {k for k, v in model.named_parameters() if half and v.ndim > 1}
    state = {k: v.detach().to("cpu").contiguous().clone() for k, v in model.state_dict().items()}
    state |= {key: state[key].half() for key in rounded}
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[HEADER])
    except SafetensorError as error:
        raise ValueError(f"model {path.name} is not a safetensors file: {error}") from error
    except KeyError as error:
        raise ValueError(f"model {path.name} has no {HEADER!r} header of save_model") from error
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
        wanted = metadata["architecture"]
        raise ValueError(f"model {path.name}: weights do not fit {wanted}: {error}") from error
    if weights_hash(model) != metadata.get("weights_hash"):
        raise ValueError(
            f"model {path.name} was altered: these are not the weights that were saved"
        )
    return model.eval(), metadata


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"a configuration holds plain values, got {type(value).__name__}")
