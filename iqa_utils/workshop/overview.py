"""What is here: notebooks with their profiles and runs, data sets, weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from iqa_utils.datasets import DATASETS, DEMO_MARKER, describe, locate
from iqa_utils.files import atomic_write
from iqa_utils.workshop import ROOT
from iqa_utils.workshop.downloads import SOURCES


def lines(data_root: Path) -> list[str]:
    """Say in lines of text which notebooks, profiles, runs, data sets and weights there are."""
    here = [name for name in DATASETS if is_here(name, data_root)]
    texts = ["notebooks: profiles; finished runs", *_notebook_lines()]
    texts += [f"data sets below {data_root}", f"  here      {_listed(here)}"]
    texts += [f"  download  {_listed(name for name in SOURCES if name not in here)}"]
    texts += ["  others    iqa data list", "weights"]
    return texts + [f"  {line}" for line in _weights()]


def catalogue(data_root: Path) -> list[str]:
    """Describe every data set, and whether it is here, served openly, or fetched by hand."""
    texts = []
    for name in DATASETS:
        where = f"{data_root / name}"
        if is_here(name, data_root):
            where += ", synthetic" * (data_root / name / DEMO_MARKER).is_file()
        else:
            how = f"iqa data download {name}" if name in SOURCES else "by hand to"
            where = f"no; {how} {where}"
        texts.append(f"{describe(name)}\n  here    {where}")
    return texts


def is_here(name: str, data_root: Path) -> bool:
    """Tell whether the annotation files of a data set are in its folder."""
    try:
        return bool(locate(name, data_root / name))
    except FileNotFoundError:
        return False


def write_index() -> Path:
    """Write ``runs/index.ipynb``, the page that ``make lab`` opens: every notebook by its question.

    Its links lead on inside JupyterLab, as those of a Markdown file in the editor would not.
    """
    import nbformat

    from iqa_utils.workshop.notebooks import notebook_head, notebook_stems

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


def _notebook_lines() -> list[str]:
    from iqa_utils.workshop.notebooks import notebook_head, notebook_stems, profiles_of
    from iqa_utils.workshop.runs import find_runs

    runs, roots = defaultdict(list), (ROOT / "figures", ROOT / "runs")
    for run in [*find_runs(*roots), *find_runs(*roots, rehearsal=True)]:
        name = run["folder"].name.removeprefix(run["stem"])
        is_own = run["folder"].is_relative_to(ROOT / "runs")
        runs[run["stem"]].append(run["profile"] + (name if is_own else ", published"))
    texts = []
    for stem in notebook_stems():
        told = f"{_listed(profiles_of(stem))}; {_listed(runs[stem], '; ')}"
        texts.append(f"  {notebook_head(stem)[0]}: {told}")
    return texts


def _weights() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    shipped = ("shipped", Path(__file__).parents[1] / "weights", "quality.safetensors")
    files = ("file", ROOT / "data" / "weights", "*.*")
    found, hub = [], ("hub", Path(HF_HUB_CACHE), "models--*")
    for word, folder, pattern in (shipped, files, hub):
        for path in sorted(folder.glob(pattern)):
            found.append(f"{word:9} {path.name.removeprefix('models--').replace('--', '/')}")
    return found or ["none; `hub` fetches them, or put files into data/weights"]


def _listed(names: Iterable[str], by: str = ", ") -> str:
    return by.join(names) or "none"
