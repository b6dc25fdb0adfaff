"""A sixth paper is six things to write; everything else finds it by its name.

``tests/sixth_paper`` holds them as they would lie in the repository: ledger rows (in the files of
``data``), its file in ``workshop/papers``, a notebook, its parameters, one module and its test.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).with_name("sixth_paper")
STEPS = """
import json, nbformat, pytest, re
from pathlib import Path
from iqa_utils.workshop import claims, notebooks, papers, readme, report, sweeps
from iqa_utils.workshop.paper_pages import demo_results, real_results
from iqa_utils.workshop.rehearsal import rehearse
from iqa_utils.workshop.runs import ROOT, find_runs

assert pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_brightness.py"]) == 0
assert list(papers.papers())[-1] == "toy2030"
jobs = [job.stem for job in sweeps.read_grid(sweeps.grid_path("paper"))]
assert jobs == ["07_scoreboard", "90_toy"]
assert notebooks.run_notebooks(["90"]) == []
assert rehearse(["90"]) == []
assert notebooks.run_notebooks(["90"], profile="paper", publish_results=True) == []
found = find_runs()
board = claims.compare(real_results(found), "toy2030")
assert notebooks.run_notebooks(["07"], profile="paper") == []
executed = nbformat.read("runs/paper/07_scoreboard/07_scoreboard.ipynb", as_version=4)
drawn = [output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])]
words = ["".join(data.get("text/markdown", "")) for data in drawn]
place = words.index("**Toy 2030: brightness as quality**")
cells = re.findall(r">([^<>]+)</td>", "".join(drawn[place + 1]["text/html"]))
readme.update_readme()
report._write_api = lambda folder: None  # a page per module, slow and the same for every paper
index = report.build_report(runs=found)
told = {"verdicts": board["verdict"].tolist(), "reasons": board["reason"].tolist()}
told |= {"demo": len(demo_results(found)), "coverage": claims.coverage().query(
    "paper == 'toy2030'")[["covered", "notebook"]].values.tolist()}
told |= {"claims": "".join(words), "row": cells}
told |= {"site": str(index.parent), "rehearsed": (ROOT / "runs/rehearsal/90_toy").is_dir()}
Path("told.json").write_text(json.dumps(told))
"""


def write_set(folder: Path, *, demo: bool) -> None:
    """Write sixty small images whose score is their brightness."""
    folder.mkdir(parents=True)
    levels = np.random.default_rng(0).permutation(np.arange(60)) * 4
    for i, level in enumerate(levels):
        Image.new("RGB", (8, 6), (int(level),) * 3).save(folder / f"{i:02d}.png")
    table = pd.DataFrame({"image": [f"{i:02d}.png" for i in range(60)], "mos": levels / 50})
    table.to_csv(folder / "scores.csv", index=False)
    if demo:
        (folder / "demo.json").write_text("{}")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the repository without the other notebooks, with the sixth paper in it."""
    house = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "iqa_utils", house / "iqa_utils", ignore=ignored)
    data = shutil.ignore_patterns("demo", "rehearsal", "splits")
    shutil.copytree(ROOT / "data", house / "data", ignore=data)
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, house)
    shutil.copytree(ROOT / "docs", house / "docs")
    shutil.copytree(TOY / "notebooks", house / "notebooks")
    (house / "workflow" / "grids").mkdir(parents=True)
    grid = "07_scoreboard:\n  gpus: 0\n  grid: {SEED: [0]}\n"
    (house / "workflow" / "grids" / "paper.yaml").write_text(grid)
    for name in ("07_scoreboard.ipynb", "params/07_scoreboard.paper.yaml"):
        shutil.copy(ROOT / "notebooks" / name, house / "notebooks" / name)
    for path in (TOY / "data").iterdir():
        target = house / "data" / path.name
        target.write_text(target.read_text() + path.read_text())
    kept = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(TOY, house, ignore=kept, dirs_exist_ok=True)
    write_set(house / "data/real/table", demo=False)
    write_set(house / "data/demo/table", demo=True)
    return house


@pytest.mark.slow
def test_a_sixth_paper_is_found_by_everything_that_lists_papers(house):
    environment = os.environ | {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=house, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads((house / "told.json").read_text())
    assert told["verdicts"] == ["reproduced", "not run"]
    assert told["reasons"][1] == "the second camera of the paper is not public"
    assert told["coverage"] == [[1, "90_toy"], [0, ""]]
    assert told["demo"] == 1
    assert told["rehearsed"]
    assert {"Table 1", "brightness", "1.00", "reproduced"} <= set(told["row"])  # of notebook 07
    assert "Brightness ranks the photographs of one camera." in told["claims"]
    text = (house / "README.md").read_text()
    claim = "Brightness ranks the photographs of one camera."
    assert "| Toy 2030: brightness as quality | Brightness ranks" in text
    assert "[90 · Toy](notebooks/90_toy.ipynb)" in text
    assert "Brightness ranks the photographs of one camera." in text
    site = Path(told["site"])
    assert claim in (site / "papers" / "toy2030.html").read_text()
    assert "toy2030" in (site / "scoreboard.html").read_text()
    assert list(site.glob("notebooks/90_toy*.html"))
