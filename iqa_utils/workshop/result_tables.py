"""What the README and the site print of our results, as Markdown; nothing is typed by hand."""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from iqa_utils.workshop.claims import COMPARED, KINDS, counts
from iqa_utils.workshop.runs import ROOT


def address(name: str) -> str:
    """Return a public address of the project, ``repository`` or ``pages``; empty where not set."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"].get("iqa", {}).get(name, "").rstrip("/")


def markdown(table: pd.DataFrame) -> str:
    """Write a table without its index; ``|`` may not stand in a cell."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "| --- " * table.shape[1] + "|"]
    cells = table.astype(object).fillna("").to_numpy()
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in cells)])


def real_results(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results on real data, each once though a published run is found twice."""
    return _unique(result for run in runs for result in run["results"] if result["data"] != "demo")


def demo_results(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the results that were on synthetic data, each once."""
    return _unique(result for run in runs for result in run["results"] if result["data"] == "demo")


def _unique(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(result, sort_keys=True): result for result in results}.values())


def compared_by_kind(board: pd.DataFrame) -> str:
    """Say how many distinct quantities were compared, by kind of answer, trained networks first."""
    table = counts(board)[list(COMPARED)].groupby("kind").sum().sum(axis=1)
    trained = int(table.get("trained here", 0))
    rest = ", ".join(f"{table[k]} {k}" for k in KINDS[:3] if table.get(k, 0))
    return (
        f"{(board['role'] == '').groupby(board.index).first().sum()} distinct quantities in "
        f"{board.index.nunique()} printed numbers. Compared so far: {trained} of trained networks"
        f"{', ' + rest if rest else ''}."
    )


def layer_table(runs: list[dict[str, Any]]) -> str:
    """Write the layer and regressor with the smallest cross-validated error, and their SRCC."""
    columns = ["network", "state", "best layer in cross-validation", "SRCC", "within subsets"]
    fields, rows = ("network", "stage", "variant", "layer", "regressor"), []
    wanted = ("04_deep_features_gpr", "biq2021")
    for run in [run for run in runs if (run["stem"], run["profile"]) == wanted]:
        told = {(*(r[f] for f in fields), r["baseline"], r["metric"]): r for r in run["results"]}
        for *place, baseline, metric in told:
            if (baseline, metric) == ("BRISQUE", "SRCC"):
                levels = [told[*place, "", m] for m in ("SRCC", "SRCC within subset")]
                network, stage, variant, layer, regressor = place
                cells = [network, f"{stage} {variant}".strip(), f"{layer}, {regressor}"]
                rows.append([*cells, *(f"{r['value']:.3f} {interval(r)}" for r in levels)])
    return markdown(pd.DataFrame(rows, columns=columns).drop_duplicates())


def interval(result: dict[str, Any]) -> str:
    """Write the interval of a result."""
    return f"[{result['ci_low']:.3f}, {result['ci_high']:.3f}]"


def speed_table(folder: Path = ROOT / "figures" / "benchmarks") -> str:
    """Write the published measurements of ``make bench``, one row per implementation."""
    rows, machines = [], set()
    for file in _measurements(folder):
        machine = "{device}, {cpus} CPU cores, torch {torch}".format_map(file["machine"])
        machines.add(machine)
        for record in file["results"]:
            gate = f"{record['gate']['difference']:.1g}, {record['gate']['allowed']:.1g}"
            for name, ratio in record["ratios"].items():
                times = ["", name]
                if legs := record.get("seconds_per_unit"):
                    both = (next(iter(legs)), name)
                    times = [f"{leg}: {_time(legs[leg]['median'])}" for leg in both]
                goal = record.get("goal") or 0
                reached = f"{ratio:.1f}x" + (f", goal of {goal}x missed" if ratio < goal else "")
                rows.append([record["title"], *times, reached, gate])
    if not rows:
        return "No measurements are published."
    columns = ["what", "naive", "ours", "ratio", "difference, allowed"]
    table = markdown(pd.DataFrame(rows, columns=columns))
    return f"{table}\n\nMedians on {'; '.join(sorted(machines))}."


def speed_line() -> str:
    """Say in one line what the published measurements of ``make bench`` are."""
    files = _measurements(ROOT / "figures" / "benchmarks")
    records = [record for file in files for record in file["results"]]
    ratios = sorted(r for record in records for r in record["ratios"].values())
    if not ratios:
        return "No measurements are published."
    return (
        f"{len(records)} jobs measured against what one would write first, with equal results: "
        f"{ratios[0]:.1f}x to {ratios[-1]:.0f}x, median {ratios[len(ratios) // 2]:.0f}x."
    )


def _measurements(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _time(seconds: float) -> str:
    for unit, size in {"s": 1, "ms": 1e-3}.items():
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def needs_table() -> str:
    """Write what the ``paper`` profiles ask for, from official numbers."""
    from iqa_utils.datasets import DATASETS
    from iqa_utils.workshop.notebooks import stems_with
    from iqa_utils.workshop.plan import ASSUMED, make_plan

    plans = {stem[:2]: make_plan(stem, "paper", official=True) for stem in stems_with("paper")}
    rows, idle = [], ", ".join(number for number, plan in plans.items() if not plan["jobs"])
    for number, plan in plans.items():
        disk, moment = sum(plan["disk"].values()) / 1e9, plan["moment"] / 1e9
        row = {
            "`paper` profile of": number,
            "data": ", ".join(DATASETS[name].title for name in plan["sets"]),
            "trainings": f"{plan['trainings']:,}",
            "images seen": f"{plan['images'] / 1e6:.1f} million",
            "disk, and for a moment": f"{disk:.0f} GB" + f", {moment:.0f} GB" * bool(moment),
            "GPU memory": f"{plan['memory'] / 1e9:.1f} GB",
            "hours on one large GPU": f"{plan['hours']:.1f}, {plan['source']}",
        }
        rows += [row] if plan["jobs"] else []
    others = {"data": "annotation files, results of the others", "trainings": "none"}
    rows.append({"`paper` profile of": idle} | others)
    text = markdown(pd.DataFrame(rows))
    text += "\n\nGPU memory is that of weights, gradients, moments and activations in one step."
    computed = any("computed" in plan["source"] for plan in plans.values())
    return text + f" Computed: networks alone, with {ASSUMED}." * computed
