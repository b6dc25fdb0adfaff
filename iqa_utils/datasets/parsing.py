"""Parts of files that the readers share; an error names file, place, expectation and fact."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io

TEXTS = dict.fromkeys(  # columns of names, which may look like numbers
    ("image_name", "image_id", "dist_img", "ref_img", "name", "Image Name", "image", "reference"),
    str,
)


def unexpected(path: Path, expected: str, found: object, line: int = 0) -> ValueError:
    """Say what was expected in a file, or in one of its lines, and what is there."""
    place = f"{path}, line {line}" if line else path
    return ValueError(f"{place}: expected {expected}, found {found}")


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Name the file in the error of a library that cannot read it; they raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        raise unexpected(path, expected, " ".join(str(error).split())) from error


def read_any_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file whole."""
    with reading(path, "a CSV file in UTF-8"):
        table = pd.read_csv(path, skipinitialspace=True, dtype=TEXTS)
    if not isinstance(table.index, pd.RangeIndex):  # pandas shifts the header to the right
        raise unexpected(
            path, f"rows as long as the header, {len(table.columns)} cells", "longer ones"
        )
    return table


def read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read the named columns of a CSV file, in the order asked for."""
    return take_columns(read_any_csv(path), columns, path)


def take_columns(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    """Take the named columns, or say which are missing and what is there instead."""
    found = [str(column) for column in table.columns]
    missing = [column for column in columns if column not in found]
    twice = [column for column in columns if found.count(column) > 1]
    if missing or twice:
        what = f"missing {missing}" if missing else f"more than once {twice}"
        raise ValueError(f"{path}: expected columns {columns}, found {found}; {what}")
    table = table.dropna(how="all")
    if table.empty:
        raise unexpected(path, "one row per image", "no row")
    return table[columns].reset_index(drop=True)


def numbers(
    table: pd.DataFrame,
    columns: list[str],
    path: Path | str,
    *,
    blank: bool = False,
    whole: bool = False,
    low: float = -np.inf,
) -> pd.DataFrame:
    """Return columns as numbers, or name the first cell without one; column 0 names the images.

    ``blank`` lets an empty cell pass as NaN; ``whole`` refuses fractions, ``low`` what is less.
    """
    cells = table[columns]
    found = cells.apply(pd.to_numeric, errors="coerce")
    right = np.isfinite(found) & (found >= low) & ~(whole & (found % 1 != 0))
    wrong = np.argwhere(~(right | (blank & cells.isna())).to_numpy())  # (cells, 2)
    if len(wrong):
        row, column = wrong[0]
        kind = f"a {'whole ' if whole else ''}number{f' from {low:g}' if low > -np.inf else ''}"
        place = f"{kind} in {columns[column]} of {table.iloc[row, 0]}"
        raise unexpected(path, place, repr(cells.iloc[row, column]))
    return found


def same_names(left: pd.Series, right: pd.Series, files: str) -> None:
    """Refuse two files of one set that do not list the same images, each once."""
    first, second = set(left) - set(right), set(right) - set(left)
    if first or second:
        raise ValueError(
            f"{files} disagree: {len(first)} images only in the first "
            f"{sorted(first, key=str)[:5]}, "
            f"{len(second)} only in the second {sorted(second, key=str)[:5]}"
        )
    twice = [*left[left.duplicated()], *right[right.duplicated()]]
    if twice:
        raise ValueError(f"{files}: expected every image once, found {twice[:5]} again")


def agree(
    table: pd.DataFrame, column: str, other: pd.Series, tolerance: float, places: str
) -> None:
    """Refuse numbers that the official files give twice and that differ."""
    apart = ~((table[column] - other).abs() <= tolerance)  # also where one is NaN
    if apart.any():
        first = apart.idxmax()
        raise ValueError(
            f"{places} disagree on {column} of {apart.sum()} images, first "
            f"{table['image_name'][first]}: {table[column][first]:.10g} against {other[first]:.10g}"
        )


def matlab(path: Path, name: str) -> np.ndarray:
    """Return one variable of a MATLAB file, flat."""
    with reading(path, "a MATLAB file of version 4 to 7"):
        content = scipy.io.loadmat(path)
    if name not in content:
        there = sorted(key for key in content if not key.startswith("__"))
        raise unexpected(path, f"variable {name!r}", there)
    return content[name].ravel()


def matlab_numbers(path: Path, name: str) -> np.ndarray:
    """Return one numeric variable of a MATLAB file, flat."""
    values = matlab(path, name)
    with reading(path, f"numbers in {name}"):
        return values.astype(float)


def matlab_names(path: Path, name: str) -> list[str]:
    """Turn a MATLAB cell array of strings into a list."""
    cells = [np.asarray(cell).ravel() for cell in matlab(path, name)]
    for number, cell in enumerate(cells, start=1):
        if cell.dtype.kind != "U" or not cell.size:
            raise unexpected(path, f"a name in cell {number} of {name}", cell.tolist())
    return [str(cell[0]) for cell in cells]


def equal_lengths(lengths: Mapping[str, int], place: Path | str) -> None:
    """Refuse lists that belong together but differ in length."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{place}: lists of one set differ in length: {dict(lengths)}")


def words_of(path: Path) -> list[tuple[int, list[str]]]:
    """Return number and words of each line of a text file that is not blank."""
    with reading(path, "text in UTF-8"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
