"""Which notebook answers which table of the papers, or why none can: ``data/coverage.csv``."""

from typing import Any

import pandas as pd

from iqa_utils.workshop.runs import ROOT


def coverage_table(claims: pd.DataFrame) -> pd.DataFrame:
    """List every table of the ledger with the notebook that answers it or the reason why not.

    Returns:
        One row per table: paper, table, claims, covered (rows that the notebook produces),
        notebook, reason, needs.

    Raises:
        ValueError: If a table of the ledger is not listed, or one is listed that it does not hold.
    """
    rows, listed = [], _listed()
    present = list(dict.fromkeys(zip(claims["paper"], claims["table"], strict=True)))
    if lost := set(present) ^ set(listed):
        raise ValueError(f"the ledger and its coverage differ in {sorted(lost)}")
    for key in present:
        entry = listed[key]
        part = claims[(claims["paper"] == key[0]) & (claims["table"] == key[1])]
        covered = part["method"].str.startswith(entry["methods"]).sum() if entry["notebook"] else 0
        rows.append({**entry, "claims": len(part), "covered": int(covered)})
    columns = ["paper", "table", "claims", "covered", "notebook", "reason", "needs"]
    return pd.DataFrame(rows)[columns]


def _listed() -> dict[tuple[str, str], dict[str, Any]]:
    """The reviewed list of who answers which table, ``data/coverage.csv``, by paper and table."""
    table = pd.read_csv(ROOT / "data" / "coverage.csv", keep_default_na=False)
    table["methods"] = table["methods"].str.split("; ").map(tuple)  # beginnings; empty means all
    return {(row["paper"], row["table"]): row for row in table.to_dict("records")}


def still_needed(claims: pd.DataFrame) -> dict[int, str]:
    """Say of each ledger row what it waits for: the needs of a run, or why there is none."""
    listed, found = _listed(), {}
    for index, claim in zip(claims.index, claims.to_dict("records"), strict=True):
        entry = listed[claim["paper"], claim["table"]]
        ours = entry["notebook"] and claim["method"].startswith(entry["methods"])
        found[index] = f"{entry['notebook']} needs {entry['needs']}" if ours else entry["reason"]
    return found
