"""One run of one notebook: its folder, parameters, seeds, provenance and results.

A notebook starts with :func:`start_run` and ends with :meth:`Run.finish`, which writes
``metrics.json`` last: its presence is what "finished" means. Until then a run works in a hidden
folder beside the final one, so that a rerun replaces the earlier results in one rename and a killed
run finds its checkpoints again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iqa_utils.workshop import provenance
from iqa_utils.workshop.parameters import wrong_types

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ("PROFILE", "DATA_ROOT", "PRETRAINED", "RUN_NAME", "SEED")
RESULT_COLUMNS = (
    "paper", "table", "method", "dataset", "metric", "value",
    "ci_low", "ci_high", "n", "n_runs", "sd", "variant", "data",
    "network", "weights", "recipe", "protocol", "kind", "baseline", "pred_spread",
    "stage", "layer", "regressor", "subset",
)  # fmt: skip
DESCRIBED = ("network", "weights", "recipe", "protocol", "kind")
PREDICTION_COLUMNS = ("image", "dataset", "split", "seed", "method", "variant", "mos", "pred")
_ATTEMPTS = "attempts.json"


def resolve(path: str | Path) -> Path:
    """Resolve a path against the repository, so that no notebook depends on where it is started."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else ROOT / path


def cache_dir(name: str = "") -> Path:
    """Return the folder of what can be computed again (image stores, features), making it."""
    folder = ROOT / "runs" / "cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def notebook_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Collect a notebook's parameters and hold each to the type it was declared with.

    The parameters cell declares annotated UPPER_CASE literals; papermill writes other values after
    it. Values are checked, never converted: YAML's ``1e-3`` is a string and is refused here.

    Args:
        namespace: ``globals()`` of the notebook.

    Returns:
        Name to value, in the order of declaration.

    Raises:
        KeyError: If a parameter that every notebook has is not declared.
        TypeError: If a value is not of its declared type; all such parameters are named.
    """
    declared = {k: v for k, v in namespace.get("__annotations__", {}).items() if k.isupper()}
    absent = [name for name in REQUIRED if name not in declared]
    if absent:
        raise KeyError(f"the parameters cell must declare {', '.join(absent)} with a type")
    if wrong := wrong_types(declared, namespace):
        raise TypeError("; ".join(wrong))
    return {name: namespace[name] for name in declared}


def run_dir(stem: str, profile: str, run_name: str = "") -> Path:
    """Return the folder of a finished run: ``runs/PROFILE/STEM[-RUN_NAME]``.

    Args:
        stem: Notebook name without its ending.
        profile: Profile name.
        run_name: Tells several runs of one notebook and profile apart.

    Raises:
        ValueError: If a part holds anything but letters, digits, ``.``, ``_`` and ``-``.
    """
    for label, part in (("stem", stem), ("PROFILE", profile), ("RUN_NAME", run_name)):
        plain = part.replace("-", "").replace("_", "").replace(".", "")
        if (part and not plain.isalnum()) or (not part and label != "RUN_NAME"):
            raise ValueError(
                f"{label} must be made of letters, digits, '.', '_' and '-', got {part!r}"
            )
    return ROOT / "runs" / profile / (f"{stem}-{run_name}" if run_name else stem)


def start_run(stem: str, parameters: Mapping[str, Any], *, paper: str = "") -> Run:
    """Open the folder of a run, seed every generator and start its clock.

    Args:
        stem: Notebook name without its ending.
        parameters: From :func:`notebook_parameters`.
        paper: Ledger key that results belong to unless they say otherwise.

    Returns:
        The run. Work that an earlier, killed run of the same name left (its checkpoints) is found
        again in ``run.checkpoints_dir``.

    Raises:
        ValueError: If the folder name would not be plain.
        RuntimeError: If another process works on the same run.
    """
    return Run(stem, dict(parameters), paper)


class Run:
    """What one execution of a notebook leaves behind.

    Attributes:
        stem: Notebook name.
        parameters: As given.
        paper: Default ledger key of results.
        dir: Folder being written: hidden until :meth:`finish`, final afterwards.
        results: One dictionary a result, with the keys of ``RESULT_COLUMNS``.
    """

    def __init__(self, stem: str, parameters: dict[str, Any], paper: str) -> None:
        self.stem, self.parameters, self.paper = stem, parameters, paper
        self.final_dir = run_dir(stem, parameters["PROFILE"], parameters["RUN_NAME"])
        self.dir = self.final_dir.parent / f".{self.final_dir.name}.partial"
        self.results: list[dict[str, Any]] = []
        self.fingerprints: dict[str, dict[str, Any]] = {}
        self.weights: dict[str, dict[str, str]] = {}
        self.described: dict[str, Any] = {"protocol": {}}
        self.dir.mkdir(parents=True, exist_ok=True)
        _take_lock(self.dir / "lock")
        self.checkpoints_dir.mkdir(exist_ok=True)
        self.figures_dir.mkdir(exist_ok=True)
        self._earlier = _killed_attempts(self.dir)
        self._started, self._commit = time.perf_counter(), provenance.commit()
        self._files = provenance.code_files()  # the code that is loaded now
        seed_everything(parameters["SEED"])

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of checkpoints, which outlive a killed run."""
        return self.dir / "checkpoints"

    @property
    def figures_dir(self) -> Path:
        """Folder of figures."""
        return self.dir / "figures"

    def use_data(self, frame: pd.DataFrame, *, pixels: str = "") -> pd.DataFrame:
        """Note in the provenance which score table was used, and which pixels.

        Args:
            frame: From :func:`iqa_utils.datasets.load_scores`.
            pixels: Key of the image store that holds its images, where they are read.

        Returns:
            The same table.
        """
        attrs = frame.attrs
        self.fingerprints[attrs["dataset"]] = {
            "rows": len(frame),
            "fingerprint": attrs["fingerprint"],
            "table": provenance.table_digest(frame),
            "pixels": pixels,
            "demo": bool(attrs["demo"]),
        }
        return frame

    def use_weights(self, name: str, *, source: str, digest: str) -> None:
        """Note in the provenance which weights a network started from.

        Args:
            name: Of the network.
            source: Where they came from: ``"hub"``, ``"shipped"``, ``"random"`` or a file.
            digest: From :func:`iqa_utils.backbones.weights_hash`.
        """
        self.weights[name] = {"source": Path(source).name, "digest": digest}

    def save_figure(self, figure: Figure, name: str, *, photographs: bool = False) -> Path:
        """Write a figure as PNG and PDF, byte for byte the same on every repeat.

        Args:
            figure: Matplotlib figure.
            name: File name without its ending.
            photographs: True where the figure shows images of a data set; such a figure is named
                ``private-...`` and never published.

        Returns:
            Path of the PNG.
        """
        name = f"private-{name}" if photographs else name
        png = self.figures_dir / f"{name}.png"
        figure.draw_without_rendering()  # lays out once; laying out again would move things
        figure.set_layout_engine("none")
        figure.savefig(png, dpi=150, bbox_inches="tight", metadata={"Software": None})
        empty = {"CreationDate": None, "Producer": None, "Creator": None}
        figure.savefig(png.with_suffix(".pdf"), bbox_inches="tight", metadata=empty)
        return png

    def describe(self, **fields: Any) -> None:
        """Say once what the results that follow are, where they do not say otherwise.

        Args:
            **fields: Of :data:`DESCRIBED`: ``network``, ``weights`` (what it started from),
                ``recipe`` (``"paper"``, ``"released"`` or another named variant), ``protocol``, a
                mapping (``split``, ``select``, ``epochs`` or ``steps``, ``crops``, ...), and
                ``kind``: ``"re-tabulated"``, ``"arithmetic"``, ``"authors' predictions"`` or
                ``"trained here"``. Words that equal the paper's stand in ANSWERS of
                ``iqa_utils/workshop/papers/KEY.py``; a result is judged only where they agree.

        Raises:
            ValueError: If a field is unknown.
        """
        if unknown := sorted(set(fields) - set(DESCRIBED)):
            raise ValueError(f"a result is described by {DESCRIBED}, got {unknown}")
        self.described |= fields

    def add_result(
        self,
        *,
        table: str,
        method: str,
        dataset: str,
        metric: str,
        value: float,
        data: str,
        n_runs: int = 1,
        variant: str = "",
        baseline: str = "",
        paper: str | None = None,
        **more: Any,
    ) -> None:
        """Add one number.

        Args:
            table: Table, figure or ``"text"`` of the paper, spelt as in the ledger; a word of our
                own (``"control"``) for numbers the paper does not have.
            method: Row of that table, spelt as in the ledger.
            dataset: Data set, spelt as in the ledger.
            metric: Our name of the metric (``SRCC``, ``RMSE 0-20``).
            value: The number, finite.
            data: ``"demo"`` or the name of the real set it was measured on.
            n_runs: Runs or splits behind the number.
            variant: ``"paper"``, ``"released"``, ``"corrected"`` or another named option.
            baseline: Method that was subtracted, where the number is a difference.
            paper: Ledger key, where it is not the run's own.
            **more: ``ci_low`` and ``ci_high`` (95 %), ``n`` (images), ``sd`` over the runs,
                ``pred_spread`` (SD of the predictions over that of the scores, zero where they are
                constant) and the fields of :meth:`describe`; None is as if not given.

        Raises:
            TypeError: If a further name is unknown.
            ValueError: If a number is not finite.
        """
        given = {key: v for key, v in more.items() if v is not None}
        if unknown := sorted(set(given) - set(RESULT_COLUMNS)):
            raise TypeError(f"a result has the fields {RESULT_COLUMNS}, got {unknown}")
        row = dict.fromkeys(RESULT_COLUMNS) | self.described | given
        row |= {"table": table, "method": method, "dataset": dataset, "metric": metric}
        row |= {"value": value, "n_runs": int(n_runs), "variant": variant, "baseline": baseline}
        row |= {"data": data, "paper": self.paper if paper is None else paper}
        row["n"] = None if row["n"] is None else int(row["n"])
        for key in ("value", "ci_low", "ci_high", "sd", "pred_spread"):
            if row[key] is not None and not math.isfinite(row[key]):
                raise ValueError(f"{table}, {method}, {dataset}, {metric}: {key} is {row[key]}")
            row[key] = None if row[key] is None else float(row[key])
        for key in DESCRIBED:
            row[key] = row[key] or ({} if key == "protocol" else "")
        self.results.append({key: row[key] for key in RESULT_COLUMNS})

    def add_results(self, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> None:
        """Add several numbers: a table or dictionaries with the names of :meth:`add_result`."""
        records = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        for record in records:
            given = {k: v for k, v in record.items() if not (v is None or v != v)}
            self.add_result(**given)

    def add_seconds(self, seconds: float) -> None:
        """Count work that an earlier run did and this one found in a cache."""
        self._earlier["seconds"] += seconds

    def save_predictions(self, frame: pd.DataFrame) -> None:
        """Write ``predictions.parquet``: everything figures can be drawn from again.

        Args:
            frame: One row a prediction with ``PREDICTION_COLUMNS``; further columns are kept.

        Raises:
            ValueError: If a column is missing or a prediction is not finite.
        """
        absent = [c for c in PREDICTION_COLUMNS if c not in frame.columns]
        if absent:
            raise ValueError(f"predictions lack the columns {absent}")
        bad = frame.index[~np.isfinite(frame["pred"].to_numpy(dtype=float))]
        if len(bad):
            raise ValueError(f"{len(bad)} predictions are not finite, first {frame.loc[bad[0]]}")
        _write_parquet(frame, self.dir / "predictions.parquet")

    def save_history(self, frame: pd.DataFrame) -> None:
        """Write ``history.parquet``: one row an epoch of every training."""
        _write_parquet(frame, self.dir / "history.parquet")

    def finish(self) -> Path:
        """Write provenance and ``metrics.json``, then put the run in its place.

        The seconds are those of this execution and of earlier ones that were killed, each up to the
        last file it left: a run that found its checkpoints again was not fast.

        Returns:
            The final folder.
        """
        seconds = round(self._earlier["seconds"] + time.perf_counter() - self._started, 1)
        write_json(self.dir / "provenance.json", self._provenance(seconds))
        metrics = {
            "stem": self.stem,
            "profile": self.parameters["PROFILE"],
            "parameters": portable(self.parameters),
            "results": self.results,
        }
        write_json(self.dir / "metrics.json", metrics)
        if self.dir != self.final_dir:
            (self.dir / "lock").unlink()
            (self.dir / _ATTEMPTS).unlink()
            _replace_folder(self.dir, self.final_dir)
            self.dir = self.final_dir
        print(
            f"{self.stem}: {len(self.results)} results in {seconds:.0f} s -> {_relative(self.dir)}"
        )
        return self.dir

    def _provenance(self, seconds: float) -> dict[str, Any]:
        seen = [data["demo"] for data in self.fingerprints.values()]
        return {
            "stem": self.stem,
            "commit": self._commit[0],
            "clean": self._commit[1],
            "files": provenance.used_files(self.stem, self._files),
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": provenance.packages(),
            "machine": provenance.machine(),
            "device": provenance.device_name(),
            "seed": self.parameters["SEED"],
            "parameters": portable(self.parameters),
            "data": self.fingerprints,
            "weights": self.weights,
            "demo": bool(seen) and all(seen),  # false where no data set was read
            "seconds": seconds,
            "killed_attempts": self._earlier["killed"],
        }


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def portable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Replace absolute paths in parameters by their last part, which means the same elsewhere."""
    return {
        k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v
        for k, v in parameters.items()
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name and move it into place; NaN is refused."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False, default=_plain) + "\n")
    partial.replace(path)


def publish(folder: Path) -> Path:
    """Copy what may be public of a run on real data to ``figures/STEM/PROFILE``.

    Args:
        folder: A finished run.

    Returns:
        The folder written: PNG figures, ``metrics.json`` and ``provenance.json``. Figures that show
        photographs stay behind.

    Raises:
        FileNotFoundError: If the run has not finished.
        ValueError: If it ran on demo data only.
    """
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(
            f"{_relative(folder)} holds no metrics.json: the run did not finish"
        )
    provenance = json.loads((folder / "provenance.json").read_text())
    if provenance["demo"]:
        raise ValueError(f"{_relative(folder)} ran on demo data; only real results are published")
    metrics = json.loads((folder / "metrics.json").read_text())
    if metrics["profile"] == "rehearsal":
        raise ValueError(f"{_relative(folder)} is a rehearsal; only real results are published")
    target = ROOT / "figures" / metrics["stem"] / metrics["profile"]
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for figure in sorted((folder / "figures").glob("*.png")):
        if not figure.name.startswith("private-"):
            shutil.copy(figure, partial)
    for name in ("metrics.json", "provenance.json"):
        shutil.copy(folder / name, partial)
    _replace_folder(partial, target)
    return target


def find_runs(*roots: Path, rehearsal: bool = False) -> list[dict[str, Any]]:
    """Read every ``metrics.json`` below some folders.

    Args:
        *roots: Folders to look through; ``runs`` and ``figures`` of the repository by default.
        rehearsal: Read the runs of a rehearsal and no others, instead of all but those.

    Returns:
        Their contents with ``folder`` added, sorted by folder; hidden and half-finished runs are
        left out.
    """
    found = []
    for root in roots or (ROOT / "runs", ROOT / "figures"):
        for path in sorted(root.rglob("metrics.json")):
            if not any(part.startswith(".") for part in path.relative_to(root).parts):
                found.append({**json.loads(path.read_text()), "folder": path.parent})
    return [run for run in found if (run["profile"] == "rehearsal") == rehearsal]


def _replace_folder(new: Path, old: Path) -> None:
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def _take_lock(path: Path) -> None:
    """Claim a run folder for this process; a lock whose process is gone is taken over."""
    if path.is_file():
        owner = path.read_text().strip()
        if owner.isdigit() and int(owner) != os.getpid() and _is_alive(int(owner)):
            name = path.parent.name.strip(".").removesuffix(".partial")
            raise RuntimeError(
                f"run {name} is being written by process {owner}; wait, or give RUN_NAME"
            )
    path.write_text(str(os.getpid()))


def _killed_attempts(folder: Path) -> dict[str, float]:
    """Count the attempts that ended before they finished, and their seconds; note this one."""
    note, earlier = folder / _ATTEMPTS, {"killed": 0, "seconds": 0.0}
    if note.is_file():
        seen = json.loads(note.read_text())
        left = max(path.stat().st_mtime for path in folder.rglob("*") if path.name != "lock")
        seconds = seen["seconds"] + max(0.0, left - seen["started"])
        earlier = {"killed": seen["killed"] + 1, "seconds": seconds}
    write_json(note, {**earlier, "started": time.time()})
    return earlier


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    frame.to_parquet(partial, index=False)
    partial.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
