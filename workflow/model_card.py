"""Write the card of the default quality model: ``python workflow/model_card.py``.

Every number comes from ``docs/model_card.json``. What ``default_model.py --leave-out`` left in
``runs/default_model`` is taken into it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distortion_levels import LEVELS

ROOT = Path(__file__).parents[1]
DOCS, WORK = ROOT / "docs", ROOT / "runs" / "default_model"
CARD = DOCS / "model_card.json"
SUBSETS, N_TRAINING, RECIPE_STEPS = ("ss01", "ss02", "ss03"), 1600, 600
METHODS = ("whole recipe", "ridge on all maps", "ridge on the last layer")


def left_out(folder: Path) -> dict[str, Any]:
    """Read the three results of ``--leave-out``; what is missing or only a trial is refused."""
    found = {}
    for name in SUBSETS:
        file = folder / f"{name}.json"
        if not file.is_file():
            raise FileNotFoundError(f"run `default_model.py --leave-out {name}` first: no {file}")
        found[name] = json.loads(file.read_text())
        photographs, steps = found[name]["n"] + found[name]["n_training"], found[name]["steps"]
        if (photographs, steps) != (N_TRAINING, RECIPE_STEPS):
            raise ValueError(
                f"{name} must come from {RECIPE_STEPS} steps and {N_TRAINING} photographs, "
                f"{file} has {steps} and {photographs}"
            )
    return found


def values(row: Mapping[str, Any], *metrics: str) -> list[str]:
    """Spell values with their intervals."""
    return ["{:.3f} [{:.3f}, {:.3f}]".format(*row[metric]) for metric in metrics]


def across_table(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Say what was trained on two subsets, and lay out the result on the third."""
    found, first = facts.get("left_out"), "the two others -> "
    if not found:
        told = (
            "This is the first stage only, on all\n"
            "maps and on the last layer alone; the whole recipe was not run three times."
        )
        rows = [
            (first + name, *(v if k == "n" else f"{v:.3f}" for k, v in row.items()))
            for name, row in facts["across"].items()
        ]
        return told, markdown_table(("training -> test", "n", "all maps", "last layer"), rows)
    devices = ", ".join(sorted({row["device"] for row in found.values()}))
    passes = ", ".join(str(row["passes"]) for row in found.values())
    [(steps, seed)] = {(row["steps"], row["seed"]) for row in found.values()}
    column = "whole recipe minus ridge on all maps"
    worse = sum(row[column]["SRCC"][2] < 0 for row in found.values())
    told = (
        "The whole recipe with\nsteps and seed of the shipped file "
        f"({steps}, {seed}), trained on {devices}, beside its first stage, ridge\nregression, "
        f"on all maps and on the last layer alone. {steps} steps are {passes} passes over the "
        "photographs left for training.\n95 % bootstrap intervals over the photographs of "
        "the test; the difference is the whole recipe minus ridge on all maps, paired.\nPLCC is "
        "in `docs/model_card.json`. Made by `python workflow/default_model.py --leave-out ss01` "
        "(and `ss02`, `ss03`)\nand `python workflow/model_card.py`."
    )
    if worse:
        told += (
            f"\n\nOn {worse} of {len(found)} subsets that it had not seen, the second stage ranks "
            "photographs worse than the first\nalone: expect no more than the first stage's "
            "agreement on other photographs. It is kept for the order of distortions below."
        )
    columns = (*METHODS, column)
    rows = [
        (first + name, row["n"], *(values(row[one], "SRCC")[0] for one in columns))
        for name, row in found.items()
    ]
    return told, markdown_table(("training -> test", "n", *METHODS, "difference"), rows)


def write_card(facts: dict[str, Any]) -> None:
    """Write the numbers as JSON, and the card from them."""
    CARD.write_text(json.dumps(facts, indent=1, default=float) + "\n")
    (DOCS / "model_card.md").write_text(card(facts), encoding="utf-8")


def card(facts: Mapping[str, Any]) -> str:
    """Fill the card's tables; everything that is a number comes from ``facts``."""
    agreement_rows = [
        (name, facts["test"][name]["n"], *values(facts["test"][name], "SRCC", "PLCC"))
        for name in facts["test"]
    ]
    across_told, across = across_table(facts)
    falls = [
        (f"{kind}: {', '.join(map(str, LEVELS[kind]))}", *(f"{100 * v:.0f}" for v in row))
        for kind, row in facts["falls"]["test"]["by level"].items()
    ]
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
            across_told=across_told,
            across=across,
            falls=markdown_table(("distortion: levels", *"12345"), falls),
            share="{:.1f} % of {}".format(
                100 * facts["falls"]["test"]["share"], facts["falls"]["test"]["pairs"]
            ),
            choice=f"{100 * facts['falls']['choice']['share']:.1f} %",
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


def main() -> None:
    """Take the results of ``--leave-out`` into the numbers, and write the card."""
    write_card(json.loads(CARD.read_text()) | {"left_out": left_out(WORK)})


if __name__ == "__main__":
    main()
