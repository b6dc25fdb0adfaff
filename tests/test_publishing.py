"""What of a run everyone may see, and what stays on the machine that ran it."""

import base64
import getpass
import io
import json
import re
import socket
import subprocess
import sys

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_utils.workshop import notebooks, provenance, runs
from tests.test_runs import PARAMETERS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = runs.ROOT
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def repo(tmp_path, monkeypatch):
    for module in (notebooks, provenance, runs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def picture(side=1200):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def finished(*, demo=False, run_name="", stem="00_x"):
    given = PARAMETERS | {"DATA_ROOT": "/somewhere/private/data", "RUN_NAME": run_name}
    run = runs.start_run(stem, given)
    frame = pd.DataFrame({"mos": [1.0]})
    frame.attrs = {"dataset": "livec", "fingerprint": "f", "demo": demo}
    run.use_data(frame)
    figure, _ = plt.subplots()
    run.save_figure(figure, "numbers")
    run.save_figure(figure, "gallery", photographs=True)
    plt.close(figure)
    return run.finish()


def executed(folder, *outputs, tags=(), source="1"):
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs))
    cell.metadata = {"tags": list(tags), "papermill": {"duration": 1}, "execution": {}}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata = {"papermill": {"input_path": "/home/someone/x.ipynb"}, "widgets": {}}
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "p"}
    path = folder / "00_x.ipynb"
    nbformat.write(notebook, path)
    return path


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


@pytest.mark.parametrize("same", [True, False])
def test_a_run_of_a_copy_without_git_gets_the_commit_that_holds_its_files(repo, same, monkeypatch):
    folder = finished()
    used = json.loads((folder / "provenance.json").read_text())
    path = repo / "iqa_utils" / "used.py"
    path.parent.mkdir()
    path.write_text("x = 1\n")
    files = {"iqa_utils/used.py": provenance._digest(path)}
    path.write_text("x = 1\n" if same else "x = 2\n")
    used |= {"commit": "unknown", "clean": False, "files": files}
    (folder / "provenance.json").write_text(json.dumps(used))
    monkeypatch.setattr(provenance, "commit", lambda: ("0123abcd", True))
    found = json.loads((notebooks.publish(folder) / "provenance.json").read_text())
    told = ("0123abcd", True) if same else ("unknown", False)
    assert (found["commit"], found["clean"]) == told


def test_publishing_leaves_photographs_and_this_machines_paths_behind(repo):
    folder = finished()
    executed(folder, stream(f"{repo}/runs/test -> /somewhere/private/data"))
    target = notebooks.publish(folder)
    assert target == repo / "figures/00_x/test"
    names = sorted(p.name for p in target.iterdir())
    assert names == ["00_x.ipynb", "metrics.json", "numbers.png", "provenance.json"]
    text = "".join(p.read_text() for p in target.iterdir() if p.suffix != ".png")
    assert "/somewhere" not in text
    assert str(repo) not in text
    assert "runs/test -> data" in text
    assert json.loads((target / "provenance.json").read_text())["data"]["livec"]["rows"] == 1


def test_a_run_without_data_of_its_own_is_published(repo):
    run = runs.start_run("00_x", PARAMETERS)
    assert notebooks.publish(run.finish()).is_dir()


def test_demo_results_named_and_unfinished_runs_are_not_published(repo):
    with pytest.raises(ValueError, match="00_x-again has a RUN_NAME"):
        notebooks.publish(finished(run_name="again"))
    folder = finished(demo=True)
    with pytest.raises(ValueError, match="demo data"):
        notebooks.publish(folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"runs/test/00_x holds no metrics\.json"):
        notebooks.publish(folder)


def test_a_public_notebook_keeps_its_outputs_and_nothing_of_papermill(tmp_path):
    text = notebooks.public_notebook(executed(tmp_path, stream("0.75")))
    notebook = nbformat.reads(text, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    (cell,) = notebook.cells
    assert cell.outputs[0]["text"] == "0.75"
    assert "papermill" not in text
    nbformat.validate(notebook)


def test_cells_that_show_photographs_lose_their_outputs(tmp_path):
    shown = nbformat.v4.new_output("display_data", data={"image/png": picture(40)})
    notebook = notebooks.public_notebook(executed(tmp_path, shown, tags=["photographs"]))
    assert "image/png" not in notebook
    assert "not published" in notebook
    assert "image/png" in notebooks.public_notebook(executed(tmp_path, shown))


def test_pictures_shrink_until_the_notebook_is_small(tmp_path, monkeypatch):
    shown = nbformat.v4.new_output("display_data", data={"image/png": picture()})
    path = executed(tmp_path, shown)
    assert path.stat().st_size > 3_000_000
    text = notebooks.public_notebook(path)
    assert len(text) <= notebooks.MOST_BYTES
    (cell,) = nbformat.reads(text, as_version=4).cells
    kept = Image.open(io.BytesIO(base64.b64decode(cell.outputs[0]["data"]["image/png"])))
    assert kept.mode == "P"
    monkeypatch.setattr(notebooks, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"00_x\.ipynb has more than 1,000 bytes"):
        notebooks.public_notebook(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/home/someone/data/biq2021", "biq2021"),
        ("ROOT = '/mnt/sets/all'", "ROOT = 'all'"),
        ("see https://doi.org/10.1/x/y, 3 images/s, and/or", None),
        ("<td>1</td><td>2</td></tr>", None),
        ("runs/paper/02_cross_sampling", None),
    ],
)
def test_only_absolute_paths_are_shortened(before, after):
    assert notebooks.without_paths(before) == (after or before)


def test_user_and_host_are_replaced_in_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "erika")
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    text = notebooks.public_notebook(executed(tmp_path, stream("erika@node17 erikas")))
    assert "user@host erikas" in text
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert "root of it" in notebooks.public_notebook(executed(tmp_path, stream("root of it")))


def test_every_cell_that_shows_photographs_is_tagged():
    found = 0
    for stem in STEMS:
        for cell in nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells:
            shows = cell.cell_type == "code" and re.search(
                r"photographs=True|plot_gallery|prediction_browser\.browse", cell.source
            )
            found += bool(shows)
            assert bool(shows) == ("photographs" in cell.metadata.get("tags", [])), cell.source
    assert found >= 2


def test_no_tracked_file_holds_a_path_of_a_machine():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    place = re.compile(r"(?<![\w.~/-])/(?:home|Users|root|tmp|work|mnt|private)/\w")
    for name in listed:
        path = ROOT / name
        if path.suffix in {".ipynb", ".json", ".csv", ".md", ".yaml", ".toml"} and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not place.search(text), f"{name}: {place.search(text)[0]}"
            assert '"papermill"' not in text, name


def test_notebooks_without_a_network_load_no_torch_and_the_others_load_it_first():
    sources = {}
    for stem in STEMS:
        cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
        sources[stem] = next(c.source for c in cells if c.cell_type == "code")
    light = [source for stem, source in sources.items() if stem[:2] in ("00", "01", "07")]
    code = "\n".join([*light, "import sys; print('torch' in sys.modules)"])
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
    heavy = [source for source in sources.values() if source not in light]
    assert all(re.search("^import torch$", source, re.MULTILINE) for source in heavy)
