"""List notebooks, run them in batches, and publish of a run what everyone may see.

papermill itself exits 0 on a misspelt parameter, which then silently runs the default; here every
name and type is checked before a kernel starts. One line is printed per notebook, and one that
fails stops no other.
"""

from __future__ import annotations

import ast
import base64
import getpass
import io
import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from tqdm import tqdm

from iqa_utils.files import read_mapping, replace_folder, write_json
from iqa_utils.workshop import provenance
from iqa_utils.workshop.runs import ROOT, run_dir, wrong_types

NOTEBOOKS = ROOT / "notebooks"
Request = tuple[str, Mapping[str, Any]]  # stem, parameters
Check = Callable[[str, Mapping[str, Any]], list[str]]  # stem, all values: what stops the run
Outcome = tuple[str, float, str]  # name, seconds, failure
MOST_BYTES = 600_000  # of a published notebook
QUALITIES = ((1000, 128), (900, 64), (720, 32), (560, 16), (400, 8))  # longest side, colours
COMMON_USERS = ("root", "user", "runner")  # name nobody, and are words of other texts
HIDDEN = "Photographs of a data set: shown in the run's own folder, not published."
RELATIVE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_ABSOLUTE = re.compile(r"(?<![\w.:/~<-])/(?:[\w.+@-]+/)+([\w.+@-]*)")


def notebook_stems() -> list[str]:
    """List the notebooks by their names without ending, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(stem: str) -> Path:
    """Return the notebook of a stem, or of its number (``02``)."""
    fitting = [s for s in notebook_stems() if s == stem or s.split("_")[0] == stem]
    if len(fitting) != 1:
        raise ValueError(f"no notebook {stem!r}; there are {', '.join(notebook_stems())}")
    return NOTEBOOKS / f"{fitting[0]}.ipynb"


def notebook_head(stem: str) -> tuple[str, str]:
    """Return title and question of a notebook."""
    title, *lines = nbformat.read(find_notebook(stem), as_version=4).cells[0].source.splitlines()
    return title.removeprefix("# "), " ".join(line[2:] for line in lines if line[:2] == "> ")


def read_profile(stem: str, profile: str) -> dict[str, Any]:
    """Read the parameter values of a profile; one that the notebook does not have is refused.

    ``demo`` is what the notebook declares, ``rehearsal`` its ``paper`` values under the overlay.
    """
    path, known = NOTEBOOKS / "params" / f"{stem}.{profile}.yaml", profiles_of(stem)
    if profile == "rehearsal" and stem in (overlay := read_overlay()):
        return {**read_profile(stem, "paper"), **overlay[stem], "PROFILE": profile}
    if profile not in known:
        raise FileNotFoundError(f"{stem} has no profile {profile!r}; it has {', '.join(known)}")
    return read_mapping(path) if path.is_file() else {}


def profiles_of(stem: str) -> list[str]:
    """List the profiles of a notebook that have a file, after the demo."""
    paths = (NOTEBOOKS / "params").glob(f"{stem}.*.yaml")
    return ["demo", *sorted(path.stem.removeprefix(f"{stem}.") for path in paths)]


def stems_with(profile: str) -> list[str]:
    """List the notebooks that have a profile, which 'all' stands for: 08 is of no paper."""
    if profile == "rehearsal":
        raise ValueError("name the notebooks of a rehearsal, or use `iqa rehearse`")
    profiles = {stem: profiles_of(stem) for stem in notebook_stems()}
    if found := [stem for stem, known in profiles.items() if profile in known]:
        return found
    known = ", ".join(sorted(set().union(*profiles.values())))
    raise ValueError(f"no notebook has a profile {profile!r}; there are {known}")


def read_overlay() -> dict[str, dict[str, Any]]:
    """Read what a rehearsal replaces, by ``STEM`` or ``STEM-RUN_NAME``; a stem may have a file."""
    path = NOTEBOOKS / "params" / "rehearsal.yaml"
    own = sorted(path.parent.glob("*.rehearsal.yaml"))
    overlay = read_mapping(path) if path.is_file() else {}
    return overlay | {path.name.split(".")[0]: read_mapping(path) for path in own}


def declared_parameters(notebook: Path) -> dict[str, str]:
    """Read the parameters that a notebook declares: name to annotation as written."""
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
    unknown = [name for name in values if name not in declared]
    problems = [f"{name} is not one of {', '.join(declared)}" for name in unknown]
    kinds = {k: eval(kind, {"Any": Any}) for k, kind in declared.items() if k in values}  # our own
    if problems := problems + wrong_types(kinds, values):
        raise ValueError(f"{notebook.stem}: " + "; ".join(sorted(problems)))


def checked_values(
    stem: str, profile: str, parameters: Mapping[str, Any], *, publish_results: bool = False
) -> dict[str, Any]:
    """Return the values of a run, or refuse them before anything starts."""
    if (other := parameters.get("PROFILE", profile)) != profile:
        raise ValueError(f"{stem}: a profile brings its values with it; use --profile {other}")
    values = {**read_profile(stem, profile), "PROFILE": profile, **parameters}
    check_parameters(find_notebook(stem), values)
    if publish_results and profile == "rehearsal":
        raise ValueError(f"{stem}: a rehearsal is not published; run it without --publish")
    if publish_results and (name := values.get("RUN_NAME")):
        told = "published figures are those of the run without a name; run it without --publish"
        raise ValueError(f"{stem}: RUN_NAME is {name!r}, and {told}")
    return values


def run_notebook(
    stem: str,
    *,
    profile: str = "demo",
    parameters: Mapping[str, Any] | None = None,
    publish_results: bool = False,
    check: Check | None = None,
) -> Path:
    """Run one notebook of one profile from top to bottom; returns the finished run's folder.

    ``parameters`` override the profile's. What would not do, or what ``check`` finds, is a
    ValueError before anything starts; a failed cell or a dead kernel is a RuntimeError that names
    the error and the notebook kept.
    """
    stem = (notebook := find_notebook(stem)).stem
    values = checked_values(stem, profile, parameters or {}, publish_results=publish_results)
    if problems := check(stem, default_parameters(notebook) | values) if check else []:
        raise ValueError(f"{stem} cannot run: " + "; ".join(problems))
    folder = run_dir(stem, values["PROFILE"], values.get("RUN_NAME", ""))
    executed = folder.parent / "unfinished" / f"{folder.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    finished_before = _finish_time(folder)
    how = {"engine_name": "iqa", "kernel_name": "python3", "cwd": str(NOTEBOOKS)}
    bar = {"leave": False} if sys.stderr.isatty() else False
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters=values, progress_bar=bar, **how
        )
    except PapermillExecutionError as error:
        failed = f"{error.ename}: {error.evalue} (cell {error.cell_index})"
        kept = f"the executed notebook is {executed.relative_to(ROOT)}"
        raise RuntimeError(f"{stem}: {failed}; {kept}") from error
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
    workers: int = 1,
    check: Check | None = None,
) -> list[str]:
    """Run several notebooks, or all, by :func:`run_jobs`; returns one line per failure."""
    jobs = [(find_notebook(stem).stem, parameters or {}) for stem in stems or notebook_stems()]
    how = {"publish_results": publish_results, "workers": workers, "check": check}
    outcomes = run_jobs(jobs, profile=profile, **how)
    return [failure for *_, failure in outcomes if failure]


def run_jobs(
    jobs: Sequence[Request],
    *,
    profile: str,
    publish_results: bool = False,
    workers: int = 1,
    check: Check | None = None,
) -> list[Outcome]:
    """Run notebooks, ``workers`` at a time, and go on past one that fails.

    The scoreboard, which reads what the others leave, starts when all others have ended. Parameters
    are checked before anything starts. Returns how each run ended, in the order of ``jobs``.
    """
    for stem, parameters in jobs:
        checked_values(stem, profile, parameters, publish_results=publish_results)
    options = {"profile": profile, "publish_results": publish_results, "check": check}
    done: dict[int, Outcome] = {}
    for last in (False, True):
        chosen = {i: j for i, j in enumerate(jobs) if j[0].endswith("_scoreboard") == last}
        for index, outcome in _each(chosen, options, workers):
            done[index], (name, seconds, failure) = outcome, outcome
            how = f"FAILED: {failure}" if failure else "done"
            tqdm.write(f"[{len(done)}/{len(jobs)}] {seconds:6.1f} s  {name}: {how}")
    return [done[index] for index in range(len(jobs))]


def _each(
    jobs: Mapping[int, Request], options: Mapping[str, Any], workers: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield the number and outcome of every job as it ends."""
    if workers == 1 or len(jobs) < 2:
        yield from ((index, _outcome(job, options)) for index, job in jobs.items())
        return
    context = multiprocessing.get_context("spawn")
    watch = {"initializer": _end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(workers, mp_context=context, **watch) as pool:
        futures = {pool.submit(_outcome, job, options): index for index, job in jobs.items()}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _end_with_parent(parent: int) -> None:
    """Let a worker end when its parent is gone, however that ended: its kernel then ends too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _outcome(job: Request, options: Mapping[str, Any]) -> Outcome:
    (stem, parameters), start, failure = job, time.perf_counter(), ""
    try:
        run_notebook(stem, parameters=parameters, **options)
    except Exception as error:
        failure = str(error)
    name = "-".join(filter(None, (stem, parameters.get("RUN_NAME", ""))))
    return name, time.perf_counter() - start, failure


def _finish_time(folder: Path) -> int | None:
    path = folder / "metrics.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def publish(folder: Path) -> Path:
    """Copy the public part of a finished run on real data to ``figures/STEM/PROFILE``.

    That is ``metrics.json`` (numbers to nine digits), ``provenance.json``, PNG figures without
    photographs, and the executed notebook as :func:`public_notebook` makes it. A run of a copy
    without git gets the commit here if all files that it used are those here, by their digests.
    """
    name = str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{name} holds no metrics.json: the run did not finish")
    metrics = json.loads((folder / "metrics.json").read_text())
    if metrics["profile"] == "rehearsal":
        raise ValueError(f"{name} is a rehearsal; only real results are published")
    used = json.loads((folder / "provenance.json").read_text())
    if used["demo"]:
        raise ValueError(f"{name} ran on demo data; only real results are published")
    if metrics["parameters"].get("RUN_NAME"):
        raise ValueError(f"{name} has a RUN_NAME; only the run without one is published")
    target = ROOT / "figures" / metrics["stem"] / metrics["profile"]
    new = target.with_name(f".{target.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    figures = [p for p in folder.glob("figures/*.png") if not p.name.startswith("private-")]
    for figure in figures:
        Image.open(figure).convert("RGB").quantize(256).save(new / figure.name, optimize=True)
    rows = [{key: _short(value) for key, value in row.items()} for row in metrics["results"]]
    write_json(new / "metrics.json", metrics | {"results": rows})
    if used["commit"] == "unknown" and provenance.is_current(used):
        used["commit"], used["clean"] = provenance.commit()
    write_json(new / "provenance.json", used)
    if (notebook := folder / f"{metrics['stem']}.ipynb").is_file():
        (new / notebook.name).write_text(public_notebook(notebook), encoding="utf-8")
    replace_folder(new, target)
    return target


def _short(value: object) -> object:
    return float(f"{value:.9g}") if isinstance(value, float) else value


def public_notebook(path: Path) -> str:
    """Return an executed notebook without photographs, paths and names of a machine.

    Cells tagged ``photographs`` lose their outputs; pictures get a palette, of fewer colours and
    pixels the more there are. Relative links lead from ``figures/STEM/PROFILE/``.

    Raises:
        ValueError: If it stays larger than ``MOST_BYTES``.
    """
    for side, colours in QUALITIES:
        notebook = nbformat.read(path, as_version=4)
        kernel = notebook.metadata.get("kernelspec", {})
        notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
            cell.source = without_paths(cell.source)
            if cell.cell_type == "markdown":
                cell.source = RELATIVE_LINK.sub(_from_published, cell.source)
            if "photographs" in tags and cell.get("outputs"):
                cell.outputs = [nbformat.v4.new_output("stream", text=f"{HIDDEN}\n")]
            for output in cell.get("outputs", []):
                _make_public(output, side, colours)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if len(text.encode()) <= MOST_BYTES:
            return text
    raise ValueError(f"{path.name} has more than {MOST_BYTES:,} bytes even with small pictures")


def _from_published(link: re.Match[str]) -> str:
    """Let a link of a file in ``notebooks/`` lead on from ``figures/STEM/PROFILE/``."""
    target = os.path.normpath(f"../../../{NOTEBOOKS.name}/{link[2]}")
    return f"[{link[1]}]({target}{link[3] or ''})"


def without_paths(text: str) -> str:
    """Make paths below the repository relative; keep only the last part of other absolute ones."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return _ABSOLUTE.sub(r"\1", text)


def _make_public(output: nbformat.NotebookNode, side: int, colours: int) -> None:
    output.get("metadata", {}).pop("image/png", None)
    if "text" in output:
        output["text"] = _anonymous(output["text"])
    for kind, content in output.get("data", {}).items():
        if kind == "image/png":
            output["data"][kind] = small_picture(content, side, colours)
        elif isinstance(content, str):
            output["data"][kind] = _anonymous(content)


def _anonymous(text: str) -> str:
    names = {getpass.getuser(): "user", socket.gethostname(): "host"}
    for name, word in names.items():
        if name not in COMMON_USERS:
            text = re.sub(rf"\b{re.escape(name)}\b", word, text)
    return without_paths(text)


def small_picture(png: str, side: int, colours: int) -> str:
    """Shrink a picture in base64 to a longest side in pixels and a palette."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(colours).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
