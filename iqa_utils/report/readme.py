"""The tables of the README, written from what is published under ``figures``."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from iqa_utils.report import TITLES, real_results, verdict_counts
from iqa_utils.runs import ROOT, find_runs
from iqa_utils.workshop.claims import compare


class Headline(NamedTuple):
    """A difference that a reader asks for first.

    Attributes:
        stem: Notebook that measures it.
        claim: What would be so if the method did what it is meant to.
        table: Where its result is, with ``method`` and ``metric``.
        method: Likewise; ``*`` stands for what the run itself chose.
        metric: Likewise.
        sign: 1 where larger is better, -1 for errors.
        profile: Of the published run.
        variant: Likewise, where there are several.
    """

    stem: str
    claim: str
    table: str
    method: str
    metric: str
    sign: int = 1
    profile: str = "biq2021"
    variant: str | None = None

    def answers(self, result: dict[str, Any]) -> bool:
        """Tell whether a result is the one."""
        same = (result["table"], result["metric"]) == (self.table, self.metric)
        variant = self.variant is None or result["variant"] == self.variant
        return same and variant and fnmatchcase(result["method"], self.method)


HEADLINES = (
    Headline("02_cross_sampling",
             "the image-only network, trained, beats ridge on its frozen features, SRCC", "control",
             "Images minus ridge", "SRCC difference"),
    Headline("02_cross_sampling",
             "image and indicators, sampled by method 2, beat the same ridge, SRCC", "control",
             "method2 minus ridge", "SRCC difference"),
    Headline("03_mixed_datasets", "monotone curves as released beat linear re-scaling, SRCC",
             "paired", "released - linear", "SRCC difference"),
    # both observations of the paper for both networks, by the paper's regressor
    *(
        Headline("04_deep_features_gpr", claim.format(title), "control", method.format(network),
                 "SRCC difference", sign, variant=variant)
        for claim, method, sign, variant in (
            ("{}: an earlier layer serves an SVR better than the logits, SRCC",
             "{} logits minus *, SVR, pre-trained", -1, None),
            ("{} fine-tuned: its logits serve better than an earlier layer, SRCC",
             "{} logits minus *, SVR, fine-tuned strict", 1, None),
            ("{}: fine-tuning improves the logits for an SVR, SRCC",
             "{} logits fine-tuned minus pre-trained, SVR", 1, "strict"),
            ("{}, not fine-tuned, beats BRISQUE (each at its best in cross-validation), SRCC",
             "{} * minus BRISQUE, *, pre-trained", 1, None),
            ("{}, fine-tuned, beats BRISQUE likewise, SRCC",
             "{} * minus BRISQUE, *, fine-tuned strict", 1, None),
        )
        for title, network in (("SqueezeNet", "squeezenet1_0"), ("MobileNetV2", "mobilenetv2_100"))
    ),
    Headline("04_deep_features_gpr", "the leak: MobileNetV2 gains by having seen the test images, "
             "SRCC", "control", "mobilenetv2_100 + GPR, as_written minus strict",
             "SRCC difference"),
    Headline("05_lds_fds", "LDS errs less on scores below 40, MAE in points of 100",
             "difference to vanilla", "LDS", "MAE 0-20 and 20-40", -1),
    Headline("05_lds_fds", "the same with weaker features, at 224 px and 16 epochs",
             "difference to vanilla", "LDS", "MAE 0-20 and 20-40", -1, "biq2021_224"),
    Headline("05_lds_fds", "LDS errs less over all, MAE in points of 100",
             "difference to vanilla", "LDS", "MAE", -1),
    Headline("06_distillation", "1,200 images without scores beat 200 scores, same steps, SRCC",
             "control", "distilled, 1200 images minus direct, same steps", "SRCC difference"),
)  # fmt: skip
NOT_MEASURED = "not measured with these settings"
_BEST_LAYER = re.compile(  # results of iqa_utils.studies.layer_scores.against_handcrafted
    r"(\S+) (\S+), (\w+) minus BRISQUE, \w+, (pre-trained|fine-tuned)(?: (\w+))?$"
)


def photograph_table(runs: list[dict[str, Any]] | None = None) -> str:
    """Write what came out on real photographs as Markdown.

    Args:
        runs: Runs to read; those under ``figures`` by default.

    Returns:
        One row of :data:`HEADLINES`: the claim, the difference with its 95 % interval, and whether
        the interval shows it; :data:`NOT_MEASURED` where the published run has other settings.
    """
    runs = find_runs(ROOT / "figures") if runs is None else runs
    published = {(run["stem"], run["profile"]): run["results"] for run in runs}
    lines = ["| notebook | would be so | difference [95 %] | shown |", "| --- " * 4 + "|"]
    for line in HEADLINES:
        place = (line.stem, line.profile)
        if place not in published:
            continue
        found = [result for result in published[place] if line.answers(result)]
        if len(found) != 1:
            lines.append(f"| {line.stem[:2]} | {line.claim} | {NOT_MEASURED} | |")
            continue
        low, high = sorted(line.sign * found[0][end] for end in ("ci_low", "ci_high"))
        shown = "yes" if low > 0 else "the opposite" if high < 0 else "no"
        value, low, high = (found[0][key] for key in ("value", "ci_low", "ci_high"))
        digits = 2 if line.metric.startswith("MAE") else 3
        told = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        lines.append(f"| {line.stem[:2]} | {line.claim} | {told} | {shown} |")
    return "\n".join(lines)


def layer_table(runs: list[dict[str, Any]] | None = None) -> str:
    """Write as Markdown which layer of each network carries most quality, on real photographs.

    Args:
        runs: Runs to read; those under ``figures`` by default.

    Returns:
        One row a network and stage: layer and regressor of the smallest cross-validated error on
        the training images, and their SRCC on the test part, in total and within subsets.
    """
    runs = find_runs(ROOT / "figures") if runs is None else runs
    place = ("04_deep_features_gpr", "biq2021")
    lines = ["| network | state | best layer in cross-validation | SRCC | within subsets |"]
    lines.append("| --- " * 5 + "|")
    for run in runs:
        if (run["stem"], run["profile"]) != place:
            continue
        values = {(r["method"], r["variant"], r["metric"]): r for r in run["results"]}
        for method, _, measure in values:
            if not (found := _BEST_LAYER.match(method)) or measure != "SRCC difference":
                continue
            network, layer, regressor, stage, variant = found.groups(default="")
            name = f"{network} / {layer} ({stage}, {regressor})"
            cells = [network, f"{stage} {variant}".strip(), f"{layer}, {regressor}"]
            for metric in ("SRCC", "SRCC within subsets"):
                row = values[name, variant, metric]
                cells.append(f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def readme_tables(runs: list[dict[str, Any]] | None = None) -> str:
    """Write the README's results as Markdown, from published runs only.

    Args:
        runs: Runs to tell; those under ``figures`` by default.

    Returns:
        A table of verdicts a paper, and a table of the numbers we stand beside the papers'.
    """
    runs = find_runs(ROOT / "figures") if runs is None else runs
    board = compare(real_results(runs))
    counts = verdict_counts(board)
    counts = counts.loc[:, counts.sum() > 0]
    lines = ["| paper | numbers | " + " | ".join(counts.columns) + " |"]
    lines.append("| --- " * (len(counts.columns) + 2) + "|")
    for paper, row in counts.iterrows():
        title = TITLES[str(paper)].split(":")[0]
        lines.append(f"| {title} | {row.sum()} | " + " | ".join(map(str, row)) + " |")
    lines += ["", *_reproduced_lines(board)]
    return "\n".join(lines)


def _reproduced_lines(board: pd.DataFrame) -> list[str]:
    answered = board[board["verdict"].isin(["reproduced", "close", "better", "worse"])]
    lines = ["| paper | table | numbers compared | reproduced | close | better | worse |"]
    lines.append("| --- " * 7 + "|")
    for (paper, table), part in answered.groupby(["paper", "table"], sort=False):
        counts = part["verdict"].value_counts()
        cells = [str(counts.get(v, 0)) for v in ("reproduced", "close", "better", "worse")]
        title = TITLES[paper].split(":")[0]
        lines.append(f"| {title} | {table} | {len(part)} | " + " | ".join(cells) + " |")
    return lines


def notebook_table(runs: list[dict[str, Any]] | None = None) -> str:
    """Write the README's list of notebooks as Markdown.

    Args:
        runs: Runs whose time is told; those under ``figures`` by default.

    Returns:
        One row a notebook: title, the question it asks, and its published runs with their time.
    """
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
    return f"[{run['profile']}](figures/{run['stem']}/{run['profile']}), {time}, {device}"


def speed_table(folder: Path = ROOT / "figures" / "benchmarks") -> str:
    """Write the published measurements of ``make bench`` as Markdown.

    Args:
        folder: JSON files of the benchmarks.

    Returns:
        One row a leg that is not the naive one: what, both times, the ratio (with the goal where
        it is missed), and the largest difference between the results beside the one allowed.
        Below, the machine.
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


PARTS = {
    "notebooks": notebook_table, "results": readme_tables, "photographs": photograph_table,
    "layers": layer_table,
    "speed": speed_table,
}  # fmt: skip


def update_readme(path: Path | None = None) -> bool:
    """Put the current tables between the README's markers.

    Args:
        path: The README, the repository's by default.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: If the markers are not there, once each.
    """
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
