"""Write the card of the default quality model; every number comes from its JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distortion_levels import LEVELS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METHODS = ("whole recipe", "ridge regression alone", "ridge regression on the last layer")


def values(row: Mapping[str, Any], *metrics: str) -> list[str]:
    """Spell values with their intervals."""
    return ["{:.3f} [{:.3f}, {:.3f}]".format(*row[metric]) for metric in metrics]


def across_table(found: Mapping[str, Any]) -> str:
    """Lay out what was fitted to two subsets and tested on the third."""
    rows = [
        (f"the two others -> {name}", row["n"], *values(row, *METHODS, "difference"))
        for name, row in found.items()
    ]
    return markdown_table(("fitted -> test", "n", *METHODS, "difference"), rows)


def write_card(facts: dict[str, Any]) -> None:
    """Write the numbers as JSON, and the card from them."""
    (DOCS / "model_card.json").write_text(json.dumps(facts, indent=1, default=float) + "\n")
    (DOCS / "model_card.md").write_text(card(facts), encoding="utf-8")


def card(facts: Mapping[str, Any]) -> str:
    """Fill the card's tables; everything that is a number comes from ``facts``."""
    agreement_rows = [
        (name, facts["test"][name]["n"], *values(facts["test"][name], "SRCC", "PLCC"))
        for name in facts["test"]
    ]
    falls = [
        (f"{kind}: {', '.join(map(str, LEVELS[kind]))}", *(f"{100 * v:.0f}" for v in row))
        for kind, row in facts["falls"]["test"]["by level"].items()
    ]
    orders = [
        (f"{row['order']:g}", f"{100 * row['share']:.1f}", f"{row['SRCC']:.3f}")
        for row in facts["orders"]
    ]
    both = [facts["falls"][pictures] for pictures in ("test", "choice")]
    pairs = sum(own["pairs"] for own in both)
    falling = sum(round(own["pairs"] * own["share"]) for own in both)
    place = "below" if falling < 0.95 * pairs else "at or above"
    twelve = f"{falling} of {pairs} ({100 * falling / pairs:.1f} %), {place} 95 %"
    brisque = facts["brisque"]["test"]
    inside = ", ".join(f"{k} {v['SRCC'][0]:.3f}" for k, v in brisque.items() if k != "all")
    return (
        Path(__file__)
        .with_name("model_card.in.md")
        .read_text(encoding="utf-8")
        .format(
            megabytes=f"{facts['bytes'] / 1e6:.1f}",
            sha256=facts["sha256"],
            test=markdown_table(("photographs", "n", "SRCC", "PLCC"), agreement_rows),
            fold=", ".join(values(facts["out_of_fold"]["all"], "SRCC")),
            fold_n=facts["out_of_fold"]["all"]["n"],
            across=across_table(facts["across"]),
            orders=markdown_table(("weight", "steps in order, %", "SRCC"), orders),
            falls=markdown_table(("distortion: levels", *"12345"), falls),
            share="{:.1f} % of {}".format(
                100 * facts["falls"]["test"]["share"], facts["falls"]["test"]["pairs"]
            ),
            choice=f"{100 * facts['falls']['choice']['share']:.1f} %",
            twelve=twelve,
            procedural=f"{100 * facts['falls']['procedural']['share']:.1f} %",
            brisque=values(brisque["all"], "SRCC")[0],
            brisque_n=brisque["all"]["n"],
            brisque_within=inside,
        )
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay rows out as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
