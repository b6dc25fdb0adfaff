"""Tables: written so that a spreadsheet runs no cell of them, and compared between two runs.

A change of code that is meant to move nothing is checked by running notebooks before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from iqa_utils.files import read_mapping

FILES = ("metrics.json", "predictions.parquet", "history.parquet")
TIMES = ["seconds", "images_per_second"]  # columns that measure the machine
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a cell


def write_csv(frame: pd.DataFrame, file: str | Path | IO[str]) -> None:
    """Write a table without its index; text that begins like a formula gets a ``'`` before it."""

    def safe(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

    texts = frame.select_dtypes(exclude="number").map(safe)
    frame.assign(**texts).rename(columns=safe).to_csv(file, index=False)


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    """Read what a run left as tables; times of the machine are left out."""
    tables = {}
    for path in filter(Path.is_file, (run / name for name in FILES)):
        results = path.suffix == ".json"
        table = pd.DataFrame(read_mapping(path)["results"]) if results else pd.read_parquet(path)
        if "metric" in table:
            table = table[~table["metric"].astype(str).str.contains("second|time")]
        tables[path.name] = table.drop(columns=TIMES, errors="ignore").reset_index(drop=True)
    return tables


def find(root: Path) -> dict[str, Path]:
    """Name the finished runs in a folder, or the folder itself if it is one."""
    if (root / "metrics.json").is_file():
        return {".": root}
    found = {str(path.parent.relative_to(root)): path.parent for path in root.rglob("metrics.json")}
    return {name: found[name] for name in sorted(found) if not re.match(r"(.*/)?\.", name)}


def differences(a: Path, b: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield run, file, column and the largest relative difference of two runs or folders of runs.

    It is infinite where words, missing values or row numbers differ; all runs need a partner.
    """
    ours, theirs = find(a), find(b)
    if not ours or set(ours) != set(theirs):
        odd = sorted(set(ours) ^ set(theirs)) or ["no finished run in either"]
        raise FileNotFoundError(f"{a} and {b} do not hold the same runs: {', '.join(odd)}")
    for name in ours:
        left, right = read_tables(ours[name]), read_tables(theirs[name])
        for file in sorted(set(left) | set(right)):
            if file not in left or file not in right or len(left[file]) != len(right[file]):
                yield name, file, "rows", float("inf")
                continue
            for column in sorted(set(left[file]) | set(right[file])):
                yield name, file, column, _largest(left[file], right[file], column)


def _largest(a: pd.DataFrame, b: pd.DataFrame, column: str) -> float:
    a, b = (t if column in t else t.assign(**{column: ""}) for t in (a, b))  # absent: empty
    left, right = (pd.to_numeric(t[column], errors="coerce").to_numpy(float) for t in (a, b))
    text = np.isnan(left)
    words = [["" if pd.isna(v) is True else str(v) for v in t[column][text]] for t in (a, b)]
    if (text != np.isnan(right)).any() or words[0] != words[1]:
        return float("inf")
    scale = np.maximum(np.maximum(np.abs(left), np.abs(right)), np.finfo(float).tiny)
    return float(np.nanmax(np.abs(left - right) / scale, initial=0.0))
