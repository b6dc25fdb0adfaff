"""The offline site: every claim against every result, executed notebooks, a page for each paper.

Everything is drawn from ``metrics.json``, ``provenance.json``, the figures and the executed
notebooks; nothing is computed again. Sphinx turns ``docs/`` and what is written here into HTML.
"""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from matplotlib.colors import to_hex

from iqa_utils.files import atomic_write, read_mapping
from iqa_utils.workshop import paper_pages
from iqa_utils.workshop.claims import PAPERS, VERDICTS, compare, counts, coverage
from iqa_utils.workshop.notebooks import RELATIVE_LINK, notebook_head, notebook_stems
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.plots.claims import VERDICT_COLOURS, draw_scoreboard
from iqa_utils.workshop.runs import ROOT, find_runs
from iqa_utils.workshop.tables import true_size_table, write_csv

PAGES = {"README.md": "index.md", "data/README.md": "data.md", "CONTRIBUTING.md": "contributing.md"}
HEADS = ("verdict", "what", "paper", "ours", "data", "kind", "reason")


def build_report(folder: Path | None = None, *, runs: list[dict[str, Any]] | None = None) -> Path:
    """Write the site, by default of all runs and to ``runs/report``; returns its ``index.html``.

    Raises:
        RuntimeError: If Sphinx fails; says what it wrote.
    """
    folder = folder or ROOT / "runs" / "report"
    runs, broken = read_runs() if runs is None else (runs, [])
    source = folder.with_name(f".{folder.name}.source")
    built, trees = source / "_build" / "site", source / "_build" / "trees"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source)
    _write_pages(source, [run for run in runs if folder not in run["folder"].parents])
    _write(source / "generated" / "broken.md", "\n".join([*broken, ""]))
    command = [sys.executable, "-m", "sphinx", "-q", "-d", trees, "-b", "html", source, built]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Sphinx did not build the site: {done.stderr.strip()[-2000:]}")
    _write(built / "warnings.txt", done.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    built.rename(folder)
    shutil.rmtree(source)
    return folder / "index.html"


def read_runs() -> tuple[list[dict[str, Any]], list[str]]:
    """Read every run, and say in a line of Markdown each which are broken and left out."""
    with warnings.catch_warnings(record=True, action="always") as told:
        runs = find_runs()
    broken = [f"- {one.message}" for one in told]
    for line in broken:
        print(line, file=sys.stderr)
    return runs, broken


def _write_pages(source: Path, runs: list[dict[str, Any]]) -> None:
    """Write what ``docs/`` includes and lists: tables, and a page per paper, run and module."""
    board = compare(paper_pages.real_results(runs))
    shutil.rmtree(source / "papers", ignore_errors=True)  # written again, of all runs
    for name in ("generated", "papers", "tables"):
        (source / name).mkdir()
    names = {_page_name(run): run for run in sorted(runs, key=_place)}
    for path in list(PAGES)[1:]:
        text = (ROOT / path).read_text(encoding="utf-8")
        _write(source / PAGES[path], _relink(text, Path(path).parent, "", names))
    n = board[board["verdict"] == "not run"].groupby(["paper", "table"]).size().rename("not run")
    waiting = coverage().merge(n, on=["paper", "table"])
    waiting = waiting[["paper", "table", "not run", "claims", "notebook", "needs", "reason"]]
    figure = draw_scoreboard(board)
    figure.savefig(source / "scoreboard.png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    parts = {
        "compared": paper_pages.compared_by_kind(board),
        "verdicts": paper_pages.markdown(counts(board).reset_index()),
        "board": _board(board),
        "cases": cases_table(),
        "headlines": paper_pages.headline_table(runs),
        "layers": paper_pages.layer_table(runs),
        "waiting": paper_pages.markdown(waiting),
        "speed": speed_table(),
        "needs": paper_pages.needs_table(),
        "rehearsal": rehearsal_table(),
        "true_size": true_size_table(),
        "notebooks": _notebook_list(names),
    }
    for name, text in parts.items():
        _write(source / "generated" / f"{name}.md", f"{text}\n")
    for key in PAPERS:
        part = board[board["paper"] == key]
        write_csv(part, source / "tables" / f"{key}.csv")
        text = paper_pages.paper_page(key, runs, board)
        head, rest = text.split("\n\n## ", 1)
        page = [head, _links_of(key, part), _runs_of(key, names), f"## {rest}"]
        page += settings_of(key, names.values())
        _write(source / "papers" / f"{key}.md", "\n\n".join(page))
    for name, run in names.items():
        _write_run(source / "notebooks", name, run, names)
    _write_api(source / "api")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def speed_table(folder: Path = paper_pages.BENCHMARKS) -> str:
    """Write the published measurements of ``make bench``, one row per implementation."""
    rows, machines = [], set()
    for file in paper_pages.measurements(folder):
        machines.add("{device}, {cpus} CPU cores, torch {torch}".format_map(file["machine"]))
        for record in file["results"]:
            rows += _limited(record) if "goal" not in record else _compared(record)
    if not rows:
        return "No measurements are published."
    columns = ["job", "what a user would write", "ours", "ratio", "goal", "met", "difference"]
    table = paper_pages.markdown(pd.DataFrame(rows, columns=columns))
    return f"{table}\n\nMedians on {'; '.join(sorted(machines))}."


def rehearsal_table(path: Path = ROOT / "figures" / "rehearsal" / "times.json") -> str:
    """Write what the runs of the last kept rehearsal took, and on which processor."""
    if not path.is_file():
        return "No times of a rehearsal are kept: `iqa rehearse --keep-times`."
    seen, rows = json.loads(path.read_text()), []
    for name, run in seen["runs"].items():
        trained = ", ".join(f"{count} {network}" for network, count in run["trainings"].items())
        row = {"run": f"`{name}`", "minutes": f"{run['seconds'] / 60:.1f}"}
        row |= {"attempts": run["attempts"], "threads": run["threads"]}
        rows.append(row | {"trainings by kind of network": trained or "none"})
    state = "" if seen["clean"] else ", with changes"
    where = "{cores} cores of {cpu}, torch {torch}, {workers} at a time, commit {commit}"
    told = f"{where.format_map(seen)}{state}: {sum(seen['calls']) / 60:.0f} minutes in all."
    if "data" in seen:  # not kept before
        scores = "real where they were given" if seen["annotations"] else "synthetic"
        seconds, size = seen["data"]["seconds"], seen["data"]["bytes"] / 1e6
        told += f" Of these, {seconds:.0f} seconds made the data sets that were not there; all sets"
        told += f" take {size:.0f} MB, a file with several names once. Scores are {scores}."
    return f"{paper_pages.markdown(pd.DataFrame(rows))}\n\nOn {told}"


def _compared(record: dict[str, Any]) -> list[list[str]]:
    """Write one row per implementation that was timed, or measured, against the naive one."""
    goal, implementations, rows = record["goal"], record.get("seconds_per_unit", {}), []
    gate = record["gate"]
    equal = gate["difference"] <= gate["allowed"]
    difference = "{difference:.1g}, allowed {allowed:.1g}".format_map(gate)
    told = {
        implementation: f"{implementation}: {_time(seconds['median'])}"
        for implementation, seconds in implementations.items()
    }
    naive = next(iter(told.values()), "")
    for name, ratio in record["ratios"].items():
        met = "yes" if equal and ratio >= (goal or 0) else "**no**"
        least = f"{goal:.3g}x" if goal else "equal results"
        ours = told.get(name, name)
        if name in implementations and "scoring" in record["title"]:  # seconds of one image
            ours += f", {1 / implementations[name]['median']:.3g} images/s"
        row = [record["title"], naive, ours, f"{ratio:.3g}x", least, met]
        rows.append([*row, difference])
    return rows


def _limited(record: dict[str, Any]) -> list[list[str]]:
    """Write the row of a number that must not be above a limit."""
    found, allowed = record["gate"]["difference"], record["gate"]["allowed"]
    naive = f"{record['naive']:.3g}" if "naive" in record else ""
    ratio = "".join(f"{ratio:.3g}x" for ratio in record["ratios"].values())
    met, ours = "yes" if found <= allowed else "**no**", f"{found:.3g}"
    peaks = [f"{peak:.0f} MB for {n} images" for n, peak in record.get("megabytes", {}).items()]
    ours += f" ({', '.join(peaks)})" * bool(peaks)
    return [[record["title"], naive, ours, ratio, f"at most {allowed:g}", met, ""]]


def _time(seconds: float) -> str:
    unit, size = ("s", 1) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"


def _links_of(key: str, part: pd.DataFrame) -> str:
    """Lead to a paper's numbers; ``part`` has two rows of what two kinds of result answer."""
    board = f'<a href="../scoreboard.html#{key}">scoreboard</a>'
    return f"All {part.index.nunique()} printed numbers: {board}, [CSV](../tables/{key}.csv)."


def settings_of(key: str, runs: Iterable[dict[str, Any]]) -> list[str]:
    """Quote a paper's settings beside ours: one table per published run that differs."""
    own = [one for one in runs if one["stem"] in papers()[key].NOTEBOOKS]
    tables = {run["stem"][:2] + ", " + _run_label(run): run for run in own if _is_published(run)}
    found = {name: paper_pages.settings_table(run) for name, run in tables.items()}
    told = [f"### Notebook {name}\n\n{table}" for name, table in found.items() if table]
    return ["## Settings side by side", *told] if told else []


def cases_table(path: Path = ROOT / "tests" / "verdict_cases.csv") -> str:
    """Write the made-up results that the rule of verdicts is tested with."""
    if not path.is_file():
        return "The cases lie with the tests of the repository, which are not here."
    cases = pd.read_csv(path, dtype=str, keep_default_na=False)
    place = cases["table"] + ", " + cases["method"] + ", " + cases["metric"]
    fields = cases[["network", "weights", "recipe", "protocol"]].to_numpy()
    ours = [", ".join(filter(None, row)) for row in fields]
    runs = cases["n_runs"] + " (" + cases["kind"].replace("", "no kind said") + ")"
    table = {"verdict": cases["verdict"], "case": cases["case"], "paper": cases["paper"]}
    table |= {"row": place, "our value": cases["value"], "runs": runs, "what ours is": ours}
    return paper_pages.markdown(pd.DataFrame(table | {"reason": cases["reason"]}))


def _runs_of(key: str, names: dict[str, dict[str, Any]]) -> str:
    """List a paper's notebooks and their runs on real data, one line each."""
    lines = []
    for stem in papers()[key].NOTEBOOKS:
        own = {name: run for name, run in names.items() if run["stem"] == stem}
        real = {name: run for name, run in own.items() if run["profile"] != "demo"}
        for name, run in real.items():
            title = notebook_head(stem)[0]
            n = max((r["n_runs"] for r in run["results"] if r["kind"] == "trained here"), default=0)
            told = f"{n} run{'s' * (n > 1)}" if n else "nothing is trained"
            link = f"[{_run_label(run)}](../notebooks/{name})"
            lines.append(f"- [{title}](#{stem}), executed: {link}, {told}")
        if not real:
            lines.append(f"- `{stem}`: no run on real data yet")
    return "\n".join(lines)


def _board(board: pd.DataFrame) -> str:
    """Write every row of the ledger as one HTML table, grouped, with the verdict first."""
    titles = {key: paper.TITLE.split(":")[0] for key, paper in papers().items()}
    style = '[data-verdict="{}"] .verdict{{background:{}66}}'
    shades = {verdict: to_hex(colour) for verdict, colour in VERDICT_COLOURS.items()}
    colours = "".join(style.format(*shade) for shade in shades.items())
    said = {v: v for v in VERDICTS if (board["verdict"] == v).any()}
    lines = ["```{raw} html", f"<style>{colours}</style>", '<p class="filters">']
    for what, options in (("paper", titles), ("table", {}), ("verdict", said)):
        offered = "".join(f'<option value="{k}">{text}</option>' for k, text in options.items())
        first = f'<select aria-label="{what}"><option value="">every {what}</option>'
        lines += [first, f"{offered}</select>"]
    named = "".join(f"<th>{name}</th>" for name in HEADS)
    lines.append(f'</p><div class="wide"><table class="scoreboard"><thead><tr>{named}</tr></thead>')
    for (paper, table), part in board.groupby(["paper", "table"], sort=False):
        place = html.escape(table)
        lines.append(f'<tbody data-paper="{paper}" data-table="{place}"><tr class="group">')
        lines.append(f'<th colspan="{len(HEADS)}">{html.escape(titles[paper])}, {place}</th></tr>')
        lines += [*map(_board_row, part.to_dict("records")), "</tbody>"]
    return "\n".join([*lines, "</table></div>", "```"])


def _board_row(row: dict[str, Any]) -> str:
    what = ", ".join(filter(None, (row["method"], row["dataset"], row["metric"])))
    ours = "" if pd.isna(row["ours"]) else f"{row['ours']:.4g} {row['ci']}"
    data = row["data"] + ("" if pd.isna(row["n"]) else f", n = {row['n']:.0f}")
    cells = [what, row["paper value"], ours, data, row["kind"], row["reason"]]
    text = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    verdict = row["verdict"]
    return f'<tr data-verdict="{verdict}"><td class="verdict">{verdict}</td>{text}</tr>'


def _place(run: dict[str, Any]) -> tuple[str, bool, bool, str, str]:
    """Order runs by notebook, published ones first, then other real ones, demo runs last."""
    demo = run["profile"] == "demo"
    return run["stem"], not _is_published(run), demo, run["profile"], str(run["folder"])


def _is_published(run: dict[str, Any]) -> bool:
    return "figures" in run["folder"].parts


def _page_name(run: dict[str, Any]) -> str:
    folder = run["stem"] if _is_published(run) else run["folder"].name
    name = f"{folder}--{run['profile']}" + "--published" * _is_published(run)
    return re.sub(r"[^\w-]", "_", name)


def _write_run(folder: Path, name: str, run: dict[str, Any], names: dict[str, Any]) -> None:
    """Write the page of a run: its executed notebook where there is one, else its figures."""
    told, settings = [_provenance(run["folder"])], paper_pages.settings_table(run)
    settings = f"\n\nWhere its settings differ from the paper's:\n\n{settings}" if settings else ""
    if run["results"]:
        write_csv(pd.DataFrame(run["results"]), folder / f"{name}.csv")
        told.append(f"Results: [CSV]({name}.csv).")
    notebook = run["folder"] / f"{run['stem']}.ipynb"
    if notebook.is_file():
        content = nbformat.read(notebook, as_version=4)
        content.metadata.pop("widgets", None)
        base = run["folder"].relative_to(ROOT) if _is_published(run) else Path("notebooks")
        for cell in content.cells:
            if cell.cell_type == "markdown":
                cell.source = _relink(cell.source, base, name, names)
        content.cells.insert(1, nbformat.v4.new_markdown_cell(" ".join(told) + settings))
        nbformat.write(content, folder / f"{name}.ipynb")
        return
    figures = sorted([*run["folder"].glob("*.png"), *run["folder"].glob("figures/*.png")])
    lines = [f"# {notebook_head(run['stem'])[0]}", "", " ".join(told) + settings, ""]
    for figure in figures:
        shutil.copy(figure, folder / f"{name}-{figure.name}")
        lines += [f"## {figure.stem.replace('_', ' ')}", "", f"![]({name}-{figure.name})", ""]
    _write(folder / f"{name}.md", "\n".join(lines))


def _provenance(folder: Path) -> str:
    path = folder / "provenance.json"
    if not path.is_file():
        return ""
    seen = json.loads(path.read_text())
    data = ", ".join(seen["data"]) or "no data set"
    seen["data"] = f"synthetic data ({data})" if seen["demo"] and seen["data"] else data
    told = "This run: {data}; {seconds:.0f} s on {device}, commit {commit}".format_map(seen)
    changed = "has changed" if paper_pages.has_changed(folder) else "has not changed"
    note = ROOT / "figures" / "trained_before.yaml"
    before = read_mapping(note) if note.is_file() else {}
    more = before.get(f"{folder.parent.name}/{folder.name}", "")
    return f"{told}; the code that it used {changed} since. {more}".rstrip()


def write_index() -> Path:
    """Write ``runs/index.ipynb``, the page that ``make lab`` opens: every notebook by its question.

    Its links lead on inside JupyterLab, as those of a Markdown file in the editor would not.
    """
    told = ["# Notebooks", "What this repository is: [README](../README.md)."]
    for stem in notebook_stems():
        title, question = notebook_head(stem)
        told.append(f"**[{title}](../notebooks/{stem}.ipynb)**  \n{question}")
    cell = nbformat.v4.new_markdown_cell("\n\n".join(told), id="index")
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    path = ROOT / "runs" / "index.ipynb"
    with atomic_write(path) as file:
        nbformat.write(notebook, file)
    return path


def _notebook_list(names: dict[str, dict[str, Any]]) -> str:
    lines, entries = [] if names else ["No finished run yet: `make demo`."], []
    for stem, own in itertools.groupby(names.items(), lambda item: item[1]["stem"]):
        title, question = notebook_head(stem)
        labels = {name: _run_label(run) for name, run in own}
        lines += [f"({stem})=", f"## {title}", "", question, ""]
        lines += [f"- [{label}]({name})" for name, label in labels.items()] + [""]
        entries += [f"{title}, {label} <{name}>" for name, label in labels.items()]
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", *entries, "```"])


def _run_label(run: dict[str, Any]) -> str:
    name = run["folder"].name.removeprefix(run["stem"]).strip("-")
    return run["profile"] + (" (published)" if _is_published(run) else f" {name}" if name else "")


def _relink(text: str, base: Path, page: str, names: dict[str, dict[str, Any]]) -> str:
    """Lead the links of a file to pages of the site, else to the public repository or nowhere."""
    up = "../" if page else ""

    def lead(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = (ROOT / base / target).resolve()
        known = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        found = PAGES.get(known, "")
        if known.startswith("notebooks/"):
            profile = names[page]["profile"] if page else ""
            own = [name for name, run in names.items() if run["stem"] == path.stem]
            own.sort(key=lambda name: names[name]["profile"] != profile)
            found = f"notebooks/{own[0]}" if own else ""
        if found:
            return f"[{label}]({up}{found}{anchor})"
        repository = paper_pages.address("repository")
        there = f"{repository}/blob/main/{known}{anchor}"
        return f"[{label}]({there})" if repository and known else label

    return RELATIVE_LINK.sub(lead, text)


def _write_api(folder: Path) -> None:
    """Write a page for each module of the package but the workshop, from its docstrings."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "iqa_utils").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        said = f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
        if parts[1] not in ("workshop", "__init__"):
            found.setdefault(parts[1], [f"# {parts[1]}\n"]).append(said)
    for name, texts in found.items():
        _write(folder / f"{name}.md", "\n".join(texts))
