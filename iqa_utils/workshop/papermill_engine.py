"""Our papermill engine: quiet, coalesced streams, one GPU per notebook.

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
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

from filelock import FileLock, Timeout
from jupyter_core.utils import run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.log import logger
from traitlets.config import Config

POLL_SECONDS = 1.0  # between two looks for a free GPU
IDLE_SECONDS = 5.0  # for a kernel to be idle after its last answer


class IQAEngine(NBClientEngine):
    """papermill's engine with coalesced streams, a quiet kernel and one GPU per notebook."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        """Execute a notebook; called by papermill."""
        options.setdefault("coalesce_streams", True)
        options.setdefault("config", Config({"KernelManager": {"transport_encryption": "auto"}}))
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars belong to a screen, not to a log
        options.pop("input_path", None)
        options["startup_timeout"] = options.pop("start_timeout", 60)
        options["timeout"] = options.pop("execution_timeout", None)
        with lease_gpu():
            Client(nb_man, kernel_name=kernel_name, log=logger, **options).execute()


class Client(PapermillNotebookClient):
    """papermill's client, which shuts a kernel down when it has nothing left to do.

    papermill does so as soon as its last request is answered. A kernel that is interrupted between
    its answer and being idle again writes "KeyboardInterrupt caught in kernel" into the log.
    """

    def wait_for_reply(self, msg_id: str, cell: Any = None) -> Any:
        """Wait for the answer to a request, and until the kernel is idle after it."""
        reply = super().wait_for_reply(msg_id, cell)
        next_message = run_sync(self.kc.get_iopub_msg)
        with suppress(Empty):  # a kernel that says no more has ended
            while not _says_idle(next_message(timeout=IDLE_SECONDS), msg_id):
                pass
        return reply


def _says_idle(message: dict[str, Any], msg_id: str) -> bool:
    idle = message["content"].get("execution_state") == "idle"
    return idle and message["parent_header"].get("msg_id") == msg_id


@contextmanager
def lease_gpu() -> Iterator[str | None]:
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
        time.sleep(POLL_SECONDS)
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
