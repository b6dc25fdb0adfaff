"""Grids of runs: which combinations to run, and what they say together.

A grid file (``workflow/grids/PROFILE.yaml``) names notebooks and, for each, parameters with several
values; every combination is one run. Runs that differ only in ``SEED`` or ``SPLIT`` repeat each
other, those that differ in ``METHODS`` are parts of one comparison: :func:`aggregate` puts them
together into one run that the scoreboard reads like any other.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from iqa_utils.files import read_mapping, write_json
from iqa_utils.workshop import notebooks
from iqa_utils.workshop.runs import DESCRIBED, RESULT_COLUMNS, ROOT, WORDS, run_dir, wrong_types
from iqa_utils.workshop.tables import write_csv

REPEATS = ("SEED", "SPLIT")
PARTS = ("METHODS",)  # what a method gives does not depend on what else is in the list
COUNTS = ("N_RUNS", "N_RUNS_MODELS", "N_SPLITS", "N_SEEDS")  # of a notebook: SEED, SEED + 1, ...
KEYS = ["paper", "table", "method", "dataset", "metric", "data", *DESCRIBED, *WORDS]


class GridRun(NamedTuple):
    """One run of a grid: its notebook, its values and its name (``grid.SEED-1.SPLIT-0``).

    The jobs of the notebooks ``after`` finish first; it holds ``gpus`` GPUs.
    """

    stem: str
    run_name: str
    parameters: Mapping[str, Any]
    after: tuple[str, ...] = ()
    gpus: int = 1


def read_grid(path: str | Path) -> list[GridRun]:
    """Expand a grid file into its jobs: every combination, in the order of the file.

    A notebook has ``grid`` (parameter to list of values), and optionally ``after`` (stems that
    finish first) and ``gpus``. What is unknown or of the wrong type is refused by name.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise FileNotFoundError(f"no grid {path.name}; there are {known}")
    entries, jobs = read_mapping(path), []
    if path.parent == grid_path("paper").parent and path.stem in ("paper", "rehearsal"):
        _add_unlisted(entries, path.stem)
    for stem, entry in entries.items():
        grid = entry.get("grid") if isinstance(entry, dict) else None
        where = f"{path.name}, {stem}:"
        if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
            expected = "`grid` with a list of values for each parameter"
            raise ValueError(f"{where} expected {expected}, found {entry!r}")
        if unknown := set(entry) - {"grid", "after", "gpus"}:
            raise ValueError(f"{where} unknown {sorted(unknown)}")
        after, gpus = entry.get("after", []), entry.get("gpus", 1)
        if wrong := wrong_types({"after": list[str], "gpus": int}, {"after": after, "gpus": gpus}):
            raise ValueError(f"{where} {'; '.join(wrong)}")
        if missing := set(after) - set(entries):
            raise ValueError(f"{where} after {sorted(missing)}, which the grid does not run")
        notebook = notebooks.find_notebook(stem)
        for values in itertools.product(*grid.values()):
            parameters = dict(zip(grid, values, strict=True))
            notebooks.check_parameters(notebook, parameters)
            varied = {key: value for key, value in parameters.items() if len(grid[key]) > 1}
            jobs.append(GridRun(stem, run_name(varied), parameters, tuple(after), gpus))
    check_seeds(jobs, path.stem)
    for (stem, name), count in Counter((job.stem, job.run_name) for job in jobs).items():
        if count > 1:
            told = f"{count} combinations of values would share the run name {name}"
            raise ValueError(f"{path.name}, {stem}: {told}")
    return jobs


def _add_unlisted(entries: dict[str, Any], profile: str) -> None:
    """Let a notebook that has a file of this profile and no entry run once, before 07."""
    files = (notebooks.NOTEBOOKS / "params").glob(f"*.{profile}.yaml")
    added = sorted({path.name.split(".")[0] for path in files} - set(entries))
    for stem, entry in entries.items():
        if added and stem.endswith("_scoreboard"):
            entry["after"] = [*entry.get("after", []), *added]
    entries |= {stem: {"grid": {}, "gpus": int(profile == "paper")} for stem in added}


def check_seeds(jobs: Sequence[GridRun], profile: str) -> None:
    """Refuse repeats that share seeds: ``N`` trainings or splits use ``SEED`` and those after."""
    ranges = defaultdict(list)
    for job in jobs:
        values = notebooks.default_parameters(notebooks.find_notebook(job.stem))
        values |= notebooks.read_profile(job.stem, profile) | dict(job.parameters)
        others = {name: value for name, value in job.parameters.items() if name != "SEED"}
        settings = [values, *values.get("OVERRIDES", {}).values()]
        n_runs = max(one.get(name, 1) for one in settings for name in COUNTS)
        seeds = values["SEED"], values["SEED"] + n_runs - 1
        ranges[job.stem, json.dumps(others, sort_keys=True)].append(seeds)
    for (stem, _), found in ranges.items():
        for (a, last), (b, _) in itertools.pairwise(sorted(found)):
            if b <= last:
                told = f"SEED {a} uses the seeds {a} to {last}, and SEED {b} repeats some of them"
                raise ValueError(f"{profile}.yaml, {stem}: {told}; step SEED by {last - a + 1}")


def run_name(parameters: Mapping[str, Any]) -> str:
    """Name a run after its values: ``grid.NAME-value...``, of letters, digits, ``-`` and ``_``."""
    parts = [f"{name}-{value}" for name, value in parameters.items()]
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in part) for part in parts]
    return ".".join(["grid", *(plain or ["all"])])


def aggregate(stem: str, profile: str, jobs: Sequence[GridRun]) -> Path:
    """Aggregate the finished runs of one notebook in a grid, and say how many are missing.

    Returns:
        Folder ``runs/PROFILE/STEM-grid`` with ``metrics.json`` (the mean over repeats with its 95 %
        t interval, ``n_runs`` repeats) and ``aggregate.csv`` (mean, SD, median and n besides). A
        method in several lists of ``METHODS``, with the same seed, counts once. A broken
        ``metrics.json`` counts as missing.
    """
    mine = [job for job in jobs if job.stem == stem]
    files = {job.run_name: run_dir(stem, profile, job.run_name) / "metrics.json" for job in mine}
    tables = {}
    for job in mine:
        try:
            tables[job.run_name] = _read(job, files[job.run_name])
        except FileNotFoundError:
            continue
        except ValueError as error:
            print(f"left out: {error}")
    done = [job for job in mine if job.run_name in tables]
    if missing := [job.run_name for job in mine if job not in done]:
        print(f"{stem}: {len(done)} of {len(mine)} runs finished, not {', '.join(missing)}")
    if not done:
        raise FileNotFoundError(f"{stem}: no run of the grid has finished")
    read = [table.assign(job=i) for i, table in enumerate(tables.values())]
    rows = pd.concat(read, ignore_index=True)
    # a result of one repeat counts from the first job that has it
    first = rows.groupby([*KEYS, "repeat"], dropna=False)["job"].transform("min")
    summary = _summarise(rows[rows["job"] == first])
    folder = run_dir(stem, profile, "grid")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(summary, folder / "aggregate.csv")
    results = summary.rename(columns={"mean": "value"})[list(RESULT_COLUMNS)]
    results = results.astype(object).where(results.notna(), None)
    results["protocol"] = results["protocol"].map(json.loads)
    parameters = {"PROFILE": profile, "RUN_NAME": "grid", "JOBS": [job.run_name for job in done]}
    content = {"stem": stem, "profile": profile, "parameters": parameters | {"MISSING": missing}}
    write_json(folder / "metrics.json", content | {"results": results.to_dict("records")})
    return folder


def _read(job: GridRun, file: Path) -> pd.DataFrame:
    content = read_mapping(file)
    if "results" not in content:
        raise ValueError(f"{file}: expected `results`, found {', '.join(content) or 'nothing'}")
    table = pd.DataFrame(content["results"], columns=list(RESULT_COLUMNS))
    named = {part.partition("-")[0] for part in job.run_name.split(".")} - {*REPEATS, *PARTS}
    label = " ".join(f"{name}={v}" for name, v in job.parameters.items() if name in named)
    variant = [" ".join(filter(None, (v, label))) for v in table["variant"]]
    repeat = ", ".join(f"{k} {v}" for k, v in job.parameters.items() if k in REPEATS)
    protocol = [json.dumps(one, sort_keys=True) for one in table["protocol"]]
    return table.assign(variant=variant, repeat=repeat, protocol=protocol)


def _summarise(rows: pd.DataFrame) -> pd.DataFrame:
    kinds = {"mean": "mean", "sd": "std", "median": "median", "n_runs": "size"}
    wanted = {name: ("value", kind) for name, kind in kinds.items()}
    wanted |= {"n": ("n", "max"), "pred_spread": ("pred_spread", "min")}
    table = rows.groupby(KEYS, sort=False, dropna=False).agg(**wanted).reset_index()
    reach = stats.t.ppf(0.975, np.maximum(table["n_runs"] - 1, 1))
    half = reach * table["sd"] / np.sqrt(table["n_runs"])  # NA for a single run
    return table.assign(ci_low=table["mean"] - half, ci_high=table["mean"] + half)


def typed(given: Any) -> Any:
    """Read every text in values as YAML: in ``--config parameters=...`` numbers stay text."""
    if isinstance(given, str):
        return yaml.safe_load(given) if given else given
    if isinstance(given, Mapping):
        return {name: typed(value) for name, value in given.items()}
    return [typed(value) for value in given] if isinstance(given, list) else given


def command_line(parameters: Mapping[str, Any]) -> str:
    """Write parameters as ``-p NAME VALUE``, quoted, in YAML, which reads JSON's 1e-05 as text."""
    line = {"default_flow_style": True, "width": float("inf"), "allow_unicode": True}
    values = {k: yaml.safe_dump([v], **line).strip()[1:-1] for k, v in parameters.items()}
    return " ".join(f"-p {name} {shlex.quote(value)}" for name, value in values.items())


def grid_path(profile: str) -> Path:
    """Return the grid file of a profile."""
    return ROOT / "workflow" / "grids" / f"{profile}.yaml"
