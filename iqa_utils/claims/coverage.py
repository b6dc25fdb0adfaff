"""Which notebook answers which table of the papers, or why none can: a reviewed list."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Coverage:
    """Who answers one table of a paper.

    Attributes:
        paper: Ledger key.
        table: Table, figure or ``text``.
        notebook: Stem of the notebook that produces it, or None.
        methods: Beginnings of the method names that it produces; empty for all.
        reason: Why the rest (or all) is not produced, empty where nothing is left out.
        needs: What a run needs.
    """

    paper: str
    table: str
    notebook: str | None
    methods: tuple[str, ...] = ()
    reason: str = ""
    needs: str = ""

    def produces(self, method: str) -> bool:
        """Whether the notebook produces the rows of this method."""
        return self.notebook is not None and method.startswith(self.methods or "")


QUOTED = "quoted from other papers by the authors; their models are not re-run"
COVERAGE: tuple[Coverage, ...] = (
    Coverage("lehmann2023", "Fig. 2", "01_dataset_analysis", needs="KonIQ-10k score files"),
    Coverage("lehmann2023", "Tab. 3", "01_dataset_analysis", needs="KonIQ-10k score files"),
    Coverage("lehmann2023", "Tab. 4", "02_cross_sampling", needs="KonIQ-10k images, a GPU"),
    Coverage("lehmann2023", "Tab. 5", "02_cross_sampling", needs="KonIQ-10k images, a GPU"),
    Coverage(
        "lehmann2023", "Tab. 6", "02_cross_sampling",
        ("KonCept512", "without cross-sampling", "with cross-sampling"), QUOTED,
        "KonIQ-10k images, a GPU",
    ),
    Coverage(
        "feng2023", "Table 1", "03_mixed_datasets",
        ("NIQE", "KonCept512", "UNIQUE", "Proposed"), QUOTED,
        "six image sets and a GPU; the released score files alone for notebook 00",
    ),
    Coverage("feng2023", "Table 2", "03_mixed_datasets", needs="six image sets, a GPU"),
    Coverage(
        "feng2023", "text", "03_mixed_datasets", ("Proposed", "UNIQUE", "KonCept512"),
        "operations of DB-CNN as quoted", "nothing: counted from the networks",
    ),
    Coverage("ahmed2020", "Table 1", "04_deep_features_gpr", needs="TID2013, 13 networks"),
    Coverage("ahmed2020", "Table 2", "04_deep_features_gpr", needs="TID2013, 8 networks, a GPU"),
    Coverage("ahmed2020", "Table 4", "04_deep_features_gpr", needs="LIVE, CSIQ, TID, NASNet"),
    Coverage("ahmed2020", "Table 5", "04_deep_features_gpr", needs="LIVE, CSIQ, TID, NASNet"),
    Coverage("ahmed2020", "Table 6", "04_deep_features_gpr", needs="LIVE, CSIQ, TID, NASNet"),
    Coverage("ahmed2020", "Table 7", "04_deep_features_gpr", needs="LIVE, CSIQ, TID, NASNet"),
    Coverage(
        "ahmed2020", "Table 8", "04_deep_features_gpr", ("Proposed",), QUOTED,
        "LIVE, CSIQ, TID, NASNet",
    ),
    Coverage("ahmed2020", "Table 10", "04_deep_features_gpr", needs="TID2013, NASNet, a GPU"),
    Coverage("nguyen2024", "Table 1", "05_lds_fds", needs="KonIQ-10k images, the CLIP encoder"),
    Coverage(
        "nguyen2024", "Table 2", None, (),
        "the internal set of 70,000 images is not public; notebook 00 audits its cells",
    ),
    Coverage(
        "ponomarenko2022", "Table 1", "06_distillation", ("KonCept512",),
        "the other metrics are distributed without a licence to re-run them; notebook 00 checks "
        "every weighted mean", "KonIQ-10k, FLIVE, LIVE-C, HTID and NRTID images, a teacher",
    ),
    Coverage(
        "ponomarenko2022", "Table 2", None, (),
        "the 360,000 images and the three metrics' scores on them are not published",
    ),
    Coverage(
        "ponomarenko2022", "text", "06_distillation",
        needs="a teacher and a folder of unlabelled images, a GPU",
    ),
    Coverage(
        "ponomarenko2022", "Table 3", "06_distillation",
        needs="KonIQ-10k, a teacher, unlabelled images, a GPU",
    ),
    Coverage(
        "ponomarenko2022", "Table 4", "06_distillation",
        needs="six image sets, a teacher, unlabelled images, a GPU",
    ),
)  # fmt: skip


def coverage_table(claims: pd.DataFrame) -> pd.DataFrame:
    """Join the list with the ledger.

    Args:
        claims: All rows of the ledger.

    Returns:
        One row a table: paper, table, claims, covered (rows that the notebook produces), notebook,
        reason, needs.

    Raises:
        ValueError: If a table of the ledger is not listed, or one is listed that it does not hold.
    """
    listed = {(c.paper, c.table): c for c in COVERAGE}
    present = list(dict.fromkeys(zip(claims["paper"], claims["table"], strict=True)))
    if lost := set(present) ^ set(listed):
        raise ValueError(f"the ledger and its coverage differ in {sorted(lost)}")
    rows = []
    for key in present:
        entry = listed[key]
        part = claims[(claims["paper"] == key[0]) & (claims["table"] == key[1])]
        covered = part["method"].map(entry.produces).sum()
        rows.append({**vars(entry), "claims": len(part), "covered": int(covered)})
    columns = ["paper", "table", "claims", "covered", "notebook", "reason", "needs"]
    return pd.DataFrame(rows)[columns].fillna("")


def still_needed(claims: pd.DataFrame) -> dict[int, str]:
    """Say of each ledger row what it waits for: the needs of a run, or why there is none."""
    listed = {(c.paper, c.table): c for c in COVERAGE}
    found = {}
    for index, claim in zip(claims.index, claims.to_dict("records"), strict=True):
        entry = listed[claim["paper"], claim["table"]]
        ours = entry.produces(claim["method"])
        found[index] = f"{entry.notebook} needs {entry.needs}" if ours else entry.reason
    return found
