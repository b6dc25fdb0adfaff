"""Our papermill engine: quiet, coalesced streams, one GPU a kernel.

papermill finds it by its entry point (``papermill --engine iqa``) and imports this module itself;
other code imports ``papermill`` and names the engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from papermill.engines import NBClientEngine
from traitlets.config import Config


class IQAEngine(NBClientEngine):
    """papermill's engine with coalesced streams, a quiet kernel and one GPU leased per kernel."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        """Execute a notebook; called by papermill."""
        options.setdefault("coalesce_streams", True)
        options.setdefault("config", Config({"KernelManager": {"transport_encryption": "auto"}}))
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars belong to a screen, not to a log
        with lease_gpu():
            super().execute_managed_notebook(nb_man, kernel_name, **options)


@contextmanager
def lease_gpu(*, poll_seconds: float = 1.0) -> Iterator[str | None]:
    """Hold one GPU for the processes started inside, waiting until one is free; yields its index.

    The lease is a lock on one file per GPU, so it ends with its process however that dies.
    Where ``CUDA_VISIBLE_DEVICES`` is set (Slurm does), that choice stands and nothing is leased.
    """
    gpus = [] if "CUDA_VISIBLE_DEVICES" in os.environ else _gpu_indices()
    if not gpus:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"iqa-gpu-leases-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    locks = {index: FileLock(folder / f"gpu{index}.lock") for index in gpus}
    while not (index := next(filter(lambda index: _is_free(locks[index]), gpus), "")):
        time.sleep(poll_seconds)
    os.environ["CUDA_VISIBLE_DEVICES"] = index
    try:
        yield index
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        locks[index].release()


def _is_free(lock: FileLock) -> bool:
    """Take a lock if nobody holds it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _gpu_indices() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []
