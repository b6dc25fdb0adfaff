"""What of a finished run on real data everyone may see: numbers, figures, the executed notebook."""

import base64
import getpass
import io
import json
import re
import shutil
import socket
from pathlib import Path

import nbformat
from PIL import Image

from iqa_utils.files import write_json
from iqa_utils.workshop import provenance, runs

MOST_BYTES = 600_000  # of a published notebook
QUALITIES = ((1000, 128), (900, 64), (720, 32), (560, 16), (400, 8))  # longest side, colours
COMMON_USERS = ("root", "user", "runner")  # name nobody, and are words of other texts
HIDDEN = "Photographs of a data set: shown in the run's own folder, not published."
_ABSOLUTE = re.compile(r"(?<![\w.:/~<-])/(?:[\w.+@-]+/)+([\w.+@-]*)")


def publish(folder: Path) -> Path:
    """Copy the public part of a finished run on real data to ``figures/STEM/PROFILE``.

    That is ``metrics.json`` (numbers to nine digits), ``provenance.json``, PNG figures without
    photographs, and the executed notebook as :func:`public_notebook` makes it. A run of a copy
    without git gets the commit here if all files that it used are those here, by their digests.
    """
    name = str(folder.relative_to(runs.ROOT)) if folder.is_relative_to(runs.ROOT) else str(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{name} holds no metrics.json: the run did not finish")
    metrics = json.loads((folder / "metrics.json").read_text())
    if metrics["profile"] == "rehearsal":
        raise ValueError(f"{name} is a rehearsal; only real results are published")
    used = json.loads((folder / "provenance.json").read_text())
    if used["demo"]:
        raise ValueError(f"{name} ran on demo data; only real results are published")
    if metrics["parameters"].get("RUN_NAME"):
        raise ValueError(f"{name} has a RUN_NAME; only the run without one is published")
    target = runs.ROOT / "figures" / metrics["stem"] / metrics["profile"]
    new = target.with_name(f".{target.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    figures = [p for p in folder.glob("figures/*.png") if not p.name.startswith("private-")]
    for figure in figures:
        shutil.copy(figure, new)
    rows = [{key: _short(value) for key, value in row.items()} for row in metrics["results"]]
    write_json(new / "metrics.json", metrics | {"results": rows})
    if used["commit"] == "unknown" and provenance.is_current(used):
        used["commit"], used["clean"] = provenance.commit()
    write_json(new / "provenance.json", used)
    if (notebook := folder / f"{metrics['stem']}.ipynb").is_file():
        (new / notebook.name).write_text(public_notebook(notebook), encoding="utf-8")
    runs._replace_folder(new, target)
    return target


def _short(value: object) -> object:
    return float(f"{value:.9g}") if isinstance(value, float) else value


def public_notebook(path: Path) -> str:
    """Return an executed notebook without photographs, paths and names of a machine.

    Cells tagged ``photographs`` lose their outputs; pictures get a palette, of fewer colours and
    pixels the more there are.

    Raises:
        ValueError: If it stays larger than ``MOST_BYTES``.
    """
    for side, colours in QUALITIES:
        notebook = nbformat.read(path, as_version=4)
        kernel = notebook.metadata.get("kernelspec", {})
        notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
            cell.source = without_paths(cell.source)
            if "photographs" in tags and cell.get("outputs"):
                cell.outputs = [nbformat.v4.new_output("stream", text=f"{HIDDEN}\n")]
            for output in cell.get("outputs", []):
                _make_public(output, side, colours)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if len(text.encode()) <= MOST_BYTES:
            return text
    raise ValueError(f"{path.name} has more than {MOST_BYTES:,} bytes even with small pictures")


def without_paths(text: str) -> str:
    """Make paths below the repository relative; keep only the last part of other absolute ones."""
    text = text.replace(f"{runs.ROOT}/", "").replace(str(runs.ROOT), ".")
    return _ABSOLUTE.sub(r"\1", text)


def _make_public(output: nbformat.NotebookNode, side: int, colours: int) -> None:
    output.get("metadata", {}).pop("image/png", None)
    if "text" in output:
        output["text"] = _anonymous(output["text"])
    for kind, content in output.get("data", {}).items():
        if kind == "image/png":
            output["data"][kind] = small_picture(content, side, colours)
        elif isinstance(content, str):
            output["data"][kind] = _anonymous(content)


def _anonymous(text: str) -> str:
    names = {getpass.getuser(): "user", socket.gethostname(): "host"}
    for name, word in names.items():
        if name not in COMMON_USERS:
            text = re.sub(rf"\b{re.escape(name)}\b", word, text)
    return without_paths(text)


def small_picture(png: str, side: int, colours: int) -> str:
    """Shrink a picture in base64 to a longest side in pixels and a palette."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(colours).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
