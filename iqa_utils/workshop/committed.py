"""What is committed beside published runs: a page per paper, digests of the data files they read.

`iqa report --readme` writes both.
"""

import hashlib
import json
import subprocess
from pathlib import Path

import yaml

from iqa_utils.files import read_mapping, write_json
from iqa_utils.workshop import paper_pages
from iqa_utils.workshop.claims import compare
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.report import settings_of
from iqa_utils.workshop.runs import ROOT, find_runs

DATA_FILES = {".csv", ".yaml", ".npz", ".safetensors"}


def write_paper_pages(folder: Path = ROOT / "docs" / "papers") -> bool:
    """Write the page of each paper from the published runs; returns whether anything changed."""
    runs = sorted(find_runs(ROOT / "figures"), key=lambda run: (run["stem"], run["profile"]))
    board, changed = compare(paper_pages.real_results(runs)), False
    folder.mkdir(exist_ok=True)
    for key, paper in papers().items():
        links = []
        for run in (run for run in runs if run["stem"] in paper.NOTEBOOKS):
            place, name = f"../../figures/{run['stem']}/{run['profile']}", f"{run['stem']}.ipynb"
            there = f"{place}/{name}" if (run["folder"] / name).is_file() else place
            links.append(f"[{run['stem'][:2]} {run['profile']}]({there})")
        head, rest = paper_pages.paper_page(key, runs, board).split("\n\n## ", 1)
        told = f"Executed: {', '.join(links) or 'no run on real data yet'}."
        page = "\n\n".join([head, told, f"## {rest.strip()}", *settings_of(key, runs)]) + "\n"
        path = folder / f"{key}.md"
        changed |= not path.is_file() or path.read_text(encoding="utf-8") != page
        path.write_text(page, encoding="utf-8")
    return changed


def write_data_files(path: Path = ROOT / "figures" / "data_files.json") -> None:
    """Keep the digest of each data file of the package at the commits of the published runs."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    commits = {
        read_mapping(file)["commit"] for file in (ROOT / "figures").glob("*/*/provenance.json")
    }
    kept = {c: {n: d for n, by in old.items() if (d := by.get(c))} for c in sorted(commits)}
    seen = {commit: kept[commit] or data_files(commit) for commit in kept}
    names = sorted({name for found in seen.values() for name in found})
    write_json(path, {n: {c: seen[c][n] for c in seen if n in seen[c]} for n in names})


def data_files(commit: str) -> dict[str, str]:
    """Digest of what the data files of the package and of ``data/`` held at a commit.

    A YAML file counts as what it says, without its comments. Empty where git lacks the commit.
    """
    git = ["git", "-C", str(ROOT)]
    listed = [*git, "ls-tree", "-r", "--name-only", commit, "iqa_utils", "data"]
    names = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    found = {}
    for name in (name for name in names if Path(name).suffix in DATA_FILES):
        shown = [*git, "cat-file", "blob", f"{commit}:{name}"]
        found[name] = data_digest(
            name, subprocess.run(shown, capture_output=True, check=True).stdout
        )
    return found


def data_digest(name: str, content: bytes) -> str:
    """Digest of the content of a data file."""
    if name.endswith(".yaml"):
        content = json.dumps(yaml.safe_load(content), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]
