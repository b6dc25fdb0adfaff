"""Execute 00 and 01 on the demo data and keep copies whose outputs the tests compare.

    .venv/bin/python tests/make_golden.py

Every output of the copies is compared by nbval, except in cells that print times. Run this after a
change of either notebook or of what it prints; `test_golden` fails until then.
"""

import base64
import io
import json
import re
import tempfile
from pathlib import Path

import nbformat
import papermill
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
STEMS = ("00_claims_audit", "01_dataset_analysis")
VOLATILE = re.compile(r"run\.finish\(\)|perf_counter")
COMPARED, IGNORED = "nbval-check-output", "nbval-ignore-output"


def golden_source(stem: str) -> nbformat.NotebookNode:
    """Return the notebook as its golden copy must have it, without outputs."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # a run of its own: notebooks/ may run at the same time
            cell.source = cell.source.replace('RUN_NAME: str = ""', 'RUN_NAME: str = "golden"')
            tag = IGNORED if VOLATILE.search(cell.source) else COMPARED
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), tag]
    return notebook


def small_picture(png: str) -> str:
    """Shrink a picture in base64: copies are kept for their numbers, which nbval compares."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((520, 520), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(48).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Write both copies."""
    for stem in STEMS:
        with tempfile.TemporaryDirectory() as folder:
            source, done = Path(folder, "source.ipynb"), Path(folder, "done.ipynb")
            nbformat.write(golden_source(stem), source)
            papermill.execute_notebook(
                str(source), str(done), engine_name="iqa", kernel_name="python3", progress_bar=False
            )
            notebook = nbformat.read(done, as_version=4)
        notebook.metadata = golden_source(stem).metadata
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output["data"]["image/png"] = small_picture(output["data"]["image/png"])
        path = GOLDEN / f"{stem}.ipynb"
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(path.relative_to(ROOT), path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
