"""CSV files that a spreadsheet opens: a cell that it would run as a formula is written as text."""

import re
from pathlib import Path
from typing import IO, Any

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a cell


def write_csv(frame: pd.DataFrame, file: str | Path | IO[str]) -> None:
    """Write a table without its index; text that begins like a formula gets a ``'`` before it."""

    def safe(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

    texts = frame.select_dtypes(exclude="number").map(safe)
    frame.assign(**texts).rename(columns=safe).to_csv(file, index=False)
