"""Run notebooks with papermill: parameters checked first, one GPU a kernel, nothing lost.

``papermill --engine iqa`` and ``iqa run`` both go through :class:`IQAEngine`. papermill itself
exits 0 on a misspelt parameter and writes one output a progress update; neither happens here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
import yaml
from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm
from traitlets.config import Config

from iqa_utils.runs import ROOT, publish, run_dir

NOTEBOOKS = ROOT / "notebooks"


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
    """Hold one GPU for the processes started inside, waiting until one is free.

    The lease is an ``flock`` on one file a GPU, so it ends with its process however that dies.
    Where ``CUDA_VISIBLE_DEVICES`` is set (Slurm does), that choice stands and nothing is leased.

    Args:
        poll_seconds: How often to look again while every GPU is taken.

    Yields:
        The index leased, or None where there is nothing to lease.
    """
    gpus = [] if "CUDA_VISIBLE_DEVICES" in os.environ else _gpu_indices()
    if not gpus:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"iqa-gpu-leases-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock, index = _first_free(folder, gpus, poll_seconds)
    os.environ["CUDA_VISIBLE_DEVICES"] = index
    try:
        yield index
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        os.close(lock)


def _first_free(folder: Path, gpus: Sequence[str], poll_seconds: float) -> tuple[int, str]:
    while True:
        for index in gpus:
            lock = os.open(folder / f"gpu{index}.lock", os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock, index
        time.sleep(poll_seconds)


def _gpu_indices() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def notebook_stems() -> list[str]:
    """List the notebooks in their order.

    Returns:
        Names without ending, sorted: ``00_claims_audit`` first.
    """
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(stem: str) -> Path:
    """Return the notebook of a stem, or of its number (``02``).

    Raises:
        ValueError: If none or several fit; names those there are.
    """
    fitting = [s for s in notebook_stems() if s == stem or s.split("_")[0] == stem]
    if len(fitting) != 1:
        raise ValueError(f"no notebook {stem!r}; there are {', '.join(notebook_stems())}")
    return NOTEBOOKS / f"{fitting[0]}.ipynb"


def read_profile(stem: str, profile: str) -> dict[str, Any]:
    """Read the parameter values of a profile; ``demo`` is what the notebook declares.

    Raises:
        FileNotFoundError: If the notebook has no such profile; names those it has.
    """
    path = NOTEBOOKS / "params" / f"{stem}.{profile}.yaml"
    if path.is_file():
        return yaml.safe_load(path.read_text()) or {}
    if profile == "demo":
        return {}
    known = sorted(p.stem.removeprefix(f"{stem}.") for p in path.parent.glob(f"{stem}.*.yaml"))
    raise FileNotFoundError(
        f"{stem} has no profile {profile!r}; it has {', '.join(['demo', *known])}"
    )


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> None:
    """Hold values against the notebook's declared parameters, before any kernel starts.

    Args:
        notebook: The notebook.
        values: Name to value.

    Raises:
        ValueError: If a name is not declared, or a value is not of the declared type. All such
            names are listed, with the names there are.
    """
    declared = papermill.inspect_notebook(str(notebook))
    problems = [
        f"{name} is not one of {', '.join(declared)}" for name in values if name not in declared
    ]
    for name in values.keys() & declared.keys():
        kind = declared[name]["inferred_type_name"]
        try:
            TypeAdapter(eval(kind, {"__builtins__": __builtins__})).validate_python(
                values[name], strict=True
            )
        except ValidationError:
            given = f"{values[name]!r} ({type(values[name]).__name__})"
            problems.append(f"{name} must be {kind}, got {given}")
    if problems:
        raise ValueError(f"{notebook.stem}: " + "; ".join(sorted(problems)))


def run_notebook(
    stem: str,
    *,
    profile: str = "demo",
    parameters: Mapping[str, Any] | None = None,
    publish_results: bool = False,
) -> Path:
    """Run one notebook of one profile from top to bottom.

    Args:
        stem: Notebook, by name or number.
        profile: Values of ``notebooks/params/STEM.PROFILE.yaml``.
        parameters: Values that override the profile's.
        publish_results: Copy figures and metrics to ``figures/`` afterwards (real data only).

    Returns:
        The finished run's folder, which holds the executed notebook too.

    Raises:
        ValueError: If a parameter is unknown or of the wrong type; nothing has been started then.
        RuntimeError: If a cell failed or the kernel died; names the error and the notebook kept.
    """
    notebook = find_notebook(stem)
    stem = notebook.stem
    values = {**read_profile(stem, profile), "PROFILE": profile, **(parameters or {})}
    check_parameters(notebook, values)
    folder = run_dir(stem, values["PROFILE"], values.get("RUN_NAME", ""))
    executed = folder.parent / "unfinished" / f"{folder.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    finished_before = _finish_time(folder)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters=values,
            engine_name="iqa",
            kernel_name="python3",
            progress_bar=False,
            cwd=str(NOTEBOOKS),
        )
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{stem}: {error.ename}: {error.evalue} (cell {error.cell_index}); "
            f"the executed notebook is {executed.relative_to(ROOT)}"
        ) from error
    if _finish_time(folder) == finished_before:
        raise RuntimeError(f"{stem}: ran to its end but wrote no {folder.name}/metrics.json")
    executed.replace(folder / f"{stem}.ipynb")
    if publish_results:
        publish(folder)
    return folder


def run_notebooks(
    stems: Sequence[str],
    *,
    profile: str = "demo",
    parameters: Mapping[str, Any] | None = None,
    publish_results: bool = False,
) -> list[str]:
    """Run several notebooks, one line each, and go on past one that fails.

    Args:
        stems: Notebooks, by name or number; all of them if empty.
        profile: As for :func:`run_notebook`.
        parameters: As for :func:`run_notebook`.
        publish_results: As for :func:`run_notebook`.

    Returns:
        One line for each notebook that failed; empty if all went well.
    """
    notebooks = [find_notebook(stem) for stem in stems or notebook_stems()]
    for notebook in notebooks:
        given = {**read_profile(notebook.stem, profile), **(parameters or {})}
        check_parameters(notebook, given)
    failures = []
    for number, notebook in enumerate(notebooks, start=1):
        start = time.perf_counter()
        tqdm.write(f"[{number}/{len(notebooks)}] {notebook.stem} ...")
        try:
            options = {"parameters": parameters, "publish_results": publish_results}
            folder = run_notebook(notebook.stem, profile=profile, **options)
            outcome = f"done   -> {folder.relative_to(ROOT)}"
        except Exception as error:
            failures.append(str(error))
            outcome = f"FAILED: {error}"
        tqdm.write(f"      {time.perf_counter() - start:6.1f} s  {outcome}")
    return failures


def _finish_time(folder: Path) -> int | None:
    path = folder / "metrics.json"
    return path.stat().st_mtime_ns if path.is_file() else None
