"""Run notebooks in batches: parameters checked first, one line per notebook, nothing lost.

papermill itself exits 0 on a misspelt parameter, which then silently runs the default; here every
name and type is checked before a kernel starts.
"""

from __future__ import annotations

import ast
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from iqa_utils.workshop.parameters import wrong_types
from iqa_utils.workshop.publishing import publish
from iqa_utils.workshop.runs import ROOT, resolve, run_dir

NOTEBOOKS = ROOT / "notebooks"


def notebook_stems() -> list[str]:
    """List the notebooks by their names without ending, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(stem: str) -> Path:
    """Return the notebook of a stem, or of its number (``02``)."""
    fitting = [s for s in notebook_stems() if s == stem or s.split("_")[0] == stem]
    if len(fitting) != 1:
        raise ValueError(f"no notebook {stem!r}; there are {', '.join(notebook_stems())}")
    return NOTEBOOKS / f"{fitting[0]}.ipynb"


def read_profile(stem: str, profile: str) -> dict[str, Any]:
    """Read the parameter values of a profile.

    ``demo`` is what the notebook declares, ``rehearsal`` its ``paper`` values under the overlay.

    Raises:
        FileNotFoundError: If the notebook has no such profile; names those it has.
    """
    path = NOTEBOOKS / "params" / f"{stem}.{profile}.yaml"
    if profile == "rehearsal" and stem in (overlay := read_overlay()):
        return {**read_profile(stem, "paper"), **overlay[stem], "PROFILE": profile}
    if path.is_file():
        return yaml.safe_load(path.read_text()) or {}
    if profile == "demo":
        return {}
    known = sorted(p.stem.removeprefix(f"{stem}.") for p in path.parent.glob(f"{stem}.*.yaml"))
    raise FileNotFoundError(
        f"{stem} has no profile {profile!r}; it has {', '.join(['demo', *known])}"
    )


def read_overlay() -> dict[str, dict[str, Any]]:
    """Read what a rehearsal replaces, by ``STEM`` or ``STEM-RUN_NAME``; a stem may have a file."""
    folder = NOTEBOOKS / "params"
    path = folder / "rehearsal.yaml"
    overlay = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for path in sorted(folder.glob("*.rehearsal.yaml")):
        overlay[path.name.split(".")[0]] = yaml.safe_load(path.read_text())
    return overlay


def declared_parameters(notebook: Path) -> dict[str, str]:
    """Read the parameters that a notebook declares: name to annotation as written.

    papermill's own inspection does not see a parameter annotated ``str | None``.
    """
    return {n.target.id: ast.unparse(n.annotation) for n in _declarations(notebook)}


def default_parameters(notebook: Path) -> dict[str, Any]:
    """Read the values that a notebook declares, which are those of the demo."""
    return {n.target.id: ast.literal_eval(n.value) for n in _declarations(notebook)}


def _declarations(notebook: Path) -> list[ast.AnnAssign]:
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.stem}: expected one parameters cell, found {len(tagged)}")
    return [n for n in ast.parse(tagged[0].source).body if isinstance(n, ast.AnnAssign)]


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> None:
    """Refuse values whose names or types the notebook does not declare; all of them are listed."""
    declared = declared_parameters(notebook)
    known = ", ".join(declared)
    problems = [f"{name} is not one of {known}" for name in values if name not in declared]
    kinds = {k: eval(kind, {"Any": Any}) for k, kind in declared.items() if k in values}  # our own
    if problems := problems + wrong_types(kinds, values):
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
        ValueError: If parameters, data, weights or disk would not do; nothing has been started.
        RuntimeError: If a cell failed or the kernel died; names the error and the notebook kept.
    """
    notebook = find_notebook(stem)
    stem = notebook.stem
    values = {**read_profile(stem, profile), "PROFILE": profile, **(parameters or {})}
    check_parameters(notebook, values)
    _check_needs(stem, {**default_parameters(notebook), **values})
    folder = run_dir(stem, values["PROFILE"], values.get("RUN_NAME", ""))
    executed = folder.parent / "unfinished" / f"{folder.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    finished_before = _finish_time(folder)
    # it takes a parameter annotated `str | None` for unknown; names are checked above
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters=values,
            engine_name="iqa",
            kernel_name="python3",
            progress_bar={"leave": False} if sys.stderr.isatty() else False,
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
    if not any(executed.parent.iterdir()):
        executed.parent.rmdir()
    if publish_results:
        publish(folder)
    return folder


def _check_needs(stem: str, values: Mapping[str, Any]) -> None:
    if resolve(values["DATA_ROOT"]) == resolve("data/demo"):
        return  # a notebook makes these data itself, and they are small
    from iqa_utils.workshop.plan import preflight

    if problems := preflight(stem, values):
        raise ValueError(f"{stem} cannot run: " + "; ".join(problems))


@dataclass(frozen=True)
class Outcome:
    """How one notebook of several ended: its run, its seconds, and why it failed, if it did."""

    name: str
    seconds: float
    failure: str = ""


def run_notebooks(
    stems: Sequence[str],
    *,
    profile: str = "demo",
    parameters: Mapping[str, Any] | None = None,
    publish_results: bool = False,
    workers: int = 1,
) -> list[str]:
    """Run several notebooks, or all, by :func:`run_jobs`; returns one line per failure."""
    chosen = [find_notebook(stem).stem for stem in stems or notebook_stems()]
    jobs = [(stem, parameters or {}) for stem in chosen]
    outcomes = run_jobs(jobs, profile=profile, publish_results=publish_results, workers=workers)
    return [one.failure for one in outcomes if one.failure]


def run_jobs(
    jobs: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    profile: str,
    publish_results: bool = False,
    workers: int = 1,
) -> list[Outcome]:
    """Run notebooks, ``workers`` at a time, and go on past one that fails.

    The scoreboard, which reads what the others leave, starts when all others have ended. Parameters
    are checked before anything starts; the rest is as for :func:`run_notebook`.

    Returns:
        How each run ended, in the order of ``jobs``.
    """
    for stem, parameters in jobs:
        check_parameters(find_notebook(stem), {**read_profile(stem, profile), **parameters})
    options = {"profile": profile, "publish_results": publish_results}
    names = ["-".join(filter(None, (stem, p.get("RUN_NAME", "")))) for stem, p in jobs]
    last = [i for i, (stem, _) in enumerate(jobs) if stem.endswith("_scoreboard")]
    first = [i for i in range(len(jobs)) if i not in last]
    done: dict[int, Outcome] = {}
    for group in (first, last):
        for index, outcome in _each(group, [*zip(names, jobs, strict=True)], options, workers):
            done[index] = outcome
            how = f"FAILED: {outcome.failure}" if outcome.failure else "done"
            tqdm.write(f"[{len(done)}/{len(jobs)}] {outcome.seconds:6.1f} s  {outcome.name}: {how}")
    return [done[index] for index in range(len(jobs))]


def _each(indices: Sequence[int], jobs: Sequence[Any], options: Any, workers: int) -> Any:
    """Yield the index and outcome of every job as it ends."""
    if workers == 1 or len(indices) < 2:
        yield from ((index, _outcome(*jobs[index], options)) for index in indices)
        return
    context = multiprocessing.get_context("spawn")
    watch = {"initializer": _end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(workers, mp_context=context, **watch) as pool:
        futures: dict[Future, int] = {
            pool.submit(_outcome, *jobs[index], options): index for index in indices
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _end_with_parent(parent: int) -> None:
    """Let a worker end when its parent is gone, however that ended: its kernel then ends too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _outcome(name: str, job: tuple[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Outcome:
    start, failure = time.perf_counter(), ""
    try:
        run_notebook(job[0], parameters=job[1], **options)
    except Exception as error:
        failure = str(error)
    return Outcome(name, time.perf_counter() - start, failure)


def _finish_time(folder: Path) -> int | None:
    path = folder / "metrics.json"
    return path.stat().st_mtime_ns if path.is_file() else None
