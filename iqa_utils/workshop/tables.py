"""CSV files that a spreadsheet opens: a cell that it would run as a formula is written as text."""

import re
from pathlib import Path
from typing import IO, Any

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a cell


def write_csv(frame: pd.DataFrame, file: str | Path | IO[str]) -> None:
    """Write a table without its index; text that begins like a formula gets a ``'`` before it."""
    _mapped(frame, lambda cell: f"'{cell}" if _FORMULA.match(cell) else cell).to_csv(
        file, index=False
    )


def read_csv(file: str | Path | IO[str]) -> pd.DataFrame:
    """Read what :func:`write_csv` wrote, without the ``'`` that it put there."""
    frame = pd.read_csv(file)
    return _mapped(frame, lambda c: c[1:] if c[0:1] == "'" and _FORMULA.match(c) else c)


def _mapped(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    def cell(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    texts = frame.select_dtypes(exclude="number")
    return frame.rename(columns=cell).assign(
        **{cell(name): texts[name].map(cell) for name in texts}
    )
