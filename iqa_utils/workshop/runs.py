"""One run of one notebook: its folder, parameters, seeds, provenance and results.

A notebook starts with :func:`start_run` and ends with :meth:`Run.finish`, which writes
``metrics.json`` last: its presence is what "finished" means. Until then a run works in a hidden
folder beside the final one, so that a rerun replaces the earlier results at its end and a killed
run finds its checkpoints again; nothing else of a killed run enters the next one. A kill between
the two renames at the end hides the earlier results until runs are next started or listed.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from iqa_utils.files import (
    atomic_write,
    hash_file,
    read_mapping,
    replace_folder,
    restore_folder,
    sweep,
    write_json,
)
from iqa_utils.workshop import ROOT, need_checkout, provenance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

REQUIRED = ("PROFILE", "DATA_ROOT", "PRETRAINED", "RUN_NAME", "SEED")
NUMBERS = ("value", "ci_low", "ci_high", "n", "n_runs", "sd", "pred_spread")
DESCRIBED = ("network", "weights", "recipe", "protocol", "kind")
WORDS = ("baseline", "variant", "subset", "stage", "layer", "regressor")  # empty where not said
PLACE = ("paper", "table", "method", "dataset", "metric", "data")
RESULT_COLUMNS = (*PLACE, *NUMBERS, *DESCRIBED, *WORDS)
PREDICTION_COLUMNS = ("image", "dataset", "split", "seed", "method", "variant", "mos", "pred")
GROUPS = ("reference", "subset", "stage")  # of a prediction; NA where unknown
_ATTEMPTS = "attempts.json"
_EXPONENT = re.compile(r"'[-+]?[\d.]+e[-+]?\d+'", re.IGNORECASE)  # in the repr of a value


def resolve(path: str | Path) -> Path:
    """Resolve a path against the repository, so that no notebook depends on where it is started."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else ROOT / path


def cache_dir(name: str = "") -> Path:
    """Make, sweep and return the folder of what can be computed again (stores, features)."""
    folder = ROOT / "runs" / "cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    return folder


def notebook_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Collect a notebook's annotated UPPER_CASE parameters from its ``globals()``.

    Values are checked, never converted: YAML's ``1e-3`` is a string and is refused here, by name.
    """
    declared = {k: v for k, v in namespace.get("__annotations__", {}).items() if k.isupper()}
    if absent := [name for name in REQUIRED if name not in declared]:
        raise KeyError(f"the parameters cell must declare {', '.join(absent)} with a type")
    if wrong := wrong_types(declared, namespace):
        raise TypeError("; ".join(wrong))
    return {name: namespace[name] for name in declared}


def wrong_types(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Say in one sentence per value which are not of the type they were declared with.

    YAML takes ``1e-3`` for text: the sentence then says how to write the number.
    """
    wrong = []
    for name, kind in kinds.items():
        value = values[name]
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError:
            expected = str(kind) if get_args(kind) else getattr(kind, "__name__", str(kind))
            hint = " (in YAML write 1.0e-3, not 1e-3)" if _EXPONENT.search(repr(value)) else ""
            found = f"{value!r} ({type(value).__name__})"
            wrong.append(f"{name} must be {expected}, got {found}{hint}")
    return wrong


def check_overrides(
    overrides: Mapping[str, Mapping[str, Any]], names: Collection[str], kinds: Mapping[str, Any]
) -> None:
    """Refuse ``OVERRIDES`` with unknown trainings or settings, or values of the wrong type."""
    for name, values in overrides.items():
        if name not in names:
            raise ValueError(f"OVERRIDES: no training {name!r}, there are {', '.join(names)}")
        if unknown := sorted(set(values) - set(kinds)):
            raise ValueError(f"OVERRIDES of {name!r}: unknown {unknown}, there are {list(kinds)}")
        if wrong := wrong_types({key: kinds[key] for key in values}, values):
            raise ValueError(f"OVERRIDES of {name!r}: {'; '.join(wrong)}")


def run_dir(stem: str, profile: str, run_name: str = "") -> Path:
    """Return the folder of a finished run, ``runs/PROFILE/STEM[-RUN_NAME]``, of plain names."""
    for label, part in (("stem", stem), ("PROFILE", profile), ("RUN_NAME", run_name)):
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", part) and (part or label != "RUN_NAME"):
            raise ValueError(f"{label} may hold letters, digits, '.', '_' and '-', got {part!r}")
    return ROOT / "runs" / profile / (f"{stem}-{run_name}" if run_name else stem)


def start_run(stem: str, parameters: Mapping[str, Any], *, paper: str = "") -> Run:
    """Open the folder of a run, seed every generator and start its clock.

    Checkpoints of an earlier, killed run are found again; a run that another process works on is
    refused. Results belong to ``paper`` (a ledger key) unless they say otherwise.
    """
    need_checkout()
    return Run(stem, dict(parameters), paper)


class Run:
    """What one execution of a notebook leaves in ``dir``, which is hidden until it finishes."""

    def __init__(self, stem: str, parameters: dict[str, Any], paper: str) -> None:
        self.stem, self.parameters, self.paper = stem, parameters, paper
        self.final_dir = run_dir(stem, parameters["PROFILE"], parameters["RUN_NAME"])
        self.dir = self.final_dir.parent / f".{self.final_dir.name}.partial"
        self.results: list[dict[str, Any]] = []
        self.fingerprints: dict[str, dict[str, Any]] = {}
        self.pixels: dict[str, str] = {}
        self.weights: dict[str, dict[str, str]] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self.described: dict[str, Any] = {"protocol": {}}
        restore_folder(self.final_dir.with_name(f".{self.final_dir.name}.old"))
        self._lock = _claim(self.final_dir)
        self._earlier = _reopen(self.dir, parameters)
        self.checkpoints_dir.mkdir(exist_ok=True)
        (self.dir / "figures").mkdir()
        self._started, self._commit = time.perf_counter(), provenance.commit()
        self._files = provenance.code_files()  # the code that is loaded now
        random.seed(parameters["SEED"])
        np.random.seed(parameters["SEED"])  # noqa: NPY002 - libraries draw from it
        if torch := sys.modules.get("torch"):  # in a notebook that has imported it
            torch.manual_seed(parameters["SEED"])

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of checkpoints, which outlive a killed run."""
        return self.dir / "checkpoints"

    @property
    def pretrained(self) -> str:
        """The parameter PRETRAINED: a word of ``iqa_utils.backbones`` as it is, a path resolved."""
        given = self.parameters["PRETRAINED"]
        return given if given in ("random", "hub", "shipped") else str(resolve(given))

    @property
    def weights_source(self) -> str:
        """Where weights come from, in one word: `imagenet` for a hub, else the file."""
        word = Path(self.parameters["PRETRAINED"]).stem
        return "imagenet" if word == "hub" else word

    def use_data(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Note in the provenance which score table was used."""
        attrs = frame.attrs
        self._tables[attrs["dataset"]] = frame
        seen = {"rows": len(frame), "fingerprint": attrs["fingerprint"]}
        seen |= {"table": provenance.table_digest(frame), "demo": bool(attrs["demo"])}
        self.fingerprints[attrs["dataset"]] = seen
        return frame

    def use_pixels(self, name: str, key: str) -> None:
        """Note in the provenance the key of the decoded images that were used."""
        self.pixels[name] = key

    def use_weights(self, name: str, network: nn.Module) -> None:
        """Note in the provenance the weights of a network; PRETRAINED tells their file."""
        from iqa_utils.backbones import SHIPPED_FILE, weights_hash

        given = Path(self.pretrained)
        word = "openai" if "clip" in name else "imagenet"
        inside = [given / f"{name}-{word}{ending}" for ending in (".safetensors", ".pth")]
        words = {"random": [], "hub": [], "shipped": [SHIPPED_FILE]}
        files = words.get(self.pretrained, [given, *inside])
        found = next((path for path in files if path.is_file()), None)
        seen = {"file": found.name, "sha256": hash_file(found)} if found else {}
        self.weights[name] = {"source": given.name, "digest": weights_hash(network), **seen}

    def save_figure(
        self, figure: Figure, name: str, title: str = "", *, photographs: bool = False
    ) -> None:
        """Write a figure as PNG and PDF, byte for byte the same on every repeat.

        One that shows ``photographs`` of a data set is named ``private-...``, never published.
        """
        if title:
            figure.suptitle(title, x=0.01, ha="left", size=11, weight="bold")
        if any(data["demo"] for data in self.fingerprints.values()):
            style = {"ha": "right", "va": "top", "size": 7, "color": "0.35", "style": "italic"}
            figure.text(0.995, -0.005, "demo run: shows the machinery", **style)  # below all
        name = f"private-{name}" if photographs else name
        png = self.dir / "figures" / f"{name}.png"
        figure.draw_without_rendering()  # lays out once; laying out again would move things
        figure.set_layout_engine("none")
        figure.savefig(png, dpi=150, bbox_inches="tight", metadata={"Software": None})
        empty = {"CreationDate": None, "Producer": None, "Creator": None}
        figure.savefig(png.with_suffix(".pdf"), bbox_inches="tight", metadata=empty)

    def describe(self, **fields: Any) -> None:
        """Say once what the results that follow are, where they do not say otherwise.

        Args:
            **fields: Of :data:`DESCRIBED`: ``network``, ``weights``, ``recipe`` (``"paper"`` or
                another variant), ``protocol`` (a mapping: ``split``, ...) and ``kind``:
                ``"re-tabulated"``, ``"arithmetic"``, ``"authors' predictions"``, ``"trained here"``
        """
        if unknown := sorted(set(fields) - set(DESCRIBED)):
            raise ValueError(f"a result is described by {DESCRIBED}, got {unknown}")
        self.described |= fields

    def add_result(self, **fields: Any) -> None:
        """Add one finite number; ``table``, ``method`` and ``dataset`` are spelt as in the ledger.

        Args:
            **fields: ``table`` of the paper (a table, a figure, ``"text"``, or a word of our own
                such as ``"control"``), ``method`` (row of that table), ``dataset``, ``metric``
                (our name of it: ``SRCC``, ``RMSE 0-20``), ``value`` and ``data`` (``"demo"`` or
                the name of the real set it was measured on). Where they apply, ``n_runs`` (runs or
                splits behind the number), ``paper`` (ledger key, where it is not the run's own),
                ``ci_low`` and ``ci_high`` (95 %), ``n`` (images), ``sd`` over the runs,
                ``pred_spread`` (SD of the predictions over that of the scores), the fields of
                :meth:`describe`, and words such as ``baseline``, ``variant``, ``subset`` or
                ``layer``; None is as if not given.
        """
        given = {"paper": self.paper, "n_runs": 1}
        given |= self.described | {k: v for k, v in fields.items() if v is not None}
        unknown, absent = set(given) - set(RESULT_COLUMNS), {*PLACE, "value"} - set(given)
        if unknown or absent:
            told = f"got {sorted(unknown)}" if unknown else f"lacks {sorted(absent)}"
            raise TypeError(f"a result has the fields {RESULT_COLUMNS}, {told}")
        row = dict.fromkeys(RESULT_COLUMNS) | dict.fromkeys((*DESCRIBED, *WORDS), "") | given
        for key in NUMBERS:
            if row[key] is not None:
                if not math.isfinite(row[key]):
                    place = ", ".join(row[k] for k in ("table", "method", "dataset", "metric"))
                    raise ValueError(f"{place}: {key} is {row[key]}")
                row[key] = int(row[key]) if key in ("n", "n_runs") else float(row[key])
        self.results.append(row)

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
        """Write ``predictions.parquet``, one row per prediction with ``PREDICTION_COLUMNS``.

        Of ``GROUPS``, what a frame lacks is taken from the score tables in use, else left empty.
        """
        if absent := [c for c in PREDICTION_COLUMNS if c not in frame.columns]:
            raise ValueError(f"predictions lack the columns {absent}")
        if len(bad := frame[~np.isfinite(frame["pred"].to_numpy(dtype=float))]):
            raise ValueError(f"{len(bad)} predictions are not finite, first {bad.iloc[0]}")
        with atomic_write(self.dir / "predictions.parquet") as file:
            self._with_groups(frame).to_parquet(file, index=False)

    def _with_groups(self, frame: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        lacking, keys = [name for name in GROUPS if name not in frame], ["dataset", "image"]
        known = [t.assign(dataset=k) for k, t in self._tables.items() if "reference" in t]
        if not (known and lacking):
            return frame.assign(**dict.fromkeys(lacking))
        known = pd.concat(known).reindex(columns=[*keys, *lacking])
        return frame.merge(known, on=keys, how="left", validate="m:1")

    def save_history(self, frame: pd.DataFrame) -> None:
        """Write ``history.parquet``: one row per epoch of every training."""
        with atomic_write(self.dir / "history.parquet") as file:
            frame.to_parquet(file, index=False)

    def finish(self) -> Path:
        """Write provenance and ``metrics.json``, then put the run in its place; returns its folder.

        The seconds are those of this execution and of earlier ones that were killed, each up to the
        last file it left: a run that found its checkpoints again was not fast.
        """
        seconds = round(self._earlier["seconds"] + time.perf_counter() - self._started, 1)
        given, seen = portable(self.parameters), [d["demo"] for d in self.fingerprints.values()]
        told = {"stem": self.stem, "commit": self._commit[0], "clean": self._commit[1]}
        told |= {"files": provenance.used_files(self.stem, self._files)}
        told |= provenance.environment() | {"seed": given["SEED"], "parameters": given}
        told |= {"data": self.fingerprints, "pixels": self.pixels, "weights": self.weights}
        told |= {"demo": bool(seen) and all(seen)}  # false where no data set was read
        told |= {"seconds": seconds, "killed_attempts": self._earlier["killed"]}
        write_json(self.dir / "provenance.json", told)
        metrics = {"stem": self.stem, "profile": given["PROFILE"], "parameters": given}
        write_json(self.dir / "metrics.json", metrics | {"results": self.results})
        if self.dir != self.final_dir:
            (self.dir / _ATTEMPTS).unlink()
            replace_folder(self.dir, self.final_dir)
            self.dir = self.final_dir
            self._lock.release(force=True)
        place = self.dir.relative_to(ROOT)
        print(f"{self.stem}: {len(self.results)} results, {seconds:.0f} s -> {place}")
        return self.dir


def portable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Replace absolute paths in parameters by their last part, which means the same elsewhere."""
    given = parameters.items()
    return {k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v for k, v in given}


def find_runs(*roots: Path, rehearsal: bool = False) -> list[dict[str, Any]]:
    """Read each ``metrics.json`` below ``runs`` and ``figures``, or other folders, with its folder.

    With ``rehearsal`` the runs of a rehearsal are read and no others, instead of all but those. A
    file that cannot be read is left out, with a warning that names it.
    """
    found = []
    for root in roots or (ROOT / "runs", ROOT / "figures"):
        for path in sorted(root.rglob("metrics.json")):
            if path.parent.match(".*.old"):
                path = restore_folder(path.parent) / path.name
            if any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            try:
                metrics = read_mapping(path)
                if not {"stem", "profile", "parameters"} <= set(metrics):
                    raise ValueError(f"{path}: expected stem, profile, parameters: {[*metrics]}")
                rows = metrics.get("results")
                if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                    raise ValueError(f"{path}: expected results as a list of rows")
                found.append({**metrics, "folder": path.parent})
            except (ValueError, OSError) as error:  # one broken file stops nobody
                warnings.warn(f"a run is left out: {error}", stacklevel=2)
    return [run for run in found if (run["profile"] == "rehearsal") == rehearsal]


def _claim(folder: Path) -> FileLock:
    """Take the lock of a run, beside its folder; it ends with this process, however that ends."""
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)  # a notebook may run its first cell again
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = path.read_text() or "another process"
        gone = f"if that machine is gone for good, delete {path}"
        told = f"run {folder.name} is being written by {owner}; wait, or give RUN_NAME ({gone})"
        raise RuntimeError(told) from None
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def _reopen(folder: Path, parameters: Mapping[str, Any]) -> dict[str, float]:
    """Clear a run's folder but for its checkpoints, each named by the key of its training.

    Attempts with these parameters that were killed are returned, with their seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = json.loads(json.dumps(portable(parameters)))  # as the note has them
    note, earlier = folder / _ATTEMPTS, {"killed": 0, "seconds": 0.0}
    if note.is_file():
        left = max(path.lstat().st_mtime for path in folder.rglob("*"))
        try:
            seen = read_mapping(note)
            seconds = seen["seconds"] + max(0.0, left - seen["started"])
            found = {"killed": seen["killed"] + 1, "seconds": seconds}
            earlier = found if seen["parameters"] == parameters else earlier
        except (ValueError, KeyError, TypeError):  # killed while it was noted
            earlier = {"killed": 1, "seconds": 0.0}
    kept = re.compile("checkpoints|[0-9a-f]{12}")
    for path in [*folder.iterdir(), *(folder / "checkpoints").glob("*")]:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif not kept.fullmatch(path.name):
            shutil.rmtree(path)
    write_json(note, {"parameters": parameters, **earlier, "started": time.time()})
    return earlier
