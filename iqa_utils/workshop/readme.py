"""The tables of the README, written from what is published under ``figures``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iqa_utils.datasets import DATASETS
from iqa_utils.workshop.claims import compare, counts
from iqa_utils.workshop.notebooks import notebook_stems
from iqa_utils.workshop.paper_pages import headline_table
from iqa_utils.workshop.provenance import is_current
from iqa_utils.workshop.report import TITLES, compared_by_kind, real_results
from iqa_utils.workshop.runs import ROOT, find_runs


def headlines(runs: list[dict[str, Any]] | None = None) -> str:
    """Write every paper's headline claims with what the published runs say, as Markdown."""
    return headline_table(find_runs(ROOT / "figures") if runs is None else runs)


def layer_table(runs: list[dict[str, Any]] | None = None) -> str:
    """Write as Markdown which layer of each network carries most quality, on real photographs.

    Layer and regressor have the smallest cross-validated error on the training images; their SRCC
    is of the test images.
    """
    runs = find_runs(ROOT / "figures") if runs is None else runs
    lines = ["| network | state | best layer in cross-validation | SRCC | within subsets |"]
    lines.append("| --- " * 5 + "|")
    fields = ("network", "stage", "variant", "layer", "regressor")
    for run in runs:
        if (run["stem"], run["profile"]) != ("04_deep_features_gpr", "biq2021"):
            continue
        told = [(tuple(r[f] for f in fields), r) for r in run["results"]]
        levels = {(place, r["metric"]): r for place, r in told if not r["baseline"]}
        best = [place for place, r in told if (r["baseline"], r["metric"]) == ("BRISQUE", "SRCC")]
        for place in best:
            network, stage, variant, layer, regressor = place
            cells = [network, f"{stage} {variant}".strip(), f"{layer}, {regressor}"]
            for metric in ("SRCC", "SRCC within subset"):
                row = levels[place, metric]
                cells.append(f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def readme_tables(runs: list[dict[str, Any]] | None = None) -> str:
    """Write as Markdown how many quantities were compared, and verdicts per paper and kind."""
    runs = find_runs(ROOT / "figures") if runs is None else runs
    board = compare(real_results(runs))
    table = counts(board)
    table = table.loc[:, table.sum() > 0]
    lines = [compared_by_kind(board), ""]
    lines.append("| paper | what ours is | quantities | " + " | ".join(table.columns) + " |")
    lines.append("| --- " * (len(table.columns) + 3) + "|")
    for (paper, kind), row in table.iterrows():
        title = TITLES[paper].split(":")[0]
        lines.append(f"| {title} | {kind} | {row.sum()} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def notebook_table(runs: list[dict[str, Any]] | None = None) -> str:
    """Write as Markdown the notebooks, the question each asks, and its published runs."""
    runs = find_runs(ROOT / "figures") if runs is None else runs
    lines = ["| notebook | question | published runs |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        head = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title = head.split("\n")[0].removeprefix("# ")
        question = next(line for line in head.split("\n") if line.startswith("> "))[2:]
        told = [_run_line(run) for run in runs if run["stem"] == path.stem]
        cells = [f"[{title}](notebooks/{path.name})", question, "; ".join(told)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _run_line(run: dict[str, Any]) -> str:
    seen = json.loads((run["folder"] / "provenance.json").read_text())
    minutes = seen["seconds"] / 60
    time = f"{seen['seconds']:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
    device = "CPU" if seen["device"] == "cpu" else seen["device"]
    badge = "" if is_current(seen) else ", code changed since"
    return f"[{run['profile']}](figures/{run['stem']}/{run['profile']}), {time}, {device}{badge}"


def speed_table(folder: Path = ROOT / "figures" / "benchmarks") -> str:
    """Write the published measurements of ``make bench`` as Markdown.

    One row per implementation: both times, the ratio (with the goal where it is missed), and the
    largest difference between the results beside the one allowed.
    """
    lines = ["| what | naive | ours | ratio | difference, allowed |", "| --- " * 5 + "|"]
    machines = []
    for path in sorted(folder.glob("*.json")):
        file = json.loads(path.read_text())
        machine = file["machine"]
        machines.append(
            f"{machine['device']}, {machine['cpus']} CPU cores, torch {machine['torch']}"
        )
        for record in file["results"]:
            gate = record["gate"]
            gate = f"{gate['difference']:.1g}, {gate['allowed']:.1g}"
            for name, ratio in record["ratios"].items():
                times = ["", name]
                if legs := record.get("seconds_per_unit"):
                    times = [
                        f"{leg}: {_time(legs[leg]['median'])}" for leg in (next(iter(legs)), name)
                    ]
                goal = record.get("goal") or 0
                reached = f"{ratio:.1f}x" + (f", goal of {goal}x missed" if ratio < goal else "")
                cells = [record["title"], *times, reached, gate]
                lines.append("| " + " | ".join(cells) + " |")
    if not machines:
        return "No measurements are published."
    return "\n".join([*lines, "", f"Medians on {'; '.join(sorted(set(machines)))}."])


def _time(seconds: float) -> str:
    for unit, size in {"s": 1, "ms": 1e-3}.items():
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def needs_table() -> str:
    """Write as Markdown what the ``paper`` profiles ask for, from official numbers."""
    from iqa_utils.workshop.plan import ASSUMED, make_plan

    lines = [
        "| profile `paper` of | data | trainings | images seen | disk, and for a moment | "
        "GPU memory | hours on one large GPU |",
        "| --- " * 7 + "|",
    ]
    computed, idle = False, []
    for stem in notebook_stems():
        plan = make_plan(stem, "paper", official=True)
        if not plan["jobs"]:
            idle.append(stem[:2])
            continue
        computed |= "computed" in plan["source"]
        disk, moment = sum(plan["disk"].values()) / 1e9, plan["moment"] / 1e9
        cells = [stem[:2], ", ".join(DATASETS[name].title for name in plan["sets"])]
        cells += [f"{plan['trainings']:,}", f"{plan['images'] / 1e6:.1f} million"]
        cells += [f"{disk:.0f} GB" + (f", {moment:.0f} GB" if moment else "")]
        cells += [f"{plan['memory'] / 1e9:.1f} GB", f"{plan['hours']:.1f}, {plan['source']}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {', '.join(idle)} | annotation files, results of the others | none | | | | |"]
    lines += ["", "GPU memory is that of weights, gradients, moments and activations in one step."]
    return "\n".join(lines) + f" Computed: networks alone, with {ASSUMED}." * computed


PARTS = {
    "notebooks": notebook_table,
    "results": readme_tables,
    "headlines": headlines,
    "layers": layer_table,
    "speed": speed_table,
    "needs": needs_table,
}


def update_readme(path: Path | None = None) -> bool:
    """Put the current tables between the README's markers; returns whether anything changed."""
    path = path or ROOT / "README.md"
    old = text = path.read_text(encoding="utf-8")
    for part, table in PARTS.items():
        start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{path.name} must hold {start} and {end} once each")
        before, rest = text.split(start)
        text = f"{before}{start}\n{table()}\n{end}{rest.split(end)[1]}"
    if text != old:
        path.write_text(text, encoding="utf-8")
    return text != old
